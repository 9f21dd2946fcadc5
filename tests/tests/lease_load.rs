//! Many leases: they are kept alive, and every node knows how many there are.

use std::process::Command;
use std::time::Duration;

use quorate_api::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::verify::say;
use quorate_tests::{programs, wait};
use serde_json::Value;

/// For broken programs: far above what a slow machine needs.
const BOUND: Duration = Duration::from_secs(60);

/// How many leases a node knows.
const LEASES: &str = "quorate_lease_count";

/// Waits until every running node knows so many leases.
fn await_leases(cluster: &Cluster, count: u32) {
    for (number, node) in cluster.nodes.iter().enumerate() {
        if node.process.is_none() {
            continue;
        }
        let what = format!("{count} leases at {}", node.name);
        wait::until(&what, BOUND, || match cluster.metric(number, LEASES) {
            Some(now) if now == f64::from(count) => Ok(()),
            now => Err(format!("{now:?}")),
        });
    }
}

/// `quorate-load` with these arguments on all endpoints: its report and its exit code.
fn load(cluster: &Cluster, args: &[&str]) -> (Value, Option<i32>) {
    let mut command = Command::new(programs::quorate_load());
    command.args(args).args(["--json", "--endpoints", &cluster.endpoints().join(",")]);
    let output = command.output().expect("quorate-load starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (report.unwrap_or_else(|_| panic!("quorate-load: {said}")), output.status.code())
}

#[test]
fn every_node_knows_how_many_leases_there_are_through_snapshots_and_restarts() {
    let test = "every node knows how many leases there are";
    let Some(mut cluster) = Cluster::quorate_with(test, &["--snapshot-count", "200"]) else {
        return;
    };
    if !cluster.is_quorate() {
        return;
    }
    await_leases(&cluster, 0);
    let leader = cluster.leader();
    let (away, through) = ((leader + 1) % 3, cluster.endpoints()[leader].clone());
    cluster.kill(away);
    runtime().block_on(async {
        let mut lease = Client::new(&through).lease;
        for id in 1..=30 {
            lease.lease_grant(LeaseGrantRequest { id, ttl: 600 }).await.expect("a lease");
        }
        for id in 1..=10 {
            lease.lease_revoke(LeaseRevokeRequest { id }).await.expect("it is there");
        }
        // These end by themselves.
        for id in 31..=40 {
            lease.lease_grant(LeaseGrantRequest { id, ttl: 2 }).await.expect("a lease");
        }
    });
    await_leases(&cluster, 20);
    // More than the others' logs keep for one that is away.
    let total = ["put", "--total", "3000", "--clients", "50", "--warmup", "0s"];
    let args = ["--endpoints", through.as_str(), "--json"];
    let output = Command::new(programs::quorate_load()).args(total).args(args).output();
    assert!(output.expect("quorate-load starts").status.success());
    for number in (0..3).filter(|&number| number != away) {
        let truncated = "quorate_node_entries_truncated_total";
        wait::until("truncated logs", BOUND, || match cluster.metric(number, truncated) {
            Some(count) if count >= 1_500.0 => Ok(()),
            count => Err(format!("{count:?}")),
        });
    }
    cluster.start(away);
    cluster.wait_ready(away);
    let installed = "quorate_node_snapshots_installed_total";
    wait::until("a snapshot", BOUND, || match cluster.metric(away, installed) {
        Some(count) if count >= 1.0 => Ok(()),
        count => Err(format!("{count:?}")),
    });
    await_leases(&cluster, 20);
    cluster.kill(leader);
    cluster.write_through(away);
    await_leases(&cluster, 20);
    for number in [away, (leader + 2) % 3] {
        cluster.kill(number);
    }
    cluster.start_all();
    await_leases(&cluster, 20);
}

/// Some leases are kept alive for some times their life.
fn kept(cluster: &Cluster, system: &str) {
    let args = ["leases", "--leases", "300", "--ttl", "3", "--duration", "7s", "--streams", "12"];
    let (report, code) = load(cluster, &args);
    assert_eq!(code, Some(0), "{report:#}");
    for what in ["lost", "lost_early", "missing", "unanswered"] {
        assert_eq!(report[what], 0, "{report:#}");
    }
    assert_eq!(report["granted"], 300, "{report:#}");
    let answered = report["keep_alives"]["answered"].as_u64().expect("a count");
    assert!(answered >= 300, "each was kept alive: {report:#}");
    say(&format!("{system}: 300 leases kept alive {answered} times, none lost"));
}

#[test]
fn leases_that_are_kept_alive_live_on_with_quorate() {
    let Some(cluster) = Cluster::quorate("leases live on with Quorate") else { return };
    kept(&cluster, "Quorate");
}

#[test]
fn leases_that_are_kept_alive_live_on_with_etcd() {
    let Some(etcd) = programs::etcd("leases live on with etcd") else { return };
    kept(&Cluster::etcd(etcd), "etcd");
}
