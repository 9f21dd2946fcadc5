//! Where rows live: an ordered map with consistent views and atomic batches, without a log of its own.
//!
//! What a [`StateEngine`] promises, and all that the layers above rely on:
//!
//! - A view is one instant: it sees whole batches, and no batch that is written after it was taken.
//! - A batch is written as a whole or not at all, and batches become durable in the order in which they
//!   were written: after a crash the rows are those after *some* prefix of the batches. Which prefix,
//!   the rows themselves say (each group's applied entry is among them), and the log replays the rest.
//! - [`StateEngine::flush`] makes everything written so far durable.
//! - [`Staged::ingest`] replaces all rows of a few ranges as a whole, for snapshots; what was written
//!   before is durable with it.
//!
//! - [`overlay`]: the batch under construction.
//! - [`scope`]: what of the rows one machine may see and touch.
//! - [`shared`]: one view for all who read between two writes.
//! - [`mem`]: the memory twin, which can crash and fail on demand.
//! - `rocks` (feature `rocks`): RocksDB; `tables` are the files that it takes in as a whole.

pub mod mem;
pub mod overlay;
#[cfg(feature = "rocks")]
pub mod rocks;
pub mod scope;
pub mod shared;
#[cfg(feature = "rocks")]
mod tables;
mod traits;

pub use mem::MemState;
pub use overlay::{Overlay, Rows, Savepoint};
#[cfg(feature = "rocks")]
pub use rocks::{OnDamage, OpenStateError, RocksConfig, RocksState};
pub use scope::{ScopedBatch, ScopedView};
pub use shared::SharedView;
pub use traits::{RowSource, Span, Staged, StateEngine};
