//! What happens to keys, from the engine's feeds to the gateway's batches.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use quorate_gateway::{BackendError, EventBatch, Happened};
use quorate_node::{Consistency, Engine, Followed, ReadAnswer, Subscription};
use quorate_types::{GroupId, Term, kv};

use crate::wiring::{backend_error, outcome};

/// Bytes that one read gives, but for the rest of a revision.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Who follows a group of the keyspace.
struct Follower {
    engine: Arc<Engine>,
    group: GroupId,
    subscription: Subscription,
    /// What was taken and not yet given.
    ready: VecDeque<EventBatch>,
    ended: bool,
}

/// What happens in `group` after the revision `after`.
pub(crate) fn follow(
    engine: Arc<Engine>,
    group: GroupId,
    after: i64,
) -> BoxStream<'static, Result<Happened, BackendError>> {
    let subscription = engine.subscribe(group, after);
    let follower = Follower { engine, group, subscription, ready: VecDeque::new(), ended: false };
    stream::unfold(follower, |mut follower| async {
        let item = follower.next().await?;
        Some((item, follower))
    })
    .boxed()
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Happened, BackendError>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Some(Ok(Happened::Batch(batch)));
            }
            if self.ended {
                return None;
            }
            match self.take().await {
                Ok(true) => {}
                Ok(false) => {
                    self.ended = true;
                    return Some(Ok(Happened::Compacted));
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// False if what follows is compacted.
    async fn take(&mut self) -> Result<bool, BackendError> {
        match self.subscription.next().await.map_err(backend_error)? {
            Followed::Feeds(feeds) => {
                let raft_term = self.term();
                for feed in feeds {
                    let events = feed.payload.downcast().map_err(|_| {
                        tracing::error!(group = %self.group, "a feed that is not of the keyspace");
                        BackendError::Corrupt
                    })?;
                    self.ready.push_back(EventBatch { through: feed.through, raft_term, events });
                }
                Ok(true)
            }
            Followed::Behind => {
                let read = self.engine.read(self.group, self.query(), Consistency::Serializable);
                self.read(read.await.map_err(backend_error)?)
            }
            Followed::Absent => {
                let asked = self.subscription.ask(self.query()).await;
                self.read(asked.map_err(backend_error)?)
            }
        }
    }

    fn query(&self) -> Bytes {
        let events = kv::Events {
            after: self.subscription.position(),
            range_end: Bytes::from_static(&[0]),
            bytes_max: READ_BYTES_MAX,
            ..kv::Events::default()
        };
        kv::Query { body: Some(kv::query::Body::Events(events)), caller: None }
            .encode_to_vec()
            .into()
    }

    fn read(&mut self, read: ReadAnswer) -> Result<bool, BackendError> {
        let Some(kv::outcome::Body::Events(found)) = outcome(read.answer)?.body else {
            tracing::error!(group = %self.group, "a question for events has another answer");
            return Err(BackendError::Corrupt);
        };
        if found.compacted.is_some() {
            return Ok(false);
        }
        if found.through > self.subscription.position() {
            self.subscription.seek(found.through);
            self.ready.push_back(EventBatch {
                through: found.through,
                raft_term: read.term,
                events: Arc::new(kv::WatchEvents(found.events)),
            });
        }
        Ok(true)
    }

    fn term(&self) -> Term {
        self.engine.leadership(self.group).map(|now| now.borrow().term).unwrap_or_default()
    }
}
