//! [`Permits`]: which ranges the client of a stream may watch.

use std::collections::BTreeMap;

use quorate_types::KeyRange;
use tonic::Status;

use crate::auth::caller::Identity;
use crate::backend::Backend;
use crate::desk::Desk;
use crate::error::ApiError;

/// What was let in, and when that was looked at last. etcd looks once, when a watch is created; here nobody is told
/// events of keys that have been taken from them since, nor goes on without a name once users count.
#[derive(Default)]
pub(super) struct Permits {
    by: Option<Identity>,
    /// The range of each watch, and the auth revision at which it was allowed; 0 while users do not count.
    allowed: BTreeMap<i64, (KeyRange, i64)>,
}

impl Permits {
    /// Of a client that is known, or is not.
    pub(super) const fn of(by: Option<Identity>) -> Self {
        Self { by, allowed: BTreeMap::new() }
    }

    /// Whether a watch of `range` may be created.
    pub(super) async fn ask<B: Backend>(
        &self,
        desk: &Desk<B>,
        range: &KeyRange,
    ) -> Result<i64, ApiError> {
        let now = auth_revision(desk);
        desk.authorize_watch(self.by.as_ref(), range).await?;
        Ok(now)
    }

    /// A watch that was allowed at an auth revision has got its id.
    pub(super) fn note(&mut self, watch: i64, range: KeyRange, allowed_at: i64) {
        self.allowed.insert(watch, (range, allowed_at));
    }

    pub(super) fn forget(&mut self, watch: i64) {
        self.allowed.remove(&watch);
    }

    /// Whether a watch may still be told of its range.
    pub(super) async fn ask_again<B: Backend>(
        &mut self,
        desk: &Desk<B>,
        watch: i64,
    ) -> Result<(), ApiError> {
        let Some((range, allowed_at)) = self.allowed.get_mut(&watch) else { return Ok(()) };
        let now = auth_revision(desk);
        if now != *allowed_at {
            desk.authorize_watch(self.by.as_ref(), range).await?;
            *allowed_at = now;
        }
        Ok(())
    }
}

/// Why a watch is cancelled, in the words in which etcd 3.5.1 says it, whatever is wrong with its caller.
pub(super) fn reason(error: ApiError) -> String {
    let status = Status::from(match error {
        ApiError::UserEmpty | ApiError::AuthOldRevision | ApiError::InvalidAuthToken => {
            ApiError::PermissionDenied
        }
        other => other,
    });
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

fn auth_revision<B: Backend>(desk: &Desk<B>) -> i64 {
    match desk.backend.auth_is_off() {
        true => 0,
        false => desk.backend.directory().map_or(0, |directory| directory.revision()),
    }
}
