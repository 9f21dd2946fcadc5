//! `compact N INDEX`: the node gives up its log up to the index, all of which it has applied.

use quorate_types::LogIndex;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let node = args.node()?;
    let index = args.word().and_then(|word| word.parse().ok()).map(LogIndex);
    let index = index.ok_or_else(|| args.usage("needs an index"))?;
    args.end()?;
    if cluster.node(node)?.compact(index)?.is_none() {
        cluster.output.line(format!("refused: {index} is not applied"));
    }
    Ok(())
}
