//! Rows in RocksDB: its own instance, one column family, no log.
//!
//! With one column family, memtables reach the disk whole and in the order in which they were filled,
//! so what a crash leaves is the rows after some prefix of the batches, as the [chapter](super)
//! promises; no `atomic_flush` is needed for it. A clean close flushes by itself.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use quorate_types::StateReader;
use quorate_types::machine::{Direction, StateError, Visit};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, CompactOptions, DB, DBCompressionType,
    DataBlockIndexType, ErrorKind, LiveFile, Options, ReadOptions, ReadTier, Snapshot, WriteBatch,
    WriteOptions,
};

use super::overlay::Rows;
use super::shared::{Latest, SharedView};
use super::tables::{self, Tables};
use super::traits::{RowSource, Span, Staged, StateEngine};

/// A file is compacted early when, in a run of this many rows, ...
///
/// Otherwise reads of ranges would walk over any number of marks. In a shorter run every sweep of history looks like that:
/// it removes the rows of `E` side by side, one for each revision. With 8,192 rows, 512 MiB of values, 1,000 puts a second
/// and a compaction of the history every 30 s, each sweep had its files compacted at once, and the whole keyspace with
/// them: 24 MB were written for each MB of puts, where these numbers take 9 to 10.
const TOMBSTONE_WINDOW: usize = 65_536;
/// ... so many are marks of removed ones.
const TOMBSTONES_MAX: usize = 49_152;

/// How often what may be written is dealt out, and how often compactions are let in before flushes; RocksDB's own
/// defaults.
const RATE_PERIOD_US: i64 = 100_000;
const RATE_FAIRNESS: i32 = 10;

/// Levels of files; RocksDB's own default.
const LEVELS: usize = 7;

/// How to open a [`RocksState`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RocksConfig {
    /// The directory; made if it is not there.
    pub path: PathBuf,
    /// Memory for blocks read from disk, and for indexes and filters, in bytes. More serves more reads
    /// from memory; it is filled only as data on disk is read.
    pub block_cache_bytes: usize,
    /// Memory for single rows read from disk, in bytes. A row found here spares the way through a file's
    /// index, filter and block: reads of keys that had been overwritten for a while were measured to cost
    /// 22 us of server CPU instead of 29, the front door included.
    pub row_cache_bytes: usize,
    /// Size of a memtable in bytes. Small, so that the way to a row stays in the processor's cache: with
    /// 32 MiB instead of 4 a put was measured to cost 61 us of server CPU instead of 50.
    pub memtable_bytes: usize,
    /// So many memtables are merged into one file: together they absorb overwrites before those cost disk
    /// writes. What they hold is what a restart replays from the log.
    pub memtables_merged: u8,
    /// Memtables that may exist at once, the one being filled included. When all are full and none is
    /// flushed yet, writes wait.
    pub memtables_max: u8,
    /// Threads for flushes and compactions.
    pub background_jobs: u8,
    /// What flushes and compactions write in a second, in bytes, at most. Below that they find a rate that just
    /// suffices by themselves, so that they go on evenly, and the log's syncs on the same disk do not wait behind
    /// bursts of them.
    pub background_bytes_per_s_max: u32,
}

impl RocksConfig {
    /// The defaults, for a node of a few cores with a few GiB of memory.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            block_cache_bytes: 128 << 20,
            row_cache_bytes: 32 << 20,
            memtable_bytes: 4 << 20,
            memtables_merged: 4,
            memtables_max: 12,
            background_jobs: 2,
            background_bytes_per_s_max: 128 << 20,
        }
    }

    fn options(&self) -> Options {
        let mut table = BlockBasedOptions::default();
        // An LRU cache of this size is cut into many small parts, and filters do not fit into one: reads
        // from disk were measured to cost twenty times as much.
        table.set_block_cache(&Cache::new_hyper_clock_cache(self.block_cache_bytes, 0));
        table.set_block_size(16 << 10);
        // Ten bits a key let one in a hundred lookups of a missing key reach a block: most puts of new
        // keys, and all creates by compare, look for a key that is not there.
        table.set_bloom_filter(10.0, false);
        table.set_optimize_filters_for_memory(true);
        // Otherwise indexes and filters lie outside the cache and grow without bound; in parts, so that a
        // miss reads a few KiB of them and not all.
        table.set_cache_index_and_filter_blocks(true);
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        table.set_metadata_block_size(4 << 10);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        let mut options = Options::default();
        options.set_row_cache(&Cache::new_lru_cache(self.row_cache_bytes));
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        // What is flushed is compacted seconds later: compressing it is work for nothing.
        let mut compression = [DBCompressionType::Lz4; LEVELS];
        compression[0] = DBCompressionType::None;
        options.set_num_levels(LEVELS as i32);
        options.set_compression_per_level(&compression);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_write_buffer_size(self.memtable_bytes);
        options.set_max_write_buffer_number(self.memtables_max.into());
        options.set_min_write_buffer_number_to_merge(self.memtables_merged.into());
        // The same lookups of missing keys, spared the walk through the memtable.
        options.set_memtable_prefix_bloom_ratio(0.02);
        options.set_memtable_whole_key_filtering(true);
        // A key with many removed rows is slow to walk over until they are compacted away.
        options.add_compact_on_deletion_collector_factory(TOMBSTONE_WINDOW, TOMBSTONES_MAX, 0.0);
        options.set_max_background_jobs(self.background_jobs.into());
        options.set_auto_tuned_ratelimiter(
            self.background_bytes_per_s_max.into(),
            RATE_PERIOD_US,
            RATE_FAIRNESS,
        );
        // Flushed in small steps, so that the log's syncs on the same disk do not wait behind one burst.
        options.set_bytes_per_sync(1 << 20);
        options.set_keep_log_file_num(4);
        options.set_stats_dump_period_sec(0);
        options
    }
}

/// Why a [`RocksState`] does not open.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenStateError {
    /// Its files are not what was written.
    #[error("state engine: {0}")]
    Damaged(String),
    /// Anything else: it is in use, or the system refuses.
    #[error(transparent)]
    Failed(#[from] StateError),
}

/// What is told of the first damage that anybody meets, on the thread that meets it.
pub type OnDamage = Box<dyn Fn(&str) + Send + Sync>;

/// A database, and the first damage that was met in it.
pub(super) struct Database {
    pub(super) rocks: DB,
    damage: OnceLock<String>,
    on_damage: OnceLock<OnDamage>,
}

impl Database {
    /// An error of the database, for whoever asked; damage is remembered.
    pub(super) fn failed(&self, error: rocksdb::Error) -> StateError {
        if error.kind() == ErrorKind::Corruption
            && self.damage.set(error.to_string()).is_ok()
            && let (Some(tell), Some(what)) = (self.on_damage.get(), self.damage.get())
        {
            tell(what);
        }
        failed(error)
    }
}

/// The durable engine.
pub struct RocksState {
    /// Before the database, which it looks at.
    latest: Arc<Latest>,
    db: Arc<Database>,
    /// Kept for the tables that are written beside the engine: they must be like its own.
    options: Options,
    unlogged: WriteOptions,
}

impl RocksState {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// When it cannot be opened: in use, damaged, or not readable.
    pub fn open(config: &RocksConfig) -> Result<Self, OpenStateError> {
        let options = config.options();
        let db = DB::open(&options, &config.path).map_err(opening)?;
        tables::remove_staged(&config.path)?;
        Ok(Self::over(db, options))
    }

    /// Opens a directory to look at, and changes nothing in it: it can be read, and nothing else. RocksDB
    /// keeps a diary whenever it opens something; it goes to `diary`.
    ///
    /// # Errors
    /// When it cannot be opened: damaged, not there, or not readable.
    pub fn open_read_only(config: &RocksConfig, diary: &Path) -> Result<Self, OpenStateError> {
        let mut options = config.options();
        options.create_if_missing(false);
        options.set_db_log_dir(diary);
        let db = DB::open_for_read_only(&options, &config.path, false).map_err(opening)?;
        Ok(Self::over(db, options))
    }

    fn over(rocks: DB, options: Options) -> Self {
        let db = Arc::new(Database { rocks, damage: OnceLock::new(), on_damage: OnceLock::new() });
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        Self { latest: Arc::default(), db, options, unlogged }
    }

    /// Whom to tell of damage; the first one who is named. Reads that meet it fail, and what they would have
    /// returned is not known.
    pub fn on_damage(&self, tell: OnDamage) {
        // A second one would not be told of what the first one knows.
        drop(self.db.on_damage.set(tell));
    }

    /// What of its files is not what was written to them, as soon as a read or the engine itself has met it.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.db.damage.get().map(String::as_str)
    }

    /// Reads every row there is, overwritten ones too, with the checksums of all that lies on the way.
    ///
    /// # Errors
    /// When one does not match, or cannot be read.
    pub fn verify(&self) -> Result<(), StateError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_readahead_size(2 << 20);
        let mut rows = self.db.rocks.raw_iterator_opt(options);
        rows.seek_to_first();
        while rows.valid() {
            rows.next();
        }
        rows.status().map_err(|error| self.db.failed(error))
    }

    fn property(&self, name: &std::ffi::CStr) -> u64 {
        // Only a name that RocksDB does not know has no value.
        self.db.rocks.property_int_value(name).ok().flatten().unwrap_or(0)
    }
}

/// Where a compaction of everything may stop and go on: where the files of the lowest level begin.
fn pieces(files: &[LiveFile]) -> Vec<Vec<u8>> {
    let lowest = files.iter().map(|file| file.level).max();
    let of_lowest = files.iter().filter(|file| Some(file.level) == lowest);
    let mut starts: Vec<_> = of_lowest.filter_map(|file| file.start_key.clone()).collect();
    starts.sort();
    // What lies before the first one goes with it.
    starts.drain(..1.min(starts.len()));
    starts
}

impl StateEngine for RocksState {
    fn view(&self) -> Box<dyn StateReader + Send + '_> {
        Box::new(RocksView::new(&self.db))
    }

    fn shared_view(&self) -> Arc<SharedView> {
        self.latest
            .share(|| Box::new(OwnedView::new(Arc::clone(&self.db), |db| RocksView::new(db))))
    }

    fn write(&self, rows: Rows) -> Result<(), StateError> {
        let mut batch = WriteBatch::default();
        for (key, value) in rows.iter() {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        self.db.rocks.write_opt(batch, &self.unlogged).map_err(|error| self.db.failed(error))?;
        self.latest.outdate();
        Ok(())
    }

    fn flush(&self) -> Result<(), StateError> {
        self.db.rocks.flush().map_err(|error| self.db.failed(error))
    }

    fn compact(&self, goes_on: &dyn Fn() -> bool) -> Result<(), StateError> {
        self.flush()?;
        let files = self.db.rocks.live_files().map_err(|error| self.db.failed(error))?;
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        let mut from = None;
        for to in pieces(&files).into_iter().map(Some).chain([None]) {
            if !goes_on() {
                return Ok(());
            }
            self.db.rocks.compact_range_opt(from.as_deref(), to.as_deref(), &options);
            from = to;
        }
        Ok(())
    }

    fn stage(
        &self,
        spans: &[Span],
        rows: &mut RowSource<'_>,
    ) -> Result<Box<dyn Staged>, StateError> {
        Ok(Box::new(Tables::write(&self.db, &self.latest, &self.options, spans, rows)?))
    }

    fn durable(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        let value = self.db.rocks.get_pinned_opt(key, &options);
        let value = value.map_err(|error| self.db.failed(error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn size_bytes(&self) -> u64 {
        self.property(c"rocksdb.live-sst-files-size")
            + self.property(c"rocksdb.cur-size-all-mem-tables")
    }
}

impl std::fmt::Debug for RocksState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksState").field("path", &self.db.rocks.path()).finish_non_exhaustive()
    }
}

struct RocksView<'d> {
    db: &'d Database,
    snapshot: Snapshot<'d>,
    /// Reads of one row at the snapshot; kept, because making options costs as much as a cached read.
    point: ReadOptions,
}

impl<'d> RocksView<'d> {
    fn new(db: &'d Database) -> Self {
        let snapshot = db.rocks.snapshot();
        let mut point = ReadOptions::default();
        point.set_snapshot(&snapshot);
        Self { db, snapshot, point }
    }
}

self_cell::self_cell! {
    /// A view that keeps its database open.
    struct OwnedView {
        owner: Arc<Database>,
        #[covariant]
        dependent: RocksView,
    }
}

impl StateReader for OwnedView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.borrow_dependent().get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        self.borrow_dependent().scan(start, end, direction, visit)
    }
}

impl StateReader for RocksView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        // Pinned, so that the value is copied once, from the block into what is handed on.
        let value = self.db.rocks.get_pinned_opt(key, &self.point);
        let value = value.map_err(|error| self.db.failed(error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        options.set_iterate_lower_bound(start);
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let mut rows = self.db.rocks.raw_iterator_opt(options);
        match direction {
            Direction::Forward => rows.seek_to_first(),
            Direction::Backward => rows.seek_to_last(),
        }
        while let Some((key, value)) = rows.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            match direction {
                Direction::Forward => rows.next(),
                Direction::Backward => rows.prev(),
            }
        }
        // An iterator ends at damage as it does at the range's end; only its status tells.
        rows.status().map_err(|error| self.db.failed(error))
    }
}

/// What opening found: a file that is missing was removed by nobody.
fn opening(error: rocksdb::Error) -> OpenStateError {
    let is_missing = error.kind() == ErrorKind::IOError && error.as_ref().contains("No such file");
    if error.kind() == ErrorKind::Corruption || is_missing {
        return OpenStateError::Damaged(error.into_string());
    }
    failed(error).into()
}

pub(super) fn failed(error: rocksdb::Error) -> StateError {
    StateError(error.into_string())
}
