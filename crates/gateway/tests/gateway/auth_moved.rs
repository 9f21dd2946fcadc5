//! Users that came from an etcd: with the hashes that it made, counting already, and without a secret of tokens.

use std::sync::Arc;

use quorate_api::etcdserverpb as pb;
use quorate_types::auth::message::{Head, Rows};
use quorate_types::auth::{Directory, HashForm, User};
use tonic::Code;

use crate::auth::{Client, put};
use crate::support::Door;

/// bcrypt's for the password "abc".
const ABC: &str = "$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i";

fn user(name: &str, password_hash: &str) -> User {
    User {
        name: name.to_owned(),
        password_hash: password_hash.to_owned(),
        roles: vec!["root".to_owned()],
        known_since: 7,
        ..User::default()
    }
}

fn moved() -> Directory {
    let users = vec![user("root", ABC), user("slow", &ABC.replace("$06$", "$31$"))];
    let fresh = Directory::default();
    let head = Head { enabled: true, revision: 7, ..fresh.head().clone() };
    Directory::from_rows(Rows { head: Some(head), users, roles: Vec::new() })
        .expect("of this format")
}

fn login(name: &str, password: &str) -> pb::AuthenticateRequest {
    pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() }
}

#[tokio::test]
async fn a_user_of_etcds_logs_in_with_the_password_of_there_and_a_new_one_is_kept_as_ours() {
    let door = Door::open().await;
    door.backend.take_users(moved());
    let client = Client::of(door.channel().await);
    let nobody = client.put(put(b"k")).await.expect_err("users count");
    assert_eq!(nobody.message(), "etcdserver: user name is empty");
    for (name, password) in [("root", "abcd"), ("root", ""), ("slow", "abc"), ("other", "abc")] {
        let refused = client.authenticate(login(name, password)).await;
        let refused = refused.expect_err("a wrong password, or one that takes for ever");
        assert_eq!(refused.code(), Code::InvalidArgument, "{name} {password}: {refused:?}");
    }
    assert!(door.backend.directory_now().secret().is_empty(), "a failed login makes none");

    // All that come first at once get tokens of one secret.
    let logins = (0..4).map(|_| client.authenticate(login("root", "abc")));
    let tokens: Vec<_> = futures::future::join_all(logins).await;
    let directory = door.backend.directory_now();
    assert_eq!((directory.revision(), directory.secret().len()), (8, 32));
    for token in tokens {
        let token = token.expect("the right password").token;
        let root = client.with_token(&token);
        root.put(put(b"k")).await.expect("it opens what root may");
    }

    let token = client.authenticate(login("root", "abc")).await.expect("again").token;
    let root = client.with_token(&token);
    let change = pb::AuthUserChangePasswordRequest {
        name: "root".into(),
        password: "new".into(),
        ..Default::default()
    };
    root.user_change_password(change).await.expect("root may");
    let directory: Arc<Directory> = door.backend.directory_now();
    let hash = &directory.user("root").expect("it is there").password_hash;
    assert_eq!(HashForm::of(hash), Some(HashForm::Argon2id));
    client.authenticate(login("root", "abc")).await.expect_err("the old one is gone");
    client.authenticate(login("root", "new")).await.expect("the new one");
}
