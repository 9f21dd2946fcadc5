//! A candidate, first in a pre-vote that costs nobody anything, then in earnest.
//!
//! 1. *Pre-vote* (thesis section 9.6): ask, without raising the term, who would grant. A replica
//!    that was cut off, or whose log is behind, never gets further and so disturbs no leader.
//! 2. *Vote*: raise the term, vote for itself, ask for votes. The requests leave, and the own vote
//!    counts, only once term, vote and log are durable: a request claims a log, and a candidate
//!    that lost part of it in a crash must not be elected on the strength of an old request.
//!
//! A candidate knows no leader, so that it grants a pre-vote to whom it would elect.

use std::collections::BTreeMap;

use quorate_types::{Body, NodeId};

use crate::quorum::{self, Election};
use crate::ready::{Cause, Role};
use crate::role::Transition;
use crate::state::State;

/// The state of an election.
#[derive(Debug)]
pub(crate) struct Candidate {
    phase: Phase,
    votes: BTreeMap<NodeId, bool>,
    elapsed_ticks: u32,
    timeout_ticks: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    PreVote,
    Vote,
}

impl Candidate {
    /// Begins a pre-vote.
    pub(crate) fn pre_campaign(state: &mut State) -> (Self, Option<Transition>) {
        let mut candidate = Self::new(state, Phase::PreVote);
        let last = state.log.last();
        for peer in voting_peers(state) {
            let message = state.message(peer, state.term.next(), Body::PreVote { last });
            state.messages.push(message);
        }
        let next = candidate.on_vote(state, state.config.node, true);
        (candidate, next)
    }

    /// Begins an election in the next term. With `transfer`, the leader of this term gave its leave,
    /// so that voters who hear it vote all the same.
    pub(crate) fn campaign(state: &mut State, transfer: bool) -> Self {
        let candidate = Self::new(state, Phase::Vote);
        state.enter_term(state.term.next(), Some(state.config.node));
        let last = state.log.last();
        for peer in voting_peers(state) {
            state.send_durably(peer, last.index, Body::Vote { last, transfer });
        }
        candidate
    }

    fn new(state: &mut State, phase: Phase) -> Self {
        let timeout_ticks = state.draw_timeout();
        Self { phase, votes: BTreeMap::new(), elapsed_ticks: 0, timeout_ticks }
    }

    /// An election that is not decided in time begins anew, with a pre-vote.
    pub(crate) fn tick(&mut self) -> Option<Transition> {
        self.elapsed_ticks += 1;
        (self.elapsed_ticks >= self.timeout_ticks)
            .then_some(Transition::PreCampaign(Cause::ElectionTimeout))
    }

    pub(crate) const fn role(&self) -> Role {
        match self.phase {
            Phase::PreVote => Role::PreCandidate,
            Phase::Vote => Role::Candidate,
        }
    }

    pub(crate) fn on_pre_vote_reply(
        &mut self,
        state: &State,
        from: NodeId,
        granted: bool,
    ) -> Option<Transition> {
        if self.phase == Phase::PreVote { self.on_vote(state, from, granted) } else { None }
    }

    pub(crate) fn on_vote_reply(
        &mut self,
        state: &State,
        from: NodeId,
        granted: bool,
    ) -> Option<Transition> {
        if self.phase == Phase::Vote { self.on_vote(state, from, granted) } else { None }
    }

    /// Something became durable: perhaps the vote for itself.
    pub(crate) fn on_persisted(&mut self, state: &State) -> Option<Transition> {
        let own = (state.term, Some(state.config.node));
        if self.phase == Phase::Vote && state.persist.durable_ballot() == own {
            self.on_vote(state, state.config.node, true)
        } else {
            None
        }
    }

    fn on_vote(&mut self, state: &State, from: NodeId, granted: bool) -> Option<Transition> {
        // The first word counts; a grant cannot be taken back, and a refusal may be older than a
        // grant.
        let vote = self.votes.entry(from).or_insert(granted);
        *vote |= granted;
        match quorum::election(state.membership(), |node| self.votes.get(&node).copied()) {
            Election::Open => None,
            Election::Lost => Some(Transition::Follow { leader: None, cause: Cause::VotesRefused }),
            Election::Won => Some(match self.phase {
                Phase::PreVote => {
                    Transition::Campaign { cause: Cause::PreVotesGranted, transfer: false }
                }
                Phase::Vote => Transition::Lead,
            }),
        }
    }
}

/// The voters beside this replica, in order.
fn voting_peers(state: &State) -> Vec<NodeId> {
    state.peers().filter(|&peer| state.membership().is_voter(peer)).collect()
}
