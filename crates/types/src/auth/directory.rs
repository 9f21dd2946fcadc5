//! Users and roles as a value, and who may what.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::grants::Grants;
use super::message::{
    AuthOutcome, AuthQuery, Caller, Head, Permission, Role, Rows, User, outcome, query,
};
use super::needs::Needs;
use crate::KeyRange;
use crate::kv::KvError;

/// The user that must exist before users count, and the role that may everything.
pub const ROOT: &str = "root";

/// The format of rows that this build writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 1;

/// The auth revision before the first change, as etcd's.
const FRESH: i64 = 1;

/// Users, roles, whether they count, and the auth revision.
///
/// Invariants: `grants` has an entry for each user, made of its roles that exist; names are sorted and
/// unique within a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    pub(super) head: Head,
    pub(super) users: BTreeMap<String, User>,
    pub(super) roles: BTreeMap<String, Role>,
    pub(super) grants: BTreeMap<String, Arc<Grants>>,
}

impl Default for Directory {
    fn default() -> Self {
        let head = Head { format: FORMAT, enabled: false, revision: FRESH, secret: Bytes::new() };
        Self { head, users: BTreeMap::new(), roles: BTreeMap::new(), grants: BTreeMap::new() }
    }
}

/// Who somebody turned out to be.
enum Who<'d> {
    /// Anybody, since users do not count; or a node.
    Unchecked,
    /// A user.
    User(&'d User),
}

impl Directory {
    /// The directory of stored rows.
    ///
    /// # Errors
    /// The format of the rows when this build cannot read it.
    pub fn from_rows(rows: Rows) -> Result<Self, u32> {
        let head = rows.head.unwrap_or_else(|| Self::default().head);
        if head.format != FORMAT {
            return Err(head.format);
        }
        let by_name = |user: User| (user.name.clone(), user);
        let users: BTreeMap<_, _> = rows.users.into_iter().map(by_name).collect();
        let roles = rows.roles.into_iter().map(|role| (role.name.clone(), role)).collect();
        let mut directory = Self { head, users, roles, grants: BTreeMap::new() };
        let names: Vec<_> = directory.users.keys().cloned().collect();
        names.iter().for_each(|name| directory.merge(name));
        Ok(directory)
    }

    /// All rows.
    #[must_use]
    pub fn rows(&self) -> Rows {
        Rows {
            head: Some(self.head.clone()),
            users: self.users.values().cloned().collect(),
            roles: self.roles.values().cloned().collect(),
        }
    }

    /// True when users count.
    #[must_use]
    pub const fn enabled(&self) -> bool {
        self.head.enabled
    }

    /// The auth revision; at least 1.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.head.revision
    }

    /// The row of the whole.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// What tokens are made with; empty before users have counted for the first time.
    #[must_use]
    pub const fn secret(&self) -> &Bytes {
        &self.head.secret
    }

    /// A user.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// A role.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    /// Whether somebody may do what needs `needs`; in etcd's order, since it decides which error is seen.
    ///
    /// # Errors
    /// [`KvError::UserEmpty`] for nobody, [`KvError::AuthOldRevision`] for a user as known before the last
    /// change, [`KvError::PermissionDenied`].
    pub fn check(&self, caller: Option<&Caller>, needs: &Needs) -> Result<(), KvError> {
        if !self.head.enabled {
            return Ok(());
        }
        match needs {
            Needs::Nothing | Needs::Itself => Ok(()),
            Needs::User => self.who(caller).map(|_| ()),
            Needs::Root => self.check_root(caller),
            Needs::Keys { read, write } => self.check_keys(caller, read, write),
        }
    }

    /// Whether somebody may revoke a lease, or attach another key to it, which takes keys from others when it
    /// ends: all keys that are attached already must be theirs to write. `attached` are those keys.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_lease<'k>(
        &self,
        caller: Option<&Caller>,
        attached: impl IntoIterator<Item = &'k Bytes>,
    ) -> Result<(), KvError> {
        let write = attached.into_iter().map(KeyRange::single).collect();
        self.check(caller, &Needs::Keys { read: Vec::new(), write })
    }

    /// Whether somebody may watch a range.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_watch(&self, caller: Option<&Caller>, range: &KeyRange) -> Result<(), KvError> {
        self.check(caller, &Needs::Keys { read: vec![range.clone()], write: Vec::new() })
    }

    /// Answers a question, if the caller may ask it.
    ///
    /// # Errors
    /// As [`check`](Self::check); [`KvError::UserNotFound`], [`KvError::RoleNotFound`]; for one without a
    /// body [`KvError::Malformed`].
    pub fn answer(
        &self,
        caller: Option<&Caller>,
        question: &AuthQuery,
    ) -> Result<AuthOutcome, KvError> {
        let names = |names: Vec<String>| outcome::Body::Names(outcome::Names { names });
        let body = match question.body.as_ref().ok_or(KvError::Malformed)? {
            query::Body::Status(_) => {
                self.check_root(caller)?;
                let (enabled, auth_revision) = (self.head.enabled, self.head.revision);
                outcome::Body::Status(outcome::Status { enabled, auth_revision })
            }
            query::Body::Users(_) => {
                self.check_root(caller)?;
                names(self.users.keys().cloned().collect())
            }
            query::Body::Roles(_) => {
                self.check_root(caller)?;
                names(self.roles.keys().cloned().collect())
            }
            query::Body::User(asked) => {
                // Everybody may look at themselves.
                let own =
                    matches!(self.who(caller), Ok(Who::User(user)) if user.name == asked.name);
                if !own {
                    self.check_root(caller)?;
                }
                let user = self.user(&asked.name).ok_or(KvError::UserNotFound)?;
                names(user.roles.clone())
            }
            query::Body::Role(asked) => {
                let own = matches!(self.who(caller), Ok(Who::User(user)) if has(user, &asked.name));
                if !own {
                    self.check_root(caller)?;
                }
                let role = self.role(&asked.name).ok_or(KvError::RoleNotFound)?;
                let permissions = role.permissions.clone();
                outcome::Body::Permissions(outcome::Permissions { permissions })
            }
            query::Body::Directory(_) => {
                // Hashes are for nodes, whether users count or not.
                if !caller.is_some_and(|caller| caller.system) {
                    return Err(KvError::PermissionDenied);
                }
                outcome::Body::Rows(self.rows())
            }
        };
        Ok(AuthOutcome { body: Some(body) })
    }

    fn check_root(&self, caller: Option<&Caller>) -> Result<(), KvError> {
        match self.who(caller)? {
            Who::Unchecked => Ok(()),
            Who::User(user) if has(user, ROOT) => Ok(()),
            Who::User(_) => Err(KvError::PermissionDenied),
        }
    }

    fn check_keys(
        &self,
        caller: Option<&Caller>,
        read: &[KeyRange],
        write: &[KeyRange],
    ) -> Result<(), KvError> {
        if let Some(caller) = caller
            && is_user(caller)
            && caller.auth_revision < self.head.revision
        {
            return Err(KvError::AuthOldRevision);
        }
        let user = match self.who(caller)? {
            Who::Unchecked => return Ok(()),
            Who::User(user) if has(user, ROOT) => return Ok(()),
            Who::User(user) => user,
        };
        let allowed = self.grants.get(&user.name).is_some_and(|grants| {
            read.iter().all(|range| grants.may_read(range))
                && write.iter().all(|range| grants.may_write(range))
        });
        if allowed { Ok(()) } else { Err(KvError::PermissionDenied) }
    }

    fn who(&self, caller: Option<&Caller>) -> Result<Who<'_>, KvError> {
        if !self.head.enabled {
            return Ok(Who::Unchecked);
        }
        let caller = caller.ok_or(KvError::UserEmpty)?;
        if caller.system {
            return Ok(Who::Unchecked);
        }
        if !is_user(caller) {
            return Err(KvError::UserEmpty);
        }
        let user = self.users.get(&caller.user).ok_or(KvError::PermissionDenied)?;
        if caller.auth_revision < user.known_since {
            // A user of the same name that was deleted, say.
            return Err(KvError::AuthOldRevision);
        }
        Ok(Who::User(user))
    }

    /// Makes what `name` may anew.
    pub(super) fn merge(&mut self, name: &str) {
        let Some(user) = self.users.get(name) else {
            self.grants.remove(name);
            return;
        };
        let roles = user.roles.iter().filter_map(|role| self.roles.get(role));
        let permissions: Vec<&Permission> = roles.flat_map(|role| &role.permissions).collect();
        self.grants.insert(name.to_owned(), Arc::new(Grants::of(permissions)));
    }
}

/// True when it names a user.
fn is_user(caller: &Caller) -> bool {
    !caller.system && !caller.user.is_empty() && caller.auth_revision > 0
}

pub(super) fn has(user: &User, role: &str) -> bool {
    user.roles.iter().any(|name| name == role)
}
