//! The clocks of a node: one that only runs, more or less fast, and one that can be set.
//!
//! Nothing that a promise rests on may look at the wall clock; the simulator sets it about so that this
//! shows.

/// A node's view of time. It outlives the node's processes, as a machine's clock does.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// Parts per million by which it runs faster than true time.
    ppm: i64,
    /// Since when, in true time, and what it showed then.
    since_us: u64,
    shown_us: u64,
    /// What the wall clock shows more than the one that only runs.
    wall_offset_us: i64,
}

impl Clock {
    pub(crate) const fn new(shown_us: u64, ppm: i64, wall_offset_us: i64) -> Self {
        Self { ppm, since_us: 0, shown_us, wall_offset_us }
    }

    /// What the clock that only runs shows at a true time.
    pub(crate) const fn shown_us(&self, now_us: u64) -> u64 {
        let passed = now_us.saturating_sub(self.since_us) as i64;
        self.shown_us + (passed + passed * self.ppm / 1_000_000) as u64
    }

    /// What the wall clock shows.
    pub(crate) const fn wall_us(&self, now_us: u64) -> i64 {
        self.shown_us(now_us) as i64 + self.wall_offset_us
    }

    /// How much true time passes while it shows `span_us`.
    pub(crate) const fn true_span_us(&self, span_us: u64) -> u64 {
        (span_us as i64 * 1_000_000 / (1_000_000 + self.ppm)) as u64
    }

    /// Runs at another rate from now on.
    pub(crate) const fn set_rate(&mut self, now_us: u64, ppm: i64) {
        self.shown_us = self.shown_us(now_us);
        self.since_us = now_us;
        self.ppm = ppm;
    }

    /// Sets the wall clock.
    pub(crate) const fn jump(&mut self, by_us: i64) {
        self.wall_offset_us += by_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back_when_its_rate_changes() {
        let mut clock = Clock::new(5, 10_000, 0);
        assert_eq!(clock.shown_us(1_000_000), 1_010_005);
        clock.set_rate(1_000_000, -10_000);
        assert_eq!(clock.shown_us(1_000_000), 1_010_005);
        assert_eq!(clock.shown_us(2_000_000), 2_000_005);
        clock.jump(-7);
        assert_eq!((clock.shown_us(2_000_000), clock.wall_us(2_000_000)), (2_000_005, 1_999_998));
    }
}
