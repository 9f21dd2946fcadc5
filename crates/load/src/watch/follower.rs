//! One watch stream and its watchers.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use quorate_api::mvccpb::Event;
use tokio::sync::watch;
use tonic::Code;

use super::Shared;
use super::verdict::Told;
use crate::call::{Caller, Duplex, Failure, Method};

/// A stream whose watchers are there.
pub(super) struct Follower {
    shared: Arc<Shared>,
    stream: Duplex,
    told: Vec<Told>,
}

/// What a stream came to.
pub(super) struct Followed {
    /// By watcher.
    pub(super) told: Vec<Told>,
    /// Why the stream ended before the run did.
    pub(super) broken: Option<Failure>,
}

impl Follower {
    /// Creates the watchers of stream number `number`, and waits until all are there.
    ///
    /// # Errors
    /// When the server does not let them be.
    pub(super) async fn open(
        shared: Arc<Shared>,
        number: usize,
        caller: &mut Caller,
    ) -> Result<Self, Failure> {
        let mut stream = caller.open(Method::Watch).await?;
        let plan = shared.plan;
        for watcher in 0..plan.watchers {
            let create = WatchCreateRequest {
                key: shared.keys.key(plan.watched(number, watcher)).into(),
                // 0 would leave the choice to the server.
                watch_id: watcher as i64 + 1,
                ..WatchCreateRequest::default()
            };
            let request_union = Some(RequestUnion::CreateRequest(create));
            stream.send(&WatchRequest { request_union })?;
        }
        let mut follower = Self { shared, stream, told: vec![Told::default(); plan.watchers] };
        for _ in 0..plan.watchers {
            let created = follower.response().await?;
            if !created.created || created.canceled {
                let text = format!("a watch was not created: {}", created.cancel_reason);
                return Err(Failure::client(Code::Internal, text));
            }
        }
        Ok(follower)
    }

    async fn response(&mut self) -> Result<WatchResponse, Failure> {
        let ended = || Failure::client(Code::Unavailable, "the server ended a stream");
        self.stream.next().await?.ok_or_else(ended)
    }

    /// Listens until the run is over.
    pub(super) async fn follow(mut self, mut over: watch::Receiver<bool>) -> Followed {
        let broken = loop {
            tokio::select! {
                biased;
                response = self.response() => match response {
                    Ok(response) => {
                        if let Err(failure) = self.take(response) {
                            break Some(failure);
                        }
                    }
                    Err(failure) => break Some(failure),
                },
                _ = over.wait_for(|over| *over) => break None,
            }
        };
        Followed { told: self.told, broken }
    }

    fn take(&mut self, response: WatchResponse) -> Result<(), Failure> {
        let arrived = Instant::now();
        if response.canceled {
            let text = format!("a watch was cancelled: {}", response.cancel_reason);
            return Err(Failure::client(Code::Internal, text));
        }
        let watcher = usize::try_from(response.watch_id - 1).ok();
        let Some(told) = watcher.and_then(|watcher| self.told.get_mut(watcher)) else {
            let text = format!("a response for watch {}, which is not there", response.watch_id);
            return Err(Failure::client(Code::Internal, text));
        };
        for event in response.events {
            match put_of(&event) {
                Some((put, revision)) if self.shared.arrived(put.into(), arrived) => {
                    told.add(put, revision);
                }
                _ => told.add_foreign(),
            }
        }
        Ok(())
    }
}

/// Bytes of a value that say which put it is from.
const NUMBER_BYTES: usize = size_of::<u64>();

/// A value of `size` bytes that begins with the number of its put, and ends as `rest` does.
pub(super) fn value(put: u64, rest: &[u8]) -> Bytes {
    [&put.to_be_bytes()[..], &rest[NUMBER_BYTES..]].concat().into()
}

/// Which put an event is of, and its revision.
fn put_of(event: &Event) -> Option<(u32, i64)> {
    let pair = event.kv.as_ref()?;
    let number = pair.value.first_chunk::<NUMBER_BYTES>()?;
    Some((u64::from_be_bytes(*number).try_into().ok()?, pair.mod_revision))
}

#[cfg(test)]
mod tests {
    use quorate_api::mvccpb::KeyValue;

    use super::*;

    #[test]
    fn an_event_says_which_put_it_is_of() {
        let value = value(77, &[b'x'; 20]);
        assert_eq!((value.len(), &value[8..]), (20, &[b'x'; 12][..]));
        let kv = KeyValue { value, mod_revision: 9, ..KeyValue::default() };
        let event = |kv| Event { kv: Some(kv), ..Event::default() };
        assert_eq!(put_of(&event(kv)), Some((77, 9)));
        assert_eq!(put_of(&event(KeyValue::default())), None, "a deletion has no value");
        assert_eq!(put_of(&Event::default()), None);
    }
}
