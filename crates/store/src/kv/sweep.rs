//! Removes what compaction made invisible, a bounded number of rows at a time.
//!
//! It follows the events below the floor in order, so its cost is that of the writes that were made, not
//! of the keys that exist. When the event of a write comes up, what older rows its key has were visible
//! only below that write, and so below the floor: they go. If the write is a tombstone, it goes too: a
//! key without rows reads as missing all the same. A put stays; its own event, if it is ever
//! overwritten, takes it away. Then the event goes.
//!
//! Events *at* the floor stay, since a watch may begin there, and with them what they say happened.
//!
//! The position is part of the meta, so that a restart goes on from it. Rows and position are in one
//! batch; and as batches become durable in order, no crash can keep what a sweep did and lose the
//! compaction that allowed it.

use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_types::machine::{Direction, StateError};
use quorate_types::{StateBatch, StateReader};

use super::meta::Meta;
use super::record::{Change, damaged, decode_event};
use crate::layout::{self, Stamp};

/// Removes up to `budget_rows` rows, or the two of one event if the budget is smaller than that; true
/// while there may be more.
pub(crate) fn sweep(
    meta: &mut Meta,
    budget_rows: usize,
    batch: &mut dyn StateBatch,
) -> Result<bool, StateError> {
    let floor = Stamp { revision: meta.floor.max(0), sub: 0 };
    let budget = budget_rows.max(1);
    let mut left = budget;
    // Each event costs a row at least, so more of them are not needed.
    let events = events(batch, meta.swept, floor, budget)?;
    let exhausted = events.len() < budget;
    for Event { stamp, what } in events {
        if left == 0 {
            return Ok(true);
        }
        let mut own_rows = 1;
        if let Some((change, key)) = &what {
            let old = older(batch, key, stamp, left)?;
            left -= old.len();
            old.iter().for_each(|row| batch.delete(row));
            own_rows += usize::from(*change == Change::Delete);
        }
        // The write's own rows come last: the tombstone must outlive what it hides, and the event is
        // what remembers both.
        if left < own_rows && left < budget {
            return Ok(true);
        }
        left = left.saturating_sub(own_rows);
        if let Some((Change::Delete, key)) = &what {
            batch.delete(&layout::history(key, stamp));
        }
        batch.delete(&layout::event(stamp));
        meta.swept = stamp.next();
    }
    if exhausted {
        meta.swept = meta.swept.max(floor);
    }
    Ok(!exhausted)
}

/// A write as its `E` row tells of it.
struct Event {
    stamp: Stamp,
    /// What was done to which key; `None` for a key that is not the users'.
    what: Option<(Change, Bytes)>,
}

/// Up to `max` events in `[from, to)`, in order.
fn events(
    rows: &dyn StateReader,
    from: Stamp,
    to: Stamp,
    max: usize,
) -> Result<Vec<Event>, StateError> {
    let (mut events, mut result) = (Vec::new(), Ok(()));
    let end = layout::event(to);
    rows.scan(&layout::event(from), Some(&end), Direction::Forward, &mut |row, value| {
        let stamp = layout::parse_event(row).ok_or_else(|| damaged(row, &"not an event"));
        match stamp.and_then(|stamp| Ok(Event { stamp, what: decode_event(row, value)? })) {
            Ok(event) => events.push(event),
            Err(error) => result = Err(error),
        }
        if result.is_err() || events.len() == max {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    result.map(|()| events)
}

/// Up to `max` rows of `key` that are older than the one at `stamp`, newest first.
fn older(
    rows: &dyn StateReader,
    key: &[u8],
    stamp: Stamp,
    max: usize,
) -> Result<Vec<Bytes>, StateError> {
    let mut older = Vec::new();
    let own = layout::history(key, stamp);
    let end = layout::history_end(key);
    // The row after `own` in key order is the next older one.
    let start = [&own[..], &[0]].concat();
    rows.scan(&start, Some(&end), Direction::Forward, &mut |row, _| {
        older.push(Bytes::copy_from_slice(row));
        if older.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(older)
}
