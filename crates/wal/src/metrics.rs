//! The figures of a node's logs, as handles made once.

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Level, Metadata, Recorder, SharedString, Unit,
};

/// Handles to what the writer and the fetcher report. No label names a group.
#[derive(Clone)]
pub(crate) struct WalMetrics {
    /// From the start of a batch's write to the end of its sync, seconds.
    pub(crate) sync_seconds: Histogram,
    pub(crate) batch_entries: Histogram,
    pub(crate) batch_bytes: Histogram,
    pub(crate) batch_groups: Histogram,
    pub(crate) queue_tasks: Gauge,
    pub(crate) queue_bytes: Gauge,
    pub(crate) poisoned: Gauge,
    pub(crate) syncs: Counter,
    pub(crate) seals: Counter,
    pub(crate) entries: Counter,
    pub(crate) rewritten_bytes: Counter,
    pub(crate) entry_bytes: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) refused_tasks: Counter,
    pub(crate) fetches: Counter,
    pub(crate) fetched_entries: Counter,
}

impl WalMetrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let make = Maker { recorder };
        Self {
            sync_seconds: make.histogram(
                "quorate_wal_sync_seconds",
                Unit::Seconds,
                "Time to write and sync one batch of the log.",
            ),
            batch_entries: make.histogram(
                "quorate_wal_batch_entries",
                Unit::Count,
                "Entries in one synced batch of the log, over all groups.",
            ),
            batch_bytes: make.histogram(
                "quorate_wal_batch_bytes",
                Unit::Bytes,
                "Bytes of one synced batch of the log, keys and framing included.",
            ),
            batch_groups: make.histogram(
                "quorate_wal_batch_groups",
                Unit::Count,
                "Groups that share one synced batch of the log.",
            ),
            queue_tasks: make.gauge(
                "quorate_wal_queue_tasks",
                Unit::Count,
                "Tasks that wait for the log's writer.",
            ),
            queue_bytes: make.gauge(
                "quorate_wal_queue_bytes",
                Unit::Bytes,
                "Bytes of tasks that wait for the log's writer or are being written.",
            ),
            poisoned: make.gauge(
                "quorate_wal_poisoned_state",
                Unit::Count,
                "1 once a write or sync of the log has failed: the node acknowledges nothing more.",
            ),
            syncs: make.counter("quorate_wal_syncs_total", Unit::Count, "Synced batches."),
            seals: make.counter(
                "quorate_wal_seals_total",
                Unit::Count,
                "Synced records that say nothing, each behind the last batch before a pause.",
            ),
            entries: make.counter(
                "quorate_wal_entries_total",
                Unit::Count,
                "Entries written to the log.",
            ),
            entry_bytes: make.counter(
                "quorate_wal_entry_bytes_total",
                Unit::Bytes,
                "Bytes of the commands written to the log, without keys and framing.",
            ),
            rewritten_bytes: make.counter(
                "quorate_wal_rewritten_bytes_total",
                Unit::Bytes,
                "Bytes of the log that were written again since the start, by flushes and compactions.",
            ),
            written_bytes: make.counter(
                "quorate_wal_written_bytes_total",
                Unit::Bytes,
                "Bytes written to the log, keys and framing included.",
            ),
            refused_tasks: make.counter(
                "quorate_wal_refused_tasks_total",
                Unit::Count,
                "Tasks given back because the log's queue was full.",
            ),
            fetches: make.counter(
                "quorate_wal_fetches_total",
                Unit::Count,
                "Reads of old entries from the log.",
            ),
            fetched_entries: make.counter(
                "quorate_wal_fetched_entries_total",
                Unit::Count,
                "Old entries read from the log.",
            ),
        }
    }
}

/// Describes and registers in one go.
struct Maker<'r> {
    recorder: &'r dyn Recorder,
}

impl Maker<'_> {
    fn counter(&self, name: &'static str, unit: Unit, what: &'static str) -> Counter {
        let (key, text) = (KeyName::from_const_str(name), SharedString::const_str(what));
        self.recorder.describe_counter(key, Some(unit), text);
        self.recorder.register_counter(&Key::from_static_name(name), &METADATA)
    }

    fn gauge(&self, name: &'static str, unit: Unit, what: &'static str) -> Gauge {
        let (key, text) = (KeyName::from_const_str(name), SharedString::const_str(what));
        self.recorder.describe_gauge(key, Some(unit), text);
        self.recorder.register_gauge(&Key::from_static_name(name), &METADATA)
    }

    fn histogram(&self, name: &'static str, unit: Unit, what: &'static str) -> Histogram {
        let (key, text) = (KeyName::from_const_str(name), SharedString::const_str(what));
        self.recorder.describe_histogram(key, Some(unit), text);
        self.recorder.register_histogram(&Key::from_static_name(name), &METADATA)
    }
}

static METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
