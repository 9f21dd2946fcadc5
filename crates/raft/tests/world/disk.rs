//! A disk that writes whole appends, syncs them in order, and forgets in a crash what was not
//! synced.

use std::collections::VecDeque;

use quorate_raft::{Append, LogState, Ticket};
use quorate_types::{
    Entry, EntryId, HardState, LogIndex, Membership, Message, Payload, SnapshotMeta,
};

/// One node's disk.
pub(crate) struct Disk {
    snapshot: SnapshotMeta,
    hard_state: HardState,
    entries: Vec<Entry>,
    unsynced: VecDeque<Append>,
}

impl Disk {
    pub(crate) fn new(snapshot: SnapshotMeta) -> Self {
        let hard_state = HardState::default();
        Self { snapshot, hard_state, entries: Vec::new(), unsynced: VecDeque::new() }
    }

    pub(crate) fn write(&mut self, append: Append) {
        self.unsynced.push_back(append);
    }

    pub(crate) fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Syncs the oldest append. Returns its ticket and what it releases.
    pub(crate) fn sync(&mut self) -> Option<(Ticket, Vec<Message>)> {
        let append = self.unsynced.pop_front()?;
        let commit = self.hard_state.commit;
        if let Some(hard_state) = append.hard_state {
            assert!(hard_state.term >= self.hard_state.term, "a durable term went back");
            assert!(hard_state.commit >= self.hard_state.commit, "a durable commit went back");
            if hard_state.term == self.hard_state.term {
                let vote = self.hard_state.vote;
                assert!(vote.is_none() || vote == hard_state.vote, "a second vote in one term");
            }
            self.hard_state = hard_state;
        }
        if let Some(first) = append.entries.first() {
            let keep = first.id.index.since(self.snapshot.last.index.next()) as usize;
            assert!(keep <= self.entries.len(), "a hole in the log before {}", first.id);
            assert!(first.id.index > commit, "committed entries overwritten from {}", first.id);
            self.entries.truncate(keep);
            self.entries.extend(append.entries);
        }
        Some((append.ticket, append.release))
    }

    /// Power is lost; `also_written` of the unsynced appends happened to reach the platter.
    pub(crate) fn crash(&mut self, also_written: usize) {
        for _ in 0..also_written {
            self.sync();
        }
        self.unsynced.clear();
    }

    pub(crate) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(crate) fn last(&self) -> EntryId {
        self.entries.last().map_or(self.snapshot.last, |entry| entry.id)
    }

    pub(crate) fn id_at(&self, index: LogIndex) -> Option<EntryId> {
        if index == self.snapshot.last.index {
            return Some(self.snapshot.last);
        }
        let at = index.value().checked_sub(self.snapshot.last.index.value() + 1)?;
        self.entries.get(at as usize).map(|entry| entry.id)
    }

    /// The log begins after `meta.last` now.
    pub(crate) fn compact(&mut self, meta: SnapshotMeta) {
        self.entries.retain(|entry| entry.id.index > meta.last.index);
        self.snapshot = meta;
    }

    /// A snapshot takes the place of the log.
    pub(crate) fn install(&mut self, meta: SnapshotMeta) {
        assert!(self.unsynced.is_empty(), "appends are synced in order, and installs among them");
        assert!(meta.last.index > self.hard_state.commit, "an install over committed entries");
        self.entries.clear();
        self.snapshot = meta;
    }

    pub(crate) fn base(&self) -> LogIndex {
        self.snapshot.last.index
    }

    /// What a restarted replica finds.
    pub(crate) fn recover(&self, applied: LogIndex) -> LogState {
        let mut terms: Vec<EntryId> = Vec::new();
        for entry in &self.entries {
            if terms.last().is_none_or(|run| run.term != entry.id.term) {
                terms.push(entry.id);
            }
        }
        let memberships = self.entries.iter().filter_map(|entry| match &entry.payload {
            Payload::Membership(membership) => Some((entry.id.index, (**membership).clone())),
            Payload::Empty | Payload::Command(_) => None,
        });
        LogState {
            hard_state: self.hard_state,
            snapshot: self.snapshot.clone(),
            terms,
            memberships: memberships.collect(),
            last: self.last(),
            applied,
        }
    }

    /// The membership that is in force for who holds everything written, synced or not.
    pub(crate) fn membership(&self) -> Membership {
        let last = LogIndex(u64::MAX);
        let entries = self.read(self.snapshot.last.index.next(), last, usize::MAX);
        let latest = entries.into_iter().rev().find_map(|entry| match entry.payload {
            Payload::Membership(membership) => Some(*membership),
            Payload::Empty | Payload::Command(_) => None,
        });
        latest.unwrap_or_else(|| self.snapshot.membership.clone())
    }

    /// Reads back, from what is written, synced or not.
    pub(crate) fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let mut written = self.entries.clone();
        for append in &self.unsynced {
            if let Some(first) = append.entries.first() {
                let keep = first.id.index.since(self.snapshot.last.index.next()) as usize;
                written.truncate(keep);
                written.extend(append.entries.iter().cloned());
            }
        }
        let mut bytes = 0;
        let wanted = written.into_iter().filter(|e| e.id.index >= from && e.id.index <= to);
        wanted
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.cost_bytes();
                first || bytes <= bytes_max
            })
            .collect()
    }
}
