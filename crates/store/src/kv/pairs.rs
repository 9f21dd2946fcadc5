//! Pairs that were read lately, as they are now.
//!
//! Finding a pair costs two look-ups among the rows, the key's record and its value, and each of them a walk
//! through memtables and tables. Keys that are read are mostly read again.
//!
//! Views of several ages read beside a machine that writes, so what one of them finds must not mislead
//! another. Two rules see to that, with the revision of the view as the judge:
//!
//! 1. The machine says what it changes *before* any view can show it ([`Pairs::outdate`]): a pair that is
//!    kept is the newest of its key, so it holds for every view that is not older than the pair.
//! 2. A view adds what it has found only if nothing was changed since that view ([`Pairs::keep`]).
//!
//! A machine that ends takes its pairs with it: what comes next, a snapshot for instance, changes rows
//! that nobody announces.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::hashing::Seeded;
use super::record::Record;

/// Bytes of all pairs, at most.
const BYTES_MAX: u64 = 16 << 20;

/// Larger pairs are not kept: they would push out many small ones, and their value is most of their cost.
const PAIR_BYTES_MAX: usize = 64 << 10;

/// What a pair takes beside its key and value: its place in the cache and the allocations' own.
const PAIR_OVERHEAD_BYTES: usize = 160;

/// The pairs of one machine; shared by it and by all who read beside it.
#[derive(Debug)]
pub(crate) struct Pairs(Mutex<Known>);

#[derive(Clone, Debug)]
struct Pair {
    record: Record,
    value: Bytes,
}

#[derive(Debug)]
struct Known {
    pairs: Cache<Bytes, Pair, Size, Seeded>,
    /// The newest revision that has changed anything; `None` once the machine has ended.
    changed: Option<i64>,
}

#[derive(Clone, Debug)]
struct Size;

impl Weighter<Bytes, Pair> for Size {
    fn weight(&self, key: &Bytes, pair: &Pair) -> u64 {
        (key.len() + pair.value.len() + PAIR_OVERHEAD_BYTES) as u64
    }
}

impl Pairs {
    /// Of a machine that is at `revision`.
    pub(crate) fn new(revision: i64, hashing: Seeded) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(BYTES_MAX as usize / 512)
            .weight_capacity(BYTES_MAX)
            .build()
            .expect("both capacities are given");
        let pairs = Cache::with_options(options, Size, hashing, DefaultLifecycle::default());
        Self(Mutex::new(Known { pairs, changed: Some(revision) }))
    }

    /// The pair of `key` at `revision`, which is that of the reader's view; `None` says nothing.
    pub(crate) fn pair(&self, key: &[u8], revision: i64) -> Option<(Record, Bytes)> {
        let known = self.lock();
        let pair = known.pairs.get(key)?;
        // A newer one than the view: what was before it is not known here.
        (pair.record.modified.revision <= revision).then(|| (pair.record, pair.value.clone()))
    }

    /// A view at `revision` has found this pair to be the key's newest.
    pub(crate) fn keep(&self, key: &[u8], record: Record, value: &Bytes, revision: i64) {
        if key.len() + value.len() > PAIR_BYTES_MAX {
            return;
        }
        let mut known = self.lock();
        if known.changed.is_some_and(|changed| changed <= revision) {
            // Copies: parts of a larger allocation would keep all of it in memory.
            let pair = Pair { record, value: Bytes::copy_from_slice(value) };
            known.pairs.insert(Bytes::copy_from_slice(key), pair);
        }
    }

    /// `key` is about to be changed, at `revision`.
    pub(crate) fn outdate(&self, key: &[u8], revision: i64) {
        let mut known = self.lock();
        known.changed = known.changed.max(Some(revision));
        known.pairs.remove(key);
    }

    /// The machine is gone, and nothing is announced any more.
    pub(crate) fn end(&self) {
        let mut known = self.lock();
        known.changed = None;
        known.pairs.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code under the lock can panic half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Stamp;

    fn record(revision: i64) -> Record {
        Record { create: 2, modified: Stamp { revision, sub: 0 }, version: 1, lease: 0 }
    }

    fn value(bytes: usize) -> Bytes {
        Bytes::from(vec![7; bytes])
    }

    fn is_known(pairs: &Pairs, key: &[u8], revision: i64) -> bool {
        pairs.pair(key, revision).is_some()
    }

    #[test]
    fn a_pair_holds_for_views_that_are_not_older_than_it() {
        let pairs = Pairs::new(9, Seeded(1));
        pairs.keep(b"k", record(7), &value(1), 9);
        assert_eq!(pairs.pair(b"k", 9), Some((record(7), value(1))));
        assert!(is_known(&pairs, b"k", 7) && is_known(&pairs, b"k", 20));
        assert!(!is_known(&pairs, b"k", 6), "what the key was before is not known");
        assert!(!is_known(&pairs, b"other", 9));
    }

    #[test]
    fn what_is_about_to_be_changed_is_forgotten_and_old_views_cannot_bring_it_back() {
        let pairs = Pairs::new(9, Seeded(1));
        pairs.keep(b"k", record(7), &value(1), 9);
        pairs.outdate(b"k", 10);
        assert!(!is_known(&pairs, b"k", 10) && !is_known(&pairs, b"k", 9));
        pairs.keep(b"k", record(7), &value(1), 9);
        assert!(!is_known(&pairs, b"k", 9), "kept by a view from before the change");
        pairs.keep(b"k", record(10), &value(2), 10);
        assert!(is_known(&pairs, b"k", 10) && !is_known(&pairs, b"k", 9));
    }

    #[test]
    fn the_end_of_the_machine_is_the_end_of_its_pairs() {
        let pairs = Pairs::new(9, Seeded(1));
        pairs.keep(b"k", record(7), &value(1), 9);
        pairs.end();
        assert!(!is_known(&pairs, b"k", 9));
        pairs.keep(b"k", record(7), &value(1), i64::MAX);
        assert!(!is_known(&pairs, b"k", i64::MAX), "nobody would say when that is outdated");
    }

    #[test]
    fn memory_is_bounded_and_what_is_read_again_stays() {
        let pairs = Pairs::new(9, Seeded(1));
        pairs.keep(b"hot", record(7), &value(1), 9);
        for number in 0..5 * BYTES_MAX as usize / 1000 {
            pairs.keep(&number.to_be_bytes(), record(7), &value(1000), 9);
            assert!(is_known(&pairs, b"hot", 9));
            assert!(pairs.lock().pairs.weight() <= BYTES_MAX);
        }
        pairs.keep(b"large", record(7), &value(PAIR_BYTES_MAX), 9);
        assert!(!is_known(&pairs, b"large", 9));
    }
}
