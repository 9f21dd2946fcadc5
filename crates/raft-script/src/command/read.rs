//! `read N ID`: the node is asked for a linearizable read; the answer is in one of its readies.

use quorate_raft::ReadId;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let node = args.node()?;
    let id = args.word().and_then(|word| word.parse().ok());
    let id = ReadId(id.ok_or_else(|| args.usage("needs a number for the read"))?);
    args.end()?;
    let asked = cluster.node(node)?.replica()?.read(id);
    if let Err(error) = asked {
        cluster.output.line(format!("refused: {error}"));
    }
    Ok(())
}
