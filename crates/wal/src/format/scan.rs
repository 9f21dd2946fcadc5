//! One file from its beginning to the first record that does not fit, and what lies behind that.

use std::fmt;

use super::fragment::{
    self, BLOCK_BYTES, Form, Fragment, HEADER_BYTES, Part, RECYCLABLE_HEADER_BYTES, Unfit,
};

/// What the records of a file mean.
pub trait Records {
    /// Takes the next record.
    ///
    /// # Errors
    /// Why it cannot be the next one, in words: then it is none of this file's.
    fn take(&mut self, record: &[u8]) -> Result<(), &'static str>;

    /// Whether a record that begins so, found behind one that does not fit, is this file's. `None`: more
    /// must be known of it.
    fn is_own(&self, beginning: &[u8]) -> Option<bool>;
}

/// How a file reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// Its records up to here are whole: the end of the last one before anything that does not fit.
    pub whole_bytes: u64,
    /// All of it.
    pub file_bytes: u64,
    /// How its fragments are written; `None` when it has none.
    pub form: Option<Form>,
    /// What does not fit; `None` when the file ends with its last record.
    pub stop: Option<Stop>,
}

/// Where a file stops to make sense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stop {
    /// The first byte of the fragment that does not fit, from the beginning of the file.
    pub at: u64,
    /// What it looks like.
    pub why: Why,
    /// Where the first fragment behind it lies that begins a record of this file: what was written after
    /// a sync of everything before it.
    pub later: Option<u64>,
}

/// What a fragment that does not fit looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// What lies there is no fragment of this log. Any log ends so whose file was used before.
    Foreign(Unfit),
    /// The length or the checksum of a fragment of this log is wrong.
    Broken,
    /// A fragment is missing: the file ends inside a record, or another record begins there.
    Incomplete,
    /// A record is whole and cannot be the next one; why not, in words.
    Unexpected(&'static str),
}

/// Reads a file block by block.
pub struct Scanner<R> {
    records: R,
    /// Of the log that the file holds.
    number: u64,
    /// That of the first fragment.
    form: Option<Form>,
    read_bytes: u64,
    whole_bytes: u64,
    /// The record that has begun, and where.
    record: Vec<u8>,
    began: Option<u64>,
    stop: Option<Stop>,
    /// Behind the stop: a first fragment at the end of the last block, too short to tell whose it is.
    beginning: Option<(u64, Vec<u8>)>,
}

impl<R: Records> Scanner<R> {
    /// Before the first block of the file of log `number`.
    pub fn new(number: u64, records: R) -> Self {
        let (read_bytes, whole_bytes, record) = (0, 0, Vec::new());
        let (form, began, stop, beginning) = (None, None, None, None);
        Self { records, number, form, read_bytes, whole_bytes, record, began, stop, beginning }
    }

    /// Takes the next block: [`BLOCK_BYTES`], or less at the end of the file.
    pub fn block(&mut self, block: &[u8]) {
        debug_assert!(block.len() <= BLOCK_BYTES, "a block of {} bytes", block.len());
        let mut at = 0;
        while self.stop.is_none() && !is_trailer(&block[at..], block.len() == BLOCK_BYTES) {
            match fragment::read(&block[at..], self.number, self.form) {
                Ok(fragment) => {
                    let offset = self.read_bytes + at as u64;
                    self.fragment(offset, fragment);
                    if self.stop.is_none() {
                        at += fragment.bytes;
                    }
                }
                Err(Unfit::Broken) => self.stop(at, Why::Broken),
                Err(unfit) => self.stop(at, Why::Foreign(unfit)),
            }
        }
        self.hunt(block, at);
        self.read_bytes += block.len() as u64;
    }

    /// The end of the file.
    pub fn finish(mut self) -> (Scan, R) {
        if self.stop.is_none() && self.began.is_some() {
            self.stop = Some(Stop { at: self.read_bytes, why: Why::Incomplete, later: None });
        }
        let Self { whole_bytes, read_bytes: file_bytes, form, stop, records, .. } = self;
        (Scan { whole_bytes, file_bytes, form, stop }, records)
    }

    fn fragment(&mut self, offset: u64, fragment: Fragment<'_>) {
        self.form = Some(fragment.form);
        if fragment.part.begins() != self.began.is_none() {
            let why = Why::Incomplete;
            self.stop = Some(Stop { at: offset, why, later: None });
            return;
        }
        if fragment.part.begins() {
            self.record.clear();
        }
        let began = *self.began.get_or_insert(offset);
        self.record.extend_from_slice(fragment.payload);
        if fragment.part.ends() {
            self.began = None;
            match self.records.take(&self.record) {
                Ok(()) => self.whole_bytes = offset + fragment.bytes as u64,
                Err(what) => {
                    self.stop = Some(Stop { at: began, why: Why::Unexpected(what), later: None });
                }
            }
        }
    }

    fn stop(&mut self, at: usize, why: Why) {
        self.stop = Some(Stop { at: self.read_bytes + at as u64, why, later: None });
    }

    /// Looks for the beginning of a record behind what does not fit. At every byte: the length that leads
    /// from one fragment to the next is what no checksum covers.
    fn hunt(&mut self, block: &[u8], from: usize) {
        let Some(Stop { later: later @ None, .. }) = &mut self.stop else { return };
        // A beginning alone may be anybody's; how the next block begins is up to the log's writer.
        if let Some((offset, mut record)) = self.beginning.take()
            && let Ok(next) = fragment::read(block, self.number, self.form)
            && !next.part.begins()
        {
            record.extend_from_slice(next.payload);
            if self.records.is_own(&record) == Some(true) {
                *later = Some(offset);
                return;
            }
        }
        for at in from..block.len() {
            let Ok(fragment) = fragment::read(&block[at..], self.number, self.form) else {
                continue;
            };
            let offset = self.read_bytes + at as u64;
            match self.records.is_own(fragment.payload) {
                Some(true) if fragment.part.begins() => {
                    *later = Some(offset);
                    return;
                }
                None if fragment.part == Part::First && at + fragment.bytes == BLOCK_BYTES => {
                    self.beginning = Some((offset, fragment.payload.to_vec()));
                }
                _ => {}
            }
        }
    }
}

/// Whether no fragment begins in the rest of a block because too little is left of it.
fn is_trailer(rest: &[u8], is_full_block: bool) -> bool {
    let is_short = rest.len() < HEADER_BYTES;
    let is_padding = rest.len() < RECYCLABLE_HEADER_BYTES && rest.iter().all(|byte| *byte == 0);
    rest.is_empty() || is_full_block && (is_short || is_padding)
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Foreign(Unfit::Zeros) => "nothing was written there",
            Self::Foreign(_) => "no record of this log is there",
            Self::Broken => "a length or a checksum is wrong",
            Self::Incomplete => "a part of a record is missing",
            Self::Unexpected(what) => what,
        })
    }
}
