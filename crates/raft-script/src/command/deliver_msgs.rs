//! `deliver-msgs N.. [drop=(N,..)] [type=MsgApp] [from=N] [skip=K] [count=K] [copy]`
//!
//! Delivers the messages that wait for the nodes, oldest first, and drops those that wait for the
//! nodes in `drop`. Options choose by type (our names or etcd's) and sender, leave out the oldest
//! `skip` of those, and take at most `count`. With `copy` they stay in the network too, to arrive
//! again. A message to a node that is down, or over a cut, is lost when it is delivered.

use quorate_types::NodeId;

use crate::args::Args;
use crate::cluster::{Cluster, Delivery};
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let from = args.value("from")?.map(NodeId);
    let kind: Option<String> = args.value("type")?;
    let skip = args.value("skip")?.unwrap_or(0);
    let count = args.value("count")?.unwrap_or(usize::MAX);
    let is_copy = args.flag("copy");
    let drops = args.node_values("drop")?;
    let delivers = args.nodes()?;
    args.end()?;
    let deliveries = delivers.into_iter().map(|to| (to, false));
    let mut handled = 0;
    for (to, is_drop) in deliveries.chain(drops.into_iter().map(|to| (to, true))) {
        let kind = kind.clone();
        handled += cluster.deliver(&Delivery { to, from, kind, skip, count, is_drop, is_copy })?;
    }
    if handled == 0 {
        cluster.output.line("no messages");
    }
    Ok(())
}
