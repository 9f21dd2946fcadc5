//! The logs of a node in one RocksDB instance, default column family only.
//!
//! # Rows
//!
//! ```text
//! 1                               -> store: how many batches were ever synced
//! 2, group u64                    -> group: label, base of the log, membership given at creation
//! 3, group u64                    -> hard state
//! 4, group u64, first index u64   -> batch record: the entries of one append
//! 5, group u64                    -> intent: what is about to be done with the group
//! 6                               -> note: words of the host about the node
//! ```
//!
//! Integers in keys are big endian, so that a group's records lie together in the order of their indexes.
//! Every value carries a checksum over key and value, and a version (see `record`).
//!
//! # Overlapping records
//!
//! An append that begins inside an older record does not rewrite that one. The rule for what a log holds is:
//! **of each record, the entries before the first index of the next record**. An append at index `i` removes
//! every record that begins at `i` or later and puts its own, so an older record that reaches beyond `i` is
//! cut by the new one's key. The cut lasts as long as it must: the record at `i` is removed either by an
//! append at or before `i`, whose own record then cuts as early or earlier (or replaces the older one), or
//! by a truncation of the prefix, which removes records from the front, hence the older one before. And
//! because a batch is atomic, there is no moment between removal and put.
//!
//! # The single-put rule
//!
//! RocksDB's `SingleDelete` cancels exactly one `Put`: between two of them a key may be put only once, and
//! must never meet `Delete`, `Merge` or a range deletion. In return, a pair that meets in the memtable
//! vanishes when it is flushed, where a `Delete` would leave a tombstone down to the last level. Only batch
//! records are removed so, and the `index` in memory, which lists every live one, makes the rule hold:
//!
//! - a `Put` at `first` happens only after every live record at `first` or later got its `SingleDelete`
//!   (`GroupLog::cut`), so the key is not live;
//! - a `SingleDelete` is written only for a record in the list, which leaves the list at that moment, so
//!   the key is live and loses its only `Put`.
//!
//! Hence for each key the operations alternate, beginning with a `Put`. That stays so within one batch: its
//! operations get ascending sequence numbers, and `Put, SingleDelete, Put` of one key (an append at the
//! first index of an older record) are three versions of the key. Compaction keeps such a `SingleDelete`
//! even under a newer `Put` until it meets the older `Put` (it is exempt from the rule that drops
//! overwritten versions), so it cannot be lost between levels and bring the older one back. The other rows
//! are overwritten and removed by plain `Put` and `Delete`, and never by `SingleDelete`. Destroying a group
//! removes its records one by one rather than by a range deletion, for the same reason.
//!
//! # Durability
//!
//! [`RocksLog::write`](crate::LogStore::write) is one `WriteBatch` with `sync`: it is in the write-ahead log,
//! and that is synced, when it returns. Nothing is ever written around the write-ahead log. Recovery is
//! RocksDB's point-in-time mode: it stops at the first record that does not fit. So the files are judged before (see `files`): a torn end is cut off, and where something
//! is lost that was synced, the logs do not open. For that, every batch begins with a mark and ends with the
//! store's own row: the mark is known to no client (the last ones are kept in a file, see `marks`), and that row survives in memory whatever is removed, so
//! that a sorted file always has the last sequence number of what went into it.

mod files;
mod index;
mod marks;
mod options;
mod reader;
mod record;
mod recovery;
mod view;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{Arc, RwLock};

use bytes::{Bytes, BytesMut};
use quorate_types::{GroupId, HardState};
use rocksdb::statistics::Ticker;
use rocksdb::{DB, ErrorKind, Options, WriteBatch, WriteOptions};

pub use self::files::CutTail;
pub use self::options::RocksOptions;
pub use self::view::RocksLogView;

use self::index::{GroupLog, Index};
use self::record::Key;
use crate::error::LogError;
use crate::log_store::{LogReader, LogStore, RecoveredLog, Write, Written};

/// The logs in one directory.
pub struct RocksLog {
    db: Arc<DB>,
    /// What is live, shared with readers. It is brought up to date while a batch is encoded, so it may be
    /// ahead of the engine by the batch that is being written.
    index: Arc<RwLock<Index>>,
    synced: WriteOptions,
    synced_batches: u64,
    /// The host's words: as they are on disk, and those that go with the next batch.
    noted: Bytes,
    to_note: Option<Bytes>,
    /// Groups whose rows are damaged. Nothing is written for them.
    damaged: BTreeMap<GroupId, LogError>,
    /// What this process begins its batches with.
    mark: [u8; 8],
    /// Where the engine counts.
    options: Options,
    /// Where values are encoded before RocksDB copies them into the batch.
    scratch: BytesMut,
    batch_capacity_bytes: usize,
    failed: bool,
    /// Shared with readers: the directory is let go when the engine is closed.
    lock: Arc<File>,
}

/// A batch is allotted as much as the last one took, but not more than this.
const BATCH_CAPACITY_BYTES_MAX: usize = 4 << 20;

impl RocksLog {
    /// Opens the logs in `directory`, makes it if need be, and reads every record: checksums, and that no
    /// log has a gap. An end of the write-ahead log that was never synced is cut off. Groups whose records
    /// do not fit are [`damaged`](Self::damaged), and have no log here.
    ///
    /// # Errors
    /// [`LogError::DamagedEngine`] when something is lost that may concern every group,
    /// [`LogError::Format`] for a newer release's record, [`LogError::Engine`] whatever RocksDB or the file
    /// system say, such as that another process has the directory open.
    pub fn open(directory: &Path, options: &RocksOptions) -> Result<Self, LogError> {
        make_directory(directory)
            .map_err(|error| LogError::Engine(format!("{}: {error}", directory.display())))?;
        let lock = files::lock(directory)?;
        files::cut(&files::examine(directory)?.tails)?;
        let options = options.to_rocksdb();
        let db = DB::open(&options, directory).map_err(opening)?;
        let recovery::Recovered { index, synced_batches, noted, damaged } = recovery::scan(&db)?;
        let mut synced = WriteOptions::new();
        synced.set_sync(true);
        // The keys of such a hash are the system's random numbers.
        let mark = RandomState::new().hash_one(directory);
        marks::add(directory, mark)?;
        let mut log = Self {
            db: Arc::new(db),
            index: Arc::new(RwLock::new(index)),
            synced,
            synced_batches,
            noted,
            to_note: None,
            damaged,
            mark: mark.to_le_bytes(),
            options,
            scratch: BytesMut::new(),
            batch_capacity_bytes: 0,
            failed: false,
            lock: Arc::new(lock),
        };
        // The new log file has something from the start that goes on where the sorted files end: should
        // the manifest lose its last changes, the gap shows.
        log.seal()?;
        Ok(log)
    }

    /// The groups whose records are not what was written, with the first one that does not fit. They must
    /// not take part here any more, and nothing may be written for them.
    #[must_use]
    pub fn damaged(&self) -> &BTreeMap<GroupId, LogError> {
        &self.damaged
    }

    /// Every group that there is a row of, damaged ones too.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        let index = self.index.read().expect(UNPOISONED);
        let whole: Vec<_> = index.keys().copied().collect();
        whole.into_iter().chain(self.damaged.keys().copied())
    }

    /// Writes what is in memory to files, so that what was truncated there is dropped. For tests and
    /// tools: RocksDB does it by itself.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn flush(&self) -> Result<(), LogError> {
        self.db.flush().map_err(engine)
    }

    /// Merges all files into one level. For tests and tools.
    pub fn compact(&self) {
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
    }

    /// A batch after which so many were synced.
    fn encode(&mut self, writes: &[Write], synced_batches: u64) -> WriteBatch {
        let mut batch = WriteBatch::with_capacity_bytes(self.batch_capacity_bytes);
        batch.put_log_data(self.mark);
        let mut encoder = Encoder { batch: &mut batch, scratch: &mut self.scratch };
        let mut index = self.index.write().expect(UNPOISONED);
        for write in writes {
            let group = write.group();
            let damage = self.damaged.get(&group);
            assert!(damage.is_none(), "group {group}: a write for a damaged log: {damage:?}");
            encoder.write(&mut index, write);
        }
        if let Some(words) = &self.to_note {
            encoder.put(Key::Note, |body| body.extend_from_slice(words));
        }
        // Last, and in every batch: see the chapter.
        encoder.put(Key::Store, |body| record::put_store(body, synced_batches));
        batch
    }

    /// Writes a batch and syncs it; gives its bytes.
    fn sync(&mut self, batch: WriteBatch) -> Result<usize, LogError> {
        let bytes = batch.size_in_bytes();
        if let Err(error) = self.db.write_opt(batch, &self.synced) {
            self.failed = true;
            return Err(engine(error));
        }
        if let Some(words) = self.to_note.take() {
            self.noted = words;
        }
        Ok(bytes)
    }
}

impl LogStore for RocksLog {
    fn write(&mut self, writes: &[Write]) -> Result<Written, LogError> {
        if self.failed {
            return Err(LogError::Poisoned);
        }
        let batch = self.encode(writes, self.synced_batches + 1);
        let bytes = self.sync(batch)?;
        self.batch_capacity_bytes = bytes.min(BATCH_CAPACITY_BYTES_MAX);
        self.synced_batches += 1;
        Ok(Written { bytes: bytes as u64 })
    }

    fn seal(&mut self) -> Result<(), LogError> {
        if self.failed {
            return Err(LogError::Poisoned);
        }
        let batch = self.encode(&[], self.synced_batches);
        self.sync(batch).map(drop)
    }

    fn note(&mut self, words: Bytes) {
        self.to_note = Some(words);
    }

    fn noted(&self) -> Bytes {
        self.noted.clone()
    }

    fn recover(&mut self) -> Result<BTreeMap<GroupId, RecoveredLog>, LogError> {
        let index = self.index.read().expect(UNPOISONED);
        Ok(index.iter().map(|(group, log)| (*group, log.recovered())).collect())
    }

    fn log(&self, group: GroupId) -> Option<RecoveredLog> {
        self.index.read().expect(UNPOISONED).get(&group).map(GroupLog::recovered)
    }

    fn synced_batches(&self) -> u64 {
        self.synced_batches
    }

    fn rewritten_bytes(&self) -> u64 {
        self.options.get_ticker_count(Ticker::FlushWriteBytes)
            + self.options.get_ticker_count(Ticker::CompactWriteBytes)
    }

    fn reader(&self) -> Box<dyn LogReader> {
        let (db, index) = (Arc::clone(&self.db), Arc::clone(&self.index));
        Box::new(reader::RocksReader::new(db, index, Arc::clone(&self.lock)))
    }
}

/// Turns writes into rows, and keeps the index in step.
struct Encoder<'b> {
    batch: &'b mut WriteBatch,
    scratch: &'b mut BytesMut,
}

impl Encoder<'_> {
    fn write(&mut self, index: &mut Index, write: &Write) {
        match write {
            Write::Create { group, label, snapshot } => {
                let hard_state = match index.remove(group) {
                    Some(log) => {
                        self.single_delete(*group, log.records());
                        self.clear_intent(*group, &log);
                        log.hard_state()
                    }
                    None => HardState::default(),
                };
                let log = GroupLog::new(label.clone(), snapshot.clone(), hard_state);
                self.put(Key::Group(*group), |body| record::put_group(body, &log));
                index.insert(*group, log);
            }
            Write::Append { group, hard_state, entries } => {
                let log =
                    index.get_mut(group).unwrap_or_else(|| panic!("append to unknown {group:?}"));
                if let Some(hard_state) = hard_state.filter(|new| *new != log.hard_state()) {
                    self.put(Key::HardState(*group), |body| {
                        record::put_hard_state(body, &hard_state);
                    });
                    log.set_hard_state(hard_state);
                }
                if let Some(first) = entries.first() {
                    let before = log.check_append(*group, entries);
                    self.single_delete(*group, log.cut(first.id.index));
                    log.push(first.id.index, entries.iter().map(|entry| entry.id));
                    log.note_memberships(entries);
                    self.put(Key::Batch(*group, first.id.index), |body| {
                        record::put_batch(body, before.term, entries);
                    });
                }
            }
            Write::TruncatePrefix { group, through } => {
                let Some(log) = index.get_mut(group) else { return };
                crate::log_store::assert_truncation(*group, *through, log.last());
                if *through > log.base().index {
                    self.single_delete(*group, log.truncate_prefix(*through));
                    self.put(Key::Group(*group), |body| record::put_group(body, log));
                }
            }
            Write::Intend { group, intent } => {
                let log =
                    index.get_mut(group).unwrap_or_else(|| panic!("intent for unknown {group:?}"));
                match intent.is_empty() {
                    true => self.clear_intent(*group, log),
                    false => self.put(Key::Intent(*group), |body| body.extend_from_slice(intent)),
                }
                log.set_intent(intent.clone());
            }
            Write::Destroy { group } => {
                let Some(log) = index.remove(group) else { return };
                self.single_delete(*group, log.records());
                self.clear_intent(*group, &log);
                self.batch.delete(Key::HardState(*group).encode());
                self.batch.delete(Key::Group(*group).encode());
            }
        }
    }

    fn clear_intent(&mut self, group: GroupId, log: &GroupLog) {
        if log.has_intent() {
            self.batch.delete(Key::Intent(group).encode());
        }
    }

    fn put(&mut self, key: Key, body: impl FnOnce(&mut BytesMut)) {
        let key = key.encode();
        record::encode(self.scratch, &key, body);
        self.batch.put(key, &self.scratch);
        if self.scratch.capacity() > BATCH_CAPACITY_BYTES_MAX {
            *self.scratch = BytesMut::new();
        }
    }

    fn single_delete(
        &mut self,
        group: GroupId,
        records: impl IntoIterator<Item = quorate_types::LogIndex>,
    ) {
        for first in records {
            self.batch.single_delete(Key::Batch(group, first).encode());
        }
    }
}

/// Makes `directory` and, if it is new, its name in the parent durable: a synced log in a directory that a
/// power cut takes away would be no log.
fn make_directory(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// What opening found: a file that is missing was removed by nobody.
fn opening(error: rocksdb::Error) -> LogError {
    let is_missing = error.kind() == ErrorKind::IOError && error.as_ref().contains("No such file");
    if error.kind() == ErrorKind::Corruption || is_missing {
        return LogError::DamagedEngine(error.into_string());
    }
    engine(error)
}

/// A block that cannot be read may be met by whatever the engine does, a compaction for instance.
fn engine(error: rocksdb::Error) -> LogError {
    match error.kind() {
        ErrorKind::Corruption => LogError::DamagedEngine(error.into_string()),
        _ => LogError::Engine(error.into_string()),
    }
}

/// Encoding panics only on broken invariants, and then the writer's thread takes the process down.
const UNPOISONED: &str = "nothing panicked while it held the index";
