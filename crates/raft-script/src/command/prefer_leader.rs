//! `prefer-leader N.. [to=M]`: the nodes are told that M should lead; nobody without `to`.

use quorate_types::NodeId;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let preferred = args.value("to")?.map(NodeId);
    let nodes = args.nodes()?;
    args.end()?;
    for node in nodes {
        cluster.node(node)?.replica()?.prefer_leader(preferred);
    }
    Ok(())
}
