//! A node's disk: whole appends, synced in order; what is not synced may be lost.

use std::collections::VecDeque;

use bytes::Bytes;
use quorate_raft::{Append, LogFetch, LogState};
use quorate_types::{Entry, EntryId, HardState, LogIndex, Membership, Payload, SnapshotMeta};

/// What a state machine holds: every command applied, with its index.
pub(crate) type Content = Vec<(LogIndex, Bytes)>;

/// What is on its way to a disk.
#[derive(Debug)]
pub(crate) enum Write {
    Append(Append),
    /// A snapshot takes the place of everything.
    Install(SnapshotMeta, Content),
}

/// The log of one node, and the writes on their way to it.
#[derive(Debug)]
pub(crate) struct Disk {
    snapshot: SnapshotMeta,
    hard_state: HardState,
    entries: Vec<Entry>,
    unsynced: VecDeque<Write>,
}

impl Disk {
    pub(crate) fn new(snapshot: SnapshotMeta) -> Self {
        let hard_state = HardState::default();
        Self { snapshot, hard_state, entries: Vec::new(), unsynced: VecDeque::new() }
    }

    pub(crate) fn write(&mut self, write: Write) {
        self.unsynced.push_back(write);
    }

    /// Syncs the oldest write and gives it back, for its ticket and promises, or its content.
    pub(crate) fn sync(&mut self) -> Option<Write> {
        let write = self.unsynced.pop_front()?;
        match &write {
            Write::Append(append) => {
                self.hard_state = append.hard_state.unwrap_or(self.hard_state);
                overwrite(self.snapshot.last, &mut self.entries, &append.entries);
            }
            Write::Install(meta, _) => {
                self.snapshot = meta.clone();
                self.entries.clear();
            }
        }
        Some(write)
    }

    /// The log begins after `meta.last` now.
    pub(crate) fn compact(&mut self, meta: SnapshotMeta) {
        self.entries.retain(|entry| entry.id.index > meta.last.index);
        self.snapshot = meta;
    }

    pub(crate) fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    pub(crate) fn lose_unsynced(&mut self) {
        self.unsynced.clear();
    }

    /// Where the log begins.
    pub(crate) fn base(&self) -> LogIndex {
        self.snapshot.last.index
    }

    pub(crate) fn recover(&self, applied: LogIndex) -> LogState {
        let mut terms: Vec<EntryId> = Vec::new();
        for entry in &self.entries {
            if terms.last().is_none_or(|run| run.term != entry.id.term) {
                terms.push(entry.id);
            }
        }
        LogState {
            hard_state: self.hard_state,
            snapshot: self.snapshot.clone(),
            terms,
            memberships: memberships(&self.entries),
            last: self.entries.last().map_or(self.snapshot.last, |entry| entry.id),
            applied,
        }
    }

    /// What the log holds when everything written so far is synced.
    pub(crate) fn written(&self) -> Vec<Entry> {
        let mut entries = self.entries.clone();
        for write in &self.unsynced {
            match write {
                Write::Append(append) => {
                    overwrite(self.snapshot.last, &mut entries, &append.entries);
                }
                Write::Install(..) => entries.clear(),
            }
        }
        entries
    }

    pub(crate) fn read(&self, fetch: &LogFetch) -> Vec<Entry> {
        let mut bytes = 0;
        self.written()
            .into_iter()
            .filter(|entry| entry.id.index >= fetch.from && entry.id.index <= fetch.to)
            .take_while(|entry| {
                let is_first = bytes == 0;
                bytes += entry.cost_bytes();
                is_first || bytes <= fetch.bytes_max
            })
            .collect()
    }
}

fn memberships(entries: &[Entry]) -> Vec<(LogIndex, Membership)> {
    let changes = entries.iter().filter_map(|entry| match &entry.payload {
        Payload::Membership(membership) => Some((entry.id.index, (**membership).clone())),
        Payload::Empty | Payload::Command(_) => None,
    });
    changes.collect()
}

/// The first of `new` takes the place of whatever was at its index and beyond.
fn overwrite(base: EntryId, entries: &mut Vec<Entry>, new: &[Entry]) {
    if let Some(first) = new.first() {
        entries.truncate(first.id.index.since(base.index.next()) as usize);
        entries.extend_from_slice(new);
    }
}
