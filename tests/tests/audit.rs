//! The audit log of real nodes: who did what is told, and no secret is.

use std::time::Duration;

use quorate_api::etcdserverpb::auth_client::AuthClient;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
    PutRequest, RangeRequest,
};
use quorate_tests::client::runtime;
use quorate_tests::cluster::Cluster;
use quorate_tests::wait;
use tonic::Request;
use tonic::transport::Endpoint;

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn logins_changes_of_users_and_refusals_are_lines_of_the_log_without_a_secret() {
    let Some(cluster) = Cluster::quorate_with("audit", &["--log-level", "warn,audit=info"]) else {
        return;
    };
    let token = runtime().block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{}", cluster.nodes[0].client));
        let channel = endpoint.expect("an address").connect().await.expect("it serves");
        let (mut auth, mut kv) = (AuthClient::new(channel.clone()), KvClient::new(channel));
        let (name, password) = ("root".to_owned(), "open-sesame".to_owned());
        let add = AuthUserAddRequest {
            name: name.clone(),
            password: password.clone(),
            ..AuthUserAddRequest::default()
        };
        auth.user_add(add).await.expect("a new user");
        let grant = AuthUserGrantRoleRequest { user: name.clone(), role: name.clone() };
        auth.user_grant_role(grant).await.expect("the role root is there for it");
        auth.auth_enable(AuthEnableRequest {}).await.expect("root is there");
        let put = PutRequest { key: "hidden-key".into(), ..PutRequest::default() };
        kv.put(put.clone()).await.expect_err("nobody may");
        let wrong = AuthenticateRequest { name: name.clone(), password: "guessed".to_owned() };
        auth.authenticate(wrong).await.expect_err("a wrong password");
        let login = AuthenticateRequest { name, password };
        let token = auth.authenticate(login).await.expect("a right password").into_inner().token;
        let mut range =
            Request::new(RangeRequest { key: "hidden-key".into(), ..RangeRequest::default() });
        range.metadata_mut().insert("token", token.parse().expect("a token is text"));
        kv.range(range).await.expect("root may");
        token
    });
    let expected = [
        ("/etcdserverpb.Auth/UserAdd", "allowed"),
        ("/etcdserverpb.Auth/UserGrantRole", "allowed"),
        ("/etcdserverpb.Auth/AuthEnable", "allowed"),
        ("/etcdserverpb.KV/Put", "denied"),
        ("\"Authenticate\"", "denied"),
        ("\"Authenticate\"", "allowed"),
    ];
    let log = wait::until("all is told", BOUND, || {
        let log = cluster.nodes[0].process.as_ref().expect("it runs").log();
        let missing = expected.iter().find(|(method, verdict)| {
            !log.lines().any(|line| {
                let told = |word: &str| line.contains(word);
                told(" audit ") && told(method) && told(&format!("verdict=\"{verdict}\""))
            })
        });
        match missing {
            Some(missing) => Err(format!("no line about {missing:?} in:\n{log}")),
            None => Ok(log),
        }
    });
    for secret in ["open-sesame", "guessed", "hidden-key", &token] {
        assert!(!log.contains(secret), "{secret} stands in the log:\n{log}");
    }
    assert!(!log.contains("KV/Range"), "what everybody does all day is no news:\n{log}");
}
