//! The durable logs of all groups of a node: many appends, one batch, one sync.
//!
//! # The life of an append
//!
//! 1. A group hands its [`Task`] to [`Wal::submit`], which never waits: a full queue gives it back.
//! 2. The writer thread takes whatever waits, up to a number of bytes. No timer makes a batch: it forms
//!    while the previous one is synced.
//! 3. [`LogStore::write`] makes the batch durable as a whole: one record per append, one write, one sync.
//! 4. [`Completions::persisted`] is called once for the batch, with the last ticket of every
//!    (group, generation) in it. That one stands for all earlier tickets of the pair.
//!
//! Old entries come back by [`Wal::fetch`], which a thread of its own serves: a slow read never delays a
//! write.
//!
//! # What holds
//!
//! - **Order.** All writes of all groups pass through one queue and one thread. What is submitted first
//!   is durable first, across groups too; batch n + 1 is written only after the sync of batch n.
//! - **Atomicity.** A batch survives a crash as a whole or not at all, and so does each write in it.
//! - **Completion means durable.** Nothing is reported before its sync has returned.
//! - **The first failed write or sync poisons**: no completion is ever given again, for any group,
//!   [`Completions::poisoned`] is called once, and later submits are refused as [`Why::Closed`]. A sync
//!   that is tried again may succeed although the pages of the failed one were dropped, so nothing is
//!   tried again; the process has to end and another node has to lead.
//! - **A panic on a thread of this crate ends the process** (abort), since half a batch may be encoded and
//!   nothing above could tell. That includes panics in [`Completions`].
//!
//! What a crash may lose: writes that were not reported as persisted. What it may not do: lose a reported
//! one, bring back an overwritten or truncated entry, or leave a gap.
//!
//! # Snapshots
//!
//! What replaces a group's state with a snapshot is not one batch: state and log are two stores. So the
//! host first makes its intent durable here ([`Write::Intend`]), then changes the state, then resets the
//! log behind the snapshot ([`Write::Create`]), which clears the intent in the same batch. A start that
//! finds an intent ([`RecoveredLog::intent`]) does all of it again.
//!
//! # The parts
//!
//! - [`log_store`]: what is written and recovered, and the traits [`LogStore`] and [`LogReader`].
//! - [`wal`]: the handle, [`Wal`]. Its threads are in `writer` and `fetcher`.
//! - [`inbox`]: the queue of a thread, of these and of others that are mostly asleep.
//! - [`directory`]: files beside the logs that appear whole or not at all, and their memory twin.
//! - [`mem`]: the memory twin, which loses unsynced batches when told to crash.
//! - `rocks` (feature `rocks`): the logs in one RocksDB instance.

pub mod directory;
pub mod error;
mod fetcher;
pub mod format;
pub mod inbox;
pub mod log_store;
pub mod mem;
mod metrics;
#[cfg(feature = "rocks")]
pub mod rocks;
pub mod wal;
mod writer;

pub use error::LogError;
pub use log_store::{LogReader, LogStore, RecoveredLog, Write, Written};
pub use wal::{Completions, Fetch, FetchRefused, Persisted, Refused, Task, Wal, WalConfig, Why};
