//! What each command does to a directory, and when it is refused: etcd's rules, in its order.

use super::directory::{Directory, ROOT, has};
use super::message::{AuthCommand, Permission, Role, User, command};
use crate::kv::KvError;

/// A row that a command has changed: it is to be written again as it is now, or removed if it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// The row of the whole.
    Head,
    /// A user's.
    User(String),
    /// A role's.
    Role(String),
}

/// Rows that a command has touched, the head aside.
type Rows = Vec<Touched>;

impl Directory {
    /// Carries out a command. When it is refused, nothing has changed.
    ///
    /// # Errors
    /// etcd's refusals; [`KvError::Malformed`] for a command without a body or secret.
    pub fn apply(&mut self, change: &AuthCommand) -> Result<Rows, KvError> {
        use command::Body;
        let mut touched = match change.body.as_ref().ok_or(KvError::Malformed)? {
            Body::Enable(enable) => return self.enable(enable),
            Body::Disable(_) if !self.head.enabled => return Ok(Rows::new()),
            Body::Disable(_) => {
                self.head.enabled = false;
                Rows::new()
            }
            Body::UserAdd(add) => self.user_add(add)?,
            Body::UserDelete(named) => self.user_delete(&named.name)?,
            Body::UserChangePassword(change) => self.user_change_password(change)?,
            Body::UserGrantRole(granted) => match self.user_grant_role(granted)? {
                Some(touched) => vec![touched],
                // Nothing was changed, and the auth revision stays as etcd's does.
                None => return Ok(Rows::new()),
            },
            Body::UserRevokeRole(revoked) => self.user_revoke_role(revoked)?,
            Body::RoleAdd(named) => self.role_add(&named.name)?,
            Body::RoleDelete(named) => self.role_delete(&named.name)?,
            Body::RoleGrantPermission(granted) => self.role_grant(granted)?,
            Body::RoleRevokePermission(revoked) => self.role_revoke(revoked)?,
        };
        self.head.revision += 1;
        touched.push(Touched::Head);
        Ok(touched)
    }

    /// Does not move the auth revision, as etcd's does not. The new secret ends tokens of an earlier time.
    ///
    /// Where users count that came from a store without a secret, it gives them one; that moves the revision,
    /// which is what tells directories apart.
    fn enable(&mut self, enable: &command::Enable) -> Result<Rows, KvError> {
        if self.head.enabled {
            if !self.head.secret.is_empty() || enable.secret.is_empty() {
                return Ok(Rows::new());
            }
            self.head.secret = enable.secret.clone();
            self.head.revision += 1;
            return Ok(vec![Touched::Head]);
        }
        if enable.secret.is_empty() {
            return Err(KvError::Malformed);
        }
        let root = self.users.get(ROOT).ok_or(KvError::RootUserNotExist)?;
        if !has(root, ROOT) {
            return Err(KvError::RootRoleNotExist);
        }
        self.head.enabled = true;
        self.head.secret = enable.secret.clone();
        Ok(vec![Touched::Head])
    }

    fn user_add(&mut self, add: &command::UserAdd) -> Result<Rows, KvError> {
        if add.name.is_empty() {
            return Err(KvError::UserEmpty);
        }
        if self.users.contains_key(&add.name) {
            return Err(KvError::UserExists);
        }
        let user = User {
            name: add.name.clone(),
            password_hash: if add.no_password { String::new() } else { add.password_hash.clone() },
            no_password: add.no_password,
            roles: Vec::new(),
            known_since: self.head.revision + 1,
        };
        self.users.insert(add.name.clone(), user);
        Ok(self.changed(&add.name))
    }

    fn user_delete(&mut self, name: &str) -> Result<Rows, KvError> {
        if self.head.enabled && name == ROOT {
            return Err(KvError::InvalidAuthMgmt);
        }
        self.users.remove(name).ok_or(KvError::UserNotFound)?;
        Ok(self.changed(name))
    }

    fn user_change_password(
        &mut self,
        change: &command::UserChangePassword,
    ) -> Result<Rows, KvError> {
        let known_since = self.head.revision + 1;
        let user = self.users.get_mut(&change.name).ok_or(KvError::UserNotFound)?;
        if !user.no_password {
            user.password_hash.clone_from(&change.password_hash);
        }
        user.known_since = known_since;
        Ok(self.changed(&change.name))
    }

    fn user_grant_role(&mut self, granted: &command::UserRole) -> Result<Option<Touched>, KvError> {
        let user = self.users.get_mut(&granted.user).ok_or(KvError::UserNotFound)?;
        // The role root may everything by its name, whether it is there or not.
        if granted.role != ROOT && !self.roles.contains_key(&granted.role) {
            return Err(KvError::RoleNotFound);
        }
        let Err(at) = user.roles.binary_search(&granted.role) else { return Ok(None) };
        user.roles.insert(at, granted.role.clone());
        self.merge(&granted.user);
        Ok(Some(Touched::User(granted.user.clone())))
    }

    fn user_revoke_role(&mut self, revoked: &command::UserRole) -> Result<Rows, KvError> {
        if self.head.enabled && revoked.user == ROOT && revoked.role == ROOT {
            return Err(KvError::InvalidAuthMgmt);
        }
        let user = self.users.get_mut(&revoked.user).ok_or(KvError::UserNotFound)?;
        let at = user.roles.binary_search(&revoked.role).map_err(|_| KvError::RoleNotGranted)?;
        user.roles.remove(at);
        Ok(self.changed(&revoked.user))
    }

    fn role_add(&mut self, name: &str) -> Result<Rows, KvError> {
        if name.is_empty() {
            return Err(KvError::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(KvError::RoleExists);
        }
        let role = Role { name: name.to_owned(), permissions: Vec::new() };
        self.roles.insert(name.to_owned(), role);
        Ok(vec![Touched::Role(name.to_owned())])
    }

    fn role_delete(&mut self, name: &str) -> Result<Rows, KvError> {
        if self.head.enabled && name == ROOT {
            return Err(KvError::InvalidAuthMgmt);
        }
        self.roles.remove(name).ok_or(KvError::RoleNotFound)?;
        let mut touched = vec![Touched::Role(name.to_owned())];
        for holder in self.holders(name) {
            if let Some(user) = self.users.get_mut(&holder) {
                user.roles.retain(|role| role != name);
            }
            touched.extend(self.changed(&holder));
        }
        Ok(touched)
    }

    fn role_grant(&mut self, granted: &command::RolePermission) -> Result<Rows, KvError> {
        let permission = granted.permission.as_ref().ok_or(KvError::PermissionNotGiven)?;
        let role = self.roles.get_mut(&granted.role).ok_or(KvError::RoleNotFound)?;
        let sorted_as =
            |permission: &Permission| (permission.key.clone(), permission.range_end.clone());
        let wanted = sorted_as(permission);
        match role.permissions.binary_search_by_key(&wanted, sorted_as) {
            Ok(at) => role.permissions[at].kind = permission.kind,
            Err(at) => role.permissions.insert(at, permission.clone()),
        }
        Ok(self.role_changed(&granted.role))
    }

    fn role_revoke(&mut self, revoked: &command::RolePermission) -> Result<Rows, KvError> {
        let permission = revoked.permission.as_ref().ok_or(KvError::PermissionNotGiven)?;
        let role = self.roles.get_mut(&revoked.role).ok_or(KvError::RoleNotFound)?;
        let before = role.permissions.len();
        role.permissions
            .retain(|had| had.key != permission.key || had.range_end != permission.range_end);
        if role.permissions.len() == before {
            return Err(KvError::PermissionNotGranted);
        }
        Ok(self.role_changed(&revoked.role))
    }

    fn holders(&self, role: &str) -> Vec<String> {
        self.users.values().filter(|user| has(user, role)).map(|user| user.name.clone()).collect()
    }

    fn role_changed(&mut self, role: &str) -> Rows {
        self.holders(role).iter().for_each(|holder| self.merge(holder));
        vec![Touched::Role(role.to_owned())]
    }

    fn changed(&mut self, user: &str) -> Rows {
        self.merge(user);
        vec![Touched::User(user.to_owned())]
    }
}
