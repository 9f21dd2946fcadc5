//! Users, roles and tokens: what a client sees of them, here and with a real etcd.

use quorate_api::authpb::{Permission, UserAddOptions};
use quorate_api::etcdserverpb::auth_client::AuthClient;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_api::etcdserverpb::request_op::Request as OpRequest;
use quorate_api::etcdserverpb::{self as pb, RequestOp};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::peer::Etcd;
use crate::support::Door;

pub(crate) const READ: i32 = 0;
const WRITE: i32 = 1;
const READWRITE: i32 = 2;

/// A client that may have a token.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) channel: Channel,
    pub(crate) token: Option<String>,
}

macro_rules! calls {
    ($client:ident: $($name:ident($request:ident) -> $response:ident;)*) => {
        $(pub(crate) async fn $name(&self, request: pb::$request) -> Result<pb::$response, Status> {
            let mut client = $client::new(self.channel.clone());
            Ok(client.$name(self.signed(request)).await?.into_inner())
        })*
    };
}

impl Client {
    pub(crate) fn of(channel: Channel) -> Self {
        Self { channel, token: None }
    }

    /// The same, saying that it is whoever has this token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { channel: self.channel.clone(), token: Some(token.to_owned()) }
    }

    fn signed<T>(&self, request: T) -> Request<T> {
        let mut request = Request::new(request);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().expect("a token is text"));
        }
        request
    }

    /// A token for a user whose password is the name.
    pub(crate) async fn login(&self, user: &str) -> String {
        let request = pb::AuthenticateRequest { name: user.into(), password: user.into() };
        self.authenticate(request).await.expect("a right password").token
    }

    pub(crate) async fn to_be(&self, user: &str) -> Self {
        self.with_token(&self.login(user).await)
    }

    calls! { AuthClient:
        auth_enable(AuthEnableRequest) -> AuthEnableResponse;
        auth_disable(AuthDisableRequest) -> AuthDisableResponse;
        auth_status(AuthStatusRequest) -> AuthStatusResponse;
        authenticate(AuthenticateRequest) -> AuthenticateResponse;
        user_add(AuthUserAddRequest) -> AuthUserAddResponse;
        user_get(AuthUserGetRequest) -> AuthUserGetResponse;
        user_list(AuthUserListRequest) -> AuthUserListResponse;
        user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
        user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
        user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
        user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
        role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
        role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
        role_list(AuthRoleListRequest) -> AuthRoleListResponse;
        role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
        role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
        role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
    }

    calls! { KvClient:
        range(RangeRequest) -> RangeResponse;
        put(PutRequest) -> PutResponse;
        delete_range(DeleteRangeRequest) -> DeleteRangeResponse;
        txn(TxnRequest) -> TxnResponse;
        compact(CompactionRequest) -> CompactionResponse;
    }

    calls! { MaintenanceClient:
        alarm(AlarmRequest) -> AlarmResponse;
        move_leader(MoveLeaderRequest) -> MoveLeaderResponse;
    }

    calls! { LeaseClient:
        lease_grant(LeaseGrantRequest) -> LeaseGrantResponse;
        lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse;
        lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse;
    }

    async fn add(&self, user: &str, role: &str) {
        self.user_add(user_add(user, user)).await.expect("a new user");
        if role != "root" {
            self.role_add(pb::AuthRoleAddRequest { name: role.into() }).await.expect("a new role");
        }
        self.user_grant_role(grant_role(user, role)).await.expect("they are there");
    }

    async fn permit(&self, role: &str, kind: i32, key: &'static [u8], end: &'static [u8]) {
        self.role_grant_permission(permission(role, kind, key, end)).await.expect("a role");
    }
}

pub(crate) fn user_add(name: &str, password: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() }
}

pub(crate) fn grant_role(user: &str, role: &str) -> pb::AuthUserGrantRoleRequest {
    pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }
}

pub(crate) fn permission(
    role: &str,
    kind: i32,
    key: &'static [u8],
    end: &'static [u8],
) -> pb::AuthRoleGrantPermissionRequest {
    let perm = Permission { perm_type: kind, key: key.into(), range_end: end.into() };
    pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) }
}

pub(crate) fn range(key: &'static [u8], end: &'static [u8]) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

pub(crate) fn put(key: &'static [u8]) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), ..Default::default() }
}

pub(crate) fn delete(key: &'static [u8], end: &'static [u8]) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

fn op(request: OpRequest) -> RequestOp {
    RequestOp { request: Some(request) }
}

pub(crate) fn then(request: OpRequest) -> pb::TxnRequest {
    pb::TxnRequest { success: vec![op(request)], ..Default::default() }
}

pub(crate) fn otherwise(request: OpRequest) -> pb::TxnRequest {
    pb::TxnRequest { failure: vec![op(request)], ..Default::default() }
}

/// Makes users whose passwords are their names, and lets them count: `right` may read and write `b` to `d`,
/// `write` may only write there, `split` may read `b` to `c` and `c` to `d` by two permissions, and `wrong` may
/// read and write `x`.
pub(crate) async fn set_up(client: &Client) {
    client.add("root", "root").await;
    client.add("right", "r").await;
    client.permit("r", READWRITE, b"b", b"d").await;
    client.add("write", "w").await;
    client.permit("w", WRITE, b"b", b"d").await;
    client.add("split", "s").await;
    client.permit("s", READ, b"b", b"c").await;
    client.permit("s", READ, b"c", b"d").await;
    client.add("wrong", "x").await;
    client.permit("x", READWRITE, b"x", b"").await;
    client.auth_enable(pb::AuthEnableRequest {}).await.expect("root is there");
}

/// A gateway with users.
pub(crate) async fn with_users() -> Door {
    let door = Door::open().await;
    set_up(&Client::of(door.channel().await)).await;
    door
}

fn told<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

/// What the four operations on keys answer in every form that names keys, for one user.
async fn keys(client: &Client) -> Vec<String> {
    let mut said = Vec::new();
    for (key, end) in [
        (&b"b"[..], &b""[..]),
        (b"b", b"d"),
        (b"b", b"c\0"),
        (b"b", b"\0"),
        (b"b", b"e"),
        (b"a", b"c"),
        (b"d", b"b"),
        (b"x", b""),
        (b"x", b"\0"),
    ] {
        said.push(format!("range {key:?} {end:?}: {}", told(client.range(range(key, end)).await)));
        let serializable = pb::RangeRequest { serializable: true, ..range(key, end) };
        said.push(format!("local {key:?} {end:?}: {}", told(client.range(serializable).await)));
        let nested =
            otherwise(OpRequest::RequestTxn(then(OpRequest::RequestRange(range(key, end)))));
        said.push(format!("nested {key:?} {end:?}: {}", told(client.txn(nested).await)));
        let inner = delete(key, end);
        let nested = then(OpRequest::RequestTxn(otherwise(OpRequest::RequestDeleteRange(inner))));
        said.push(format!("nested delete {key:?} {end:?}: {}", told(client.txn(nested).await)));
        let compare = pb::Compare {
            key: key.into(),
            range_end: end.into(),
            target_union: Some(pb::compare::TargetUnion::Version(99)),
            ..Default::default()
        };
        let txn = pb::TxnRequest { compare: vec![compare], ..Default::default() };
        said.push(format!("compare {key:?} {end:?}: {}", told(client.txn(txn).await)));
        let shown = pb::DeleteRangeRequest { prev_kv: true, ..delete(key, end) };
        said.push(format!(
            "shown delete {key:?} {end:?}: {}",
            told(client.delete_range(shown).await)
        ));
        said.push(format!(
            "delete {key:?} {end:?}: {}",
            told(client.delete_range(delete(key, end)).await)
        ));
    }
    for key in [&b"b"[..], b"c\xff", b"d", b"x"] {
        said.push(format!("put {key:?}: {}", told(client.put(put(key)).await)));
        let shown = pb::PutRequest { prev_kv: true, ..put(key) };
        said.push(format!("shown put {key:?}: {}", told(client.put(shown.clone()).await)));
        let txn = then(OpRequest::RequestPut(shown));
        said.push(format!("shown put in a txn {key:?}: {}", told(client.txn(txn).await)));
    }
    said
}

#[tokio::test]
async fn keys_are_open_to_whom_etcd_opens_them() {
    let Some(etcd) = Etcd::start().await else { return };
    let (door, theirs) = (with_users().await, Client::of(etcd.channel()));
    set_up(&theirs).await;
    let ours = Client::of(door.channel().await);
    compare("nobody", &keys(&ours).await, &keys(&theirs).await);
    for user in ["right", "write", "split", "wrong", "root"] {
        let (ours, theirs) =
            (keys(&ours.to_be(user).await).await, keys(&theirs.to_be(user).await).await);
        compare(user, &ours, &theirs);
    }
}

/// Answers as etcd 3.5.1 gives them, but where it lets in whom it should not: it looks neither into transactions in
/// transactions nor at what a put in one shows. There ours is refused if and only if the operation is by itself.
fn compare(user: &str, ours: &[String], theirs: &[String]) {
    for (our, their) in ours.iter().zip(theirs) {
        match by_itself(our).filter(|_| their.ends_with(": ok")) {
            Some(plain) => {
                let plain = ours.iter().find(|line| line.starts_with(&plain));
                let plain = plain.expect("it was asked for by itself too");
                assert_eq!(is_denied(our), is_denied(plain), "{user}: {our}, and {plain}");
                assert!(is_denied(our) || our == their, "{user}: {our}");
            }
            None => assert_eq!(our, their, "{user}"),
        }
    }
    assert_eq!(ours.len(), theirs.len());
}

/// The line about the same operation by itself, as far as its answer, for one within a transaction.
fn by_itself(line: &str) -> Option<String> {
    let within = [
        ("nested delete ", "delete "),
        ("nested ", "range "),
        ("shown put in a txn ", "shown put "),
        (" may attach to ", " attaches to "),
    ];
    let (what, plain) = within.into_iter().find(|(what, _)| line.contains(what))?;
    let (asked, _) = line.split_once(": ").expect("an answer");
    Some(format!("{}: ", asked.replacen(what, plain, 1)))
}

fn is_denied(line: &str) -> bool {
    line.ends_with("etcdserver: permission denied")
        || line.ends_with("etcdserver: user name is empty")
}

/// Every refusal of the service that etcd has, and what must not be refused.
async fn script(client: &Client) -> Vec<String> {
    let mut said = Vec::new();
    let mut say = |what: &str, answer: String| said.push(format!("{what}: {answer}"));
    let named = |name: &str| name.to_owned();
    let status = async |client: &Client| match client.auth_status(pb::AuthStatusRequest {}).await {
        Ok(status) => format!("{} {}", status.enabled, status.auth_revision),
        Err(status) => told::<()>(Err(status)),
    };
    say("status", status(client).await);
    say("enable", told(client.auth_enable(pb::AuthEnableRequest {}).await));
    say("disable", told(client.auth_disable(pb::AuthDisableRequest {}).await));
    let login = |name: &str, password: &str| pb::AuthenticateRequest {
        name: name.into(),
        password: password.into(),
    };
    say("login", told(client.authenticate(login("root", "root")).await));
    say("no name", told(client.user_add(user_add("", "p")).await));
    say("root", told(client.user_add(user_add("root", "root")).await));
    say("root again", told(client.user_add(user_add("root", "root")).await));
    say("enable", told(client.auth_enable(pb::AuthEnableRequest {}).await));
    say("grant root", told(client.user_grant_role(grant_role("root", "root")).await));
    say("grant root again", told(client.user_grant_role(grant_role("root", "root")).await));
    say("status", status(client).await);
    say("role", told(client.role_add(pb::AuthRoleAddRequest { name: named("r") }).await));
    say("role again", told(client.role_add(pb::AuthRoleAddRequest { name: named("r") }).await));
    say("no role", told(client.role_add(pb::AuthRoleAddRequest { name: named("") }).await));
    for role in ["r", "gone"] {
        for (kind, key, end) in [
            (READ, &b"a"[..], &b"b"[..]),
            (READWRITE, b"a", b"b"),
            (WRITE, b"z", b"\0"),
            (READ, b"y", b"x"),
        ] {
            let request = permission(role, kind, key, end);
            say("permission", told(client.role_grant_permission(request).await));
        }
    }
    let role = client.role_get(pb::AuthRoleGetRequest { role: named("r") }).await;
    say("permissions", format!("{:?}", role.map(|role| role.perm)));
    for (role, key) in [("r", &b"q"[..]), ("gone", b"q"), ("r", b"y")] {
        let request = pb::AuthRoleRevokePermissionRequest {
            role: named(role),
            key: key.into(),
            range_end: b"x"[..].into(),
        };
        say("revoke", told(client.role_revoke_permission(request).await));
    }
    say("user", told(client.user_add(user_add("u", "u")).await));
    let options = Some(UserAddOptions { no_password: true });
    let certified = pb::AuthUserAddRequest { options, ..user_add("cert", "") };
    say("no password", told(client.user_add(certified).await));
    for (user, role) in [("u", "r"), ("u", "gone"), ("gone", "r"), ("u", "root")] {
        say("grant", told(client.user_grant_role(grant_role(user, role)).await));
    }
    for (user, role) in [("u", "root"), ("u", "root"), ("gone", "r")] {
        let request = pb::AuthUserRevokeRoleRequest { name: named(user), role: named(role) };
        say("revoke role", told(client.user_revoke_role(request).await));
    }
    for name in ["u", "gone"] {
        let get = client.user_get(pb::AuthUserGetRequest { name: named(name) }).await;
        say("user", format!("{:?}", get.map(|user| user.roles).map_err(|status| status.code())));
    }
    let passwd = |name: &str, password: &str| pb::AuthUserChangePasswordRequest {
        name: name.into(),
        password: password.into(),
        ..Default::default()
    };
    say("passwd", told(client.user_change_password(passwd("u", "u")).await));
    say("passwd of nobody", told(client.user_change_password(passwd("gone", "u")).await));
    say(
        "delete nobody",
        told(client.user_delete(pb::AuthUserDeleteRequest { name: named("gone") }).await),
    );
    say(
        "delete no role",
        told(client.role_delete(pb::AuthRoleDeleteRequest { role: named("gone") }).await),
    );
    say(
        "users",
        format!(
            "{:?}",
            client.user_list(pb::AuthUserListRequest {}).await.map(|all| all.users).ok()
        ),
    );
    say(
        "roles",
        format!(
            "{:?}",
            client.role_list(pb::AuthRoleListRequest {}).await.map(|all| all.roles).ok()
        ),
    );
    say("enable", told(client.auth_enable(pb::AuthEnableRequest {}).await));
    say("enable by nobody", told(client.auth_enable(pb::AuthEnableRequest {}).await));
    for (name, password) in [("root", "x"), ("gone", "x"), ("u", ""), ("", "")] {
        say("login", told(client.authenticate(login(name, password)).await));
    }
    let (root, user) = (client.to_be("root").await, client.to_be("u").await);
    say("status", status(&root).await);
    say("status by a user", status(&user).await);
    say("enable again", told(root.auth_enable(pb::AuthEnableRequest {}).await));
    for name in ["u", "root"] {
        let get = user.user_get(pb::AuthUserGetRequest { name: named(name) }).await;
        say("get by a user", told(get));
    }
    for role in ["r", "root", "gone"] {
        say(
            "role by a user",
            told(user.role_get(pb::AuthRoleGetRequest { role: named(role) }).await),
        );
    }
    say("list by a user", told(user.user_list(pb::AuthUserListRequest {}).await));
    say("own passwd", told(user.user_change_password(passwd("u", "v")).await));
    say(
        "delete root",
        told(root.user_delete(pb::AuthUserDeleteRequest { name: named("root") }).await),
    );
    let request = pb::AuthUserRevokeRoleRequest { name: named("root"), role: named("root") };
    say("revoke root", told(root.user_revoke_role(request).await));
    say(
        "delete role root",
        told(root.role_delete(pb::AuthRoleDeleteRequest { role: named("root") }).await),
    );
    say("get", told(user.range(range(b"a", b"")).await));
    // A change that is not about the user: the token holds on.
    say("other user", told(root.user_add(user_add("other", "other")).await));
    say("get", told(user.range(range(b"a", b"")).await));
    say("passwd", told(root.user_change_password(passwd("u", "u")).await));
    say("get with an old token", told(user.range(range(b"a", b"")).await));
    let user = client.to_be("u").await;
    say("get", told(user.range(range(b"a", b"")).await));
    say(
        "delete role",
        told(root.role_delete(pb::AuthRoleDeleteRequest { role: named("r") }).await),
    );
    say("get", told(user.range(range(b"a", b"")).await));
    let user = client.to_be("u").await;
    say("get", told(user.range(range(b"a", b"")).await));
    say("delete", told(root.user_delete(pb::AuthUserDeleteRequest { name: named("u") }).await));
    say("get by nobody any more", told(user.range(range(b"a", b"")).await));
    say("add", told(root.user_add(user_add("u", "u")).await));
    say("get by an earlier one", told(user.range(range(b"a", b"")).await));
    say("disable", told(root.auth_disable(pb::AuthDisableRequest {}).await));
    say("status", status(client).await);
    say("get", told(client.range(range(b"a", b"")).await));
    say("get with a token", told(user.range(range(b"a", b"")).await));
    say("enable", told(client.auth_enable(pb::AuthEnableRequest {}).await));
    say("get with a token of before", told(root.range(range(b"a", b"")).await));
    said
}

#[tokio::test]
async fn users_and_roles_answer_as_etcds_do() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let (ours, theirs) = (
        script(&Client::of(door.channel().await)).await,
        script(&Client::of(etcd.channel())).await,
    );
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        // Where users do not count, etcd refuses a token that nobody asks for; a caller who has one is let in here,
        // as one who has none.
        if ours == "get with a token: ok" {
            continue;
        }
        assert_eq!(ours, theirs, "step {at}");
    }
    assert_eq!(ours.len(), theirs.len());
}

/// What is told of leases with keys of several users; and last what etcd 3.5.1 shows to all: which keys they are.
async fn leases(client: &Client) -> (Vec<String>, Vec<String>) {
    let (mut said, mut shown) = (Vec::new(), Vec::new());
    let root = client.to_be("root").await;
    for (id, keys) in [(1, &["b", "x"][..]), (2, &["b1"]), (3, &[])] {
        let granted = root.lease_grant(pb::LeaseGrantRequest { id, ttl: 600 }).await;
        granted.expect("a new lease");
        for key in keys {
            let attach = pb::PutRequest { lease: id, ..put(key.as_bytes()) };
            root.put(attach).await.expect("root may");
        }
    }
    for user in ["", "wrong", "split", "write", "right"] {
        let caller = if user.is_empty() { client.clone() } else { client.to_be(user).await };
        for lease in [1, 2, 3, 4] {
            let attach = pb::PutRequest { lease, ..put(b"b2") };
            let nested =
                otherwise(OpRequest::RequestTxn(then(OpRequest::RequestPut(attach.clone()))));
            said.push(format!("{user} attaches to {lease}: {}", told(caller.put(attach).await)));
            said.push(format!("{user} may attach to {lease}: {}", told(caller.txn(nested).await)));
            let ask = pb::LeaseTimeToLiveRequest { id: lease, keys: true };
            shown.push(format!(
                "{user} asks for {lease}: {}",
                told(caller.lease_time_to_live(ask).await)
            ));
        }
        let revoke = pb::LeaseRevokeRequest { id: 1 };
        said.push(format!("{user} ends 1: {}", told(caller.lease_revoke(revoke).await)));
        let revoke = pb::LeaseRevokeRequest { id: 2 };
        said.push(format!("{user} ends 2: {}", told(caller.lease_revoke(revoke).await)));
    }
    (said, shown)
}

#[tokio::test]
async fn leases_are_open_to_who_may_write_all_their_keys() {
    let Some(etcd) = Etcd::start().await else { return };
    let (door, theirs) = (with_users().await, Client::of(etcd.channel()));
    set_up(&theirs).await;
    let (ours, shown) = leases(&Client::of(door.channel().await)).await;
    let (theirs, _) = leases(&theirs).await;
    compare("leases", &ours, &theirs);
    let denied = "PermissionDenied etcdserver: permission denied";
    let empty = "InvalidArgument etcdserver: user name is empty";
    let of = |user: &str, told: [&str; 4]| {
        let lines = (1..).zip(told).map(|(lease, told)| format!("{user} asks for {lease}: {told}"));
        lines.collect::<Vec<_>>()
    };
    let expected = [
        of("", [empty; 4]),
        of("wrong", [denied, denied, "ok", "ok"]),
        of("split", [denied, "ok", "ok", "ok"]),
        // Who writes may attach a key, and may not look at it.
        of("write", [denied, denied, denied, "ok"]),
        of("right", [denied, "ok", "ok", "ok"]),
    ];
    assert_eq!(shown, expected.concat());
}
