//! What watchers are told, and how they ask for what they have missed.

use bytes::Bytes;
use prost::{Enumeration, Message};

use super::KeyValue;

/// Asks for the events of a range, in order, from the rows: how watchers catch up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Events {
    /// Events of later revisions only; the first of them must not lie below the compaction floor.
    #[prost(int64, tag = "1")]
    pub after: i64,
    /// Events of revisions up to this one; 0 for all.
    #[prost(int64, tag = "2")]
    pub through: i64,
    /// First key.
    #[prost(bytes = "bytes", tag = "3")]
    pub key: Bytes,
    /// End of the range in etcd's form.
    #[prost(bytes = "bytes", tag = "4")]
    pub range_end: Bytes,
    /// With the pairs as they were before their revisions.
    #[prost(bool, tag = "5")]
    pub prev_kv: bool,
    /// The answer ends with the revision that brings it to this many bytes; 0 for no bound.
    #[prost(uint64, tag = "6")]
    pub bytes_max: u64,
    /// The answer may end within a revision: for whoever puts it together again.
    #[prost(bool, tag = "7")]
    pub parts: bool,
    /// Of the first revision only the writes from this one on: [`EventsOutcome::rest_from`] of the part before.
    #[prost(uint32, tag = "8")]
    pub from: u32,
}

/// Of a question for events.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct EventsOutcome {
    /// All that happened in the range after what was asked for, up to `through`; whole revisions.
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<WatchEvent>,
    /// Up to which revision nothing is left out.
    #[prost(int64, tag = "2")]
    pub through: i64,
    /// The compaction floor, if what was asked for lies below it: then there is nothing else.
    #[prost(int64, optional, tag = "3")]
    pub compacted: Option<i64>,
    /// Not 0: the events of the revision after `through` are told up to this write, and it has more. Only where
    /// parts are asked for.
    #[prost(uint32, tag = "4")]
    pub rest_from: u32,
}

/// What one write did to one key.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WatchEvent {
    /// A put or a delete.
    #[prost(enumeration = "EventKind", tag = "1")]
    pub kind: i32,
    /// The pair after a put; key and `mod_revision` of a delete.
    #[prost(message, required, tag = "2")]
    pub kv: KeyValue,
    /// The pair as it was before the revision, where asked for and if there was one.
    #[prost(message, optional, tag = "3")]
    pub prev_kv: Option<KeyValue>,
}

impl WatchEvent {
    /// The event's revision.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.kv.mod_revision
    }

    /// True for a put that made its key.
    #[must_use]
    pub const fn is_create(&self) -> bool {
        self.kind == EventKind::Put as i32 && self.kv.create_revision == self.kv.mod_revision
    }

    /// What it takes in memory, about.
    #[must_use]
    pub const fn cost_bytes(&self) -> usize {
        self.kv.key.len() + self.kv.value.len() + size_of::<Self>()
    }
}

/// The payload of the keyspace's [`Feed`](crate::machine::Feed): events in order, whole revisions. The first
/// feed of a machine tells of nothing: it says where the machine stands.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WatchEvents(pub Vec<WatchEvent>);

/// The kinds of [`WatchEvent`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub enum EventKind {
    /// A key was set.
    Put = 0,
    /// A key was deleted.
    Delete = 1,
}
