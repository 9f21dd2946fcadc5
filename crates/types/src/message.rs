//! What the replicas of one group say to each other.

use crate::digest::Digest;
use crate::entry::{Entry, EntryId, SnapshotMeta};
use crate::id::{GroupId, LogIndex, NodeId, Term};

/// An envelope: from one replica of a group to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The group; one transport carries many.
    pub group: GroupId,
    /// Who speaks.
    pub from: NodeId,
    /// Who should hear it.
    pub to: NodeId,
    /// The speaker's term; in a [`Body::PreVote`] the term that it would campaign in, and in the
    /// reply that grants one, that same term again.
    pub term: Term,
    /// What is said.
    pub body: Body,
}

/// One variant per meaning; no optional fields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// "Would you vote for me?" Changes no state at the voter (thesis section 9.6).
    PreVote {
        /// The last entry of the candidate's log.
        last: EntryId,
    },
    /// The answer to a pre-vote.
    PreVoteReply {
        /// Whether a real vote would have been granted.
        granted: bool,
    },
    /// A request for the vote of the envelope's term (thesis section 3.4).
    Vote {
        /// The last entry of the candidate's log.
        last: EntryId,
        /// The leader of the term before told the candidate to campaign: whoever hears that leader,
        /// or has promised it silence, may vote all the same (thesis section 4.2.3).
        transfer: bool,
    },
    /// The answer to a vote; leaves only after the vote is durable.
    VoteReply {
        /// Whether the vote was granted.
        granted: bool,
    },
    /// Entries to append after `prev`; empty to probe (thesis section 3.5).
    Append {
        /// The entry just before `entries`; the receiver must have it.
        prev: EntryId,
        /// Consecutive entries from `prev.index + 1`.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: LogIndex,
    },
    /// The receiver's log holds the leader's entries up to `last`, durably.
    AppendAccepted {
        /// The last index that this append verified or stored.
        last: LogIndex,
    },
    /// The receiver does not have `prev`.
    AppendRejected {
        /// The `prev.index` that was refused, so that a late answer is told from a fresh one.
        refused: LogIndex,
        /// The receiver's last entry at or below `refused` whose term is at most the refused one's:
        /// the leader skips a whole term, not one index, per round trip.
        hint: EntryId,
    },
    /// "So much is committed." A leader to a peer that it replicates to, when it has no entries to tell it
    /// with. Nobody answers, and a lost one is made up for by the next beat.
    Commit {
        /// The leader's commit index; of use as far as the receiver's log is known to be the leader's.
        commit: LogIndex,
    },
    /// "I lead." Carries no entries; confirms leadership for reads (thesis section 6.4).
    Heartbeat {
        /// The leader's commit index, cut to what the receiver is known to hold.
        commit: LogIndex,
        /// The round of beats that an answer confirms; never reused within a term.
        round: u64,
    },
    /// A heartbeat that proposes to let the group sleep: everything is done, up to and including `last`.
    Sleep {
        /// The last entry of the leader's log; committed.
        last: EntryId,
        /// The round that an answer confirms, as of a heartbeat.
        round: u64,
    },
    /// "I sleep": the agreement to a [`Body::Sleep`]. Whoever does not agree answers as to a heartbeat.
    Asleep {
        /// That of the proposal.
        round: u64,
    },
    /// "Who leads?" A replica that knows of no living leader and may not campaign, a learner mostly, to the
    /// voters: it wakes a group that sleeps, and then the leader beats. Says nothing about the term.
    Wake,
    /// The answer to a heartbeat.
    HeartbeatReply {
        /// The round of the heartbeat that is answered.
        round: u64,
        /// For so long after it heard that heartbeat the sender neither votes nor campaigns, in
        /// microseconds of its own clock; 0 promises nothing. Leases of leaders are made of it.
        promise_us: u64,
    },
    /// A snapshot of the leader is here, complete and durable (thesis chapter 5). The content travels
    /// beside the messages; whoever received it gives this to its replica, in the leader's name.
    Snapshot {
        /// What the content stands for.
        meta: SnapshotMeta,
    },
    /// "Campaign at once: take over from me." A leader to its successor (thesis section 3.10).
    TimeoutNow,
    /// "From which index on is a read linearizable?" A follower asks its leader (thesis section
    /// 6.4).
    ReadIndex {
        /// Comes back in the answer.
        context: ReadContext,
    },
    /// The answer of a leader that proved its leadership after it was asked.
    ReadIndexReply {
        /// That of the request.
        context: ReadContext,
        /// What was committed; the read may be served once this is applied.
        index: LogIndex,
    },
    /// "My state at this entry comes to this." Between all replicas of a group, now and then; Raft has no
    /// use for it.
    Digest {
        /// The last entry that was applied.
        at: EntryId,
        /// Everything that was written up to there.
        digest: Digest,
        /// The sender knows that its own is wrong, and asks the leader for a snapshot in its place.
        wants_snapshot: bool,
    },
}

/// Names one request of a follower for all time: a late answer to another one, of another attempt, or
/// of an earlier life of the same replica, must never be taken for its answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReadContext {
    /// Differs between any two lives of the replica.
    pub life: u64,
    /// Rises with every request of one life.
    pub number: u64,
}

impl Body {
    /// A word for traces and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PreVote { .. } => "PreVote",
            Self::PreVoteReply { .. } => "PreVoteReply",
            Self::Vote { .. } => "Vote",
            Self::VoteReply { .. } => "VoteReply",
            Self::Append { .. } => "Append",
            Self::AppendAccepted { .. } => "AppendAccepted",
            Self::AppendRejected { .. } => "AppendRejected",
            Self::Commit { .. } => "Commit",
            Self::Heartbeat { .. } => "Heartbeat",
            Self::HeartbeatReply { .. } => "HeartbeatReply",
            Self::Sleep { .. } => "Sleep",
            Self::Asleep { .. } => "Asleep",
            Self::Wake => "Wake",
            Self::Snapshot { .. } => "Snapshot",
            Self::TimeoutNow => "TimeoutNow",
            Self::ReadIndex { .. } => "ReadIndex",
            Self::ReadIndexReply { .. } => "ReadIndexReply",
            Self::Digest { .. } => "Digest",
        }
    }

    /// True for votes, beats and what confirms reads, which must never queue behind data.
    #[must_use]
    pub const fn is_control(&self) -> bool {
        match self {
            Self::Append { .. }
            | Self::Commit { .. }
            | Self::AppendAccepted { .. }
            | Self::AppendRejected { .. }
            | Self::Snapshot { .. }
            | Self::Digest { .. } => false,
            Self::PreVote { .. }
            | Self::PreVoteReply { .. }
            | Self::Vote { .. }
            | Self::VoteReply { .. }
            | Self::Heartbeat { .. }
            | Self::HeartbeatReply { .. }
            | Self::Sleep { .. }
            | Self::Asleep { .. }
            | Self::Wake
            | Self::TimeoutNow
            | Self::ReadIndex { .. }
            | Self::ReadIndexReply { .. } => true,
        }
    }
}
