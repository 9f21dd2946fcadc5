//! `process-apply-thread N..`: each node applies the oldest run of committed entries that was
//! handed out.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let nodes = args.nodes()?;
    args.end()?;
    nodes.into_iter().try_for_each(|node| cluster.process_apply(node))
}
