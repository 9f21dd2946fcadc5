//! Whether the rows of a keyspace fit together: for tools that look at a data directory.
//!
//! - No row is of a revision above the keyspace's own.
//! - The newest row of a key's history is a put if and only if the key exists now, and says the same of it.
//! - Along a key's history revisions and versions grow together.
//! - A key is attached to the lease that it names, and to no other; that lease exists.
//! - As far as events are not swept, they tell what is in the history, all of it and nothing else.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use quorate_types::machine::{Direction, StateError};
use quorate_types::{KeyRange, StateReader};

use super::lease::LeaseRecord;
use super::meta::Meta;
use super::record::{Change, Record, damaged, decode_event};
use crate::layout::{self, Stamp};

/// What a keyspace holds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KeyspaceCheck {
    /// The revision of its last change.
    pub revision: i64,
    /// Keys that exist now.
    pub keys: u64,
    /// Rows of the history.
    pub versions: u64,
    /// Events that are not swept.
    pub events: u64,
    /// What does not fit, in words; of many, the first.
    pub damage: Vec<String>,
    /// How much does not fit.
    pub damage_count: u64,
}

/// Descriptions of damage that are kept.
const DAMAGE_MAX: usize = 100;

/// Reads all rows of a keyspace whose machine had this `meta`.
///
/// # Errors
/// When the engine fails: it cannot read a row.
pub fn check_keyspace(meta: &[u8], rows: &dyn StateReader) -> Result<KeyspaceCheck, StateError> {
    let meta = Meta::decode(meta)?;
    let found = KeyspaceCheck { revision: meta.revision, ..KeyspaceCheck::default() };
    let mut check = Check { meta, rows, found };
    check.history()?;
    check.current()?;
    check.attached()?;
    check.events()?;
    Ok(check.found)
}

struct Check<'r> {
    meta: Meta,
    rows: &'r dyn StateReader,
    found: KeyspaceCheck,
}

impl Check<'_> {
    /// Each key's history, newest first, and what exists now by it.
    fn history(&mut self) -> Result<(), StateError> {
        let (start, end) = layout::history_range(&KeyRange::all());
        let mut newer: Option<(Bytes, Option<Record>)> = None;
        self.each(&start, &end, |check, row, value| {
            check.found.versions += 1;
            let Some((key, stamp)) = layout::parse_history(row) else {
                return Err(check.unreadable(row));
            };
            check.known(row, stamp);
            let is_swept = stamp < check.meta.swept;
            if !is_swept && check.rows.get(&layout::event(stamp))?.is_none() {
                check.note(|| format!("no event tells of {stamp:?}"));
            }
            let record = Record::decode_history(row, stamp, value)?.map(|(record, _)| record);
            match newer.replace((key.clone(), record)) {
                Some((other, after)) if other == key => check.succession(&key, record, after),
                _ => check.newest(&key, record)?,
            }
            Ok(())
        })
    }

    /// What exists now must be what was written last.
    fn newest(&mut self, key: &Bytes, newest: Option<Record>) -> Result<(), StateError> {
        let row = layout::current(key);
        let value = self.rows.get(&row)?;
        let current = value.map(|value| Record::decode_current(&row, &value)).transpose()?;
        if current != newest {
            self.note(|| format!("key {} is {current:?}, but was last {newest:?}", shown(key)));
        }
        Ok(())
    }

    /// Two rows of one key, one after the other.
    fn succession(&mut self, key: &Bytes, before: Option<Record>, after: Option<Record>) {
        let fits = match (before, after) {
            (Some(before), Some(after)) if after.create == before.create => {
                after.version == before.version + 1
            }
            // Made anew, after a delete.
            (_, Some(after)) => after.version == 1,
            (_, None) => true,
        };
        if !fits {
            self.note(|| format!("key {} went from {before:?} to {after:?}", shown(key)));
        }
    }

    fn current(&mut self) -> Result<(), StateError> {
        let (start, end) = layout::current_range(&KeyRange::all());
        self.each(&start, &end, |check, row, value| {
            check.found.keys += 1;
            let Some(key) = layout::key_of_current(row) else {
                return Err(check.unreadable(row));
            };
            let record = Record::decode_current(row, value)?;
            if check.rows.get(&layout::history(key, record.modified))?.is_none() {
                check.note(|| format!("key {} has no value at {record:?}", shown(key)));
            }
            let lease = record.lease;
            if lease != 0 && check.rows.get(&layout::attached(lease, key))?.is_none() {
                check.note(|| format!("lease {lease} does not know its key {}", shown(key)));
            }
            Ok(())
        })
    }

    fn attached(&mut self) -> Result<(), StateError> {
        // Both kinds of rows of leases: those of leases come after those of their keys.
        let (start, end) = (layout::attached_start(), layout::leases().1);
        self.each(&start, &end, |check, row, value| {
            if layout::id_of_lease(row).is_some() {
                return LeaseRecord::decode(value).map(drop).map_err(|error| damaged(row, &error));
            }
            let Some((lease, key)) = layout::parse_attached(row) else {
                return Err(check.unreadable(row));
            };
            if check.rows.get(&layout::lease(lease))?.is_none() {
                check.note(|| format!("lease {lease} of key {} does not exist", shown(key)));
            }
            let current = layout::current(key);
            let named = match check.rows.get(&current)? {
                Some(value) => Record::decode_current(&current, &value)?.lease,
                None => 0,
            };
            if named != lease {
                check.note(|| format!("key {} names lease {named}, not {lease}", shown(key)));
            }
            Ok(())
        })
    }

    fn events(&mut self) -> Result<(), StateError> {
        let (start, end) = (layout::event(self.meta.swept), [layout::TAG_EVENT + 1]);
        self.each(&start, &end, |check, row, value| {
            check.found.events += 1;
            let Some(stamp) = layout::parse_event(row) else { return Err(check.unreadable(row)) };
            check.known(row, stamp);
            let event = decode_event(row, value)?;
            let told = layout::history(&event.key, stamp);
            let written = check.rows.get(&told)?;
            let written = written.map(|value| Record::decode_history(&told, stamp, &value));
            let is_put = match written.transpose()? {
                Some(record) => record.is_some(),
                None => {
                    check.note(|| format!("what {stamp:?} did to {} is gone", shown(&event.key)));
                    return Ok(());
                }
            };
            if is_put != (event.change == Change::Put) {
                check.note(|| format!("{stamp:?} of {} is put and delete", shown(&event.key)));
            }
            Ok(())
        })
    }

    /// No row is newer than the keyspace.
    fn known(&mut self, row: &[u8], stamp: Stamp) {
        let revision = self.meta.revision;
        if stamp.revision > revision {
            self.note(|| {
                let row = row.escape_ascii();
                format!("row {row} is of {stamp:?}, but the keyspace is at revision {revision}")
            });
        }
    }

    fn each(
        &mut self,
        start: &[u8],
        end: &[u8],
        mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let rows = self.rows;
        rows.scan(start, Some(end), Direction::Forward, &mut |row, value| {
            // A row that cannot be understood is damage too, and no reason to stop.
            if let Err(StateError(what)) = visit(self, row, value) {
                self.note(|| what);
            }
            ControlFlow::Continue(())
        })
    }

    fn unreadable(&self, row: &[u8]) -> StateError {
        StateError(format!("row {} has no name of its kind", row.escape_ascii()))
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        self.found.damage_count += 1;
        if self.found.damage.len() < DAMAGE_MAX {
            self.found.damage.push(what());
        }
    }
}

fn shown(key: &[u8]) -> String {
    format!("\"{}\"", key.escape_ascii())
}
