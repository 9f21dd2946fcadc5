//! Entries to peers: what they answered, and what to send them next.

use quorate_types::{Body, Entry, EntryId, LogIndex, NodeId};

use super::Leader;
use super::snapshot::{request_snapshot, wants_snapshot};
use crate::progress::Progress;
use crate::ready::LogFetch;
use crate::state::State;

impl Leader {
    pub(crate) fn on_accepted(&mut self, state: &mut State, from: NodeId, last: LogIndex) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if last > state.log.last().index {
            state.counters.ignored_messages += 1;
            return;
        }
        peer.hear(self.now);
        if peer.on_accepted(last) {
            self.maybe_commit(state);
        }
    }

    pub(crate) fn on_rejected(
        &mut self,
        state: &mut State,
        from: NodeId,
        refused: LogIndex,
        hint: EntryId,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.hear(self.now);
        if peer.is_stale_rejection(refused) {
            return;
        }
        if hint.index > refused {
            state.counters.ignored_messages += 1;
            return;
        }
        let base = state.log.terms().base().index;
        if refused <= base {
            // It does not even have what this log begins with.
            peer.need_snapshot(base, self.now);
            return;
        }
        // The peer's log may agree with ours at the hint, or at the last entry of ours that is not
        // newer than the hint: whole terms are skipped in one round trip, on both sides.
        let meeting = state.log.terms().last_not_after(hint);
        if quorate_types::defect!(HintTakenForMatch) {
            peer.on_accepted(meeting.index);
            return self.maybe_commit(state);
        }
        peer.on_rejected(refused, meeting.index, base, self.now);
    }

    pub(crate) fn on_unreachable(&mut self, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.on_unreachable(self.now);
        }
    }

    /// Old entries for a peer: sends them, or asks again when the peer next shows a sign of life.
    pub(crate) fn on_fetched(&mut self, state: &mut State, fetch: &LogFetch, entries: Vec<Entry>) {
        let waiting = self.peers.iter_mut().find(|(_, peer)| peer.fetch == Some(fetch.number));
        let Some((&node, peer)) = waiting else { return };
        peer.fetch = None;
        if fetch.from != peer.next() || fetch.from <= state.log.terms().base().index {
            return;
        }
        if !state.is_answer(fetch, &entries) {
            peer.on_fetch_failed(self.now);
        } else if peer.has_room(&state.config) {
            let bytes = entries.iter().map(Entry::cost_bytes).sum();
            send_append(state, node, peer, entries, bytes, self.now);
        }
    }
}

pub(super) fn wants(state: &State, peer: &Progress, now: u64) -> bool {
    wants_snapshot(state, peer, now)
        || may_append(state, peer, now)
        || wants_question(state, peer)
        || wants_commit(state, peer, now)
}

/// True when an append without entries should ask `peer` what it holds.
fn wants_question(state: &State, peer: &Progress) -> bool {
    peer.next() > state.log.terms().base().index && peer.wants_question()
}

/// True when `peer` should hear of the commit index alone.
fn wants_commit(state: &State, peer: &Progress, now: u64) -> bool {
    let State { log, config, .. } = state;
    let (commit, is_quiet) = (log.commit(), log.commit() == log.last().index);
    peer.next() > log.terms().base().index && peer.wants_commit(config, commit, is_quiet, now)
}

/// True when an append with entries should leave for `peer` now.
fn may_append(state: &State, peer: &Progress, now: u64) -> bool {
    let State { log, config, .. } = state;
    let base = log.terms().base().index;
    peer.next() <= log.last().index
        && peer.next() > base
        && peer.has_room(config)
        && (!peer.prefers_full(config, now) || log.fills(peer.next(), config.append_bytes_max))
}

/// Sends what the window of `peer` allows, or asks for what is no longer in memory.
pub(super) fn replicate(state: &mut State, node: NodeId, peer: &mut Progress, now: u64) {
    request_snapshot(state, node, peer, now);
    let last = state.log.last().index;
    while may_append(state, peer, now) {
        let cached_from = state.log.cached_from();
        let bytes_max = peer.append_bytes_max(&state.config);
        if peer.next() < cached_from {
            let to = LogIndex(cached_from.value() - 1);
            peer.fetch = Some(state.fetch(peer.next(), to, bytes_max));
            return;
        }
        let (entries, bytes) = state.log.slice(peer.next(), last, bytes_max);
        send_append(state, node, peer, entries, bytes, now);
    }
    if wants_question(state, peer) {
        send_append(state, node, peer, Vec::new(), 0, now);
    }
    if wants_commit(state, peer, now) {
        let commit = peer.on_commit_sent(state.log.commit(), now);
        state.send(node, Body::Commit { commit });
    }
}

/// Sends `entries`, which begin at the peer's next index.
fn send_append(
    state: &mut State,
    node: NodeId,
    peer: &mut Progress,
    entries: Vec<Entry>,
    bytes: usize,
    now: u64,
) {
    let prev_index = LogIndex(peer.next().value() - 1);
    let Some(prev_term) = state.log.term_at(prev_index) else {
        panic!(
            "group {} node {} term {}: entry {prev_index}, before those for {node}, is not in the \
             log from {} to {}",
            state.config.group,
            state.config.node,
            state.term,
            state.log.terms().base(),
            state.log.last()
        );
    };
    let prev = EntryId::new(prev_term, prev_index);
    let commit = state.log.commit();
    let last = prev_index.plus(entries.len() as u64);
    peer.on_sent(last, bytes, commit, now);
    state.send(node, Body::Append { prev, entries, commit });
}
