//! What a group's log holds, the state that must be durable beside it, and the membership that votes.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;

use crate::id::{LogIndex, NodeId, Term};

/// Names one entry for ever: two logs that agree on it agree on everything before it (Log Matching,
/// thesis section 3.5).
///
/// The order is Raft's "at least as up to date": by term, then by index (thesis section 3.6.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId {
    /// The term of the leader that made the entry.
    pub term: Term,
    /// The entry's position in the log.
    pub index: LogIndex,
}

impl EntryId {
    /// The position before the first entry of an empty log.
    pub const ZERO: Self = Self { term: Term::ZERO, index: LogIndex::ZERO };

    /// An id from bare numbers: `EntryId::new(Term(2), LogIndex(7))`.
    #[must_use]
    pub const fn new(term: Term, index: LogIndex) -> Self {
        Self { term, index }
    }
}

impl fmt::Display for EntryId {
    /// `index@term`, the form of traces and logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an entry carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// A new leader's no-op: lets it commit, and with it everything before (thesis section 6.4).
    Empty,
    /// A command for the group's state machine; opaque to Raft and to the log.
    Command(Bytes),
    /// Who takes part from here on (thesis section 4.1): the whole membership, so that whoever has
    /// the entry needs no other to know it.
    Membership(Box<Membership>),
}

impl Payload {
    /// Bytes of the command, about those of a membership, and 0 for a no-op.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Command(bytes) => bytes.len(),
            Self::Membership(membership) => membership.nodes().len() * size_of::<NodeId>(),
        }
    }

    /// True for a no-op.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

/// One record of a group's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Term and index.
    pub id: EntryId,
    /// What is replicated.
    pub payload: Payload,
}

impl Entry {
    /// Bytes that an entry costs beside its payload, in memory and on the wire; an estimate for budgets.
    pub const OVERHEAD_BYTES: usize = 24;

    /// What this entry counts against byte budgets.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        self.payload.len() + Self::OVERHEAD_BYTES
    }
}

/// What a replica must have on disk before it speaks (Raft, Figure 2 "Persistent state").
///
/// `commit` is only a lower bound, saved with whatever is written next: a restart may begin to apply
/// from it without a leader.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HardState {
    /// The latest term this replica has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// Known committed, lazily saved.
    pub commit: LogIndex,
}

/// Who takes part in a group.
///
/// Invariants ([`Membership::is_valid`]): no node is in both `voters` and `learners`; a node in
/// `outgoing` and `learners` is a voter that becomes a learner; `voters` is never empty, except at a
/// replica that knows nothing of its group yet. While `outgoing` is not empty the membership is
/// *joint*: agreement needs a majority of both halves (thesis section 4.3).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Membership {
    /// The voters; the incoming half of a joint configuration.
    pub voters: BTreeSet<NodeId>,
    /// The outgoing half; empty unless joint.
    pub outgoing: BTreeSet<NodeId>,
    /// Receive the log but do not vote.
    pub learners: BTreeSet<NodeId>,
    /// The learners that the leader makes voters as soon as they have caught up.
    pub promote: BTreeSet<NodeId>,
    /// If joint: the leader leaves it as soon as it is committed.
    pub auto_leave: bool,
}

impl Membership {
    /// A membership of voters alone.
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// True when the invariants hold and a group can work with it.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        !self.voters.is_empty()
            && self.voters.is_disjoint(&self.learners)
            && self.promote.is_subset(&self.learners)
            && !self.nodes().contains(&NodeId::ZERO)
    }

    /// True when `node` takes part.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// True while agreement needs both halves.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// True when `node` votes in either half.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// True when `node` alone decides: nobody else can be elected or must agree.
    #[must_use]
    pub fn is_sole_voter(&self, node: NodeId) -> bool {
        self.voters.len() == 1 && self.voters.contains(&node) && !self.is_joint()
    }

    /// Every node that receives the log, in order.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect()
    }
}

/// What a snapshot stands for: everything up to `last`, under `membership`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SnapshotMeta {
    /// The last entry that the snapshot contains.
    pub last: EntryId,
    /// The membership in force at `last`.
    pub membership: Membership,
}
