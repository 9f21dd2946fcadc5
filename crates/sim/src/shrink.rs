//! Makes a failing plan smaller: the fewest faults that still break the same promise.
//!
//! Delta debugging over the list of faults. The plan with fewer faults is another run (whatever is drawn later
//! comes out differently), so what counts is that the same oracle speaks, not that it says the same.

use crate::check::Oracle;
use crate::fault::Fault;
use crate::plan::Plan;
use crate::run::{Outcome, run};

/// A smaller plan that fails alike.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The plan.
    pub plan: Plan,
    /// How it fails.
    pub outcome: Outcome,
    /// Runs that it took to find it.
    pub runs: usize,
}

/// Shrinks `plan`, which breaks a promise that `oracle` watches, in at most `runs_max` runs. `None` when it does
/// not fail in that way after all.
#[must_use]
pub fn shrink(plan: &Plan, seed: u64, oracle: Oracle, runs_max: usize) -> Option<Shrunk> {
    let mut runs = 0;
    let mut fails = |plan: &Plan| {
        runs += 1;
        let outcome = run(plan, seed, false);
        let same = outcome.violation.as_ref().is_some_and(|found| found.oracle == oracle);
        same.then_some(outcome)
    };
    let mut best = plan.clone();
    let mut outcome = fails(&best)?;
    // What comes after the failure cannot have caused it.
    let until_us = outcome.counts.virtual_ms * 1000 + 1000;
    let early = with_faults(&best, |fault| fault.at_us <= until_us);
    if early.faults.len() < best.faults.len()
        && let Some(found) = fails(&early)
    {
        (best, outcome) = (early, found);
    }
    let mut parts = 2;
    let mut used = 2;
    while best.faults.len() > 1 && used < runs_max {
        let size = best.faults.len().div_ceil(parts);
        let mut reduced = false;
        for start in (0..best.faults.len()).step_by(size) {
            let mut fewer = best.clone();
            fewer.faults.drain(start..(start + size).min(fewer.faults.len()));
            used += 1;
            if let Some(found) = fails(&fewer) {
                (best, outcome) = (fewer, found);
                parts = parts.saturating_sub(1).max(2);
                reduced = true;
                break;
            }
            if used >= runs_max {
                break;
            }
        }
        if !reduced {
            if size == 1 {
                break;
            }
            parts = (parts * 2).min(best.faults.len());
        }
    }
    let none = with_faults(&best, |_| false);
    if best.faults.len() == 1
        && let Some(found) = fails(&none)
    {
        (best, outcome) = (none, found);
    }
    Some(Shrunk { plan: best, outcome, runs })
}

fn with_faults(plan: &Plan, keep: impl Fn(&Fault) -> bool) -> Plan {
    let faults = plan.faults.iter().filter(|fault| keep(fault)).cloned().collect();
    Plan { faults, ..plan.clone() }
}
