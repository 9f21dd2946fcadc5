//! The seam between rows and what keeps them.

use std::sync::Arc;

use bytes::Bytes;
use quorate_types::StateReader;
use quorate_types::machine::StateError;

use super::overlay::Rows;
use super::shared::SharedView;

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

    /// The value of `key` as a restart after a crash would find it, which may be older than the one
    /// that views see.
    ///
    /// # Errors
    /// When the engine fails or finds damage.
    fn durable(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Bytes that the rows take, on disk and in memory; an estimate.
    fn size_bytes(&self) -> u64;
}
