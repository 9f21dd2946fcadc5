//! Peers that need entries which are no longer in the log get a snapshot instead (thesis chapter 5).
//!
//! The content travels outside of the core: the leader asks its driver for it and hears how that
//! ended. The receiver's acknowledgement, or the first probe behind the snapshot, then shows where it
//! stands.

use quorate_types::{LogIndex, NodeId};

use super::Leader;
use crate::progress::Progress;
use crate::ready::SnapshotRequest;
use crate::state::State;

impl Leader {
    pub(crate) fn on_snapshot_sent(&mut self, state: &State, to: NodeId, last: Option<LogIndex>) {
        let (now, pause) = (self.now, u64::from(state.config.election_ticks_min));
        if let Some(peer) = self.peers.get_mut(&to) {
            match last {
                Some(last) => peer.on_snapshot_sent(last, now),
                None => peer.on_snapshot_failed(now + pause),
            }
        }
    }
}

/// True when a snapshot should leave for `peer`: it was heard lately, so that none is made for a dead
/// one, and the last attempt is not too fresh.
pub(super) fn wants_snapshot(state: &State, peer: &Progress, now: u64) -> bool {
    let is_alive = now - peer.heard_tick < u64::from(state.config.election_ticks_min);
    let lacks_base = peer.next() <= state.log.terms().base().index;
    is_alive && (peer.is_snapshot_due(now) || lacks_base && !peer.is_waiting_for_snapshot())
}

pub(super) fn request_snapshot(state: &mut State, to: NodeId, peer: &mut Progress, now: u64) {
    if wants_snapshot(state, peer, now) {
        let min_index = state.log.terms().base().index;
        peer.on_snapshot_requested(min_index);
        state.snapshot_requests.push(SnapshotRequest { to, min_index });
    }
}
