//! Who a caller is, whether a call may come in, and whether it may do what it asks.
//!
//! What this node knows of users may be behind what other nodes have acknowledged, so it never refuses by itself
//! alone: before a refusal, or when a token tells of a later change, the replicas are asked.

use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use quorate_types::KeyRange;
use quorate_types::auth::{AuthQuery, Caller, Directory, Needs, outcome as told, query as asked};
use quorate_types::kv::{self, KvError, outcome, query};

use super::audit::Audit;
use super::caller::{Identity, Peer, Source};
use super::config::{AuthConfig, TokenKind};
use super::passwords::Passwords;
use super::table::{Requirement, requirement};
use super::token::{Now, SimpleTokens, Unproven};
use crate::backend::{Backend, BackendError, Consistency};
use crate::desk::Desk;
use crate::error::ApiError;
use crate::metrics::GatewayMetrics;

/// Metadata in which clients send their token; the second is how they do over HTTP/1.
const TOKEN_KEYS: [&str; 2] = ["token", "authorization"];

/// True when whoever asks says who it is: users count, as far as it knows.
pub(crate) fn names_token(headers: &HeaderMap) -> bool {
    TOKEN_KEYS.iter().any(|key| headers.contains_key(*key))
}

/// What one gateway needs to know callers.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) passwords: Passwords,
    pub(crate) audit: Audit,
    simple: SimpleTokens,
    kind: TokenKind,
    /// The directory that was fetched last, for a node whose own replica lags or is none.
    fetched: Mutex<Option<Arc<Directory>>>,
}

/// Why a call does not come in.
pub(crate) type Refusal = (Option<Identity>, ApiError);

impl Guard {
    pub(crate) fn new(config: AuthConfig, metrics: &GatewayMetrics) -> Self {
        Self {
            passwords: Passwords::new(&config, metrics.logins_waiting.clone()),
            audit: Audit::new(metrics.denied_total.clone()),
            simple: SimpleTokens::new(config.token_ttl),
            kind: config.tokens,
            fetched: Mutex::new(None),
        }
    }

    /// A token for a user as `directory` has it; `None` when it cannot be made here.
    pub(crate) fn token(&self, directory: &Directory, user: &str) -> Option<String> {
        let (revision, now) = (directory.revision(), Now::read());
        match &self.kind {
            TokenKind::Simple => self.simple.make(directory.secret(), user, revision, now),
            TokenKind::Jwt(jwt) => jwt.make(user, revision, now.unix_ms),
        }
    }

    /// Who the token makes its sender. The second value is true when a later directory may say otherwise.
    fn open(&self, directory: &Directory, token: &str) -> Result<Identity, (ApiError, bool)> {
        let invalid = |later| (ApiError::InvalidAuthToken, later);
        let (user, revision, source) = match &self.kind {
            TokenKind::Simple => {
                let token = Unproven::parse(token).ok_or_else(|| invalid(false))?;
                let later = token.auth_revision() >= directory.revision();
                let opened = self.simple.open(directory.secret(), &token, Now::read());
                let claims = opened.ok_or_else(|| invalid(later))?;
                (claims.user, claims.auth_revision, Source::Token)
            }
            TokenKind::Jwt(jwt) => {
                let claims = jwt.open(token).ok_or_else(|| invalid(false))?;
                if claims.revision < directory.revision() {
                    return Err((ApiError::AuthOldRevision, false));
                }
                (claims.username, claims.revision, Source::Jwt)
            }
        };
        let known = directory.user(&user).is_some_and(|user| user.known_since <= revision);
        if !known || revision > directory.revision() {
            return Err(invalid(revision > directory.revision()));
        }
        Ok(Identity::new(Caller::user(user, directory.revision()), source))
    }
}

impl<B: Backend> Desk<B> {
    /// Lets a call in, or does not: who makes it, if users count and somebody said.
    pub(crate) async fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Option<Identity>, Refusal> {
        let row = requirement(path);
        let refuse = |error| (None, error);
        let directory = match row {
            // No replica looks at these again.
            Some(Requirement::Root) => self.newest_directory().await,
            // With a dead token somebody comes to get another.
            Some(Requirement::Public) => return Ok(None),
            // Perhaps users count by now, and this node has not heard of it.
            _ if names_token(headers) && self.backend.auth_is_off() => {
                self.newest_directory().await
            }
            _ => self.directory().await,
        };
        let directory = directory.map_err(|error| refuse(ApiError::from(error)))?;
        if !directory.enabled() {
            return Ok(None);
        }
        let row = row.ok_or_else(|| refuse(ApiError::PermissionDenied))?;
        let found = self.identify(directory, headers, peer).await.map_err(refuse)?;
        let (directory, identity) = found;
        let needs = match row {
            Requirement::Public | Requirement::Replicas => Needs::Nothing,
            Requirement::User => Needs::User,
            Requirement::Root => Needs::Root,
        };
        let caller = identity.as_ref().map(|identity| &identity.caller);
        match directory.check(caller, &needs) {
            Ok(()) => Ok(identity),
            Err(error) => Err((identity, error.into())),
        }
    }

    async fn identify(
        &self,
        directory: Arc<Directory>,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<(Arc<Directory>, Option<Identity>), ApiError> {
        let Some(token) = TOKEN_KEYS.iter().find_map(|key| headers.get(*key)) else {
            let certified = peer.certificate_user().map(|user| {
                let caller = Caller::user(user, directory.revision());
                Identity::new(caller, Source::Certificate)
            });
            return Ok((directory, certified));
        };
        let token = token.to_str().map_err(|_| ApiError::InvalidAuthToken)?;
        let token = token.strip_prefix("Bearer ").unwrap_or(token);
        match self.guard.open(&directory, token) {
            Ok(identity) => Ok((directory, Some(identity))),
            Err((error, false)) => Err(error),
            Err((_, true)) => {
                let newest = self.newest_directory().await?;
                let identity = self.guard.open(&newest, token).map_err(|(error, _)| error)?;
                Ok((newest, Some(identity)))
            }
        }
    }

    /// Whether a caller may do what needs `needs`, before it costs anything; the replicas decide again. Also
    /// gives the identity as it is now.
    pub(crate) async fn permit(
        &self,
        by: Option<&Identity>,
        needs: &Needs,
    ) -> Result<Option<Identity>, KvError> {
        if by.is_none() && self.backend.auth_is_off() {
            return Ok(None);
        }
        let Some(directory) = self.backend.directory() else { return Ok(by.cloned()) };
        match directory.check(by.map(|by| &by.caller), needs) {
            Ok(()) => Ok(by.cloned()),
            Err(error) => match self.newest_directory().await {
                Ok(newest) => {
                    let by = renewed(by, &newest);
                    newest.check(by.as_ref().map(|by| &by.caller), needs)?;
                    Ok(by)
                }
                Err(_) => Err(error),
            },
        }
    }

    /// Whether a caller may do what only root may, as of now: for what costs this node much before any replica
    /// looks at it. Also gives the identity as it is now.
    ///
    /// # Errors
    /// etcd's refusals, or that nobody can be asked.
    pub(crate) async fn permit_root(
        &self,
        by: Option<&Identity>,
    ) -> Result<Option<Identity>, ApiError> {
        let newest = self.newest_directory().await?;
        let by = renewed(by, &newest);
        newest.check(by.as_ref().map(|by| &by.caller), &Needs::Root)?;
        Ok(by)
    }

    /// Whether a caller may watch a range, which no replica looks at again.
    ///
    /// # Errors
    /// etcd's refusals, or that nobody can be asked.
    pub(crate) async fn authorize_watch(
        &self,
        by: Option<&Identity>,
        range: &KeyRange,
    ) -> Result<(), ApiError> {
        if self.backend.auth_is_off() {
            return Ok(());
        }
        let needs = Needs::Keys { read: vec![range.clone()], write: Vec::new() };
        let known = match self.backend.directory() {
            Some(known) => known.check(by.map(|by| &by.caller), &needs),
            None => Err(KvError::AuthOldRevision),
        };
        if known.is_err() {
            let newest = self.newest_directory().await?;
            let by = renewed(by, &newest);
            newest.check(by.as_ref().map(|by| &by.caller), &needs)?;
        }
        Ok(())
    }

    /// The identity for a second try after [`KvError::AuthOldRevision`]: users and roles have changed since this
    /// node heard of them last. `None` when that is no reason to try again.
    pub(crate) async fn renew(&self, by: Option<&Identity>) -> Option<Identity> {
        let newest = self.newest_directory().await.ok()?;
        renewed(by, &newest).filter(|renewed| Some(renewed) != by)
    }

    /// What this node knows of users; asked for where it has no replica that does.
    async fn directory(&self) -> Result<Arc<Directory>, BackendError> {
        match self.backend.directory() {
            Some(directory) => Ok(directory),
            None => self.newest_directory().await,
        }
    }

    /// What is true of users now. Where no leader is known, what this node knows.
    pub(crate) async fn newest_directory(&self) -> Result<Arc<Directory>, BackendError> {
        let own = self.backend.directory();
        if let Some(own) = &own
            && self.backend.node_status().leader.is_none()
        {
            return Ok(Arc::clone(own));
        }
        let everything = asked::Everything {};
        let status = self.ask_of_users(asked::Body::Status(everything)).await?;
        let told::Body::Status(status) = status else { return Err(BackendError::Corrupt) };
        let is_it = |known: &Arc<Directory>| {
            (known.enabled(), known.revision()) == (status.enabled, status.auth_revision)
        };
        let fetched = self.guard.fetched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = own.into_iter().chain(fetched).find(is_it) {
            return Ok(known);
        }
        let rows = self.ask_of_users(asked::Body::Directory(everything)).await?;
        let told::Body::Rows(rows) = rows else { return Err(BackendError::Corrupt) };
        // A replica of a later version keeps what this one does not understand.
        let directory = Directory::from_rows(rows).map_err(|_| BackendError::Corrupt)?;
        let directory = Arc::new(directory);
        let mut fetched = self.guard.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        *fetched = Some(Arc::clone(&directory));
        Ok(directory)
    }

    async fn ask_of_users(&self, body: asked::Body) -> Result<told::Body, BackendError> {
        let body = query::Body::Auth(AuthQuery { body: Some(body) });
        let query = kv::Query { body: Some(body), caller: Some(Caller::system()) };
        let answer = self.backend.read(query, Consistency::Linearizable).await?;
        match answer.outcome.body {
            Some(outcome::Body::Auth(told)) => told.body.ok_or(BackendError::Corrupt),
            _ => Err(BackendError::Corrupt),
        }
    }
}

/// The identity as of a later directory. One by a signed token stays as it is where a call begins: it is of its
/// revision.
fn renewed(by: Option<&Identity>, newest: &Directory) -> Option<Identity> {
    let by = by?;
    let known = newest.user(&by.caller.user);
    // Nothing has ended what it was known by.
    let holds = known.is_some_and(|user| user.known_since <= by.caller.auth_revision);
    let is_fixed = by.source == Source::Jwt && !by.is_let_in;
    if is_fixed || !holds {
        return Some(by.clone());
    }
    let caller = Caller::user(by.caller.user.clone(), newest.revision());
    Some(Identity { caller, ..by.clone() })
}

/// True for what a replica says of a caller whose gateway was behind.
pub(crate) fn is_old(outcome: &kv::Outcome) -> bool {
    outcome.body == Some(outcome::Body::Error(KvError::AuthOldRevision as i32))
}
