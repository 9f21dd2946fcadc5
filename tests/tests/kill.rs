//! `kill -9` under load: nothing that was acknowledged is lost, and no read goes backwards.
//!
//! `quorate-load verify` writes and reads all the while; the test kills, restarts, and announces each kill
//! to it, so that the pause between acknowledged writes is measured for each. `KILLS` says how many times
//! the leader is killed.

use std::env;

use quorate_tests::cluster::Cluster;
use quorate_tests::verify::{Verify, WRITES_BETWEEN, await_writes, check, say};
use serde_json::Value;

/// Kills of the leader in an ordinary run.
const KILLS: usize = 3;

#[test]
fn a_killed_leader_loses_nothing() {
    let Some(mut cluster) = Cluster::quorate("a killed leader loses nothing") else { return };
    let kills = env::var("KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let mut verify = Verify::start(&cluster, &["--every-endpoint"]);
    for _ in 0..kills {
        await_writes(&cluster);
        let leader = cluster.leader();
        verify.announce(&format!("kill {}", cluster.nodes[leader].name));
        cluster.kill(leader);
        await_writes(&cluster);
        cluster.start(leader);
        cluster.wait_ready(leader);
    }
    let (report, code) = verify.end();
    assert_eq!(code, Some(0), "{report:#}");
    let workload = &report["workload"];
    let marks = workload["marks"].as_array().expect("the kills");
    assert_eq!(marks.len(), kills);
    assert!(marks.iter().all(|mark| mark["resumed"] == Value::Bool(true)), "{report:#}");
    let ms = |field: &str| workload[field].as_f64().unwrap_or(f64::NAN);
    say(&format!(
        "{kills} kills of the leader: {} writes acknowledged, pause median {:.0} ms, max {:.0} ms",
        workload["acknowledged"],
        ms("pause_median_ms"),
        ms("pause_max_ms")
    ));
}

#[test]
fn a_kill_of_all_three_loses_nothing() {
    let Some(mut cluster) = Cluster::quorate("a kill of all three loses nothing") else { return };
    let record = cluster.dir().join("acknowledged.json");
    let path = record.to_str().expect("temporary paths are text");
    let mut verify = Verify::start(&cluster, &["--record", path, "--no-check"]);
    await_writes(&cluster);
    verify.announce("kill all");
    // Without waiting in between: the last writes are on their way when the power goes.
    for number in 0..3 {
        cluster.kill(number);
    }
    let (report, code) = verify.end();
    assert_eq!(code, Some(0), "{report:#}");
    cluster.start_all();
    let (report, code) = check(&cluster, &record);
    assert_eq!(code, Some(0), "{report:#}");
    let looked_for = report["check"]["looked_for"].as_i64().expect("a count");
    assert!(looked_for >= WRITES_BETWEEN, "{report:#}");
    say(&format!("a kill of all three: {looked_for} acknowledged writes looked for, all there"));
}
