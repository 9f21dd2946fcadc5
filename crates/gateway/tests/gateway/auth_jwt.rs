//! Signed tokens in service: each is good for the auth revision that stands in it, as etcd's; what was let in
//! with one goes on.

use std::time::Duration;

use quorate_api::etcdserverpb as pb;
use quorate_api::v3electionpb::election_client::ElectionClient;
use quorate_api::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use quorate_gateway::{AuthConfig, TokenKind};
use tokio::time::timeout;
use tonic::Code;

use crate::auth::{Client, put, range, set_up, user_add};
use crate::support::{Door, with_token};
use crate::watch_auth::{self, DENIED, Stream, keys};
use crate::watch_beside_etcd::watch;

const OLD: &str = "etcdserver: revision of auth store is old";

/// How long anything may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway with users and signed tokens.
async fn with_signed_tokens() -> (Door, Client) {
    let tokens = "jwt,sign-method=HS256,priv-key=key,ttl=10m";
    let tokens = TokenKind::parse(tokens, |_| Ok(vec![7; 32])).expect("sound settings");
    let door = Door::open_with_auth(AuthConfig { tokens, ..AuthConfig::default() }).await;
    let client = Client::of(door.channel().await);
    set_up(&client).await;
    (door, client)
}

/// A change that is about nobody who is there.
async fn change_something(client: &Client, name: &str) {
    let root = client.to_be("root").await;
    root.role_add(pb::AuthRoleAddRequest { name: name.into() }).await.expect("a new role");
}

#[tokio::test]
async fn a_signed_token_opens_what_its_user_may_until_anything_of_users_changes() {
    let (_door, client) = with_signed_tokens().await;
    let right = client.to_be("right").await;
    let parts = right.token.as_deref().expect("a token").split('.').count();
    assert_eq!(parts, 3, "head, claims and signature");
    right.put(put(b"b")).await.expect("it may");
    right.range(range(b"b", b"d")).await.expect("it may");
    let refused = right.put(put(b"x")).await.expect_err("it may not");
    assert_eq!(refused.message(), "etcdserver: permission denied");
    change_something(&client, "other").await;
    for refused in [
        right.put(put(b"b")).await.map(drop),
        right.range(range(b"b", b"")).await.map(drop),
        right.lease_grant(pb::LeaseGrantRequest { id: 1, ttl: 60 }).await.map(drop),
    ] {
        let refused = refused.expect_err("its token is of an earlier revision");
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, OLD));
    }
    client.to_be("right").await.put(put(b"b")).await.expect("with a new token");
}

#[tokio::test]
async fn a_node_that_is_behind_takes_no_signed_token_that_others_call_old() {
    let (door, client) = with_signed_tokens().await;
    let right = client.to_be("right").await;
    door.backend.lag_behind_in_users();
    right.put(put(b"b")).await.expect("nothing has changed yet");
    change_something(&client, "other").await;
    let refused = right.put(put(b"b")).await.expect_err("the replicas know better");
    assert_eq!(refused.message(), OLD);
}

#[tokio::test]
async fn a_watch_of_a_signed_token_goes_on_when_users_change_and_ends_with_its_user() {
    let (door, client) = with_signed_tokens().await;
    let right = client.login("right").await;
    let mut stream =
        Stream::open(door.channel().await, Some(&right), watch("b", "d")).await.expect("a stream");
    assert!(stream.next().await.created);
    for name in ["other", "another"] {
        change_something(&client, name).await;
        watch_auth::put(&client.to_be("root").await, "b").await;
        assert_eq!(keys(&stream.next().await), [b"b"]);
    }
    // As etcd, which looks at the token whenever a watch is created.
    stream.create(watch("b", "")).await;
    let refused = stream.next().await;
    assert_eq!((refused.created, refused.canceled, &*refused.cancel_reason), (true, true, DENIED));
    let root = client.to_be("root").await;
    root.user_delete(pb::AuthUserDeleteRequest { name: "right".into() })
        .await
        .expect("it is there");
    let root = client.to_be("root").await;
    root.user_add(user_add("right", "right")).await.expect("another one of its name");
    watch_auth::put(&client.to_be("root").await, "b").await;
    let ended = stream.next().await;
    assert_eq!((ended.canceled, &*ended.cancel_reason, ended.events.len()), (true, DENIED, 0));
}

#[tokio::test]
async fn a_watch_of_a_signed_token_ends_when_the_right_to_read_is_taken() {
    let (door, client) = with_signed_tokens().await;
    let right = client.login("right").await;
    let mut stream =
        Stream::open(door.channel().await, Some(&right), watch("b", "d")).await.expect("a stream");
    assert!(stream.next().await.created);
    let revoke = pb::AuthUserRevokeRoleRequest { name: "right".into(), role: "r".into() };
    client.to_be("root").await.user_revoke_role(revoke).await.expect("it has the role");
    watch_auth::put(&client.to_be("root").await, "b").await;
    let ended = stream.next().await;
    assert_eq!((ended.canceled, &*ended.cancel_reason, ended.events.len()), (true, DENIED, 0));
}

#[tokio::test]
async fn an_observer_with_a_signed_token_hears_of_the_next_leader_after_users_have_changed() {
    let (door, client) = with_signed_tokens().await;
    let mut election = ElectionClient::new(door.channel().await);
    let campaign = |value: &'static str| CampaignRequest {
        name: "b".into(),
        value: value.into(),
        ..CampaignRequest::default()
    };
    let token = client.login("right").await;
    let request = with_token(campaign("first"), Some(&token));
    let leader = election.campaign(request).await.expect("it leads").into_inner().leader;
    let request = with_token(LeaderRequest { name: "b".into() }, Some(&token));
    let mut told = election.observe(request).await.expect("it may").into_inner();
    let mut next = async || {
        let next = timeout(PATIENCE, told.message()).await.expect("in time");
        next.expect("no error").expect("no end").kv.expect("a leader").value
    };
    assert_eq!(next().await, "first");
    change_something(&client, "other").await;
    let token = client.login("right").await;
    let proclaim = ProclaimRequest { leader: leader.clone(), value: "second".into() };
    election.proclaim(with_token(proclaim, Some(&token))).await.expect("it leads");
    assert_eq!(next().await, "second");
    election.resign(with_token(ResignRequest { leader }, Some(&token))).await.expect("it leads");
    election.campaign(with_token(campaign("third"), Some(&token))).await.expect("it leads");
    assert_eq!(next().await, "third");
}
