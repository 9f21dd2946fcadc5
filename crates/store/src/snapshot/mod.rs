//! A group's rows as a file: what a replica that has fallen too far behind, or is new, gets instead of
//! the log.
//!
//! 1. [`Export`] takes one view of the engine and gives the group's [row](crate::GroupRow) and all its
//!    rows, [`GroupRows`], piece by piece; running applies go on beside it.
//! 2. The pieces travel, and lie in a file at the receiver. [`SnapshotReader`] reads them back, and
//!    believes nothing that does not fit: checksums, order, counts, and that every row is the group's.
//! 3. [`Install::stage`] writes the rows beside the receiver's engine, and [`Install::run`] puts them in
//!    the place of whatever the group had there, its own row included, as one change.
//!
//! What the log has to do with it is the host's matter: the state is durable when `run` returns, the
//! log is reset after it.
//!
//! [`SnapshotWriter`] makes one of rows that lie elsewhere: of another snapshot, changed, or of a file of etcd.
//!
//! - [`rows`]: which rows are a group's.
//! - [`format`]: the bytes.

mod export;
pub mod format;
mod install;
mod reader;
pub mod rows;
mod writer;

pub use export::Export;
pub use format::{SnapshotError, SnapshotHeader};
pub use install::Install;
pub use reader::SnapshotReader;
pub use rows::GroupRows;
pub use writer::SnapshotWriter;
