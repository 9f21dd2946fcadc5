//! Every scenario of `scenarios/` runs, keeps every promise, and shows what it says.

use std::fs;
use std::path::PathBuf;

use quorate_sim::scenario::{Scenario, ScenarioError};

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
    assert!(all.len() >= 3, "{} scenarios", all.len());
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
}

#[test]
fn a_scenario_with_an_unknown_key_is_refused() {
    for text in [
        "[plan]\ntitel = 'x'",
        "[plan]\n[[plan.fault]]\nat-us = 1\nkind = 'pause'\nnode = 'A'\nfrom = 'B'",
        "[plan]\n[[expect]]\nevent = 'serves'\nat-us = 1",
    ] {
        let parsed = Scenario::parse(text);
        assert!(matches!(parsed, Err(ScenarioError::Malformed(_))), "{text}: {parsed:?}");
    }
}

#[test]
fn a_diagram_explains_the_first_commit() {
    let scenario = scenario("commit_needs_one_follower");
    let outcome = scenario.run(None);
    let drawn = quorate_sim::diagram::text(&scenario.plan, &outcome.trace, &(2_000..2_013));
    let expected = "        ms  A        B        C
  2000.000  @        |        |  A client 65536 asks #1 put
  2005.000  o------->*        |  B gets Append t5 [11..11] commit 10 from A (sent 2000.000)
  2008.000  o---------------->*  C gets Append t5 [11..11] commit 10 from A (sent 2000.000)
  2010.000  *<-------o        |  A gets Accepted t5 to 11 from B (sent 2005.000)
  2010.000  =        |        |  A commits 11
  2010.000  =        |        |  A applies 11
  2010.000  @        |        |  A client 65536 hears #1 ok
  2012.000  *<----------------o  A gets Accepted t5 to 11 from C (sent 2008.000)
";
    assert_eq!(drawn, expected);
    let image = quorate_sim::diagram::svg(&scenario.plan, &outcome.trace, &(2_000..2_013));
    assert!(image.starts_with("<svg") && image.trim_end().ends_with("</svg>"));
    assert_eq!(image.matches("<path").count(), 4, "an arrow for each of four messages");
}
