//! I1 and I4: one leader in a term, and it has everything that is committed.

use std::collections::BTreeMap;

use quorate_raft::{Replica, Role};
use quorate_types::{NodeId, Term};

use super::log::LogOracle;
use super::{Checked, Oracle};

/// Who has led. Nothing is ever forgotten.
#[derive(Debug, Default)]
pub(crate) struct ElectionOracle {
    leaders: BTreeMap<Term, NodeId>,
}

impl ElectionOracle {
    /// How many leaders there were.
    pub(crate) fn elections(&self) -> usize {
        self.leaders.len()
    }

    pub(crate) fn on_turn(&mut self, node: NodeId, replica: &Replica, log: &LogOracle) -> Checked {
        if replica.role() != Role::Leader {
            return Ok(());
        }
        let term = replica.term();
        if let Some(&leader) = self.leaders.get(&term) {
            return Oracle::ElectionSafety.check(leader == node, || {
                format!("nodes {leader} and {node} both lead term {term}")
            });
        }
        self.leaders.insert(term, node);
        let base = replica.base().index;
        for (id, seen) in log.committed_above(base) {
            // Its turn may come long after its election: what was committed by a later leader since then is
            // not its business.
            let has = seen >= term || replica.term_at(id.index) == Some(id.term);
            Oracle::LeaderCompleteness.check(has, || {
                format!("node {node} leads term {term} without {id}, committed in term {seen}")
            })?;
        }
        Ok(())
    }
}
