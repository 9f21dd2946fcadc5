//! Events as all watchers of a gateway share them.

use std::sync::Arc;

use quorate_types::Term;
use quorate_types::kv::{KeyValue, WatchEvent, WatchEvents};
use tokio::sync::OnceCell;

use crate::backend::EventBatch;

/// What happened up to a revision; whole revisions.
#[derive(Debug)]
pub(crate) struct Batch {
    events: Arc<WatchEvents>,
    pub(crate) through: i64,
    pub(crate) raft_term: Term,
    pub(crate) bytes: usize,
    /// Bytes of all batches before it: how old it is.
    pub(crate) at: u64,
    /// The pairs before the events, by their places; read once, when the first watcher wants them.
    pub(crate) prev_kvs: OnceCell<Vec<Option<KeyValue>>>,
}

/// What a batch takes beside its events.
const BATCH_OVERHEAD_BYTES: usize = 256;

impl Batch {
    pub(crate) fn new(batch: EventBatch, at: u64) -> Self {
        let EventBatch { through, raft_term, events } = batch;
        let bytes =
            BATCH_OVERHEAD_BYTES + events.0.iter().map(WatchEvent::cost_bytes).sum::<usize>();
        Self { events, through, raft_term, bytes, at, prev_kvs: OnceCell::new() }
    }

    pub(crate) fn events(&self) -> &[WatchEvent] {
        &self.events.0
    }
}
