//! The rate that all snapshots of a node share.

use std::time::{Duration, Instant};

/// Gives out moments at which so many bytes may go, in the order in which they are asked for. What is
/// not used is not saved up beyond 20 ms, so that a pause is not followed by a flood.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    /// When everything that was given out has gone, at this rate.
    free_at: Option<Instant>,
}

/// How much of the past may be made up for: what a late timer loses.
const BURST: Duration = Duration::from_millis(20);

impl Pace {
    /// Nothing was given out; a rate of 0 counts as 1.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: None }
    }

    /// When `bytes` may go, asked at `now`.
    pub fn reserve(&mut self, now: Instant, bytes: usize) -> Instant {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let at = self.free_at.map_or(now, |free_at| free_at.max(earliest));
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        self.free_at = Some(at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_at_the_rate_whoever_asks() {
        let (mut pace, now) = (Pace::new(1_000), Instant::now());
        let at: Vec<_> = (0..4).map(|_| pace.reserve(now, 500) - now).collect();
        assert_eq!(at, [0, 500, 1_000, 1_500].map(Duration::from_millis));
    }

    #[test]
    fn a_pause_is_made_up_for_by_a_burst_at_most() {
        let (mut pace, now) = (Pace::new(1_000), Instant::now());
        pace.reserve(now, 100);
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.reserve(later, 100), later - BURST);
        assert_eq!(pace.reserve(later, 100), later - BURST + Duration::from_millis(100));
    }

    #[test]
    fn no_rate_and_no_size_overflow() {
        let (mut pace, now) = (Pace::new(0), Instant::now());
        assert_eq!(pace.reserve(now, 10), now);
        assert_eq!(pace.reserve(now, 10) - now, Duration::from_secs(10));
    }
}
