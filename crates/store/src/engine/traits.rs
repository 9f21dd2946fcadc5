//! The seam between rows and what keeps them.

use std::sync::Arc;

use bytes::Bytes;
use quorate_types::StateReader;
use quorate_types::machine::StateError;

use super::overlay::Rows;
use super::shared::SharedView;

/// The rows `start <= row < end`. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first row that may lie in it.
    pub start: Bytes,
    /// The first row behind it.
    pub end: Bytes,
}

/// Gives rows one after the other, in strictly ascending order of their keys; `None` at the end.
pub type RowSource<'s> = dyn FnMut() -> Result<Option<(Bytes, Bytes)>, StateError> + 's;

/// Rows beside the engine, complete and durable, that wait to take the place of others. Dropped, they
/// are removed.
pub trait Staged: Send {
    /// Removes all rows of the spans that they were staged for and puts the staged ones in, as one
    /// change: every view sees all of it or nothing, and so does a restart after a crash. It is durable
    /// when this returns, and with it every batch written before.
    ///
    /// Takes about as long as a [`StateEngine::flush`], however many the rows are.
    ///
    /// # Errors
    /// When the engine fails; the caller must stop using it.
    fn ingest(self: Box<Self>) -> Result<(), StateError>;
}

/// Keeps the rows of a node; see the [chapter](super) for what it promises.
pub trait StateEngine: Send + Sync {
    /// A consistent view of all rows as of now.
    fn view(&self) -> Box<dyn StateReader + Send + '_>;

    /// As [`Self::view`], but one for all who ask between two writes. It sees every batch whose write had
    /// returned before the call. Held for long, it keeps the engine from dropping overwritten rows.
    fn shared_view(&self) -> Arc<SharedView>;

    /// Writes a batch atomically. It is visible to views taken after this returns; it is durable only
    /// after a later [`Self::flush`], or whenever the engine gets to it.
    ///
    /// # Errors
    /// When the engine fails; the caller must stop using it.
    fn write(&self, rows: Rows) -> Result<(), StateError>;

    /// Makes every batch written so far durable.
    ///
    /// # Errors
    /// When the engine fails; the caller must stop using it.
    fn flush(&self) -> Result<(), StateError>;

    /// Makes every batch written so far durable, and gives back the space of rows that were removed or overwritten,
    /// as far as no view needs them: piece after piece, before each of which `goes_on` is asked. Batches and
    /// views are not held up. Takes as long as it takes to write the whole once.
    ///
    /// # Errors
    /// When the engine fails; the caller must stop using it.
    fn compact(&self, goes_on: &dyn Fn() -> bool) -> Result<(), StateError>;

    /// Writes rows beside the engine, in any time it takes, without holding up batches or views: those
    /// that [`Staged::ingest`] is to put in the place of everything in `spans`. Rows that lie in none of
    /// them only replace what has their own keys.
    ///
    /// # Errors
    /// When the engine or the source fails; nothing is left behind then.
    fn stage(
        &self,
        spans: &[Span],
        rows: &mut RowSource<'_>,
    ) -> Result<Box<dyn Staged>, StateError>;

    /// The value of `key` as a restart after a crash would find it, which may be older than the one
    /// that views see.
    ///
    /// # Errors
    /// When the engine fails or finds damage.
    fn durable(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Bytes that the rows take, on disk and in memory; an estimate.
    fn size_bytes(&self) -> u64;
}
