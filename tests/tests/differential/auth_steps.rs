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

/// What roles may be granted: for each key one range only.
const RANGES: [(&[u8], &[u8]); 5] =
    [(b"a", b""), (b"ab", b"\0"), (b"b", b"c"), (b"c", b""), (b"\xff", b"a")];

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

impl Step {
    /// What nodes have to hear of before they say the same.
    pub(crate) fn changes_users(&self) -> bool {
        use Step::*;
        matches!(
            self,
            Enable
                | Disable
                | UserAdd(_)
                | UserDelete(_)
                | ChangePassword(_)
                | GrantRole(_)
                | RevokeRole(_)
                | RoleAdd(_)
                | RoleDelete(_)
                | Grant(_)
                | Revoke(_)
        )
    }

    /// The same with a password, if it gives an empty one.
    pub(crate) fn with_password(&self) -> Option<Self> {
        match self.clone() {
            Self::UserAdd(add) if add.password.is_empty() => {
                let password = add.name.clone();
                Some(Self::UserAdd(pb::AuthUserAddRequest { password, ..add }))
            }
            Self::ChangePassword(change) if change.password.is_empty() => {
                let password = change.name.clone();
                Some(Self::ChangePassword(pb::AuthUserChangePasswordRequest { password, ..change }))
            }
            _ => None,
        }
    }
}

/// Who asks, and what.
type By = (Option<&'static str>, Step);

/// What makes the rest worth trying: root, users who count, and something that each may.
pub(crate) fn first_steps(rng: &mut Rng, left_out: &mut Vec<Known>) -> Vec<By> {
    let mut steps = vec![Step::UserAdd(user_add(ROOT, ROOT))];
    steps.push(Step::RoleAdd(pb::AuthRoleAddRequest { name: ROOT.into() }));
    steps.push(Step::GrantRole(grant_role(ROOT, ROOT)));
    for (user, role) in USERS.iter().zip(ROLES).skip(1) {
        steps.push(Step::UserAdd(user_add(user, user)));
        steps.push(Step::RoleAdd(pb::AuthRoleAddRequest { name: role.into() }));
        steps.push(Step::GrantRole(grant_role(user, role)));
        let range = permitted(rng, left_out);
        steps.push(grant(role, rng.i32(0..3), range));
    }
    steps.push(Step::Stranger(range("a", "")));
    steps.push(Step::Enable);
    steps.extend(USERS.iter().map(|user| Step::Authenticate(login(user, user))));
    steps.into_iter().map(|step| (Some(ROOT), step)).collect()
}

/// What meets the rows of the table that chance might not meet in a few sequences.
pub(crate) fn rare_steps(compacted: i64) -> Vec<By> {
    let (root, u1, u2) = (Some(ROOT), Some("u1"), Some("u2"));
    let put = |key: &'static str, prev_kv| {
        let put = pb::PutRequest { key: key.into(), prev_kv, ..Default::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    };
    let read = RequestOp { request: Some(request_op::Request::RequestRange(range("b", ""))) };
    let txn = |success| Step::Txn(pb::TxnRequest { success, ..Default::default() });
    let options = Some(UserAddOptions { no_password: true });
    let unnamed = pb::AuthUserAddRequest { options, ..user_add("u3", "u3") };
    vec![
        (None, txn(vec![])),
        (u1, Step::NestedRead(range("a", ""))),
        (u1, Step::Compact(compacted)),
        (root, grant("r1", 1, ("a".into(), "".into()))),
        (u1, txn(vec![read, put("a", false)])),
        (u1, txn(vec![put("a", true)])),
        (u2, txn(vec![put("a", false), put("a", false)])),
        (root, Step::ChangePassword(change_password("u2", "u2"))),
        (u2, txn(vec![put("a", false), put("a", false)])),
        (root, grant("r1", 0, ("c".into(), "".into()))),
        (u1, Step::Range(range("c", "a"))),
        (root, Step::UserDelete(pb::AuthUserDeleteRequest { name: "u3".into() })),
        (root, Step::UserAdd(unnamed)),
        (None, Step::Authenticate(login("u3", "u3"))),
        (root, Step::UserDelete(pb::AuthUserDeleteRequest { name: "u3".into() })),
        (root, Step::UserAdd(user_add("u3", ""))),
    ]
}

fn range(key: &'static str, range_end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

pub(crate) fn caller(rng: &mut Rng) -> Option<&'static str> {
    match rng.u32(..10) {
        0 => None,
        1..4 => Some(ROOT),
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
            let no_password = rng.u32(..4) == 0;
            let options = Some(UserAddOptions { no_password });
            let password = if !no_password && rng.u32(..4) == 0 { "" } else { user };
            Step::UserAdd(pb::AuthUserAddRequest { options, ..user_add(user, password) })
        }
        17..19 => Step::UserDelete(pb::AuthUserDeleteRequest { name: named(other) }),
        19..23 => Step::UserGet(pb::AuthUserGetRequest { name: named(user) }),
        23..25 => Step::UserList,
        25..27 => {
            let password = if rng.u32(..4) == 0 { "" } else { other };
            Step::ChangePassword(change_password(other, password))
        }
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
            let range = permitted(rng, left_out);
            grant(role, rng.i32(0..3), range)
        }
        53..57 => {
            let (key, range_end) = permitted(rng, left_out);
            Step::Revoke(pb::AuthRoleRevokePermissionRequest { role: named(role), key, range_end })
        }
        57..60 => Step::NestedRead(pb::RangeRequest { key, range_end, ..Default::default() }),
        60 => Step::Compact(compacted),
        61 => Step::Stranger(pb::RangeRequest { key, range_end, ..Default::default() }),
        62..70 => Step::Range(pb::RangeRequest { key, range_end, ..Default::default() }),
        70..80 => Step::Put(put(rng)),
        80..85 => Step::Delete(delete(rng)),
        _ => Step::Txn(txn(rng)),
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

fn permitted(rng: &mut Rng, left_out: &mut Vec<Known>) -> (Bytes, Bytes) {
    let (key, range_end) = rng.choice(RANGES).expect("there are ranges");
    left_out.extend((rng.choice(ENDS) != Some(range_end)).then_some(Known::RangesOfOneKey));
    (Bytes::from_static(key), Bytes::from_static(range_end))
}

fn grant(role: &str, perm_type: i32, (key, range_end): (Bytes, Bytes)) -> Step {
    let perm = Some(Permission { perm_type, key, range_end });
    Step::Grant(pb::AuthRoleGrantPermissionRequest { name: role.into(), perm })
}

fn put(rng: &mut Rng) -> pb::PutRequest {
    let (key, _) = key_range(rng);
    pb::PutRequest { key, value: "v".into(), prev_kv: rng.bool(), ..Default::default() }
}

fn delete(rng: &mut Rng) -> pb::DeleteRangeRequest {
    let (key, range_end) = key_range(rng);
    pb::DeleteRangeRequest { key, range_end, prev_kv: rng.bool() }
}

fn txn(rng: &mut Rng) -> pb::TxnRequest {
    let read = |rng: &mut Rng| {
        let (key, range_end) = key_range_with_keys(rng);
        let range = pb::RangeRequest { key, range_end, ..Default::default() };
        RequestOp { request: Some(request_op::Request::RequestRange(range)) }
    };
    let write = |rng: &mut Rng| {
        let request = match rng.bool() {
            true => request_op::Request::RequestPut(put(rng)),
            false => {
                let (key, range_end) = key_range_with_keys(rng);
                let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: rng.bool() };
                request_op::Request::RequestDeleteRange(delete)
            }
        };
        RequestOp { request: Some(request) }
    };
    let branch = |rng: &mut Rng| {
        let mut ops = vec![];
        if rng.bool() {
            ops.push(read(rng));
        }
        let writes = rng.choice([0, 1, 1, 2]).expect("there are counts");
        ops.extend((0..writes).map(|_| write(rng)));
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

fn change_password(name: &str, password: &str) -> pb::AuthUserChangePasswordRequest {
    let (name, password) = (name.into(), password.into());
    pb::AuthUserChangePasswordRequest { name, password, ..Default::default() }
}

fn grant_role(user: &str, role: &str) -> pb::AuthUserGrantRoleRequest {
    pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }
}
