//! `raft-log N`: prints the log of the node as written, synced or not.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::describe;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let node = args.node()?;
    args.end()?;
    let entries = cluster.node(node)?.log();
    if entries.is_empty() {
        cluster.output.line("log is empty");
    }
    for entry in &entries {
        cluster.output.line(describe::entry(entry));
    }
    Ok(())
}
