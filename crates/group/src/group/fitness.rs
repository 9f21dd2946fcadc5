//! What a replica does whose node is not fit: it leads nothing, and does not hold up the others.

use std::collections::BTreeSet;

use quorate_raft::{ProgressState, Role};
use quorate_types::NodeId;

use super::Group;
use crate::disk::{Fitness, is_quorum};

/// A leader whose node is unfit has this part of an election timeout to hand over; then it steps down.
const HANDOVER_PART: u32 = 4;

impl<P, R> Group<P, R> {
    /// What the node's disk allows; to be told again now and then while it is unfit, with the other nodes
    /// that are unfit too. A leader on an unfit node hands over to a fit voter; if nobody has taken over
    /// soon, it steps down, as long as the fit voters can elect another one. That needs nothing of its own
    /// disk. Nobody on an unfit node campaigns, and on one without room nothing is appended or applied.
    pub fn set_fitness(&mut self, fitness: Fitness, unfit: &BTreeSet<NodeId>) {
        if self.fitness == Fitness::Fit {
            self.unfit_since = self.tick;
        }
        self.fitness = fitness;
        self.renew_fitness();
        let must_go = fitness != Fitness::Fit && !quorate_types::defect!(HungDiskLeads);
        if must_go && self.replica.role() == Role::Leader {
            self.give_leadership_away(unfit);
        }
    }

    /// Lets the replica know whether it may campaign, which rests on its disk and on its state.
    pub(super) fn renew_fitness(&mut self) {
        let may_lead = self.fitness == Fitness::Fit && !self.is_distrusted();
        let has_room = self.fitness != Fitness::Exhausted;
        let takes_entries = has_room || quorate_types::defect!(FullDiskTakesEntries);
        self.replica.set_fit(may_lead, takes_entries);
    }

    fn give_leadership_away(&mut self, unfit: &BTreeSet<NodeId>) {
        let (own, membership) = (self.replica.config().node, self.replica.membership());
        let is_fit = |node: NodeId| node != own && !unfit.contains(&node);
        if !is_quorum(membership, is_fit) {
            // Whoever else could be elected is no better off, or there is nobody.
            return;
        }
        let patience = (self.replica.config().election_ticks_min / HANDOVER_PART).max(1);
        if self.tick - self.unfit_since >= u64::from(patience) {
            self.replica.step_down();
            return;
        }
        let follows = |node: &NodeId| {
            let progress = self.replica.progress(*node)?;
            let is_fed = progress.state == ProgressState::Replicate;
            (is_fed && is_fit(*node)).then_some((progress.match_index, *node))
        };
        let heir = membership.voters.iter().filter_map(follows).max();
        if let Some((_, heir)) = heir.filter(|_| self.replica.transferring_to().is_none()) {
            // It is a voter, and this replica leads: nothing is refused.
            let _ = self.replica.transfer_leadership(heir);
        }
    }
}
