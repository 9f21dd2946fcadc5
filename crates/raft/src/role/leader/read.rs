//! Reads at the leader: which rounds and leases confirm them, and who is told.

use quorate_types::{Body, LogIndex, Moment, NodeId};

use super::Leader;
use crate::lease;
use crate::quorum;
use crate::read_index::Asker;
use crate::ready::ReadReady;
use crate::state::State;

impl Leader {
    pub(crate) fn read(&mut self, asker: Asker) {
        self.quiesce.on_activity();
        self.reads.push(asker);
    }

    pub(crate) fn on_heartbeat_reply(
        &mut self,
        state: &mut State,
        from: NodeId,
        round: u64,
        promise_us: u64,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if round > self.beats.latest() {
            state.counters.ignored_messages += 1;
            return;
        }
        peer.hear(self.now);
        peer.on_heartbeat_answered(self.now);
        peer.answered_round = Some(round);
        if let Some(start) = self.beats.start_of(round) {
            // No longer than what this replica would promise itself, whatever the peer says.
            let promise_us = promise_us.min(state.config.promise_us());
            let end = lease::lease_end(start, promise_us, state.config.clock_drift_permille_max);
            peer.promised_until = peer.promised_until.max(end);
        }
        if round > peer.confirmed_round {
            peer.confirmed_round = round;
            self.maybe_confirm(state);
        }
    }

    pub(super) fn maybe_confirm(&mut self, state: &mut State) {
        let round = quorum::reached(state.membership(), |node| {
            if node == state.config.node {
                self.beats.latest()
            } else {
                self.peer(node, |peer| peer.confirmed_round)
            }
        });
        if let Some((index, askers)) = self.reads.confirm(round) {
            state.counters.round_reads += askers.len() as u64;
            serve(state, index, askers);
        }
    }

    /// Until when no other replica can be elected, as promised by a quorum of each half; no time any
    /// more once a successor was told to campaign. Its own
    /// silence needs no promise: while it leads, it neither votes nor campaigns.
    pub(crate) fn lease_end(&self, state: &State) -> Moment {
        if self.took_leave {
            return Moment::ZERO;
        }
        if quorate_types::defect!(LeaseOfLongestPromise) {
            let promises = self.peers.values().map(|peer| peer.promised_until);
            return promises.max().unwrap_or_default();
        }
        Moment(quorum::reached(state.membership(), |node| {
            if node == state.config.node {
                u64::MAX
            } else {
                self.peer(node, |peer| peer.promised_until.value_us())
            }
        }))
    }

    /// While the lease runs, whoever waits is served at once.
    pub(super) fn serve_by_lease(&mut self, state: &mut State) {
        if self.reads.is_waiting() && self.holds_lease(state, state.now) {
            let askers = self.reads.take_all();
            state.counters.lease_reads += askers.len() as u64;
            serve(state, state.log.commit(), askers);
        }
    }

    /// True when at `now` nobody else can lead, so that whatever is committed by then is committed
    /// here.
    pub(super) fn holds_lease(&self, state: &State, now: Moment) -> bool {
        state.config.lease && self.knows_commit(state) && now < self.lease_end(state)
    }

    /// Before the first commit of its term a leader does not know what is committed.
    pub(super) fn knows_commit(&self, state: &State) -> bool {
        state.log.commit() >= self.first_in_term || quorate_types::defect!(ReadBeforeOwnCommit)
    }

    pub(super) fn wants_round(&self, state: &State) -> bool {
        self.reads.wants_round() && self.knows_commit(state)
    }
}

/// Tells `askers` that a read is linearizable at `index`.
fn serve(state: &mut State, index: LogIndex, askers: Vec<Asker>) {
    for asker in askers {
        match asker {
            Asker::Own(id) => state.reads.push(ReadReady { id, index }),
            Asker::Peer(node, context) => state.send(node, Body::ReadIndexReply { context, index }),
        }
    }
}
