//! `send-snapshot N M`: the node sends M a snapshot of what it has applied, whether M needs it or not.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let (from, to) = (args.node()?, args.node()?);
    args.end()?;
    cluster.send_snapshot(from, to)
}
