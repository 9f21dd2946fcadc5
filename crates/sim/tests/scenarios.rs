//! Every scenario of `scenarios/` runs, keeps every promise, and shows what it says.

use std::fs;
use std::path::PathBuf;

use quorate_sim::scenario::{ExpectedEvent, Scenario, ScenarioError, Seen, Who};

/// All of them.
const SCENARIOS: [&str; 13] = [
    "a_departing_voter_leads_until_its_removal_is_committed",
    "a_leader_that_leaves_waits_for_no_dead_heir",
    "a_learner_that_is_heard_is_promoted",
    "a_learner_that_is_to_be_promoted_is_not_lost",
    "a_learner_that_restarts_in_a_sleeping_group_can_read",
    "a_lost_voter_that_becomes_a_learner_is_not_promoted",
    "a_majority_goes_on_without_its_leader",
    "a_node_that_is_down_is_not_lost",
    "a_slow_follower_delays_nobody",
    "a_voter_lost_in_sleep_that_becomes_a_learner_is_not_promoted",
    "an_installed_snapshot_replaces_what_was_swept",
    "callers_wait_out_their_deadline",
    "commit_needs_one_follower",
];

fn scenarios() -> Vec<(String, String)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("the directory of scenarios") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        found.push((name, fs::read_to_string(path).expect("a scenario")));
    }
    found.sort();
    found
}

fn scenario(name: &str) -> Scenario {
    let (_, text) = scenarios().into_iter().find(|(found, _)| found == name).expect("a scenario");
    Scenario::parse(&text).expect("well-formed")
}

#[test]
fn every_scenario_shows_what_it_says() {
    let all = scenarios();
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, SCENARIOS, "a scenario that is not there shows nothing");
    for (name, text) in all {
        let scenario = Scenario::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let outcome = scenario.run(None);
        scenario.judge(&outcome).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn a_scenario_can_fail() {
    let mut late = scenario("commit_needs_one_follower");
    // As accounts have it that count the followers alone.
    let commits = late
        .expected
        .iter_mut()
        .find(|expected| format!("{:?}", expected.event) == "Commits { index: 11 }");
    let commits = commits.expect("an expectation of the commit");
    (commits.from_us, commits.to_us) = (2_012_000, Some(2_012_000));
    let judged = late.judge(&late.run(None));
    assert!(matches!(judged, Err(ScenarioError::Missing(_))), "{judged:?}");

    let mut forbidding = scenario("a_slow_follower_delays_nobody");
    forbidding.forbidden.append(&mut forbidding.expected.clone());
    let judged = forbidding.judge(&forbidding.run(None));
    assert!(matches!(judged, Err(ScenarioError::Forbidden(_))), "{judged:?}");

    // What a read sees, and who is followed, are looked at.
    let parted = scenario("a_majority_goes_on_without_its_leader");
    let outcome = parted.run(None);
    let mut kept = parted.clone();
    for expected in &mut kept.expected {
        if let ExpectedEvent::Answers { sees: Some(seen @ Seen::Nothing), .. } = &mut expected.event
        {
            *seen = Seen::Write(1);
        }
    }
    let judged = kept.judge(&outcome);
    assert!(matches!(judged, Err(ScenarioError::Missing(_))), "{judged:?}");
    let mut back = parted;
    for expected in &mut back.expected {
        if let ExpectedEvent::Follows { leader, .. } = &mut expected.event {
            *leader = Who::One("A".to_owned());
        }
    }
    let judged = back.judge(&outcome);
    assert!(matches!(judged, Err(ScenarioError::Missing(_))), "{judged:?}");
}

#[test]
fn a_scenario_with_an_unknown_key_is_refused() {
    for text in [
        "[plan]\ntitel = 'x'",
        "[plan]\n[[plan.fault]]\nat-us = 1\nkind = 'pause'\nnode = 'A'\nfrom = 'B'",
        "[plan]\n[[expect]]\nevent = 'serves'\nat-us = 1",
        "[plan]\n[[expect]]\nevent = 'answers'\nrequest = 1\nresult = 'ok'\nsees = 'all'",
    ] {
        let parsed = Scenario::parse(text);
        assert!(matches!(parsed, Err(ScenarioError::Malformed(_))), "{text}: {parsed:?}");
    }
}
