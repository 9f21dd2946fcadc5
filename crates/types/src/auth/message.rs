//! Commands, queries and outcomes about users and roles, and the rows that are stored of them.
//!
//! Hashes of passwords come ready-made in the commands: applying them is the same everywhere. What holds a
//! hash or the secret of tokens shows itself without it.

use std::fmt;

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

/// Who asks: carried by every command and query of a client while users count.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Caller {
    /// The user; empty for the system.
    #[prost(string, tag = "1")]
    pub user: String,
    /// The auth revision that the user was known at; never 0 for a user.
    #[prost(int64, tag = "2")]
    pub auth_revision: i64,
    /// A node asks on its own behalf (an expired lease, a health check) and may everything. Only nodes can
    /// say this: clients' requests have no such field.
    #[prost(bool, tag = "3")]
    pub system: bool,
}

impl Caller {
    /// A node on its own behalf.
    #[must_use]
    pub const fn system() -> Self {
        Self { user: String::new(), auth_revision: 0, system: true }
    }

    /// A user as known at an auth revision.
    #[must_use]
    pub fn user(name: impl Into<String>, auth_revision: i64) -> Self {
        Self { user: name.into(), auth_revision, system: false }
    }
}

/// A change of users or roles.
#[derive(Clone, PartialEq, Message)]
pub struct AuthCommand {
    /// What to do.
    #[prost(oneof = "command::Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub body: Option<command::Body>,
}

/// The kinds of [`AuthCommand`].
pub mod command {
    use super::{Bytes, Message, Oneof, Permission, fmt};

    /// The kinds of a change.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Body {
        /// From now on users count.
        #[prost(message, tag = "1")]
        Enable(Enable),
        /// From now on they do not.
        #[prost(message, tag = "2")]
        Disable(Disable),
        /// A new user.
        #[prost(message, tag = "3")]
        UserAdd(UserAdd),
        /// A user goes.
        #[prost(message, tag = "4")]
        UserDelete(Named),
        /// A user's new password.
        #[prost(message, tag = "5")]
        UserChangePassword(UserChangePassword),
        /// A user gets a role.
        #[prost(message, tag = "6")]
        UserGrantRole(UserRole),
        /// A user loses a role.
        #[prost(message, tag = "7")]
        UserRevokeRole(UserRole),
        /// A new role.
        #[prost(message, tag = "8")]
        RoleAdd(Named),
        /// A role goes, from all users too.
        #[prost(message, tag = "9")]
        RoleDelete(Named),
        /// A role may more, or otherwise.
        #[prost(message, tag = "10")]
        RoleGrantPermission(RolePermission),
        /// A role may less.
        #[prost(message, tag = "11")]
        RoleRevokePermission(RolePermission),
    }

    /// Lets users count.
    #[derive(Clone, PartialEq, Eq, Message)]
    #[prost(skip_debug)]
    pub struct Enable {
        /// What tokens are made with until the next time: random bytes.
        #[prost(bytes = "bytes", tag = "1")]
        pub secret: Bytes,
    }

    /// Lets nobody count.
    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub struct Disable {}

    /// A user or role by name.
    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Named {
        /// The name.
        #[prost(string, tag = "1")]
        pub name: String,
    }

    /// A new user.
    #[derive(Clone, PartialEq, Eq, Message)]
    #[prost(skip_debug)]
    pub struct UserAdd {
        /// The name.
        #[prost(string, tag = "1")]
        pub name: String,
        /// The password's hash in the PHC format; empty without a password.
        #[prost(string, tag = "2")]
        pub password_hash: String,
        /// The user can be known by a certificate only.
        #[prost(bool, tag = "3")]
        pub no_password: bool,
    }

    /// A user's new password.
    #[derive(Clone, PartialEq, Eq, Message)]
    #[prost(skip_debug)]
    pub struct UserChangePassword {
        /// The user.
        #[prost(string, tag = "1")]
        pub name: String,
        /// The password's hash in the PHC format.
        #[prost(string, tag = "2")]
        pub password_hash: String,
    }

    /// A user and a role.
    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct UserRole {
        /// The user.
        #[prost(string, tag = "1")]
        pub user: String,
        /// The role.
        #[prost(string, tag = "2")]
        pub role: String,
    }

    /// A role and a permission.
    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct RolePermission {
        /// The role.
        #[prost(string, tag = "1")]
        pub role: String,
        /// The permission. To revoke one its kind does not matter.
        #[prost(message, optional, tag = "2")]
        pub permission: Option<Permission>,
    }

    impl fmt::Debug for Enable {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Enable").finish_non_exhaustive()
        }
    }

    impl fmt::Debug for UserAdd {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("UserAdd").field("name", &self.name).finish_non_exhaustive()
        }
    }

    impl fmt::Debug for UserChangePassword {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("UserChangePassword").field("name", &self.name).finish_non_exhaustive()
        }
    }
}

/// A question about users or roles.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AuthQuery {
    /// What is asked.
    #[prost(oneof = "query::Body", tags = "1, 2, 3, 4, 5, 6")]
    pub body: Option<query::Body>,
}

/// The kinds of [`AuthQuery`].
pub mod query {
    use super::{Message, Oneof, command::Named};

    /// The kinds of a question.
    #[derive(Clone, PartialEq, Eq, Oneof)]
    pub enum Body {
        /// Whether users count, and the auth revision.
        #[prost(message, tag = "1")]
        Status(Everything),
        /// A user's roles.
        #[prost(message, tag = "2")]
        User(Named),
        /// The users' names.
        #[prost(message, tag = "3")]
        Users(Everything),
        /// A role's permissions.
        #[prost(message, tag = "4")]
        Role(Named),
        /// The roles' names.
        #[prost(message, tag = "5")]
        Roles(Everything),
        /// All rows: for nodes only, since the hashes of passwords are among them.
        #[prost(message, tag = "6")]
        Directory(Everything),
    }

    /// Asks for all that there is.
    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub struct Everything {}
}

/// What came of an [`AuthCommand`] or [`AuthQuery`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AuthOutcome {
    /// What came of it.
    #[prost(oneof = "outcome::Body", tags = "1, 2, 3, 4, 5")]
    pub body: Option<outcome::Body>,
}

/// The kinds of [`AuthOutcome`].
pub mod outcome {
    use super::{Message, Oneof, Permission, Rows};

    /// The kinds of an outcome.
    #[derive(Clone, PartialEq, Eq, Oneof)]
    pub enum Body {
        /// A command was carried out.
        #[prost(message, tag = "1")]
        Done(Done),
        /// Whether users count.
        #[prost(message, tag = "2")]
        Status(Status),
        /// Names: of a user's roles, of all users, of all roles; in ascending order.
        #[prost(message, tag = "3")]
        Names(Names),
        /// A role's permissions.
        #[prost(message, tag = "4")]
        Permissions(Permissions),
        /// All rows.
        #[prost(message, tag = "5")]
        Rows(Rows),
    }

    /// A command was carried out.
    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub struct Done {}

    /// Whether users count.
    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub struct Status {
        /// They do.
        #[prost(bool, tag = "1")]
        pub enabled: bool,
        /// The auth revision.
        #[prost(int64, tag = "2")]
        pub auth_revision: i64,
    }

    /// Names, in ascending order.
    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Names {
        /// The names.
        #[prost(string, repeated, tag = "1")]
        pub names: Vec<String>,
    }

    /// Permissions, by key.
    #[derive(Clone, PartialEq, Eq, Message)]
    pub struct Permissions {
        /// The permissions.
        #[prost(message, repeated, tag = "1")]
        pub permissions: Vec<Permission>,
    }
}

/// What is stored of the whole, in one row.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct Head {
    /// The format of all rows about users; this build writes and reads 1.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Users count.
    #[prost(bool, tag = "2")]
    pub enabled: bool,
    /// The auth revision.
    #[prost(int64, tag = "3")]
    pub revision: i64,
    /// What tokens are made with.
    #[prost(bytes = "bytes", tag = "4")]
    pub secret: Bytes,
}

/// A user, in one row.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct User {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The password's hash in the PHC format; empty without a password.
    #[prost(string, tag = "2")]
    pub password_hash: String,
    /// The user can be known by a certificate only.
    #[prost(bool, tag = "3")]
    pub no_password: bool,
    /// The roles, in ascending order.
    #[prost(string, repeated, tag = "4")]
    pub roles: Vec<String>,
    /// Whoever was known before this auth revision must say the password again: the user was made, or got
    /// another password then.
    #[prost(int64, tag = "5")]
    pub known_since: i64,
}

/// A role, in one row.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Role {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The permissions, by key and end.
    #[prost(message, repeated, tag = "2")]
    pub permissions: Vec<Permission>,
}

/// What a role may do with a range of keys.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Permission {
    /// What it may do.
    #[prost(enumeration = "PermissionKind", tag = "1")]
    pub kind: i32,
    /// First key.
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// End of the range in etcd's form.
    #[prost(bytes = "bytes", tag = "3")]
    pub range_end: Bytes,
}

/// What a permission allows; numbered as etcd's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub enum PermissionKind {
    /// To read.
    Read = 0,
    /// To write.
    Write = 1,
    /// Both.
    ReadWrite = 2,
}

/// All rows about users and roles.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct Rows {
    /// The head; none before the first command.
    #[prost(message, optional, tag = "1")]
    pub head: Option<Head>,
    /// The users.
    #[prost(message, repeated, tag = "2")]
    pub users: Vec<User>,
    /// The roles.
    #[prost(message, repeated, tag = "3")]
    pub roles: Vec<Role>,
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("enabled", &self.enabled)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("roles", &self.roles)
            .field("known_since", &self.known_since)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("users", &self.users.len())
            .field("roles", &self.roles.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_a_secret_does_not_show_it() {
        let canary = "canary-5f1c";
        let hash = || canary.to_owned();
        let user = User { name: "u".into(), password_hash: hash(), ..User::default() };
        let head = Head { secret: canary.into(), ..Head::default() };
        let rows = Rows { head: Some(head.clone()), users: vec![user.clone()], roles: vec![] };
        let add = command::UserAdd { password_hash: hash(), ..Default::default() };
        let change = command::UserChangePassword { password_hash: hash(), ..Default::default() };
        let enable = command::Enable { secret: canary.into() };
        let of = |body| AuthCommand { body: Some(body) };
        let shown = format!(
            "{user:?}{head:?}{rows:?}{:?}{:?}{:?}{:?}",
            of(command::Body::UserAdd(add)),
            of(command::Body::UserChangePassword(change)),
            of(command::Body::Enable(enable)),
            AuthOutcome { body: Some(outcome::Body::Rows(rows.clone())) },
        );
        assert!(!shown.contains(canary), "{shown}");
    }
}
