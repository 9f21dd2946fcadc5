//! The keyspace's commands, queries and outcomes about its upkeep: alarms, downgrades, hashes.

use prost::{Enumeration, Message};

/// The kinds of alarms, numbered as etcd's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Enumeration)]
#[repr(i32)]
pub enum AlarmKind {
    /// None; in questions, all.
    None = 0,
    /// A member has no space: what grows the data is refused.
    NoSpace = 1,
    /// A member's data is damaged: what changes the data is refused.
    Corrupt = 2,
}

/// One alarm.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Alarm {
    /// The member that it is about; any number, as clients may name who does not exist.
    #[prost(uint64, tag = "1")]
    pub member: u64,
    /// What is wrong.
    #[prost(enumeration = "AlarmKind", tag = "2")]
    pub kind: i32,
}

/// Raises or clears an alarm. Answered with the alarm, unless one that was to be cleared was not there.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ChangeAlarm {
    /// The alarm.
    #[prost(message, required, tag = "1")]
    pub alarm: Alarm,
    /// True to raise it.
    #[prost(bool, tag = "2")]
    pub raise: bool,
}

/// Notes that a downgrade is under way, or that none is any more.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ChangeDowngrade {
    /// The version that is to be; empty: none.
    #[prost(string, tag = "1")]
    pub target: String,
}

/// Asks for the alarms, and whether a downgrade is under way.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Conditions {}

/// Asks for the hash of the keyspace's history, as etcd's `HashKV`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct HashKv {
    /// Up to this revision; 0 for the current one.
    #[prost(int64, tag = "1")]
    pub revision: i64,
}

/// Asks for the hash of all that replicas have in common.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct HashAll {}

/// Of a hash.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct HashOutcome {
    /// CRC-32C.
    #[prost(fixed32, tag = "1")]
    pub hash: u32,
    /// The last compaction's revision, -1 before the first.
    #[prost(int64, tag = "2")]
    pub compact_revision: i64,
    /// The revision that the history was hashed up to.
    #[prost(int64, tag = "3")]
    pub hash_revision: i64,
}

/// Of a question about alarms and downgrades, and of changes to them.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConditionsOutcome {
    /// The alarms; after a change of one, that one.
    #[prost(message, repeated, tag = "1")]
    pub alarms: Vec<Alarm>,
    /// The version that a downgrade is to lead to; empty: none is under way.
    #[prost(string, tag = "2")]
    pub downgrade_target: String,
}
