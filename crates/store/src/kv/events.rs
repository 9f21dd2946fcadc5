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
/// at the end of a revision unless parts will do, and says so.
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
    let within = Within {
        from: Stamp { revision: first.max(0), sub: asked.from },
        last,
        bytes_max,
        parts: asked.parts,
    };
    // Positions first: values are read only of what is in the range.
    let (found, mut end) = positions(view, &range, within)?;
    let (mut events, mut bytes) = (Vec::with_capacity(found.len()), 0);
    for (stamp, event) in found {
        let whole = events.last().is_none_or(|last: &WatchEvent| last.revision() < stamp.revision);
        if (whole || asked.parts || defect!(EventsSplitRevision)) && bytes >= bytes_max {
            end = End::before(stamp, asked.parts);
            break;
        }
        let event = told(view, stamp, event, asked.prev_kv)?;
        bytes += event.cost_bytes();
        bytes += event.prev_kv.as_ref().map_or(0, |prev| prev.key.len() + prev.value.len());
        events.push(event);
    }
    Ok(EventsOutcome { events, through: end.through, compacted: None, rest_from: end.rest_from })
}

/// What of the history is looked at.
#[derive(Clone, Copy)]
struct Within {
    from: Stamp,
    /// The last revision.
    last: i64,
    bytes_max: usize,
    /// It may end within a revision.
    parts: bool,
}

/// Up to where events were looked for.
#[derive(Clone, Copy)]
struct End {
    through: i64,
    rest_from: u32,
}

impl End {
    /// Everything before `stamp`, or before its revision.
    const fn before(stamp: Stamp, parts: bool) -> Self {
        Self { through: stamp.revision - 1, rest_from: if parts { stamp.sub } else { 0 } }
    }
}

/// The events of `range` there, and up to where they were looked for.
fn positions(
    view: &View<'_>,
    range: &KeyRange,
    within: Within,
) -> Result<(Vec<(Stamp, Event)>, End), StateError> {
    let Within { from, last, bytes_max, parts } = within;
    let (mut found, mut result) = (Vec::new(), Ok(()));
    let mut until = End { through: last, rest_from: 0 };
    if from.revision > last {
        until.through = last.max(from.revision - 1);
        return Ok((found, until));
    }
    let (start, end) = (layout::event(from), layout::event(Stamp::last_of(last)));
    let (mut looked_at, mut bytes, mut at) = (0, 0, from.revision);
    view.rows.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
        let stamp = layout::parse_event(row).ok_or_else(|| damaged(row, &"not an event"));
        match stamp.and_then(|stamp| Ok((stamp, decode_event(row, value)?))) {
            Ok((stamp, event)) => {
                let may_end = stamp.revision > at || parts;
                if may_end && (looked_at >= EVENTS_LOOKED_AT_MAX || bytes >= bytes_max) {
                    until = End::before(stamp, parts);
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
    result.map(|()| (found, until))
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
