//! `tick-heartbeat N.. [n=K]`: for each node, the ticks between two heartbeats pass, K times.
//! `tick-election N.. [n=K]`: for each node, the shortest election timeout passes, K times; beware
//! of the randomized part when `election-ticks` has one.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run_heartbeat(cluster: &mut Cluster, args: Args<'_>) -> Result<(), ScriptError> {
    run(cluster, args, |config| config.heartbeat_ticks)
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
        let replica = cluster.node(node)?.replica()?;
        for _ in 0..times * ticks(replica.config()) {
            replica.tick();
        }
    }
    Ok(())
}
