//! `process-append-thread N..`: each node syncs its oldest append: the log and hard state are
//! durable, and the promises of the append leave.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let nodes = args.nodes()?;
    args.end()?;
    nodes.into_iter().try_for_each(|node| cluster.process_append(node))
}
