//! A data directory that no node runs on, looked at from outside: for `quorate check` and `quorate log dump`.
//!
//! Nothing in the directory is changed: its files are opened to be read, and what RocksDB has to say while
//! it opens them goes elsewhere. A directory in use is refused, since what is read would change meanwhile.

mod check;
mod describe;
mod dump;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

pub use check::{Report, check};
pub use dump::{DumpedEntry, dump};
pub use quorate_wal::LogError;

use crate::identity::DataDirError;

/// Why a data directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// There is nothing to look at.
    #[error("{0} is not the data directory of a node")]
    NotADataDir(PathBuf),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// A data directory that nobody uses, or begins to use, as long as this lives.
struct Unused {
    path: PathBuf,
    _lock: File,
}

impl Unused {
    fn new(path: &Path) -> Result<Self, InspectError> {
        let io_error = |source| DataDirError::Io { path: path.to_owned(), source };
        let lock = match File::open(path.join("LOCK")) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InspectError::NotADataDir(path.to_owned()));
            }
            Err(error) => return Err(io_error(error).into()),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DataDirError::InUse(path.to_owned()).into()),
            Err(errno) => Err(io_error(errno.into()).into()),
        }
    }

    fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    fn state(&self) -> PathBuf {
        self.path.join("state")
    }
}

#[cfg(test)]
mod tests;
