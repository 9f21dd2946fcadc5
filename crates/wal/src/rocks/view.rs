//! The logs of a directory that nobody runs on, as they are: for tools. Not a byte of it is changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, RwLock};

use quorate_types::GroupId;
use rocksdb::DB;

use super::files::{self, CutTail, Examined};
use super::index::{GroupLog, Index};
use super::options::RocksOptions;
use super::{UNPOISONED, opening, reader, recovery};
use crate::error::LogError;
use crate::log_store::{LogReader, RecoveredLog};

/// Logs that can only be read.
pub struct RocksLogView {
    db: Arc<DB>,
    index: Arc<RwLock<Index>>,
    synced_batches: u64,
    damaged: BTreeMap<GroupId, LogError>,
    examined: Examined,
    /// Nobody may begin to run on it meanwhile.
    lock: Arc<File>,
}

impl RocksLogView {
    /// Reads the logs in `directory` as [`RocksLog::open`](super::RocksLog::open) does, into memory as far
    /// as they are in the write-ahead log, and leaves the directory as it is. RocksDB keeps a diary whenever
    /// it opens something; it goes to `diary`.
    ///
    /// # Errors
    /// As [`RocksLog::open`](super::RocksLog::open); also when there are no logs.
    pub fn open(directory: &Path, diary: &Path) -> Result<Self, LogError> {
        let lock = files::lock(directory)?;
        let examined = files::examine(directory)?;
        let mut options = RocksOptions::default().to_rocksdb();
        options.create_if_missing(false);
        options.set_db_log_dir(diary);
        let db = DB::open_for_read_only(&options, directory, false).map_err(opening)?;
        let recovery::Recovered { index, synced_batches, damaged, .. } = recovery::scan(&db)?;
        let (db, index) = (Arc::new(db), Arc::new(RwLock::new(index)));
        Ok(Self { db, index, synced_batches, damaged, examined, lock: Arc::new(lock) })
    }

    /// Every log that is whole.
    #[must_use]
    pub fn logs(&self) -> BTreeMap<GroupId, RecoveredLog> {
        let index = self.index.read().expect(UNPOISONED);
        index.iter().map(|(group, log)| (*group, GroupLog::recovered(log))).collect()
    }

    /// The groups whose records do not fit; see [`RocksLog::damaged`](super::RocksLog::damaged).
    #[must_use]
    pub fn damaged(&self) -> &BTreeMap<GroupId, LogError> {
        &self.damaged
    }

    /// How many batches were ever synced.
    #[must_use]
    pub fn synced_batches(&self) -> u64 {
        self.synced_batches
    }

    /// How many write-ahead log files are live, and how many bytes of batches they hold.
    #[must_use]
    pub fn live_files(&self) -> (usize, u64) {
        (self.examined.files, self.examined.whole_bytes)
    }

    /// The ends of files that the next start will cut off.
    #[must_use]
    pub fn tails(&self) -> &[CutTail] {
        &self.examined.tails
    }

    /// Reads entries.
    #[must_use]
    pub fn reader(&self) -> Box<dyn LogReader> {
        let (db, index) = (Arc::clone(&self.db), Arc::clone(&self.index));
        Box::new(reader::RocksReader::new(db, index, Arc::clone(&self.lock)))
    }
}
