//! `quorate-load check` beside faults: the contract is kept, and where it is not, that is said.

use std::process::Command;

use quorate_tests::check::{Check, shown};
use quorate_tests::cluster::Cluster;
use quorate_tests::programs;
use quorate_tests::verify::{await_writes, say};
use serde_json::Value;
use tempfile::TempDir;

/// Kills the leader of `cluster` under a check, and lets it come back.
fn kept_when_the_leader_is_killed(cluster: &mut Cluster, args: &[&str]) {
    let settings = ["--round", "8s", "--rate", "500"];
    let check = Check::start(cluster, &[&settings[..], args].concat());
    await_writes(cluster);
    let leader = cluster.leader();
    cluster.kill(leader);
    await_writes(cluster);
    cluster.start(leader);
    cluster.wait_ready(leader);
    let report = check.kept();
    say(&format!("the contract, with the leader killed: {}", shown(&report)));
}

#[test]
fn etcd_keeps_its_contract_when_its_leader_is_killed() {
    let test = "etcd keeps its contract when its leader is killed";
    let Some(etcd) = programs::etcd(test) else { return };
    let mut cluster = Cluster::etcd(etcd);
    // A known defect of 3.5.1; see docs/check.md.
    kept_when_the_leader_is_killed(&mut cluster, &["--except", "progress-requests"]);
}

#[test]
fn quorate_keeps_the_contract_when_its_leader_is_killed() {
    let test = "Quorate keeps the contract when its leader is killed";
    let Some(mut cluster) = Cluster::quorate(test) else { return };
    kept_when_the_leader_is_killed(&mut cluster, &[]);
}

#[test]
fn a_history_that_breaks_the_contract_is_told_from_one_that_keeps_it() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let judge = |lines: &[&str]| {
        let path = dir.path().join("history.jsonl");
        std::fs::write(&path, lines.join("\n")).expect("a file can be written");
        let mut command = Command::new(programs::quorate_load());
        command.args(["--check", "--json", "--judge"]).arg(&path);
        let output = command.output().expect("quorate-load starts");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (report, output.status.code())
    };
    let put = r#"{"call":{"client":1,"sent_us":1,"action":{"put":[{"key":"k","value":"1"}]},"answer":{"at_us":5,"revision":2,"wrote":true}}}"#;
    let seen = r#"{"call":{"client":2,"sent_us":6,"action":{"get":"k"},"answer":{"at_us":9,"revision":2,"wrote":false,"seen":{"pair":{"value":"1","create":2,"mod":2,"version":1}}}}}"#;
    let other = r#"{"call":{"client":1,"sent_us":10,"action":{"put":[{"key":"m","value":"2"}]},"answer":{"at_us":12,"revision":3,"wrote":true}}}"#;
    let stale = r#"{"call":{"client":2,"sent_us":14,"action":{"get":"k"},"answer":{"at_us":19,"revision":3,"wrote":false,"seen":"nothing"}}}"#;
    let (report, code) = judge(&[put, seen, other]);
    assert_eq!((code, &report["broken"]), (Some(0), &serde_json::json!({})), "{report:#}");
    let (report, code) = judge(&[put, seen, other, stale]);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(report["broken"], serde_json::json!({ "stale read": 1 }));
    let witness = report["violations"][0]["witness"].as_array().map(Vec::len);
    assert_eq!(witness, Some(2), "the put and the read show it: {report:#}");
}
