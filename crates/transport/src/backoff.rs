//! How long to wait before a peer is dialed again.

use std::time::Duration;

/// Doubles from a smallest to a largest wait; each wait is drawn from the upper half of its range, so
/// that nodes that lost each other at once do not return at once.
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    rng: fastrand::Rng,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max: max.max(min), next: min, rng: fastrand::Rng::with_seed(seed) }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let ceiling = self.next;
        self.next = ceiling.saturating_mul(2).min(self.max);
        ceiling.mul_f64(0.5 + self.rng.f64() / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_begin_again() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new(min, max, 7);
        for ceiling in [50, 100, 200, 400, 800, 1_600, 2_000, 2_000].map(Duration::from_millis) {
            let wait = backoff.next();
            assert!(wait >= ceiling / 2 && wait <= ceiling, "{wait:?} of {ceiling:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}
