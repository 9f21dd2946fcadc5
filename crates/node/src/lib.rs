//! A Quorate node as a library: many Raft groups on one log, one state engine and one transport.
//!
//! [`Engine`] is the way in: open a node, create groups with state machines of your own, propose, read,
//! follow leaderships. `examples/` holds a replicated counter and a table of locks.
//!
//! The life of a write:
//!
//! 1. [`Engine::propose`] looks the group up in the router. If the group's leader is elsewhere, the
//!    request goes there, once, over the transport's request lane.
//! 2. The command reaches the group's actor by `tell`, with the slot that its answer goes to.
//! 3. The actor drains its mailbox into one turn of the [`quorate_group::Group`].
//! 4. The turn's effects are carried out: the append goes to the log's thread, the messages to the
//!    transport, at the same time.
//! 5. Followers do the same with what arrives; their acknowledgements leave once their log has synced.
//! 6. The log's completion and the peers' acknowledgements come back as messages, and commit the entry.
//! 7. The applier's thread applies it, many groups' entries in one batch of the state engine.
//! 8. The outcome comes back to the actor, and the slot is answered.
//!
//! The life of a linearizable read: the actor of this node's replica, whoever leads, takes it into a turn.
//! At a leader with a lease it is confirmed at once, at another after a round of heartbeats, at a follower
//! after one request to the leader; all reads of a turn share what it takes. Once everything that was
//! committed before is applied here, the caller looks at the state itself, beside running applies.
//!
//! A panic of a group, in its turn or in its machine, ends that life of the group and nothing else: its
//! callers are answered, and it is loaded again from what is durable (`actor::reload`).
//!
//! Threads: the tokio runtime that opened the node runs actors and transport; the log has a writer and
//! a reader; the applier has one. None of them waits for another.

mod actor;
mod admission;
mod apply;
mod background;
mod backup;
mod clock;
mod completions;
pub mod config;
mod disks;
mod distances;
mod doubt;
mod elsewhere;
mod engine;
mod entry_cache;
mod feed;
mod fence;
mod first_start;
mod forward;
mod founding;
mod hashing;
pub mod identity;
#[cfg(test)]
mod image;
pub mod inspect;
mod join;
mod life;
pub mod local;
mod members;
mod metrics;
mod mover;
mod net;
mod open;
pub mod restore;
mod rights;
mod router;
mod snapshot;
mod state;
mod steward;
mod sweeps;
mod ticker;
mod witness;

pub use backup::{BackupContent, BackupFailure, BackupFile, BackupForm};
pub use completions::EXIT_STORAGE_FAILED;
pub use config::{EngineConfig, InitialGroup, InitialState};
pub use engine::{Engine, GroupStatus, NodeStatus};
pub use feed::{Followed, Subscription};
pub use fence::{EXIT_FENCED, Fenced};
pub use identity::node_id;
pub use members::{ChangeError, MemberChange};
pub use net::Expelled;
pub use open::OpenError;
pub use quorate_group::{Leadership, Proposed};
pub use quorate_placement::{MemberRefusal, PlacementMap, Standing};
pub use quorate_raft::Role;
pub use quorate_store::etcd::EtcdMember;
pub use quorate_store::{KvKind, stored_key};
pub use quorate_transport::{Distant, Fate, Link, Shape, Shaped, Straight, TlsConfig, tls};
pub use router::{Consistency, EngineError, ReadAnswer, Route};
pub use snapshot::{InstallError, WordsError};
