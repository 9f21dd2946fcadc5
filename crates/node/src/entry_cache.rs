//! [`EntryCache`]: what all groups of a node together keep of their logs in memory.
//!
//! The ticker divides the budget ([`EntryBudget`]) among those that are awake; each group looks at its part at
//! the end of a turn, and says what it keeps. Nothing of it waits or locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_group::{EntryBudget, Group};

/// The shared side.
#[derive(Debug)]
pub(crate) struct EntryCache {
    kept_bytes: AtomicUsize,
    /// What each group that is awake may keep.
    share_bytes: AtomicUsize,
}

impl EntryCache {
    pub(crate) fn new(share_bytes: usize) -> Self {
        Self { kept_bytes: AtomicUsize::new(0), share_bytes: AtomicUsize::new(share_bytes) }
    }

    /// What all groups keep by now.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    /// Divides `budget` anew among the groups that are `awake`.
    pub(crate) fn divide(&self, budget: &mut EntryBudget, awake: usize) {
        self.share_bytes.store(budget.divide(self.kept_bytes(), awake), Ordering::Relaxed);
    }
}

/// A group's part of it; what it keeps is given back when the group ends.
#[derive(Debug)]
pub(crate) struct CachePart {
    cache: Arc<EntryCache>,
    kept_bytes: usize,
}

impl CachePart {
    pub(crate) fn new(cache: Arc<EntryCache>) -> Self {
        Self { cache, kept_bytes: 0 }
    }

    /// A turn of `group` has ended; asleep, it needs nothing in memory.
    pub(crate) fn settle<P, R>(&mut self, group: &mut Group<P, R>, is_asleep: bool) {
        let share_bytes = self.cache.share_bytes.load(Ordering::Relaxed);
        group.limit_cache(if is_asleep { 0 } else { share_bytes });
        self.keep(group.replica().cached_bytes());
    }

    fn keep(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.kept_bytes, bytes);
        let kept = &self.cache.kept_bytes;
        match bytes >= before {
            true => kept.fetch_add(bytes - before, Ordering::Relaxed),
            false => kept.fetch_sub(before - bytes, Ordering::Relaxed),
        };
    }
}

impl Drop for CachePart {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_keeps_is_counted_once_and_given_back_with_it() {
        let cache = Arc::new(EntryCache::new(100));
        let (mut first, mut second) =
            (CachePart::new(Arc::clone(&cache)), CachePart::new(Arc::clone(&cache)));
        first.keep(70);
        second.keep(50);
        first.keep(30);
        assert_eq!(cache.kept_bytes(), 80);
        drop(first);
        assert_eq!(cache.kept_bytes(), 50);
        cache.divide(&mut EntryBudget::new(40, 1 << 20), 8);
        assert_eq!(cache.share_bytes.load(Ordering::Relaxed), 64 << 10, "no less, however scarce");
    }
}
