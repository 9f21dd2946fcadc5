//! What is asked about users, and by whom.

use bytes::Bytes;
use fastrand::Rng;
use quorate_api::authpb::{Permission, UserAddOptions};
use quorate_api::etcdserverpb::{self as pb, RequestOp, request_op};

use super::known::Known;

const USERS: [&str; 4] = ["root", "u1", "u2", "u3"];
const ROLES: [&str; 4] = ["root", "r1", "r2", "r3"];
const KEYS: [&[u8]; 5] = [b"a", b"ab", b"b", b"c", b"\xff"];
const ENDS: [&[u8]; 6] = [b"", b"", b"\0", b"b", b"c", b"a"];

/// The password of root, which never changes: somebody has to get on.
pub(crate) const ROOT: &str = "root";

#[derive(Debug, Clone)]
pub(crate) enum Step {
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
    /// A range in a transaction in a transaction.
    NestedRead(pb::RangeRequest),
    /// At a revision that is compacted already: it does nothing, whoever may.
    Compact(i64),
    /// A range with a token that nobody was given.
    Stranger(pb::RangeRequest),
}

/// What makes the rest worth trying: root, and users who count.
pub(crate) fn first_steps() -> Vec<Step> {
    let mut steps = vec![Step::UserAdd(user_add(ROOT, ROOT))];
    steps.push(Step::RoleAdd(pb::AuthRoleAddRequest { name: ROOT.into() }));
    steps.push(Step::GrantRole(grant_role(ROOT, ROOT)));
    for (user, role) in USERS.iter().zip(ROLES).skip(1) {
        steps.push(Step::UserAdd(user_add(user, user)));
        steps.push(Step::RoleAdd(pb::AuthRoleAddRequest { name: role.into() }));
        steps.push(Step::GrantRole(grant_role(user, role)));
    }
    let range = pb::RangeRequest { key: "a".into(), ..pb::RangeRequest::default() };
    steps.push(Step::Stranger(range));
    steps.push(Step::Enable);
    steps.extend(USERS.iter().map(|user| Step::Authenticate(login(user, user))));
    steps
}

pub(crate) fn caller(rng: &mut Rng) -> Option<&'static str> {
    match rng.u32(..10) {
        0 => None,
        1..6 => Some(ROOT),
        _ => rng.choice(USERS),
    }
}

pub(crate) fn step(rng: &mut Rng, left_out: &mut Vec<Known>, compacted: i64) -> Step {
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
            left_out.extend((rng.u32(..8) == 0).then_some(Known::EmptyPassword));
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
            let (key, range_end) = permitted(rng, left_out);
            let perm = Some(Permission { perm_type, key, range_end });
            Step::Grant(pb::AuthRoleGrantPermissionRequest { name: named(role), perm })
        }
        53..57 => {
            let (key, range_end) = permitted(rng, left_out);
            Step::Revoke(pb::AuthRoleRevokePermissionRequest { role: named(role), key, range_end })
        }
        57..60 => Step::NestedRead(pb::RangeRequest { key, range_end, ..Default::default() }),
        60 => Step::Compact(compacted),
        61 => Step::Stranger(pb::RangeRequest { key, range_end, ..Default::default() }),
        62..72 => Step::Range(pb::RangeRequest { key, range_end, ..Default::default() }),
        72..85 => Step::Put(put(rng)),
        85..91 => Step::Delete(delete(rng)),
        _ => Step::Txn(txn(rng, left_out)),
    }
}

fn key_range(rng: &mut Rng) -> (Bytes, Bytes) {
    let key = rng.choice(KEYS).expect("there are keys");
    let end = rng.choice(ENDS).expect("there are ends");
    (Bytes::from_static(key), Bytes::from_static(end))
}

/// Whether a range ends before it begins, or where it does.
pub(crate) fn has_no_key(key: &Bytes, end: &Bytes) -> bool {
    !end.is_empty() && end[..] != b"\0"[..] && end <= key
}

/// A range that has keys: what else a transaction does must not hang on one that has none.
fn key_range_with_keys(rng: &mut Rng) -> (Bytes, Bytes) {
    let (key, end) = key_range(rng);
    let end = if has_no_key(&key, &end) { Bytes::new() } else { end };
    (key, end)
}

/// For each key one range only.
fn permitted(rng: &mut Rng, left_out: &mut Vec<Known>) -> (Bytes, Bytes) {
    let at = rng.usize(..KEYS.len());
    if rng.choice(ENDS) != Some(ENDS[at + 1]) {
        left_out.push(Known::RangesOfOneKey);
    }
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

/// Never two writes of one key.
fn txn(rng: &mut Rng, left_out: &mut Vec<Known>) -> pb::TxnRequest {
    let read = |rng: &mut Rng| {
        let (key, range_end) = key_range_with_keys(rng);
        let range = pb::RangeRequest { key, range_end, ..Default::default() };
        RequestOp { request: Some(request_op::Request::RequestRange(range)) }
    };
    let mut write = |rng: &mut Rng| {
        let request = match rng.bool() {
            true => {
                let put = put(rng);
                left_out.extend(put.prev_kv.then_some(Known::PreviousValueInTxn));
                left_out.extend((rng.u32(..4) == 0).then_some(Known::DuplicateAndDenied));
                request_op::Request::RequestPut(pb::PutRequest { prev_kv: false, ..put })
            }
            false => {
                let (key, range_end) = key_range_with_keys(rng);
                let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: rng.bool() };
                request_op::Request::RequestDeleteRange(delete)
            }
        };
        RequestOp { request: Some(request) }
    };
    let mut branch = |rng: &mut Rng| {
        let mut ops = vec![];
        if rng.bool() {
            ops.push(read(rng));
        }
        if rng.u32(..3) > 0 {
            ops.push(write(rng));
        }
        ops
    };
    let (key, range_end) = key_range_with_keys(rng);
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

pub(crate) fn login(name: &str, password: &str) -> pb::AuthenticateRequest {
    pb::AuthenticateRequest { name: name.into(), password: password.into() }
}

fn user_add(name: &str, password: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() }
}

fn grant_role(user: &str, role: &str) -> pb::AuthUserGrantRoleRequest {
    pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }
}
