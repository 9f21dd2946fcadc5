//! Users, roles, permissions and tokens, and reads and writes by all kinds of callers.
//!
//! All requests go to one node, which alone is sure to have applied what it acknowledged. Left out, because etcd 3.5.1 lets through what it should not, or refuses less: nested transactions, whose keys it does not
//! look at; what was there before a put of a transaction, which it shows to who may only write; empty passwords; compaction, which we keep for root; and tokens while users do not count, of which it
//! refuses those that it does not know (its later versions do not).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use quorate_api::authpb::{Permission, UserAddOptions};
use quorate_api::etcdserverpb::{self as pb, RequestOp, ResponseHeader, request_op};
use quorate_tests::client::Client;
use tonic::{Code, Request, Status};

/// Requests before the first difference that are shown.
const HISTORY: usize = 12;

const USERS: [&str; 4] = ["root", "u1", "u2", "u3"];
const ROLES: [&str; 4] = ["root", "r1", "r2", "r3"];
const KEYS: [&[u8]; 5] = [b"a", b"ab", b"b", b"c", b"\xff"];
const ENDS: [&[u8]; 6] = [b"", b"", b"\0", b"b", b"c", b"a"];

/// The password of root, which never changes: somebody has to get on.
const ROOT: &str = "root";

#[derive(Debug, Clone)]
enum Step {
    Enable,
    Disable,
    Status,
    Authenticate(pb::AuthenticateRequest),
    UserAdd(pb::AuthUserAddRequest),
    UserDelete(pb::AuthUserDeleteRequest),
    UserGet(pb::AuthUserGetRequest),
    UserList,
    ChangePassword(pb::AuthUserChangePasswordRequest),
    GrantRole(pb::AuthUserGrantRoleRequest),
    RevokeRole(pb::AuthUserRevokeRoleRequest),
    RoleAdd(pb::AuthRoleAddRequest),
    RoleDelete(pb::AuthRoleDeleteRequest),
    RoleGet(pb::AuthRoleGetRequest),
    RoleList,
    Grant(pb::AuthRoleGrantPermissionRequest),
    Revoke(pb::AuthRoleRevokePermissionRequest),
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
}

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Said(String),
    Refused(Code, String),
}

/// A client of one side, with the tokens that it was given.
struct Side {
    client: Client,
    tokens: BTreeMap<String, String>,
    /// Whether users count.
    enabled: bool,
}

/// Sends the same steps to both sides; returns how their answers differ, if they do. Users do not count before and
/// after.
pub(crate) async fn differences(sides: [&Client; 2], seed: u64, steps: usize) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let of =
        |client: &Client| Side { client: client.clone(), tokens: BTreeMap::new(), enabled: false };
    let mut sides = sides.map(of);
    let mut history = VecDeque::new();
    for number in 0..steps {
        let (caller, step) = match first_steps().into_iter().nth(number) {
            Some(step) => (Some(ROOT), step),
            None => (caller(&mut rng), step(&mut rng)),
        };
        let expected = sides[0].send(caller, &step).await;
        let found = sides[1].send(caller, &step).await;
        let shown = format!("step {number}, by {caller:?}: {step:?}");
        if expected != found {
            let mut lines: Vec<String> = history.into();
            lines.push(format!(
                "seed {seed}, {shown}\netcd answers {expected:#?}\nQuorate answers {found:#?}"
            ));
            return lines;
        }
        history.push_back(format!("{shown}\n  both answer {expected:?}"));
        history.drain(..history.len().saturating_sub(HISTORY));
    }
    let everything =
        pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let mut left = Vec::new();
    for side in &mut sides {
        side.send(None, &Step::Authenticate(login(ROOT, ROOT))).await;
        side.send(Some(ROOT), &Step::Disable).await;
        left.push(side.send(None, &Step::Range(everything.clone())).await);
    }
    let mut lines: Vec<String> = history.into();
    if left[0] == left[1] {
        return Vec::new();
    }
    lines.push(format!("seed {seed}: etcd has {:#?}\nQuorate has {:#?}", left[0], left[1]));
    lines
}

/// What makes the rest worth trying: root, and users who count.
fn first_steps() -> Vec<Step> {
    let mut steps = vec![Step::UserAdd(user_add(ROOT, ROOT))];
    steps.push(Step::RoleAdd(pb::AuthRoleAddRequest { name: ROOT.into() }));
    steps.push(Step::GrantRole(grant_role(ROOT, ROOT)));
    for (user, role) in USERS.iter().zip(ROLES).skip(1) {
        steps.push(Step::UserAdd(user_add(user, user)));
        steps.push(Step::RoleAdd(pb::AuthRoleAddRequest { name: role.into() }));
        steps.push(Step::GrantRole(grant_role(user, role)));
    }
    steps.push(Step::Enable);
    steps.extend(USERS.iter().map(|user| Step::Authenticate(login(user, user))));
    steps
}

fn caller(rng: &mut Rng) -> Option<&'static str> {
    match rng.u32(..10) {
        0 => None,
        1..6 => Some(ROOT),
        _ => rng.choice(USERS),
    }
}

fn step(rng: &mut Rng) -> Step {
    let named = |name: &str| name.to_owned();
    let user = rng.choice(USERS).expect("there are users");
    let role = rng.choice(ROLES).expect("there are roles");
    // Root's own user and role stay: without them nobody could get on.
    let other = rng.choice(&USERS[1..]).expect("there are others");
    let (key, range_end) = key_range(rng);
    match rng.u32(..100) {
        0 => Step::Enable,
        1 => Step::Disable,
        2..6 => Step::Status,
        6..14 => {
            let wrong = rng.u32(..6) == 0;
            Step::Authenticate(login(user, if wrong { "wrong" } else { user }))
        }
        14..17 => {
            let options = Some(UserAddOptions { no_password: rng.u32(..4) == 0 });
            Step::UserAdd(pb::AuthUserAddRequest { options, ..user_add(user, user) })
        }
        17..19 => Step::UserDelete(pb::AuthUserDeleteRequest { name: named(other) }),
        19..23 => Step::UserGet(pb::AuthUserGetRequest { name: named(user) }),
        23..25 => Step::UserList,
        25..27 => Step::ChangePassword(pb::AuthUserChangePasswordRequest {
            name: named(other),
            password: named(other),
            ..Default::default()
        }),
        27..31 => Step::GrantRole(grant_role(user, role)),
        31..34 => Step::RevokeRole(pb::AuthUserRevokeRoleRequest {
            name: named(other),
            role: named(role),
        }),
        34..37 => Step::RoleAdd(pb::AuthRoleAddRequest { name: named(role) }),
        37..39 => {
            let role = rng.choice(&ROLES[1..]).expect("there are others");
            Step::RoleDelete(pb::AuthRoleDeleteRequest { role: named(role) })
        }
        39..43 => Step::RoleGet(pb::AuthRoleGetRequest { role: named(role) }),
        43..45 => Step::RoleList,
        45..53 => {
            let perm_type = rng.i32(0..3);
            let (key, range_end) = permitted(rng);
            let perm = Some(Permission { perm_type, key, range_end });
            Step::Grant(pb::AuthRoleGrantPermissionRequest { name: named(role), perm })
        }
        53..57 => {
            let (key, range_end) = permitted(rng);
            Step::Revoke(pb::AuthRoleRevokePermissionRequest { role: named(role), key, range_end })
        }
        57..72 => Step::Range(pb::RangeRequest { key, range_end, ..Default::default() }),
        72..85 => Step::Put(put(rng)),
        85..91 => Step::Delete(delete(rng)),
        _ => Step::Txn(txn(rng)),
    }
}

fn key_range(rng: &mut Rng) -> (Bytes, Bytes) {
    let key = rng.choice(KEYS).expect("there are keys");
    let end = rng.choice(ENDS).expect("there are ends");
    (Bytes::from_static(key), Bytes::from_static(end))
}

/// For each key one range only: of those that begin with the same key etcd finds the first, and takes others for new.
fn permitted(rng: &mut Rng) -> (Bytes, Bytes) {
    let at = rng.usize(..KEYS.len());
    (Bytes::from_static(KEYS[at]), Bytes::from_static(ENDS[at + 1]))
}

fn put(rng: &mut Rng) -> pb::PutRequest {
    let (key, _) = key_range(rng);
    pb::PutRequest { key, value: "v".into(), prev_kv: rng.bool(), ..Default::default() }
}

fn delete(rng: &mut Rng) -> pb::DeleteRangeRequest {
    let (key, range_end) = key_range(rng);
    pb::DeleteRangeRequest { key, range_end, prev_kv: rng.bool() }
}

/// Never two writes of one key: etcd looks for those before it looks for rights, and so do we, but not for each form
/// of them.
fn txn(rng: &mut Rng) -> pb::TxnRequest {
    let read = |rng: &mut Rng| {
        let (key, range_end) = key_range(rng);
        let range = pb::RangeRequest { key, range_end, ..Default::default() };
        RequestOp { request: Some(request_op::Request::RequestRange(range)) }
    };
    let write = |rng: &mut Rng| {
        let request = match rng.bool() {
            true => request_op::Request::RequestPut(pb::PutRequest { prev_kv: false, ..put(rng) }),
            false => request_op::Request::RequestDeleteRange(delete(rng)),
        };
        RequestOp { request: Some(request) }
    };
    let branch = |rng: &mut Rng| {
        let mut ops = vec![];
        if rng.bool() {
            ops.push(read(rng));
        }
        if rng.u32(..3) > 0 {
            ops.push(write(rng));
        }
        ops
    };
    let (key, range_end) = key_range(rng);
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Greater as i32,
        target: pb::compare::CompareTarget::Version as i32,
        key,
        range_end,
        target_union: Some(pb::compare::TargetUnion::Version(0)),
    };
    let compare = if rng.bool() { vec![compare] } else { Vec::new() };
    pb::TxnRequest { compare, success: branch(rng), failure: branch(rng) }
}

fn login(name: &str, password: &str) -> pb::AuthenticateRequest {
    pb::AuthenticateRequest { name: name.into(), password: password.into() }
}

fn user_add(name: &str, password: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() }
}

fn grant_role(user: &str, role: &str) -> pb::AuthUserGrantRoleRequest {
    pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }
}

/// Makes a call as somebody; its answer without identities.
macro_rules! call {
    ($client:expr, $method:ident, $request:expr, $token:expr) => {{
        let answer = $client.$method(with_token($request, $token)).await.map(|answer| {
            let mut answer = answer.into_inner();
            neutral(&mut answer.header);
            answer
        });
        said(answer)
    }};
}

fn with_token<T>(request: T, token: Option<&String>) -> Request<T> {
    let mut request = Request::new(request);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().expect("a token is text"));
    }
    request
}

impl Side {
    async fn send(&mut self, caller: Option<&str>, step: &Step) -> Answer {
        let caller = caller.filter(|_| self.enabled);
        let answer = self.send_as(caller, step).await;
        match (step, &answer) {
            (Step::Enable, Answer::Said(_)) => self.enabled = true,
            (Step::Disable, Answer::Said(_)) => self.enabled = false,
            _ => {}
        }
        answer
    }

    async fn send_as(&mut self, caller: Option<&str>, step: &Step) -> Answer {
        let token = caller.and_then(|name| self.tokens.get(name));
        let (auth, kv) = (&mut self.client.auth, &mut self.client.kv);
        match step.clone() {
            Step::Enable => call!(auth, auth_enable, pb::AuthEnableRequest {}, token),
            Step::Disable => call!(auth, auth_disable, pb::AuthDisableRequest {}, token),
            Step::Status => call!(auth, auth_status, pb::AuthStatusRequest {}, token),
            Step::Authenticate(request) => {
                let name = request.name.clone();
                match auth.authenticate(request).await {
                    Ok(answer) => {
                        self.tokens.insert(name, answer.into_inner().token);
                        Answer::Said("a token".to_owned())
                    }
                    Err(status) => said::<()>(Err(status)),
                }
            }
            Step::UserAdd(request) => call!(auth, user_add, request, token),
            Step::UserDelete(request) => call!(auth, user_delete, request, token),
            Step::UserGet(request) => call!(auth, user_get, request, token),
            Step::UserList => call!(auth, user_list, pb::AuthUserListRequest {}, token),
            Step::ChangePassword(request) => call!(auth, user_change_password, request, token),
            Step::GrantRole(request) => call!(auth, user_grant_role, request, token),
            Step::RevokeRole(request) => call!(auth, user_revoke_role, request, token),
            Step::RoleAdd(request) => call!(auth, role_add, request, token),
            Step::RoleDelete(request) => call!(auth, role_delete, request, token),
            Step::RoleGet(request) => {
                call!(auth, role_get, request, token)
            }
            Step::RoleList => call!(auth, role_list, pb::AuthRoleListRequest {}, token),
            Step::Grant(request) => call!(auth, role_grant_permission, request, token),
            Step::Revoke(request) => call!(auth, role_revoke_permission, request, token),
            Step::Range(request) => call!(kv, range, request, token),
            Step::Put(request) => call!(kv, put, request, token),
            Step::Delete(request) => call!(kv, delete_range, request, token),
            Step::Txn(request) => call!(kv, txn, request, token),
        }
    }
}

fn said<T: std::fmt::Debug>(answer: Result<T, Status>) -> Answer {
    match answer {
        Ok(answer) => Answer::Said(format!("{answer:?}")),
        Err(status) => Answer::Refused(status.code(), status.message().to_owned()),
    }
}

fn neutral(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        *header = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
    }
}
