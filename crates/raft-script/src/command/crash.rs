//! `crash N.. [lose-unsynced]`: the nodes stop. What they wrote and did not sync reached the disk
//! all the same, though nobody was told; with `lose-unsynced` it is gone.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let lose_unsynced = args.flag("lose-unsynced");
    let nodes = args.nodes()?;
    args.end()?;
    for node in nodes {
        cluster.node(node)?.replica()?;
        cluster.node(node)?.crash(lose_unsynced);
    }
    Ok(())
}
