//! Many seeds, one after another, on a few threads. Each run is of one thread; the threads share nothing but the
//! counter of seeds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::check::Violation;
use crate::run::run_seed;
use crate::world::Counts;

/// What came of a campaign.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// Seeds that were run.
    pub seeds: u64,
    /// What they saw.
    pub counts: Counts,
    /// What they broke, by seed.
    pub failures: BTreeMap<u64, Violation>,
}

impl Report {
    /// Adds what came of other seeds.
    pub fn add(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.counts.add(&other.counts);
        self.failures.extend(other.failures);
    }
}

/// Runs the plans of `seeds` on `threads` threads. After `failures_max` failures no new seed is begun.
/// `on_seed` is called after each, with how many are done.
pub fn campaign(
    seeds: Range<u64>,
    threads: usize,
    failures_max: usize,
    on_seed: &(dyn Fn(u64) + Sync),
) -> Report {
    let next = AtomicU64::new(seeds.start);
    let report = Mutex::new(Report::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || lock(&report).failures.len() >= failures_max {
                return;
            }
            let outcome = run_seed(seed);
            let mut report = lock(&report);
            report.seeds += 1;
            report.counts.add(&outcome.counts);
            if let Some(violation) = outcome.violation {
                report.failures.insert(seed, violation);
            }
            on_seed(report.seeds);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn lock(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
