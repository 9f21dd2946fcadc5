//! What etcd keeps of leases, users and roles in its database file, and what that is here.
//!
//! ```text
//! bucket lease:      id u64 be                  -> { id 1, TTL 2, remaining 3 }
//! bucket auth:       authEnabled, authRevision  -> a byte, 0 or 1; u64 be
//! bucket authUsers:  name                       -> { name 1, password 2, roles 3, options 4 { no password 1 } }
//! bucket authRoles:  name                       -> { name 1, permissions 2 { kind 1, key 2, range end 3 } }
//! ```
//!
//! The password is its hash, as it is kept: etcd's own are bcrypt's, which we compare with too; ours are argon2id's,
//! and etcd takes no password for those.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use prost::Message;
use quorate_types::auth::message::{Head, Rows};
use quorate_types::auth::{Directory, HashForm, Permission, PermissionKind, Role, User};

pub(crate) const LEASES: &str = "lease";
pub(crate) const AUTH: &str = "auth";
pub(crate) const USERS: &str = "authUsers";
pub(crate) const ROLES: &str = "authRoles";

const ENABLED: &[u8] = b"authEnabled";
const REVISION: &[u8] = b"authRevision";

/// A pair of a bucket.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// A lease, as etcd stores it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct StoredLease {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
    #[prost(int64, tag = "2")]
    pub(crate) ttl_s: i64,
    /// 0 unless leases are checkpointed.
    #[prost(int64, tag = "3")]
    pub(crate) remaining_ttl_s: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
struct StoredUser {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    password: Bytes,
    #[prost(string, repeated, tag = "3")]
    roles: Vec<String>,
    #[prost(message, optional, tag = "4")]
    options: Option<UserOptions>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct UserOptions {
    #[prost(bool, tag = "1")]
    no_password: bool,
}

impl fmt::Debug for StoredUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// As our own role, but that etcd's writers do not keep permissions unique.
type StoredRole = Role;

/// The pair of a lease.
pub(crate) fn lease(id: i64, ttl_s: i64) -> Pair {
    let stored = StoredLease { id, ttl_s, remaining_ttl_s: 0 };
    (id.to_be_bytes().to_vec(), stored.encode_to_vec())
}

/// The buckets of users and roles.
pub(crate) fn buckets(directory: &Directory) -> [(&'static str, Vec<Pair>); 3] {
    let Rows { users, roles, .. } = directory.rows();
    let auth = vec![
        (ENABLED.to_vec(), vec![u8::from(directory.enabled())]),
        (REVISION.to_vec(), directory.revision().to_be_bytes().to_vec()),
    ];
    let user = |user: User| {
        let stored = StoredUser {
            name: user.name.clone(),
            password: user.password_hash.into(),
            roles: user.roles,
            options: Some(UserOptions { no_password: user.no_password }),
        };
        (user.name.into_bytes(), stored.encode_to_vec())
    };
    let role = |role: Role| (role.name.clone().into_bytes(), role.encode_to_vec());
    let (users, roles) = (users.into_iter().map(user), roles.into_iter().map(role));
    [(AUTH, auth), (USERS, users.collect()), (ROLES, roles.collect())]
}

/// What was read of the buckets of users and roles.
#[derive(Default)]
pub(crate) struct Moved {
    enabled: bool,
    revision: i64,
    users: BTreeMap<String, StoredUser>,
    roles: BTreeMap<String, StoredRole>,
}

impl Moved {
    /// Takes a pair of `bucket`.
    ///
    /// # Errors
    /// What it is not.
    pub(crate) fn take(&mut self, bucket: &str, key: &[u8], value: &[u8]) -> Result<(), String> {
        let wrong = |what: &str| format!("{what} {}", key.escape_ascii());
        match (bucket, key) {
            (AUTH, ENABLED) => self.enabled = value == [1],
            (AUTH, REVISION) => {
                let revision = value.try_into().map(i64::from_be_bytes);
                let revision = revision.ok().filter(|revision| *revision >= 0);
                self.revision = revision.ok_or_else(|| wrong("auth revision"))?;
            }
            (USERS, _) => {
                let user = StoredUser::decode(value).map_err(|_| wrong("user"))?;
                if user.name.is_empty() || user.name.as_bytes() != key {
                    return Err(wrong("user"));
                }
                self.users.insert(user.name.clone(), user);
            }
            (ROLES, _) => {
                let role = StoredRole::decode(value).map_err(|_| wrong("role"))?;
                if role.name.is_empty() || role.name.as_bytes() != key {
                    return Err(wrong("role"));
                }
                self.roles.insert(role.name.clone(), role);
            }
            _ => {}
        }
        Ok(())
    }

    /// The directory, and how many users have a password that cannot be compared with here: they cannot log in
    /// until root gives them another one.
    ///
    /// It has no secret of tokens: everybody has to log in anew.
    pub(crate) fn directory(self) -> (Directory, u64) {
        let fresh = Directory::default();
        let revision = self.revision.max(fresh.revision());
        let head = Head { enabled: self.enabled, revision, ..fresh.head().clone() };
        let mut locked = 0;
        let mut user = |stored: StoredUser| {
            let no_password = stored.options.is_some_and(|options| options.no_password);
            let hash = String::from_utf8(stored.password.to_vec()).ok();
            let hash = hash.filter(|hash| HashForm::of(hash).is_some() && !no_password);
            locked += u64::from(hash.is_none() && !no_password);
            User {
                name: stored.name,
                password_hash: hash.unwrap_or_default(),
                no_password,
                roles: stored.roles.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
                known_since: revision,
            }
        };
        let users = self.users.into_values().map(&mut user).collect();
        let role = |stored: StoredRole| Role {
            permissions: unique(stored.permissions),
            name: stored.name,
        };
        let roles = self.roles.into_values().map(role).collect();
        let directory = Directory::from_rows(Rows { head: Some(head), users, roles });
        (directory.expect("it is of the format of a fresh one"), locked)
    }
}

/// Permissions by key and end. What stands there twice allows what either does.
fn unique(permissions: Vec<Permission>) -> Vec<Permission> {
    let mut by_range: BTreeMap<(Bytes, Bytes), i32> = BTreeMap::new();
    for Permission { kind, key, range_end } in permissions {
        let known = by_range.entry((key, range_end)).or_insert(kind);
        if *known != kind {
            *known = PermissionKind::ReadWrite as i32;
        }
    }
    let permission = |((key, range_end), kind)| Permission { kind, key, range_end };
    by_range.into_iter().map(permission).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(kind: PermissionKind, key: &'static str) -> Permission {
        Permission { kind: kind as i32, key: key.into(), range_end: Bytes::new() }
    }

    fn moved(pairs: &[(&str, &[u8], Vec<u8>)]) -> Result<Moved, String> {
        let mut moved = Moved::default();
        pairs.iter().try_for_each(|(bucket, key, value)| moved.take(bucket, key, value))?;
        Ok(moved)
    }

    #[test]
    fn a_permission_that_stands_there_twice_allows_what_either_does() {
        use PermissionKind::{Read, ReadWrite, Write};
        let permissions = vec![
            permission(Write, "b"),
            permission(Read, "a"),
            permission(Write, "a"),
            permission(Read, "c"),
            permission(Read, "c"),
        ];
        let role = Role { name: "r".into(), permissions };
        let (directory, _) = moved(&[(ROLES, b"r", role.encode_to_vec())]).unwrap().directory();
        let expected = [permission(ReadWrite, "a"), permission(Write, "b"), permission(Read, "c")];
        assert_eq!(directory.role("r").unwrap().permissions, expected);
    }

    #[test]
    fn users_come_with_hashes_that_can_be_compared_with_and_locked_with_others() {
        let bcrypt = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";
        let user = |name: &str, password: &str, no_password| {
            let stored = StoredUser {
                name: name.into(),
                password: password.to_owned().into(),
                roles: vec!["z".into(), "a".into(), "z".into()],
                options: Some(UserOptions { no_password }),
            };
            stored.encode_to_vec()
        };
        let (directory, locked) = moved(&[
            (AUTH, ENABLED, vec![1]),
            (AUTH, REVISION, 9u64.to_be_bytes().to_vec()),
            (USERS, b"a", user("a", bcrypt, false)),
            (USERS, b"b", user("b", "plain", false)),
            (USERS, b"c", user("c", bcrypt, true)),
        ])
        .unwrap()
        .directory();
        assert_eq!((locked, directory.enabled(), directory.revision()), (1, true, 9));
        assert!(directory.secret().is_empty());
        let hash = |name: &str| directory.user(name).unwrap().password_hash.as_str();
        assert_eq!([hash("a"), hash("b"), hash("c")], [bcrypt, "", ""]);
        let user = directory.user("c").unwrap();
        assert_eq!((user.no_password, user.known_since), (true, 9));
        assert_eq!(user.roles, ["a", "z"]);
    }

    #[test]
    fn what_etcd_does_not_write_is_refused_by_its_name() {
        for (bucket, key, value) in [
            (AUTH, REVISION, vec![1]),
            (AUTH, REVISION, vec![0xff; 8]),
            (USERS, b"u", b"\xff".to_vec()),
            (USERS, b"u", StoredUser { name: "v".into(), ..StoredUser::default() }.encode_to_vec()),
            (USERS, b"", StoredUser::default().encode_to_vec()),
            (ROLES, b"r", Role::default().encode_to_vec()),
        ] {
            assert!(moved(&[(bucket, key, value)]).is_err(), "{bucket} {key:?}");
        }
    }
}
