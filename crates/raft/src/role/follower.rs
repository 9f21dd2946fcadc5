//! A follower: takes the leader's entries, or waits for one and then campaigns.

use quorate_types::{Body, Entry, EntryId, LogIndex, NodeId, ReadContext, SnapshotMeta};

use crate::error::NotLeader;
use crate::read_request::ReadRequests;
use crate::ready::{Cause, ReadId};
use crate::role::Transition;
use crate::state::State;

/// Heartbeats that a follower waits for the answer to a read request before it asks again.
const READ_RETRY_HEARTBEATS: u32 = 2;

/// The state of a follower in its term.
///
/// - `verified` is the last entry that is known to equal the leader's: what an append of this term
///   has checked, or the log's last entry if that is of this term. Beyond it there may be a suffix
///   of an older leader, so the commit index never passes it.
/// - `told_commit` is the highest commit index that this term's leader told, in whatever message. It may
///   be told before the entries are here: then they are committed when they come.
#[derive(Debug)]
pub(crate) struct Follower {
    leader: Option<NodeId>,
    verified: LogIndex,
    told_commit: LogIndex,
    /// Ticks since the leader was heard, or a vote was granted, or the role began.
    elapsed_ticks: u32,
    timeout_ticks: u32,
    /// Waits only while a leader is known.
    reads: ReadRequests,
}

impl Follower {
    pub(crate) fn new(state: &mut State, leader: Option<NodeId>) -> Self {
        let last = state.log.last();
        // An entry of this term comes from this term's leader, and so does all before it (Log
        // Matching).
        let verified = if last.term == state.term { last.index } else { state.log.commit() };
        Self {
            leader,
            verified,
            told_commit: LogIndex::ZERO,
            elapsed_ticks: 0,
            timeout_ticks: state.draw_timeout(),
            reads: ReadRequests::default(),
        }
    }

    pub(crate) fn tick(&mut self, state: &mut State) -> Option<Transition> {
        self.elapsed_ticks = self.elapsed_ticks.saturating_add(1);
        self.reads.tick(state.config.heartbeat_ticks.saturating_mul(READ_RETRY_HEARTBEATS));
        if self.elapsed_ticks < self.timeout_ticks {
            return None;
        }
        if !state.may_campaign() {
            self.ask_who_leads(state);
            return None;
        }
        (!state.is_silent()).then_some(Transition::PreCampaign(Cause::ElectionTimeout))
    }

    /// Once in a timeout, as others ask for pre-votes: a group that sleeps would not tell one that has
    /// restarted who leads until it had something to do. The timer runs on, so that the silent leader does
    /// not count as heard.
    fn ask_who_leads(&self, state: &mut State) {
        // What it installs says soon enough whether it may campaign.
        let is_due =
            self.elapsed_ticks.is_multiple_of(self.timeout_ticks) && state.installing.is_none();
        if !is_due || quorate_types::defect!(LearnerAsksNobody) {
            return;
        }
        for peer in state.peers() {
            if state.membership().is_voter(peer) {
                state.send(peer, Body::Wake);
            }
        }
    }

    pub(crate) const fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// True while the leader's last sign of life is fresh: nobody else is wanted (thesis section
    /// 4.2.3).
    pub(crate) fn hears_leader(&self, state: &State) -> bool {
        self.leader.is_some() && self.elapsed_ticks < state.config.election_ticks_min
    }

    /// A vote was granted: the candidate gets its time.
    pub(crate) fn on_vote_granted(&mut self, state: &mut State) {
        self.elapsed_ticks = 0;
        self.timeout_ticks = state.draw_timeout();
    }

    /// `from` claims to lead this term. False when someone else does: then one of the two is
    /// broken.
    pub(crate) fn on_leader_heard(&mut self, from: NodeId) -> bool {
        if self.leader.is_some_and(|leader| leader != from) {
            return false;
        }
        self.leader = Some(from);
        self.elapsed_ticks = 0;
        true
    }

    /// Asks the leader with the next turn.
    pub(crate) fn read(&mut self, id: ReadId) -> Result<(), NotLeader> {
        if self.leader.is_none() {
            return Err(NotLeader { leader: None });
        }
        self.reads.push(id);
        Ok(())
    }

    /// The leader's answer.
    pub(crate) fn on_read_index_reply(
        &mut self,
        state: &mut State,
        from: NodeId,
        context: ReadContext,
        index: LogIndex,
    ) {
        if self.leader == Some(from) && state.is_own_context(context) {
            // Otherwise the reads would wait for the next append or beat to be told.
            self.learn_commit(state, index);
            self.reads.on_answer(context.number, index, &mut state.reads);
        }
    }

    /// Makes the messages of this turn: one request for all reads that came in it.
    pub(crate) fn pump(&mut self, state: &mut State) {
        if let Some(leader) = self.leader
            && self.reads.wants_request()
        {
            let context = state.next_read_context();
            self.reads.on_request(context.number);
            state.send(leader, Body::ReadIndex { context });
        }
    }

    /// True when [`pump`](Self::pump) would send something.
    pub(crate) fn wants_pump(&self) -> bool {
        self.leader.is_some() && self.reads.wants_request()
    }

    /// Knows no leader any more; false when it knew none.
    pub(crate) fn forget_leader(&mut self, state: &mut State) -> bool {
        self.end(state);
        self.leader.take().is_some()
    }

    /// It follows no more, or another leader.
    pub(crate) fn end(&mut self, state: &mut State) {
        self.reads.refuse_all(&mut state.refused_reads);
    }

    /// The leader `from` proposes to sleep. Agreed if this replica has nothing left to do either.
    pub(crate) fn on_sleep(&self, state: &mut State, from: NodeId, last: EntryId, round: u64) {
        state.log.commit_to(last.index.min(self.verified));
        let log = &state.log;
        let is_settled = log.last() == last
            && self.verified >= last.index
            && log.durable() == last.index
            && log.applied() == last.index
            && state.installing.is_none()
            && !self.reads.is_waiting();
        if is_settled {
            state.asleep = true;
            state.send(from, Body::Asleep { round });
        } else {
            state.asleep = false;
            let promise_us = state.promise();
            state.send(from, Body::HeartbeatReply { round, promise_us });
        }
    }

    /// The leader gets a whole timeout to show that it is there.
    pub(crate) fn on_woken(&mut self) {
        self.elapsed_ticks = 0;
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        state: &mut State,
        from: NodeId,
        commit: LogIndex,
        round: u64,
    ) {
        self.learn_commit(state, commit);
        let promise_us = state.promise();
        state.send(from, Body::HeartbeatReply { round, promise_us });
    }

    /// A snapshot of the leader `from` is here. It is of use only if this log is not known to hold all
    /// of it: an older one would cut off entries that were acknowledged (camunda/camunda#6092).
    pub(crate) fn on_snapshot(&mut self, state: &mut State, from: NodeId, meta: SnapshotMeta) {
        if state.installing.is_some() {
            state.counters.overloaded_appends += 1;
            return;
        }
        let last = meta.last.index;
        let is_wanted = last > state.log.commit() && !state.log.holds(meta.last);
        if is_wanted || quorate_types::defect!(OldSnapshotInstalled) {
            state.install(meta);
            return;
        }
        if last > state.log.commit() {
            // The same entry, so the same log up to it; and what a snapshot contains is committed.
            self.verified = self.verified.max(last);
            state.log.commit_to(last);
        }
        let commit = state.log.commit();
        state.send_durably(from, commit, Body::AppendAccepted { last: commit });
    }

    /// The log begins anew after `last`.
    pub(crate) fn on_installed(&mut self, state: &mut State, last: LogIndex) {
        self.verified = self.verified.max(last);
        if let Some(leader) = self.leader {
            state.send_durably(leader, last, Body::AppendAccepted { last });
        }
    }

    /// Takes `entries`, which follow `prev` in the log of the leader `from`.
    pub(crate) fn on_append(
        &mut self,
        state: &mut State,
        from: NodeId,
        prev: EntryId,
        mut entries: Vec<Entry>,
        commit: LogIndex,
    ) {
        // What it would hold now is about to be replaced: an acknowledgement would not last.
        if state.installing.is_some() {
            state.counters.overloaded_appends += 1;
            return;
        }
        let last = prev.index.plus(entries.len() as u64);
        // What is committed here equals every later leader's log, but its terms may be gone from
        // memory (they are below the base): judge the rest only.
        let base = state.log.terms().base();
        let (prev, skipped) = if prev.index < base.index {
            let skipped = base.index.since(prev.index).min(entries.len() as u64) as usize;
            let at_base = skipped.checked_sub(1).map(|at| entries[at].id);
            if at_base.is_some_and(|id| id.index == base.index && id != base) {
                // A leader with another entry where all is committed does not exist; what it says
                // of later ones cannot follow on ours.
                state.counters.ignored_messages += 1;
                return;
            }
            (base, skipped)
        } else {
            (prev, 0)
        };
        let ignores_term =
            quorate_types::defect!(AppendIgnoresTerm) && prev.index <= state.log.last().index;
        if !state.log.holds(prev) && !ignores_term {
            let hint = state.log.terms().last_not_after(prev);
            state.send(from, Body::AppendRejected { refused: prev.index, hint });
            return;
        }
        let fresh = entries.iter().skip(skipped).position(|entry| !state.log.holds(entry.id));
        if let Some(fresh) = fresh.map(|at| at + skipped) {
            if state.is_overloaded() {
                state.counters.overloaded_appends += 1;
                return;
            }
            let from_index = entries[fresh].id.index;
            if from_index <= state.log.commit() {
                // A leader that lacks a committed entry does not exist; this one is broken.
                state.counters.ignored_messages += 1;
                return;
            }
            entries.drain(..fresh);
            state.overwrite(entries, from_index);
        }
        self.verified = self.verified.max(last);
        if quorate_types::defect!(AppendDropsTail) && fresh.is_none() && last >= state.log.commit()
        {
            state.overwrite([], last.next());
        }
        self.learn_commit(state, commit);
        state.send_durably(from, last, Body::AppendAccepted { last });
    }

    /// The leader's commit index is at least `commit`.
    pub(crate) fn learn_commit(&mut self, state: &mut State, commit: LogIndex) {
        self.told_commit = self.told_commit.max(commit);
        let verified = if quorate_types::defect!(CommitUnverified) {
            state.log.last().index
        } else {
            self.verified
        };
        state.log.commit_to(self.told_commit.min(verified));
    }
}
