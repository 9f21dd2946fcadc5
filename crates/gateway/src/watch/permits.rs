//! [`Permits`]: which ranges the client of a stream may watch.

use std::collections::BTreeMap;

use quorate_types::KeyRange;
use tonic::Status;

use crate::auth::audit::is_denial;
use crate::auth::caller::{Identity, Peer};
use crate::backend::Backend;
use crate::desk::Desk;
use crate::error::ApiError;

/// What was let in, and when that was looked at last. etcd looks once, when a watch is created; here nobody is told
/// events of keys that have been taken from them since, nor goes on without a name once users count.
#[derive(Default)]
pub(super) struct Permits {
    by: Option<Identity>,
    peer: Peer,
    /// The range of each watch, and what was known of users when it was allowed.
    allowed: BTreeMap<i64, (KeyRange, Known)>,
}

/// What this node knows of users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Known {
    /// They do not count.
    Off,
    /// They count, and this is the auth revision.
    Revision(i64),
    /// Nothing, since no replica here takes part: they may change at any time, and others are to be asked.
    Nothing,
}

impl Known {
    fn of<B: Backend>(desk: &Desk<B>) -> Self {
        match (desk.backend.auth_is_off(), desk.backend.directory()) {
            (true, _) => Self::Off,
            (false, Some(directory)) => Self::Revision(directory.revision()),
            (false, None) => Self::Nothing,
        }
    }
}

impl Permits {
    /// Of a client that is known, or is not.
    pub(super) const fn of(by: Option<Identity>, peer: Peer) -> Self {
        Self { by, peer, allowed: BTreeMap::new() }
    }

    /// Whether a watch of `range` may be created.
    pub(super) async fn ask<B: Backend>(
        &self,
        desk: &Desk<B>,
        range: &KeyRange,
    ) -> Result<Known, ApiError> {
        let now = Known::of(desk);
        let asked = desk.authorize_watch(self.by.as_ref(), range).await;
        self.audit(desk, asked)?;
        Ok(now)
    }

    /// A watch that was allowed has got its id.
    pub(super) fn note(&mut self, watch: i64, range: KeyRange, allowed_at: Known) {
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
        let Some((range, allowed_at)) = self.allowed.get(&watch) else { return Ok(()) };
        let now = Known::of(desk);
        if now == *allowed_at && now != Known::Nothing {
            return Ok(());
        }
        let by = self.by.clone().map(Identity::let_in);
        let asked = desk.authorize_watch(by.as_ref(), range).await;
        self.audit(desk, asked)?;
        if let Some((_, allowed_at)) = self.allowed.get_mut(&watch) {
            *allowed_at = now;
        }
        Ok(())
    }

    /// A stream of watches is let in by itself, so that its calls' audit hears nothing of them.
    fn audit<B: Backend>(
        &self,
        desk: &Desk<B>,
        asked: Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        if let Err(why) = asked
            && is_denial(why)
        {
            let (path, by) = ("/etcdserverpb.Watch/Watch", self.by.as_ref());
            desk.guard.audit.denied(path, by, &self.peer, why.text());
        }
        asked
    }
}

/// Why a watch is cancelled, in the words in which etcd 3.5.1 says it, whatever is wrong with its caller; or, where
/// nobody could be asked, why its stream ends, for its client to resume it here or elsewhere. For want of a leader
/// clients' libraries would give it up.
pub(super) fn reason(error: ApiError) -> Result<String, Status> {
    if !is_denial(error) {
        let error = if error == ApiError::NoLeader { ApiError::Unhealthy } else { error };
        return Err(error.into());
    }
    let status = Status::from(ApiError::PermissionDenied);
    Ok(format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
}
