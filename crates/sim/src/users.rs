//! Users: changes of who may what, and puts by users whom that concerns.
//!
//! All else is asked by nodes on their own behalf, which may everything, so that other oracles see what they always
//! see. What users may is decided where their commands are applied: there every replica has to decide alike, whatever
//! changed meanwhile, was restored from a snapshot, or is read again after a crash.

use bytes::Bytes;
use quorate_types::auth::command::{
    Body, Disable, Enable, Named, RolePermission, UserAdd, UserRole,
};
use quorate_types::auth::{AuthCommand, Caller, Permission, PermissionKind};
use quorate_types::kv::{Command, Put, command};

use crate::client::{key_number, key_of};

/// Keys that users put. They are none of those whose history is judged key by key: a put of theirs may be refused.
const GUARDED_KEYS: std::ops::Range<u32> = 60..63;

const USERS: [&str; 3] = ["root", "u1", "u2"];
const ROLES: [&str; 3] = ["root", "r1", "r2"];

/// Later than any auth revision of a run.
const LATEST: i64 = i64::MAX;

/// What is done.
#[derive(Clone, Debug)]
pub(crate) enum Doing {
    /// A change of users or roles.
    Change(AuthCommand),
    /// A put by a user as known at an auth revision, or by nobody.
    Put { key: u32, value: u64, caller: Option<Caller> },
}

impl Doing {
    /// Draws something. Users count most of the time; some change that often, so that much else is refused.
    pub(crate) fn draw(random: &mut fastrand::Rng, next_value: impl FnOnce() -> u64) -> Self {
        let user = random.choice(USERS).unwrap_or_default().to_owned();
        let role = random.choice(ROLES).unwrap_or_default().to_owned();
        let body = match random.u8(..32) {
            0..2 => Body::Enable(Enable { secret: next_value().to_be_bytes().to_vec().into() }),
            2 => Body::Disable(Disable {}),
            3..6 => Body::UserAdd(UserAdd {
                name: user,
                password_hash: String::new(),
                no_password: true,
            }),
            6 => Body::UserDelete(Named { name: user }),
            7..10 => Body::UserGrantRole(UserRole {
                role: if user == "root" { user.clone() } else { role },
                user,
            }),
            10 => Body::UserRevokeRole(UserRole { user, role }),
            11..13 => Body::RoleAdd(Named { name: role }),
            13 => Body::RoleDelete(Named { name: role }),
            14..17 => Body::RoleGrantPermission(permission(random, role)),
            17 => Body::RoleRevokePermission(permission(random, role)),
            _ => {
                let auth_revision = if random.u8(..4) == 0 { random.i64(1..40) } else { LATEST };
                let caller = Caller::user(user, auth_revision);
                let caller = (random.u8(..8) > 0).then_some(caller);
                return Self::Put { key: random.u32(GUARDED_KEYS), value: next_value(), caller };
            }
        };
        Self::Change(AuthCommand { body: Some(body) })
    }

    /// True when the state is larger afterwards than it may be while there is no room.
    pub(crate) const fn grows(&self) -> bool {
        matches!(self, Self::Put { .. })
    }

    pub(crate) fn command(&self, value_of: impl FnOnce(u64) -> Bytes) -> Command {
        let (body, caller) = match self {
            Self::Change(change) => (command::Body::Auth(change.clone()), Some(Caller::system())),
            Self::Put { key, value, caller } => {
                let put = Put { key: key_of(*key), value: value_of(*value), ..Put::default() };
                (command::Body::Put(put), caller.clone())
            }
        };
        Command { body: Some(body), caller, ..Command::default() }
    }
}

/// True for a put by a user, or by nobody where users may count.
pub(crate) fn may_be_refused(put: &Put) -> bool {
    key_number(&put.key).is_some_and(|key| GUARDED_KEYS.contains(&key))
}

/// To write one of the guarded keys, or all from one on.
fn permission(random: &mut fastrand::Rng, role: String) -> RolePermission {
    let range_end = if random.bool() { Bytes::new() } else { Bytes::from_static(b"\0") };
    let permission = Permission {
        kind: PermissionKind::Write as i32,
        key: key_of(random.u32(GUARDED_KEYS)),
        range_end,
    };
    RolePermission { role, permission: Some(permission) }
}
