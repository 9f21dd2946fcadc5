//! What a refused call costs: no entry of the log, and no password's work but where every caller would get it.

use std::time::Duration;

use quorate_api::etcdserverpb as pb;
use quorate_api::etcdserverpb::request_op::Request as OpRequest;
use quorate_gateway::AuthConfig;
use tokio::time::timeout;
use tonic::Status;

use crate::auth::{Client, delete, otherwise, put, range, set_up, then, user_add, with_users};
use crate::support::Door;

/// How long anything may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn login(name: &str, password: &str) -> pb::AuthenticateRequest {
    pb::AuthenticateRequest { name: name.into(), password: password.into() }
}

#[tokio::test]
async fn what_is_denied_is_never_proposed() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let (wrong, write) = (client.to_be("wrong").await, client.to_be("write").await);
    door.backend.take_proposals();
    let shown = pb::PutRequest { prev_kv: true, ..put(b"b") };
    for caller in [&client, &client.with_token("no.token"), &wrong] {
        let nested = otherwise(OpRequest::RequestTxn(then(OpRequest::RequestPut(put(b"b")))));
        for refused in [
            caller.put(put(b"b")).await.map(drop),
            caller.delete_range(delete(b"b", b"d")).await.map(drop),
            caller.txn(then(OpRequest::RequestDeleteRange(delete(b"b", b"")))).await.map(drop),
            caller.txn(nested).await.map(drop),
            caller.compact(pb::CompactionRequest::default()).await.map(drop),
            caller.user_add(user_add("new", "new")).await.map(drop),
            caller.auth_disable(pb::AuthDisableRequest {}).await.map(drop),
        ] {
            refused.expect_err("it may not");
        }
    }
    // It may write and not look.
    write.put(shown.clone()).await.expect_err("it would be shown");
    write.txn(then(OpRequest::RequestPut(shown))).await.expect_err("it would be shown");
    let both = pb::TxnRequest {
        failure: vec![pb::RequestOp { request: Some(OpRequest::RequestRange(range(b"b", b""))) }],
        ..then(OpRequest::RequestPut(put(b"b")))
    };
    write.txn(both).await.expect_err("the other branch reads");
    let proposed = door.backend.take_proposals();
    assert!(proposed.is_empty(), "{proposed:?}");
    write.put(put(b"b")).await.expect("it may");
    assert_eq!(door.backend.take_proposals().len(), 1);
}

#[tokio::test]
async fn an_empty_password_is_refused_and_a_user_without_one_is_asked_for() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let root = client.to_be("root").await;
    let change = pb::AuthUserChangePasswordRequest { name: "right".into(), ..Default::default() };
    for refused in [
        root.user_add(user_add("new", "")).await.map(drop),
        root.user_change_password(change).await.map(drop),
    ] {
        let refused = refused.expect_err("it has no length");
        assert_eq!(refused.message(), "quorate: a password is not empty");
    }
    client.authenticate(login("right", "")).await.expect_err("the password is another");
    client.login("right").await;
    let options = Some(quorate_api::authpb::UserAddOptions { no_password: true });
    let certified = pb::AuthUserAddRequest { options, ..user_add("certified", "") };
    root.user_add(certified).await.expect("it is known by a certificate");
    client.authenticate(login("certified", "")).await.expect_err("it has no password");
}

#[tokio::test]
async fn who_may_not_change_users_is_told_so_before_its_password_is_looked_at() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let right = client.to_be("right").await;
    for knows_users in [true, false] {
        if !knows_users {
            door.backend.lose_directory();
        }
        for (caller, expected) in
            [(&client, "etcdserver: user name is empty"), (&right, "etcdserver: permission denied")]
        {
            // Of one that may, the next thing looked at would be the password, and then it would be hashed.
            let change =
                pb::AuthUserChangePasswordRequest { name: "right".into(), ..Default::default() };
            for refused in [
                caller.user_add(user_add("new", "")).await.map(drop),
                caller.user_change_password(change).await.map(drop),
            ] {
                let refused = refused.expect_err("it may not");
                assert_eq!(refused.message(), expected, "knows users: {knows_users}");
            }
        }
    }
}

#[tokio::test]
async fn where_there_is_no_room_for_a_password_nobody_learns_who_is_a_user() {
    let auth = AuthConfig { hashing_threads: 1, hashing_queue: 0, ..AuthConfig::default() };
    let door = Door::open_with_auth(auth).await;
    let client = Client::of(door.channel().await);
    set_up(&client).await;
    // Takes the only place again and again.
    let busy = Client::of(door.channel().await);
    let busy = tokio::spawn(async move {
        loop {
            drop(busy.authenticate(login("right", "wrong")).await);
        }
    });
    for name in ["right", "gone", "root", ""] {
        let attempts = async {
            loop {
                let refused: Status = client
                    .authenticate(login(name, "guessed"))
                    .await
                    .expect_err("a wrong password");
                match refused.message() {
                    "etcdserver: too many requests" => break,
                    // It came between two of the others.
                    text => assert_eq!(
                        text,
                        "etcdserver: authentication failed, invalid user ID or password"
                    ),
                }
            }
        };
        let refused = timeout(PATIENCE, attempts).await;
        assert!(refused.is_ok(), "{name:?} never waits for a place");
    }
    busy.abort();
}
