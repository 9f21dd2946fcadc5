//! The getters of a replica: how things stand, also between the inputs of one turn.

use std::collections::BTreeSet;

use quorate_types::{EntryId, HardState, LogIndex, Membership, Moment, NodeId, SnapshotMeta, Term};

use crate::config::Config;
use crate::progress::PeerProgress;
use crate::quorum;
use crate::ready::Role;
use crate::replica::Replica;
use crate::role::Acting;
use crate::state::Counters;

impl Replica {
    /// What this replica is told it is: its settings.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.state.config
    }

    /// What it does now.
    #[must_use]
    pub const fn role(&self) -> Role {
        match &self.acting {
            Acting::Follower(_) => Role::Follower,
            Acting::Candidate(candidate) => candidate.role(),
            Acting::Leader(_) => Role::Leader,
        }
    }

    /// The latest term it has seen.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.state.term
    }

    /// Whom it voted for in this term.
    #[must_use]
    pub const fn vote(&self) -> Option<NodeId> {
        self.state.vote
    }

    /// The leader of this term, as far as known; itself when it leads.
    #[must_use]
    pub const fn leader(&self) -> Option<NodeId> {
        match &self.acting {
            Acting::Follower(follower) => follower.leader(),
            Acting::Candidate(_) => None,
            Acting::Leader(_) => Some(self.state.config.node),
        }
    }

    /// The hard state in memory; not all of it may be durable.
    #[must_use]
    pub const fn hard_state(&self) -> HardState {
        HardState { term: self.state.term, vote: self.state.vote, commit: self.state.log.commit() }
    }

    /// The last entry known to be committed.
    #[must_use]
    pub const fn commit(&self) -> LogIndex {
        self.state.log.commit()
    }

    /// The last entry that is durable here.
    #[must_use]
    pub const fn durable(&self) -> LogIndex {
        self.state.log.durable()
    }

    /// The last entry handed out to be applied.
    #[must_use]
    pub const fn applying(&self) -> LogIndex {
        self.state.log.applying()
    }

    /// The last entry reported as applied.
    #[must_use]
    pub const fn applied_index(&self) -> LogIndex {
        self.state.log.applied()
    }

    /// The entry before the first one.
    #[must_use]
    pub const fn base(&self) -> EntryId {
        self.state.log.terms().base()
    }

    /// The last entry.
    #[must_use]
    pub const fn last(&self) -> EntryId {
        self.state.log.last()
    }

    /// The term of the entry at `index`; `None` outside of the log.
    #[must_use]
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.state.log.term_at(index)
    }

    /// Bytes of entries in memory.
    #[must_use]
    pub const fn cached_bytes(&self) -> usize {
        self.state.log.cached_bytes()
    }

    /// The no-op of this leadership; `None` when it does not lead. Once it is applied, the state
    /// machine has seen everything of earlier terms.
    #[must_use]
    pub const fn first_in_term(&self) -> Option<LogIndex> {
        match &self.acting {
            Acting::Leader(leader) => Some(leader.first_in_term()),
            Acting::Follower(_) | Acting::Candidate(_) => None,
        }
    }

    /// Until when its followers have promised that nobody else is elected; `None` when it does not
    /// lead. It may read without a message until then, once the first entry of its term is committed
    /// and unless [`Config::lease`] is off.
    #[must_use]
    pub fn lease_end(&self) -> Option<Moment> {
        match &self.acting {
            Acting::Leader(leader) => Some(leader.lease_end(&self.state)),
            Acting::Follower(_) | Acting::Candidate(_) => None,
        }
    }

    /// To whom it is handing over the leadership.
    #[must_use]
    pub fn transferring_to(&self) -> Option<NodeId> {
        match &self.acting {
            Acting::Leader(leader) => leader.transferring_to(),
            Acting::Follower(_) | Acting::Candidate(_) => None,
        }
    }

    /// True while the group sleeps, as far as this replica knows: there is nothing to do, no timer
    /// runs, and nothing is sent. A sleeping leader has no lease.
    #[must_use]
    pub const fn is_asleep(&self) -> bool {
        self.state.asleep
    }

    /// True while it has promised a leader to be silent: it neither votes nor campaigns.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.state.is_silent()
    }

    /// Bytes of own proposals that are not committed; 0 when it does not lead.
    #[must_use]
    pub const fn uncommitted_bytes(&self) -> usize {
        match &self.acting {
            Acting::Leader(leader) => leader.uncommitted_bytes(),
            Acting::Follower(_) | Acting::Candidate(_) => 0,
        }
    }

    /// Who takes part, as of the last entry, committed or not.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.state.membership()
    }

    /// True when the members that are not among `lost` could still agree on something.
    #[must_use]
    pub fn has_quorum_without(&self, lost: &BTreeSet<NodeId>) -> bool {
        quorum::reached(self.membership(), |node| u64::from(!lost.contains(&node))) == 1
    }

    /// Who takes part for a state machine that has applied up to `index`: what a snapshot at `index`
    /// must say. `None` outside of the log.
    #[must_use]
    pub fn membership_at(&self, index: LogIndex) -> Option<&Membership> {
        self.term_at(index).map(|_| self.state.memberships.at(index))
    }

    /// What a snapshot of everything up to `index` stands for; `None` before the base, and beyond what
    /// is applied.
    #[must_use]
    pub fn snapshot_meta(&self, index: LogIndex) -> Option<SnapshotMeta> {
        let term = self.term_at(index).filter(|_| index <= self.applied_index())?;
        let membership = if quorate_types::defect!(SnapshotOfLatestMembership) {
            self.state.membership().clone()
        } else {
            self.state.memberships.at(index).clone()
        };
        Some(SnapshotMeta { last: EntryId::new(term, index), membership })
    }

    /// The snapshot that is being put in the place of the log.
    #[must_use]
    pub const fn installing(&self) -> Option<&SnapshotMeta> {
        self.state.installing.as_ref()
    }

    /// How far `peer` has come; `None` when this replica does not lead, or `peer` is itself or no
    /// member.
    #[must_use]
    pub fn progress(&self, peer: NodeId) -> Option<PeerProgress> {
        match &self.acting {
            Acting::Leader(leader) => leader.report(peer, &self.state.config),
            Acting::Follower(_) | Acting::Candidate(_) => None,
        }
    }

    /// What was not acted upon.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.state.counters
    }
}
