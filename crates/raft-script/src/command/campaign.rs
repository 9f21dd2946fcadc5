//! `campaign N`: the node campaigns as if its election timeout had passed.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let node = args.node()?;
    args.end()?;
    cluster.node(node)?.replica()?.campaign();
    Ok(())
}
