//! Reads every row at the start, and believes none before it fits.
//!
//! The one scan of the engine. It happens right after RocksDB's own recovery, which has flushed its memory
//! and thereby dropped what was removed there.

use quorate_types::{Entry, EntryId, GroupId, HardState, LogIndex, Term};
use rocksdb::{DB, ReadOptions};

use super::engine;
use super::index::{GroupLog, Index};
use super::record::{self, Key, RecordError};
use crate::error::LogError;

/// The index of what is live, and how many batches were ever synced.
pub(super) fn scan(db: &DB) -> Result<(Index, u64), LogError> {
    let mut recovery = Recovery::default();
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_verify_checksums(true);
    options.set_readahead_size(READAHEAD_BYTES);
    let mut rows = db.raw_iterator_opt(options);
    rows.seek_to_first();
    while let Some((key, value)) = rows.item() {
        recovery.row(key, value)?;
        rows.next();
    }
    rows.status().map_err(engine)?;
    Ok((recovery.index, recovery.synced_batches))
}

/// The scan is sequential and cold: large reads.
const READAHEAD_BYTES: usize = 2 << 20;

/// What was read so far. Rows come in the order of their keys: the store's own, groups, hard states, batch
/// records by group and index, and intents.
#[derive(Default)]
struct Recovery {
    index: Index,
    synced_batches: u64,
}

impl Recovery {
    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), LogError> {
        let Some(name) = Key::decode(key) else {
            return Err(LogError::Format(format!("unknown row {}", key.escape_ascii())));
        };
        let (group, index) = match name {
            Key::Store => (GroupId::ZERO, LogIndex::ZERO),
            Key::Group(group) | Key::HardState(group) | Key::Intent(group) => {
                (group, LogIndex::ZERO)
            }
            Key::Batch(group, first) => (group, first),
        };
        self.decode(name, key, value).map_err(|error| match error {
            RecordError::Version(_) => LogError::Format(format!("{error} in group {group}")),
            RecordError::Checksum | RecordError::Body(_) => {
                LogError::Damaged { group, index, what: error.to_string() }
            }
        })
    }

    fn decode(&mut self, name: Key, key: &[u8], value: &[u8]) -> Result<(), RecordError> {
        let body = record::decode(key, value)?;
        match name {
            Key::Store => self.synced_batches = record::take_store(body)?,
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
