//! Seeds drawn at random keep every promise, come to the same end every time, and do enough to mean something.
//!
//! `SEEDS=n` runs more of them, `SEED=n` one.

use std::env;
use std::panic;

use quorate_sim::{Counts, Oracle, Plan, campaign, run, shrink};

/// Seeds of a run of the tests.
const SEEDS: u64 = 1_000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn every_seed_keeps_every_promise() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    let report = campaign(seeds.clone(), 2, 1, &|_| {});
    assert!(
        report.failures.is_empty(),
        "repeat it with `make sim ARGS='--seed N'`: {:?}",
        report.failures
    );
    if seeds.end - seeds.start < SEEDS {
        return;
    }
    // What is never tried is never found.
    let Counts { elections, committed, answered, unknown, faults, starts, lost, asleep, .. } =
        report.counts;
    let per_seed = |count: u64| count / report.seeds;
    assert!(per_seed(elections) >= 3, "{elections} elections");
    assert!(per_seed(committed) >= 50, "{committed} entries");
    assert!(per_seed(answered) >= 100 && per_seed(unknown) >= 1, "{answered}, {unknown} unknown");
    assert!(per_seed(faults) >= 10 && per_seed(starts) >= 6, "{faults} faults, {starts} starts");
    assert!(per_seed(lost) >= 20, "{lost} messages lost");
    assert!(per_seed(asleep) >= 20, "{asleep} ticks of groups asleep");
}

#[test]
fn the_same_seed_does_the_same_again() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 10_000..10_100 {
        let plan = Plan::of_seed(seed);
        let (first, second) = (run(&plan, seed, false), run(&plan, seed, true));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
        hashes.insert(first.trace_hash);
    }
    assert_eq!(hashes.len(), 100, "different seeds do different things");
}

#[test]
fn a_plan_reads_back_from_its_text() {
    for seed in 0..200 {
        let plan = Plan::of_seed(seed);
        let text = toml::to_string(&plan).expect("TOML");
        assert_eq!(toml::from_str::<Plan>(&text).expect("a plan"), plan, "seed {seed}");
    }
}

#[test]
fn a_failure_is_shrunk_to_the_faults_that_it_needs() {
    // A cluster that has lost its quorum for good cannot serve. Planted: a plan that may not be drawn.
    let mut plan = Plan::of_seed(3);
    plan.cluster = quorate_sim::Cluster { voters: 2, ..quorate_sim::Cluster::default() };
    plan.absent.clear();
    let wiped = plan.faults.clone();
    assert!(wiped.len() > 3, "a plan with something to leave out");
    // Both links cut for ever is a fault that healing takes back, so that run passes ...
    assert_eq!(run(&plan, 3, false).violation, None);
    // ... and a run that needs no fault to fail is shrunk to none.
    plan.cluster.proposal_ticks_max = 0;
    plan.workload.timeout_ms = 0;
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let failed = run(&plan, 3, false).violation.expect("nobody can wait for nothing");
    let shrunk = shrink(&plan, 3, failed.oracle, 100);
    panic::set_hook(hook);
    let shrunk = shrunk.expect("it fails again");
    assert_eq!(failed.oracle, Oracle::Liveness);
    assert!(shrunk.plan.faults.is_empty(), "{:?}", shrunk.plan.faults);
}
