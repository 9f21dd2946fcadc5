//! Removes what compaction made invisible, a bounded number of rows at a time.
//!
//! It follows the events below the floor in order, so its cost is that of the writes that were made, not
//! of the keys that exist. When the event of a write comes up, the put that it replaced was visible only
//! below that write, and so below the floor: it goes. If the write is a tombstone, it goes too: a key
//! without rows reads as missing all the same. A put stays; its own event, if it is ever overwritten,
//! takes it away. Then the event goes.
//!
//! Which put that is, the event itself says, so nothing but events is ever read. Looking for it among
//! the rows of the key instead would mean to walk over the marks of all rows removed before.
//!
//! Events *at* the floor stay, since a watch may begin there, and with them what they say happened.
//!
//! The position is part of the meta, so that a restart goes on from it. Rows and position are in one
//! batch; and as batches become durable in order, no crash can keep what a sweep did and lose the
//! compaction that allowed it.

use std::ops::ControlFlow;

use quorate_types::machine::{Direction, StateError};
use quorate_types::{StateBatch, StateReader};

use super::meta::Meta;
use super::record::{Change, Event, damaged, decode_event};
use crate::layout::{self, Stamp};

/// Removes up to `budget_rows` rows, or those of one event (three at most) if the budget is smaller than
/// that; true while there may be more.
pub(crate) fn sweep(
    meta: &mut Meta,
    budget_rows: usize,
    batch: &mut dyn StateBatch,
) -> Result<bool, StateError> {
    let too_far = if quorate_types::defect!(SweepTooFar) { 2 } else { 0 };
    let floor = Stamp { revision: meta.floor.max(0) + too_far, sub: 0 };
    // Each event costs a row at least, so more of them are not needed.
    let events_max = budget_rows.max(1);
    let events = events(batch, meta.swept, floor, events_max)?;
    let exhausted = events.len() < events_max;
    let mut removed = 0;
    for (stamp, Event { change, replaced, key }) in events {
        let mut doomed = vec![layout::event(stamp).to_vec()];
        doomed.extend(replaced.map(|replaced| layout::history(&key, replaced)));
        if change == Change::Delete {
            doomed.push(layout::history(&key, stamp));
        }
        if removed > 0 && removed + doomed.len() > budget_rows {
            return Ok(true);
        }
        removed += doomed.len();
        doomed.iter().for_each(|row| batch.delete(row));
        meta.swept = stamp.next();
    }
    if exhausted {
        meta.swept = meta.swept.max(floor);
    }
    Ok(!exhausted)
}

/// Up to `max` events in `[from, to)`, in order.
fn events(
    rows: &dyn StateReader,
    from: Stamp,
    to: Stamp,
    max: usize,
) -> Result<Vec<(Stamp, Event)>, StateError> {
    let (mut events, mut result) = (Vec::new(), Ok(()));
    let end = layout::event(to);
    rows.scan(&layout::event(from), Some(&end), Direction::Forward, &mut |row, value| {
        let stamp = layout::parse_event(row).ok_or_else(|| damaged(row, &"not an event"));
        match stamp.and_then(|stamp| Ok((stamp, decode_event(row, value)?))) {
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

#[cfg(test)]
mod tests {
    use quorate_types::GroupId;
    use quorate_types::kv::Put;
    use quorate_types::machine::RowScope;

    use super::*;
    use crate::engine::{MemState, Overlay, StateEngine};
    use crate::kv::hashing::Seeded;
    use crate::kv::pairs::Pairs;
    use crate::kv::recent::Recent;
    use crate::kv::write::Writer;

    #[test]
    fn a_sweep_goes_on_from_where_it_stopped_and_ends_at_the_floor() {
        let engine = MemState::new();
        let mut overlay = Overlay::new(engine.view());
        let mut batch = overlay.scoped(RowScope::Keyspace, GroupId(1));
        let mut meta = Meta { revision: 5, floor: 4, ..Meta::decode(&[]).unwrap() };
        for revision in 2..=5 {
            let put = Put { key: "k".into(), ..Put::default() };
            let before = Meta { revision: revision - 1, floor: -1, ..meta };
            let (mut recent, pairs) = (Recent::new(Seeded(1)), Pairs::new(revision - 1, Seeded(1)));
            Writer::new(&mut batch, &mut recent, &pairs, &before, revision).put(&put).unwrap();
        }
        let mut positions = Vec::new();
        while sweep(&mut meta, 1, &mut batch).unwrap() {
            positions.push(meta.swept);
        }
        assert_eq!(positions, [2, 3].map(|revision| Stamp { revision, sub: 1 }));
        assert_eq!(meta.swept, Stamp { revision: 4, sub: 0 });
    }
}
