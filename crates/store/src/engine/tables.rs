//! Rows on their way into RocksDB as a whole: sorted tables (SST files), written beside the engine and
//! then ingested.
//!
//! Written as batches instead, a snapshot would pass through memtables: it would hold up the batches of
//! all other groups behind its flushes, be written to disk several times by compactions, and be half
//! there to every view meanwhile. A table is written once, on whatever thread has time, and ingesting it
//! is one entry of the manifest.
//!
//! What the rows replace goes in the same step: each table carries range tombstones for its part of the
//! spans. They remove what the engine holds and leave the rows of the same ingestion alone, since all of
//! it gets one sequence number.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quorate_types::machine::StateError;
use rocksdb::{IngestExternalFileOptions, Options, SstFileWriter};

use super::rocks::{Database, failed};
use super::shared::Latest;
use super::traits::{RowSource, Span, Staged};

/// A table of this size is closed, and another one begun. About what the engine makes itself.
const TABLE_BYTES: u64 = 64 << 20;

/// Where tables wait, below the engine's own directory: taking them in is a link then, no copy.
const DIRECTORY: &str = "staged";

/// Tells the tables of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Removes what an earlier process left behind.
pub(super) fn remove_staged(engine: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(engine.join(DIRECTORY)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Tables that wait to be ingested.
pub(super) struct Tables {
    db: Arc<Database>,
    latest: Arc<Latest>,
    paths: Vec<PathBuf>,
}

impl Tables {
    /// Writes `rows`, and tombstones for all of `spans`.
    pub(super) fn write(
        db: &Arc<Database>,
        latest: &Arc<Latest>,
        options: &Options,
        spans: &[Span],
        rows: &mut RowSource<'_>,
    ) -> Result<Self, StateError> {
        let directory = db.rocks.path().join(DIRECTORY);
        fs::create_dir_all(&directory).map_err(|error| io(&error))?;
        let mut tables = Self { db: Arc::clone(db), latest: Arc::clone(latest), paths: Vec::new() };
        let mut next = rows()?;
        // Where the table being written begins; `None`: before all spans.
        let mut start: Option<Bytes> = None;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("{number}.sst"));
            // Noted first, so that a table that fails is removed with the others.
            tables.paths.push(path.clone());
            let mut table = SstFileWriter::create(options);
            table.open(&path).map_err(failed)?;
            let mut bytes = 0;
            while bytes < TABLE_BYTES
                && let Some((key, value)) = next.take()
            {
                bytes += (key.len() + value.len()) as u64;
                table.put(&key, &value).map_err(failed)?;
                next = rows()?;
            }
            let end = next.as_ref().map(|(key, _)| key.clone());
            for (start, end) in
                spans.iter().filter_map(|span| clip(span, start.as_ref(), end.as_ref()))
            {
                table.delete_range(start, end).map_err(failed)?;
            }
            table.finish().map_err(failed)?;
            if end.is_none() {
                return Ok(tables);
            }
            start = end;
        }
    }
}

impl Staged for Tables {
    fn ingest(self: Box<Self>) -> Result<(), StateError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let ingested = self.db.rocks.ingest_external_file_opts(&options, self.paths.clone());
        ingested.map_err(|error| self.db.failed(error))?;
        self.latest.outdate();
        Ok(())
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        for path in &self.paths {
            // Gone already if it was ingested; else the next start removes it at the latest.
            drop(fs::remove_file(path));
        }
    }
}

/// The part of `span` that lies in the table from `start` to `end`.
fn clip<'s>(
    span: &'s Span,
    start: Option<&'s Bytes>,
    end: Option<&'s Bytes>,
) -> Option<(&'s Bytes, &'s Bytes)> {
    let from = start.map_or(&span.start, |start| start.max(&span.start));
    let to = end.map_or(&span.end, |end| end.min(&span.end));
    (from < to).then_some((from, to))
}

fn io(error: &std::io::Error) -> StateError {
    StateError(format!("staged tables: {error}"))
}
