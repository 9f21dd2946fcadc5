//! I13: what a watcher is told is the committed history of its range: every event, in order, once, whole revisions, and
//! nothing else; and who begins below the compaction is told so.

use quorate_types::kv::{Range, WatchEvent};

use super::model::Model;
use super::{Checked, Oracle};

/// A watcher of `range` that has been told everything up to `after` is told `events`, and that nothing is left out up
/// to `through`.
pub(crate) fn on_told(
    who: &str,
    model: &Model,
    range: &Range,
    (after, through): (i64, i64),
    events: &[WatchEvent],
    with_prev_kv: bool,
) -> Checked {
    Oracle::Watch.check(through <= model.revision(), || {
        format!("{who} is told of {through}, but {} is the last revision", model.revision())
    })?;
    let mut expected = model.events(range, after, through);
    if !with_prev_kv {
        expected.iter_mut().for_each(|event| event.prev_kv = None);
    }
    let first =
        (0..expected.len().max(events.len())).find(|&at| expected.get(at) != events.get(at));
    Oracle::Watch.check(first.is_none(), || {
        let at = first.unwrap_or(0);
        format!(
            "{who}, between {after} and {through}, is told {:?} as number {at}, expected {:?}",
            events.get(at),
            expected.get(at)
        )
    })
}

/// A watcher that wants what follows on `after` is told that this is compacted, below `floor`.
pub(crate) fn on_compacted(who: &str, model: &Model, after: i64, floor: i64) -> Checked {
    Oracle::Watch.check(after + 1 < floor && floor <= model.floor(), || {
        format!(
            "{who} is told that {} is below a compaction at {floor}, which is at {}",
            after + 1,
            model.floor()
        )
    })
}
