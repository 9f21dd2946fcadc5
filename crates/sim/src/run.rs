//! One run: a plan and a seed in, what happened out.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::check::{Oracle, Violation};
use crate::plan::Plan;
use crate::trace::TraceEvent;
use crate::world::{Counts, World};

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first broken promise, if any.
    pub violation: Option<Violation>,
    /// The hash of everything that happened: equal runs have equal ones.
    pub trace_hash: u64,
    /// What the run has seen.
    pub counts: Counts,
    /// Everything that happened, if it was to be kept.
    pub trace: Vec<TraceEvent>,
}

/// Runs `plan` with `seed`. A broken assertion of the code under test is a violation like any other.
#[must_use]
pub fn run(plan: &Plan, seed: u64, keep_trace: bool) -> Outcome {
    let mut world = World::new(plan.clone(), seed, keep_trace);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match ended {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => Some(Violation { oracle: Oracle::Assertion, what: words_of(&*panic) }),
    };
    Outcome {
        violation,
        trace_hash: world.trace.hash(),
        counts: world.counts(),
        trace: world.trace.into_kept(),
    }
}

/// Runs the plan that is drawn from `seed`.
#[must_use]
pub fn run_seed(seed: u64) -> Outcome {
    run(&Plan::of_seed(seed), seed, false)
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
    text.unwrap_or_else(|| "a panic without words".to_owned())
}
