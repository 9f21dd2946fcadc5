//! What nodes count, for a measurement: the sums of their counters by name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// Counters of all nodes that were opened with clones of this. Gauges and histograms go nowhere.
#[derive(Clone, Default, Debug)]
pub(crate) struct Counters(Arc<Mutex<BTreeMap<String, Vec<Arc<AtomicU64>>>>>);

impl Counters {
    /// The sum over all nodes; 0 for what nobody counts.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        let counters = self.0.lock().expect("no recorder panicked");
        let cells = counters.get(name).into_iter().flatten();
        cells.map(|cell| cell.load(Ordering::Relaxed)).sum()
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        // One for each node: some are set to what a node has counted itself.
        let cell = Arc::new(AtomicU64::new(0));
        let mut counters = self.0.lock().expect("no recorder panicked");
        counters.entry(key.name().to_owned()).or_default().push(Arc::clone(&cell));
        Counter::from_arc(cell)
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// What the logs of all nodes have written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogFigures {
    syncs: u64,
    entries: u64,
    entry_bytes: u64,
    disk_bytes: u64,
    fetched: u64,
}

impl LogFigures {
    pub(crate) fn of(counters: &Counters) -> Self {
        Self {
            syncs: counters.sum("quorate_wal_syncs_total"),
            entries: counters.sum("quorate_wal_entries_total"),
            entry_bytes: counters.sum("quorate_wal_entry_bytes_total"),
            disk_bytes: counters.sum("quorate_wal_written_bytes_total")
                + counters.sum("quorate_wal_rewritten_bytes_total"),
            fetched: counters.sum("quorate_wal_fetched_entries_total"),
        }
    }

    /// Syncs for each entry since `earlier`, on each node.
    pub(crate) fn syncs_per_entry(&self, earlier: &Self) -> f64 {
        (self.syncs - earlier.syncs) as f64 / (self.entries - earlier.entries) as f64
    }

    /// Entries that were read back for each one that was written since `earlier`: none, as long as the memory
    /// for entries suffices.
    pub(crate) fn read_back_per_entry(&self, earlier: &Self) -> f64 {
        (self.fetched - earlier.fetched) as f64 / (self.entries - earlier.entries) as f64
    }

    /// Bytes that went to the disk for each byte of a command since `earlier`: keys, framing, hard states,
    /// flushes and compactions are what makes it more than 1.
    pub(crate) fn write_amplification(&self, earlier: &Self) -> f64 {
        (self.disk_bytes - earlier.disk_bytes) as f64
            / (self.entry_bytes - earlier.entry_bytes) as f64
    }
}
