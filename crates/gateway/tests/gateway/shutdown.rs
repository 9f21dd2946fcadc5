//! A gateway that goes down: who waits is told so at once, and holds nobody up.
//!
//! Open requests have an hour here, so that what does not end by itself never ends in these tests.

use std::time::Duration;

use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest};
use quorate_api::v3electionpb::election_client::ElectionClient;
use quorate_api::v3electionpb::{CampaignRequest, LeaderRequest};
use quorate_api::v3lockpb::LockRequest;
use quorate_api::v3lockpb::lock_client::LockClient;
use quorate_gateway::{Backend, BackendError, Consistency, GatewayConfig};
use quorate_types::kv::{Query, Range, outcome, query};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::fake::FakeBackend;
use crate::support::{Door, heard, keys_until, within};
use crate::watch_beside_etcd::{Watching, watch};

async fn patient_door() -> Door {
    let shutdown_grace = Duration::from_secs(3_600);
    Door::open_with(GatewayConfig { shutdown_grace, ..GatewayConfig::default() }).await
}

/// Lets the gateway go down, and waits for its end.
async fn down(door: Door) -> std::sync::Arc<FakeBackend> {
    let Door { backend, shutdown, served, .. } = door;
    drop(shutdown);
    within("nobody holds it up", served).await.expect("no panic");
    backend
}

fn assert_stopped(status: &Status) {
    let said = (status.code(), status.message());
    assert_eq!(said, (Code::Unavailable, "etcdserver: server stopped"));
}

async fn grant(channel: &Channel, ids: impl IntoIterator<Item = i64>) {
    let mut lease = LeaseClient::new(channel.clone());
    for id in ids {
        lease.lease_grant(LeaseGrantRequest { id, ttl: 600 }).await.expect("a lease");
    }
}

fn locking(channel: &Channel, lease: i64) -> JoinHandle<Result<(), Status>> {
    let mut client = LockClient::new(channel.clone());
    tokio::spawn(
        async move { client.lock(LockRequest { name: "n".into(), lease }).await.map(drop) },
    )
}

fn campaigning(channel: &Channel, lease: i64) -> JoinHandle<Result<(), Status>> {
    let mut client = ElectionClient::new(channel.clone());
    let request = CampaignRequest { name: "e".into(), lease, value: "v".into() };
    tokio::spawn(async move { client.campaign(request).await.map(drop) })
}

/// The error that a call ends with.
async fn refusal(call: JoinHandle<Result<(), Status>>) -> Status {
    let ended = within("a call that waited ends", call).await.expect("no panic");
    ended.expect_err("the gateway has gone down")
}

/// The keys under a prefix, as the backend has them when its gateway is gone.
async fn keys(backend: &FakeBackend, prefix: &'static str) -> Vec<String> {
    let range_end = prefix.replace('/', "0").into();
    let range = Range { key: prefix.into(), range_end, ..Range::default() };
    let query = Query { body: Some(query::Body::Range(range)), caller: None };
    let answer = backend.read(query, Consistency::Linearizable).await.expect("an answer");
    let Some(outcome::Body::Range(found)) = answer.outcome.body else { panic!("a range") };
    let keys = found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned());
    keys.collect()
}

#[tokio::test]
async fn streams_and_calls_that_wait_are_told_and_hold_no_shutdown_up() {
    let door = patient_door().await;
    let channel = door.channel().await;
    grant(&channel, 1..=4).await;
    // This client says nothing more, and does not hang up.
    let (asks, asked) = mpsc::channel(1);
    asks.send(LeaseKeepAliveRequest { id: 1 }).await.expect("room");
    let mut lease = LeaseClient::new(channel.clone());
    let kept = lease.lease_keep_alive(ReceiverStream::new(asked)).await.expect("a stream");
    let mut kept = kept.into_inner();
    assert_eq!(heard(&mut kept).await.expect("no error").expect("an answer").ttl, 600);

    locking(&channel, 1).await.expect("no panic").expect("it is free");
    campaigning(&channel, 3).await.expect("no panic").expect("it is free");
    let (locking, campaigning) = (locking(&channel, 2), campaigning(&channel, 4));
    for prefix in ["n/", "e/"] {
        keys_until(&channel, None, prefix, |keys| keys.len() == 2).await;
    }
    let mut election = ElectionClient::new(channel.clone());
    let observed = election.observe(LeaderRequest { name: "e".into() }).await.expect("a stream");
    let mut observed = observed.into_inner();
    assert!(heard(&mut observed).await.expect("no error").expect("a leader").kv.is_some());
    let mut health = HealthClient::new(channel.clone());
    let healthy = health.watch(HealthCheckRequest::default()).await.expect("a stream");
    let mut healthy = healthy.into_inner();
    heard(&mut healthy).await.expect("no error").expect("as it is");
    let mut watching = Watching::on(channel.clone()).await;
    watching.create(watch("k", "")).await;
    assert!(watching.next().await.created);

    let backend = tokio::spawn(down(door));
    assert_stopped(&heard(&mut kept).await.expect_err("the end"));
    assert_stopped(&heard(&mut observed).await.expect_err("the end"));
    assert_stopped(&heard(&mut healthy).await.expect_err("the end"));
    assert_stopped(&watching.end().await);
    assert_stopped(&refusal(locking).await);
    assert_stopped(&refusal(campaigning).await);
    let backend = backend.await.expect("no panic");
    assert_eq!(keys(&backend, "n/").await, ["n/1"], "who waited is out of the queue");
    assert_eq!(keys(&backend, "e/").await, ["e/3"]);
    drop(asks);
}

#[tokio::test]
async fn who_waits_for_a_leader_of_the_servers_holds_no_shutdown_up() {
    let door = patient_door().await;
    let channel = door.channel().await;
    grant(&channel, 1..=2).await;
    locking(&channel, 1).await.expect("no panic").expect("the lock");
    let waits = locking(&channel, 2);
    keys_until(&channel, None, "n/", |keys| keys.len() == 2).await;
    door.backend.fail_with(Some(BackendError::NoLeader));
    door.backend.take_reads();
    let mut election = ElectionClient::new(channel.clone());
    let observed = election.observe(LeaderRequest { name: "e".into() }).await.expect("a stream");
    let mut observed = observed.into_inner();
    let backend = tokio::spawn(down(door));
    assert_stopped(&heard(&mut observed).await.expect_err("the end"));
    assert_stopped(&refusal(waits).await);
    let backend = backend.await.expect("no panic");
    backend.fail_with(None);
    // Nobody could take the place back: it stays until its lease ends.
    assert_eq!(keys(&backend, "n/").await, ["n/1", "n/2"]);
}

#[tokio::test]
async fn keep_alives_that_are_under_way_do_not_hold_a_shutdown_up() {
    let door = patient_door().await;
    let channel = door.channel().await;
    grant(&channel, [1]).await;
    door.backend.hold_reads();
    let mut lease = LeaseClient::new(channel.clone());
    let (asks, asked) = mpsc::channel(8);
    for _ in 0..8 {
        asks.send(LeaseKeepAliveRequest { id: 1 }).await.expect("room");
    }
    let kept = lease.lease_keep_alive(ReceiverStream::new(asked)).await.expect("a stream");
    let mut kept = kept.into_inner();
    within("a read is held", door.backend.read_is_held()).await;
    let backend = tokio::spawn(down(door));
    assert_stopped(&heard(&mut kept).await.expect_err("the end"));
    drop(backend.await.expect("no panic"));
}
