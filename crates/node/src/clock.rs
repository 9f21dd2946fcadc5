//! The clock that leases are measured with.

use quorate_types::Moment;
use rustix::time::{ClockId, clock_gettime};

/// Counts through suspends: a lease must not outlive its time because the machine slept.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;

/// Elsewhere (macOS) the monotonic clock does so by itself.
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// This moment.
pub(crate) fn now() -> Moment {
    let time = clock_gettime(CLOCK);
    // Neither part of a reading since the boot is negative.
    Moment(time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_runs_backwards() {
        let mut last = now();
        assert!(last > Moment::ZERO);
        for _ in 0..1000 {
            let next = now();
            assert!(next >= last);
            last = next;
        }
    }
}
