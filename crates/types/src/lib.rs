//! The words of Quorate as types: identifiers, log entries, peer messages, key ranges, the replicated
//! commands of the key-value keyspace, and the trait of a replicated state machine.
//!
//! Everything stands on this crate, so it knows nothing: no runtime, disk, socket, clock or policy.
//!
//! - [`id`]: newtypes for whatever is counted or named.
//! - [`entry`]: what a log holds, and who votes on it.
//! - [`moment`]: a reading of one node's clock, as a value.
//! - [`message`]: what replicas of one group say to each other, one variant per meaning.
//! - [`codec`]: the versioned binary form of entries and messages; every decoder takes hostile bytes.
//! - [`defect`]: known defects that the simulator's gate switches on; nothing at all without its feature.
//! - [`range`]: half-open key ranges.
//! - [`auth`]: users and roles, and what they may do with keys.
//! - [`kv`]: commands, queries and outcomes of the etcd keyspace; [`kv_maintenance`]: those of its upkeep.
//! - [`digest`]: one number for all that a machine has written, by which replicas are compared.
//! - [`machine`]: [`StateMachine`], the seam between a group and what it replicates.

pub mod auth;
pub mod codec;
pub mod defect;
pub mod digest;
pub mod entry;
pub mod id;
pub mod kv;
pub mod kv_maintenance;
pub mod machine;
pub mod message;
pub mod moment;
pub mod range;

pub use digest::{Digest, Digested};
pub use entry::{Entry, EntryId, HardState, Membership, Payload, SnapshotMeta};
pub use id::{ClusterId, Epoch, GroupId, Incarnation, LogIndex, NodeId, Revision, ShardId, Term};
pub use machine::{
    Committed, Due, Figure, Led, MachineKind, ReadError, StateBatch, StateMachine, StateReader,
};
pub use message::{Body, Message, ReadContext};
pub use moment::Moment;
pub use range::KeyRange;
