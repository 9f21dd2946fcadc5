//! `restart N.. [applied=I]`: the nodes start again from what their disks hold, after a `crash` or,
//! if they are up, after stopping in good order. With `applied` their state machines have lost
//! everything behind that index, as one does that writes without syncing.

use quorate_types::LogIndex;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let applied = args.value("applied")?.map(LogIndex);
    let nodes = args.nodes()?;
    args.end()?;
    for node in nodes {
        let node = cluster.node(node)?;
        if node.is_up() {
            node.crash(false);
        }
        if let Some(applied) = applied {
            node.lose_applied(applied).map_err(|()| args.usage("cannot go back to there"))?;
        }
        node.start();
    }
    Ok(())
}
