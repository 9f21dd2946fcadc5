//! Leader leases: followers promise silence, and a leader reads without a message while enough of
//! these promises run (thesis section 6.4.1). `docs/protocol/reads.md` has the timeline and why it is
//! safe.
//!
//! Both sides are here, as arithmetic on moments that are handed in: [`Silence`] is what a replica has
//! promised, [`Beats`] is when a leader asked, and [`lease_end`] what it may make of an answer.

use std::collections::VecDeque;

use quorate_types::Moment;

/// Beats whose start is remembered. An answer to an older one confirms its round, and extends no
/// lease: at one beat for a tick, it took longer than any promise runs.
const STARTS_MAX: usize = 128;

/// The silence that a replica owes to leaders that it has heard: until it ends, it grants no vote or
/// pre-vote and does not campaign, whoever asks.
///
/// A promise is made when a beat is heard, and counts from the moment of the turn in which that was:
/// that moment comes later than the hearing, so the silence lasts at least as long as was promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Silence {
    until: Moment,
    /// A promise was made in this turn, whose moment is not known yet.
    unstamped: bool,
}

impl Silence {
    /// `may_have_promised`: an earlier life of this replica may have made a promise just before it
    /// ended. Then this life begins with a whole one.
    pub(crate) const fn new(may_have_promised: bool) -> Self {
        Self { until: Moment::ZERO, unstamped: may_have_promised }
    }

    /// A promise leaves with this turn.
    pub(crate) const fn promise(&mut self) {
        self.unstamped = true;
    }

    /// The turn takes place at `now`.
    pub(crate) fn stamp(&mut self, now: Moment, promise_us: u64) {
        if std::mem::take(&mut self.unstamped) {
            self.until = self.until.max(now.plus_us(promise_us));
        }
    }

    /// True while a promise runs; `now` may be old, which only makes the silence longer.
    pub(crate) fn holds(&self, now: Moment) -> bool {
        self.unstamped || now < self.until
    }
}

/// The rounds of beats of a leadership, and when each began.
#[derive(Debug, Default)]
pub(crate) struct Beats {
    latest: u64,
    /// Of the latest rounds, oldest first.
    starts: VecDeque<Moment>,
}

impl Beats {
    /// Begins a round: `now` is the moment of the turn that makes its beats, before they leave.
    pub(crate) fn begin(&mut self, now: Moment) {
        if self.latest == 0 || !quorate_types::defect!(ReadRoundReused) {
            self.latest += 1;
        }
        if self.starts.len() == STARTS_MAX {
            self.starts.pop_front();
        }
        self.starts.push_back(now);
    }

    /// The number of the latest round, 0 before the first; an honest answer cannot exceed it.
    pub(crate) const fn latest(&self) -> u64 {
        self.latest
    }

    /// When `round` began; `None` when that was too long ago, or never.
    pub(crate) fn start_of(&self, round: u64) -> Option<Moment> {
        let back = usize::try_from(self.latest.checked_sub(round)?).ok()?;
        let at = self.starts.len().checked_sub(1)?.checked_sub(back)?;
        self.starts.get(at).copied()
    }
}

/// Until when the leader may count on a promise of `promise_us` that answers a beat of `start`, when
/// the clocks of two nodes may differ in rate by `drift_permille`.
pub(crate) fn lease_end(start: Moment, promise_us: u64, drift_permille: u32) -> Moment {
    let drift_permille = if quorate_types::defect!(DriftIgnored) { 0 } else { drift_permille };
    let kept = 1000_u64.saturating_sub(u64::from(drift_permille));
    // Divides first: what is lost is below a millisecond, and nothing can overflow.
    start.plus_us(promise_us / 1000 * kept)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_promise_holds_from_before_its_moment_is_known() {
        let mut silence = Silence::new(false);
        assert!(!silence.holds(Moment(0)));
        silence.promise();
        assert!(silence.holds(Moment(u64::MAX)));
        silence.stamp(Moment(100), 50);
        assert!(silence.holds(Moment(149)) && !silence.holds(Moment(150)));
        silence.stamp(Moment(200), 50);
        assert!(!silence.holds(Moment(200)), "a turn without a promise makes none");
    }

    #[test]
    fn a_life_that_follows_another_begins_with_a_whole_promise() {
        let mut silence = Silence::new(true);
        assert!(silence.holds(Moment(7)));
        silence.stamp(Moment(7), 50);
        assert!(silence.holds(Moment(56)) && !silence.holds(Moment(57)));
    }

    #[test]
    fn only_the_latest_rounds_have_a_start() {
        let mut beats = Beats::default();
        assert_eq!(beats.start_of(0), None);
        for at in 1..=1000 {
            beats.begin(Moment(at));
        }
        assert_eq!(beats.start_of(1000), Some(Moment(1000)));
        assert_eq!(beats.start_of(873), Some(Moment(873)));
        assert_eq!(beats.start_of(872), None);
        assert_eq!(beats.start_of(1001), None);
    }

    proptest! {
        /// In true time, whatever the two clocks do within the bound.
        #[test]
        fn a_lease_ends_before_the_promise_that_it_is_made_of(
            promise_us in 0_u64..10_000_000,
            delay_us in 0_u64..100_000,
            leader_rate in 0.995_f64..1.005,
            follower_rate in 0.995_f64..1.005,
        ) {
            let start = Moment(1_000_000);
            let lease_us = lease_end(start, promise_us, 10).since_us(start);
            let lease_true = lease_us as f64 / leader_rate;
            let promise_true = delay_us as f64 + promise_us as f64 / follower_rate;
            prop_assert!(lease_true <= promise_true, "{lease_true} > {promise_true}");
        }
    }
}
