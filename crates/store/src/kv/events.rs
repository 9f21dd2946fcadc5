//! Events from the rows: how a watcher catches up that the memory of late events has not enough for.

use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_types::kv::{EventKind, Events, EventsOutcome, KeyValue, WatchEvent};
use quorate_types::machine::{Direction, StateError};
use quorate_types::{KeyRange, defect};

use super::read::{Found, Refusal, View};
use super::record::{Change, Event, Record, damaged, decode_event};
use super::write::deleted;
use crate::layout::{self, Stamp};

/// Events that one answer looks at, at most but for the rest of a revision: however few of them are of the
/// range, an answer takes some milliseconds.
const EVENTS_LOOKED_AT_MAX: usize = 20_000;

/// All that happened in a range after a revision, in order. An answer that would be too large ends early,
/// at the end of a revision, and says so.
pub(crate) fn events(asked: &Events, view: &View<'_>) -> Result<EventsOutcome, Refusal> {
    let first = asked.after.saturating_add(1);
    if first < view.floor {
        return Ok(EventsOutcome {
            compacted: Some(view.floor),
            through: view.revision,
            ..EventsOutcome::default()
        });
    }
    let last = match asked.through {
        0 => view.revision,
        through => through.min(view.revision),
    };
    let range = KeyRange::from_request(&asked.key, &asked.range_end);
    let bytes_max = usize::try_from(asked.bytes_max).unwrap_or(usize::MAX);
    let bytes_max = if bytes_max == 0 { usize::MAX } else { bytes_max };
    // Positions first: values are read only of what is in the range.
    let (found, through) = positions(view, &range, first.max(0), last, bytes_max)?;
    let (mut events, mut bytes) = (Vec::with_capacity(found.len()), 0);
    for (stamp, event) in found {
        let whole = events.last().is_none_or(|last: &WatchEvent| last.revision() < stamp.revision);
        if (whole || defect!(EventsSplitRevision)) && bytes >= bytes_max {
            let through = stamp.revision - 1;
            return Ok(EventsOutcome { events, through, compacted: None });
        }
        let event = told(view, stamp, event, asked.prev_kv)?;
        bytes += event.cost_bytes();
        bytes += event.prev_kv.as_ref().map_or(0, |prev| prev.key.len() + prev.value.len());
        events.push(event);
    }
    Ok(EventsOutcome { events, through, compacted: None })
}

/// The events of `range` in the revisions `first..=last`, and up to where they were looked for.
fn positions(
    view: &View<'_>,
    range: &KeyRange,
    first: i64,
    last: i64,
    bytes_max: usize,
) -> Result<(Vec<(Stamp, Event)>, i64), StateError> {
    let (mut found, mut through, mut result) = (Vec::new(), last, Ok(()));
    if first > last {
        return Ok((found, through.max(first - 1)));
    }
    let start = layout::event(Stamp { revision: first, sub: 0 });
    let end = layout::event(Stamp::last_of(last));
    let (mut looked_at, mut bytes, mut at) = (0, 0, first);
    view.rows.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
        let stamp = layout::parse_event(row).ok_or_else(|| damaged(row, &"not an event"));
        match stamp.and_then(|stamp| Ok((stamp, decode_event(row, value)?))) {
            Ok((stamp, event)) => {
                if stamp.revision > at && (looked_at >= EVENTS_LOOKED_AT_MAX || bytes >= bytes_max)
                {
                    through = stamp.revision - 1;
                    return ControlFlow::Break(());
                }
                (looked_at, at) = (looked_at + 1, stamp.revision);
                if range.contains(&event.key) {
                    bytes += event.key.len() + size_of::<WatchEvent>();
                    found.push((stamp, event));
                }
                ControlFlow::Continue(())
            }
            Err(error) => {
                result = Err(error);
                ControlFlow::Break(())
            }
        }
    })?;
    result.map(|()| (found, through))
}

/// The event with its pairs.
fn told(
    view: &View<'_>,
    stamp: Stamp,
    event: Event,
    prev_kv: bool,
) -> Result<WatchEvent, StateError> {
    let Event { change, replaced, key } = event;
    let prev_kv = match replaced {
        Some(replaced) if prev_kv => before(view, &key, replaced, stamp.revision)?,
        Some(_) | None => None,
    };
    Ok(match change {
        Change::Put => {
            let kind = EventKind::Put as i32;
            WatchEvent { kind, kv: put_at(view, &key, stamp)?, prev_kv }
        }
        Change::Delete => {
            let kind = EventKind::Delete as i32;
            WatchEvent { kind, kv: deleted(key, stamp.revision), prev_kv }
        }
    })
}

/// The pair of `key` before `revision`. What an event replaced may be of the same revision, since one
/// transaction may put a key and delete its range; etcd tells of what was before the transaction.
fn before(
    view: &View<'_>,
    key: &Bytes,
    replaced: Stamp,
    revision: i64,
) -> Result<Option<KeyValue>, StateError> {
    if replaced.revision < revision {
        return put_at(view, key, replaced).map(Some);
    }
    let Some(record) = view.one_at(revision - 1, key)? else { return Ok(None) };
    view.pair(&Found { key: key.clone(), record }).map(Some)
}

/// The pair that the put at `stamp` made; it must be there.
fn put_at(view: &View<'_>, key: &Bytes, stamp: Stamp) -> Result<KeyValue, StateError> {
    let row = layout::history(key, stamp);
    let bytes = view.rows.get(&row)?.ok_or_else(|| damaged(&row, &"a value is missing"))?;
    let Some((record, value_at)) = Record::decode_history(&row, stamp, &bytes)? else {
        return Err(damaged(&row, &"a tombstone where a put should be"));
    };
    Ok(KeyValue {
        key: key.clone(),
        create_revision: record.create,
        mod_revision: stamp.revision,
        version: record.version,
        value: bytes.slice(value_at..),
        lease: record.lease,
    })
}
