//! `add-nodes N [voters=(1,2,3)] [outgoing=(..)] [learners=(4)] [index=2] [content=foo]
//! [async-storage-writes=true] [inflight=N] [inflight-partial=N] [eager-commit=true]
//! [quiet-commit=false] [inflight-bytes=N] [partial-interval=US] [append-bytes=N]
//! [probe-bytes=N] [uncommitted-bytes=N] [cached-bytes=N] [election-ticks=(MIN,MAX)] [prevote=false]
//! [checkquorum=false] [read-only=safe|lease-based] [life=K] [quiesce-ticks=K]`
//!
//! Adds nodes with the next ids, each started from a first snapshot at `index` in term 1 with that
//! membership and content. Defaults: one tick is a heartbeat, elections after exactly 3 ticks, no
//! bounds that a script would meet, and reads that are confirmed by a round of beats (`safe`); leases
//! and the promises that they are made of are switched on by `lease-based`, which needs CheckQuorum.
//! Pre-votes and CheckQuorum are on unless `prevote=false` or `checkquorum=false` says otherwise.

use bytes::Bytes;
use quorate_raft::Config;
use quorate_types::{EntryId, GroupId, LogIndex, Membership, NodeId, SnapshotMeta, Term};

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;
use crate::node::Node;

/// More nodes than any scenario needs; a mistyped number should not fill the memory.
const NODES_MAX: usize = 64;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let count = args.node()?.value() as usize;
    if cluster.nodes.len().saturating_add(count) > NODES_MAX {
        return Err(args.usage("would make too many nodes"));
    }
    let membership = Membership {
        voters: args.node_values("voters")?.into_iter().collect(),
        outgoing: args.node_values("outgoing")?.into_iter().collect(),
        learners: args.node_values("learners")?.into_iter().collect(),
        ..Membership::default()
    };
    let index = LogIndex(args.value("index")?.unwrap_or(0));
    let term = if index == LogIndex::ZERO { Term::ZERO } else { Term(1) };
    let snapshot = SnapshotMeta { last: EntryId::new(term, index), membership };
    let content: Option<String> = args.value("content")?;
    let is_async = args.value("async-storage-writes")?.unwrap_or(false);
    let config = config(&mut args)?;
    args.end()?;
    for _ in 0..count {
        let node = NodeId(cluster.nodes.len() as u64 + 1);
        let config = Config { node, seed: node.value(), ..config.clone() };
        let content = content.clone().map(Bytes::from);
        cluster.nodes.push(Node::new(config, snapshot.clone(), content, is_async));
    }
    Ok(())
}

fn config(args: &mut Args<'_>) -> Result<Config, ScriptError> {
    let defaults = Config::new(GroupId(1), NodeId(0));
    let (ticks_min, ticks_max) = match args.values("election-ticks") {
        [] => (3, 3),
        [min, max] => match (min.parse(), max.parse()) {
            (Ok(min), Ok(max)) if 1 < min && min <= max => (min, max),
            _ => return Err(args.usage("needs election-ticks=(MIN,MAX) with 1 < MIN <= MAX")),
        },
        _ => return Err(args.usage("needs election-ticks=(MIN,MAX)")),
    };
    let lease = match args.value::<String>("read-only")?.as_deref() {
        None | Some("safe") => false,
        Some("lease-based") => true,
        Some(_) => return Err(args.usage("knows safe and lease-based reads")),
    };
    let check_quorum = args.value("checkquorum")?.unwrap_or(true);
    if lease && !check_quorum {
        return Err(args.usage("has no lease-based reads with checkquorum=false"));
    }
    Ok(Config {
        lease,
        check_quorum,
        pre_vote: args.value("prevote")?.unwrap_or(true),
        life: args.value("life")?.unwrap_or(0),
        quiesce_ticks: args.value("quiesce-ticks")?.unwrap_or(0),
        election_ticks_min: ticks_min,
        election_ticks_max: ticks_max,
        inflight_appends_max: positive(args, "inflight", defaults.inflight_appends_max)?,
        inflight_partial_max: positive(args, "inflight-partial", defaults.inflight_partial_max)?,
        partial_interval_us: args.value("partial-interval")?.unwrap_or(u64::MAX),
        eager_commit: args.value("eager-commit")?.unwrap_or(defaults.eager_commit),
        quiet_commit: args.value("quiet-commit")?.unwrap_or(defaults.quiet_commit),
        inflight_bytes_max: positive(args, "inflight-bytes", defaults.inflight_bytes_max)?,
        append_bytes_max: positive(args, "append-bytes", defaults.append_bytes_max)?,
        probe_bytes_max: positive(args, "probe-bytes", defaults.probe_bytes_max)?,
        uncommitted_bytes_max: positive(args, "uncommitted-bytes", defaults.uncommitted_bytes_max)?,
        cached_bytes_max: args.value("cached-bytes")?.unwrap_or(defaults.cached_bytes_max),
        ..defaults
    })
}

fn positive(args: &mut Args<'_>, key: &str, default: usize) -> Result<usize, ScriptError> {
    match args.value(key)? {
        None => Ok(default),
        Some(0) => Err(args.usage(&format!("needs a positive {key}"))),
        Some(value) => Ok(value),
    }
}
