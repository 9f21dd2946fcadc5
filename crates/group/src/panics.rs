//! What becomes of a group that panics: it is loaded again, and one that panics again and again is kept
//! away from its node.

use std::collections::VecDeque;

use quorate_types::Moment;

/// So many panics within [`PANICS_WINDOW_US`] and the group is quarantined. A group that meets the same
/// entry after each reload gets there at once; one that meets a rare fault of memory does not.
pub const PANICS_MAX: usize = 3;

/// Ten minutes, in microseconds.
pub const PANICS_WINDOW_US: u64 = 10 * 60 * 1_000_000;

/// The panics of one group on one node, over all its lives there since the node started.
#[derive(Clone, Debug, Default)]
pub struct Panics {
    /// Those of the last ten minutes, oldest first; fewer than [`PANICS_MAX`] until the verdict.
    recent: VecDeque<Moment>,
}

/// What to do with a group that has panicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Load it again from what is durable.
    Reload,
    /// Keep it away from this node until that is started again.
    Quarantine,
}

impl Panics {
    /// The group panics at `now`, a reading of the same clock each time.
    pub fn note(&mut self, now: Moment) -> Verdict {
        self.recent.retain(|earlier| now.since_us(*earlier) < PANICS_WINDOW_US);
        self.recent.push_back(now);
        match self.recent.len() {
            count if count < PANICS_MAX => Verdict::Reload,
            _ => Verdict::Quarantine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60 * 1_000_000;

    fn verdicts(minutes: &[u64]) -> Vec<Verdict> {
        let mut panics = Panics::default();
        minutes.iter().map(|at| panics.note(Moment(1 + at * MINUTE))).collect()
    }

    #[test]
    fn the_third_panic_within_ten_minutes_quarantines() {
        use Verdict::{Quarantine, Reload};
        assert_eq!(verdicts(&[0, 0, 0]), [Reload, Reload, Quarantine]);
        assert_eq!(verdicts(&[0, 5, 9]), [Reload, Reload, Quarantine]);
    }

    #[test]
    fn panics_that_are_far_apart_never_do() {
        let rare: Vec<_> = (0..100).map(|number| number * 5).collect();
        assert!(verdicts(&rare).iter().all(|verdict| *verdict == Verdict::Reload));
        assert_eq!(verdicts(&[0, 1, 10]), [Verdict::Reload; 3], "the first is forgotten by then");
    }
}
