//! What a turn of a group asks its host to do.

use bytes::Bytes;
use quorate_raft::{Cause, LogFetch, MembershipError, Role, SnapshotRequest, Ticket};
use quorate_types::{
    Entry, EntryId, HardState, LogIndex, Membership, Message, NodeId, SnapshotMeta, Term,
};

use crate::digest::Divergence;

/// One thing for the host to do. `P` and `R` are the host's slots for a waiting proposal and a waiting
/// read: the group keeps them, never looks into them, and gives each back exactly once.
#[derive(Debug)]
pub enum Effect<P, R> {
    /// Write to the log in one synced batch, after all earlier appends of the group; then report
    /// [`Group::persisted`](crate::Group::persisted) with the ticket.
    Append {
        /// What the completion names.
        ticket: Ticket,
        /// Term, vote and commit, when they changed.
        hard_state: Option<HardState>,
        /// Entries; the first overwrites its index and everything beyond.
        entries: Vec<Entry>,
    },
    /// Send to peers, in order; may be lost.
    Send(Vec<Message>),
    /// Apply these committed entries, then report [`Group::applied`](crate::Group::applied). At most
    /// one is outstanding for each group.
    Apply(Vec<Entry>),
    /// Read old entries from the log, then report [`Group::fetched`](crate::Group::fetched).
    Fetch(LogFetch),
    /// Put the content of this snapshot, which was announced by a
    /// [`Body::Snapshot`](quorate_types::Body::Snapshot), in the place of the state, and begin the log
    /// anew behind it, durably and after all earlier appends of the group; then report
    /// [`Group::installed`](crate::Group::installed) or
    /// [`Group::install_failed`](crate::Group::install_failed). No [`Effect::Apply`] is outstanding
    /// then, and none comes before.
    Install(SnapshotMeta),
    /// Put the rows of this snapshot in the place of the state, durably, and leave the log as it is; then
    /// report [`Group::rebuilt`](crate::Group::rebuilt) or
    /// [`Group::rebuild_failed`](crate::Group::rebuild_failed). No [`Effect::Apply`] is outstanding then,
    /// and none comes before.
    Rebuild(SnapshotMeta),
    /// This replica and a peer have applied the same entries and have written different rows: something is
    /// broken, here or there. What is to be done about it the group does.
    Diverged(Divergence),
    /// This replica was found to be wrong, or (false) has got a right state since: while it is, nobody
    /// may read its state.
    Distrusted(bool),
    /// Send a snapshot, then report [`Group::snapshot_sent`](crate::Group::snapshot_sent).
    SendSnapshot(SnapshotRequest),
    /// A proposal has its answer.
    Answer {
        /// Whose.
        slot: P,
        /// The outcome, or why there is none.
        result: Result<Proposed, Refusal>,
    },
    /// A linearizable read may look at the state now: everything that was acknowledged before it began
    /// is applied.
    Grant {
        /// Whose.
        slot: R,
        /// The leader's term.
        term: Term,
        /// The applied index that the read may rely on.
        index: LogIndex,
    },
    /// A read has no answer here; it may be tried elsewhere.
    Deny {
        /// Whose.
        slot: R,
        /// Why.
        refusal: Refusal,
    },
    /// Another membership is in force, committed or not: whom to be connected with. What is committed,
    /// and belongs into a snapshot, comes as entries to apply.
    Membership(Membership),
    /// Role, term or leader changed, or a new leader became able to serve.
    Leadership(Leadership),
}

/// The answer to a proposal that was applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposed {
    /// The entry that carried it.
    pub id: EntryId,
    /// What the machine made of it; empty for a change of the membership.
    pub outcome: Bytes,
}

/// Why a proposal or read got no answer from this replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Nothing was proposed, or what was proposed has certainly lost its place: it is safe to try again.
    #[error("not the leader (leader {leader:?} of term {term})")]
    NotLeader {
        /// Who leads, as far as this replica knows.
        leader: Option<NodeId>,
        /// The term it knows this of.
        term: Term,
    },
    /// Too many bytes wait for a quorum; nothing was proposed.
    #[error("too many uncommitted proposals")]
    Overloaded,
    /// Too few voters have room on their disks for what grows; nothing was proposed.
    #[error("the disks of too many voters are nearly full")]
    NoSpace,
    /// The membership is not changed; nothing was proposed.
    #[error(transparent)]
    Membership(MembershipError),
    /// The entry may or may not be applied later.
    #[error("outcome unknown")]
    Unknown,
}

/// Who leads a group, as one replica sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leadership {
    /// This replica's role.
    pub role: Role,
    /// This replica's term.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
    /// True while this replica leads and has applied its own no-op: only then does it propose.
    pub serving: bool,
    /// Why role, term or leader changed last; `None` at the start.
    pub cause: Option<Cause>,
}
