//! etcd's keyspace as a state machine: one revision for each command that changes something, and reads
//! at any revision that is not compacted.
//!
//! How a command is applied, in steps:
//!
//! 1. [`KvMachine`] decodes it and works out the revision that it would take ([`meta`]).
//! 2. A transaction is checked as a whole first ([`txn`]): its form, keys written twice, then the
//!    compares, which pick the branches, and what could fail in those. Compares of nested transactions
//!    see the state *before* the transaction, as etcd's do, so all branches are known before anything
//!    is written, and a transaction that fails leaves nothing behind.
//! 3. Its operations run in order ([`write`], [`read`]); each sees what earlier ones wrote.
//! 4. If anything was written, the keyspace is at the new revision.
//!
//! Pairs that were read lately are remembered beside the machine ([`pairs`]), and records of keys that were
//! written lately in it ([`recent`]).
//!
//! What a command writes, its watchers are told from memory ([`machine::KvMachine`]'s feed); those who fall
//! behind read it from the rows ([`events`]).
//! Leases are rows of the system, beside the keys ([`lease`]). When they end is known to the leader only, in
//! memory ([`lessor`]); that a lease has ended is a command like any other.
//!
//! Compaction only moves the floor below which reads fail. What lies under it goes bit by bit, when the
//! host has time ([`sweep`]).
//!
//! Alarms are rows of the system's space ([`alarms`]). [`history`] is all that was written, in its order, for
//! the [`hash`] and for backups.
//!
//! Every fact about etcd here was checked against etcd 3.5.1; the tests name them.

pub(crate) mod alarms;
pub mod check;
pub(crate) mod events;
mod few;
pub(crate) mod hash;
pub(crate) mod hashing;
pub mod history;
pub(crate) mod interval;
pub(crate) mod lease;
pub(crate) mod led;
pub(crate) mod lessor;
pub mod machine;
pub(crate) mod meta;
mod page;
pub(crate) mod pairs;
pub(crate) mod read;
pub(crate) mod recent;
pub(crate) mod record;
pub(crate) mod sweep;
pub(crate) mod txn;
pub(crate) mod write;

pub use check::{KeyspaceCheck, check_keyspace};
pub use machine::{KvKind, KvMachine};
pub use txn::TXN_DEPTH_MAX;
