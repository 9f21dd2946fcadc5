//! Where every key lives: the map from key ranges to shards, groups and replicas, and the state machine
//! that replicates it as group 1.
//!
//! - [`map`]: [`PlacementMap`], a value whose invariants hold: nodes, groups, and shards whose ranges
//!   partition the keyspace; lookup of a key or a range.
//! - [`members`]: how nodes come and go in it.
//! - [`plan`]: from what nodes are meant for to the next change of one group; [`follow`]: what the leader of one
//!   does for that, and when it looks.
//! - [`record`]: the stored and sent form of the map's parts; [`message`]: that of commands, queries and
//!   outcomes.
//! - [`machine`]: [`PlacementKind`], the map as a replicated state machine. A command names the version
//!   of the map that it was made for, so two proposers that looked at one version cannot both succeed.
//! - [`proposal`]: making commands, and reading what came of them.
//!
//! This crate knows no clock, no network and no actor, and not how a change of the map is carried out.

pub mod follow;
pub mod machine;
pub mod map;
pub mod members;
pub mod message;
pub mod plan;
pub mod proposal;
pub mod record;

pub use machine::PlacementKind;
pub use map::{Group, MapError, Node, PlacementMap, Shard, Standing};
pub use members::MemberRefusal;
pub use proposal::{Answer, Changed, Refused};
