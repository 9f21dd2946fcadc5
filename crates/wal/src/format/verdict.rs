//! Torn or damaged: what the end of the logs has lost.
//!
//! One thread writes, and batch *n* + 1 only after the sync of batch *n*. So at most one batch was never
//! synced, the last one, and whatever shows that a batch was written after an unreadable one shows that the
//! unreadable one was synced, and hence perhaps acknowledged.

use super::batch::{self, Batches};
use super::fragment::{Form, RECYCLABLE_HEADER_BYTES};
use super::scan::{Scan, Stop, Why};

/// One live log file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFile {
    /// Its number.
    pub number: u64,
    /// How it reads.
    pub scan: Scan,
    /// What it holds.
    pub batches: Batches,
}

/// A file that ends in what is no batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// The number of the file.
    pub number: u64,
    /// Where its last whole batch ends.
    pub whole_bytes: u64,
    /// Where the file ends.
    pub file_bytes: u64,
    /// True if a batch was being written there; false for what an older log has left behind.
    pub is_torn: bool,
}

/// Something that was synced is gone.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("log file {number:06} at byte {at}: {what}")]
pub struct Damage {
    /// The number of the file.
    pub number: u64,
    /// The first byte that cannot be trusted.
    pub at: u64,
    /// How that is known.
    pub what: String,
}

/// Judges the live log files, in ascending order of their numbers. `last_sequence` is that of the
/// manifest: everything that is not in these files has at most that one.
///
/// # Errors
/// The first damage.
pub fn judge(last_sequence: Option<u64>, files: &[LogFile]) -> Result<Vec<Tail>, Damage> {
    let mut next_max = last_sequence.map(|last| last + 1);
    let mut is_exact = false;
    let mut tails = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let LogFile { number, scan, batches } = file;
        let damage = |at, what: String| Damage { number: *number, at, what };
        if let Some((first, next)) = batches.span() {
            if next_max.is_some_and(|max| first > max || is_exact && first != max) {
                return Err(damage(0, "batches are missing before its first one".to_owned()));
            }
            (next_max, is_exact) = (Some(next), true);
        }
        let Some(Stop { at: stopped, why, later }) = &scan.stop else { continue };
        if let Some(later) = later {
            let what = format!("{why}, and a later batch begins at byte {later}");
            return Err(damage(*stopped, what));
        }
        let is_torn = !matches!(why, Why::Foreign(_));
        if at + 1 < files.len() && (is_torn || !may_end_foreign(scan)) {
            return Err(damage(*stopped, format!("{why}, and there is a later log file")));
        }
        let (whole_bytes, file_bytes) = (scan.whole_bytes, scan.file_bytes);
        tails.push(Tail { number: *number, whole_bytes, file_bytes, is_torn });
    }
    Ok(tails)
}

/// Whether what is foreign in a file may lie behind all that was written to it, though there is a later
/// file. That was begun after all of this one was synced, or after what a start had found unsynced was cut
/// off, so only an older log is left: there is none where files are not used again, and before a file that
/// holds an older one alone is left for another, something is written to it.
fn may_end_foreign(scan: &Scan) -> bool {
    // A start that was cut short leaves one batch without rows, which nobody has synced.
    let unsynced_bytes = (RECYCLABLE_HEADER_BYTES + batch::HEADER_BYTES) as u64;
    match scan.form {
        _ if scan.whole_bytes == 0 => scan.file_bytes <= unsynced_bytes,
        Some(Form::Plain) => false,
        Some(Form::Recyclable) | None => true,
    }
}
