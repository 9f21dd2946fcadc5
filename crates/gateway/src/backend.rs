//! The one way out of the gateway: what it asks of whoever keeps the data.
//!
//! The gateway knows neither groups' logs nor leaders. The `quorate` binary implements [`Backend`] over a
//! node; tests implement it over a map in memory.

use std::future::Future;
use std::sync::Arc;

use futures::stream::BoxStream;
use quorate_types::auth::Directory;
use quorate_types::{ClusterId, GroupId, LogIndex, NodeId, Term, kv};

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// It sees every write that was acknowledged before it began.
    Linearizable,
    /// It is answered by the local replica, which may be behind.
    Serializable,
}

/// What came of a command or query.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The state machine's own answer, refusals included.
    pub outcome: kv::Outcome,
    /// The term of the group that served it.
    pub raft_term: Term,
}

/// Why a command or query has no answer. Variants by what the caller can know and do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BackendError {
    /// No leader is known; nothing was proposed. Worth another try.
    #[error("no leader")]
    NoLeader,
    /// Leadership moved while the request waited; nothing was proposed. Worth another try.
    #[error("leader changed")]
    LeaderChanged,
    /// No answer in time. A command may have been applied, or may still be.
    #[error("timed out, outcome unknown")]
    TimedOut,
    /// Too many bytes or requests wait already; nothing was proposed.
    #[error("overloaded")]
    Overloaded,
    /// Larger than what nodes carry between them, as a command or as its answer; nothing was proposed.
    #[error("too large")]
    TooLarge,
    /// Too little disk space for a command that grows the data; nothing was proposed.
    #[error("out of space")]
    NoSpace,
    /// The node is going down; nothing was proposed.
    #[error("stopping")]
    Stopping,
    /// The data is damaged and must not be served.
    #[error("data is damaged")]
    Corrupt,
    /// The request is well formed and nobody can run it yet; the words say which part.
    #[error("unsupported: {0}")]
    Unsupported(&'static str),
}

/// A change of who belongs to the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// Add a node, which starts as a learner.
    Add {
        /// Its name; empty if it is known by its address until it joins.
        name: String,
        /// Where other nodes will reach it, `host:port`.
        peer_address: String,
        /// It stays a learner until it is promoted; else it votes once it has caught up.
        learner: bool,
    },
    /// Give a learner a vote.
    Promote(NodeId),
    /// Let a node leave.
    Remove(NodeId),
    /// Reach a node elsewhere.
    Move {
        /// The node.
        id: NodeId,
        /// Where other nodes will reach it, `host:port`.
        peer_address: String,
    },
    /// Add a node of the same name in the place of one that lost its data.
    Replace {
        /// The node that lost its data.
        id: NodeId,
        /// Where other nodes will reach the new one, `host:port`; empty: where they reach the old one.
        peer_address: String,
    },
}

/// The cluster after a change of its members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MembersAnswer {
    /// The node that the change was about, even if it is a member no more.
    pub id: NodeId,
    /// The members.
    pub members: Vec<Member>,
    /// The term of the group that keeps them.
    pub raft_term: Term,
}

/// Why the members cannot change, or the leadership cannot move, in this way. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberRefusal {
    /// There is no such member.
    NotFound,
    /// Another member has the name.
    NameTaken,
    /// Another member has the address.
    AddressTaken,
    /// It has a vote already.
    NotLearner,
    /// It has not caught up.
    LearnerNotReady,
    /// There are as many learners as may be.
    TooManyLearners,
    /// Those that have started would be no majority.
    NotEnoughStarted,
    /// Those that can be reached would be no majority.
    Unhealthy,
    /// The leadership cannot go to that node.
    BadTransferee,
    /// The node asked does not lead.
    NotLeader,
}

/// Why a change of members or of leadership did not happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberError {
    /// It must not.
    Refused(MemberRefusal),
    /// There is no answer. After [`BackendError::TimedOut`] it may be under way.
    Backend(BackendError),
}

impl From<BackendError> for MemberError {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

impl From<MemberRefusal> for MemberError {
    fn from(refusal: MemberRefusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What happened to keys: whole revisions, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventBatch {
    /// Nothing is left out up to this revision, and nothing can be added.
    pub through: i64,
    /// The term of the replica that tells.
    pub raft_term: Term,
    /// The events, shared by all who look at them. The first may be of revisions that were told before.
    pub events: Arc<kv::WatchEvents>,
}

/// An item of [`Backend::follow`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Happened {
    /// What follows on the batch before.
    Batch(EventBatch),
    /// What follows on the batch before is compacted; the stream ends.
    Compacted,
}

/// Where the answering node stands; of its first data group where a figure belongs to a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeStatus {
    /// The cluster's id; fixed while the process lives.
    pub cluster_id: ClusterId,
    /// The node's id, which is etcd's member id; fixed while the process lives.
    pub member_id: NodeId,
    /// The node's name.
    pub member_name: String,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The Raft term.
    pub raft_term: Term,
    /// The highest index known to be committed.
    pub raft_index: LogIndex,
    /// The highest index applied here.
    pub raft_applied: LogIndex,
    /// Size of the stored state on disk.
    pub db_size_bytes: u64,
    /// Bytes of the stored state that hold live data.
    pub db_in_use_bytes: u64,
    /// The replica has no vote.
    pub is_learner: bool,
    /// What is wrong, in words for an operator.
    pub errors: Vec<String>,
}

/// A node of the cluster, as the answering node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The node's id.
    pub id: NodeId,
    /// The node's name.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// It has no vote.
    pub is_learner: bool,
}

/// The role of a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It follows.
    Follower,
    /// It asks for votes, or whether it would get them.
    Candidate,
    /// It leads.
    Leader,
    /// It receives the log and has no vote.
    Learner,
}

/// One replica of the answering node: `applied <= commit <= last`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The kind of its state machine.
    pub kind: String,
    /// The node that holds the replica.
    pub node: NodeId,
    /// The replica's role.
    pub role: Role,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The Raft term.
    pub term: Term,
    /// The highest index known to be committed.
    pub commit: LogIndex,
    /// The highest index applied here.
    pub applied: LogIndex,
    /// The highest index in the replica's log.
    pub last: LogIndex,
    /// On the leader: how far each other member is; empty elsewhere.
    pub peers: Vec<PeerLag>,
    /// It has nothing to do: nobody beats until something happens.
    pub asleep: bool,
}

/// How far a member of a group is, as its leader knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerLag {
    /// The member.
    pub node: NodeId,
    /// The highest index that it holds durably.
    pub match_index: LogIndex,
    /// Entries of the leader's log that it does not hold yet.
    pub lag: u64,
}

/// The format of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackupForm {
    /// A database file of etcd.
    Etcd,
    /// Quorate's own, which holds everything.
    Quorate,
}

/// The keyspace as it was at one revision. Whatever holds its bytes goes with it.
pub struct Backup {
    /// The revision.
    pub revision: i64,
    /// How long it is.
    pub bytes: u64,
    /// The bytes; reading them may block.
    pub content: Box<dyn std::io::Read + Send>,
}

/// Why there is no backup.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BackupError {
    /// Others are being taken, or sent.
    #[error("busy")]
    Busy,
    /// The form cannot hold so much.
    #[error("too large")]
    TooLarge,
    /// The disk has no room for it.
    #[error("no space")]
    NoSpace,
    /// This node has no replica, or cannot read it or write the file.
    #[error("{0}")]
    Failed(String),
}

/// What the gateway needs from the node behind it.
///
/// A caller may drop the future of [`propose`](Self::propose) or [`read`](Self::read) at any time (its
/// client went away): the command may then still be applied, and nobody hears of it.
pub trait Backend: Send + Sync + 'static {
    /// Replicates a command and returns what applying it gave.
    ///
    /// # Errors
    /// When there is no answer; only [`BackendError::TimedOut`] leaves it open whether it was applied.
    fn propose(
        &self,
        command: kv::Command,
    ) -> impl Future<Output = Result<Answer, BackendError>> + Send;

    /// Answers a query that changes nothing.
    ///
    /// # Errors
    /// When there is no answer.
    fn read(
        &self,
        query: kv::Query,
        consistency: Consistency,
    ) -> impl Future<Output = Result<Answer, BackendError>> + Send;

    /// What happens to keys after the revision `after`: batches that follow on each other without a gap, the
    /// first on `after`, from the nearest replica. A batch comes once it can be read by a serializable
    /// read. There is no end to it unless there is an error or [`Happened::Compacted`]; then it may be asked
    /// for again, from where it ended.
    ///
    /// Who looks for single keys should rather ask the gateway's Watch service, which shares one such stream
    /// among all. Events of the past are read with [`kv::Events`], by [`Backend::read`].
    ///
    /// Errors are of the replica, or that none can be reached.
    fn follow(&self, after: i64) -> BoxStream<'static, Result<Happened, BackendError>>;
    /// True when users do not count, as far as this node's replica knows; false where there is none. Asked with
    /// every call, so it must cost no more than a load.
    fn auth_is_off(&self) -> bool;

    /// The users and roles, as this node's replica knows them; `None` where there is none that takes part.
    fn directory(&self) -> Option<Arc<Directory>>;

    /// Where this node stands, from memory.
    fn node_status(&self) -> NodeStatus;

    /// True while nothing of the cluster is heard here: this node's replica knows no leader, or, where there is no
    /// replica, the node does not. Then whoever waits here for something to happen would wait in vain.
    fn is_cut_off(&self) -> bool {
        self.node_status().leader.is_none()
    }

    /// The nodes of the cluster, from memory.
    fn members(&self) -> Vec<Member>;

    /// The nodes of the cluster as of now, and the term of the group that keeps them: every change that
    /// was acknowledged before is there.
    ///
    /// # Errors
    /// When there is no answer.
    fn members_now(&self)
    -> impl Future<Output = Result<(Vec<Member>, Term), BackendError>> + Send;

    /// Changes who belongs to the cluster. A removal or promotion is done when every group has followed.
    ///
    /// # Errors
    /// When it must not be, or there is no answer in time.
    fn change_members(
        &self,
        change: MemberChange,
    ) -> impl Future<Output = Result<MembersAnswer, MemberError>> + Send;

    /// Hands everything that this node leads to another member.
    ///
    /// # Errors
    /// When this node does not lead, the other cannot, or it has not taken over in time.
    fn move_leader(&self, to: NodeId) -> impl Future<Output = Result<(), MemberError>> + Send;

    /// Gives back the space of what was removed at this node, and says when that is done.
    ///
    /// # Errors
    /// When the node cannot, or goes down meanwhile.
    fn defragment(&self) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// The keyspace of this node's own replica, as of now.
    ///
    /// # Errors
    /// When there is none, or its file cannot be written.
    fn backup(&self, form: BackupForm) -> impl Future<Output = Result<Backup, BackupError>> + Send;

    /// This node's replicas as of now, by group id.
    fn groups(&self) -> impl Future<Output = Vec<GroupStatus>> + Send;

    /// True while this node can serve clients: its replicas have recovered and a leader is known.
    fn is_ready(&self) -> bool;
}
