//! The replica's log: a bounded tail of entries in memory, and how far each thing has come.

use std::collections::VecDeque;

use quorate_types::{Entry, EntryId, LogIndex, Term};

use crate::term_map::TermMap;

/// Bytes of entries handed out to be applied and not yet reported as applied. When they are
/// exceeded no more are handed out until the applier has caught up, so that a replica that replays
/// a long log does not put all of it in memory.
pub const APPLYING_BYTES_MAX: usize = 8 << 20;

/// Below this capacity an emptied cache keeps its memory.
const CACHE_CAPACITY_KEPT: usize = 64;

/// The log of one replica.
///
/// - `base <= applied <= applying <= min(commit, durable)`, and `commit, durable <= last`.
/// - `durable < pending`: `[pending, last]` has not been handed out to be written.
/// - The cache holds the entries up to `last` from some index on; that index is at most
///   `min(durable, applied) + 1`, or `last + 1` when the cache is empty; or more after the state was
///   replaced by an earlier one.
/// - Committed entries are never changed or removed.
#[derive(Debug)]
pub(crate) struct Log {
    terms: TermMap,
    cache: VecDeque<Entry>,
    cached_bytes: usize,
    cached_bytes_max: usize,
    /// The first entry that no append has carried yet.
    pending: LogIndex,
    pending_bytes: usize,
    durable: LogIndex,
    commit: LogIndex,
    applying: LogIndex,
    applied: LogIndex,
    /// Last index and bytes of each run handed out to be applied, oldest first.
    applying_runs: VecDeque<(LogIndex, usize)>,
    applying_bytes: usize,
}

/// What can be applied next.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Applicable {
    /// Nothing now.
    Nothing,
    /// The entries from the applying index on are in memory.
    Cached,
    /// Entries from `from` to `to` must be read back first.
    OnDisk { from: LogIndex, to: LogIndex },
}

impl Log {
    pub(crate) fn new(
        terms: TermMap,
        commit: LogIndex,
        applied: LogIndex,
        cached_bytes_max: usize,
    ) -> Self {
        let last = terms.last().index;
        Self {
            terms,
            cache: VecDeque::new(),
            cached_bytes: 0,
            cached_bytes_max,
            pending: last.next(),
            pending_bytes: 0,
            durable: last,
            commit,
            applying: applied,
            applied,
            applying_runs: VecDeque::new(),
            applying_bytes: 0,
        }
    }

    /// Adds entries that follow the last one.
    pub(crate) fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            self.terms.append(entry.id);
            let bytes = entry.cost_bytes();
            self.cached_bytes += bytes;
            self.pending_bytes += bytes;
            self.cache.push_back(entry);
        }
    }

    /// Removes the entries from `index` on, which another leader's entries are about to replace.
    ///
    /// # Panics
    /// When a committed entry would go: Leader Completeness is broken, and going on would lose it.
    pub(crate) fn truncate(&mut self, index: LogIndex) {
        assert!(
            index > self.commit,
            "asked to truncate at {index}, but {} is committed (last {})",
            self.commit,
            self.last()
        );
        while let Some(entry) = self.cache.back()
            && entry.id.index >= index
        {
            let bytes = entry.cost_bytes();
            self.cached_bytes -= bytes;
            if entry.id.index >= self.pending {
                self.pending_bytes -= bytes;
            }
            self.cache.pop_back();
        }
        self.terms.truncate(index);
        self.pending = self.pending.min(index);
        self.durable = self.durable.min(self.last().index);
    }

    /// Takes a copy of the entries that no append has carried yet, and their bytes.
    pub(crate) fn take_pending(&mut self) -> (Vec<Entry>, usize) {
        let from = self.cache.len() - self.last().index.next().since(self.pending) as usize;
        let entries = self.cache.range(from..).cloned().collect();
        self.pending = self.last().index.next();
        (entries, std::mem::take(&mut self.pending_bytes))
    }

    /// The entries up to `index` are durable. Never moves back: only a truncation does.
    pub(crate) fn set_durable(&mut self, index: LogIndex) {
        self.durable = self.durable.max(index.min(self.last().index));
        self.evict();
    }

    /// Raises the commit index; never beyond the last entry, and never back. Returns true if it
    /// rose.
    pub(crate) fn commit_to(&mut self, index: LogIndex) -> bool {
        let index = index.min(self.last().index);
        let rises = index > self.commit;
        if rises {
            self.commit = index;
        }
        rises
    }

    /// What was handed out to be applied and not reported was dropped: it is handed out again.
    pub(crate) fn rewind_applying(&mut self) {
        self.applying = self.applied;
        self.applying_runs.clear();
        self.applying_bytes = 0;
    }

    /// The state machine was replaced by one that has applied exactly the entries up to `index`: the rest
    /// is handed out again, and read back where it is no longer in memory.
    pub(crate) fn replace_applied(&mut self, index: LogIndex) {
        self.applied = index;
        self.rewind_applying();
        self.evict();
    }

    /// Forgets everything: the log begins anew after `base`, which is committed, durable and applied.
    pub(crate) fn reset(&mut self, base: EntryId) {
        let cached_bytes_max = self.cached_bytes_max;
        *self = Self::new(TermMap::new(base, &[], base), base.index, base.index, cached_bytes_max);
    }

    /// Forgets the entries up to `index`: the log begins after it. Never moves the base back.
    ///
    /// # Panics
    /// When not all of that is applied and durable.
    pub(crate) fn compact(&mut self, index: LogIndex) {
        assert!(
            index <= self.applied.min(self.durable),
            "cannot compact through {index}: applied {}, durable {}",
            self.applied,
            self.durable
        );
        self.terms.compact(index);
        while let Some(entry) = self.cache.pop_front_if(|entry| entry.id.index <= index) {
            self.cached_bytes -= entry.cost_bytes();
        }
    }

    /// The state machine has applied everything up to `index`.
    ///
    /// # Panics
    /// When that was never handed out.
    pub(crate) fn set_applied(&mut self, index: LogIndex) {
        assert!(
            index <= self.applying,
            "told that {index} is applied, but only {} was handed out (commit {}, last {})",
            self.applying,
            self.commit,
            self.last()
        );
        if index <= self.applied {
            return;
        }
        self.applied = index;
        while let Some(&(last, bytes)) = self.applying_runs.front()
            && last <= index
        {
            self.applying_runs.pop_front();
            self.applying_bytes -= bytes;
        }
        self.evict();
    }

    /// What [`take_applicable`](Self::take_applicable) would find.
    pub(crate) fn applicable(&self) -> Applicable {
        let end = self.commit.min(self.durable);
        if self.applying >= end || self.applying_bytes >= APPLYING_BYTES_MAX {
            return Applicable::Nothing;
        }
        let from = self.applying.next();
        let cached_from = self.cached_from();
        if from >= cached_from {
            return Applicable::Cached;
        }
        Applicable::OnDisk { from, to: end.min(LogIndex(cached_from.value() - 1)) }
    }

    /// Takes the next cached run to be applied, as far as the bound allows; at least one entry.
    ///
    /// # Panics
    /// When nothing is [`Applicable::Cached`].
    pub(crate) fn take_applicable(&mut self) -> Vec<Entry> {
        let end = self.commit.min(self.durable);
        let room = APPLYING_BYTES_MAX - self.applying_bytes;
        let (entries, bytes) = self.slice(self.applying.next(), end, room);
        self.applying_from(&entries, bytes);
        entries
    }

    /// A run that was read back goes out to be applied.
    pub(crate) fn on_applying(&mut self, entries: &[Entry]) {
        let bytes = entries.iter().map(Entry::cost_bytes).sum();
        self.applying_from(entries, bytes);
    }

    fn applying_from(&mut self, entries: &[Entry], bytes: usize) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        assert_eq!(first.id.index, self.applying.next(), "entries are applied one after another");
        self.applying = last.id.index;
        self.applying_runs.push_back((self.applying, bytes));
        self.applying_bytes += bytes;
    }

    /// A copy of the cached entries from `from` to `to`, cut before `bytes_max` is exceeded but
    /// never before the first entry, and their bytes.
    ///
    /// # Panics
    /// When `from` is not in memory.
    pub(crate) fn slice(
        &self,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> (Vec<Entry>, usize) {
        let cached_from = self.cached_from();
        assert!(from >= cached_from, "entry {from} is not in memory, only {cached_from} and later");
        let start = from.since(cached_from) as usize;
        let count = to.next().since(from) as usize;
        let (mut bytes, mut taken) = (0, 0);
        for entry in self.cache.range(start..start + count) {
            let cost = entry.cost_bytes();
            if taken > 0 && bytes + cost > bytes_max {
                break;
            }
            bytes += cost;
            taken += 1;
        }
        (self.cache.range(start..start + taken).cloned().collect(), bytes)
    }

    /// True when the entries from `from` on fill an append of `bytes_max`, or some are not in memory.
    pub(crate) fn fills(&self, from: LogIndex, bytes_max: usize) -> bool {
        let cached_from = self.cached_from();
        if from < cached_from {
            return true;
        }
        let mut bytes = 0;
        self.cache.range(from.since(cached_from) as usize..).any(|entry| {
            bytes += entry.cost_bytes();
            bytes >= bytes_max
        })
    }

    /// Changes how many bytes the cache may hold; what is over that and can be read back goes at once.
    pub(crate) fn set_cached_bytes_max(&mut self, bytes_max: usize) {
        if self.cached_bytes_max != bytes_max {
            self.cached_bytes_max = bytes_max;
            self.evict();
        }
    }

    /// Drops the oldest entries while the cache is over its bound; only what is durable and
    /// applied, since nothing else has a second copy at hand.
    fn evict(&mut self) {
        let free_to = self.durable.min(self.applied);
        while self.cached_bytes > self.cached_bytes_max
            && let Some(entry) = self.cache.front()
            && entry.id.index <= free_to
        {
            self.cached_bytes -= entry.cost_bytes();
            self.cache.pop_front();
        }
        if self.cache.capacity() > CACHE_CAPACITY_KEPT
            && self.cache.len() < self.cache.capacity() / 8
        {
            self.cache.shrink_to(CACHE_CAPACITY_KEPT.max(self.cache.len() * 2));
        }
    }

    /// The first entry in memory; `last + 1` when there is none.
    pub(crate) fn cached_from(&self) -> LogIndex {
        LogIndex(self.last().index.value() + 1 - self.cache.len() as u64)
    }

    pub(crate) const fn terms(&self) -> &TermMap {
        &self.terms
    }

    pub(crate) const fn last(&self) -> EntryId {
        self.terms.last()
    }

    pub(crate) fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.terms.term_at(index)
    }

    /// True when the log holds exactly this entry. The position before the first entry is held by
    /// every log.
    pub(crate) fn holds(&self, id: EntryId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.pending <= self.last().index
    }

    pub(crate) const fn pending(&self) -> LogIndex {
        self.pending
    }

    pub(crate) const fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    pub(crate) const fn durable(&self) -> LogIndex {
        self.durable
    }

    pub(crate) const fn commit(&self) -> LogIndex {
        self.commit
    }

    pub(crate) const fn applying(&self) -> LogIndex {
        self.applying
    }

    pub(crate) const fn applied(&self) -> LogIndex {
        self.applied
    }

    pub(crate) const fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }
}
