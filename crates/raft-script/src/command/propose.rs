//! `propose N COMMAND..`: the node proposes the commands, all or none.

use bytes::Bytes;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let node = args.node()?;
    let mut commands = Vec::new();
    while let Some(command) = args.word() {
        commands.push(Bytes::copy_from_slice(command.as_bytes()));
    }
    args.end()?;
    let proposed = cluster.node(node)?.replica()?.propose(commands);
    if let Err(error) = proposed {
        cluster.output.line(format!("refused: {error}"));
    }
    Ok(())
}
