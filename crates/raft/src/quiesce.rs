//! When a leader may let its idle group fall asleep, so that it costs nothing until something happens.
//!
//! A leader that had nothing to do for `quiesce_ticks`, and whose peers all hold, have committed and
//! have applied everything, sends a beat that says so instead of one of its heartbeats. Who agrees
//! stops its election timer and answers; when all have, the leader sleeps too, and nobody sends or
//! ticks any more. If one does not agree, or cannot be heard, the next heartbeat wakes the others, and
//! the leader tries again after as much idle time.

use std::collections::BTreeSet;

use quorate_types::NodeId;

/// The leader's side.
#[derive(Debug, Default)]
pub(crate) struct Quiesce {
    idle_ticks: u32,
    /// The round of beats that asked, and who agreed to it.
    asked: Option<(u64, BTreeSet<NodeId>)>,
}

impl Quiesce {
    /// Something happened: the group stays awake.
    pub(crate) fn on_activity(&mut self) {
        *self = Self::default();
    }

    /// A tick passed.
    pub(crate) const fn tick(&mut self) {
        self.idle_ticks = self.idle_ticks.saturating_add(1);
    }

    /// True when the leader was idle long enough; never when `quiesce_ticks` is 0.
    pub(crate) const fn is_due(&self, quiesce_ticks: u32) -> bool {
        quiesce_ticks > 0 && self.idle_ticks >= quiesce_ticks
    }

    /// A round of beats, `round`, leaves now: should it ask? `is_settled` when nothing is left to do
    /// anywhere. One that asked and was not answered by all is followed by one that does not.
    pub(crate) fn begin_round(&mut self, round: u64, is_settled: bool, quiesce_ticks: u32) -> bool {
        if self.asked.is_some() || !is_settled {
            self.on_activity();
            return false;
        }
        let asks = self.is_due(quiesce_ticks);
        self.asked = asks.then(|| (round, BTreeSet::new()));
        asks
    }

    /// `node` agreed to `round`. Returns true when all of `peers` nodes have.
    pub(crate) fn on_agreed(&mut self, node: NodeId, round: u64, peers: usize) -> bool {
        match &mut self.asked {
            Some((asked, agreed)) if *asked == round => {
                agreed.insert(node);
                agreed.len() == peers
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(ticks: u32) -> Quiesce {
        let mut quiesce = Quiesce::default();
        (0..ticks).for_each(|_| quiesce.tick());
        quiesce
    }

    #[test]
    fn only_a_settled_and_idle_leader_asks() {
        assert!(!idle(4).begin_round(1, true, 5));
        assert!(!idle(9).begin_round(1, false, 5));
        assert!(!idle(9).begin_round(1, true, 0), "switched off");
        assert!(idle(5).begin_round(1, true, 5));
    }

    #[test]
    fn all_must_agree_to_the_same_round() {
        let mut quiesce = idle(5);
        assert!(quiesce.begin_round(7, true, 5));
        assert!(!quiesce.on_agreed(NodeId(2), 7, 2));
        assert!(!quiesce.on_agreed(NodeId(2), 7, 2), "twice the same");
        assert!(!quiesce.on_agreed(NodeId(3), 6, 2), "an older round");
        assert!(quiesce.on_agreed(NodeId(3), 7, 2));
    }

    #[test]
    fn a_round_without_an_agreement_is_followed_by_one_that_wakes() {
        let mut quiesce = idle(5);
        assert!(quiesce.begin_round(7, true, 5));
        assert!(!quiesce.begin_round(8, true, 5));
        assert!(!quiesce.on_agreed(NodeId(2), 7, 1), "too late");
        (0..5).for_each(|_| quiesce.tick());
        assert!(quiesce.begin_round(9, true, 5));
    }

    #[test]
    fn activity_ends_the_attempt() {
        let mut quiesce = idle(5);
        assert!(quiesce.begin_round(7, true, 5));
        quiesce.on_activity();
        assert!(!quiesce.on_agreed(NodeId(2), 7, 1));
    }
}
