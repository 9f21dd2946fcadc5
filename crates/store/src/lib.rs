//! The replicated key-value state of a node: rows in an engine, and etcd's MVCC keyspace on top of them.
//!
//! This crate knows keys, revisions and rows. It knows no Raft, runtime, clock or socket, and not which
//! node it is on; the same commands give the same rows and outcomes everywhere.
//!
//! The life of a committed command:
//!
//! 1. The host takes a view of its [`StateEngine`] and builds an [`Overlay`] over it: the one batch of
//!    many groups' committed commands.
//! 2. For each group it notes a [`Savepoint`] and hands [`KvMachine`] its commands and the
//!    [`ScopedBatch`] of the group. Reads see what the batch holds already.
//! 3. It puts the group's [`GroupRow`] (applied entry, membership, the machine's `meta`) into the same
//!    overlay. A group that failed is rolled back to its savepoint, alone.
//! 4. [`Overlay::into_rows`] goes to [`StateEngine::write`]: all of it or nothing.
//!
//! Nothing is synced here: the log is durable, and [`StateEngine::durable`] says how far it may be cut.
//!
//! - [`engine`]: the engines and the batch under construction.
//! - [`layout`]: which rows there are, and how their keys sort; [`stored_key`]: by which key a request is routed.
//! - [`group_row`]: what a group keeps beside its machine's rows.
//! - [`snapshot`]: a group's rows as a file, to put it in their place on another node.
//! - [`kv`]: etcd's keyspace as a state machine; `auth`: the users and roles in it; [`etcd`]: it as a database
//!   file of etcd, and [`bolt`] such files read; `etcd_form`: what etcd keeps of leases, users and roles.
//! - [`restore`]: backups as what a new cluster begins with.

mod auth;
pub mod bolt;
pub mod engine;
pub mod etcd;
mod etcd_form;
pub mod group_row;
pub mod kv;
pub mod layout;
pub mod restore;
pub mod snapshot;
pub mod stored_key;

pub use engine::{
    MemState, Overlay, Rows, Savepoint, ScopedBatch, ScopedView, SharedView, Span, Staged,
    StateEngine,
};
#[cfg(feature = "rocks")]
pub use engine::{OnDamage, OpenStateError, RocksConfig, RocksState};
pub use group_row::GroupRow;
pub use kv::{KeyspaceCheck, KvKind, KvMachine, check_keyspace};
pub use snapshot::{
    Export, GroupRows, Install, SnapshotError, SnapshotHeader, SnapshotReader, SnapshotWriter,
};
