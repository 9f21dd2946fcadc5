//! The handle to a node's logs: submit without waiting, hear of completions on another thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::TrySendError;
use metrics::Recorder;
use quorate_types::{Entry, GroupId, LogIndex};

use crate::error::LogError;
use crate::fetcher::Fetcher;
use crate::inbox::{InboxSender, inbox};
use crate::log_store::{LogStore, RecoveredLog, Write};
use crate::metrics::WalMetrics;
use crate::writer::{Job, Writer};

/// How much is gathered and how much may wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalConfig {
    /// A batch takes no further task once it holds this many bytes. Larger batches raise throughput while
    /// the disk is slow, and the latency of each; the last task may exceed it.
    pub batch_bytes_max: usize,
    /// Tasks that may wait for the writer; beyond that [`Wal::submit`] refuses. Slots are allocated at
    /// the start.
    pub queue_tasks_max: usize,
    /// Bytes of tasks that may wait or be under way; beyond that [`Wal::submit`] refuses. A single task
    /// of any size is accepted when there is no other.
    pub queue_bytes_max: usize,
    /// Fetches that may wait for the fetcher; beyond that [`Wal::fetch`] refuses.
    pub queue_fetches_max: usize,
    /// When nothing was written for so long, the last batch is sealed ([`LogStore::seal`]), once. Until
    /// then damage to it cannot be told from a write that never was acknowledged; a shorter time costs a
    /// sync in each shorter pause.
    pub seal_after: Duration,
}

impl WalConfig {
    /// 1 MiB: some 4,000 entries of 256 bytes, and few enough bytes that a sync stays near its floor.
    pub const BATCH_BYTES_MAX: usize = 1 << 20;
    /// 16,384: every group of a large node can have one task waiting.
    pub const QUEUE_TASKS_MAX: usize = 16 << 10;
    /// 64 MiB: what a slow disk takes in about a second.
    pub const QUEUE_BYTES_MAX: usize = 64 << 20;
    /// 1,024: fetches are asked for one at a time by each replica that has to look back.
    pub const QUEUE_FETCHES_MAX: usize = 1 << 10;
    /// 100 ms: many syncs, so that a log under load is never sealed.
    pub const SEAL_AFTER: Duration = Duration::from_millis(100);
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            batch_bytes_max: Self::BATCH_BYTES_MAX,
            queue_tasks_max: Self::QUEUE_TASKS_MAX,
            queue_bytes_max: Self::QUEUE_BYTES_MAX,
            queue_fetches_max: Self::QUEUE_FETCHES_MAX,
            seal_after: Self::SEAL_AFTER,
        }
    }
}

/// A write and to whom its completion goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    /// What to make durable.
    pub write: Write,
    /// Which life of the group asks: a completion for an earlier life must not reach a reloaded group.
    pub generation: u64,
    /// Names the write; the completion of a ticket stands for all those submitted before it with the same
    /// group and generation.
    pub ticket: u64,
}

/// A read of old entries and to whom they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Whose log to read.
    pub group: GroupId,
    /// Which life of the group asks.
    pub generation: u64,
    /// The first index wanted.
    pub from: LogIndex,
    /// The last index wanted.
    pub to: LogIndex,
    /// Stop before the entries cost more than this; the first one comes whatever it costs.
    pub bytes_max: usize,
}

/// A ticket that is durable, and with it all earlier ones of the same group and generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Persisted {
    /// Whose log was written.
    pub group: GroupId,
    /// Which life of the group had asked.
    pub generation: u64,
    /// The last ticket of the batch for this group and generation.
    pub ticket: u64,
}

/// What the threads of a [`Wal`] report. Called on those threads: an implementation hands the news on and
/// returns; it never waits, and never calls [`Wal::shutdown`].
pub trait Completions: Send + Sync + 'static {
    /// A batch is durable. Called once per batch, with one element for each (group, generation) in it,
    /// in ascending order of both.
    fn persisted(&self, done: &[Persisted]);

    /// The entries that `fetch` asked for, as [`LogReader::read`](crate::LogReader::read) has them.
    fn fetched(&self, fetch: Fetch, entries: Result<Vec<Entry>, LogError>);

    /// The log of `group` as it is after everything that was submitted before [`Wal::reload`]; `None` if
    /// there is none.
    fn reloaded(&self, group: GroupId, generation: u64, log: Option<RecoveredLog>) {
        let _ = (group, generation, log);
    }

    /// A write or sync failed: the node must acknowledge nothing more and end. Called once, and no
    /// `persisted` or `reloaded` ever comes after it (a `fetched` that was under way may).
    fn poisoned(&self, error: &LogError);
}

/// Why the log takes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Why {
    /// The queue is full. Try again once a completion has come, of any group.
    #[error("the queue of the log is full")]
    Full,
    /// The log was shut down, or a write or sync failed: nothing will be taken any more.
    #[error("the log is closed")]
    Closed,
}

/// A task that was not accepted, unchanged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// The task.
    pub task: Box<Task>,
    /// Why.
    pub why: Why,
}

/// A fetch that was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct FetchRefused {
    /// The fetch.
    pub fetch: Fetch,
    /// Why.
    pub why: Why,
}

/// The logs of a node, behind their writer thread and their fetcher thread.
///
/// Dropping it lets the threads finish what waits and end by themselves; only
/// [`shutdown`](Self::shutdown) waits for them and so for the store to be closed.
pub struct Wal {
    /// `None` once shut down. What was accepted is in the channel before its sender is dropped, so it is
    /// drained.
    queues: RwLock<Option<Queues>>,
    shared: Arc<Shared>,
    queue_bytes_max: usize,
    metrics: WalMetrics,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Queues {
    jobs: InboxSender<Job>,
    fetches: InboxSender<Fetch>,
}

/// What the handle and the threads both see.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) poisoned: AtomicBool,
    /// Bytes of tasks that wait or are under way.
    pub(crate) queued_bytes: AtomicUsize,
    pub(crate) synced_batches: AtomicU64,
    /// When the oldest write that is under way was submitted, in microseconds since `began` and one; 0 when
    /// nothing is under way.
    pub(crate) oldest_us: AtomicU64,
    /// Words of the host for the next batch.
    pub(crate) note: Mutex<Option<Bytes>>,
    began: OnceLock<Instant>,
}

impl Shared {
    /// Microseconds since the log was started.
    pub(crate) fn now_us(&self) -> u64 {
        let began = self.began.get_or_init(Instant::now);
        u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Wal {
    /// Starts the threads over a recovered `store`.
    ///
    /// # Panics
    /// If the operating system gives no threads, or a queue has no room at all.
    pub fn start(
        store: impl LogStore,
        completions: Arc<dyn Completions>,
        config: WalConfig,
        recorder: &dyn Recorder,
    ) -> Self {
        assert!(config.queue_tasks_max > 0 && config.queue_fetches_max > 0, "{config:?}");
        let (jobs, job_queue) = inbox(Some(config.queue_tasks_max));
        let (fetches, fetch_queue) = inbox(Some(config.queue_fetches_max));
        let (shared, metrics) = (Arc::<Shared>::default(), WalMetrics::new(recorder));
        shared.synced_batches.store(store.synced_batches(), Ordering::Relaxed);
        let fetcher = Fetcher {
            reader: store.reader(),
            fetches: fetch_queue,
            completions: Arc::clone(&completions),
            shared: Arc::clone(&shared),
            metrics: metrics.clone(),
        };
        let writer = Writer::new(
            Box::new(store),
            job_queue,
            completions,
            Arc::clone(&shared),
            metrics.clone(),
            &config,
        );
        let writer = spawn("quorate-wal", move || writer.run());
        let fetcher = spawn("quorate-wal-fetch", move || fetcher.run());
        let jobs = jobs.read_by(writer.thread());
        let fetches = fetches.read_by(fetcher.thread());
        Self {
            queues: RwLock::new(Some(Queues { jobs, fetches })),
            shared,
            queue_bytes_max: config.queue_bytes_max,
            metrics,
            threads: Mutex::new(vec![writer, fetcher]),
        }
    }

    /// Queues a write; its completion follows by [`Completions::persisted`]. Never waits.
    ///
    /// # Errors
    /// [`Refused`] with the task, when the queue is full or the log is closed.
    pub fn submit(&self, task: Task) -> Result<(), Refused> {
        let cost_bytes = task.write.cost_bytes();
        let queues = self.queues.read().expect(UNPOISONED);
        let Some(Queues { jobs, .. }) = queues.as_ref().filter(|_| !self.is_poisoned()) else {
            return Err(Refused { task: Box::new(task), why: Why::Closed });
        };
        let waiting = self.shared.queued_bytes.fetch_add(cost_bytes, Ordering::Relaxed);
        let submitted_us = self.shared.now_us();
        let refused = if waiting > 0 && waiting + cost_bytes > self.queue_bytes_max {
            (Job::Write { task, cost_bytes, submitted_us }, Why::Full)
        } else {
            match jobs.try_send(Job::Write { task, cost_bytes, submitted_us }) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(job)) => (job, Why::Full),
                Err(TrySendError::Disconnected(job)) => (job, Why::Closed),
            }
        };
        self.shared.queued_bytes.fetch_sub(cost_bytes, Ordering::Relaxed);
        match refused {
            (Job::Write { task, .. }, why) => {
                if why == Why::Full {
                    self.metrics.refused_tasks.increment(1);
                }
                Err(Refused { task: Box::new(task), why })
            }
            (Job::Reload { .. }, _) => unreachable!("the job just made is a write"),
        }
    }

    /// Queues a read of old entries; they follow by [`Completions::fetched`]. Never waits, and is not
    /// ordered with writes: ask only for entries that were reported as persisted.
    ///
    /// # Errors
    /// [`FetchRefused`] when the queue is full or the log is closed.
    pub fn fetch(&self, fetch: Fetch) -> Result<(), FetchRefused> {
        let queues = self.queues.read().expect(UNPOISONED);
        let Some(Queues { fetches, .. }) = queues.as_ref().filter(|_| !self.is_poisoned()) else {
            return Err(FetchRefused { fetch, why: Why::Closed });
        };
        fetches.try_send(fetch).map_err(|error| FetchRefused { fetch, why: why(&error) })
    }

    /// Asks for a group's log as it is after everything submitted before; it follows by
    /// [`Completions::reloaded`]. This is how a group that failed is loaded again while its appends are
    /// still under way.
    ///
    /// # Errors
    /// When the queue is full or the log is closed.
    pub fn reload(&self, group: GroupId, generation: u64) -> Result<(), Why> {
        let queues = self.queues.read().expect(UNPOISONED);
        let Some(Queues { jobs, .. }) = queues.as_ref().filter(|_| !self.is_poisoned()) else {
            return Err(Why::Closed);
        };
        jobs.try_send(Job::Reload { group, generation }).map_err(|error| why(&error))
    }

    /// Keeps `words` of the host about the node with the next batch or seal, see [`LogStore::note`]. Of
    /// several in between the last ones count. A host reads them with [`LogStore::noted`] when it starts.
    pub fn note(&self, words: Bytes) {
        *self.shared.note.lock().expect(UNPOISONED) = Some(words);
    }

    /// How many batches the store has ever made durable, over all restarts.
    #[must_use]
    pub fn synced_batches(&self) -> u64 {
        self.shared.synced_batches.load(Ordering::Relaxed)
    }

    /// How long ago the oldest write was submitted that the disk is being asked for, or a seal was begun;
    /// `None` while the disk is asked for nothing. What is far older than a sync takes shows a disk that
    /// hangs.
    #[must_use]
    pub fn oldest_unsynced(&self) -> Option<Duration> {
        let submitted_us = self.shared.oldest_us.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_micros(self.shared.now_us().saturating_sub(submitted_us)))
    }

    /// True once a write or sync has failed.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.shared.poisoned.load(Ordering::Acquire)
    }

    /// Takes nothing more, finishes what was accepted, and waits until the threads have ended and the
    /// store is closed. Calling it again does nothing.
    pub fn shutdown(&self) {
        drop(self.queues.write().expect(UNPOISONED).take());
        for thread in self.threads.lock().expect(UNPOISONED).drain(..) {
            // A thread of ours cannot end by a panic: that aborts the process.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal")
            .field("synced_batches", &self.synced_batches())
            .field("poisoned", &self.is_poisoned())
            .finish_non_exhaustive()
    }
}

fn why<T>(error: &TrySendError<T>) -> Why {
    match error {
        TrySendError::Full(_) => Why::Full,
        TrySendError::Disconnected(_) => Why::Closed,
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).expect("no thread for the log")
}

/// Ends the process when its thread panics: the log's order and its completions rest on that thread, and
/// a node that merely stopped acknowledging would go on leading its groups. To be held by the first local
/// of the thread's loop, so that nothing the loop owns is dropped before the process ends.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = thread::current();
            let name = thread.name().unwrap_or("quorate-wal");
            // Without a subscriber the panic hook's message on standard error still tells what happened.
            tracing::error!(thread = name, "a thread of the log panicked: the process ends");
            std::process::abort();
        }
    }
}

/// The locks are held for single moves of values only.
pub(crate) const UNPOISONED: &str = "nothing panics under the locks of the log's handle";
