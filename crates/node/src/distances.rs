//! How far the other nodes are, as the answers to beats tell: round trips, with all that a request meets on its way.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use quorate_types::NodeId;

use crate::engine::lock;

/// One in so many parts of what is shown is the latest round trip, as in TCP.
const GAIN: u32 = 8;

/// Smoothed round trips.
#[derive(Debug, Default)]
pub(crate) struct Distances {
    smoothed: Mutex<BTreeMap<NodeId, Duration>>,
}

impl Distances {
    /// A request to `node` was answered after `round_trip`, at once when it had arrived; or it had not been answered
    /// so long: who answers no more would be near for good otherwise.
    pub(crate) fn note(&self, node: NodeId, round_trip: Duration) {
        let mut smoothed = lock(&self.smoothed);
        let known = smoothed.entry(node).or_insert(round_trip);
        *known = (*known * (GAIN - 1) + round_trip) / GAIN;
    }

    /// The round trip to `node`; `None` before anything was heard from it.
    pub(crate) fn of(&self, node: NodeId) -> Option<Duration> {
        lock(&self.smoothed).get(&node).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_answer_does_not_make_a_near_node_far() {
        let (distances, ms) = (Distances::default(), Duration::from_millis);
        let (near, far) = (NodeId(1), NodeId(2));
        assert_eq!(distances.of(near), None);
        for _ in 0..10 {
            distances.note(near, ms(2));
            distances.note(far, ms(60));
        }
        distances.note(near, ms(200));
        assert!(distances.of(near) < distances.of(far));
        // One that stays slow is far.
        (0..30).for_each(|_| distances.note(near, ms(200)));
        assert!(distances.of(near) > distances.of(far));
    }
}
