//! What the machine still knows of keys that were written lately.
//!
//! Each put must know what it replaces. Most puts go to keys that were put a moment ago, and finding one
//! of those among the rows costs a walk through a memtable, on every replica, as much as writing a row.
//!
//! It holds exactly what the rows say, or nothing: every write of the machine passes through it. It is
//! part of the machine's memory only; a machine that was opened anew starts without it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::record::Record;

/// Keys of one age, at most; with keys of 32 bytes about 3 MiB. Two ages are kept.
const AGE_KEYS_MAX: usize = 16 << 10;

/// Records of recently written keys, in two ages: when the younger is full it becomes the older, and what
/// was older is forgotten. So a key that is written again and again stays.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    younger: BTreeMap<Bytes, Record>,
    older: BTreeMap<Bytes, Record>,
}

impl Recent {
    /// What is known of `key`; `None` says nothing about whether it exists.
    pub(crate) fn record(&self, key: &[u8]) -> Option<Record> {
        self.younger.get(key).or_else(|| self.older.get(key)).copied()
    }

    /// `key` was put.
    pub(crate) fn note(&mut self, key: &[u8], record: Record) {
        if let Some(known) = self.younger.get_mut(key) {
            *known = record;
            return;
        }
        if self.younger.len() >= AGE_KEYS_MAX {
            self.older = std::mem::take(&mut self.younger);
        }
        // Of its own: a part of the command would keep all of that in memory. An entry of the older age
        // is hidden by this one, and goes with its age.
        self.younger.insert(Bytes::copy_from_slice(key), record);
    }

    /// `key` was deleted.
    pub(crate) fn forget(&mut self, key: &[u8]) {
        self.younger.remove(key);
        self.older.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Stamp;

    fn record(version: i64) -> Record {
        Record { create: 2, modified: Stamp { revision: 9, sub: 0 }, version, lease: 0 }
    }

    fn key(number: usize) -> [u8; 8] {
        number.to_be_bytes()
    }

    #[test]
    fn the_last_word_on_a_key_counts_in_whatever_age_it_was_said() {
        let mut recent = Recent::default();
        recent.note(b"k", record(1));
        for number in 0..AGE_KEYS_MAX {
            recent.note(&key(number), record(7));
        }
        assert_eq!(recent.record(b"k"), Some(record(1)), "of the older age");
        recent.note(b"k", record(2));
        assert_eq!(recent.record(b"k"), Some(record(2)));
        recent.forget(b"k");
        assert_eq!(recent.record(b"k"), None, "in both ages");
    }

    #[test]
    fn memory_is_bounded_and_what_is_written_again_stays() {
        let mut recent = Recent::default();
        for number in 0..5 * AGE_KEYS_MAX {
            recent.note(&key(number), record(7));
            recent.note(b"k", record(number as i64));
            assert!(recent.younger.len() + recent.older.len() <= 2 * AGE_KEYS_MAX);
        }
        assert_eq!(recent.record(b"k").map(|record| record.version), Some(5 * 16384 - 1));
        assert_eq!(recent.record(&key(0)), None);
    }
}
