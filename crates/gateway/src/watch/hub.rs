//! The registry between the backend's feed and the streams.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;
use tonic::Status;

use super::batch::Batch;
use super::ending::{Ending, Outlook, look_interval};
use super::prev_kvs::PrevKvs;
use super::registry::{Bounds, Census, Registry};
use crate::backend::{Backend, BackendError, Consistency, Happened};
use crate::desk::Desk;
use crate::error::ApiError;
use crate::metrics::WatchMetrics;

/// Pause before a feed that failed is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Reads for watchers at a time: they have the disk in common with those who write.
const READS_MAX: usize = 4;

/// All watches of a gateway. Its task runs while there are streams.
pub(crate) struct Hub<B> {
    pub(crate) desk: Arc<Desk<B>>,
    pub(crate) metrics: WatchMetrics,
    registry: Mutex<Registry>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    ending: watch::Sender<Ending>,
    reads: Semaphore,
    pub(super) prev_kvs: PrevKvs,
}

impl<B: Backend> Hub<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>, metrics: WatchMetrics) -> Self {
        Self {
            desk,
            metrics,
            registry: Mutex::new(Registry::new(Bounds::default())),
            task: tokio::sync::Mutex::new(None),
            ending: watch::Sender::default(),
            reads: Semaphore::new(READS_MAX),
            prev_kvs: PrevKvs::default(),
        }
    }

    /// Ends all streams, and the task.
    pub(crate) fn close(&self) {
        self.ending.send_modify(|ending| ending.closed = true);
    }

    /// Resolves when [`close`](Self::close) was called.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + 'static + use<B> {
        let mut ending = self.ending();
        // The hub may be gone by then, which is an end too.
        async move { drop(ending.wait_for(|ending| ending.closed).await) }
    }

    pub(crate) fn ending(&self) -> watch::Receiver<Ending> {
        self.ending.subscribe()
    }

    /// Held by whoever reads for watchers, while it reads: never while it waits for a client, or for what another one
    /// reads.
    pub(crate) async fn turn_to_read(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.reads.acquire().await.map_err(|_| ApiError::Stopped.into())
    }

    /// What `act` does to the registry, counted.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Registry) -> T) -> T {
        let mut registry = self.lock();
        let before = registry.census();
        let result = act(&mut registry);
        let after = registry.census();
        if before != after {
            self.metrics.show(before, after);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // A change of the registry that panics ends its stream's task; the registry is whole again when
        // that stream's part is gone.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that the feed is followed. Whoever asks has opened its stream before.
    pub(crate) async fn ensure_followed(self: &Arc<Self>) -> Result<(), BackendError> {
        let mut task = self.task.lock().await;
        if task.as_ref().is_some_and(|task| !task.is_finished()) {
            return Ok(());
        }
        self.restart().await?;
        *task = Some(tokio::spawn(Arc::clone(self).run()));
        Ok(())
    }

    /// Begins at the revision as it is now, or at the highest that was answered here, if the replica is not
    /// there yet.
    async fn restart(&self) -> Result<(), BackendError> {
        let (revision, raft_term) = self.desk.revision(Consistency::Serializable).await?;
        self.with(|registry| registry.restart(revision, raft_term));
        Ok(())
    }

    async fn run(self: Arc<Self>) {
        let mut ending = self.ending();
        tokio::select! {
            () = self.follow() => {}
            () = self.look_for_leader() => {}
            _ = ending.wait_for(|ending| ending.closed) => {}
        }
    }

    /// Until there are no streams.
    async fn follow(&self) {
        loop {
            let mut feed = self.desk.backend.follow(self.lock().through());
            while let Some(item) = feed.next().await {
                if self.take(item).await {
                    return;
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// True at the end.
    async fn take(&self, item: Result<Happened, BackendError>) -> bool {
        match item {
            Ok(Happened::Batch(batch)) => {
                self.with(|registry| registry.deliver(Batch::new(batch, registry.fed_bytes())));
            }
            Ok(Happened::Compacted) => {
                // Everybody reads for himself then, and finds out whether that is about him.
                if let Err(error) = self.restart().await {
                    tracing::debug!(%error, "watches cannot go on yet");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the feed of events ended; it is asked for again")
            }
        }
        if self.lock().census().streams > 0 {
            return false;
        }
        // Whoever opens a stream from now on waits for the task to be gone.
        let mut task = self.task.lock().await;
        let ends = self.lock().census().streams == 0;
        if ends {
            *task = None;
            // Nobody looks for a leader from now on: a stream that came and found this would end before it could
            // make anybody look again. Something was heard just now.
            self.ending.send_modify(|ending| {
                *ending = Ending { closed: ending.closed, ..Ending::default() };
            });
        }
        ends
    }

    async fn look_for_leader(&self) {
        let interval = look_interval(self.desk.config.election_timeout);
        let mut outlook = Outlook::default();
        loop {
            tokio::time::sleep(interval).await;
            let backend = &self.desk.backend;
            let (has_leader, is_cut_off) =
                (backend.node_status().leader.is_some(), backend.is_cut_off());
            self.ending.send_if_modified(|ending| {
                let before = *ending;
                outlook.look(has_leader, is_cut_off, ending);
                if ending.cut_off && !before.cut_off {
                    tracing::warn!("this node is cut off from the cluster: its watch streams end");
                }
                *ending != before
            });
        }
    }
}

impl WatchMetrics {
    fn show(&self, before: Census, after: Census) {
        let change = |gauge: &metrics::Gauge, before: usize, after: usize| {
            if before != after {
                gauge.increment(after as f64 - before as f64);
            }
        };
        change(&self.streams, before.streams, after.streams);
        change(&self.watchers, before.watchers, after.watchers);
        change(&self.slow_watchers, before.lagging, after.lagging);
        change(&self.pending_events, before.pending, after.pending);
    }
}
