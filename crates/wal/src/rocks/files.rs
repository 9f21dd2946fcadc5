//! The files of the logs before RocksDB opens them: judged, and rid of the end that no sync covered.
//!
//! RocksDB would take everything behind the first record that does not fit for such an end, and its
//! manifest's end too; see [`format`](crate::format). What is judged here is then opened as it is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use super::marks;
use crate::error::LogError;
use crate::format::batch::Batches;
use crate::format::fragment::BLOCK_BYTES;
use crate::format::manifest::Manifest;
use crate::format::scan::{Records, Scan, Scanner};
use crate::format::verdict::{LogFile, judge};

/// The end of a file that is no part of the logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CutTail {
    /// The file.
    pub file: PathBuf,
    /// Where its last whole record ends.
    pub whole_bytes: u64,
    /// Where it ends.
    pub file_bytes: u64,
    /// True if a batch was being written there that nobody was told of; false for what an older log has
    /// left in the file.
    pub is_torn: bool,
}

/// What the files hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Examined {
    /// Live write-ahead log files.
    pub(super) files: usize,
    /// Their bytes up to the last whole record.
    pub(super) whole_bytes: u64,
    /// What has to go before RocksDB opens them.
    pub(super) tails: Vec<CutTail>,
}

/// Keeps every other process, and other parts of this one, out of a directory, for as long as it lives.
/// RocksDB's own lock comes too late: files are cut before.
pub(super) fn lock(directory: &Path) -> Result<File, LogError> {
    let file = File::open(directory).map_err(|error| failed(directory, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(LogError::Engine(format!("{} is in use", directory.display())))
        }
        Err(fs::TryLockError::Error(error)) => Err(failed(directory, &error)),
    }
}

/// Judges the files of `directory` and changes nothing. A directory without logs holds nothing.
pub(super) fn examine(directory: &Path) -> Result<Examined, LogError> {
    let Some(path) = current_manifest(directory)? else { return Ok(Examined::default()) };
    let (scan, manifest) = read(&path, 0, Manifest::default())?;
    let name = file_name(&path);
    if let Some(stop) = scan.stop.as_ref().filter(|stop| stop.later.is_some()) {
        return Err(damaged(format!("{name} at byte {}: {}", stop.at, stop.why)));
    }
    if manifest.edits() == 0 {
        return Err(damaged(format!("{name} holds nothing")));
    }
    let mut examined = Examined::default();
    if scan.whole_bytes < scan.file_bytes {
        let Scan { whole_bytes, file_bytes, .. } = scan;
        examined.tails.push(CutTail { file: path, whole_bytes, file_bytes, is_torn: true });
    }
    let marks = marks::load(directory);
    let mut live = live_files(directory, manifest.live_from(), &marks)?;
    let is_known = |mark: &u64| marks.contains(mark);
    if !live.iter().filter_map(|file| file.batches.mark()).all(|mark| is_known(&mark)) {
        // The marks are older than the logs.
        live = live_files(directory, manifest.live_from(), &[])?;
    }
    let tails = judge(manifest.last_sequence(), &live);
    for tail in tails.map_err(|damage| damaged(damage.to_string()))? {
        let (whole_bytes, file_bytes, is_torn) = (tail.whole_bytes, tail.file_bytes, tail.is_torn);
        let file = log_path(directory, tail.number);
        examined.tails.push(CutTail { file, whole_bytes, file_bytes, is_torn });
    }
    examined.files = live.len();
    examined.whole_bytes = live.iter().map(|file| file.scan.whole_bytes).sum();
    Ok(examined)
}

/// Reads the log files from number `live_from` on.
fn live_files(directory: &Path, live_from: u64, marks: &[u64]) -> Result<Vec<LogFile>, LogError> {
    let mut live = Vec::new();
    for number in numbers(directory, "log")? {
        if number >= live_from {
            let batches = Batches::of(marks);
            let (scan, batches) = read(&log_path(directory, number), number, batches)?;
            live.push(LogFile { number, scan, batches });
        }
    }
    Ok(live)
}

/// Cuts off what is no part of the logs, durably.
pub(super) fn cut(tails: &[CutTail]) -> Result<(), LogError> {
    for tail in tails {
        let CutTail { file, whole_bytes, file_bytes, is_torn } = tail;
        let truncate = || {
            let opened = OpenOptions::new().write(true).open(file)?;
            opened.set_len(*whole_bytes)?;
            opened.sync_all()
        };
        truncate().map_err(|error| failed(file, &error))?;
        if *is_torn {
            let file = file_name(file);
            tracing::info!(file, whole_bytes, file_bytes, "the torn end of a log file is cut off");
        }
    }
    Ok(())
}

/// The manifest that is in force. `None` where no log was ever opened.
fn current_manifest(directory: &Path) -> Result<Option<PathBuf>, LogError> {
    let current = match fs::read(directory.join("CURRENT")) {
        Ok(current) => current,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // RocksDB makes these after it; without it, it would begin anew and remove them.
            let has_data =
                !numbers(directory, "log")?.is_empty() || !numbers(directory, "sst")?.is_empty();
            return if has_data { Err(damaged("CURRENT is missing".to_owned())) } else { Ok(None) };
        }
        Err(error) => return Err(failed(&directory.join("CURRENT"), &error)),
    };
    let name = current.strip_suffix(b"\n").and_then(|name| str::from_utf8(name).ok());
    let is_manifest = |name: &&str| {
        let number = name.strip_prefix("MANIFEST-");
        number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match name.filter(is_manifest).map(|name| directory.join(name)).filter(|path| path.is_file()) {
        Some(path) => Ok(Some(path)),
        None => Err(damaged(format!("CURRENT names no manifest: {}", current.escape_ascii()))),
    }
}

/// The numbers of the files with an extension, ascending.
fn numbers(directory: &Path, extension: &str) -> Result<Vec<u64>, LogError> {
    let mut numbers = Vec::new();
    for file in fs::read_dir(directory).map_err(|error| failed(directory, &error))? {
        let name = file.map_err(|error| failed(directory, &error))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(extension));
        let number = number.and_then(|name| name.strip_suffix('.'));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read<R: Records>(path: &Path, number: u64, records: R) -> Result<(Scan, R), LogError> {
    let read = || {
        let mut file = File::open(path)?;
        file.rewind()?;
        let mut scanner = Scanner::new(number, records);
        let mut blocks = vec![0; READ_BYTES];
        loop {
            let read = fill(&mut file, &mut blocks)?;
            blocks[..read].chunks(BLOCK_BYTES).for_each(|block| scanner.block(block));
            if read < READ_BYTES {
                return Ok(scanner.finish());
            }
        }
    };
    read().map_err(|error: io::Error| failed(path, &error))
}

/// Some blocks at once.
const READ_BYTES: usize = 32 * BLOCK_BYTES;

/// Reads until `buffer` is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn log_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:06}.log"))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn damaged(what: String) -> LogError {
    LogError::DamagedEngine(what)
}

fn failed(path: &Path, error: &io::Error) -> LogError {
    LogError::Engine(format!("{}: {error}", path.display()))
}

/// The number of the newest log file, and the mark of its batches.
#[cfg(test)]
pub(super) fn newest_mark(directory: &Path) -> (u64, Option<u64>) {
    let number = numbers(directory, "log").unwrap().into_iter().max().unwrap();
    let file = read(&log_path(directory, number), number, Batches::default()).unwrap();
    (number, file.1.mark())
}
