//! `forget-leader N..`: each node stops counting on its leader until it hears it again.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let nodes = args.nodes()?;
    args.end()?;
    for node in nodes {
        cluster.node(node)?.replica()?.forget_leader();
    }
    Ok(())
}
