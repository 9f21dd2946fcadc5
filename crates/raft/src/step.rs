//! What a replica does with a message, up to the point where its role matters.
//!
//! 1. What no correct peer of this group would send is counted and ignored ([`is_believable`]).
//! 2. An older term is answered with ours, so that its sender gives up; old answers are dropped.
//! 3. A newer term is adopted, except from pre-votes, which must disturb nobody, and from requests
//!    for votes while the leader is alive.
//! 4. Votes are answered in every role; the rest goes to the role that it concerns.

use std::cmp::Ordering;

use quorate_types::{Body, Entry, EntryId, LogIndex, Membership, Message, NodeId, Payload, Term};

use crate::membership::MEMBERS_MAX;
use crate::read_index::Asker;
use crate::ready::Cause;
use crate::replica::Replica;
use crate::role::{Acting, Transition};
use crate::state::{INDEX_MAX, State, TERM_MAX};

impl Replica {
    /// Takes a message from a peer. Nothing that a peer may send makes it panic.
    pub fn step(&mut self, message: Message) {
        if !is_believable(&self.state, &message) || self.is_strange_answer(&message) {
            self.state.counters.ignored_messages += 1;
            return;
        }
        // Another proposal to sleep wakes nobody, nor does an answer that was under way.
        if !matches!(
            message.body,
            Body::Sleep { .. } | Body::Asleep { .. } | Body::HeartbeatReply { .. }
        ) {
            self.wake();
        }
        match message.term.cmp(&self.state.term) {
            Ordering::Less => self.answer_older_term(message),
            Ordering::Equal => self.dispatch(message),
            Ordering::Greater => {
                if self.adopt_term(&message) {
                    self.dispatch(message);
                }
            }
        }
    }

    /// Answers, and requests that only followers make, are taken from members only. A *leader* or a
    /// *candidate* may be of a membership that this replica has not heard of yet, so who asks for votes
    /// or appends is heard, whoever it is (thesis section 4.1): a new member learns of its membership in
    /// no other way, and its vote may be needed before it has.
    fn is_strange_answer(&self, message: &Message) -> bool {
        let from = message.from;
        let is_known = || {
            self.state.membership().contains(from)
                || self.leader() == Some(from)
                || matches!(&self.acting, Acting::Leader(leader) if leader.progress(from).is_some())
        };
        match message.body {
            Body::PreVote { .. }
            | Body::Vote { .. }
            | Body::Append { .. }
            | Body::Commit { .. }
            | Body::Heartbeat { .. }
            | Body::Sleep { .. }
            | Body::Snapshot { .. }
            | Body::TimeoutNow => false,
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatReply { .. }
            | Body::Asleep { .. }
            | Body::Wake
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Digest { .. } => !is_known(),
        }
    }

    /// A sender that is behind learns our term: a deposed leader steps down, and a candidate that
    /// was cut off joins in. Without an answer to pre-votes two replicas of different terms could
    /// refuse each other for ever.
    fn answer_older_term(&mut self, Message { from, body, .. }: Message) {
        let answer = match body {
            Body::PreVote { .. } if quorate_types::defect!(LowTermPreVoteUnanswered) => return,
            Body::PreVote { .. } => Body::PreVoteReply { granted: false },
            Body::Vote { .. } => Body::VoteReply { granted: false },
            Body::Append { prev, .. } => {
                Body::AppendRejected { refused: prev.index, hint: EntryId::ZERO }
            }
            Body::Snapshot { meta } => {
                Body::AppendRejected { refused: meta.last.index, hint: EntryId::ZERO }
            }
            Body::Heartbeat { round, .. } | Body::Sleep { round, .. } => {
                Body::HeartbeatReply { round, promise_us: 0 }
            }
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::Commit { .. }
            | Body::HeartbeatReply { .. }
            | Body::Asleep { .. }
            | Body::Wake
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Digest { .. }
            | Body::TimeoutNow => return,
        };
        self.state.send(from, answer);
    }

    /// Moves to the term of `message`, which is higher, where that is right. False when the message
    /// is not to be acted upon.
    fn adopt_term(&mut self, message: &Message) -> bool {
        match message.body {
            Body::PreVote { .. }
            | Body::PreVoteReply { granted: true }
            | Body::Digest { .. }
            | Body::Wake => true,
            // Whoever hears its leader wants no other one (thesis section 4.2.3), and whoever
            // promised silence keeps it, unless the leader itself gave its leave.
            Body::Vote { transfer: false, .. } if self.hears_leader() || self.state.is_silent() => {
                self.state.counters.unheard_votes += 1;
                false
            }
            Body::PreVoteReply { granted: false }
            | Body::Vote { .. }
            | Body::VoteReply { .. }
            | Body::Append { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::Commit { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Sleep { .. }
            | Body::Asleep { .. }
            | Body::Snapshot { .. }
            | Body::TimeoutNow => {
                self.follow_in(message.term, message.from);
                true
            }
        }
    }

    fn dispatch(&mut self, Message { from, term, body, .. }: Message) {
        let next = match (body, &mut self.acting) {
            (Body::PreVote { last }, _) => {
                self.on_pre_vote(from, term, last);
                None
            }
            (Body::Vote { last, transfer }, _) => self.on_vote(from, last, transfer),
            (Body::TimeoutNow, _) => self.on_timeout_now(from),
            (Body::PreVoteReply { granted }, Acting::Candidate(candidate)) => {
                // A grant names the term that was asked for, a refusal that of the voter.
                let answers = !granted || term == self.state.term.next();
                if answers { candidate.on_pre_vote_reply(&self.state, from, granted) } else { None }
            }
            (Body::VoteReply { granted }, Acting::Candidate(candidate)) => {
                candidate.on_vote_reply(&self.state, from, granted)
            }
            (Body::Append { prev, entries, commit }, _) => {
                if self.hear_leader(from)
                    && let Acting::Follower(follower) = &mut self.acting
                {
                    follower.on_append(&mut self.state, from, prev, entries, commit);
                }
                None
            }
            (Body::Commit { commit }, _) => {
                if self.hear_leader(from)
                    && let Acting::Follower(follower) = &mut self.acting
                {
                    follower.learn_commit(&mut self.state, commit);
                }
                None
            }
            (Body::Snapshot { meta }, _) => {
                if self.hear_leader(from)
                    && let Acting::Follower(follower) = &mut self.acting
                {
                    follower.on_snapshot(&mut self.state, from, meta);
                }
                None
            }
            (Body::Sleep { last, round }, _) => {
                if self.hear_leader(from)
                    && let Acting::Follower(follower) = &mut self.acting
                {
                    follower.on_sleep(&mut self.state, from, last, round);
                }
                None
            }
            (Body::Asleep { round }, Acting::Leader(leader)) => {
                leader.on_asleep(&mut self.state, from, round);
                None
            }
            (Body::Heartbeat { commit, round }, _) => {
                if self.hear_leader(from)
                    && let Acting::Follower(follower) = &mut self.acting
                {
                    follower.on_heartbeat(&mut self.state, from, commit, round);
                }
                None
            }
            (Body::AppendAccepted { last }, Acting::Leader(leader)) => {
                leader.on_accepted(&mut self.state, from, last);
                None
            }
            (Body::AppendRejected { refused, hint }, Acting::Leader(leader)) => {
                leader.on_rejected(&mut self.state, from, refused, hint);
                None
            }
            (Body::HeartbeatReply { round, promise_us }, Acting::Leader(leader)) => {
                leader.on_heartbeat_reply(&mut self.state, from, round, promise_us);
                None
            }
            (Body::ReadIndex { context }, Acting::Leader(leader)) => {
                leader.read(Asker::Peer(from, context));
                None
            }
            (Body::ReadIndexReply { context, index }, Acting::Follower(follower)) => {
                follower.on_read_index_reply(&mut self.state, from, context, index);
                None
            }
            // The one is the group's, which compares them without the replica; the other has done all
            // that it should by arriving.
            (Body::Digest { .. } | Body::Wake, _) => None,
            // To, or from, what this replica no longer is. Who asked for an index asks again.
            (
                Body::PreVoteReply { .. } | Body::VoteReply { .. },
                Acting::Follower(_) | Acting::Leader(_),
            )
            | (
                Body::AppendAccepted { .. }
                | Body::AppendRejected { .. }
                | Body::HeartbeatReply { .. }
                | Body::Asleep { .. }
                | Body::ReadIndex { .. },
                Acting::Follower(_) | Acting::Candidate(_),
            )
            | (Body::ReadIndexReply { .. }, Acting::Candidate(_) | Acting::Leader(_)) => None,
        };
        self.enter(next);
    }

    /// Says whether a vote in `term` would be granted. Changes nothing.
    fn on_pre_vote(&mut self, from: NodeId, term: Term, last: EntryId) {
        let free = term > self.state.term || self.is_free_to_vote_for(from);
        let granted = free
            && !self.hears_leader()
            && !self.state.is_silent()
            && self.state.is_up_to_date(last);
        let term = if granted { term } else { self.state.term };
        let reply = self.state.message(from, term, Body::PreVoteReply { granted });
        self.state.messages.push(reply);
    }

    /// Grants the vote of the present term to the first candidate whose log has all that may be
    /// committed. The grant leaves only once it is durable.
    fn on_vote(&mut self, from: NodeId, last: EntryId, transfer: bool) -> Option<Transition> {
        if !self.is_free_to_vote_for(from)
            || self.state.is_silent() && !transfer
            || !self.state.is_up_to_date(last)
        {
            self.state.send(from, Body::VoteReply { granted: false });
            return None;
        }
        self.state.vote = Some(from);
        // It rests on the ballot alone: losing entries in a crash cannot make the candidate's log
        // worse.
        self.state.send_durably(from, LogIndex::ZERO, Body::VoteReply { granted: true });
        match &mut self.acting {
            Acting::Follower(follower) => {
                follower.on_vote_granted(&mut self.state);
                None
            }
            // Only one who has not voted yet, that is a pre-candidate, can get here.
            Acting::Candidate(_) | Acting::Leader(_) => {
                Some(Transition::Follow { leader: None, cause: Cause::VoteGranted(from) })
            }
        }
    }

    /// The leader wants this replica to take over, and gives its leave: no pre-vote, and no silence
    /// that is owed to it. Leaders of earlier terms have no lease, or it could not have been elected.
    fn on_timeout_now(&mut self, from: NodeId) -> Option<Transition> {
        let may = self.hear_leader(from) && self.state.may_campaign();
        may.then_some(Transition::Campaign { cause: Cause::Transferred(from), transfer: true })
    }

    fn is_free_to_vote_for(&self, candidate: NodeId) -> bool {
        match self.state.vote {
            Some(voted) => voted == candidate || quorate_types::defect!(SecondVoteGranted),
            // Who knows the leader of a term has no use for another one.
            None => self.leader().is_none(),
        }
    }

    /// True when a leader's last sign of life is fresh; a leader hears itself. Nobody is kept from an election
    /// by that without CheckQuorum: a leader that cannot hear would then lead for ever.
    fn hears_leader(&self) -> bool {
        if !self.state.config.check_quorum {
            return false;
        }
        match &self.acting {
            Acting::Follower(follower) => follower.hears_leader(&self.state),
            Acting::Candidate(_) => quorate_types::defect!(PreCandidateKeepsLeader),
            Acting::Leader(_) => true,
        }
    }

    /// `from` speaks as the leader of the present term. Leaves a follower of it behind, or returns
    /// false when that term has another leader, which no correct peer would claim.
    fn hear_leader(&mut self, from: NodeId) -> bool {
        let before = self.leader();
        let heard = match &mut self.acting {
            Acting::Follower(follower) => follower.on_leader_heard(from),
            Acting::Candidate(_) => {
                self.follow(Some(from), Cause::HeardLeader(from));
                true
            }
            Acting::Leader(_) => false,
        };
        if !heard {
            self.state.counters.ignored_messages += 1;
        } else if before.is_none() {
            self.note_cause(Cause::HeardLeader(from));
        }
        heard
    }
}

/// The edge where messages are judged: behind it, terms can be counted on, and appended entries are a
/// run that could stand in a log.
fn is_believable(state: &State, message: &Message) -> bool {
    let Message { group, from, to, term, body } = message;
    *group == state.config.group
        && *to == state.config.node
        && *from != state.config.node
        && *term <= TERM_MAX
        && match body {
            Body::Append { prev, entries, .. } => {
                *term > Term::ZERO && is_run(*prev, entries, *term)
            }
            Body::PreVote { last } | Body::Vote { last, .. } | Body::Sleep { last, .. } => {
                *term > Term::ZERO && last.term <= *term
            }
            Body::Snapshot { meta } => {
                *term > Term::ZERO
                    && meta.last.term <= *term
                    && meta.last.index <= INDEX_MAX
                    && is_working(&meta.membership)
            }
            // A replica that has heard of no term yet may refuse.
            Body::PreVoteReply { .. } | Body::Digest { .. } | Body::Wake => true,
            Body::VoteReply { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::Commit { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::Asleep { .. }
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::TimeoutNow => *term > Term::ZERO,
        }
}

/// True when `entries` can follow `prev` in the log of a leader of `term`.
fn is_run(prev: EntryId, entries: &[Entry], term: Term) -> bool {
    let mut before = prev;
    prev.term <= term
        && entries.iter().all(|entry| {
            let follows = before.index.value().checked_add(1) == Some(entry.id.index.value())
                && before.term <= entry.id.term
                && entry.id.term <= term
                && is_sound(&entry.payload);
            before = entry.id;
            follows
        })
}

/// True unless it is a membership that no leader makes.
fn is_sound(payload: &Payload) -> bool {
    match payload {
        Payload::Empty | Payload::Command(_) => true,
        Payload::Membership(membership) => is_working(membership),
    }
}

fn is_working(membership: &Membership) -> bool {
    membership.is_valid() && membership.nodes().len() <= MEMBERS_MAX
}
