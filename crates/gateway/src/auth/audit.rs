//! The audit log: one line for each change of users, each call of root's, and each refusal, under the target
//! `audit`, which is its message as well: lines for people show no target. Keys, values, passwords and tokens
//! are never in it; names are shown escaped, so that nobody can write lines of their own.

use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use metrics::Counter;
use tonic::Status;

use super::caller::{Identity, Peer};
use crate::error::ApiError;

/// What counts refusals.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    denied_total: Counter,
}

impl Audit {
    pub(crate) const fn new(denied_total: Counter) -> Self {
        Self { denied_total }
    }

    /// Counts that somebody was refused for who it is, and tells it.
    pub(crate) fn denied(&self, path: &str, who: Option<&Identity>, peer: &Peer, reason: &str) {
        self.denied_total.increment(1);
        denied(path, who, peer, reason);
    }

    /// What a stream has to say. Its caller may be refused after its head, which says nothing of that. The refusal ends
    /// it, so it is told once, and a client has to call again for another one.
    pub(crate) fn of_stream<T>(
        &self,
        path: &'static str,
        (who, peer): (Option<Identity>, Peer),
        answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> BoxStream<'static, Result<T, Status>> {
        let audit = self.clone();
        let told = answers.inspect_err(move |status| {
            if tells_denial(status) {
                audit.denied(path, who.as_ref(), &peer, status.message());
            }
        });
        told.boxed()
    }
}

/// Whether a refusal is one for who asks.
pub(crate) const fn is_denial(error: ApiError) -> bool {
    matches!(
        error,
        ApiError::PermissionDenied
            | ApiError::UserEmpty
            | ApiError::AuthOldRevision
            | ApiError::InvalidAuthToken
    )
}

/// Whether a call has ended with such a refusal, in whatever code its service says it.
pub(crate) fn tells_denial(status: &Status) -> bool {
    let mut denials = ApiError::ALL.iter().filter(|error| is_denial(**error));
    denials.any(|denial| denial.text() == status.message())
}

/// Tells that a call was let in.
pub(crate) fn allowed(path: &str, who: Option<&Identity>, peer: &Peer) {
    let (user, source) = shown(who);
    let peer = address(peer);
    tracing::info!(target: "audit", method = path, user, source, peer, verdict = "allowed", "audit");
}

/// Tells that a call was refused, or that a change failed.
pub(crate) fn denied(path: &str, who: Option<&Identity>, peer: &Peer, reason: &str) {
    let (user, source) = shown(who);
    let peer = address(peer);
    tracing::warn!(target: "audit", method = path, user, source, peer, verdict = "denied", reason, "audit");
}

/// Tells that a password was right or wrong for a user.
pub(crate) fn login(user: &str, peer: &Peer, result: Result<(), &str>) {
    let (user, peer, method) = (user.escape_debug().to_string(), address(peer), "Authenticate");
    match result {
        Ok(()) => tracing::info!(target: "audit", method, user, peer, verdict = "allowed", "audit"),
        Err(reason) => {
            tracing::warn!(target: "audit", method, user, peer, verdict = "denied", reason, "audit");
        }
    }
}

fn shown(who: Option<&Identity>) -> (String, &'static str) {
    use super::caller::Source;
    let Some(Identity { caller, source, .. }) = who else { return (String::new(), "none") };
    let source = match source {
        Source::Token => "token",
        Source::Jwt => "jwt",
        Source::Certificate => "certificate",
    };
    (caller.user.escape_debug().to_string(), source)
}

fn address(peer: &Peer) -> String {
    peer.address().map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}
