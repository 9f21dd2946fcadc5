//! The pairs before events, for watchers that ask for them.
//!
//! They are read from the rows when a note goes out, and what is held of them is bounded, however large they are: a
//! piece of a batch whose pairs are small is read once for everybody, and kept for a while; of any other
//! piece each watcher reads what is before its own events, some revisions at a time.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_types::KeyRange;
use quorate_types::kv::{Events, KeyValue, WatchEvent};
use tokio::sync::OnceCell;
use tonic::Status;

use super::batch::Batch;
use super::catch_up::{READ_BYTES_MAX, Read, events, request_of};
use super::hub::Hub;
use crate::backend::Backend;
use crate::error::ApiError;

/// Bytes of pairs that are kept for all watchers of a gateway, with the events that they are read with.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Pieces that are kept. What is told late is told of a few batches.
const KEPT_PIECES_MAX: usize = 256;

/// Pairs by the revision that replaced them, and their key: one write more in a revision changes nothing of what was
/// before it.
type Pairs = BTreeMap<(i64, Bytes), KeyValue>;

/// A piece as everybody reads it; `None` if it is too large for that.
type Piece = Arc<OnceCell<Option<Pairs>>>;

/// A batch, and the first place of a piece.
type PieceId = (u64, usize);

/// The pairs of late pieces.
#[derive(Default)]
pub(super) struct PrevKvs(Mutex<Shelf>);

impl PrevKvs {
    /// The pairs before the first of `picks`, in their order: all of them, or as many as are enough for one response.
    /// At least one, and of no revision only a part.
    pub(super) async fn of<B: Backend>(
        hub: &Hub<B>,
        batch: &Batch,
        picks: &[u32],
    ) -> Result<Vec<Option<KeyValue>>, Status> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(first) = picks.get(found.len())
            && bytes < READ_BYTES_MAX as usize
        {
            let piece = batch.piece(*first as usize);
            let rest = &picks[found.len()..];
            let own = &rest[..rest.partition_point(|place| (*place as usize) < piece.end)];
            let events = own.iter().map(|place| &batch.events()[*place as usize]);
            if events.clone().all(|event| event.is_create()) {
                found.extend(events.map(|_| None));
                continue;
            }
            let cell = hub.prev_kvs.shelf().piece((batch.at, piece.start));
            let shared = cell.get_or_try_init(|| share(hub, batch, piece)).await?;
            let known = found.len();
            match shared {
                Some(pairs) => found.extend(events.map(|event| before(pairs, event))),
                None => found.extend(read_own(hub, batch, own).await?),
            }
            bytes += found[known..].iter().flatten().map(pair_bytes).sum::<usize>();
        }
        Ok(found)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Nothing panics that changes it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the pairs of a piece for everybody, if one read gives them.
async fn share<B: Backend>(
    hub: &Hub<B>,
    batch: &Batch,
    piece: Range<usize>,
) -> Result<Option<Pairs>, Status> {
    let (first, last) = (&batch.events()[piece.start], &batch.events()[piece.end - 1]);
    let asked = Events {
        after: first.revision() - 1,
        through: last.revision(),
        range_end: Bytes::from_static(&[0]),
        prev_kv: true,
        bytes_max: READ_BYTES_MAX,
        // Where a revision is too large, nothing of it is of use.
        parts: true,
        ..Events::default()
    };
    // Whoever holds a turn waits for no piece, so this waits for reads alone.
    let turn = hub.turn_to_read().await?;
    let Read { found, .. } = events(&hub.desk, asked).await?;
    drop(turn);
    if found.compacted.is_some() || found.through < last.revision() {
        return Ok(None);
    }
    // A pair may hold on to the whole answer.
    let prev_bytes = |event: &WatchEvent| event.prev_kv.as_ref().map_or(0, pair_bytes);
    let bytes = found.events.iter().map(|event| event.cost_bytes() + prev_bytes(event)).sum();
    let is_kept = hub.prev_kvs.shelf().charge((batch.at, piece.start), bytes);
    Ok(is_kept.then(|| pairs(found.events)))
}

/// Reads the pairs before the first of `picks`, which are some of one piece: at least of one revision, and of all
/// that fit one read.
async fn read_own<B: Backend>(
    hub: &Hub<B>,
    batch: &Batch,
    picks: &[u32],
) -> Result<Vec<Option<KeyValue>>, Status> {
    let events_picked: Vec<_> = picks.iter().map(|at| &batch.events()[*at as usize]).collect();
    let (first, last) = (events_picked[0], events_picked[events_picked.len() - 1]);
    let keys = || events_picked.iter().map(|event| &event.kv.key);
    let (least, most) = keys().min().zip(keys().max()).expect("there is a first");
    let range = KeyRange { start: least.clone(), end: KeyRange::single(most).end };
    let (key, range_end) = request_of(&range);
    let after = first.revision() - 1;
    let asked = Events {
        after,
        through: last.revision(),
        key,
        range_end,
        prev_kv: true,
        bytes_max: READ_BYTES_MAX,
        ..Events::default()
    };
    let turn = hub.turn_to_read().await?;
    let Read { found, .. } = events(&hub.desk, asked).await?;
    drop(turn);
    // As with etcd: the events go out without what is compacted.
    let through = found.compacted.map_or(found.through, |floor| floor - 1);
    if through <= after {
        return Err(ApiError::UnexpectedOutcome.into());
    }
    let pairs = pairs(found.events);
    let covered = events_picked.into_iter().take_while(|event| event.revision() <= through);
    Ok(covered.map(|event| before(&pairs, event)).collect())
}

fn pairs(events: Vec<WatchEvent>) -> Pairs {
    let pair = |event: WatchEvent| Some(((event.revision(), event.kv.key), event.prev_kv?));
    events.into_iter().filter_map(pair).collect()
}

fn before(pairs: &Pairs, event: &WatchEvent) -> Option<KeyValue> {
    pairs.get(&(event.revision(), event.kv.key.clone())).cloned()
}

const fn pair_bytes(pair: &KeyValue) -> usize {
    pair.key.len() + pair.value.len()
}

/// Pieces in the order in which they were first asked for, each with its bytes.
#[derive(Default)]
struct Shelf {
    kept: VecDeque<(PieceId, Piece, usize)>,
    bytes: usize,
}

impl Shelf {
    fn piece(&mut self, id: PieceId) -> Piece {
        let kept = self.kept.iter().rev().find(|(kept, ..)| *kept == id);
        if let Some((_, piece, _)) = kept {
            return Arc::clone(piece);
        }
        let piece = Piece::default();
        self.kept.push_back((id, Arc::clone(&piece), 0));
        self.make_room();
        piece
    }

    /// A piece has come to so many bytes; false if that is too much.
    fn charge(&mut self, id: PieceId, bytes: usize) -> bool {
        if bytes > KEPT_BYTES_MAX / 2 {
            return false;
        }
        // It may be gone already: then only those have it who wait for it.
        if let Some((.., charged)) = self.kept.iter_mut().rev().find(|(kept, ..)| *kept == id) {
            self.bytes = self.bytes - *charged + bytes;
            *charged = bytes;
        }
        self.make_room();
        true
    }

    fn make_room(&mut self) {
        while (self.bytes > KEPT_BYTES_MAX || self.kept.len() > KEPT_PIECES_MAX)
            && let Some((.., bytes)) = self.kept.pop_front()
        {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_kept_is_bounded_and_the_late_is_kept(
            pieces in vec((0u64..400, 0usize..3, 0..KEPT_BYTES_MAX), 1..600),
        ) {
            let mut shelf = Shelf::default();
            for (batch, place, bytes) in pieces {
                let piece = shelf.piece((batch, place));
                prop_assert!(Arc::ptr_eq(&piece, &shelf.piece((batch, place))));
                let is_small = bytes <= KEPT_BYTES_MAX / 2;
                prop_assert_eq!(shelf.charge((batch, place), bytes), is_small);
                let charged: usize = shelf.kept.iter().map(|(.., bytes)| bytes).sum();
                prop_assert_eq!(charged, shelf.bytes);
                prop_assert!(charged <= KEPT_BYTES_MAX && shelf.kept.len() <= KEPT_PIECES_MAX);
            }
        }
    }
}
