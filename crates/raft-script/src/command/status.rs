//! `status N [round-trip]`: prints how far the leader N has brought each peer, and how far away it is.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let tells_far = args.flag("round-trip");
    let node = args.node()?;
    args.end()?;
    let replica = cluster.node(node)?.replica()?;
    let peers = replica.membership().nodes().into_iter();
    let progress = peers.filter_map(|peer| Some((peer, replica.progress(peer)?)));
    let lines: Vec<_> = progress
        .map(|(peer, progress)| {
            let far = progress.round_trip_us.filter(|_| tells_far);
            let far = far.map_or_else(String::new, |us| format!(" round-trip={us}us"));
            format!(
                "{peer}: {} match={} next={} inflight={}{far}",
                progress.state.name(),
                progress.match_index,
                progress.next,
                progress.inflight
            )
        })
        .collect();
    if lines.is_empty() {
        cluster.output.line("not leading anyone");
    }
    lines.into_iter().for_each(|line| cluster.output.line(line));
    Ok(())
}
