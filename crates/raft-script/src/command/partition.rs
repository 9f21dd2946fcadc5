//! `partition N..` cuts the named nodes off from all others, both ways; among themselves they still
//! talk. `partition from=(N,..) to=(N,..)` cuts one way only. Cuts add up until `heal`.

use quorate_types::NodeId;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let (from, to) = (args.node_values("from")?, args.node_values("to")?);
    let island = args.nodes()?;
    args.end()?;
    let one_way = from.iter().flat_map(|&a| to.iter().map(move |&b| (a, b)));
    cluster.cuts.extend(one_way);
    let all = 1..=cluster.nodes.len() as u64;
    let mainland: Vec<_> = all.map(NodeId).filter(|node| !island.contains(node)).collect();
    for &a in &island {
        cluster.cuts.extend(mainland.iter().flat_map(|&b| [(a, b), (b, a)]));
    }
    Ok(())
}
