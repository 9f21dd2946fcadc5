//! I22: what waits at a replica is bounded, and gone when all is quiet.

use quorate_raft::Replica;
use quorate_types::NodeId;

use super::{Checked, Oracle};
use crate::node::Resident;

/// Watches budgets.
#[derive(Debug)]
pub(crate) struct ResourceOracle;

impl ResourceOracle {
    pub(crate) fn on_turn(&self, node: NodeId, replica: &Replica) -> Checked {
        let config = replica.config();
        // One proposal or append may exceed a budget when there is nothing else.
        let slack = config.append_bytes_max.max(1 << 16);
        let uncommitted = replica.uncommitted_bytes();
        Oracle::Resources
            .check(uncommitted <= config.uncommitted_bytes_max.saturating_add(slack), || {
                format!("node {node}: {uncommitted} bytes of proposals are uncommitted")
            })?;
        for &peer in &replica.membership().voters {
            let Some(progress) = replica.progress(peer) else { continue };
            let within = progress.inflight <= config.inflight_appends_max
                && progress.inflight_bytes <= config.inflight_bytes_max.saturating_add(slack)
                && progress.match_index < progress.next;
            Oracle::Resources
                .check(within, || format!("node {node}: {progress:?} of its peer {peer}"))?;
        }
        Ok(())
    }

    /// Nothing has happened for a while.
    pub(crate) fn on_quiet(&self, node: NodeId, resident: &Resident) -> Checked {
        let (proposals, reads) =
            (resident.group.proposals_waiting(), resident.group.reads_waiting());
        let uncommitted = resident.group.replica().uncommitted_bytes();
        Oracle::Resources.check(proposals == 0 && reads == 0 && uncommitted == 0, || {
            format!(
                "node {node}: in quiet, {proposals} proposals and {reads} reads wait, and \
                 {uncommitted} bytes are uncommitted"
            )
        })
    }
}
