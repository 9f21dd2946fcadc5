//! What the log's own batches look like, as far as the files tell without their rows.
//!
//! ```text
//! record = sequence number u64, number of rows written u32, mark, rows
//! mark   = 3 u8, 8 u8, random u64
//! ```
//!
//! Sequence numbers count rows, so each batch says which one the next has. The *mark* is a random number
//! that all batches of one process begin with; to RocksDB it is a remark that it writes to its log and
//! nowhere else. A file that is used again ends among the bytes of an older log, and those are, in part,
//! values that clients have chosen: without the mark a client could put something there that looks like a
//! later record, and have a sound log taken for a damaged one.
//!
//! Before its first whole batch a file does not say which mark its batches have. For that the marks of the
//! last processes are kept beside the files; only where they are lost too, everything that looks like a
//! later batch counts as one.

use std::slice;

use super::scan::Records;

/// What a batch without rows consists of.
pub(super) const HEADER_BYTES: usize = 12;
const REMARK: u8 = 3;
const MARK_BYTES: u8 = 8;
const MARK_FIELD_BYTES: usize = 2 + MARK_BYTES as usize;

/// The batches of one file.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Batches {
    /// The marks that its batches may have; empty when that is not known.
    known: Vec<u64>,
    /// The sequence numbers of the first batch and of the one that would come next.
    span: Option<(u64, u64)>,
    /// That of the first batch; one without was written by an older release.
    mark: Option<u64>,
    /// The last batch that changed anything.
    last: u64,
}

impl Batches {
    /// Before the first batch of a file whose batches have one of the marks `known`.
    #[must_use]
    pub fn of(known: &[u64]) -> Self {
        Self { known: known.to_vec(), ..Self::default() }
    }

    /// The mark of the batches, if there are any, and they have one.
    #[must_use]
    pub const fn mark(&self) -> Option<u64> {
        self.mark
    }

    /// The sequence number of the first batch, and that of the one that would follow the last.
    #[must_use]
    pub const fn span(&self) -> Option<(u64, u64)> {
        self.span
    }
}

impl Records for Batches {
    fn take(&mut self, record: &[u8]) -> Result<(), &'static str> {
        let (sequence, rows) = header(record).ok_or("it is no batch")?;
        // RocksDB writes one without rows when it opens.
        if rows == 0 {
            return Ok(());
        }
        let mark = mark(record);
        if let Some((_, next)) = self.span {
            if mark != self.mark {
                return Err("it has the mark of another process");
            }
            if sequence != next {
                return Err("a batch is missing before it");
            }
        }
        let first = self.span.map_or(sequence, |(first, _)| first);
        self.span = Some((first, sequence + u64::from(rows)));
        self.mark = mark;
        self.last = sequence;
        Ok(())
    }

    fn is_own(&self, beginning: &[u8]) -> Option<bool> {
        let (sequence, _) = header(beginning)?;
        let expected = match (&self.mark, self.span) {
            (Some(mark), _) => slice::from_ref(mark),
            (None, None) => &self.known,
            (None, Some(_)) => &[],
        };
        if expected.is_empty() {
            return Some(sequence > self.last);
        }
        if beginning.len() < HEADER_BYTES + MARK_FIELD_BYTES {
            return None;
        }
        Some(mark(beginning).is_some_and(|mark| expected.contains(&mark)))
    }
}

fn header(record: &[u8]) -> Option<(u64, u32)> {
    let (sequence, rest) = record.split_first_chunk()?;
    let rows = rest.first_chunk()?;
    Some((u64::from_le_bytes(*sequence), u32::from_le_bytes(*rows)))
}

fn mark(record: &[u8]) -> Option<u64> {
    let rest = record.get(HEADER_BYTES..)?.strip_prefix(&[REMARK, MARK_BYTES])?;
    rest.first_chunk().map(|mark| u64::from_le_bytes(*mark))
}
