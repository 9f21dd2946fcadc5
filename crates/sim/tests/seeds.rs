//! Seeds drawn at random keep every promise, come to the same end every time, and do enough to mean something.
//!
//! `SEEDS=n` runs more of them, `SEED=n` one.

use std::env;

use quorate_sim::{Counts, Plan, campaign, run};

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
    let undecided = report.counts.undecided;
    let per_seed = |count: u64| count / report.seeds;
    assert!(per_seed(elections) >= 3, "{elections} elections");
    assert!(per_seed(committed) >= 50, "{committed} entries");
    assert!(per_seed(answered) >= 100 && per_seed(unknown) >= 1, "{answered}, {unknown} unknown");
    assert!(per_seed(faults) >= 10 && per_seed(starts) >= 6, "{faults} faults, {starts} starts");
    assert!(per_seed(lost) >= 20, "{lost} messages lost");
    assert!(per_seed(asleep) >= 20, "{asleep} ticks of groups asleep");
    let Counts { expired, kept_alive, told_events, .. } = report.counts;
    assert!(per_seed(expired) >= 1 && per_seed(kept_alive) >= 10, "{expired}, {kept_alive} kept");
    assert!(per_seed(told_events) >= 50, "watchers were told of {told_events} events");
    // Nor is what nobody has judged.
    assert!(undecided * 100 <= report.seeds, "{undecided} histories were given up");
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
