//! A node that is stopped in good order: who waits there is told so, and holds it up no more than it must.

use std::time::Duration;

use quorate_api::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, RangeRequest};
use quorate_api::v3electionpb::{CampaignRequest, LeaderRequest};
use quorate_api::v3lockpb::LockRequest;
use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::process::Process;
use tonic::{Code, Status};

/// For broken programs: far above what a slow machine needs.
const BOUND: Duration = Duration::from_secs(60);

/// Between two looks at the keys.
const PAUSE: Duration = Duration::from_millis(20);

fn assert_stopped(status: &Status) {
    let said = (status.code(), status.message());
    assert_eq!(said, (Code::Unavailable, "etcdserver: server stopped"));
}

/// Waits until so many keys are in the queue of a lock.
async fn queued(client: &mut Client, count: usize) {
    let range = RangeRequest { key: "n/".into(), range_end: "n0".into(), ..Default::default() };
    loop {
        let found = client.kv.range(range.clone()).await.expect("an answer");
        if found.into_inner().kvs.len() == count {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Stops a node while a client keeps a lease alive, waits for a lock, and observes an election there.
async fn stopped(node: &str, mut process: Process, other: &str) -> String {
    let mut client = Client::new(node);
    for id in 1..=2 {
        client.lease.lease_grant(LeaseGrantRequest { id, ttl: 600 }).await.expect("a lease");
    }
    // It says nothing more, and does not hang up.
    let asks = futures::stream::iter([LeaseKeepAliveRequest { id: 1 }]);
    let asks = futures::StreamExt::chain(asks, futures::stream::pending());
    let kept = client.lease.lease_keep_alive(asks).await.expect("a stream");
    let mut kept = kept.into_inner();
    assert_eq!(kept.message().await.expect("no error").expect("an answer").ttl, 600);
    let request = CampaignRequest { name: "e".into(), lease: 1, value: "v".into() };
    client.election.campaign(request).await.expect("it is free");
    let observed = client.election.observe(LeaderRequest { name: "e".into() }).await;
    let mut observed = observed.expect("a stream").into_inner();
    assert!(observed.message().await.expect("no error").is_some());
    client.lock.lock(LockRequest { name: "n".into(), lease: 1 }).await.expect("it is free");
    let mut lock = client.lock.clone();
    let waits = tokio::spawn(async move {
        lock.lock(LockRequest { name: "n".into(), lease: 2 }).await.map(drop)
    });
    queued(&mut client, 2).await;

    let ends = std::thread::spawn(move || {
        let status = process.terminate(BOUND);
        (status.code(), process.log())
    });
    assert_stopped(&kept.message().await.expect_err("the end"));
    assert_stopped(&observed.message().await.expect_err("the end"));
    let waited = waits.await.expect("no panic");
    assert_stopped(&waited.expect_err("the end"));
    // Who waited is out of the queue, and nothing has to end for that.
    let mut client = Client::new(other);
    let range = RangeRequest { key: "n/".into(), range_end: "n0".into(), ..Default::default() };
    let left = loop {
        // Its leadership moves, if it led.
        match client.kv.range(range.clone()).await {
            Ok(found) if found.get_ref().kvs.len() == 1 => break found.into_inner().kvs,
            Ok(_) | Err(_) => tokio::time::sleep(PAUSE).await,
        }
    };
    assert_eq!(left[0].key, "n/1");
    let (code, log) = ends.join().expect("no panic");
    assert_eq!(code, Some(0), "{log}");
    log
}

#[test]
fn a_node_that_is_stopped_tells_who_waits_there_and_ends_in_good_order() {
    for leads in [false, true] {
        let Some(mut cluster) = Cluster::quorate("a node is stopped in good order") else { return };
        if !cluster.is_quorate() {
            return;
        }
        let number = if leads { cluster.leader() } else { (cluster.leader() + 1) % 3 };
        let process = cluster.nodes[number].process.take().expect("it runs");
        let endpoints = cluster.endpoints();
        let other = &endpoints[(number + 1) % 3];
        let stopped = stopped(&endpoints[number], process, other);
        let bounded = async { tokio::time::timeout(BOUND, stopped).await };
        let log = runtime().block_on(bounded).expect("it comes to an end");
        for bad in ["at the end of their grace", "is still in use"] {
            assert!(!log.contains(bad), "{log}");
        }
    }
}
