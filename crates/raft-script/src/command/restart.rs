//! `restart N..`: the nodes start again from what their disks hold, after a `crash` or, if they are up,
//! after stopping in good order.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let nodes = args.nodes()?;
    args.end()?;
    for node in nodes {
        let node = cluster.node(node)?;
        if node.is_up() {
            node.crash(false);
        }
        node.start();
    }
    Ok(())
}
