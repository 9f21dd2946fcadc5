//! How long one side waits for the other.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::config::Limits;

/// Waiting for the other side, over a whole snapshot: a while in all, and longer with every byte that
/// comes. So one that hangs is given up after that while, and one that drips bytes is as well; time that
/// this side takes for itself does not count.
#[derive(Debug)]
pub(super) struct Patience {
    grace: Duration,
    bytes_per_second_min: u64,
    waited: Duration,
    bytes: u64,
}

/// The other side was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Exhausted;

impl Patience {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            grace: limits.snapshot_stall_timeout,
            bytes_per_second_min: limits.snapshot_bytes_per_second_min.max(1),
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Notes progress.
    pub(super) fn progressed(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// What is left.
    fn left(&self) -> Duration {
        let millis = u128::from(self.bytes) * 1_000 / u128::from(self.bytes_per_second_min);
        let earned = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        // Fast bytes earn no right to hang for hours later on.
        let earned = earned.min(self.waited);
        (self.grace + earned).saturating_sub(self.waited)
    }

    /// Notes time that the other side has taken.
    fn took(&mut self, time: Duration) {
        self.waited = self.waited.saturating_add(time);
    }

    /// Waits for `step` of the other side.
    pub(super) async fn wait<T>(&mut self, step: impl Future<Output = T>) -> Result<T, Exhausted> {
        let began = Instant::now();
        let result = timeout(self.left(), step).await;
        self.took(began.elapsed());
        result.map_err(|_| Exhausted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn patience() -> Patience {
        let limits = Limits {
            snapshot_stall_timeout: 10 * SECOND,
            snapshot_bytes_per_second_min: 1_000,
            ..Limits::default()
        };
        Patience::new(&limits)
    }

    #[test]
    fn silence_is_waited_for_once() {
        let mut patience = patience();
        assert_eq!(patience.left(), 10 * SECOND);
        patience.took(4 * SECOND);
        assert_eq!(patience.left(), 6 * SECOND);
        patience.took(60 * SECOND);
        assert_eq!(patience.left(), Duration::ZERO);
    }

    #[test]
    fn a_drip_below_the_rate_is_given_up_and_one_at_the_rate_is_not() {
        let drip = |bytes: usize| {
            let mut patience = patience();
            (0..1_000).all(|_| {
                let in_time = patience.left() >= SECOND;
                patience.took(SECOND);
                patience.progressed(bytes);
                in_time
            })
        };
        assert!(drip(1_000));
        assert!(!drip(900));
        assert!(!drip(1));
    }

    #[test]
    fn bytes_that_came_fast_earn_no_long_silence() {
        let mut patience = patience();
        patience.progressed(100 << 20);
        assert_eq!(patience.left(), 10 * SECOND);
        patience.took(SECOND);
        assert_eq!(patience.left(), 10 * SECOND);
        patience.took(Duration::from_secs(1 << 40));
        assert_eq!(patience.left(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_step_that_never_ends_is_given_up() {
        let limits =
            Limits { snapshot_stall_timeout: Duration::from_millis(1), ..Limits::default() };
        let mut patience = Patience::new(&limits);
        assert_eq!(patience.wait(std::future::ready(7)).await, Ok(7));
        assert_eq!(patience.wait(std::future::pending::<()>()).await, Err(Exhausted));
    }
}
