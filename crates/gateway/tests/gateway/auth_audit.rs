//! The audit log, as the process writes it: what is told there, and what is no news.
//!
//! All tests of this program write one log. Each one here comes from an address of its own.

use std::fmt::{Debug, Write};
use std::net::IpAddr;
use std::sync::{Mutex, Once};

use quorate_api::etcdserverpb as pb;
use quorate_api::etcdserverpb::alarm_request::AlarmAction;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::v3electionpb::election_client::ElectionClient;
use quorate_api::v3electionpb::{CampaignRequest, LeaderRequest, LeaderResponse, ProclaimRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::auth::{Client, put, range, set_up};
use crate::fake::MEMBER;
use crate::pages::{begun, end, fill};
use crate::support::{Door, PATIENCE, heard, with_token};
use crate::watch_auth::{self, DENIED, Stream};
use crate::watch_beside_etcd::watch;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps the lines of the audit log.
struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "audit"
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        LINES.lock().expect("nobody panics with it").push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").expect("a string takes all");
    }
}

/// A client at an address that no other test has; what is told of it is kept from now on.
async fn client_at(door: &Door, address: &str) -> Client {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        tracing::subscriber::set_global_default(Listener).expect("there is no other");
    });
    Client::of(channel_at(door, address).await)
}

async fn channel_at(door: &Door, address: &str) -> Channel {
    let own: IpAddr = address.parse().expect("an address");
    let endpoint = Endpoint::from_shared(format!("http://{}", door.address)).expect("an address");
    endpoint
        .timeout(PATIENCE)
        .local_address(Some(own))
        .connect()
        .await
        .expect("the gateway listens")
}

/// What was told of an address: method, user, how it is known, verdict and reason.
fn told_of(address: &str) -> Vec<String> {
    let lines = LINES.lock().expect("nobody panics with it");
    let from = format!(r#"peer="{address}:"#);
    let own = lines.iter().filter(|line| line.contains(&from));
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\"")).unwrap_or_default();
        rest.split_once('"').map_or_else(String::new, |(value, _)| value.to_owned())
    };
    let names = ["method", "user", "source", "verdict", "reason"];
    own.map(|line| names.map(|name| field(line, name)).join(" ").trim_end().to_owned()).collect()
}

async fn denied_total(door: &Door) -> String {
    let (_, page) = door.page("/metrics").await;
    let row = page.lines().find_map(|line| line.strip_prefix("quorate_gateway_denied_total "));
    row.expect("it is counted").to_owned()
}

fn alarm(action: AlarmAction) -> pb::AlarmRequest {
    pb::AlarmRequest { action: action.into(), member_id: 7, alarm: pb::AlarmType::Nospace.into() }
}

async fn as_root(client: &Client) {
    client.put(put(b"b")).await.expect("it may");
    let revision = client.put(put(b"b")).await.expect("it may").header.expect("a header").revision;
    client.compact(pb::CompactionRequest { revision, physical: false }).await.expect("it may");
    client.move_leader(pb::MoveLeaderRequest { target_id: MEMBER.0 }).await.expect("it may");
    for action in [AlarmAction::Get, AlarmAction::Activate, AlarmAction::Deactivate] {
        client.alarm(alarm(action)).await.expect("it may");
    }
}

#[tokio::test]
async fn what_only_root_may_is_told_and_what_all_do_is_not() {
    let (door, address) = (Door::open().await, "127.0.0.71");
    set_up(&Client::of(door.channel().await)).await;
    let client = client_at(&door, address).await;
    as_root(&client.to_be("root").await).await;
    let right = client.to_be("right").await;
    right.compact(pb::CompactionRequest { revision: 2, physical: false }).await.expect_err("no");
    right.alarm(alarm(AlarmAction::Get)).await.expect("users may look");
    right.alarm(alarm(AlarmAction::Activate)).await.expect_err("no");
    let expected = [
        "Authenticate root  allowed",
        "/etcdserverpb.KV/Compact root token allowed",
        "/etcdserverpb.Maintenance/MoveLeader root token allowed",
        "/etcdserverpb.Maintenance/Alarm root token allowed",
        "/etcdserverpb.Maintenance/Alarm root token allowed",
        "Authenticate right  allowed",
        "/etcdserverpb.KV/Compact right token denied etcdserver: permission denied",
        "/etcdserverpb.Maintenance/Alarm right token denied etcdserver: permission denied",
    ];
    assert_eq!(told_of(address), expected);
    assert_eq!(denied_total(&door).await, "2");
}

#[tokio::test]
async fn it_is_told_as_well_where_users_do_not_count() {
    let (door, address) = (Door::open().await, "127.0.0.72");
    as_root(&client_at(&door, address).await).await;
    let expected =
        ["KV/Compact", "Maintenance/MoveLeader", "Maintenance/Alarm", "Maintenance/Alarm"];
    let expected = expected.map(|method| format!("/etcdserverpb.{method}  none allowed"));
    assert_eq!(told_of(address), expected);
    assert_eq!(denied_total(&door).await, "0");
}

#[tokio::test]
async fn a_watch_that_is_refused_and_one_that_is_ended_are_told_and_counted() {
    let (door, address) = (Door::open().await, "127.0.0.73");
    let others = Client::of(door.channel().await);
    set_up(&others).await;
    let root = others.to_be("root").await;
    let split = others.login("split").await;
    client_at(&door, address).await;
    let channel = channel_at(&door, address).await;
    let mut stream = Stream::open(channel, Some(&split), watch("b", "c")).await.expect("a stream");
    assert!(stream.next().await.created);
    stream.create(watch("x", "")).await;
    assert_eq!(stream.next().await.cancel_reason, DENIED);
    let revoke = pb::AuthUserRevokeRoleRequest { name: "split".into(), role: "s".into() };
    root.user_revoke_role(revoke).await.expect("it has the role");
    watch_auth::put(&root, "b").await;
    assert_eq!(stream.next().await.cancel_reason, DENIED);
    let channel = channel_at(&door, address).await;
    let mut stream = Stream::open(channel, None, watch("b", "")).await.expect("a stream");
    assert_eq!(stream.next().await.cancel_reason, DENIED);
    let expected = [
        "/etcdserverpb.Watch/Watch split token denied etcdserver: permission denied",
        "/etcdserverpb.Watch/Watch split token denied etcdserver: permission denied",
        "/etcdserverpb.Watch/Watch  none denied etcdserver: user name is empty",
    ];
    assert_eq!(told_of(address), expected);
    assert_eq!(denied_total(&door).await, "3");
}

/// The role of a user whose rights are all by that one.
fn take(user: &str, role: &str) -> pb::AuthUserRevokeRoleRequest {
    pb::AuthUserRevokeRoleRequest { name: user.into(), role: role.into() }
}

async fn observe(channel: Channel, token: Option<&str>) -> Streaming<LeaderResponse> {
    let request = with_token(LeaderRequest { name: "b".into() }, token);
    ElectionClient::new(channel).observe(request).await.expect("a stream").into_inner()
}

#[tokio::test]
async fn an_observer_that_is_refused_is_told_whether_it_has_seen_a_leader_or_not() {
    let (door, address) = (Door::open().await, "127.0.0.74");
    let others = Client::of(door.channel().await);
    set_up(&others).await;
    let root = others.to_be("root").await;
    let (right, wrong) = (others.login("right").await, others.login("wrong").await);
    client_at(&door, address).await;
    let channel = channel_at(&door, address).await;
    let mut election = ElectionClient::new(root.channel.clone());
    let campaign = CampaignRequest { name: "b".into(), value: "v".into(), lease: 0 };
    let led = election.campaign(with_token(campaign, root.token.as_deref())).await;
    let leader = led.expect("root may").into_inner().leader;

    let mut observed = observe(channel.clone(), Some(&right)).await;
    heard(&mut observed).await.expect("it may").expect("a leader");
    root.user_revoke_role(take("right", "r")).await.expect("it has the role");
    let proclaim = ProclaimRequest { leader, value: "w".into() };
    let proclaimed = election.proclaim(with_token(proclaim, root.token.as_deref())).await;
    proclaimed.expect("root may");
    let refused = heard(&mut observed).await.expect_err("it may no more");
    assert_eq!(refused.code(), Code::PermissionDenied);
    for token in [Some(&*wrong), None] {
        heard(&mut observe(channel.clone(), token).await).await.expect_err("it never might");
    }
    let expected = [
        "/v3electionpb.Election/Observe right token denied etcdserver: permission denied",
        "/v3electionpb.Election/Observe wrong token denied etcdserver: permission denied",
        "/v3electionpb.Election/Observe  none denied etcdserver: user name is empty",
    ];
    assert_eq!(told_of(address), expected);
    assert_eq!(denied_total(&door).await, "3");
}

#[tokio::test]
async fn keep_alives_that_are_refused_end_their_stream_and_are_told_once() {
    let (door, address) = (Door::open().await, "127.0.0.75");
    let others = Client::of(door.channel().await);
    set_up(&others).await;
    let root = others.to_be("root").await;
    let right = others.login("right").await;
    root.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 600 }).await.expect("a lease");
    client_at(&door, address).await;
    let channel = channel_at(&door, address).await;
    let mut leases = LeaseClient::new(channel.clone());
    let (keep_alives, sent) = mpsc::channel(8);
    let keep_alive = pb::LeaseKeepAliveRequest { id: 7 };
    keep_alives.send(keep_alive).await.expect("it has room");
    let request = with_token(ReceiverStream::new(sent), Some(&right));
    let mut kept = leases.lease_keep_alive(request).await.expect("a stream").into_inner();
    heard(&mut kept).await.expect("users may").expect("an answer");
    let delete = pb::AuthUserDeleteRequest { name: "right".into() };
    root.user_delete(delete).await.expect("it is there");
    for _ in 0..8 {
        keep_alives.send(keep_alive).await.expect("it has room");
    }
    let refused = heard(&mut kept).await.expect_err("it is no user any more");
    assert_eq!(refused.code(), Code::PermissionDenied);
    // At the door.
    let nobody = leases.lease_keep_alive(futures::stream::iter([keep_alive])).await;
    nobody.expect_err("nobody said who it is");
    let expected = [
        "/etcdserverpb.Lease/LeaseKeepAlive right token denied etcdserver: permission denied",
        "/etcdserverpb.Lease/LeaseKeepAlive  none denied etcdserver: user name is empty",
    ];
    assert_eq!(told_of(address), expected);
    assert_eq!(denied_total(&door).await, "2");
}

#[tokio::test]
async fn a_range_in_parts_that_is_refused_before_or_after_its_first_part_is_told_once() {
    let (door, address) = (Door::open().await, "127.0.0.76");
    let others = Client::of(door.channel().await);
    set_up(&others).await;
    let root = others.to_be("root").await;
    let right = others.login("right").await;
    fill(&mut door.kv().await, root.token.as_deref()).await;
    client_at(&door, address).await;
    let mut kv = KvClient::new(channel_at(&door, address).await);
    let parts = begun(&mut kv, Some(&right)).await;
    root.user_revoke_role(take("right", "r")).await.expect("it has the role");
    end(parts).await;
    let range = with_token(range(b"b", b"c"), Some(&right));
    kv.range_stream(range).await.expect_err("it may no more");
    let refused = "/etcdserverpb.KV/RangeStream right token denied etcdserver: permission denied";
    assert_eq!(told_of(address), [refused; 2]);
    assert_eq!(denied_total(&door).await, "2");
}

#[tokio::test]
async fn a_range_in_parts_of_nobody_that_ends_once_users_count_is_told() {
    let (door, address) = (Door::open().await, "127.0.0.77");
    fill(&mut door.kv().await, None).await;
    client_at(&door, address).await;
    let mut kv = KvClient::new(channel_at(&door, address).await);
    let parts = begun(&mut kv, None).await;
    set_up(&Client::of(door.channel().await)).await;
    end(parts).await;
    let refused = "/etcdserverpb.KV/RangeStream  none denied etcdserver: user name is empty";
    assert_eq!(told_of(address), [refused]);
    assert_eq!(denied_total(&door).await, "1");
}
