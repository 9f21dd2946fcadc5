//! Fragments: a record of a log file is cut into as many as blocks that it touches.
//!
//! ```text
//! fragment = checksum u32, length u16, type u8, [log number u32,] payload
//! ```
//!
//! The log number is there in files that are used again, where fragments of an older log may follow the
//! last one. The checksum (CRC-32C, masked) covers type, log number and payload, and not the length.

/// A file is a row of blocks; no fragment crosses their borders.
pub const BLOCK_BYTES: usize = 32 << 10;
/// The shorter of the two headers. Where less is left of a block, nothing begins.
pub const HEADER_BYTES: usize = 7;
/// The header of files that may be used again.
pub const RECYCLABLE_HEADER_BYTES: usize = 11;

const FULL: u8 = 1;
const LAST: u8 = 4;
/// Added to a type, in files that may be used again.
const RECYCLABLE: u8 = 4;
/// What is added to a checksum that is stored beside what it covers.
const MASK_DELTA: u32 = 0xa282_ead8;

/// Which part of a record a fragment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Full,
    /// The beginning.
    First,
    /// Neither beginning nor end.
    Middle,
    /// The end.
    Last,
}

impl Part {
    /// True for what begins a record.
    #[must_use]
    pub const fn begins(self) -> bool {
        matches!(self, Self::Full | Self::First)
    }

    /// True for what ends a record.
    #[must_use]
    pub const fn ends(self) -> bool {
        matches!(self, Self::Full | Self::Last)
    }

    const fn of(kind: u8) -> Option<Self> {
        match kind {
            FULL => Some(Self::Full),
            2 => Some(Self::First),
            3 => Some(Self::Middle),
            LAST => Some(Self::Last),
            _ => None,
        }
    }
}

/// Which header a file's fragments have: all of one file have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Without the log's number: of files that are used once.
    Plain,
    /// With it.
    Recyclable,
}

/// A fragment whose checksum is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment<'b> {
    /// Which part of a record.
    pub part: Part,
    /// Which header it has.
    pub form: Form,
    /// What it holds.
    pub payload: &'b [u8],
    /// Header and payload.
    pub bytes: usize,
}

/// Why there is no fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// Nothing but zeros: room that was allotted and never written.
    Zeros,
    /// A type that none can have, or none of this file.
    Garbage,
    /// It belongs to another log: to one whose file was used again.
    OtherLog,
    /// It is one of this log, but its length or its checksum is wrong.
    Broken,
}

/// Reads the fragment that `block` begins with, which belongs to log `number` (of its 64 bits the low 32
/// are stored) and has the header of `form`, if that is known. `block` reaches to the end of its block, or
/// of the file.
///
/// # Errors
/// Why there is none.
pub fn read(block: &[u8], number: u64, form: Option<Form>) -> Result<Fragment<'_>, Unfit> {
    let Some((header, _)) = block.split_first_chunk::<HEADER_BYTES>() else {
        return Err(if block.iter().all(|byte| *byte == 0) {
            Unfit::Zeros
        } else {
            Unfit::Garbage
        });
    };
    let [c0, c1, c2, c3, l0, l1, kind] = *header;
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    if kind == 0 && length == 0 {
        return Err(Unfit::Zeros);
    }
    let (found, plain_kind, header_bytes) = match kind {
        ..=LAST => (Form::Plain, kind, HEADER_BYTES),
        _ => (Form::Recyclable, kind - RECYCLABLE, RECYCLABLE_HEADER_BYTES),
    };
    let (Some(part), Some(named)) = (Part::of(plain_kind), block.get(HEADER_BYTES..header_bytes))
    else {
        return Err(Unfit::Garbage);
    };
    if form.is_some_and(|form| form != found) {
        return Err(Unfit::Garbage);
    }
    if found == Form::Recyclable && named != (number as u32).to_le_bytes() {
        return Err(Unfit::OtherLog);
    }
    let payload = block.get(header_bytes..header_bytes + length).ok_or(Unfit::Broken)?;
    if u32::from_le_bytes([c0, c1, c2, c3]) != checksum(kind, named, payload) {
        return Err(Unfit::Broken);
    }
    Ok(Fragment { part, form: found, payload, bytes: header_bytes + length })
}

fn checksum(kind: u8, named: &[u8], payload: &[u8]) -> u32 {
    let named = crc32c::crc32c_append(crc32c::crc32c(&[kind]), named);
    let covered = crc32c::crc32c_append(named, payload);
    covered.rotate_right(15).wrapping_add(MASK_DELTA)
}

/// Writes log files as RocksDB does, for tests.
#[cfg(test)]
pub(crate) mod writer {
    use super::*;

    /// A file that grows by records.
    pub(crate) struct Writer {
        pub(crate) file: Vec<u8>,
        /// `None`: not to be used again.
        pub(crate) number: Option<u32>,
    }

    impl Writer {
        pub(crate) fn new(number: Option<u32>) -> Self {
            Self { file: Vec::new(), number }
        }

        pub(crate) fn add(&mut self, mut record: &[u8]) {
            let named = self.number.map(u32::to_le_bytes);
            let named = named.as_ref().map_or(&[][..], |number| &number[..]);
            let header_bytes = HEADER_BYTES + named.len();
            let mut begins = true;
            loop {
                let left = BLOCK_BYTES - self.file.len() % BLOCK_BYTES;
                if left < header_bytes {
                    self.file.resize(self.file.len() + left, 0);
                    continue;
                }
                let (payload, rest) = record.split_at(record.len().min(left - header_bytes));
                let kind = match (begins, rest.is_empty()) {
                    (true, true) => 1,
                    (true, false) => 2,
                    (false, false) => 3,
                    (false, true) => 4,
                } + if named.is_empty() { 0 } else { RECYCLABLE };
                self.file.extend(checksum(kind, named, payload).to_le_bytes());
                self.file.extend((payload.len() as u16).to_le_bytes());
                self.file.push(kind);
                self.file.extend(named);
                self.file.extend(payload);
                (record, begins) = (rest, false);
                if record.is_empty() {
                    return;
                }
            }
        }
    }
}
