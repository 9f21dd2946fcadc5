//! Linearizable reads without a log entry: the leader proves that it still leads (thesis section
//! 6.4).
//!
//! One round is under way at a time and carries every read that waited when it began; what arrives
//! meanwhile shares the next one. A round has a number that is never used again in its term.
//! Heartbeats carry the number of the latest round, so an answer that bears it was sent after the
//! round began and confirms it; an older answer bears an older number and confirms nothing. Reads
//! are refused, not carried over, when the leadership ends.

use quorate_types::LogIndex;

use crate::ready::{ReadId, ReadReady};

/// The reads that wait at a leader. Bounded by the callers, of whom each read has one.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The number of the latest round; 0 before the first.
    round: u64,
    /// The round under way; its number is `round`.
    confirming: Option<Confirming>,
    /// For the next round.
    queued: Vec<ReadId>,
}

#[derive(Debug)]
struct Confirming {
    /// The commit index when the round began.
    index: LogIndex,
    reads: Vec<ReadId>,
}

impl Reads {
    pub(crate) fn push(&mut self, id: ReadId) {
        self.queued.push(id);
    }

    /// True when a round can begin: none is under way, and reads wait.
    pub(crate) fn wants_round(&self) -> bool {
        self.confirming.is_none() && !self.queued.is_empty()
    }

    /// Begins a round for all that wait; `index` is the commit index now.
    pub(crate) fn begin_round(&mut self, index: LogIndex) {
        debug_assert!(self.confirming.is_none(), "one round at a time");
        self.round += 1;
        let reads = std::mem::take(&mut self.queued);
        self.confirming = Some(Confirming { index, reads });
    }

    /// The number that heartbeats carry and that an honest answer cannot exceed.
    pub(crate) const fn round(&self) -> u64 {
        self.round
    }

    /// A quorum has answered the rounds up to `round`: serves the reads under way if that covers
    /// them.
    pub(crate) fn confirm(&mut self, round: u64, served: &mut Vec<ReadReady>) {
        if round < self.round {
            return;
        }
        if let Some(Confirming { index, reads }) = self.confirming.take() {
            served.extend(reads.into_iter().map(|id| ReadReady { id, index }));
        }
    }

    /// The leadership is over: every waiting read, oldest first.
    pub(crate) fn refuse_all(&mut self, refused: &mut Vec<ReadId>) {
        if let Some(Confirming { reads, .. }) = self.confirming.take() {
            refused.extend(reads);
        }
        refused.append(&mut self.queued);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_an_older_round_confirms_nothing() {
        let (mut reads, mut served) = (Reads::default(), Vec::new());
        reads.push(ReadId(1));
        reads.begin_round(LogIndex(5));
        reads.confirm(1, &mut served);
        assert_eq!(served, [ReadReady { id: ReadId(1), index: LogIndex(5) }]);
        served.clear();
        reads.push(ReadId(2));
        reads.begin_round(LogIndex(6));
        reads.push(ReadId(3));
        reads.confirm(1, &mut served);
        assert_eq!(served, []);
        assert!(!reads.wants_round(), "one round at a time");
        reads.confirm(2, &mut served);
        assert_eq!(served, [ReadReady { id: ReadId(2), index: LogIndex(6) }]);
        assert!(reads.wants_round(), "the read that came meanwhile takes the next");
    }
}
