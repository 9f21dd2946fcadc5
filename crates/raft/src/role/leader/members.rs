//! Changing who takes part, at the leader (thesis chapter 4): one change at a time, each in force from
//! the moment when it is in the log.

use quorate_types::{Body, Entry, EntryId, LogIndex, Membership, NodeId, Payload};

use super::Leader;
use crate::error::MembershipError;
use crate::membership::{self, MembershipChange, NodeChange};
use crate::progress::Progress;
use crate::ready::Cause;
use crate::role::Transition;
use crate::state::State;

impl Leader {
    pub(crate) fn change_membership(
        &mut self,
        state: &mut State,
        change: &MembershipChange,
    ) -> Result<EntryId, MembershipError> {
        if let Some(to) = self.transferring_to() {
            return Err(MembershipError::Transferring { to });
        }
        // An uncommitted change of an earlier term may be in the way of one that this leader makes
        // in one step: the two need not have a voter in common (thesis, erratum of 2015).
        if !self.knows_commit(state) && !quorate_types::defect!(ChangeBeforeOwnCommit) {
            return Err(MembershipError::NotReady);
        }
        if let Some(index) = pending(state)
            && !quorate_types::defect!(ChangeWhilePending)
        {
            return Err(MembershipError::Pending { index });
        }
        let next = membership::changed(state.membership(), change)?;
        Ok(self.append_membership(state, next))
    }

    fn append_membership(&mut self, state: &mut State, next: Membership) -> EntryId {
        self.quiesce.on_activity();
        let id = EntryId::new(state.term, state.log.last().index.next());
        state.extend([Entry { id, payload: Payload::Membership(Box::new(next)) }]);
        self.update_peers(state);
        id
    }

    /// Begins with those who came, and gives those who go the time to hear of it.
    pub(super) fn update_peers(&mut self, state: &State) {
        let nodes = state.membership().nodes();
        for &node in nodes.iter().filter(|&&node| node != state.config.node) {
            self.leaving.remove(&node);
            let (next, now) = (state.log.last().index, self.now);
            self.peers.entry(node).or_insert_with(|| Progress::new(next, now));
        }
        for &node in self.peers.keys().filter(|&node| !nodes.contains(node)) {
            self.leaving.entry(node).or_insert(None);
        }
    }

    /// A tick passed: whoever left has had an election timeout to hear that it did.
    pub(super) fn tick_members(&mut self, state: &State) {
        let is_committed = pending(state).is_none();
        let (now, wait) = (self.now, u64::from(state.config.election_ticks_min));
        for until in self.leaving.values_mut().filter(|_| is_committed) {
            until.get_or_insert(now + wait);
        }
        let peers = &mut self.peers;
        self.leaving.retain(|node, until| {
            let stays = until.is_none_or(|until| now < until);
            if !stays {
                peers.remove(node);
            }
            stays
        });
        self.beat_due &= !self.peers.is_empty();
        if self.beat_elapsed_ticks == 0 {
            self.promoting = self.promotable(state);
            self.promotion_mark = state.log.commit();
        }
    }

    /// A learner that is to be promoted and holds what was committed a heartbeat ago: it keeps up,
    /// and as a voter will not hold up a commit.
    fn promotable(&self, state: &State) -> Option<NodeId> {
        let mark = Some(self.promotion_mark).filter(|&mark| mark >= self.first_in_term)?;
        state.membership().promote.iter().copied().find(|node| {
            let peer = self.peers.get(node);
            peer.is_some_and(|peer| {
                peer.is_replicating()
                    && peer.match_index() >= mark
                    && peer.is_heard(self.now, &state.config)
            })
        })
    }

    /// The change that the leader makes by itself now: leaving a joint membership, which must be
    /// committed first, or promoting a learner.
    fn own_change(&self, state: &State) -> Option<MembershipChange> {
        let membership = state.membership();
        let is_pending = pending(state).is_some() && !quorate_types::defect!(JointLeftAtOnce);
        if is_pending || !self.knows_commit(state) || self.transfer.is_some() {
            return None;
        }
        if membership.is_joint() {
            return membership.auto_leave.then(MembershipChange::leave);
        }
        let node = self.promoting.filter(|node| membership.promote.contains(node))?;
        Some(MembershipChange::of([NodeChange::Voter(node)]))
    }

    pub(super) fn pump_members(&mut self, state: &mut State) {
        if let Some(change) = self.own_change(state)
            && let Ok(next) = membership::changed(state.membership(), &change)
        {
            self.promoting = None;
            self.append_membership(state, next);
        }
    }

    /// True when the leader is no voter any more, and that is committed: it has led on until now,
    /// without counting itself.
    fn is_removed(&self, state: &State) -> bool {
        !state.is_voter() && self.knows_commit(state) && pending(state).is_none()
    }

    pub(super) fn wants_members(&self, state: &State) -> bool {
        self.own_change(state).is_some() || self.is_removed(state)
    }

    /// The last messages of a leader that was removed, after those of the turn: everybody hears of
    /// the commit, and the voter that is farthest takes over at once.
    pub(super) fn step_down_if_removed(&mut self, state: &mut State) -> Option<Transition> {
        if !self.is_removed(state) {
            return None;
        }
        let round = self.beats.latest();
        let voters = self.peers.iter().filter(|(node, _)| state.membership().is_voter(**node));
        let successor = voters.max_by_key(|(_, peer)| peer.match_index()).map(|(&node, _)| node);
        for (&node, peer) in &self.peers {
            let commit = state.log.commit().min(peer.match_index());
            state.send(node, Body::Heartbeat { commit, round });
        }
        if let Some(successor) = successor {
            state.send(successor, Body::TimeoutNow);
        }
        Some(Transition::Follow { leader: None, cause: Cause::Removed })
    }
}

/// The change that is not committed yet.
fn pending(state: &State) -> Option<LogIndex> {
    state.memberships.index().filter(|&index| index > state.log.commit())
}
