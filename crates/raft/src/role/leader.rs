//! The leader: appends what is proposed, brings every peer up to date, commits, confirms reads.
//!
//! Inputs only note what has changed. Messages are made once per turn, in [`Leader::pump`], so that
//! a thousand proposals of one turn are one append to each peer.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use quorate_types::{Body, Entry, EntryId, LogIndex, Moment, NodeId, Payload};

use crate::error::ProposeError;
use crate::lease::{self, Beats};
use crate::progress::Progress;
use crate::quorum;
use crate::read_index::{Asker, Reads};
use crate::ready::{Cause, LogFetch, ReadReady};
use crate::role::Transition;
use crate::state::State;

/// The state of a leadership.
#[derive(Debug)]
pub(crate) struct Leader {
    /// Every other member, learners too.
    peers: BTreeMap<NodeId, Progress>,
    /// The no-op: the first entry of the term. Once it is committed, so is all before it.
    first_in_term: LogIndex,
    /// Last index and bytes of each proposal that is not committed, oldest first. It goes with the
    /// leadership, so the budget always comes back.
    uncommitted: VecDeque<(LogIndex, usize)>,
    uncommitted_bytes: usize,
    reads: Reads,
    beats: Beats,
    /// Ticks of this leadership.
    now: u64,
    beat_elapsed_ticks: u32,
    beat_due: bool,
}

impl Leader {
    /// Takes over: appends the no-op and will beat at once, so that nobody else campaigns.
    pub(crate) fn new(state: &mut State) -> Self {
        let first = EntryId::new(state.term, state.log.last().index.next());
        state.log.extend([Entry { id: first, payload: Payload::Empty }]);
        let peers: BTreeMap<_, _> =
            state.peers().map(|peer| (peer, Progress::new(first.index))).collect();
        Self {
            peers,
            first_in_term: first.index,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            reads: Reads::default(),
            beats: Beats::default(),
            now: 0,
            beat_elapsed_ticks: 0,
            // The append of the no-op announces the leader.
            beat_due: false,
        }
    }

    pub(crate) fn propose(
        &mut self,
        state: &mut State,
        commands: Vec<Bytes>,
    ) -> Result<EntryId, ProposeError> {
        let first = EntryId::new(state.term, state.log.last().index.next());
        let bytes = commands.iter().map(|command| command.len() + Entry::OVERHEAD_BYTES).sum();
        if commands.is_empty() {
            return Ok(first);
        }
        if self.uncommitted_bytes > 0
            && self.uncommitted_bytes.saturating_add(bytes) > state.config.uncommitted_bytes_max
        {
            return Err(ProposeError::TooManyUncommitted);
        }
        let indexes = (first.index.value()..).map(LogIndex);
        state.log.extend(indexes.zip(commands).map(|(index, command)| Entry {
            id: EntryId::new(first.term, index),
            payload: Payload::Command(command),
        }));
        self.uncommitted.push_back((state.log.last().index, bytes));
        self.uncommitted_bytes += bytes;
        Ok(first)
    }

    pub(crate) fn read(&mut self, asker: Asker) {
        self.reads.push(asker);
    }

    pub(crate) fn tick(&mut self, state: &State) -> Option<Transition> {
        self.now += 1;
        self.beat_elapsed_ticks += 1;
        if self.beat_elapsed_ticks >= state.config.heartbeat_ticks {
            self.beat_elapsed_ticks = 0;
            self.beat_due = !self.peers.is_empty();
        }
        // CheckQuorum (thesis section 6.2): a leader that cannot commit must not pretend.
        let heard = quorum::reached(&state.membership, |node| {
            if node == state.config.node { self.now } else { self.peer(node, |p| p.heard_tick) }
        });
        (self.now - heard >= u64::from(state.config.election_ticks_min))
            .then_some(Transition::Follow { leader: None, cause: Cause::QuorumLost })
    }

    pub(crate) fn on_accepted(&mut self, state: &mut State, from: NodeId, last: LogIndex) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if last > state.log.last().index {
            state.counters.ignored_messages += 1;
            return;
        }
        peer.heard_tick = self.now;
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
        peer.heard_tick = self.now;
        if peer.is_stale_rejection(refused) {
            return;
        }
        if hint.index > refused {
            state.counters.ignored_messages += 1;
            return;
        }
        // The peer's log may agree with ours at the hint, or at the last entry of ours that is not
        // newer than the hint: whole terms are skipped in one round trip, on both sides.
        let meeting = state.log.terms().last_not_after(hint);
        peer.on_rejected(refused, meeting.index, state.log.terms().base().index, self.now);
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
        peer.heard_tick = self.now;
        peer.on_heartbeat_answered(self.now);
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

    /// This replica's own log became durable: one more acknowledgement.
    pub(crate) fn on_persisted(&mut self, state: &mut State) {
        self.maybe_commit(state);
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
        if fetch.from != peer.next() {
            return;
        }
        if !state.is_answer(fetch, &entries) {
            peer.on_fetch_failed(self.now);
        } else if peer.has_room(&state.config) {
            let bytes = entries.iter().map(Entry::cost_bytes).sum();
            send_append(state, node, peer, entries, bytes, self.now);
        }
    }

    /// Commits what a quorum holds durably, if it is of this term: an older entry that a quorum
    /// holds may still be overwritten, and is committed only by what follows it (thesis section
    /// 3.6.2).
    fn maybe_commit(&mut self, state: &mut State) {
        let index = LogIndex(quorum::reached(&state.membership, |node| {
            if node == state.config.node {
                state.log.durable().value()
            } else {
                self.peer(node, |peer| peer.match_index().value())
            }
        }));
        if index < self.first_in_term || !state.log.commit_to(index) {
            return;
        }
        while let Some(&(last, bytes)) = self.uncommitted.front()
            && last <= index
        {
            self.uncommitted.pop_front();
            self.uncommitted_bytes -= bytes;
        }
    }

    fn maybe_confirm(&mut self, state: &mut State) {
        let round = quorum::reached(&state.membership, |node| {
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

    /// Until when no other replica can be elected, as promised by a quorum of each half. Its own
    /// silence needs no promise: while it leads, it neither votes nor campaigns.
    pub(crate) fn lease_end(&self, state: &State) -> Moment {
        Moment(quorum::reached(&state.membership, |node| {
            if node == state.config.node {
                u64::MAX
            } else {
                self.peer(node, |peer| peer.promised_until.value_us())
            }
        }))
    }

    /// True when at `now` nobody else can lead, so that whatever is committed by then is committed
    /// here.
    fn holds_lease(&self, state: &State, now: Moment) -> bool {
        state.config.lease && self.knows_commit(state) && now < self.lease_end(state)
    }

    /// Before the first commit of its term a leader does not know what is committed.
    fn knows_commit(&self, state: &State) -> bool {
        state.log.commit() >= self.first_in_term
    }

    /// The leadership is over.
    pub(crate) fn end(&mut self, state: &mut State) {
        // Followers hear of it by the next term, or ask again.
        let own = self.reads.take_all().into_iter().filter_map(|asker| match asker {
            Asker::Own(id) => Some(id),
            Asker::Peer(..) => None,
        });
        state.refused_reads.extend(own);
    }

    /// Makes the messages of this turn.
    pub(crate) fn pump(&mut self, state: &mut State) {
        if self.reads.is_waiting() && self.holds_lease(state, state.now) {
            let askers = self.reads.take_all();
            state.counters.lease_reads += askers.len() as u64;
            serve(state, state.log.commit(), askers);
        }
        let wants_round = self.wants_round(state);
        self.beat_due |= wants_round && !self.peers.is_empty();
        let beat_due = std::mem::take(&mut self.beat_due);
        if beat_due {
            self.beats.begin(state.now);
        }
        let round = self.beats.latest();
        if wants_round {
            self.reads.begin_round(round, state.log.commit());
            self.maybe_confirm(state);
        }
        for (&node, peer) in &mut self.peers {
            if beat_due {
                let commit = state.log.commit().min(peer.match_index());
                state.send(node, Body::Heartbeat { commit, round });
            }
            replicate(state, node, peer, self.now);
        }
    }

    /// True when [`pump`](Self::pump) would send something.
    pub(crate) fn wants_pump(&self, state: &State, now: Moment) -> bool {
        self.beat_due
            || self.wants_round(state)
            || self.reads.is_waiting() && self.holds_lease(state, now)
            || self.peers.values().any(|p| wants(state, p, self.now))
    }

    fn wants_round(&self, state: &State) -> bool {
        self.reads.wants_round() && self.knows_commit(state)
    }

    pub(crate) const fn first_in_term(&self) -> LogIndex {
        self.first_in_term
    }

    pub(crate) const fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    pub(crate) fn progress(&self, node: NodeId) -> Option<&Progress> {
        self.peers.get(&node)
    }

    fn peer(&self, node: NodeId, value: impl Fn(&Progress) -> u64) -> u64 {
        self.peers.get(&node).map_or(0, value)
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

fn wants(state: &State, peer: &Progress, now: u64) -> bool {
    may_append(state, peer, now) || peer.wants_empty(&state.config, state.log.commit())
}

/// True when an append with entries should leave for `peer` now.
fn may_append(state: &State, peer: &Progress, now: u64) -> bool {
    let State { log, config, .. } = state;
    peer.next() <= log.last().index
        && peer.has_room(config)
        && (!peer.prefers_full(config, now) || log.fills(peer.next(), config.append_bytes_max))
}

/// Sends what the window of `peer` allows, or asks for what is no longer in memory.
fn replicate(state: &mut State, node: NodeId, peer: &mut Progress, now: u64) {
    let last = state.log.last().index;
    while may_append(state, peer, now) {
        let cached_from = state.log.cached_from();
        if peer.next() < cached_from {
            let to = LogIndex(cached_from.value() - 1);
            peer.fetch = Some(state.fetch(peer.next(), to));
            return;
        }
        let (entries, bytes) = state.log.slice(peer.next(), last, state.config.append_bytes_max);
        send_append(state, node, peer, entries, bytes, now);
    }
    if peer.wants_empty(&state.config, state.log.commit()) {
        send_append(state, node, peer, Vec::new(), 0, now);
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
