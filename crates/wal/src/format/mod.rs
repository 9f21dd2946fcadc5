//! What RocksDB writes to its log files, read without RocksDB.
//!
//! RocksDB's own recovery stops at the first record that does not fit, silently: the only mode that allows
//! recycled files takes everything behind it for the torn end of the log. Torn is what no sync covered, so
//! nobody was told of it; but a record may also be unreadable because the disk has lost what it had synced,
//! and then acknowledged entries would vanish, and a replica would vote as if it had never held them. So
//! the files are judged before RocksDB sees them.
//!
//! - [`fragment`]: the physical records, their checksums and the numbers of the logs that they belong to.
//! - [`scan`]: a file from its beginning to the first record that does not fit, and what lies behind that.
//! - [`batch`]: what the log's own batches look like, and that they follow each other without a gap.
//! - [`manifest`]: which files are live.
//! - [`verdict`]: torn or damaged.
//!
//! All of it is bytes in, facts out.

pub mod batch;
pub mod fragment;
pub mod manifest;
pub mod scan;
pub mod verdict;

#[cfg(test)]
mod tests;
