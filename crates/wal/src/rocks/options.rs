//! How RocksDB is set up to be a log.

use rocksdb::statistics::StatsLevel;
use rocksdb::{DBCompressionType, DBRecoveryMode, Options};

/// What may be chosen about the log's engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RocksOptions {
    /// Bytes of entries held in memory before they are written to a file. Most entries should be
    /// truncated before that, so that they are written once, to the write-ahead log: larger means fewer
    /// bytes to disk, more memory (up to three times this), a longer start, and larger log files.
    pub memtable_bytes: usize,
    /// Write-ahead log files kept for reuse: their blocks are allotted already, so that a sync need not
    /// write the inode. 0, the default: RocksDB 11.8 hands a file out for reuse before it has closed it, and
    /// closing cuts the file to the length that it had, whatever was written to it meanwhile. Seen under
    /// load: a hole of zeros in a synced batch, in front of later ones.
    pub recycled_files: usize,
    /// Threads that flush and compact. One or two: a log has little to compact.
    pub background_jobs: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { memtable_bytes: 128 << 20, recycled_files: 0, background_jobs: 2 }
    }
}

impl RocksOptions {
    pub(super) fn to_rocksdb(&self) -> Options {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_paranoid_checks(true);

        // The write-ahead log. Point-in-time recovery is the default and the only mode that allows reuse
        // of files. What RocksDB calls
        // `avoid_flush_during_recovery` stays off, its default: a start then leaves an empty log behind.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options.set_recycle_log_file_num(self.recycled_files);

        // One thread writes: what lets several share a memtable or a sync only costs.
        options.set_enable_pipelined_write(false);
        options.set_unordered_write(false);
        options.set_allow_concurrent_memtable_write(false);
        options.set_enable_write_thread_adaptive_yield(false);

        // Entries should die in memory, and what outlives it should not be compacted soon.
        options.set_write_buffer_size(self.memtable_bytes);
        options.set_max_write_buffer_number(3);
        options.set_level_zero_file_num_compaction_trigger(8);
        options.set_level_zero_slowdown_writes_trigger(32);
        options.set_level_zero_stop_writes_trigger(64);
        options.set_max_background_jobs(self.background_jobs);
        // The young levels are rewritten soon; only what stays is worth the work.
        let (none, lz4) = (DBCompressionType::None, DBCompressionType::Lz4);
        options.set_compression_per_level(&[none, none, lz4, lz4, lz4, lz4, lz4]);

        // RocksDB's own diary, not the log of entries.
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(4 << 20);
        options.set_stats_dump_period_sec(0);

        // Counts alone, no times: how much is written again must be known.
        options.enable_statistics();
        options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
        options
    }
}
