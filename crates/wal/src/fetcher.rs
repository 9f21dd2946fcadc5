//! The thread that reads old entries, so that a slow read never delays a write.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::inbox::Inbox;
use crate::log_store::LogReader;
use crate::metrics::WalMetrics;
use crate::wal::{AbortOnPanic, Completions, Fetch, Shared};

pub(crate) struct Fetcher {
    pub(crate) reader: Box<dyn LogReader>,
    pub(crate) fetches: Inbox<Fetch>,
    pub(crate) completions: Arc<dyn Completions>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: WalMetrics,
}

impl Fetcher {
    /// Runs until every sender is gone and the queue is empty, or until the log is poisoned.
    pub(crate) fn run(self) {
        let _abort = AbortOnPanic;
        while let Some(fetch) = self.fetches.recv() {
            let Fetch { group, from, to, bytes_max, .. } = fetch;
            let entries = self.reader.read(group, from, to, bytes_max);
            if self.shared.poisoned.load(Ordering::Acquire) {
                return;
            }
            self.metrics.fetches.increment(1);
            self.metrics.fetched_entries.increment(entries.as_ref().map_or(0, Vec::len) as u64);
            self.completions.fetched(fetch, entries);
        }
    }
}
