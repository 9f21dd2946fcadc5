//! Events from the rows, for watchers that lag and for pairs of before.

use bytes::Bytes;
use quorate_types::kv::{self, Events, EventsOutcome, KeyValue, KvError, outcome, query};
use quorate_types::{KeyRange, Term};
use tonic::Status;

use super::batch::Batch;
use crate::backend::{Backend, Consistency};
use crate::desk::Desk;
use crate::error::ApiError;

/// Bytes that one read gives, but for the rest of a revision.
const READ_BYTES_MAX: u64 = 1 << 20;

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
    events(desk, Events { after, through: 0, key, range_end, prev_kv, bytes_max }).await
}

/// The pairs before a batch's events; read once for all watchers.
pub(crate) async fn prev_kvs<'b, B: Backend>(
    desk: &Desk<B>,
    batch: &'b Batch,
) -> Result<&'b [Option<KeyValue>], Status> {
    let read = async || {
        let Some(first) = batch.events().first() else { return Ok(Vec::new()) };
        let asked = Events {
            after: first.revision() - 1,
            through: batch.through,
            range_end: Bytes::from_static(&[0]),
            prev_kv: true,
            ..Events::default()
        };
        let Read { found, .. } = events(desk, asked).await?;
        if found.compacted.is_some() {
            // As with etcd: the events go out without them.
            return Ok(vec![None; batch.events().len()]);
        }
        let same = found.events.len() == batch.events().len()
            && found.events.iter().zip(batch.events()).all(|(read, told)| read.kv == told.kv);
        match same {
            true => Ok(found.events.into_iter().map(|event| event.prev_kv).collect()),
            false => Err(Status::from(ApiError::UnexpectedOutcome)),
        }
    };
    batch.prev_kvs.get_or_try_init(read).await.map(Vec::as_slice)
}

async fn events<B: Backend>(desk: &Desk<B>, asked: Events) -> Result<Read, Status> {
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
fn request_of(range: &KeyRange) -> (Bytes, Bytes) {
    let end = range.end.clone().unwrap_or_else(|| Bytes::from_static(&[0]));
    (range.start.clone(), end)
}
