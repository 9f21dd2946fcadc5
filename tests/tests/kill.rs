//! `kill -9` under load: nothing that was acknowledged is lost, and no read goes backwards.
//!
//! `quorate-load verify` writes and reads all the while; the test kills, restarts, and announces each kill
//! to it, so that the pause between acknowledged writes is measured for each. `KILLS` says how many times
//! the leader is killed.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use quorate_tests::cluster::Cluster;
use quorate_tests::{programs, wait};
use serde_json::Value;

use std::time::Duration;

/// Kills of the leader in an ordinary run.
const KILLS: usize = 3;

/// Writes that must go through between two kills.
const WRITES_BETWEEN: i64 = 200;

/// How long those may take, with an election on a slow machine.
const WRITES_BOUND: Duration = Duration::from_secs(60);

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

/// Waits until the store has taken some more writes.
fn await_writes(cluster: &Cluster) {
    let from = cluster.revision();
    wait::until("writes go through", WRITES_BOUND, || {
        let now = cluster.revision();
        if now >= from + WRITES_BETWEEN { Ok(()) } else { Err(format!("{now}, from {from}")) }
    });
}

/// A running `quorate-load verify`.
struct Verify {
    child: Option<Child>,
}

impl Verify {
    fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let mut command = verify(cluster);
        // The end of its input ends it; the duration is for a test that forgets.
        command.args(["--marks", "--duration", "1h"]).args(args);
        let child = command.stdin(Stdio::piped()).spawn().expect("quorate-load starts");
        Self { child: Some(child) }
    }

    /// Tells it that something happens now.
    fn announce(&mut self, what: &str) {
        let child = self.child.as_mut().expect("it runs");
        let stdin = child.stdin.as_mut().expect("it was piped");
        writeln!(stdin, "{what}").expect("it reads");
    }

    /// Ends the workload; returns the report of it and of the check, and the exit code.
    fn end(mut self) -> (Value, Option<i32>) {
        let mut child = self.child.take().expect("it runs");
        drop(child.stdin.take());
        report(child.wait_with_output().expect("it ends"))
    }
}

impl Drop for Verify {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A failed test leaves no load behind; it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Looks for what `record` says was acknowledged, through every endpoint.
fn check(cluster: &Cluster, record: &Path) -> (Value, Option<i32>) {
    let mut command = verify(cluster);
    command.arg("--check").arg(record).arg("--every-endpoint");
    report(command.output().expect("quorate-load starts"))
}

fn verify(cluster: &Cluster) -> Command {
    let program: PathBuf = programs::quorate_load();
    let mut command = Command::new(program);
    command.args(["verify", "--json", "--endpoints", &cluster.endpoints().join(",")]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn report(output: Output) -> (Value, Option<i32>) {
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (report.unwrap_or_else(|_| panic!("quorate-load: {said}")), output.status.code())
}

/// Figures, on the real standard error, which the test runner does not hold back.
fn say(what: &str) {
    // Nothing is left to do when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{what}");
}
