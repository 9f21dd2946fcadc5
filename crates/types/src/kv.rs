//! Commands, queries and outcomes of the etcd keyspace, as they are replicated and stored.
//!
//! Protobuf, because they must be able to change: fields are added, never renumbered, and unknown ones
//! are ignored. Requests hold a range as etcd's `key` and `range_end`
//! (see [`KeyRange::from_request`](crate::KeyRange::from_request)).

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use crate::auth::{AuthCommand, AuthOutcome, AuthQuery, Caller};

mod error;
mod lease;
mod watch;

pub use error::KvError;
pub use watch::{EventKind, Events, EventsOutcome, WatchEvent, WatchEvents};

pub use lease::{
    LEASE_TTL_MAX_S, LeaseGrant, LeaseGrantOutcome, LeaseKeepAlive, LeaseKeepAliveOutcome,
    LeaseKeys, LeaseKeysOutcome, LeaseRevoke, LeaseRevokeOutcome, LeaseTimeToLive,
    LeaseTimeToLiveOutcome, Leases, LeasesOutcome,
};

/// A command to the keyspace: what a log entry of a data group carries.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    /// The revision drawn by the leader; 0 means "the next one, given at apply".
    #[prost(int64, tag = "1")]
    pub at_revision: i64,
    /// What to do.
    #[prost(oneof = "command::Body", tags = "2, 3, 4, 5, 10, 11, 20, 30, 31")]
    pub body: Option<command::Body>,
    /// Who asks for it; none while users do not count.
    #[prost(message, optional, tag = "100")]
    pub caller: Option<Caller>,
}

/// The kinds of [`Command`].
pub mod command {
    use super::{AuthCommand, Compact, DeleteRange, LeaseGrant, LeaseRevoke, Oneof, Put, Txn};
    use crate::kv_maintenance::{ChangeAlarm, ChangeDowngrade};

    /// The kinds of a command.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Body {
        /// Set one key.
        #[prost(message, tag = "2")]
        Put(Put),
        /// Delete a range.
        #[prost(message, tag = "3")]
        DeleteRange(DeleteRange),
        /// Compare, then run one of two branches, in one revision.
        #[prost(message, tag = "4")]
        Txn(Txn),
        /// Forget history below a revision.
        #[prost(message, tag = "5")]
        Compact(Compact),
        /// Change users or roles; takes no revision of the keyspace.
        #[prost(message, tag = "20")]
        Auth(AuthCommand),
        /// Make a lease.
        #[prost(message, tag = "10")]
        LeaseGrant(LeaseGrant),
        /// End a lease, and delete its keys.
        #[prost(message, tag = "11")]
        LeaseRevoke(LeaseRevoke),
        /// Raise or clear an alarm.
        #[prost(message, tag = "30")]
        ChangeAlarm(ChangeAlarm),
        /// Note a downgrade that is under way, or its end.
        #[prost(message, tag = "31")]
        ChangeDowngrade(ChangeDowngrade),
    }
}

/// A question to the keyspace that changes nothing.
#[derive(Clone, PartialEq, Message)]
pub struct Query {
    /// What is asked.
    #[prost(oneof = "query::Body", tags = "1, 2, 3, 10, 11, 12, 13, 20, 30, 31, 32, 40")]
    pub body: Option<query::Body>,
    /// Who asks; none while users do not count.
    #[prost(message, optional, tag = "100")]
    pub caller: Option<Caller>,
}

/// The kinds of [`Query`].
pub mod query {
    use super::{
        AuthQuery, Events, LeaseKeepAlive, LeaseKeys, LeaseTimeToLive, Leases, Oneof, Range,
        Status, Txn,
    };
    use crate::kv_maintenance::{Conditions, HashAll, HashKv};

    /// The kinds of a query.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Body {
        /// Read a range.
        #[prost(message, tag = "1")]
        Range(Range),
        /// A transaction of compares and ranges only.
        #[prost(message, tag = "2")]
        Txn(Txn),
        /// Where the keyspace stands.
        #[prost(message, tag = "3")]
        Status(Status),
        /// What happened since a revision.
        #[prost(message, tag = "40")]
        Events(Events),
        /// Users and roles.
        #[prost(message, tag = "20")]
        Auth(AuthQuery),
        /// How long a lease has still to live; for the leader.
        #[prost(message, tag = "10")]
        LeaseTimeToLive(LeaseTimeToLive),
        /// Let a lease live on; for the leader.
        #[prost(message, tag = "11")]
        LeaseKeepAlive(LeaseKeepAlive),
        /// All leases.
        #[prost(message, tag = "12")]
        Leases(Leases),
        /// Which keys are attached to a lease.
        #[prost(message, tag = "13")]
        LeaseKeys(LeaseKeys),
        /// What the history up to a revision comes to.
        #[prost(message, tag = "30")]
        HashKv(HashKv),
        /// What everything, the system's rows too, comes to.
        #[prost(message, tag = "31")]
        HashAll(HashAll),
        /// The alarms, and whether a downgrade is under way.
        #[prost(message, tag = "32")]
        Conditions(Conditions),
    }
}

impl Query {
    /// True for what only the leader can answer, since nobody else keeps the deadlines of leases.
    #[must_use]
    pub const fn asks_leader(&self) -> bool {
        use query::Body;
        matches!(self.body, Some(Body::LeaseTimeToLive(_) | Body::LeaseKeepAlive(_)))
    }
}

impl Command {
    /// True for what may add data; deletes and compactions free it.
    #[must_use]
    pub fn grows(&self) -> bool {
        fn ops_grow(txn: &Txn) -> bool {
            txn.success.iter().chain(&txn.failure).any(|op| match &op.body {
                Some(op::Body::Put(_)) => true,
                Some(op::Body::Txn(txn)) => ops_grow(txn),
                Some(op::Body::Range(_) | op::Body::DeleteRange(_)) | None => false,
            })
        }
        match &self.body {
            Some(command::Body::Put(_) | command::Body::LeaseGrant(_)) => true,
            Some(command::Body::Txn(txn)) => ops_grow(txn),
            Some(
                command::Body::DeleteRange(_)
                | command::Body::Compact(_)
                | command::Body::LeaseRevoke(_),
            ) => {
                crate::defect!(RoomMakersRefused)
            }
            // Small and few, and needed to keep others out when it matters.
            Some(
                command::Body::Auth(_)
                | command::Body::ChangeAlarm(_)
                | command::Body::ChangeDowngrade(_),
            )
            | None => false,
        }
    }
}

/// Asks for the current revision and the compaction floor.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Status {}

/// etcd's `PutRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Put {
    /// The key; not empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    /// The lease to attach; 0 for none.
    #[prost(int64, tag = "3")]
    pub lease: i64,
    /// Return the pair as it was before.
    #[prost(bool, tag = "4")]
    pub prev_kv: bool,
    /// Keep the current value; the key must exist.
    #[prost(bool, tag = "5")]
    pub ignore_value: bool,
    /// Keep the current lease; the key must exist.
    #[prost(bool, tag = "6")]
    pub ignore_lease: bool,
}

/// etcd's `DeleteRangeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct DeleteRange {
    /// First key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// End of the range in etcd's form.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// Return the deleted pairs.
    #[prost(bool, tag = "3")]
    pub prev_kv: bool,
}

/// etcd's `RangeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Range {
    /// First key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// End of the range in etcd's form.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// At most this many pairs; 0 for all.
    #[prost(int64, tag = "3")]
    pub limit: i64,
    /// Read as of this revision; 0 or less for now.
    #[prost(int64, tag = "4")]
    pub revision: i64,
    /// Order of the result.
    #[prost(enumeration = "SortOrder", tag = "5")]
    pub sort_order: i32,
    /// What the result is ordered by.
    #[prost(enumeration = "SortTarget", tag = "6")]
    pub sort_target: i32,
    /// Leave the values out.
    #[prost(bool, tag = "7")]
    pub keys_only: bool,
    /// Only count.
    #[prost(bool, tag = "8")]
    pub count_only: bool,
    /// Leave out pairs last modified before this revision; 0 for no bound.
    #[prost(int64, tag = "9")]
    pub min_mod_revision: i64,
    /// Leave out pairs last modified after this revision; 0 for no bound.
    #[prost(int64, tag = "10")]
    pub max_mod_revision: i64,
    /// Leave out pairs created before this revision; 0 for no bound.
    #[prost(int64, tag = "11")]
    pub min_create_revision: i64,
    /// Leave out pairs created after this revision; 0 for no bound.
    #[prost(int64, tag = "12")]
    pub max_create_revision: i64,
    /// One page: pairs in the order of keys, as many as are this many bytes together, one at least; 0 for the whole range.
    /// A page has no other order and no filters, and nothing is counted.
    #[prost(uint64, tag = "13")]
    pub page_bytes: u64,
}

/// Order of a range's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub enum SortOrder {
    /// As stored: by key, ascending.
    None = 0,
    /// Ascending.
    Ascend = 1,
    /// Descending.
    Descend = 2,
}

/// What a range's result is ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub enum SortTarget {
    /// The key.
    Key = 0,
    /// The version.
    Version = 1,
    /// The create revision.
    Create = 2,
    /// The mod revision.
    Mod = 3,
    /// The value.
    Value = 4,
}

/// etcd's `TxnRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Txn {
    /// All must hold for `success` to run.
    #[prost(message, repeated, tag = "1")]
    pub compares: Vec<Compare>,
    /// Run when all compares hold.
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<Op>,
    /// Run otherwise.
    #[prost(message, repeated, tag = "3")]
    pub failure: Vec<Op>,
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Message)]
pub struct Op {
    /// What to do.
    #[prost(oneof = "op::Body", tags = "1, 2, 3, 4")]
    pub body: Option<op::Body>,
}

/// The kinds of [`Op`].
pub mod op {
    use super::{DeleteRange, Oneof, Put, Range, Txn};

    /// The kinds of an operation.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Body {
        /// Read a range.
        #[prost(message, tag = "1")]
        Range(Range),
        /// Set one key.
        #[prost(message, tag = "2")]
        Put(Put),
        /// Delete a range.
        #[prost(message, tag = "3")]
        DeleteRange(DeleteRange),
        /// A nested transaction.
        #[prost(message, tag = "4")]
        Txn(Txn),
    }
}

/// etcd's `Compare`: a condition on one key, or on every key of a range.
#[derive(Clone, PartialEq, Message)]
pub struct Compare {
    /// First key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// End of the range in etcd's form.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// How to compare.
    #[prost(enumeration = "CompareResult", tag = "3")]
    pub result: i32,
    /// What to compare with; the field that is set names what is compared.
    #[prost(oneof = "compare::Target", tags = "4, 5, 6, 7, 8")]
    pub target: Option<compare::Target>,
}

/// The targets of [`Compare`].
pub mod compare {
    use super::{Bytes, Oneof};

    /// What is compared, and with what.
    #[derive(Clone, PartialEq, Eq, Oneof)]
    pub enum Target {
        /// The version.
        #[prost(int64, tag = "4")]
        Version(i64),
        /// The create revision.
        #[prost(int64, tag = "5")]
        CreateRevision(i64),
        /// The mod revision.
        #[prost(int64, tag = "6")]
        ModRevision(i64),
        /// The value.
        #[prost(bytes = "bytes", tag = "7")]
        Value(Bytes),
        /// The lease.
        #[prost(int64, tag = "8")]
        Lease(i64),
    }
}

/// How a [`Compare`] compares: stored value on the left, given one on the right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub enum CompareResult {
    /// Equal.
    Equal = 0,
    /// Stored is greater.
    Greater = 1,
    /// Stored is less.
    Less = 2,
    /// Not equal.
    NotEqual = 3,
}

/// etcd's `CompactionRequest`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Compact {
    /// Reads below this revision fail from now on.
    #[prost(int64, tag = "1")]
    pub revision: i64,
}

/// A pair as stored.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Revision of the put that made the key (after its last delete).
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    /// Revision of the last put.
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    /// Puts since the key was made, this one included.
    #[prost(int64, tag = "4")]
    pub version: i64,
    /// The value.
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
    /// The attached lease; 0 for none.
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// What applying a [`Command`] or answering a [`Query`] gave.
#[derive(Clone, PartialEq, Message)]
pub struct Outcome {
    /// The keyspace's revision: after the command, or as of the read's view.
    #[prost(int64, tag = "1")]
    pub revision: i64,
    /// The result.
    #[prost(
        oneof = "outcome::Body",
        tags = "2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 20, 30, 31, 40"
    )]
    pub body: Option<outcome::Body>,
}

/// The kinds of [`Outcome`].
pub mod outcome {
    use super::{
        AuthOutcome, CompactOutcome, DeleteRangeOutcome, EventsOutcome, KvError, LeaseGrantOutcome,
        LeaseKeepAliveOutcome, LeaseKeysOutcome, LeaseRevokeOutcome, LeaseTimeToLiveOutcome,
        LeasesOutcome, Oneof, PutOutcome, RangeOutcome, StatusOutcome, TxnOutcome,
    };
    use crate::kv_maintenance::{ConditionsOutcome, HashOutcome};

    /// The kinds of an outcome.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Body {
        /// Of a put.
        #[prost(message, tag = "2")]
        Put(PutOutcome),
        /// Of a delete.
        #[prost(message, tag = "3")]
        DeleteRange(DeleteRangeOutcome),
        /// Of a transaction.
        #[prost(message, tag = "4")]
        Txn(TxnOutcome),
        /// Of a compaction.
        #[prost(message, tag = "5")]
        Compact(CompactOutcome),
        /// Of a range.
        #[prost(message, tag = "6")]
        Range(RangeOutcome),
        /// Of a status query.
        #[prost(message, tag = "7")]
        Status(StatusOutcome),
        /// Nothing was changed, on every replica alike, and this is why.
        #[prost(enumeration = "KvError", tag = "8")]
        Error(i32),
        /// Of a question for events.
        #[prost(message, tag = "40")]
        Events(EventsOutcome),
        /// Of a change of users or roles, or of a question about them.
        #[prost(message, tag = "20")]
        Auth(AuthOutcome),
        /// Of a grant.
        #[prost(message, tag = "10")]
        LeaseGrant(LeaseGrantOutcome),
        /// Of a revoke.
        #[prost(message, tag = "11")]
        LeaseRevoke(LeaseRevokeOutcome),
        /// Of a question for the time to live.
        #[prost(message, tag = "12")]
        LeaseTimeToLive(LeaseTimeToLiveOutcome),
        /// Of a keep-alive.
        #[prost(message, tag = "13")]
        LeaseKeepAlive(LeaseKeepAliveOutcome),
        /// Of a question for all leases.
        #[prost(message, tag = "14")]
        Leases(LeasesOutcome),
        /// Of a question for attached keys.
        #[prost(message, tag = "15")]
        LeaseKeys(LeaseKeysOutcome),
        /// Of a hash.
        #[prost(message, tag = "30")]
        Hash(HashOutcome),
        /// Of a change of alarms or of a downgrade, and of a question about them.
        #[prost(message, tag = "31")]
        Conditions(ConditionsOutcome),
    }
}

/// Of a put.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PutOutcome {
    /// The pair before the put, if asked for and if there was one.
    #[prost(message, optional, tag = "1")]
    pub prev_kv: Option<KeyValue>,
}

/// Of a delete.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeleteRangeOutcome {
    /// Keys deleted.
    #[prost(int64, tag = "1")]
    pub deleted: i64,
    /// The deleted pairs, if asked for.
    #[prost(message, repeated, tag = "2")]
    pub prev_kvs: Vec<KeyValue>,
}

/// Of a range.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RangeOutcome {
    /// The pairs.
    #[prost(message, repeated, tag = "1")]
    pub kvs: Vec<KeyValue>,
    /// The limit cut the result.
    #[prost(bool, tag = "2")]
    pub more: bool,
    /// Keys in the range at the read's revision, as etcd counts them.
    #[prost(int64, tag = "3")]
    pub count: i64,
}

/// Of a transaction.
#[derive(Clone, PartialEq, Message)]
pub struct TxnOutcome {
    /// Whether the compares held.
    #[prost(bool, tag = "1")]
    pub succeeded: bool,
    /// One outcome for each operation of the branch that ran.
    #[prost(message, repeated, tag = "2")]
    pub responses: Vec<Outcome>,
}

/// Of a compaction.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CompactOutcome {}

/// Of a status query.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StatusOutcome {
    /// The last compaction's revision; reads below it fail. 0 before the first.
    #[prost(int64, tag = "1")]
    pub compact_revision: i64,
    /// Everything that compactions below this revision have made invisible is removed here: the same on no
    /// two replicas.
    #[prost(int64, tag = "30")]
    pub swept_revision: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_add_data_grows() {
        use command::Body;
        let of = |op: op::Body| Txn { failure: vec![Op { body: Some(op) }], ..Txn::default() };
        let (put, delete) = (Put::default(), DeleteRange::default());
        let table = [
            (Body::Put(put.clone()), true),
            (Body::DeleteRange(delete.clone()), false),
            (Body::Compact(Compact { revision: 3 }), false),
            (Body::Txn(of(op::Body::DeleteRange(delete))), false),
            (Body::Txn(of(op::Body::Txn(of(op::Body::Put(put))))), true),
        ];
        for (body, expected) in table {
            let command = Command { body: Some(body), ..Command::default() };
            assert_eq!(command.grows(), expected, "{command:?}");
        }
    }
}
