//! What the machine still knows of keys that were written lately.
//!
//! Each put must know what it replaces. Most puts go to keys that were put a moment ago, and finding one
//! of those among the rows costs a walk through a memtable, on every replica, as much as writing a row.
//!
//! It holds exactly what the rows say, or nothing: every write of the machine passes through it. It is
//! part of the machine's memory only; a machine that was opened anew starts without it.

use bytes::Bytes;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};

use super::hashing::Seeded;
use super::record::Record;

/// Keys, at most; with keys of 32 bytes about 6 MiB.
const KEYS_MAX: usize = 32 << 10;

/// Records of recently written keys.
#[derive(Debug)]
pub(crate) struct Recent(Cache<Bytes, Record, UnitWeighter, Seeded>);

impl Recent {
    pub(crate) fn new(hashing: Seeded) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(KEYS_MAX)
            .weight_capacity(KEYS_MAX as u64)
            .build()
            .expect("both capacities are given");
        let lifecycle = DefaultLifecycle::default();
        Self(Cache::with_options(options, UnitWeighter, hashing, lifecycle))
    }

    /// What is known of `key`; `None` says nothing about whether it exists.
    pub(crate) fn record(&self, key: &[u8]) -> Option<Record> {
        self.0.get(key).copied()
    }

    /// `key` was put.
    pub(crate) fn note(&mut self, key: &[u8], record: Record) {
        if let Some(mut known) = self.0.get_mut(key) {
            *known = record;
            return;
        }
        // Of its own: a part of the command would keep all of that in memory.
        self.0.insert(Bytes::copy_from_slice(key), record);
    }

    /// `key` was deleted.
    pub(crate) fn forget(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Stamp;

    fn record(version: i64) -> Record {
        Record { create: 2, modified: Stamp { revision: 9, sub: 0 }, version, lease: 0 }
    }

    #[test]
    fn the_last_word_on_a_key_counts() {
        let mut recent = Recent::new(Seeded(1));
        recent.note(b"k", record(1));
        recent.note(b"other", record(7));
        recent.note(b"k", record(2));
        assert_eq!(recent.record(b"k"), Some(record(2)));
        recent.forget(b"k");
        assert_eq!(recent.record(b"k"), None);
        assert_eq!(recent.record(b"other"), Some(record(7)));
    }

    #[test]
    fn memory_is_bounded_and_what_is_written_again_stays() {
        let mut recent = Recent::new(Seeded(1));
        for number in 0..5 * KEYS_MAX {
            recent.note(&number.to_be_bytes(), record(7));
            recent.note(b"k", record(number as i64));
            assert!(recent.0.len() <= KEYS_MAX);
        }
        assert_eq!(recent.record(b"k").map(|record| record.version), Some(5 * 32768 - 1));
    }
}
