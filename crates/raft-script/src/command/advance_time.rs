//! `advance-time MS [N..]`: the clocks of the named nodes, or of all, go on by so many milliseconds, and
//! no tick comes: the nodes were paused, or their clocks run at different rates.

use quorate_types::NodeId;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;
use crate::node::Node;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let ms = args.word().and_then(|word| word.trim_end_matches("ms").parse::<u64>().ok());
    let ms = ms.ok_or_else(|| args.usage("needs a number of milliseconds"))?;
    let named = args.nodes()?;
    args.end()?;
    let nodes: Vec<NodeId> =
        if named.is_empty() { cluster.nodes.iter().map(Node::id).collect() } else { named };
    for node in nodes {
        cluster.node(node)?.advance(ms.saturating_mul(1000));
    }
    Ok(())
}
