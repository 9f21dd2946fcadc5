//! What happens to keys, from the engine's feeds to the gateway's batches.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use quorate_gateway::{BackendError, EventBatch, Happened};
use quorate_node::{Consistency, Engine, EngineError, Followed, ReadAnswer, Subscription};
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
                let (engine, query) = (&self.engine, query(self.asked()));
                let read = engine.read(self.group, query, Consistency::Serializable).await;
                let (found, raft_term) = match read {
                    // The replica has left meanwhile, or is behind.
                    Err(EngineError::TooLarge { .. }) => {
                        in_parts(engine, self.group, self.asked()).await?
                    }
                    read => events(read.map_err(backend_error)?)?,
                };
                Ok(self.read(found, raft_term))
            }
            Followed::Absent => {
                let query = query(self.asked());
                let (found, raft_term) = match self.subscription.ask(query).await {
                    Err(EngineError::TooLarge { .. }) => {
                        in_parts(&self.engine, self.group, self.asked()).await?
                    }
                    asked => events(asked.map_err(backend_error)?)?,
                };
                Ok(self.read(found, raft_term))
            }
        }
    }

    fn asked(&self) -> kv::Events {
        kv::Events {
            after: self.subscription.position(),
            range_end: Bytes::from_static(&[0]),
            bytes_max: READ_BYTES_MAX,
            ..kv::Events::default()
        }
    }

    /// False if what follows is compacted.
    fn read(&mut self, found: kv::EventsOutcome, raft_term: Term) -> bool {
        if found.compacted.is_some() {
            return false;
        }
        if found.through > self.subscription.position() {
            self.subscription.seek(found.through);
            let events = Arc::new(kv::WatchEvents(found.events));
            self.ready.push_back(EventBatch { through: found.through, raft_term, events });
        }
        true
    }

    fn term(&self) -> Term {
        self.engine.leadership(self.group).map(|now| now.borrow().term).unwrap_or_default()
    }
}

/// Answers a question for events whose answer fits no frame between nodes: in parts, put together again, since
/// revisions are told whole. Everything up to the first end of a revision is held at a time, as the replica
/// holds it that applies it.
pub(crate) async fn in_parts(
    engine: &Engine,
    group: GroupId,
    asked: kv::Events,
) -> Result<(kv::EventsOutcome, Term), BackendError> {
    let mut parts = Parts::new(&asked);
    loop {
        let part = query(parts.next(&asked));
        let read = engine.read(group, part, Consistency::Serializable).await;
        let (found, raft_term) = events(read.map_err(backend_error)?)?;
        if let Some(whole) = parts.add(found) {
            return Ok((whole, raft_term));
        }
    }
}

/// What was told in parts so far.
struct Parts {
    /// Up to here the question wants to know in any case.
    wanted: i64,
    through: i64,
    /// Of the revision after `through` everything before this write is there.
    rest_from: u32,
    events: Vec<kv::WatchEvent>,
}

impl Parts {
    fn new(asked: &kv::Events) -> Self {
        let wanted = match (asked.bytes_max, asked.through) {
            (0, 0) => i64::MAX,
            (0, through) => through,
            // One revision at least.
            _ => asked.after.saturating_add(1),
        };
        Self { wanted, through: asked.after, rest_from: asked.from, events: Vec::new() }
    }

    fn next(&self, asked: &kv::Events) -> kv::Events {
        kv::Events {
            after: self.through,
            parts: true,
            from: self.rest_from,
            bytes_max: READ_BYTES_MAX,
            ..asked.clone()
        }
    }

    /// The answer, once it is whole.
    fn add(&mut self, part: kv::EventsOutcome) -> Option<kv::EventsOutcome> {
        if part.compacted.is_some() {
            return Some(part);
        }
        let goes_on = part.through > self.through || part.rest_from > self.rest_from;
        if goes_on {
            self.events.extend(part.events);
            (self.through, self.rest_from) = (part.through, part.rest_from);
        }
        // Who does not know more than we have may be asked again later.
        (!goes_on || self.through >= self.wanted).then(|| {
            let mut events = std::mem::take(&mut self.events);
            events.truncate(events.partition_point(|event| event.revision() <= self.through));
            kv::EventsOutcome { events, through: self.through, ..kv::EventsOutcome::default() }
        })
    }
}

fn query(asked: kv::Events) -> Bytes {
    let body = Some(kv::query::Body::Events(asked));
    kv::Query { body, caller: None }.encode_to_vec().into()
}

fn events(read: ReadAnswer) -> Result<(kv::EventsOutcome, Term), BackendError> {
    match outcome(read.answer)?.body {
        Some(kv::outcome::Body::Events(found)) => Ok((found, read.term)),
        _ => {
            tracing::error!("a question for events has another answer");
            Err(BackendError::Corrupt)
        }
    }
}
