//! What a turn of a replica asks its driver to do.

use quorate_types::{Entry, HardState, LogIndex, Membership, Message, NodeId, SnapshotMeta, Term};

/// The output of one turn: everything since the last [`take_ready`](crate::Replica::take_ready).
///
/// All fields may be carried out at the same time; only [`Append`] orders anything.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ready {
    /// What must be written and synced.
    pub append: Option<Append>,
    /// May leave at once.
    pub messages: Vec<Message>,
    /// To be applied: consecutive, each handed out once, committed *and* durable in this replica's
    /// log. No-ops are among them, so that the applied index passes them, and memberships, which
    /// belong into the next snapshot.
    pub committed: Vec<Entry>,
    /// Linearizable reads that may be served from this replica once the index is applied here.
    pub reads: Vec<ReadReady>,
    /// Reads that this replica cannot serve any more: its leadership ended, or that of the leader
    /// that it asked.
    pub refused_reads: Vec<ReadId>,
    /// Entries to read back from the log.
    pub fetch: Vec<LogFetch>,
    /// Take this snapshot's content, which [`Body::Snapshot`](quorate_types::Body::Snapshot) said to be
    /// here, as the state of the group, and begin the log anew behind it, durably and after all
    /// earlier appends; then report [`installed`](crate::Replica::installed), or
    /// [`install_failed`](crate::Replica::install_failed). Nothing is given out to be applied
    /// meanwhile. What was given out before and is not applied yet is to be dropped; an apply that is
    /// under way ends, and is reported, before the install begins.
    pub install: Option<SnapshotMeta>,
    /// Send snapshots, and report each by [`snapshot_sent`](crate::Replica::snapshot_sent).
    pub snapshot_requests: Vec<SnapshotRequest>,
    /// Set when another membership is in force, committed or not: whom to be connected with. The
    /// entries in `committed` say what is committed.
    pub membership: Option<Membership>,
    /// Set when role, term or known leader changed.
    pub role: Option<RoleChange>,
}

impl Ready {
    /// True when there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One atomic, synced write to the group's log.
///
/// `hard_state` and `entries` belong into one batch. `entries[0]` overwrites whatever was at its
/// index and beyond. Several appends may be under way; they must become durable in the order of
/// their tickets.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Append {
    /// To be handed to [`persisted`](crate::Replica::persisted) when this and all earlier appends
    /// are durable.
    pub ticket: Ticket,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Consecutive entries.
    pub entries: Vec<Entry>,
    /// Promises that rest on this write: they may leave only after the sync. When a promise rests
    /// on an append that was handed out earlier, the replica keeps it and gives it out in
    /// [`Ready::messages`] after that one's [`persisted`](crate::Replica::persisted).
    pub release: Vec<Message>,
}

/// Numbers the appends of one replica object, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Ticket(pub u64);

/// Names a waiting read; chosen by the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReadId(pub u64);

/// A read for which a leadership was confirmed after it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadReady {
    /// The read.
    pub id: ReadId,
    /// It sees every earlier write once this index is applied.
    pub index: LogIndex,
}

/// A peer needs entries that are no longer in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotRequest {
    /// The peer.
    pub to: NodeId,
    /// The snapshot must contain at least this index, where the log begins. It may contain anything up
    /// to the applied index; [`snapshot_meta`](crate::Replica::snapshot_meta) says what it stands for.
    pub min_index: LogIndex,
}

/// A request for entries that are no longer in memory. The answer goes to
/// [`fetched`](crate::Replica::fetched): a run from `from` on, as long as fits, at least one entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFetch {
    /// Tells this request from all others of the same replica object.
    pub number: u64,
    /// The first index.
    pub from: LogIndex,
    /// The last index, inclusive. The run may end before it.
    pub to: LogIndex,
    /// Stop before the run exceeds this many bytes ([`Entry::cost_bytes`]), but not before its
    /// first entry.
    pub bytes_max: usize,
}

/// What a replica is to its group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected, without having raised its term.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

impl Role {
    /// A word for traces and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        }
    }
}

/// Where a turn left the replica.
///
/// Only the last change of a turn is reported. Whoever led in an earlier term than this one has
/// lost that leadership, even if it leads again: proposals of the earlier term must not wait on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoleChange {
    /// The role now.
    pub role: Role,
    /// The term now.
    pub term: Term,
    /// The leader of that term, as far as this replica knows; itself when it leads.
    pub leader: Option<NodeId>,
    /// Why.
    pub cause: Cause,
}

/// Why a role, a term or the known leader changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// No leader was heard for the randomized election timeout.
    ElectionTimeout,
    /// [`campaign`](crate::Replica::campaign) was called.
    Asked,
    /// A quorum would grant its votes.
    PreVotesGranted,
    /// A quorum granted its votes.
    Elected,
    /// So many refused that the election cannot be won.
    VotesRefused,
    /// Granted its vote to this candidate of its own term.
    VoteGranted(NodeId),
    /// Heard the leader of its term.
    HeardLeader(NodeId),
    /// Heard of a higher term from this node.
    HigherTerm(NodeId),
    /// The leader handed the leadership over to this replica.
    Transferred(NodeId),
    /// [`forget_leader`](crate::Replica::forget_leader) was called.
    LeaderForgotten,
    /// As leader, lost its vote by a change that is committed.
    Removed,
    /// As leader, heard no quorum for an election timeout (CheckQuorum).
    QuorumLost,
    /// As leader, was told to [`step_down`](crate::Replica::step_down).
    Unfit,
}

impl Cause {
    /// A word for traces and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ElectionTimeout => "election_timeout",
            Self::Asked => "asked",
            Self::PreVotesGranted => "pre_votes_granted",
            Self::Elected => "elected",
            Self::VotesRefused => "votes_refused",
            Self::VoteGranted(_) => "vote_granted",
            Self::HeardLeader(_) => "heard_leader",
            Self::HigherTerm(_) => "higher_term",
            Self::Transferred(_) => "transferred",
            Self::LeaderForgotten => "leader_forgotten",
            Self::Removed => "removed",
            Self::QuorumLost => "quorum_lost",
            Self::Unfit => "unfit",
        }
    }
}
