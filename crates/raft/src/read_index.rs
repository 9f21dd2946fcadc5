//! Linearizable reads without a log entry, at the leader: it proves that it still leads (thesis
//! section 6.4).
//!
//! One round is under way at a time and carries every read that waited when it began; what arrives
//! meanwhile shares the next one. A round has the number of its beats, which is never used again in
//! its term. So an answer that bears it, or a later one, was sent after the round began and confirms
//! it; an older answer bears an older number and confirms nothing. While the leader holds a lease no
//! round is needed. Reads are refused, not carried over, when the leadership ends.

use quorate_types::{LogIndex, NodeId, ReadContext};

use crate::ready::ReadId;

/// Who waits for an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// The group above, here.
    Own(ReadId),
    /// A follower.
    Peer(NodeId, ReadContext),
}

/// The reads that wait at a leader. Own ones are bounded by the callers, of whom each read has one;
/// of each peer at most one waits in each of the two places, since the answer to a later request
/// answers the earlier ones of the same life too.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The round under way.
    confirming: Option<Confirming>,
    /// For the next round.
    queued: Vec<Asker>,
}

#[derive(Debug)]
struct Confirming {
    round: u64,
    /// The commit index when the round began.
    index: LogIndex,
    askers: Vec<Asker>,
}

impl Reads {
    pub(crate) fn push(&mut self, asker: Asker) {
        if let Asker::Peer(node, context) = asker {
            let earlier = self.queued.iter_mut().find_map(|queued| match queued {
                Asker::Peer(other, earlier) if *other == node => Some(earlier),
                Asker::Peer(..) | Asker::Own(_) => None,
            });
            if let Some(earlier) = earlier {
                // Of two lives the one that speaks last is the one that lives.
                if context.life != earlier.life || context.number > earlier.number {
                    *earlier = context;
                }
                return;
            }
        }
        self.queued.push(asker);
    }

    /// True when anybody waits.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.confirming.is_some() || !self.queued.is_empty()
    }

    /// True when a round can begin: none is under way, and reads wait.
    pub(crate) const fn wants_round(&self) -> bool {
        self.confirming.is_none() && !self.queued.is_empty()
    }

    /// Begins a round for all that wait: that of the beats numbered `round`, which leave with this
    /// turn. `index` is the commit index now.
    pub(crate) fn begin_round(&mut self, round: u64, index: LogIndex) {
        debug_assert!(self.confirming.is_none(), "one round at a time");
        let askers = std::mem::take(&mut self.queued);
        self.confirming = Some(Confirming { round, index, askers });
    }

    /// A quorum has answered the beats up to `round`: who is served by that, and with which index.
    pub(crate) fn confirm(&mut self, round: u64) -> Option<(LogIndex, Vec<Asker>)> {
        let confirmed = self.confirming.take_if(|confirming| confirming.round <= round)?;
        Some((confirmed.index, confirmed.askers))
    }

    /// The leadership is certain at this moment: everybody who waits, oldest first.
    pub(crate) fn take_all(&mut self) -> Vec<Asker> {
        let mut all = self.confirming.take().map_or_else(Vec::new, |confirming| confirming.askers);
        all.append(&mut self.queued);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn own(id: u64) -> Asker {
        Asker::Own(ReadId(id))
    }

    const fn peer(node: u64, life: u64, number: u64) -> Asker {
        Asker::Peer(NodeId(node), ReadContext { life, number })
    }

    #[test]
    fn an_answer_to_an_older_round_confirms_nothing() {
        let mut reads = Reads::default();
        reads.push(own(1));
        reads.begin_round(1, LogIndex(5));
        assert_eq!(reads.confirm(1), Some((LogIndex(5), vec![own(1)])));
        reads.push(own(2));
        reads.begin_round(3, LogIndex(6));
        reads.push(own(3));
        assert_eq!((reads.confirm(1), reads.confirm(2)), (None, None));
        assert!(!reads.wants_round(), "one round at a time");
        assert_eq!(reads.confirm(4), Some((LogIndex(6), vec![own(2)])));
        assert!(reads.wants_round(), "the read that came meanwhile takes the next");
    }

    #[test]
    fn a_peer_waits_once_with_its_latest_request() {
        let mut reads = Reads::default();
        for asker in [peer(2, 1, 1), peer(3, 1, 1), peer(2, 1, 4), peer(2, 1, 3), peer(3, 2, 1)] {
            reads.push(asker);
        }
        assert_eq!(reads.take_all(), [peer(2, 1, 4), peer(3, 2, 1)]);
        assert!(!reads.is_waiting());
    }
}
