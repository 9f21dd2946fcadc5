//! Syncs of the log that fail, hang or take long.

use std::time::Duration;

use quorate_tests::cluster::Cluster;
use quorate_tests::verify::{Verify, await_writes};
use quorate_tests::wait;

use super::shim::Shim;

/// How long something may take that is not quick on a slow machine.
const BOUND: Duration = Duration::from_secs(60);

/// The exit code of a node whose log cannot be written.
const STORAGE_FAILED: i32 = 70;

/// Writes go on under `verify` all the while; in the end nothing that was acknowledged may be missing.
fn under_load(test: &str, faults: impl FnOnce(&mut Shim, &mut Cluster, &mut Verify)) {
    let Some(mut shim) = Shim::build(test) else { return };
    let Some(mut cluster) = shim.cluster(test) else { return };
    let mut verify = Verify::start(&cluster, &["--timeout", "15s"]);
    await_writes(&cluster);
    faults(&mut shim, &mut cluster, &mut verify);
    await_writes(&cluster);
    let (report, code) = verify.end();
    assert_eq!(code, Some(0), "{report:#}");
    let acknowledged = report["workload"]["acknowledged"].as_i64().expect("a count");
    assert!(acknowledged > 0, "{report:#}");
}

/// The leader's disk does as `rule` says until the leader has ended.
fn leader_ends(shim: &mut Shim, cluster: &mut Cluster, verify: &mut Verify, rule: &str) {
    let leader = cluster.leader();
    let name = cluster.nodes[leader].name.clone();
    verify.announce(&format!("{rule} at {name}"));
    shim.set(&name, rule);
    let (code, log) = cluster.wait_end(leader);
    assert_eq!(code, Some(STORAGE_FAILED), "{log}");
    assert!(log.contains("nothing is acknowledged any more"), "{log}");
    // Others lead, and take writes.
    let next = cluster.leader();
    assert_ne!(next, leader);
    await_writes(cluster);
    shim.set(&name, "none none 0");
    cluster.start(leader);
    cluster.wait_ready(leader);
}

#[test]
fn the_first_failed_sync_ends_the_leader_and_nothing_acknowledged_is_lost() {
    under_load("a failed sync ends the node", |shim, cluster, verify| {
        leader_ends(shim, cluster, verify, "sync eio 1");
        // Not only the first one after a start: somewhere in the stream.
        leader_ends(shim, cluster, verify, "sync eio 50");
    });
}

#[test]
fn a_log_that_meets_a_full_disk_all_the_same_ends_its_node_as_a_failed_sync_does() {
    under_load("a full disk ends the node", |shim, cluster, verify| {
        leader_ends(shim, cluster, verify, "write enospc 1");
    });
}

#[test]
fn a_leader_whose_disk_hangs_gives_its_leadership_away_and_comes_back_by_itself() {
    under_load("a hung disk moves the leadership", |shim, cluster, verify| {
        for rule in ["sync hang 0", "sync delay 3000"] {
            let hung = cluster.leader();
            let name = cluster.nodes[hung].name.clone();
            verify.announce(&format!("{rule} at {name}"));
            shim.set(&name, rule);
            // Its beats still flow: nobody else would miss it.
            wait::until("another leader, as all see it", BOUND, || match cluster.leader() {
                leader if leader != hung => Ok(()),
                _ => Err(format!("{name} still leads")),
            });
            assert_unfit(cluster, hung, true);
            // It answers and follows, while the others take writes.
            await_writes(cluster);
            assert!(
                cluster.nodes[hung].process.as_mut().is_some_and(|it| it.ended().is_none()),
                "{name} lives on"
            );
            shim.set(&name, "none none 0");
            assert_unfit(cluster, hung, false);
            cluster.wait_ready(hung);
            await_writes(cluster);
        }
    });
}

/// Waits until a node says of itself that it cannot lead, or that it can.
pub(crate) fn assert_unfit(cluster: &Cluster, number: usize, unfit: bool) {
    let wanted = if unfit { 1.0 } else { 0.0 };
    wait::until("the node knows how its disk is", BOUND, || {
        match cluster.metric(number, "quorate_node_unfit") {
            Some(value) if value == wanted => Ok(()),
            other => Err(format!("unfit: {other:?}")),
        }
    });
}
