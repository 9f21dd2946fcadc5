//! The audit log of real nodes: who did what is told, and no secret is.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use quorate_api::etcdserverpb::auth_client::AuthClient;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_api::etcdserverpb::request_op::Request as OpRequest;
use quorate_api::etcdserverpb::watch_client::WatchClient;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserGrantRoleRequest,
    AuthenticateRequest, CompactionRequest, MoveLeaderRequest, PutRequest, RangeRequest, RequestOp,
    StatusRequest, TxnRequest, WatchCreateRequest, WatchRequest,
};
use quorate_tests::client::runtime;
use quorate_tests::cluster::Cluster;
use quorate_tests::wait;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

const BOUND: Duration = Duration::from_secs(60);

/// What stands in no log. Long and odd enough to be there by no accident.
const PASSWORD: &str = "open-sesame";
const GUESSED: &str = "guessed-sesame";
const CHANGED: &str = "shut-sesame";
const KEY: &str = "hidden-key";
const VALUE: &str = "hidden-value";

/// A client of one node.
struct Client {
    channel: Channel,
    auth: AuthClient<Channel>,
    kv: KvClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
}

impl Client {
    async fn of(cluster: &Cluster, node: usize) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", cluster.nodes[node].client));
        let channel = endpoint.expect("an address").connect().await.expect("it serves");
        Self {
            auth: AuthClient::new(channel.clone()),
            kv: KvClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            channel,
        }
    }

    /// Adds root, and lets users count.
    async fn make_root(&mut self) {
        let (name, password) = ("root".to_owned(), PASSWORD.to_owned());
        let add = AuthUserAddRequest { name, password, ..AuthUserAddRequest::default() };
        self.auth.user_add(add).await.expect("a new user");
        let grant = AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
        self.auth.user_grant_role(grant).await.expect("the role root is there for it");
        self.auth.auth_enable(AuthEnableRequest {}).await.expect("root is there");
    }

    /// A token, after a guess.
    async fn login(&mut self) -> String {
        let login = |password: &str| AuthenticateRequest {
            name: "root".to_owned(),
            password: password.to_owned(),
        };
        self.auth.authenticate(login(GUESSED)).await.expect_err("a wrong password");
        let made = self.auth.authenticate(login(PASSWORD)).await.expect("a right password");
        made.into_inner().token
    }

    /// A stream that watches the key.
    async fn watch(
        &self,
        token: Option<&str>,
    ) -> Streaming<quorate_api::etcdserverpb::WatchResponse> {
        let create = WatchCreateRequest { key: KEY.into(), ..WatchCreateRequest::default() };
        let union = Some(RequestUnion::CreateRequest(create));
        let asks = futures::stream::iter([WatchRequest { request_union: union }]);
        let asks = futures::StreamExt::chain(asks, futures::stream::pending());
        let request = match token {
            Some(token) => signed(asks, token),
            None => Request::new(asks),
        };
        let watched = WatchClient::new(self.channel.clone()).watch(request).await;
        watched.expect("streams are open to all").into_inner()
    }
}

fn signed<T>(request: T, token: &str) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("token", token.parse().expect("a token is text"));
    request
}

fn put() -> PutRequest {
    PutRequest { key: KEY.into(), value: VALUE.into(), ..PutRequest::default() }
}

fn range() -> RangeRequest {
    RangeRequest { key: KEY.into(), ..RangeRequest::default() }
}

fn log(cluster: &Cluster, node: usize) -> String {
    cluster.nodes[node].process.as_ref().expect("it runs").log()
}

/// The log of a node once it tells all that is expected: methods and verdicts.
fn log_with(cluster: &Cluster, node: usize, expected: &[(&str, &str)]) -> String {
    wait::until("all is told", BOUND, || {
        let log = log(cluster, node);
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
    })
}

#[test]
fn logins_changes_of_users_calls_of_roots_and_refusals_are_lines_of_the_log_without_a_secret() {
    let Some(cluster) = Cluster::quorate_with("audit", &["--log-level", "warn,audit=info"]) else {
        return;
    };
    // Only who leads can hand the leadership on.
    let leader = cluster.leader();
    let token = runtime().block_on(async {
        let mut client = Client::of(&cluster, leader).await;
        client.make_root().await;
        client.kv.put(put()).await.expect_err("nobody may");
        let refused = client.watch(None).await.message().await.expect("an answer");
        assert!(refused.expect("an answer").canceled, "nobody may");
        let token = client.login().await;
        let written = client.kv.put(signed(put(), &token)).await.expect("root may").into_inner();
        client.kv.range(signed(range(), &token)).await.expect("root may");
        let revision = written.header.expect("a header").revision;
        let compact = CompactionRequest { revision, physical: false };
        client.kv.compact(signed(compact, &token)).await.expect("root may");
        let mut other = Client::of(&cluster, (leader + 1) % cluster.nodes.len()).await;
        let status = other.maintenance.status(signed(StatusRequest {}, &token)).await;
        let member = status.expect("users may").into_inner().header.expect("a header").member_id;
        let to_other = MoveLeaderRequest { target_id: member };
        client.maintenance.move_leader(signed(to_other, &token)).await.expect("root may");
        token
    });
    let log = log_with(
        &cluster,
        leader,
        &[
            ("/etcdserverpb.Auth/UserAdd", "allowed"),
            ("/etcdserverpb.Auth/UserGrantRole", "allowed"),
            ("/etcdserverpb.Auth/AuthEnable", "allowed"),
            ("/etcdserverpb.KV/Put", "denied"),
            ("/etcdserverpb.Watch/Watch", "denied"),
            ("\"Authenticate\"", "denied"),
            ("\"Authenticate\"", "allowed"),
            ("/etcdserverpb.KV/Compact", "allowed"),
            ("/etcdserverpb.Maintenance/MoveLeader", "allowed"),
        ],
    );
    for secret in [PASSWORD, GUESSED, KEY, VALUE, &token] {
        assert!(!log.contains(secret), "{secret} stands in the log:\n{log}");
    }
    assert!(!log.contains("KV/Range"), "what everybody does all day is no news:\n{log}");
}

/// Calls by JSON: the status.
fn post(address: &str, path: &str, token: Option<&str>, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it serves");
    stream.set_read_timeout(Some(BOUND)).expect("a bound");
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("it reads the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.lines().next().unwrap_or_default().to_owned()
}

/// A secret as it may be printed: as it is, as JSON carries it, and as bytes.
fn forms(secret: &str) -> [String; 3] {
    let bytes: Vec<_> = secret.bytes().map(|byte| byte.to_string()).collect();
    [secret.to_owned(), base64(secret), bytes.join(", ")]
}

/// As far as the last whole group: what follows depends on what stands next to it.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = text.as_bytes().chunks_exact(3).flat_map(|group| {
        let [a, b, c] = [group[0], group[1], group[2]].map(usize::from);
        [a >> 2, (a << 4 | b >> 4) & 63, (b << 2 | c >> 6) & 63, c & 63]
    });
    groups.map(|digit| char::from(DIGITS[digit])).collect()
}

#[test]
fn no_level_of_the_log_shows_a_secret() {
    let Some(cluster) = Cluster::quorate_with("audit-trace", &["--log-level", "trace"]) else {
        return;
    };
    let token = runtime().block_on(async {
        let mut client = Client::of(&cluster, 0).await;
        client.make_root().await;
        let token = client.login().await;
        let mut told = client.watch(Some(&token)).await;
        assert!(told.message().await.expect("no error").expect("an answer").created);
        client.kv.put(put()).await.expect_err("nobody may");
        client.kv.put(signed(put(), &token)).await.expect("root may");
        let events = told.message().await.expect("no error").expect("an answer").events;
        assert_eq!(events.len(), 1);
        client.kv.range(signed(range(), &token)).await.expect("root may");
        let op = RequestOp { request: Some(OpRequest::RequestPut(put())) };
        let txn = TxnRequest { success: vec![op], ..TxnRequest::default() };
        client.kv.txn(signed(txn, &token)).await.expect("root may");
        // Users and keys by way of another node too.
        let mut other = Client::of(&cluster, 1).await;
        other.kv.put(signed(put(), &token)).await.expect("root may");
        let json =
            format!(r#"{{"key":"{}","value":"{}"}}"#, base64(&KEY[..9]), base64(&VALUE[..12]));
        let login = format!(r#"{{"name":"root","password":"{PASSWORD}"}}"#);
        let address = &cluster.nodes[2].client;
        for (path, token, body) in
            [("/v3/kv/put", Some(&*token), &json), ("/v3/auth/authenticate", None, &login)]
        {
            assert_eq!(post(address, path, token, body), "HTTP/1.1 200 OK", "{path}");
        }
        let (name, password) = ("root".to_owned(), CHANGED.to_owned());
        let change = AuthUserChangePasswordRequest {
            name,
            password,
            ..AuthUserChangePasswordRequest::default()
        };
        client.auth.user_change_password(signed(change, &token)).await.expect("root may");
        token
    });
    log_with(&cluster, 0, &[("/etcdserverpb.Auth/UserChangePassword", "allowed")]);
    for node in 0..cluster.nodes.len() {
        let log = log(&cluster, node);
        assert!(log.contains("TRACE"), "node {node} tells little");
        for secret in [PASSWORD, GUESSED, CHANGED, &KEY[..9], &VALUE[..12], &token, "$argon2id$"] {
            for form in forms(secret) {
                let line = log.lines().find(|line| line.contains(&form));
                assert!(line.is_none(), "node {node} shows {secret}: {line:?}");
            }
        }
    }
}

#[test]
fn what_a_node_keeps_is_open_to_nobody_else() {
    let Some(cluster) = Cluster::quorate("audit-mode") else { return };
    for node in cluster.nodes.iter().filter(|_| cluster.is_quorate()) {
        let mode = fs::metadata(&node.data).expect("the node has made it").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", node.data.display());
    }
}
