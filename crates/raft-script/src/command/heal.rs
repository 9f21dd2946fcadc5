//! `heal`: every node reaches every other again.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, args: &Args<'_>) -> Result<(), ScriptError> {
    args.end()?;
    cluster.cuts.clear();
    Ok(())
}
