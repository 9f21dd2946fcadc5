//! The history in the order in which it was written, as etcd keeps it: for its hash and for backups.
//!
//! Our rows of values lie by key. What was written above the floor is found by its events, which lie by
//! revision. Of what is older only the newest of each key counts, and its events may be swept: it is looked
//! for among all rows of values, the oldest first, as many at a time as fit into memory.

use std::collections::BinaryHeap;
use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use quorate_types::KeyRange;
use quorate_types::kv::KeyValue;
use quorate_types::machine::{Direction, StateError};

use super::read::{Found, View, pair};
use super::record::{Record, damaged, decode_event};
use crate::layout::{self, Stamp};

/// Bytes of keys that are held at a time while what lies below the floor is brought into order.
const SORTED_BYTES_MAX: usize = 64 << 20;

/// Bytes that an entry of the order takes beside its key.
const ENTRY_BYTES: usize = 64;

/// One write of the history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// Where in the history.
    pub stamp: Stamp,
    /// The pair that was put; of a delete, only the key.
    pub pair: KeyValue,
    /// It deleted the key.
    pub is_delete: bool,
}

impl Written {
    /// The key under which etcd keeps it: main and sub revision, and a mark if it was a delete.
    #[must_use]
    pub fn etcd_key(&self) -> Vec<u8> {
        let mut key = etcd_revision(self.stamp).to_vec();
        if self.is_delete {
            key.push(b't');
        }
        key
    }

    /// The value that etcd keeps.
    #[must_use]
    pub fn etcd_value(&self) -> Vec<u8> {
        self.pair.encode_to_vec()
    }
}

/// A revision in etcd's form.
#[must_use]
pub fn etcd_revision(stamp: Stamp) -> [u8; 17] {
    let mut bytes = [b'_'; 17];
    bytes[..8].copy_from_slice(&stamp.revision.to_be_bytes());
    bytes[9..].copy_from_slice(&u64::from(stamp.sub).to_be_bytes());
    bytes
}

/// Which part of the history is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    /// Nothing later.
    pub(crate) revision: i64,
    /// Of what was written at the floor or before it, only what still stood at this revision.
    pub(crate) standing_at: i64,
    /// Deletes at the floor itself belong to it.
    pub(crate) deletes_at_floor: bool,
}

/// Visits a part of the history in order.
///
/// # Errors
/// When the engine fails, or `visit` does.
pub(crate) fn each_write<E: From<StateError>>(
    view: &View<'_>,
    part: Part,
    visit: &mut dyn FnMut(&Written) -> Result<(), E>,
) -> Result<(), E> {
    if view.floor > 0 {
        let mut from = Stamp::default();
        while let Some(next) = standing(view, part, from, SORTED_BYTES_MAX, visit)? {
            from = next;
        }
    }
    let start = layout::event(Stamp { revision: view.floor.max(0) + 1, sub: 0 });
    let end = layout::event(Stamp { revision: part.revision + 1, sub: 0 });
    let mut result = Ok(());
    view.rows.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
        let written = layout::parse_event(row)
            .ok_or_else(|| damaged(row, &"not an event"))
            .and_then(|stamp| write_at(view, &decode_event(row, value)?.key, stamp));
        result = written.map_err(E::from).and_then(|written| visit(&written));
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    result
}

/// Visits what was written from `from` up to the floor and counts, in order, as far as `bytes_max` of keys
/// allow; gives from where to go on.
fn standing<E: From<StateError>>(
    view: &View<'_>,
    part: Part,
    from: Stamp,
    bytes_max: usize,
    visit: &mut dyn FnMut(&Written) -> Result<(), E>,
) -> Result<Option<Stamp>, E> {
    let mut oldest: BinaryHeap<(Stamp, Bytes)> = BinaryHeap::new();
    let (mut bytes, mut next) = (0, None);
    let mut take = |stamp, key: &Bytes| {
        if stamp < from || next.is_some_and(|next| stamp >= next) {
            return;
        }
        bytes += key.len() + ENTRY_BYTES;
        oldest.push((stamp, key.clone()));
        while bytes > bytes_max && oldest.len() > 1 {
            let (last, key) = oldest.pop().expect("there are two");
            bytes -= key.len() + ENTRY_BYTES;
            next = Some(last);
        }
    };
    let floor = view.floor.max(0);
    let (start, end) = layout::history_range(&KeyRange::all());
    let mut seen: Option<Bytes> = None;
    let mut result = Ok(());
    view.rows.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
        let Some((key, stamp)) = layout::parse_history(row) else {
            result = Err(damaged(row, &"not a revision of a key"));
            return ControlFlow::Break(());
        };
        if stamp.revision > part.standing_at || seen.as_ref() == Some(&key) {
            return ControlFlow::Continue(());
        }
        // The newest that was written of this key until then: nothing older of it stands.
        if stamp.revision <= floor {
            match Record::decode_history(row, stamp, value) {
                Ok(Some(_)) => take(stamp, &key),
                Ok(None) if part.deletes_at_floor && stamp.revision == floor => take(stamp, &key),
                Ok(None) => {}
                Err(error) => {
                    result = Err(error);
                    return ControlFlow::Break(());
                }
            }
        }
        seen = Some(key);
        ControlFlow::Continue(())
    })?;
    result?;
    for (stamp, key) in oldest.into_sorted_vec() {
        visit(&write_at(view, &key, stamp)?)?;
    }
    Ok(next)
}

fn write_at(view: &View<'_>, key: &Bytes, stamp: Stamp) -> Result<Written, StateError> {
    let row = layout::history(key, stamp);
    let bytes = view.rows.get(&row)?.ok_or_else(|| damaged(&row, &"a value is missing"))?;
    Ok(match Record::decode_history(&row, stamp, &bytes)? {
        Some((record, value_at)) => Written {
            stamp,
            pair: pair(&Found { key: key.clone(), record }, bytes.slice(value_at..)),
            is_delete: false,
        },
        None => Written {
            stamp,
            pair: KeyValue { key: key.clone(), ..KeyValue::default() },
            is_delete: true,
        },
    })
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
