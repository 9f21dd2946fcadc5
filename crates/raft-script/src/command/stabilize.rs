//! `stabilize [N..] [log-level=none]`: handles readies, delivers messages, syncs and applies at the
//! named nodes, or at all, until nothing is left to do. No time passes.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::command::log_level;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let level: Option<String> = args.value("log-level")?;
    let named = args.nodes()?;
    args.end()?;
    let quiet = cluster.output.quiet;
    if let Some(level) = level {
        cluster.output.quiet = log_level::is_quiet(&level, &args)?;
    }
    let nodes = cluster.named_or_all(named);
    let result = cluster.stabilize(&nodes);
    cluster.output.quiet = quiet;
    result
}
