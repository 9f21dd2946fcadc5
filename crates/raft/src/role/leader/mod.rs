//! The leader: appends what is proposed, brings every peer up to date, commits, confirms reads.
//!
//! Inputs only note what has changed. Messages are made once per turn, in [`Leader::pump`], so that
//! a thousand proposals of one turn are one append to each peer.

mod members;
mod read;
mod replicate;
mod sleep;
mod snapshot;
mod transfer;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use quorate_types::{Body, Entry, EntryId, LogIndex, Membership, Moment, NodeId, Payload};

use crate::error::ProposeError;
use crate::lease::Beats;
use crate::progress::{PeerProgress, Progress};
use crate::quiesce::Quiesce;
use crate::quorum;
use crate::read_index::{Asker, Reads};
use crate::ready::Cause;
use crate::role::Transition;
use crate::state::State;

use replicate::{replicate, wants};
use transfer::{Handover, Transfer};

/// The state of a leadership.
#[derive(Debug)]
pub(crate) struct Leader {
    /// Every other member, learners too, and those who leave.
    peers: BTreeMap<NodeId, Progress>,
    /// No members any more; they hear of that until the tick that is set when it is committed.
    leaving: BTreeMap<NodeId, Option<u64>>,
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
    transfer: Option<Transfer>,
    /// A successor was told to campaign in this term: there is no lease any more.
    took_leave: bool,
    handover: Handover,
    quiesce: Quiesce,
    /// The learner that is promoted next.
    promoting: Option<NodeId>,
    /// What was committed at the last heartbeat.
    promotion_mark: LogIndex,
}

impl Leader {
    /// Takes over: appends the no-op and will beat at once, so that nobody else campaigns.
    pub(crate) fn new(state: &mut State) -> Self {
        let first = EntryId::new(state.term, state.log.last().index.next());
        state.extend([Entry { id: first, payload: Payload::Empty }]);
        let mut leader = Self {
            peers: BTreeMap::new(),
            leaving: BTreeMap::new(),
            first_in_term: first.index,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            reads: Reads::default(),
            beats: Beats::default(),
            now: 0,
            beat_elapsed_ticks: 0,
            // The append of the no-op announces the leader.
            beat_due: false,
            transfer: None,
            took_leave: false,
            handover: Handover::new(state),
            quiesce: Quiesce::default(),
            promoting: None,
            promotion_mark: LogIndex::ZERO,
        };
        // Whoever left by a change that may yet be undone, or must still hear of it, is served too.
        let before = state.memberships.previous().map(Membership::nodes).unwrap_or_default();
        for node in before.into_iter().filter(|&node| node != state.config.node) {
            leader.peers.insert(node, Progress::new(first.index, 0));
        }
        leader.update_peers(state);
        leader
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
        if let Some(to) = self.transferring_to() {
            return Err(ProposeError::Transferring { to });
        }
        if self.uncommitted_bytes > 0
            && self.uncommitted_bytes.saturating_add(bytes) > state.config.uncommitted_bytes_max
        {
            return Err(ProposeError::TooManyUncommitted);
        }
        self.quiesce.on_activity();
        let indexes = (first.index.value()..).map(LogIndex);
        state.extend(indexes.zip(commands).map(|(index, command)| Entry {
            id: EntryId::new(first.term, index),
            payload: Payload::Command(command),
        }));
        self.uncommitted.push_back((state.log.last().index, bytes));
        self.uncommitted_bytes += bytes;
        Ok(first)
    }

    pub(crate) fn tick(&mut self, state: &mut State) -> Option<Transition> {
        self.now += 1;
        self.beat_elapsed_ticks += 1;
        if self.beat_elapsed_ticks >= state.config.heartbeat_ticks {
            self.beat_elapsed_ticks = 0;
            self.beat_due = !self.peers.is_empty();
        }
        self.quiesce.tick();
        self.tick_transfer(state);
        self.tick_members(state);
        self.maybe_sleep_alone(state);
        // CheckQuorum (thesis section 6.2): a leader that cannot commit must not pretend.
        let heard = quorum::reached(state.membership(), |node| {
            if node == state.config.node { self.now } else { self.peer(node, |p| p.heard_tick) }
        });
        let is_cut_off = self.now - heard >= u64::from(state.config.election_ticks_min);
        (is_cut_off && state.config.check_quorum)
            .then_some(Transition::Follow { leader: None, cause: Cause::QuorumLost })
    }

    /// This replica's own log became durable: one more acknowledgement.
    pub(crate) fn on_persisted(&mut self, state: &mut State) {
        self.maybe_commit(state);
    }

    /// Commits what a quorum holds durably, if it is of this term: an older entry that a quorum
    /// holds may still be overwritten, and is committed only by what follows it (thesis section
    /// 3.6.2).
    fn maybe_commit(&mut self, state: &mut State) {
        let index = LogIndex(quorum::reached(state.membership(), |node| {
            if node == state.config.node {
                if quorate_types::defect!(OwnLogCountsUnsynced) {
                    return state.log.last().index.value();
                }
                state.log.durable().value()
            } else {
                self.peer(node, |peer| peer.match_index().value())
            }
        }));
        let may_commit = index >= self.first_in_term || quorate_types::defect!(CommitOlderTerm);
        if !may_commit || !state.log.commit_to(index) {
            return;
        }
        while let Some(&(last, bytes)) = self.uncommitted.front()
            && last <= index
            && !quorate_types::defect!(QuotaKept)
        {
            self.uncommitted.pop_front();
            self.uncommitted_bytes -= bytes;
        }
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
    pub(crate) fn pump(&mut self, state: &mut State) -> Option<Transition> {
        self.pump_members(state);
        self.serve_by_lease(state);
        let wants_round = self.wants_round(state);
        self.beat_due |= wants_round && !self.peers.is_empty();
        let beat_due = std::mem::take(&mut self.beat_due);
        let mut asks_for_sleep = false;
        if beat_due {
            self.beats.begin(state.now);
            let is_settled = !wants_round && self.is_settled(state);
            let (round, after) = (self.beats.latest(), state.config.quiesce_ticks);
            asks_for_sleep = self.quiesce.begin_round(round, is_settled, after);
        }
        let round = self.beats.latest();
        let last = state.log.last();
        if wants_round {
            self.reads.begin_round(round, state.log.commit());
            self.maybe_confirm(state);
        }
        for (&node, peer) in &mut self.peers {
            if asks_for_sleep {
                state.send(node, Body::Sleep { last, round });
            } else if beat_due {
                let commit = peer.on_beat(state.log.commit());
                state.send(node, Body::Heartbeat { commit, round });
            }
            replicate(state, node, peer, self.now);
            // What was answered in this turn was answered by now.
            let start = peer.answered_round.take().and_then(|round| self.beats.start_of(round));
            if let Some(start) = start {
                peer.on_round_trip(state.now.since_us(start));
            }
        }
        self.pump_transfer(state);
        self.step_down_if_removed(state)
    }

    /// True when [`pump`](Self::pump) would send something.
    pub(crate) fn wants_pump(&self, state: &State, now: Moment) -> bool {
        self.beat_due
            || self.wants_round(state)
            || self.reads.is_waiting() && self.holds_lease(state, now)
            || self.wants_farewell(state)
            || self.wants_members(state)
            || self.peers.values().any(|p| wants(state, p, self.now))
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

    /// As [`progress`](Self::progress), for others to see.
    pub(crate) fn report(&self, node: NodeId, config: &crate::Config) -> Option<PeerProgress> {
        self.peers.get(&node).map(|peer| peer.report(peer.is_heard(self.now, config)))
    }

    fn peer(&self, node: NodeId, value: impl Fn(&Progress) -> u64) -> u64 {
        self.peers.get(&node).map_or(0, value)
    }
}
