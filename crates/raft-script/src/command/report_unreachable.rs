//! `report-unreachable N PEER`: the node's transport says that it could not deliver to the peer.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let (node, peer) = (args.node()?, args.node()?);
    args.end()?;
    cluster.node(node)?.replica()?.unreachable(peer);
    Ok(())
}
