//! What the log reports, handed on to whom it concerns.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_group::Generation;
use quorate_raft::Ticket;
use quorate_types::{Entry, GroupId};
use quorate_wal::{Completions, Fetch, LogError, Persisted, RecoveredLog, Task, Wal, Why, Write};
use tokio::sync::oneshot;

use crate::actor::Input;
use crate::router::Router;

/// The exit code of a node whose log or state failed: it acknowledged nothing after the failure.
pub const EXIT_STORAGE_FAILED: i32 = 70;

/// Generations from here on are no lives of groups: each names one write of the host's own, so that its
/// completion can be told from those of the group's replica.
const HOST_WRITES: u64 = 1 << 63;

/// How long a write of the host waits for room in the log's queue before it is offered again.
const ROOM_INTERVAL: Duration = Duration::from_millis(5);

/// Completions of the log, on the log's own threads: nothing here waits.
pub(crate) struct LogCompletions {
    router: Arc<Router>,
    /// Who waits for a write of the host's own, by the number that stands for its generation.
    host_writes: Mutex<BTreeMap<u64, oneshot::Sender<()>>>,
    host_writes_made: AtomicU64,
}

/// The log takes nothing more: the node is stopping, or its log has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the log is closed")]
pub(crate) struct LogClosed;

impl LogCompletions {
    pub(crate) fn new(router: Arc<Router>) -> Self {
        Self { router, host_writes: Mutex::default(), host_writes_made: AtomicU64::new(0) }
    }

    /// Makes a write of the host's own durable, behind everything that was submitted before. Waits for
    /// room in the log's queue.
    ///
    /// # Errors
    /// When the log takes nothing more; whether the write is durable is not known then.
    pub(crate) async fn write(&self, wal: &Wal, write: Write) -> Result<(), LogClosed> {
        let (sender, written) = oneshot::channel();
        let number = self.expect(sender);
        let mut task = Task { write, generation: number, ticket: 0 };
        loop {
            let Err(refused) = wal.submit(task) else { break };
            if refused.why == Why::Closed {
                self.host_writes().remove(&number);
                return Err(LogClosed);
            }
            task = *refused.task;
            tokio::time::sleep(ROOM_INTERVAL).await;
        }
        written.await.map_err(|_| LogClosed)
    }

    /// The number that stands for a write of the host's own instead of a generation; `written` fires when
    /// that is durable.
    pub(crate) fn expect(&self, written: oneshot::Sender<()>) -> u64 {
        let number = HOST_WRITES + self.host_writes_made.fetch_add(1, Ordering::Relaxed);
        self.host_writes().insert(number, written);
        number
    }

    /// The write that `number` stands for was never submitted: whoever waits hears that.
    pub(crate) fn forget(&self, number: u64) {
        self.host_writes().remove(&number);
    }

    fn host_writes(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<()>>> {
        self.host_writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, group: GroupId, input: Input) {
        // A group that has left needs no completions.
        if let Some(resident) = self.router.residents.load().get(&group) {
            drop(self.router.tell(resident, input));
        }
    }
}

impl Completions for LogCompletions {
    fn persisted(&self, done: &[Persisted]) {
        for &Persisted { group, generation, ticket } in done {
            if generation >= HOST_WRITES {
                if let Some(sender) = self.host_writes().remove(&generation) {
                    // Whoever waited may have given up.
                    let _ = sender.send(());
                }
                continue;
            }
            let (generation, ticket) = (Generation(generation), Ticket(ticket));
            self.tell(group, Input::Persisted { generation, ticket });
        }
    }

    fn fetched(&self, fetch: Fetch, entries: Result<Vec<Entry>, LogError>) {
        let Fetch { group, generation, from, to, .. } = fetch;
        if let Err(error @ (LogError::Damaged { .. } | LogError::DamagedEngine(_))) = &entries {
            tracing::error!(%error, "the log is damaged: the node stops, and is judged at its next start");
            std::process::exit(EXIT_STORAGE_FAILED);
        }
        let entries = entries.unwrap_or_else(|error| {
            tracing::error!(%group, %from, %to, %error, "old entries cannot be read");
            Vec::new()
        });
        let generation = Generation(generation);
        self.tell(group, Input::Fetched { generation, fetch, entries });
    }

    fn reloaded(&self, group: GroupId, generation: u64, log: Option<RecoveredLog>) {
        let (generation, log) = (Generation(generation), log.map(Box::new));
        self.tell(group, Input::LogLoaded { generation, log });
    }

    fn poisoned(&self, error: &LogError) {
        tracing::error!(
            %error,
            "the log failed: nothing is acknowledged any more, and the node stops"
        );
        std::process::exit(EXIT_STORAGE_FAILED);
    }
}
