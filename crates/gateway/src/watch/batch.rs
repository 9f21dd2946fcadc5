//! Events as all watchers of a gateway share them.

use std::ops::Range;
use std::sync::Arc;

use quorate_types::Term;
use quorate_types::kv::{WatchEvent, WatchEvents};

use crate::backend::EventBatch;

/// What happened up to a revision; whole revisions.
#[derive(Debug)]
pub(crate) struct Batch {
    events: Arc<WatchEvents>,
    pub(crate) through: i64,
    pub(crate) raft_term: Term,
    pub(crate) bytes: usize,
    /// Bytes of all batches before it: how old it is. No other batch of the registry has the same.
    pub(crate) at: u64,
    /// Where its pieces end.
    piece_ends: Vec<usize>,
}

/// What a batch takes beside its events.
const BATCH_OVERHEAD_BYTES: usize = 256;

/// A piece ends with the revision that brings it to so many events, or bytes of them.
const PIECE_EVENTS: usize = 256;
const PIECE_BYTES: usize = 256 << 10;

impl Batch {
    pub(crate) fn new(batch: EventBatch, at: u64) -> Self {
        let EventBatch { through, raft_term, events } = batch;
        let bytes =
            BATCH_OVERHEAD_BYTES + events.0.iter().map(WatchEvent::cost_bytes).sum::<usize>();
        let piece_ends = piece_ends(&events.0);
        Self { events, through, raft_term, bytes, at, piece_ends }
    }

    pub(crate) fn events(&self) -> &[WatchEvent] {
        &self.events.0
    }

    /// The places of the piece that holds a place: some whole revisions, the same whoever asks.
    pub(crate) fn piece(&self, place: usize) -> Range<usize> {
        let nth = self.piece_ends.partition_point(|end| *end <= place);
        let start = nth.checked_sub(1).map_or(0, |before| self.piece_ends[before]);
        start..self.piece_ends[nth]
    }
}

fn piece_ends(events: &[WatchEvent]) -> Vec<usize> {
    let (mut ends, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (place, event) in events.iter().enumerate() {
        bytes += event.cost_bytes();
        let next = events.get(place + 1);
        let ends_revision = next.is_none_or(|next| next.revision() > event.revision());
        let is_enough = place + 1 - start >= PIECE_EVENTS || bytes >= PIECE_BYTES;
        if ends_revision && (is_enough || next.is_none()) {
            ends.push(place + 1);
            (start, bytes) = (place + 1, 0);
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_types::kv::KeyValue;

    use super::*;

    #[test]
    fn pieces_are_whole_revisions_and_no_larger_than_that_needs() {
        let put = |mod_revision: i64, value_bytes: usize| WatchEvent {
            kv: KeyValue {
                mod_revision,
                value: Bytes::from(vec![0; value_bytes]),
                ..KeyValue::default()
            },
            ..WatchEvent::default()
        };
        let small = (0..1_000).map(|number| put(2 + number / 10, 1));
        let many = (0..700).map(|_| put(200, 1));
        let large = (0..4).map(|number| put(300 + number / 2, PIECE_BYTES));
        let events: Vec<_> = small.chain(many).chain(large).collect();
        let (through, events) = (301, Arc::new(WatchEvents(events)));
        let batch = Batch::new(EventBatch { through, raft_term: Term(1), events }, 0);
        let mut pieces: Vec<_> = (0..batch.events().len()).map(|at| batch.piece(at)).collect();
        assert!(pieces.iter().enumerate().all(|(place, piece)| piece.contains(&place)));
        pieces.dedup();
        let starts: Vec<_> = pieces.iter().map(|piece| piece.start).collect();
        assert_eq!(starts, [0, 260, 520, 780, 1_700, 1_702], "{pieces:?}");
        assert_eq!(pieces.last().map(|piece| piece.end), Some(1_704));
    }
}
