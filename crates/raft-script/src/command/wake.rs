//! `wake N..`: the hosts of the nodes wake their replicas.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let nodes = args.nodes()?;
    args.end()?;
    for node in nodes {
        cluster.node(node)?.replica()?.wake();
    }
    Ok(())
}
