//! `tick-heartbeat N.. [n=K]`: for each node, the ticks between two heartbeats pass, K times.
//! `tick-election N.. [n=K]`: for each node, the shortest election timeout passes, K times.
//! `burst-ticks N.. [n=K]`: K late ticks come at once, while the clocks stand.
//!
//! Beware of the randomized part when `election-ticks` has one. A tick is 100 ms of the node's clock.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

/// More than any scenario needs; a mistyped number should not run for ever.
const TICKS_MAX: u32 = 100_000;

pub(crate) fn run_heartbeat(cluster: &mut Cluster, args: Args<'_>) -> Result<(), ScriptError> {
    run(cluster, args, |config| config.heartbeat_ticks)
}

pub(crate) fn run_burst(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let times: u32 = args.value("n")?.unwrap_or(1);
    let nodes = args.nodes()?;
    args.end()?;
    for node in nodes {
        let replica = cluster.node(node)?.replica()?;
        (0..times.min(TICKS_MAX)).for_each(|_| replica.tick());
    }
    Ok(())
}

pub(crate) fn run_election(cluster: &mut Cluster, args: Args<'_>) -> Result<(), ScriptError> {
    run(cluster, args, |config| config.election_ticks_min)
}

fn run(
    cluster: &mut Cluster,
    mut args: Args<'_>,
    ticks: impl Fn(&quorate_raft::Config) -> u32,
) -> Result<(), ScriptError> {
    let times: u32 = args.value("n")?.unwrap_or(1);
    let nodes = args.nodes()?;
    args.end()?;
    for node in nodes {
        let node = cluster.node(node)?;
        let ticks = times.saturating_mul(ticks(node.replica()?.config()));
        if ticks > TICKS_MAX {
            return Err(ScriptError::Usage(format!("{ticks} ticks are too many")));
        }
        (0..ticks).try_for_each(|_| node.tick())?;
    }
    Ok(())
}
