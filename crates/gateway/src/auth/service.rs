//! etcd's Auth service.
//!
//! Passwords end here: what goes into the log is their hash, and only after it is known that the caller may
//! change users, so that nobody else can make this node hash.

use std::sync::Arc;

use quorate_api::authpb;
use quorate_api::etcdserverpb::{
    self as pb, AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, auth_server,
};
use quorate_types::auth::command::{
    self as change, Body, Named, RolePermission, UserAdd, UserChangePassword, UserRole,
};
use quorate_types::auth::{
    AuthCommand, AuthOutcome, AuthQuery, Caller, Directory, Permission, outcome as told,
    query as asked,
};
use quorate_types::kv::{self, KvError, command, outcome, query};
use tonic::{Request, Response, Status};

use super::caller::{Identity, identity, peer};
use super::{audit, token};
use crate::backend::{Answer, Backend, Consistency};
use crate::desk::Desk;
use crate::error::ApiError;

/// etcd's Auth service over a backend.
pub(crate) struct AuthService<B> {
    desk: Arc<Desk<B>>,
}

type Header = Option<pb::ResponseHeader>;

impl<B: Backend> AuthService<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>) -> Self {
        Self { desk }
    }

    /// Changes users or roles; the head of the answer.
    async fn change(&self, by: Option<Identity>, body: Body) -> Result<Header, Status> {
        let body = command::Body::Auth(AuthCommand { body: Some(body) });
        let command = kv::Command { body: Some(body), ..kv::Command::default() };
        if prost::Message::encoded_len(&command) > self.desk.config.max_request_bytes {
            return Err(ApiError::RequestTooLarge.into());
        }
        let answer = self.desk.propose(command, by.as_ref()).await?;
        self.open(answer).map(|(header, _)| header)
    }

    async fn ask(
        &self,
        by: Option<Identity>,
        body: asked::Body,
    ) -> Result<(Header, told::Body), Status> {
        let body = query::Body::Auth(AuthQuery { body: Some(body) });
        let query = kv::Query { body: Some(body), caller: None };
        let answer = self.desk.read(query, Consistency::Linearizable, by.as_ref()).await?;
        self.open(answer)
    }

    fn open(&self, answer: Answer) -> Result<(Header, told::Body), Status> {
        let header = self.desk.header(answer.outcome.revision, answer.raft_term);
        match answer.outcome.body {
            Some(outcome::Body::Auth(AuthOutcome { body: Some(told) })) => Ok((Some(header), told)),
            Some(outcome::Body::Error(error)) => {
                Err(ApiError::from(KvError::try_from(error).unwrap_or(KvError::Malformed)).into())
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    /// Checks a password and makes a token.
    async fn login(&self, name: &str, password: String) -> Result<(Header, String), Status> {
        let directory = self.desk.newest_directory().await?;
        if !directory.enabled() {
            return Err(ApiError::AuthNotEnabled.into());
        }
        let user = directory.user(name);
        let hash = user.filter(|user| !user.no_password).map(|user| user.password_hash.clone());
        let matches = self.desk.guard.passwords.matches(password, hash).await?;
        if user.is_some_and(|user| user.no_password) {
            return Err(ApiError::NoPasswordUser.into());
        }
        if !matches {
            return Err(ApiError::AuthFailed.into());
        }
        let directory = match directory.secret().is_empty() {
            true => self.make_secret().await?,
            false => directory,
        };
        let token = self.desk.guard.token(&directory, name).ok_or(ApiError::NoToken)?;
        let (revision, term) = self.desk.revision(Consistency::Serializable).await?;
        Ok((Some(self.desk.header(revision, term)), token))
    }
}

impl<B: Backend> AuthService<B> {
    /// Gives users that came from another store, and count already, the secret of tokens. Where several do so
    /// at once, the first one's holds.
    async fn make_secret(&self) -> Result<Arc<Directory>, Status> {
        let secret = token::secret().ok_or(ApiError::NoToken)?;
        let body = AuthCommand { body: Some(Body::Enable(change::Enable { secret })) };
        let command = kv::Command {
            body: Some(command::Body::Auth(body)),
            caller: Some(Caller::system()),
            ..kv::Command::default()
        };
        self.open(self.desk.backend.propose(command).await?)?;
        Ok(self.desk.newest_directory().await?)
    }
}

#[tonic::async_trait]
impl<B: Backend> auth_server::Auth for AuthService<B> {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let secret = token::secret().ok_or(ApiError::NoToken)?;
        let enable = Body::Enable(change::Enable { secret });
        let header = self.change(identity(&request), enable).await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let disable = Body::Disable(change::Disable {});
        let header = self.change(identity(&request), disable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        let status = asked::Body::Status(asked::Everything {});
        match self.ask(identity(&request), status).await? {
            (header, told::Body::Status(status)) => Ok(Response::new(AuthStatusResponse {
                header,
                enabled: status.enabled,
                auth_revision: status.auth_revision.unsigned_abs(),
            })),
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let peer = peer(&request);
        let AuthenticateRequest { name, password } = request.into_inner();
        let made = self.login(&name, password).await;
        audit::login(&name, &peer, made.as_ref().map(|_| ()).map_err(Status::message));
        let (header, token) = made?;
        Ok(Response::new(AuthenticateResponse { header, token }))
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let by = self.desk.permit_root(identity(&request).as_ref()).await?;
        let AuthUserAddRequest { name, password, options, .. } = request.into_inner();
        if name.is_empty() {
            return Err(ApiError::UserEmpty.into());
        }
        let no_password = options.is_some_and(|options| options.no_password);
        let password_hash = match no_password {
            true => String::new(),
            false => self.hash(password).await?,
        };
        let add = Body::UserAdd(UserAdd { name, password_hash, no_password });
        let header = self.change(by, add).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let by = identity(&request);
        let user = asked::Body::User(Named { name: request.into_inner().name });
        match self.ask(by, user).await? {
            (header, told::Body::Names(roles)) => {
                Ok(Response::new(AuthUserGetResponse { header, roles: roles.names }))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        let users = asked::Body::Users(asked::Everything {});
        match self.ask(identity(&request), users).await? {
            (header, told::Body::Names(users)) => {
                Ok(Response::new(AuthUserListResponse { header, users: users.names }))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let by = identity(&request);
        let delete = Body::UserDelete(Named { name: request.into_inner().name });
        let header = self.change(by, delete).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let by = self.desk.permit_root(identity(&request).as_ref()).await?;
        let AuthUserChangePasswordRequest { name, password, .. } = request.into_inner();
        let password_hash = self.hash(password).await?;
        let change = Body::UserChangePassword(UserChangePassword { name, password_hash });
        let header = self.change(by, change).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let by = identity(&request);
        let AuthUserGrantRoleRequest { user, role } = request.into_inner();
        let header = self.change(by, Body::UserGrantRole(UserRole { user, role })).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let by = identity(&request);
        let AuthUserRevokeRoleRequest { name: user, role } = request.into_inner();
        let header = self.change(by, Body::UserRevokeRole(UserRole { user, role })).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let by = identity(&request);
        let add = Body::RoleAdd(Named { name: request.into_inner().name });
        let header = self.change(by, add).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let by = identity(&request);
        let role = asked::Body::Role(Named { name: request.into_inner().role });
        match self.ask(by, role).await? {
            (header, told::Body::Permissions(told)) => {
                let perm = told.permissions.into_iter().map(|had| authpb::Permission {
                    perm_type: had.kind,
                    key: had.key,
                    range_end: had.range_end,
                });
                Ok(Response::new(AuthRoleGetResponse { header, perm: perm.collect() }))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        let roles = asked::Body::Roles(asked::Everything {});
        match self.ask(identity(&request), roles).await? {
            (header, told::Body::Names(roles)) => {
                Ok(Response::new(AuthRoleListResponse { header, roles: roles.names }))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let by = identity(&request);
        let delete = Body::RoleDelete(Named { name: request.into_inner().role });
        let header = self.change(by, delete).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let by = identity(&request);
        let AuthRoleGrantPermissionRequest { name: role, perm } = request.into_inner();
        let permission = perm.map(|perm| Permission {
            kind: perm.perm_type,
            key: perm.key,
            range_end: perm.range_end,
        });
        let grant = Body::RoleGrantPermission(RolePermission { role, permission });
        let header = self.change(by, grant).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let by = identity(&request);
        let AuthRoleRevokePermissionRequest { role, key, range_end } = request.into_inner();
        let permission = Some(Permission { kind: 0, key, range_end });
        let revoke = Body::RoleRevokePermission(RolePermission { role, permission });
        let header = self.change(by, revoke).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}

impl<B: Backend> AuthService<B> {
    async fn hash(&self, password: String) -> Result<String, ApiError> {
        if password.is_empty() {
            return Err(ApiError::EmptyPassword);
        }
        self.desk.guard.passwords.hash(password).await
    }
}
