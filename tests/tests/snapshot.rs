//! Nodes that were away while the others truncated their logs come back by snapshots.

use std::time::Duration;

use quorate_api::etcdserverpb::request_op::Request;
use quorate_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    TxnRequest,
};
use quorate_tests::client::{self, Client};
use quorate_tests::cluster::Cluster;
use quorate_tests::verify::{Verify, await_writes};
use quorate_tests::{http, wait};
use tonic::Status;

/// Entries that the logs keep.
const KEPT: u64 = 200;

/// Writes while the node is away: more than a leader waits for anybody, with room to spare.
const WRITES: u64 = 3_000;

/// Writes under way at a time.
const AT_ONCE: u64 = 50;

/// Entries that the logs of a node have forgotten.
const TRUNCATED: &str = "quorate_node_entries_truncated_total";

/// Snapshots that a node has put in place.
const INSTALLED: &str = "quorate_node_snapshots_installed_total";

/// How long anything may take here.
const BOUND: Duration = Duration::from_secs(60);

fn put(key: String, value: String) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

/// Puts numbered keys through `endpoint`, and overwrites and deletes some of them, so that there is a
/// history.
async fn write(endpoint: &str, from: u64, to: u64) -> Result<(), Status> {
    let mut client = Client::new(endpoint);
    for first in (from..to).step_by(AT_ONCE as usize) {
        let puts = (first..to.min(first + AT_ONCE)).map(|number| {
            let mut kv = client.kv.clone();
            async move {
                let key = format!("key/{:04}", number % 700);
                kv.put(put(key, format!("value {number} {}", "x".repeat(200)))).await.map(drop)
            }
        });
        let puts: Vec<_> = puts.map(tokio::spawn).collect();
        for put in puts {
            put.await.expect("it does not panic")?;
        }
    }
    let delete = DeleteRangeRequest {
        key: b"key/0100".to_vec().into(),
        range_end: b"key/0120".to_vec().into(),
        ..DeleteRangeRequest::default()
    };
    client.kv.delete_range(delete).await?;
    let operation = |number| RequestOp {
        request: Some(Request::RequestPut(put(format!("txn/{number}"), "together".to_owned()))),
    };
    let txn = TxnRequest { success: (0..9).map(operation).collect(), ..TxnRequest::default() };
    client.kv.txn(txn).await.map(drop)
}

/// All keys as the node itself has them, at `revision` if it is not 0.
fn all(endpoint: &str, revision: i64) -> Result<RangeResponse, Status> {
    client::runtime().block_on(async {
        let request = RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            serializable: true,
            revision,
            ..RangeRequest::default()
        };
        Client::new(endpoint).kv.range(request).await.map(tonic::Response::into_inner)
    })
}

/// Waits until node `number` answers from its own state as the others do, and compares everything, now
/// and at an earlier revision.
fn expect_same(cluster: &Cluster, number: usize, earlier: i64) {
    let revision = cluster.revision();
    let caught_up = |name: &str, node: &str| {
        wait::until(&format!("{name} has caught up"), BOUND, || {
            let own = all(node, 0).map_err(|status| status.to_string())?;
            let at = own.header.as_ref().map_or(0, |header| header.revision);
            if at >= revision { Ok(own) } else { Err(format!("revision {at}, not {revision}")) }
        })
    };
    let history = |endpoint: &str| all(endpoint, earlier).expect("it serves").kvs;
    let node = &cluster.nodes[number];
    let own = caught_up(&node.name, &node.client);
    let own_history = history(&node.client);
    for other in cluster.nodes.iter().filter(|other| other.process.is_some()) {
        let expected = caught_up(&other.name, &other.client);
        assert!(own.kvs == expected.kvs, "{} has other keys", other.name);
        assert_eq!(own.count, expected.count);
        assert!(own_history == history(&other.client), "{} has another history", other.name);
    }
}

/// What node `number` has counted as `name` since it was started.
fn count(cluster: &Cluster, number: usize, name: &str) -> Result<u64, String> {
    let (_, page) = http::get(&cluster.nodes[number].metrics, "/metrics")?;
    let line = page.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    value.parse().map_err(|error| format!("{value}: {error}"))
}

/// Waits until node `number` has counted to `at_least`, since it was started. The peer counts otherwise.
fn await_count(cluster: &Cluster, number: usize, name: &str, at_least: u64) {
    if !cluster.is_quorate() {
        return;
    }
    let what = format!("{name} of {} at {at_least}", cluster.nodes[number].name);
    wait::until(&what, BOUND, || match count(cluster, number, name)? {
        count if count >= at_least => Ok(()),
        count => Err(count.to_string()),
    });
}

#[test]
fn a_node_that_was_away_too_long_catches_up_by_a_snapshot() {
    let kept = KEPT.to_string();
    let args = ["--snapshot-count", &kept];
    let Some(mut cluster) = Cluster::quorate_with("a snapshot to a node that was away", &args)
    else {
        return;
    };
    let runtime = client::runtime();
    let away = (cluster.leader() + 1) % 3;
    let endpoint = cluster.nodes[cluster.leader()].client.clone();
    runtime.block_on(write(&endpoint, 0, 100)).expect("three nodes serve");
    cluster.kill(away);
    runtime.block_on(write(&endpoint, 100, WRITES)).expect("two nodes serve");
    let earlier = cluster.revision() - 50;
    // History that the others have swept must not come back with the snapshot, nor be missed.
    let compact = CompactionRequest { revision: earlier - 1_000, physical: false };
    let compacted = runtime.block_on(async {
        let compacted = Client::new(&endpoint).kv.compact(compact).await;
        compacted.map(drop)
    });
    compacted.expect("two nodes serve");

    for number in (0..3).filter(|&number| number != away) {
        await_count(&cluster, number, TRUNCATED, WRITES / 2);
    }

    cluster.start(away);
    cluster.wait_ready(away);
    expect_same(&cluster, away, earlier);
    await_count(&cluster, away, INSTALLED, 1);

    // It goes on from there: by the log, after a crash, and with a vote that counts.
    runtime.block_on(write(&endpoint, WRITES, WRITES + 200)).expect("three nodes serve");
    expect_same(&cluster, away, earlier);
    cluster.kill(away);
    cluster.start(away);
    cluster.wait_ready(away);
    expect_same(&cluster, away, earlier);
    let third = (0..3).find(|&number| number != away && number != cluster.leader());
    if let Some(third) = third {
        cluster.kill(third);
        let endpoint = cluster.nodes[away].client.clone();
        wait::until("the two serve", BOUND, || {
            let written = runtime.block_on(write(&endpoint, WRITES + 200, WRITES + 300));
            written.map_err(|status| status.to_string())
        });
        expect_same(&cluster, away, earlier);
    }
}

#[test]
fn leaders_that_are_killed_under_load_come_back_by_snapshots_and_nothing_is_lost() {
    let kept = KEPT.to_string();
    let args = ["--snapshot-count", &kept];
    let Some(mut cluster) = Cluster::quorate_with("snapshots under load", &args) else { return };
    let mut verify = Verify::start(&cluster, &["--every-endpoint"]);
    for _ in 0..2 {
        await_writes(&cluster);
        let leader = cluster.leader();
        verify.announce(&format!("kill {}", cluster.nodes[leader].name));
        cluster.kill(leader);
        // The log is at most as long as there were writes: when so many more entries are forgotten, and what
        // a leader keeps for anybody, then all that the killed one had is.
        let writes = u64::try_from(cluster.revision()).expect("revisions are positive");
        for other in (0..3).filter(|&other| other != leader) {
            let so_far = count(&cluster, other, TRUNCATED).expect("it serves");
            await_count(&cluster, other, TRUNCATED, so_far + writes + 6 * KEPT);
        }
        cluster.start(leader);
        cluster.wait_ready(leader);
        await_count(&cluster, leader, INSTALLED, 1);
    }
    await_writes(&cluster);
    let (report, code) = verify.end();
    assert_eq!(code, Some(0), "{report:#}");
}
