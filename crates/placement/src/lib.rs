//! Where every key lives: the map from key ranges to shards, groups and replicas, and the state machine
//! that replicates it as group 1.
//!
//! - [`map`]: [`PlacementMap`], a value whose invariants hold: nodes, groups, and shards whose ranges
//!   partition the keyspace; lookup of a key or a range.
//! - [`record`]: the stored and sent form of the map's parts, and of commands, queries and outcomes.
//! - [`machine`]: [`PlacementKind`], the map as a replicated state machine. A command names the version
//!   of the map that it was made for, so two proposers that looked at one version cannot both succeed.
//!
//! This crate knows no clock, no network and no actor, and not how a change of the map is carried out.

pub mod machine;
pub mod map;
pub mod record;

pub use machine::{Answer, PlacementKind, Refused};
pub use map::{Group, MapError, Node, PlacementMap, Shard};
