//! `log-level none|error|warn|info|debug`: with `none`, nothing but errors is printed. There is
//! only one kind of output, so the others are all the same.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let level = args.word().ok_or_else(|| args.usage("names no level"))?;
    args.end()?;
    cluster.output.quiet = is_quiet(level, &args)?;
    Ok(())
}

/// Does this level silence everything?
pub(crate) fn is_quiet(level: &str, args: &Args<'_>) -> Result<bool, ScriptError> {
    match level.to_lowercase().as_str() {
        "none" => Ok(true),
        "debug" | "info" | "warn" | "error" | "fatal" => Ok(false),
        _ => Err(args.usage("knows no such level")),
    }
}
