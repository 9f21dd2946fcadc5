//! A whole Raft group as a value: a replica, the callers that wait on it, and the effects that a host
//! must carry out. Deciding about terms is `raft`'s; deciding about *waiting* is done here; nothing
//! here does anything.
//!
//! A host drives a [`Group`] in turns:
//!
//! 1. It hands in whatever has arrived: [`Group::propose`], [`Group::read`], [`Group::step`],
//!    [`Group::tick`], and the completions of earlier effects, [`Group::persisted`],
//!    [`Group::applied`], [`Group::fetched`].
//! 2. It ends the turn with [`Group::turn`] and carries out the [`Effect`]s, in their order. A burst of
//!    inputs becomes one append, one round of messages and one confirmation round for all reads.
//! 3. What leaves a node as a promise (a vote, an acknowledgement) is held here until the append that
//!    it rests on was reported durable, so a host cannot send it early.
//!
//! The same code runs in a node, on real disks and sockets, and in a simulator.
//!
//! [`digest`] compares what replicas have written. [`disk`] says what a full or a hanging disk means for
//! groups; [`host`] holds the decisions about *which* groups live on a node, [`panics`] what becomes of one
//! that panics, and [`Wheel`] which of them are ticked and which sleep. [`EntryBudget`] is how they share the memory for entries.

pub mod descriptor;
pub mod digest;
pub mod disk;
pub mod effect;
mod entry_budget;
mod failure_detector;
mod group;
pub mod host;
pub mod panics;
mod pending;
mod wheel;

pub use descriptor::{Descriptor, DescriptorError};
pub use digest::{Checkpoint, DIGEST_INTERVAL, Divergence, is_checkpoint};
pub use disk::{Fitness, GrowthGate, Room, Stall};
pub use effect::{Effect, Leadership, Proposed, Refusal};
pub use entry_budget::EntryBudget;
pub use failure_detector::{FailureDetector, Heard};
pub use group::{Group, GroupConfig, WrongState, WrongStateError};
pub use host::{Generation, Host, HostError};
pub use panics::{Panics, Verdict};
pub use wheel::Wheel;
