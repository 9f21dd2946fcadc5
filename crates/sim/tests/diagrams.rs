//! Diagrams say what happened, in lines of text and as an image, of each of the scenarios that textbooks tell.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use quorate_sim::diagram;
use quorate_sim::scenario::Scenario;

/// Part of a scenario as text and as SVG.
fn drawn(name: &str, span_ms: &Range<u64>) -> (String, String) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let text = fs::read_to_string(directory.join(format!("{name}.toml"))).expect("a scenario");
    let scenario = Scenario::parse(&text).expect("well-formed");
    let outcome = scenario.run(None);
    let image = diagram::svg(&scenario.plan, &outcome.trace, span_ms);
    (diagram::text(&scenario.plan, &outcome.trace, span_ms), image)
}

/// An image with a column for each node, and so many arrows.
fn assert_is_drawn(image: &str, nodes: &[&str], arrows: usize) {
    assert!(image.starts_with("<svg") && image.trim_end().ends_with("</svg>"));
    for node in nodes {
        assert!(image.contains(&format!(">{node}</text>")), "no column of {node}");
    }
    assert_eq!(image.matches("<path").count(), arrows, "an arrow for each message");
}

#[test]
fn a_diagram_explains_the_first_commit() {
    let (text, image) = drawn("commit_needs_one_follower", &(2_000..2_013));
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
    assert_eq!(text, expected);
    assert_is_drawn(&image, &["A", "B", "C"], 4);
}

#[test]
fn a_diagram_shows_that_nobody_waits_for_a_slow_follower() {
    let (text, image) = drawn("a_slow_follower_delays_nobody", &(2_000..2_013));
    let expected = "        ms  A        B        C
  2000.000  @        |        |  A client 65536 asks #1 put
  2005.000  o------->*        |  B gets Append t5 [11..11] commit 10 from A (sent 2000.000)
  2008.000  o---------------->*  C gets Append t5 [11..11] commit 10 from A (sent 2000.000)
  2010.000  *<-------o        |  A gets Accepted t5 to 11 from B (sent 2005.000)
  2010.000  =        |        |  A commits 11
  2010.000  =        |        |  A applies 11
  2010.000  @        |        |  A client 65536 hears #1 ok
";
    assert_eq!(text, expected);
    assert_is_drawn(&image, &["A", "B", "C"], 3);
}

#[test]
fn a_diagram_shows_how_a_minority_comes_back() {
    let (text, image) = drawn("a_majority_goes_on_without_its_leader", &(7_000..7_100));
    let expected = "        ms  A        B        C        D        E
  7000.000  ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~  end of partition
  7079.847  |        #        |        |        |  B follows C in term 2
  7079.980  #        |        |        |        |  A follows C in term 2
  7081.158  *<----------------o        |        |  A gets Append t2 [4..5] commit 5 from C (sent 7080.576)
  7081.316  |        *<-------o        |        |  B gets Append t2 [4..5] commit 5 from C (sent 7080.410)
  7081.653  =        |        |        |        |  A applies 5
  7081.889  |        =        |        |        |  B applies 5
  7082.179  o---------------->*        |        |  C gets Accepted t2 to 5 from A (sent 7081.553)
  7082.555  |        o------->*        |        |  C gets Accepted t2 to 5 from B (sent 7081.789)
";
    assert_eq!(text, expected);
    assert_is_drawn(&image, &["A", "B", "C", "D", "E"], 4);
}
