//! An idle leader and its group fall asleep, see [`Quiesce`](crate::quiesce::Quiesce).

use quorate_types::{Moment, NodeId};

use super::Leader;
use crate::state::State;

impl Leader {
    /// Nothing is left to do anywhere, as far as this leader can tell; that its peers have applied
    /// everything, they know themselves.
    pub(super) fn is_settled(&self, state: &State) -> bool {
        let (log, membership) = (&state.log, state.membership());
        let last = log.last().index;
        log.applied() == last
            && !membership.is_joint()
            && membership.promote.is_empty()
            && state.config.preferred_leader.is_none_or(|node| node == state.config.node)
            && self.transfer.is_none()
            && self.leaving.is_empty()
            && !self.reads.is_waiting()
            && self.peers.values().all(|peer| peer.is_replicating() && peer.match_index() == last)
    }

    /// `from` agreed to sleep in `round`; with the last one the leader sleeps too. It has no lease
    /// then, and none when it wakes before a round is answered.
    pub(crate) fn on_asleep(&mut self, state: &mut State, from: NodeId, round: u64) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.hear(self.now);
        peer.confirmed_round = peer.confirmed_round.max(round.min(self.beats.latest()));
        let all_agree = self.quiesce.on_agreed(from, round, self.peers.len());
        if all_agree && self.is_settled(state) {
            state.asleep = true;
            self.beat_due = false;
            for peer in self.peers.values_mut() {
                peer.promised_until = Moment::ZERO;
            }
        }
    }

    /// Where nobody else is to be asked.
    pub(super) fn maybe_sleep_alone(&self, state: &mut State) {
        let is_due = self.quiesce.is_due(state.config.quiesce_ticks);
        if self.peers.is_empty() && is_due && self.is_settled(state) {
            state.asleep = true;
        }
    }

    /// Beats at once, so that the others wake and know who leads, and gives them time to answer.
    pub(crate) fn on_woken(&mut self) {
        self.quiesce.on_activity();
        self.beat_due = !self.peers.is_empty();
        for peer in self.peers.values_mut() {
            peer.give_time(self.now);
        }
    }
}
