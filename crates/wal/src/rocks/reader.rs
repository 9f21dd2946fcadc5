//! Reads entries back beside the running writer.
//!
//! One iterator is one consistent view of the engine, so a batch that is written meanwhile is seen whole or
//! not at all. The index only says where to begin and what is gone: the iterator starts at a live record and
//! never walks over a truncated prefix.

use std::fs::File;
use std::sync::{Arc, RwLock};

use quorate_types::{Entry, GroupId, LogIndex};
use rocksdb::{DB, ErrorKind, ReadOptions};

use super::index::Index;
use super::record::{self, Key};
use super::{UNPOISONED, engine};
use crate::error::LogError;
use crate::log_store::LogReader;

pub(super) struct RocksReader {
    db: Arc<DB>,
    index: Arc<RwLock<Index>>,
    /// Let go after the engine.
    _lock: Arc<File>,
}

impl RocksReader {
    pub(super) fn new(db: Arc<DB>, index: Arc<RwLock<Index>>, lock: Arc<File>) -> Self {
        Self { db, index, _lock: lock }
    }

    /// The first live record of `group`, or `None` when the log ends before `from`.
    fn first_record(&self, group: GroupId, from: LogIndex) -> Result<Option<LogIndex>, LogError> {
        let index = self.index.read().expect(UNPOISONED);
        let log = index.get(&group).ok_or(LogError::UnknownGroup(group))?;
        if from <= log.base().index {
            return Err(LogError::Compacted { group, first: log.base().index.next() });
        }
        Ok(if from <= log.last().index { log.records().next() } else { None })
    }
}

impl LogReader for RocksReader {
    fn read(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let Some(lower) = self.first_record(group, from)? else { return Ok(Vec::new()) };
        if to < from {
            return Ok(Vec::new());
        }
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(Key::Batch(group, lower).encode().as_ref());
        options.set_iterate_upper_bound(Key::Batch(group, to.plus(1)).encode().as_ref());
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek_for_prev(Key::Batch(group, from).encode());
        let mut run = Run { group, from, to, entries: Vec::new(), cost_bytes: 0 };
        while let Some((key, value)) = rows.item() {
            let Some(Key::Batch(_, first)) = Key::decode(key) else {
                return Err(run.damaged(from, "a row of another kind"));
            };
            run.cut(first);
            // Checked after the cut: the key of the record that follows decides how much of this one holds.
            if run.cost_bytes >= bytes_max && !run.entries.is_empty() {
                break;
            }
            let body = record::decode(key, value).map_err(|error| run.damaged(first, error))?;
            let (_, entries) =
                record::take_batch(body, first).map_err(|error| run.damaged(first, error))?;
            run.extend(entries)?;
            rows.next();
        }
        match rows.status() {
            Ok(()) => Ok(run.up_to(bytes_max)),
            Err(error) if error.kind() == ErrorKind::Corruption => {
                Err(run.damaged(from.plus(run.entries.len() as u64), error.into_string()))
            }
            Err(error) => Err(engine(error)),
        }
    }
}

/// The wanted entries so far: consecutive, the first one at `from`.
struct Run {
    group: GroupId,
    from: LogIndex,
    to: LogIndex,
    entries: Vec<Entry>,
    cost_bytes: usize,
}

impl Run {
    /// Drops what the record that begins at `first` overwrites.
    fn cut(&mut self, first: LogIndex) {
        while let Some(entry) = self.entries.pop_if(|entry| entry.id.index >= first) {
            self.cost_bytes -= entry.cost_bytes();
        }
    }

    /// Adds what is wanted of a record's entries.
    fn extend(&mut self, entries: Vec<Entry>) -> Result<(), LogError> {
        for entry in entries {
            let next = self.from.plus(self.entries.len() as u64);
            if entry.id.index > self.to {
                break;
            }
            if entry.id.index > next {
                return Err(self.damaged(next, "the entry is missing"));
            }
            if entry.id.index == next {
                self.cost_bytes += entry.cost_bytes();
                self.entries.push(entry);
            }
        }
        Ok(())
    }

    /// The entries that fit, at least one.
    fn up_to(mut self, bytes_max: usize) -> Vec<Entry> {
        let mut cost_bytes = 0;
        let fit = self.entries.iter().take_while(|entry| {
            cost_bytes += entry.cost_bytes();
            cost_bytes <= bytes_max
        });
        let count = fit.count().max(1);
        self.entries.truncate(count);
        self.entries
    }

    fn damaged(&self, index: LogIndex, what: impl ToString) -> LogError {
        LogError::Damaged { group: self.group, index, what: what.to_string() }
    }
}
