//! `process-ready N..`: each node takes one ready and starts everything in it. Without asynchronous
//! storage writes, its append is synced and its entries are applied at once.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let nodes = args.nodes()?;
    args.end()?;
    nodes.into_iter().try_for_each(|node| cluster.process_ready(node))
}
