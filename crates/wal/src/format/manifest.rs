//! The manifest, RocksDB's log of which files make up a version of the store.
//!
//! Of its records only what the judgement of the logs needs is kept. Everything else is stepped over by
//! its length; a record with something unknown leaves nothing to be relied on.

use super::scan::Records;

/// What a manifest says of the write-ahead logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Logs below this number are in sorted files, wholly.
    live_from: u64,
    /// No batch that is in sorted files only has a higher sequence number.
    last_sequence: u64,
    understood: bool,
    edits: u64,
}

impl Default for Manifest {
    fn default() -> Self {
        Self { live_from: 0, last_sequence: 0, understood: true, edits: 0 }
    }
}

impl Manifest {
    /// The first log that is needed; 0 when that is not known.
    #[must_use]
    pub const fn live_from(&self) -> u64 {
        if self.understood { self.live_from } else { 0 }
    }

    /// The highest sequence number that the logs that are not needed may have; `None` when that is not
    /// known.
    #[must_use]
    pub fn last_sequence(&self) -> Option<u64> {
        self.understood.then_some(self.last_sequence)
    }

    /// How many changes of the version it holds.
    #[must_use]
    pub const fn edits(&self) -> u64 {
        self.edits
    }

    fn edit(&mut self, mut record: &[u8]) -> Option<()> {
        let input = &mut record;
        while !input.is_empty() {
            match varint(input)? {
                // The logs of the column family, and of all: there is one family.
                LOG_NUMBER | MIN_LOG_NUMBER => self.live_from = self.live_from.max(varint(input)?),
                LAST_SEQUENCE => self.last_sequence = self.last_sequence.max(varint(input)?),
                COMPARATOR | COLUMN_FAMILY_ADD => bytes(input)?,
                COMPACT_CURSOR => {
                    varint(input)?;
                    bytes(input)?;
                }
                DELETED_FILE => {
                    varint(input)?;
                    varint(input)?;
                }
                NEW_FILE_4 => new_file(input)?,
                NEXT_FILE_NUMBER | PREVIOUS_LOG_NUMBER | COLUMN_FAMILY | MAX_COLUMN_FAMILY
                | IN_ATOMIC_GROUP => drop(varint(input)?),
                COLUMN_FAMILY_DROP => {}
                tag if tag & IGNORABLE != 0 => bytes(input)?,
                _ => return None,
            }
        }
        Some(())
    }
}

impl Records for Manifest {
    fn take(&mut self, record: &[u8]) -> Result<(), &'static str> {
        self.edits += 1;
        self.understood &= self.edit(record).is_some();
        Ok(())
    }

    fn is_own(&self, _: &[u8]) -> Option<bool> {
        // The file is never used again, and no client has a say in its bytes.
        Some(true)
    }
}

const COMPARATOR: u64 = 1;
const LOG_NUMBER: u64 = 2;
const NEXT_FILE_NUMBER: u64 = 3;
const LAST_SEQUENCE: u64 = 4;
const COMPACT_CURSOR: u64 = 5;
const DELETED_FILE: u64 = 6;
const PREVIOUS_LOG_NUMBER: u64 = 9;
const MIN_LOG_NUMBER: u64 = 10;
const NEW_FILE_4: u64 = 103;
const COLUMN_FAMILY: u64 = 200;
const COLUMN_FAMILY_ADD: u64 = 201;
const COLUMN_FAMILY_DROP: u64 = 202;
const MAX_COLUMN_FAMILY: u64 = 203;
const IN_ATOMIC_GROUP: u64 = 300;
/// Tags with this bit are followed by their length.
const IGNORABLE: u64 = 1 << 13;
/// Ends the further fields of a new file.
const NEW_FILE_END: u64 = 1;

/// Level, number, size, smallest and largest key, smallest and largest sequence number, further fields.
fn new_file(input: &mut &[u8]) -> Option<()> {
    for _ in 0..3 {
        varint(input)?;
    }
    for _ in 0..2 {
        bytes(input)?;
    }
    for _ in 0..2 {
        varint(input)?;
    }
    while varint(input)? != NEW_FILE_END {
        bytes(input)?;
    }
    Some(())
}

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Steps over a length and as many bytes.
fn bytes(input: &mut &[u8]) -> Option<()> {
    let length = usize::try_from(varint(input)?).ok()?;
    *input = input.get(length..)?;
    Some(())
}
