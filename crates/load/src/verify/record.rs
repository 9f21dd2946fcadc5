//! What was written: the file that a later check starts from.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Fault;

/// The least bytes of a value: a write's name fits.
pub(crate) const VALUE_SIZE_MIN: usize = 24;

/// All writes of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Version of this format.
    pub(crate) version: u32,
    /// One for each writer.
    pub(crate) keys: Vec<KeyRecord>,
}

/// The version of the format that is written and read.
pub(crate) const VERSION: u32 = 1;

/// The writes to one key, in the order in which its only writer sent them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    /// The key.
    pub(crate) key: String,
    /// Acknowledged writes; their numbers and their revisions rise.
    pub(crate) acknowledged: Vec<Acknowledged>,
    /// Numbers of the writes without an answer, rising: each may or may not have happened.
    pub(crate) unknown: Vec<u64>,
}

/// A write that was acknowledged: its number and its revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, i64)", into = "(u64, i64)")]
pub(crate) struct Acknowledged {
    /// The number, counted by the writer from 1.
    pub(crate) number: u64,
    /// The revision in the answer's header.
    pub(crate) revision: i64,
}

impl From<(u64, i64)> for Acknowledged {
    fn from((number, revision): (u64, i64)) -> Self {
        Self { number, revision }
    }
}

impl From<Acknowledged> for (u64, i64) {
    fn from(write: Acknowledged) -> Self {
        (write.number, write.revision)
    }
}

impl KeyRecord {
    /// Nothing written yet under `key`.
    pub(crate) fn new(key: String) -> Self {
        Self { key, acknowledged: Vec::new(), unknown: Vec::new() }
    }

    /// The acknowledged write that has `revision`.
    pub(crate) fn at(&self, revision: i64) -> Option<Acknowledged> {
        let found = self.acknowledged.binary_search_by_key(&revision, |write| write.revision);
        found.ok().map(|index| self.acknowledged[index])
    }

    /// What is wrong with `value` standing under this key with `mod_revision`, if anything. `in_flight` is
    /// the number of a write that has no answer yet.
    pub(crate) fn objection(
        &self,
        value: &[u8],
        mod_revision: i64,
        in_flight: Option<u64>,
    ) -> Option<String> {
        let key = &self.key;
        let Some(number) = number_of(value) else {
            return Some(format!("{key}: a value that nobody wrote, at revision {mod_revision}"));
        };
        if let Some(write) = self.at(mod_revision) {
            let answered = write.number;
            return (number != answered).then(|| {
                format!("{key}: write {number} stands at revision {mod_revision}, which write {answered} was given")
            });
        }
        let by_number = self.acknowledged.binary_search_by_key(&number, |write| write.number);
        if let Ok(index) = by_number {
            let given = self.acknowledged[index].revision;
            return Some(format!(
                "{key}: write {number} stands at revision {mod_revision}, it was given {given}"
            ));
        }
        let open = in_flight == Some(number) || self.unknown.binary_search(&number).is_ok();
        (!open).then(|| format!("{key}: write {number} stands there, but was never sent"))
    }
}

impl Record {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is no record, or is one of another version.
    pub(crate) fn load(path: &Path) -> Result<Self, Fault> {
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read(path).map_err(|error| at(&error))?;
        let record: Self = serde_json::from_slice(&text).map_err(|error| at(&error))?;
        if record.version != VERSION {
            return Err(at(&format!("version {} is not {VERSION}", record.version)));
        }
        Ok(record)
    }

    /// Writes the file at `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Fault> {
        let text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// The value of write `number`, `size` bytes.
pub(crate) fn value(number: u64, size: usize) -> Vec<u8> {
    let mut value = format!("{number:020};").into_bytes();
    value.resize(size.max(VALUE_SIZE_MIN), b'.');
    value
}

/// The number of the write that made `value`; none if a single bit of it is another.
pub(crate) fn number_of(value: &[u8]) -> Option<u64> {
    let digits = value.get(..20)?;
    let rest = value.get(21..)?;
    (value[20] == b';' && rest.iter().all(|&byte| byte == b'.')).then_some(())?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> KeyRecord {
        KeyRecord {
            key: "k".to_owned(),
            acknowledged: vec![(1, 10).into(), (2, 12).into(), (5, 20).into()],
            unknown: vec![3, 4],
        }
    }

    #[test]
    fn values_name_their_write() {
        assert_eq!(number_of(&value(7, 64)), Some(7));
        assert_eq!(value(u64::MAX, 64).len(), 64);
        assert_eq!(number_of(&value(u64::MAX, 0)), Some(u64::MAX));
        assert_eq!(number_of(b"00000000000000000007"), None);
        assert_eq!(number_of(b""), None);
        for bit in 0..64 * 8 {
            let mut flipped = value(7, 64);
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(number_of(&flipped), Some(7), "bit {bit}");
        }
    }

    #[test]
    fn an_acknowledged_write_may_stand_only_where_it_was_put() {
        assert_eq!(key().objection(&value(2, 0), 12, None), None);
        assert!(key().objection(&value(2, 0), 13, None).is_some(), "moved");
        assert!(key().objection(&value(1, 0), 12, None).is_some(), "replaced");
    }

    #[test]
    fn a_write_without_an_answer_may_stand_anywhere_else() {
        assert_eq!(key().objection(&value(3, 0), 15, None), None);
        assert_eq!(key().objection(&value(4, 0), 25, None), None, "later than an acknowledged one");
        assert!(key().objection(&value(3, 0), 12, None).is_some(), "instead of one");
        assert!(key().objection(&value(6, 0), 25, None).is_some(), "not sent yet");
        assert_eq!(key().objection(&value(6, 0), 25, Some(6)), None, "being sent");
        assert!(key().objection(b"garbage", 25, None).is_some());
    }

    #[test]
    fn the_file_comes_back_as_it_was() {
        let record = Record { version: VERSION, keys: vec![key()] };
        let text = serde_json::to_string(&record).expect("serializes");
        assert!(text.contains("[5,20]"), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).expect("parses"), record);
    }
}
