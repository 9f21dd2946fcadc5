//! Users on a node that knows less than others, and what is told of calls.

use quorate_api::etcdserverpb as pb;
use tonic::Code;

use crate::auth::{Client, grant_role, put, range, set_up, user_add, with_users};
use crate::support::Door;

#[tokio::test]
async fn a_gateway_that_is_behind_lets_in_and_keeps_out_as_of_now() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let (root, wrong) = (client.to_be("root").await, client.to_be("wrong").await);
    door.backend.lag_behind_in_users();
    let denied = wrong.put(put(b"b")).await.expect_err("not yet");
    assert_eq!(denied.code(), Code::PermissionDenied);
    root.user_grant_role(grant_role("wrong", "r")).await.expect("both are there");
    wrong.put(put(b"b")).await.expect("it was granted, whatever this node knows");
    wrong.range(range(b"b", b"")).await.expect("as above");
    // A user whom this node has never heard of.
    root.user_add(user_add("late", "late")).await.expect("a new user");
    root.user_grant_role(grant_role("late", "r")).await.expect("both are there");
    client.to_be("late").await.put(put(b"b")).await.expect("it is known elsewhere");
    root.user_delete(pb::AuthUserDeleteRequest { name: "wrong".into() })
        .await
        .expect("it is there");
    assert!(wrong.put(put(b"b")).await.is_err(), "the replicas know better");
    assert!(wrong.range(range(b"b", b"")).await.is_err(), "the replicas know better");
}

#[tokio::test]
async fn a_user_is_known_where_users_do_not_count_yet() {
    let door = Door::open().await;
    door.backend.lag_behind_in_users();
    let client = Client::of(door.channel().await);
    set_up(&client).await;
    let right = client.to_be("right").await;
    right.put(put(b"b")).await.expect("it may");
    right.range(range(b"b", b"")).await.expect("it may");
    let refused = client.with_token("no.token").put(put(b"b")).await.expect_err("no token");
    assert_eq!(refused.message(), "etcdserver: invalid auth token");
}

#[tokio::test]
async fn no_secret_reaches_metrics_and_logins_are_counted_as_etcds_are() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let token = client.login("root").await;
    let (_, page) = door.page("/metrics").await;
    let counted = page.lines().find(|line| {
        line.starts_with("grpc_server_handled_total")
            && line.contains(r#"grpc_method="Authenticate""#)
            && line.contains(r#"grpc_code="OK""#)
    });
    assert!(counted.is_some_and(|line| line.ends_with(" 1")), "{counted:?}");
    assert!(!page.contains(&token) && !page.contains("right"));
}

#[tokio::test]
async fn a_refusal_by_others_is_told_where_users_do_not_count_yet() {
    let door = Door::open().await;
    door.backend.lag_behind_in_users();
    let client = Client::of(door.channel().await);
    set_up(&client).await;
    let refused = client.put(put(b"b")).await.expect_err("nobody said who it is");
    assert_eq!(refused.message(), "etcdserver: user name is empty");
    let (_, page) = door.page("/metrics").await;
    let denied = page.lines().find(|line| line.starts_with("quorate_gateway_denied_total"));
    assert!(denied.is_some_and(|line| line.ends_with(" 1")), "{denied:?}");
}
