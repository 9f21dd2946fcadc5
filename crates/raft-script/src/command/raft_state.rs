//! `raft-state`: prints each node's own view, one line a node.

use crate::args::Args;
use crate::cluster::Cluster;
use crate::describe;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, args: &Args<'_>) -> Result<(), ScriptError> {
    args.end()?;
    for node in &cluster.nodes {
        let Some(replica) = node.view() else {
            cluster.output.line(format!("{}: down", node.id()));
            continue;
        };
        let membership = replica.membership();
        let standing = if membership.is_voter(node.id()) {
            "voter"
        } else if membership.learners.contains(&node.id()) {
            "learner"
        } else {
            "stranger"
        };
        cluster.output.line(format!(
            "{}: {} {standing}{} term={} vote={} leader={} commit={} applied={} last={}",
            node.id(),
            replica.role().name(),
            if replica.is_asleep() { " asleep" } else { "" },
            replica.term(),
            describe::node(replica.vote()),
            describe::node(replica.leader()),
            replica.commit(),
            node.applied(),
            replica.last(),
        ));
    }
    Ok(())
}
