//! `transfer-leadership N M`, or `transfer-leadership from=N to=M`: the leader N hands over to M.

use quorate_types::NodeId;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let (from, to) = match (args.value("from")?, args.value("to")?) {
        (Some(from), Some(to)) => (NodeId(from), NodeId(to)),
        _ => (args.node()?, args.node()?),
    };
    args.end()?;
    if let Err(error) = cluster.node(from)?.replica()?.transfer_leadership(to) {
        cluster.output.line(format!("refused: {error}"));
    }
    Ok(())
}
