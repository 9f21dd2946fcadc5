//! I11: while a leader may read by its lease, nobody else is elected, in true time.

use std::collections::BTreeMap;

use quorate_raft::{Replica, Role};
use quorate_types::{Moment, NodeId, Term};

use super::{Checked, Oracle};

/// The leases that are held. A lease outlives its holder's process: the promises that it is made of do.
#[derive(Debug, Default)]
pub(crate) struct LeaseOracle {
    /// The latest of each node: its term, and its end on the node's own clock.
    leases: BTreeMap<NodeId, (Term, Moment)>,
    /// The highest term that has had a leader.
    term: Term,
}

impl LeaseOracle {
    pub(crate) fn on_turn(
        &mut self,
        node: NodeId,
        replica: &Replica,
        clocks: &dyn Fn(NodeId) -> Moment,
    ) -> Checked {
        if replica.role() != Role::Leader {
            // Who leads no more reads no more by its lease; it may have told a successor so.
            self.leases.remove(&node);
            return Ok(());
        }
        let term = replica.term();
        if term > self.term {
            self.term = term;
            for (&holder, &(of_term, end)) in &self.leases {
                let over = holder == node || of_term >= term || clocks(holder) >= end;
                Oracle::LeaseExclusivity.check(over, || {
                    format!(
                        "node {node} leads term {term} while node {holder} holds a lease of term \
                         {of_term} until {end}, and its clock shows {}",
                        clocks(holder)
                    )
                })?;
            }
        }
        let may_read = replica.config().lease
            && replica.first_in_term().is_some_and(|first| replica.commit() >= first);
        if let Some(end) = replica.lease_end().filter(|_| may_read) {
            self.leases.insert(node, (term, end));
        }
        Ok(())
    }
}
