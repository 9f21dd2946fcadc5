//! `quorate-load watch`: every event is accounted for.

use std::process::Command;
use std::time::Duration;

use quorate_tests::cluster::Cluster;
use quorate_tests::{programs, wait};
use serde_json::Value;

/// How long a run may take to begin.
const BOUND: Duration = Duration::from_secs(60);

/// Runs it on all nodes of `cluster`: what it reports, and its exit code.
fn watch(cluster: &Cluster, args: &str) -> (Value, Option<i32>) {
    let pids = cluster.nodes.iter().filter_map(|node| node.process.as_ref());
    let pids: Vec<_> = pids.map(|process| process.pid().to_string()).collect();
    let mut command = Command::new(programs::quorate_load());
    command.args(["watch", "--json", "--endpoints", &cluster.endpoints().join(",")]);
    command.args(["--pids", &pids.join(",")]).args(args.split_whitespace());
    let output = command.output().expect("quorate-load starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (report.unwrap_or_else(|error| panic!("{error}: {said}")), output.status.code())
}

fn every_event_is_told(cluster: &Cluster) {
    let args = "--streams 7 --watchers 6 --watchers-per-key 5 --rate 100 --warmup 0s --duration 1s \
                --idle 50ms";
    let (report, code) = watch(cluster, args);
    assert_eq!(code, Some(0), "{report:#}");
    // 42 watchers of 9 keys: keys 0 to 5 have five, the others four; and 100 puts: key 0 gets twelve, the others eleven.
    let expected = 12 * 5 + 5 * 11 * 5 + 3 * 11 * 4;
    assert_eq!(report["keys"], 9, "{report:#}");
    for name in ["expected", "delivered"] {
        assert_eq!(report["events"][name], expected, "{report:#}");
    }
    assert_eq!(report["event_latency_ms"]["count"], expected, "{report:#}");
    assert_eq!((&report["acknowledged"], &report["failed"]), (&100.into(), &0.into()));
    assert!(report["memory"]["watching_bytes"].as_u64() > Some(1 << 20), "{report:#}");
}

#[test]
fn watchers_are_told_every_event_beside_streams_that_do_not_read() {
    let Some(cluster) = Cluster::quorate("watchers beside streams that do not read") else {
        return;
    };
    // 13 MB for each of them: more than its connection and its queue take.
    let args = "--stuck 4 --streams 3 --watchers 2 --watchers-per-key 2 --value-size 65536 --rate 100 --warmup 0s \
                --duration 2s";
    let (report, code) = watch(&cluster, args);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!((&report["stuck"], &report["failed"]), (&4.into(), &0.into()), "{report:#}");
    assert_eq!(report["events"]["delivered"], 200 * 2, "{report:#}");
}

#[test]
fn watchers_of_quorate_are_told_every_event() {
    if let Some(cluster) = Cluster::quorate("watchers are told every event") {
        every_event_is_told(&cluster);
    }
}

#[test]
fn watchers_of_etcd_are_told_every_event() {
    if let Some(etcd) = programs::etcd("watchers of etcd are told every event") {
        every_event_is_told(&Cluster::etcd(etcd));
    }
}

#[test]
fn events_that_are_missing_fail_the_run() {
    let Some(mut cluster) = Cluster::quorate("missing events fail the run") else { return };
    let victim = (cluster.leader() + 1) % 3;
    std::thread::scope(|threads| {
        let endpoints = cluster.endpoints();
        let run = threads.spawn(move || {
            let mut command = Command::new(programs::quorate_load());
            command.args(["watch", "--json", "--settle", "1s", "--timeout", "2s"]);
            command.args(["--streams", "6", "--rate", "200", "--duration", "6s", "--endpoints"]);
            let output = command.arg(endpoints.join(",")).output().expect("quorate-load starts");
            let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            (report, output.status.code())
        });
        wait::until("events are told there", BOUND, || {
            match cluster.metric(victim, "etcd_debugging_mvcc_events_total") {
                Some(events) if events > 10.0 => Ok(()),
                events => Err(format!("{events:?}")),
            }
        });
        cluster.kill(victim);
        let (report, code) = run.join().expect("it runs");
        assert_eq!(code, Some(1), "{report:#}");
        assert!(report["events"]["missing"].as_u64() > Some(0), "{report:#}");
        assert_ne!(report["broken_streams"], serde_json::json!({}), "{report:#}");
    });
}
