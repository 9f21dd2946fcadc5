//! The replica digest: one number for everything that a state machine has written.
//!
//! Replicas that apply the same entries must write the same rows. A machine that folds each of its writes
//! into a [`Digest`] can be compared with its other replicas at the same entry, for a few nanoseconds a
//! write, without reading anything back. Whatever made a replica write something else (an apply that is
//! not deterministic, a bit that flipped in memory, an old row that was read wrongly and decided what the
//! next one says) shows at the next comparison and at every later one, since each fold rests on all before.
//!
//! What it cannot show is a row that was written rightly and has rotted since: nobody reads it. That is
//! what the checksums of the state engine's blocks are for.

use bytes::Bytes;
use rapidhash::v3::rapidhash_v3;

use crate::machine::{Direction, StateBatch, StateError, StateReader, Visit};

/// A chain of hashes (rapidhash v3: its values are the same everywhere and for ever) over writes, in
/// their order. Not made to resist forgery: a replica that lies can tell a right digest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Digest(pub u64);

impl Digest {
    /// A row was set.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.fold(rapidhash_v3(key), rapidhash_v3(value), 1);
    }

    /// A row was removed.
    pub fn delete(&mut self, key: &[u8]) {
        self.fold(rapidhash_v3(key), 0, 2);
    }

    fn fold(&mut self, key: u64, value: u64, kind: u8) {
        let mut link = [kind; 25];
        for (at, part) in [self.0, key, value].into_iter().enumerate() {
            link[at * 8..][..8].copy_from_slice(&part.to_le_bytes());
        }
        self.0 = rapidhash_v3(&link);
    }
}

/// A batch whose writes go into a digest on their way.
///
/// A machine may use it if each command makes the same writes in the same order on every replica, however
/// the log is cut into runs; what it removes between commands, at its own pace, must pass by.
pub struct Digested<'b> {
    batch: &'b mut dyn StateBatch,
    digest: &'b mut Digest,
}

impl<'b> Digested<'b> {
    /// Folds what is written to `batch` into `digest`.
    pub fn new(batch: &'b mut dyn StateBatch, digest: &'b mut Digest) -> Self {
        Self { batch, digest }
    }
}

impl StateReader for Digested<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.batch.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        self.batch.scan(start, end, direction, visit)
    }
}

impl StateBatch for Digested<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.digest.put(key, value);
        self.batch.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.digest.delete(key);
        self.batch.delete(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(writes: &[(&str, Option<&str>)]) -> Digest {
        let mut digest = Digest::default();
        for (key, value) in writes {
            match value {
                Some(value) => digest.put(key.as_bytes(), value.as_bytes()),
                None => digest.delete(key.as_bytes()),
            }
        }
        digest
    }

    #[test]
    fn equal_writes_have_equal_digests_on_every_machine_and_in_every_release() {
        let writes = [("a", Some("1")), ("b", None), ("c", Some("a value of some more bytes"))];
        assert_eq!(of(&writes), of(&writes));
        assert_eq!(
            of(&writes),
            Digest(3_770_327_264_829_098_037),
            "replicas of two releases must agree"
        );
    }

    #[test]
    fn whatever_differs_shows_and_stays() {
        let right = [("a", Some("1")), ("b", Some("2"))];
        let wrong = [
            [("a", Some("2")), ("b", Some("2"))],
            [("a", None), ("b", Some("2"))],
            [("b", Some("2")), ("a", Some("1"))],
            [("a1", Some("")), ("b", Some("2"))],
        ];
        for writes in wrong {
            assert_ne!(of(&right), of(&writes), "{writes:?}");
            let later = [("c", Some("3")), ("a", Some("1")), ("b", Some("2"))];
            assert_ne!(of(&[&right[..], &later].concat()), of(&[&writes[..], &later].concat()));
        }
        assert_ne!(of(&right[..1]), of(&[right[0], right[0]]), "written twice is not written once");
    }
}
