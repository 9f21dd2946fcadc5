//! The memory twin of the durable logs: a disk that a test can hold, fail and cut the power of.
//!
//! A [`MemDisk`] outlives the processes that write to it; a [`MemLog`] is what one process has open. A
//! batch is first *staged* (written, not synced), then *synced*; [`LogStore::write`] does both, and the
//! simulator does them one by one, so that a crash can fall between. [`MemDisk::crash`] cuts the power:
//! of the staged batches a prefix survives, as recovery of a write-ahead log has it; the one that was torn
//! vanishes as a whole, and so does everything behind it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use quorate_types::{Entry, EntryId, GroupId, HardState, LogIndex, SnapshotMeta};

use crate::error::LogError;
use crate::log_store::{
    LogReader, LogStore, RecoveredLog, Write, Written, assert_append, assert_truncation,
    memberships,
};

/// A disk in memory; clones are handles to the same one.
#[derive(Clone, Default)]
pub struct MemDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What survives a power cut.
    synced: BTreeMap<GroupId, MemGroup>,
    /// Written but not synced, oldest first.
    staged: VecDeque<(Vec<Write>, Option<Bytes>)>,
    /// The host's words about the node.
    noted: Bytes,
    synced_batches: u64,
    syncs: u64,
    /// Which open handle may write; older ones belong to processes that are gone.
    process: u64,
    /// The process met a failed sync.
    failed: bool,
    /// Syncs that still succeed before one fails.
    syncs_before_failure: Option<u64>,
    held: bool,
    waiting_syncs: usize,
    /// A record that was synced can no longer be read; 0 for one that is no entry.
    damaged: Option<(GroupId, LogIndex)>,
}

/// The logs on a [`MemDisk`], opened by one process.
pub struct MemLog {
    disk: MemDisk,
    process: u64,
    to_note: Option<Bytes>,
}

/// What a power cut did to the batches that were not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crash {
    /// Batches that had reached the disk all the same.
    pub survived: usize,
    /// Batches that are gone, the torn one included.
    pub lost: usize,
}

impl MemDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the logs for a new process. A process that had them open before is cut off: its writes and
    /// reads fail. What it had staged is there, as it is after a mere `kill -9`.
    #[must_use]
    pub fn open(&self) -> MemLog {
        let mut state = self.lock();
        state.sync_staged(usize::MAX);
        let process = state.next_process();
        self.shared.changed.notify_all();
        drop(state);
        MemLog { disk: self.clone(), process, to_note: None }
    }

    /// Cuts the power: a prefix of the staged batches, drawn from `seed`, survives. Whatever process had
    /// the logs open is gone, and so are planned failures and holds.
    pub fn crash(&self, seed: u64) -> Crash {
        let mut state = self.lock();
        let staged = state.staged.len();
        let survived = fastrand::Rng::with_seed(seed).usize(0..=staged);
        state.sync_staged(survived);
        state.staged.clear();
        if quorate_types::defect!(TornTailRefused) && survived < staged {
            state.damaged = state.synced.keys().next().map(|&group| (group, LogIndex::ZERO));
        }
        state.next_process();
        self.shared.changed.notify_all();
        Crash { survived, lost: staged - survived }
    }

    /// Damages a record of `group` that was synced, drawn from `seed`: whoever recovers the logs finds
    /// it, and must not take it for the torn end of a log.
    pub fn damage(&self, group: GroupId, seed: u64) {
        let mut state = self.lock();
        let Some(log) = state.synced.get(&group) else { return };
        let index = match log.entries.len() {
            0 => LogIndex::ZERO,
            count => log.entries[fastrand::Rng::with_seed(seed).usize(..count)].id.index,
        };
        state.damaged = Some((group, index));
    }

    /// Makes a sync fail after `successes` more that succeed. The open process can write no more then;
    /// whether the batch survives is decided by the next crash.
    pub fn fail_sync_after(&self, successes: u64) {
        self.lock().syncs_before_failure = Some(successes);
    }

    /// Lets syncs wait until [`release_syncs`](Self::release_syncs): a hung disk.
    pub fn hold_syncs(&self) {
        self.lock().held = true;
    }

    /// Ends [`hold_syncs`](Self::hold_syncs).
    pub fn release_syncs(&self) {
        self.lock().held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until some thread is inside a held sync.
    pub fn wait_for_held_sync(&self) {
        let mut state = self.lock();
        while state.waiting_syncs == 0 {
            state = self.shared.changed.wait(state).expect(UNPOISONED);
        }
    }

    /// Syncs that succeeded, over all processes.
    #[must_use]
    pub fn sync_count(&self) -> u64 {
        self.lock().syncs
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect(UNPOISONED)
    }
}

impl MemLog {
    /// Writes a batch without a sync. Reads and recovery do not see it before it is synced.
    ///
    /// # Errors
    /// As [`LogStore::write`].
    pub fn stage(&mut self, batch: &[Write]) -> Result<Written, LogError> {
        let mut state = self.disk.lock();
        state.check_process(self.process)?;
        state.check_failed()?;
        state.staged.push_back((batch.to_vec(), self.to_note.take()));
        Ok(Written { bytes: batch.iter().map(|write| write.cost_bytes() as u64).sum() })
    }

    /// Makes all staged batches durable. Waits while syncs are held.
    ///
    /// # Errors
    /// As [`LogStore::write`].
    pub fn sync(&mut self) -> Result<(), LogError> {
        let mut state = self.released()?;
        match &mut state.syncs_before_failure {
            Some(0) => {
                state.syncs_before_failure = None;
                if quorate_types::defect!(FailedSyncRetried) {
                    state.staged.clear();
                    return Ok(());
                }
                state.failed = true;
                return Err(LogError::Engine("sync: input/output error (injected)".to_owned()));
            }
            Some(successes) => *successes -= 1,
            None => {}
        }
        state.sync_staged(usize::MAX);
        state.syncs += 1;
        Ok(())
    }
}

impl MemLog {
    /// The disk, once syncs are not held.
    fn released(&self) -> Result<MutexGuard<'_, State>, LogError> {
        let mut state = self.disk.lock();
        state.waiting_syncs += 1;
        self.disk.shared.changed.notify_all();
        while state.held && state.process == self.process {
            state = self.disk.shared.changed.wait(state).expect(UNPOISONED);
        }
        state.waiting_syncs -= 1;
        state.check_process(self.process)?;
        state.check_failed()?;
        Ok(state)
    }
}

impl LogStore for MemLog {
    fn write(&mut self, batch: &[Write]) -> Result<Written, LogError> {
        let written = self.stage(batch)?;
        self.sync()?;
        Ok(written)
    }

    /// This disk knows by itself what was synced.
    fn seal(&mut self) -> Result<(), LogError> {
        let to_note = self.to_note.take();
        let mut state = self.released()?;
        state.noted = to_note.unwrap_or_else(|| state.noted.clone());
        Ok(())
    }

    fn note(&mut self, words: Bytes) {
        self.to_note = Some(words);
    }

    fn noted(&self) -> Bytes {
        self.disk.lock().noted.clone()
    }

    fn recover(&mut self) -> Result<BTreeMap<GroupId, RecoveredLog>, LogError> {
        let mut state = self.disk.lock();
        state.check_process(self.process)?;
        if let Some((group, index)) = state.damaged {
            if !quorate_types::defect!(DamageTakenForTail) {
                let what = "a synced record cannot be read".to_owned();
                return Err(LogError::Damaged { group, index, what });
            }
            state.damaged = None;
            if let Some(log) = state.synced.get_mut(&group) {
                log.entries.retain(|entry| entry.id.index < index);
            }
        }
        Ok(state.synced.iter().map(|(group, log)| (*group, log.recovered())).collect())
    }

    fn log(&self, group: GroupId) -> Option<RecoveredLog> {
        self.disk.lock().synced.get(&group).map(MemGroup::recovered)
    }

    fn synced_batches(&self) -> u64 {
        self.disk.lock().synced_batches
    }

    fn rewritten_bytes(&self) -> u64 {
        0
    }

    fn reader(&self) -> Box<dyn LogReader> {
        Box::new(MemReader { disk: self.disk.clone(), process: self.process })
    }
}

struct MemReader {
    disk: MemDisk,
    process: u64,
}

impl LogReader for MemReader {
    fn read(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let state = self.disk.lock();
        state.check_process(self.process)?;
        let log = state.synced.get(&group).ok_or(LogError::UnknownGroup(group))?;
        let base = log.snapshot.last.index;
        if from <= base {
            return Err(LogError::Compacted { group, first: base.next() });
        }
        let mut cost = 0;
        let wanted = log.entries.iter().skip(from.since(base) as usize - 1);
        let within = wanted.take_while(|entry| {
            let first = cost == 0;
            cost += entry.cost_bytes();
            entry.id.index <= to && (first || cost <= bytes_max)
        });
        Ok(within.cloned().collect())
    }
}

impl State {
    fn next_process(&mut self) -> u64 {
        self.process += 1;
        self.failed = false;
        self.held = false;
        self.syncs_before_failure = None;
        self.process
    }

    fn check_process(&self, process: u64) -> Result<(), LogError> {
        if process == self.process {
            Ok(())
        } else {
            Err(LogError::Engine("the process that opened this log is gone".to_owned()))
        }
    }

    fn check_failed(&self) -> Result<(), LogError> {
        if self.failed { Err(LogError::Poisoned) } else { Ok(()) }
    }

    fn sync_staged(&mut self, batches_max: usize) {
        for (batch, note) in self.staged.drain(..batches_max.min(self.staged.len())) {
            for write in batch {
                apply(&mut self.synced, write);
            }
            if let Some(words) = note {
                self.noted = words;
            }
            self.synced_batches += 1;
        }
    }
}

/// One group's log: `entries` follow `snapshot.last` without a gap.
struct MemGroup {
    label: Bytes,
    hard_state: HardState,
    snapshot: SnapshotMeta,
    entries: VecDeque<Entry>,
    intent: Option<Bytes>,
}

impl MemGroup {
    fn last(&self) -> EntryId {
        self.entries.back().map_or(self.snapshot.last, |entry| entry.id)
    }

    /// The id of an entry between the base and the last one, both included.
    fn id_at(&self, index: LogIndex) -> EntryId {
        match index.since(self.snapshot.last.index) {
            0 => self.snapshot.last,
            offset => self.entries[offset as usize - 1].id,
        }
    }

    fn recovered(&self) -> RecoveredLog {
        let mut terms: Vec<EntryId> = Vec::new();
        for entry in &self.entries {
            if terms.last().is_none_or(|run| run.term != entry.id.term) {
                terms.push(entry.id);
            }
        }
        RecoveredLog {
            label: self.label.clone(),
            hard_state: self.hard_state,
            snapshot: self.snapshot.clone(),
            memberships: memberships(&self.entries).collect(),
            terms,
            last: self.last(),
            intent: self.intent.clone(),
        }
    }
}

fn apply(logs: &mut BTreeMap<GroupId, MemGroup>, write: Write) {
    match write {
        Write::Create { group, label, snapshot } => {
            let hard_state = logs.get(&group).map_or_else(HardState::default, |log| log.hard_state);
            let (entries, intent) = (VecDeque::new(), None);
            logs.insert(group, MemGroup { label, hard_state, snapshot, entries, intent });
        }
        Write::Append { group, hard_state, entries } => {
            let log = logs.get_mut(&group).unwrap_or_else(|| panic!("append to unknown {group:?}"));
            log.hard_state = hard_state.unwrap_or(log.hard_state);
            let Some(first) = entries.first().map(|entry| entry.id.index) else { return };
            let base = log.snapshot.last;
            assert_append(group, base, log.last(), |index| log.id_at(index), &entries);
            let from = first.since(base.index) as usize - 1;
            let count = entries.len();
            let overwritten = log.entries.split_off(from);
            log.entries.extend(entries);
            if quorate_types::defect!(OverwrittenEntriesReturn) {
                log.entries.extend(overwritten.into_iter().skip(count));
            }
        }
        Write::TruncatePrefix { group, through } => {
            let Some(log) = logs.get_mut(&group) else { return };
            assert_truncation(group, through, log.last());
            let count = through.since(log.snapshot.last.index) as usize;
            log.snapshot.last = log.id_at(through.max(log.snapshot.last.index));
            if let Some((_, membership)) = memberships(log.entries.range(..count)).last() {
                log.snapshot.membership = membership;
            }
            log.entries.drain(..count);
        }
        Write::Intend { group, intent } => {
            let log =
                logs.get_mut(&group).unwrap_or_else(|| panic!("intent for unknown {group:?}"));
            log.intent = Some(intent).filter(|intent| !intent.is_empty());
        }
        Write::Destroy { group } => {
            logs.remove(&group);
        }
    }
}

/// A thread that panics on a disk takes its test down with it.
const UNPOISONED: &str = "no thread panicked while it held the disk";
