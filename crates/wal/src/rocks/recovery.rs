//! Reads every row at the start, and believes none before it fits.
//!
//! The one scan of the engine. It happens right after RocksDB's own recovery, which has flushed its memory
//! and thereby dropped what was removed there.
//!
//! What does not fit is damage to the group whose row it is. A block of a file that cannot be read is damage
//! to every group that may have rows in it: the scan goes on group by group then, and those that cannot be
//! read to their end are the ones.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_types::{Entry, EntryId, GroupId, HardState, LogIndex, Term};
use rocksdb::{DB, ErrorKind, ReadOptions};

use super::engine;
use super::index::{GroupLog, Index};
use super::record::{self, Key, RecordError, Table};
use crate::error::LogError;

/// What the rows hold.
pub(super) struct Recovered {
    /// What is live, without the groups that are damaged.
    pub(super) index: Index,
    /// How many batches were ever synced.
    pub(super) synced_batches: u64,
    /// The host's words about the node.
    pub(super) noted: Bytes,
    /// The first thing that does not fit, of each group that is damaged.
    pub(super) damaged: BTreeMap<GroupId, LogError>,
}

/// Reads all rows.
///
/// # Errors
/// [`LogError::DamagedEngine`] when rows cannot be read and no telling whose, [`LogError::Format`],
/// [`LogError::Engine`].
pub(super) fn scan(db: &DB) -> Result<Recovered, LogError> {
    let mut recovery = Recovery::default();
    // Which groups there are must be known as a whole.
    recovery.read(db, Table::Store.span())?;
    recovery.read(db, Table::Groups.span())?;
    for table in [Table::HardStates, Table::Batches, Table::Intents] {
        match recovery.read(db, table.span()) {
            Err(LogError::DamagedEngine(_)) => recovery.read_by_group(db, table)?,
            other => other?,
        }
    }
    let (_, end) = Table::Intents.span();
    recovery.read(db, (end, vec![u8::MAX; 32]))?;
    let Recovery { mut index, synced_batches, noted, damaged, .. } = recovery;
    index.retain(|group, _| !damaged.contains_key(group));
    Ok(Recovered { index, synced_batches, noted, damaged })
}

/// The scan is sequential and cold: large reads.
const READAHEAD_BYTES: usize = 2 << 20;

/// What was read so far. Rows come in the order of their keys: the store's own, groups, hard states, batch
/// records by group and index, and intents.
#[derive(Default)]
struct Recovery {
    index: Index,
    synced_batches: u64,
    noted: Bytes,
    damaged: BTreeMap<GroupId, LogError>,
    /// The key of the last row.
    last: Vec<u8>,
}

impl Recovery {
    /// Reads the rows from the first key of `span` up to the second one.
    fn read(&mut self, db: &DB, (start, end): (Vec<u8>, Vec<u8>)) -> Result<(), LogError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_verify_checksums(true);
        options.set_readahead_size(READAHEAD_BYTES);
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let mut rows = db.raw_iterator_opt(options);
        rows.seek_to_first();
        while let Some((key, value)) = rows.item() {
            self.row(key, value)?;
            self.last.clear();
            self.last.extend_from_slice(key);
            rows.next();
        }
        // An iterator ends at damage as it does at the end; only its status tells.
        match rows.status() {
            Err(error) if error.kind() == ErrorKind::Corruption => {
                Err(LogError::DamagedEngine(error.into_string()))
            }
            other => other.map_err(engine),
        }
    }

    /// Goes on behind the last row that could be read, one group at a time.
    fn read_by_group(&mut self, db: &DB, table: Table) -> Result<(), LogError> {
        let mut from = table.span().0.max([&self.last[..], &[0]].concat());
        let groups: Vec<_> = self.index.keys().copied().collect();
        for group in groups {
            let (start, end) = table.span_of(group);
            from = from.max(start);
            if from >= end {
                continue;
            }
            match self.read(db, (from.clone(), end)) {
                Err(LogError::DamagedEngine(what)) => {
                    let index = self.index.get(&group).map_or(LogIndex::ZERO, |log| match table {
                        Table::Batches => log.last().index.next(),
                        _ => LogIndex::ZERO,
                    });
                    self.note(LogError::Damaged { group, index, what });
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Keeps the first damage of each group.
    fn note(&mut self, error: LogError) {
        if let LogError::Damaged { group, .. } = error {
            self.damaged.entry(group).or_insert(error);
        }
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), LogError> {
        let Some(name) = Key::decode(key) else {
            return Err(LogError::Format(format!("unknown row {}", key.escape_ascii())));
        };
        let (group, index) = match name {
            Key::Store | Key::Note => {
                let decoded = self.decode(name, key, value);
                return decoded.map_err(|error| match error {
                    RecordError::Version(_) => LogError::Format(error.to_string()),
                    _ => LogError::DamagedEngine(format!("the store's own rows: {error}")),
                });
            }
            Key::Group(group) | Key::HardState(group) | Key::Intent(group) => {
                (group, LogIndex::ZERO)
            }
            Key::Batch(group, first) => (group, first),
        };
        if self.damaged.contains_key(&group) {
            return Ok(());
        }
        match self.decode(name, key, value) {
            Err(RecordError::Version(version)) => {
                let error = RecordError::Version(version);
                return Err(LogError::Format(format!("{error} in group {group}")));
            }
            Err(error @ (RecordError::Checksum | RecordError::Body(_))) => {
                self.note(LogError::Damaged { group, index, what: error.to_string() });
            }
            Ok(()) => {}
        }
        Ok(())
    }

    fn decode(&mut self, name: Key, key: &[u8], value: &[u8]) -> Result<(), RecordError> {
        let body = record::decode(key, value)?;
        match name {
            Key::Store => self.synced_batches = record::take_store(body)?,
            Key::Note => self.noted = body,
            Key::Group(group) => {
                let (label, snapshot) = record::take_group(body)?;
                self.index.insert(group, GroupLog::new(label, snapshot, HardState::default()));
            }
            Key::HardState(group) => {
                let hard_state = record::take_hard_state(body)?;
                self.group(group)?.set_hard_state(hard_state);
            }
            // The body outlives its record anyway: it was copied out of the engine.
            Key::Intent(group) => self.group(group)?.set_intent(body),
            Key::Batch(group, first) => {
                let (term_before, entries) = record::take_batch(body, first)?;
                join(self.group(group)?, term_before, &entries).map_err(RecordError::Body)?;
            }
        }
        Ok(())
    }

    fn group(&mut self, group: GroupId) -> Result<&mut GroupLog, RecordError> {
        self.index.get_mut(&group).ok_or_else(|| RecordError::Body("unknown group".to_owned()))
    }
}

/// Continues `log` with a record, cutting what it overwrites.
fn join(log: &mut GroupLog, term_before: Term, entries: &[Entry]) -> Result<(), String> {
    let base = log.base();
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Err("a record without entries".to_owned());
    };
    let (first, last) = (first.id, last.id);
    let Some(before) = first.index.previous() else {
        return Err("an entry at index 0".to_owned());
    };
    if before >= base.index {
        if before > log.last().index {
            return Err(format!("entries are missing after {}", log.last()));
        }
        let (before, expected) = (EntryId::new(term_before, before), log.id_at(before));
        if before != expected {
            return Err(format!("the record follows {before}, but the log has {expected}"));
        }
        log.cut(first.index);
    } else {
        // The record that the last truncation ended in.
        if log.records().next().is_some() {
            return Err(format!("a second record begins below the base {base}"));
        }
        let at_base = entries.get(base.index.since(first.index) as usize).map(|entry| entry.id);
        if at_base != Some(base) {
            return Err(format!("the record from {first} to {last} does not hold the base {base}"));
        }
    }
    let behind = entries.iter().map(|entry| entry.id).filter(|id| id.index > base.index);
    log.push(first.index, behind);
    log.note_memberships(entries);
    Ok(())
}
