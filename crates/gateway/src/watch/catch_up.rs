//! Events from the rows, for watchers that lag and for pairs of before.

use bytes::Bytes;
use quorate_types::kv::{self, Events, EventsOutcome, KvError, outcome, query};
use quorate_types::{KeyRange, Term};
use tonic::Status;

use crate::backend::{Backend, Consistency};
use crate::desk::Desk;
use crate::error::ApiError;

/// Bytes that one read gives, but for the rest of a revision.
pub(super) const READ_BYTES_MAX: u64 = 1 << 20;

/// What a reader has found.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) found: EventsOutcome,
    pub(crate) raft_term: Term,
}

/// The events of a range from `next` on, up to a bound.
pub(crate) async fn read<B: Backend>(
    desk: &Desk<B>,
    range: &KeyRange,
    next: i64,
    prev_kv: bool,
) -> Result<Read, Status> {
    let (key, range_end) = request_of(range);
    let after = next.saturating_sub(1);
    let bytes_max = READ_BYTES_MAX;
    events(desk, Events { after, key, range_end, prev_kv, bytes_max, ..Events::default() }).await
}

/// Asks for events.
pub(super) async fn events<B: Backend>(desk: &Desk<B>, asked: Events) -> Result<Read, Status> {
    let query = kv::Query { body: Some(query::Body::Events(asked)), caller: None };
    // The feed tells only of what a serializable read finds, so this comes to where the others are.
    let answer = desk.backend.read(query, Consistency::Serializable).await?;
    match answer.outcome.body {
        Some(outcome::Body::Events(found)) => Ok(Read { found, raft_term: answer.raft_term }),
        Some(outcome::Body::Error(error)) => {
            Err(ApiError::from(KvError::try_from(error).unwrap_or(KvError::Malformed)).into())
        }
        _ => Err(ApiError::UnexpectedOutcome.into()),
    }
}

/// A range as etcd's requests say it.
pub(super) fn request_of(range: &KeyRange) -> (Bytes, Bytes) {
    let end = range.end.clone().unwrap_or_else(|| Bytes::from_static(&[0]));
    (range.start.clone(), end)
}
