//! The one thread that writes: drain the queue, write one batch, sync once, report once.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use quorate_types::GroupId;

use crate::error::LogError;
use crate::inbox::Inbox;
use crate::log_store::{LogStore, Write};
use crate::metrics::WalMetrics;
use crate::wal::{AbortOnPanic, Completions, Persisted, Shared, Task, UNPOISONED, WalConfig};

/// The engine sums up over its threads what it has written again: not for every batch.
const REWRITTEN_EVERY_BATCHES: u64 = 64;

/// What waits for the writer.
pub(crate) enum Job {
    /// Make this durable.
    Write { task: Task, cost_bytes: usize, submitted_us: u64 },
    /// Tell what the log holds once everything before is durable.
    Reload { group: GroupId, generation: u64 },
}

pub(crate) struct Writer {
    store: Box<dyn LogStore>,
    jobs: Inbox<Job>,
    completions: Arc<dyn Completions>,
    shared: Arc<Shared>,
    metrics: WalMetrics,
    batch_bytes_max: usize,
    seal_after: Duration,
    /// The last batch has nothing behind it yet.
    unsealed: bool,
    batches: u64,
    /// The batch under construction, in the order of submission.
    batch: Vec<Write>,
    batch_cost_bytes: usize,
    /// Whom to tell, in the order of submission; one element for each write.
    done: Vec<Persisted>,
}

impl Writer {
    pub(crate) fn new(
        store: Box<dyn LogStore>,
        jobs: Inbox<Job>,
        completions: Arc<dyn Completions>,
        shared: Arc<Shared>,
        metrics: WalMetrics,
        config: &WalConfig,
    ) -> Self {
        let (batch, done) = (Vec::new(), Vec::new());
        Self {
            store,
            jobs,
            completions,
            shared,
            metrics,
            batch_bytes_max: config.batch_bytes_max,
            seal_after: config.seal_after,
            unsealed: false,
            batches: 0,
            batch,
            batch_cost_bytes: 0,
            done,
        }
    }

    /// Runs until every sender is gone and the queue is empty, or until a write fails.
    pub(crate) fn run(mut self) {
        let _abort = AbortOnPanic;
        while let Some(first) = self.next() {
            let reload = first.and_then(|first| self.gather(first));
            if let Err(error) = self.write() {
                self.poison(&error);
                return;
            }
            if let Some((group, generation)) = reload {
                self.completions.reloaded(group, generation, self.store.log(group));
            }
        }
    }

    /// The next job; `Some(None)` when the last batch has waited long enough for one behind it, and `None`
    /// at the end, once that batch is sealed.
    fn next(&mut self) -> Option<Option<Job>> {
        if !self.unsealed {
            return self.jobs.recv().map(Some);
        }
        match self.jobs.recv_deadline(Instant::now() + self.seal_after) {
            Ok(job) => Some(Some(job)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Some(None),
        }
    }

    /// Takes what waits, up to the batch's bytes or to a reload, which needs everything before it to be
    /// durable.
    fn gather(&mut self, first: Job) -> Option<(GroupId, u64)> {
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Write { task, cost_bytes, submitted_us } => {
                    let Task { write, generation, ticket } = task;
                    if self.batch.is_empty() {
                        self.shared.oldest_us.store(submitted_us + 1, Ordering::Relaxed);
                    }
                    self.done.push(Persisted { group: write.group(), generation, ticket });
                    self.batch.push(write);
                    self.batch_cost_bytes += cost_bytes;
                }
                Job::Reload { group, generation } => return Some((group, generation)),
            }
            let room = self.batch_cost_bytes < self.batch_bytes_max;
            next = if room { self.jobs.try_recv() } else { None };
        }
        None
    }

    fn write(&mut self) -> Result<(), LogError> {
        if self.batch.is_empty() {
            return self.seal();
        }
        self.take_note();
        self.metrics.queue_tasks.set(self.jobs.len() as f64);
        let start = Instant::now();
        let written = self.store.write(&self.batch)?;
        self.metrics.sync_seconds.record(start.elapsed());
        self.unsealed = true;
        self.shared.synced_batches.store(self.store.synced_batches(), Ordering::Relaxed);
        self.shared.oldest_us.store(0, Ordering::Relaxed);

        // Room first: whoever was refused tries again when a completion comes.
        let cost_bytes = mem::take(&mut self.batch_cost_bytes);
        let before = self.shared.queued_bytes.fetch_sub(cost_bytes, Ordering::Relaxed);
        self.metrics.queue_bytes.set((before - cost_bytes) as f64);
        keep_last_tickets(&mut self.done);
        self.completions.persisted(&self.done);

        let entries: usize = self.batch.iter().map(|write| write.entries().len()).sum();
        let all = self.batch.iter().flat_map(Write::entries);
        let entry_bytes: usize = all.map(|entry| entry.payload.len()).sum();
        let groups = self.done.chunk_by(|one, next| one.group == next.group).count();
        self.metrics.batch_entries.record(entries as f64);
        self.metrics.batch_groups.record(groups as f64);
        self.metrics.batch_bytes.record(written.bytes as f64);
        self.metrics.written_bytes.increment(written.bytes);
        self.metrics.syncs.increment(1);
        self.metrics.entries.increment(entries as u64);
        self.metrics.entry_bytes.increment(entry_bytes as u64);
        self.batches += 1;
        if self.batches.is_multiple_of(REWRITTEN_EVERY_BATCHES) {
            self.metrics.rewritten_bytes.absolute(self.store.rewritten_bytes());
        }

        self.batch.clear();
        self.done.clear();
        Ok(())
    }

    fn take_note(&mut self) {
        if let Some(words) = self.shared.note.lock().expect(UNPOISONED).take() {
            self.store.note(words);
        }
    }

    /// Puts something behind the last batch, once.
    fn seal(&mut self) -> Result<(), LogError> {
        if mem::take(&mut self.unsealed) {
            self.take_note();
            // What is submitted meanwhile waits behind it, and a disk that hangs shows here too.
            self.shared.oldest_us.store(self.shared.now_us() + 1, Ordering::Relaxed);
            self.store.seal()?;
            self.shared.oldest_us.store(0, Ordering::Relaxed);
            self.metrics.seals.increment(1);
            self.metrics.rewritten_bytes.absolute(self.store.rewritten_bytes());
        }
        Ok(())
    }

    /// The order matters: whoever hears of it must find later submits refused.
    fn poison(&self, error: &LogError) {
        tracing::error!(%error, "the log failed: nothing is acknowledged any more");
        self.shared.poisoned.store(true, Ordering::Release);
        self.metrics.poisoned.set(1.0);
        self.completions.poisoned(error);
    }
}

/// Leaves the last submitted ticket of each (group, generation), in ascending order of these.
fn keep_last_tickets(done: &mut Vec<Persisted>) {
    // Stable, so that the last of equals is the last submitted, whatever numbers the tickets have.
    done.sort_by_key(|one| (one.group, one.generation));
    // `dedup_by` removes its first argument, the later one: move the ticket over first.
    done.dedup_by(|later, kept| {
        let same = (later.group, later.generation) == (kept.group, kept.generation);
        if same {
            kept.ticket = later.ticket;
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_completion_stands_for_all_tickets_of_a_group_and_generation() {
        let persisted =
            |group, generation, ticket| Persisted { group: GroupId(group), generation, ticket };
        let mut done = vec![
            persisted(2, 1, 7),
            persisted(1, 1, 4),
            persisted(2, 1, 8),
            persisted(2, 2, 0),
            persisted(1, 1, 5),
            persisted(2, 1, 9),
        ];
        keep_last_tickets(&mut done);
        assert_eq!(done, [persisted(1, 1, 5), persisted(2, 1, 9), persisted(2, 2, 0)]);
    }
}
