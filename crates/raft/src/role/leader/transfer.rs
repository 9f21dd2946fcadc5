//! Handing the leadership over (thesis section 3.10): the successor catches up, is told to campaign
//! at once, and is elected although everybody hears the leader, because its request for votes bears
//! the leader's leave.
//!
//! Nothing is proposed meanwhile, or the successor would never catch up. If it has not taken over
//! within an election timeout, the leader goes on; it has no lease for the rest of its term, since
//! the leave that it gave cannot be called back.

use quorate_types::{Body, NodeId};

use super::Leader;
use crate::error::TransferError;
use crate::state::State;

/// A preferred leader is tried after so many times `election_ticks_max`, doubled so often at most.
const HANDOVER_DOUBLINGS_MAX: u32 = 6;

/// A transfer under way.
#[derive(Debug)]
pub(super) struct Transfer {
    to: NodeId,
    elapsed_ticks: u32,
    /// The successor is told when it has caught up, and again with each beat, since that may be
    /// lost.
    tell_due: bool,
}

/// When the leader looks for its preferred successor next.
#[derive(Debug)]
pub(super) struct Handover {
    wait_ticks: u32,
    tries: u32,
}

impl Handover {
    /// A new leader leads for a while before it hands over: a preference must not make a group whose
    /// preferred leader keeps failing change hands all the time.
    pub(super) const fn new(state: &State) -> Self {
        Self { wait_ticks: state.config.election_ticks_max, tries: 0 }
    }
}

impl Leader {
    pub(crate) fn transfer_to(&mut self, state: &State, to: NodeId) -> Result<(), TransferError> {
        if to == state.config.node {
            // "Stay": who leads already ends what is under way.
            self.transfer = None;
            return Ok(());
        }
        if !state.membership().is_voter(to) || !self.peers.contains_key(&to) {
            return Err(TransferError::NotVoter { node: to });
        }
        if self.transferring_to() != Some(to) {
            self.transfer = Some(Transfer { to, elapsed_ticks: 0, tell_due: true });
        }
        Ok(())
    }

    pub(crate) fn transferring_to(&self) -> Option<NodeId> {
        self.transfer.as_ref().map(|transfer| transfer.to)
    }

    pub(super) fn tick_transfer(&mut self, state: &State) {
        if let Some(transfer) = &mut self.transfer {
            transfer.elapsed_ticks += 1;
            transfer.tell_due |= self.beat_elapsed_ticks == 0;
            if transfer.elapsed_ticks >= state.config.election_ticks_min
                || !state.membership().is_voter(transfer.to)
            {
                self.transfer = None;
            }
        } else {
            self.maybe_hand_over(state);
        }
    }

    /// A leader that is not the preferred one hands over when that one is alive and has caught up,
    /// and waits twice as long after each attempt that came to nothing.
    fn maybe_hand_over(&mut self, state: &State) {
        self.handover.wait_ticks = self.handover.wait_ticks.saturating_sub(1);
        let Some(preferred) = state.config.preferred_leader else { return };
        let is_ready = self.peers.get(&preferred).is_some_and(|peer| {
            peer.match_index() >= state.log.commit() && peer.is_heard(self.now, &state.config)
        });
        if self.handover.wait_ticks == 0
            && is_ready
            && self.knows_commit(state)
            && self.transfer_to(state, preferred).is_ok()
        {
            let doublings = self.handover.tries.min(HANDOVER_DOUBLINGS_MAX);
            self.handover.wait_ticks =
                state.config.election_ticks_max.saturating_mul(1 << doublings);
            self.handover.tries += 1;
        }
    }

    /// The successor may be told now.
    pub(super) fn wants_farewell(&self, state: &State) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| {
            transfer.tell_due
                && self
                    .peers
                    .get(&transfer.to)
                    .is_some_and(|peer| peer.match_index() == state.log.last().index)
        })
    }

    pub(super) fn pump_transfer(&mut self, state: &mut State) {
        if !self.wants_farewell(state) {
            return;
        }
        if let Some(transfer) = &mut self.transfer {
            transfer.tell_due = false;
            self.took_leave = !quorate_types::defect!(LeaseAfterFarewell);
            state.send(transfer.to, Body::TimeoutNow);
        }
    }
}
