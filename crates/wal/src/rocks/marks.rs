//! The marks that the last processes have begun their batches with, in a file beside the logs.
//!
//! A file of the logs tells its mark only with its first whole batch. Those that stand here are needed where
//! that one is damaged or torn: see [`format::batch`](crate::format::batch). The file is text:
//!
//! ```text
//! quorate marks 1
//! 0123456789abcdef
//! 89abcdef01234567
//! checksum 01234567
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::error::LogError;

const FILE: &str = "MARKS";
const FILE_NEW: &str = "MARKS.new";
const HEADER: &str = "quorate marks 1\n";

/// Live files are of the last process; of the ones before only if a manifest has lost its end, or starts
/// were cut short.
const KEPT_MAX: usize = 8;

/// The marks of the last processes, the last one first; none where they are not known: then every mark
/// may be one of them.
pub(super) fn load(directory: &Path) -> Vec<u64> {
    let file = fs::read_to_string(directory.join(FILE)).unwrap_or_default();
    decode(&file).unwrap_or_default()
}

/// Puts `mark` before the others, durably: to be done before the first batch has it, and once RocksDB has
/// opened, so that no log of a process that kept no marks is needed any more.
pub(super) fn add(directory: &Path, mark: u64) -> Result<(), LogError> {
    let mut marks = vec![mark];
    marks.extend(load(directory));
    marks.truncate(KEPT_MAX);
    let replace = || -> io::Result<()> {
        let (path, new) = (directory.join(FILE), directory.join(FILE_NEW));
        let mut file = File::create(&new)?;
        file.write_all(encode(&marks).as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    replace().map_err(|error| LogError::Engine(format!("{}: {error}", directory.display())))
}

fn encode(marks: &[u64]) -> String {
    let lines: String = marks.iter().map(|mark| format!("{mark:016x}\n")).collect();
    let text = format!("{HEADER}{lines}");
    format!("{text}checksum {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

fn decode(file: &str) -> Option<Vec<u64>> {
    let lines = file.strip_prefix(HEADER)?.lines().take_while(|line| line.len() == 16);
    let marks: Option<Vec<_>> = lines.map(|line| u64::from_str_radix(line, 16).ok()).collect();
    marks.filter(|marks| encode(marks) == file)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use quorate_types::{GroupId, SnapshotMeta};

    use super::*;
    use crate::rocks::{RocksLog, RocksOptions, files};
    use crate::{LogStore as _, Write};

    #[test]
    fn the_last_marks_are_kept_and_damaged_ones_are_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()), []);
        for mark in 1..=10 {
            add(directory.path(), mark).unwrap();
        }
        assert_eq!(load(directory.path()), [10, 9, 8, 7, 6, 5, 4, 3]);
        let whole = encode(&[u64::MAX, 7]);
        assert_eq!(decode(&whole), Some(vec![u64::MAX, 7]));
        for at in 0..whole.len() {
            let mut damaged = whole.clone().into_bytes();
            damaged[at] ^= 1;
            assert_eq!(decode(&String::from_utf8(damaged).unwrap()), None, "byte {at}");
            assert_eq!(decode(&whole[..at]), None, "{at} bytes");
        }
    }

    #[test]
    fn the_first_batch_of_every_file_has_a_mark_that_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let options = RocksOptions { memtable_bytes: 64 << 10, ..RocksOptions::default() };
        let (group, label) = (GroupId(1), Bytes::from(vec![7; 4_000]));
        let mut marks = BTreeMap::new();
        for life in 0..3 {
            let mut log = RocksLog::open(directory.path(), &options).unwrap();
            for _ in 0..100 {
                let (label, snapshot) = (label.clone(), SnapshotMeta::default());
                log.write(&[Write::Create { group, label, snapshot }]).unwrap();
                let (number, mark) = files::newest_mark(directory.path());
                let mark = mark.unwrap_or_else(|| panic!("log {number} has no mark"));
                assert_eq!(load(directory.path())[0], mark, "log {number} in life {life}");
                marks.insert(number, mark);
            }
        }
        assert!(marks.len() > 6, "several files in a life: {marks:x?}");
    }
}
