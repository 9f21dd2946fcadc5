//! When something happens, on one node's own clock.

use std::fmt;

/// A reading of one node's monotonic clock, in microseconds from a start that only this node knows.
///
/// The clock must count through suspends of the machine (on Linux `CLOCK_BOOTTIME`, not
/// `CLOCK_MONOTONIC`): a lease must not outlive its time because its holder slept. Readings of
/// different nodes cannot be compared; durations can, up to the clocks' drift.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// Before everything else.
    pub const ZERO: Self = Self(0);

    /// The bare number of microseconds.
    #[must_use]
    pub const fn value_us(self) -> u64 {
        self.0
    }

    /// This moment and `us` microseconds more, saturating.
    #[must_use]
    pub const fn plus_us(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }

    /// Microseconds from `earlier` to this moment; 0 when `earlier` is not earlier.
    #[must_use]
    pub const fn since_us(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0)
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
