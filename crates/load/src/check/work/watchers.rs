//! Clients that watch, lose their streams, and resume where they had come to.

use std::sync::Arc;
use std::time::Duration;

use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use quorate_api::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::calls::{key, pair_of};
use super::servers::Servers;
use super::{Shared, asks_progress};
use crate::check::history::{Delivery, Event, Record, Scope, Watch, Watcher};

/// Requests on one stream that wait to be sent; one more is not made.
const REQUESTS_MAX: usize = 4;

/// How long a watcher stays with an endpoint that does not let it watch.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// What a watcher watches and how far it has come.
struct Follower {
    shared: Arc<Shared>,
    number: u32,
    scope: Scope,
    prev_kv: bool,
    /// From which revision on it asks next; 0 for what comes after its first watch is made.
    next: i64,
    rng: fastrand::Rng,
}

/// How a stream ended.
enum Ended {
    /// The round is over.
    Round,
    /// Another stream is needed, because of this.
    Stream(String),
}

/// Watches until the round's end has been seen, or until no more time is given.
pub(super) async fn watch(
    shared: Arc<Shared>,
    mut servers: Servers,
    number: usize,
    rng: fastrand::Rng,
) {
    let scope = match number % 4 {
        0 => Scope::Prefix(String::new()),
        1 => Scope::Key(key(number % shared.args.keys)),
        2 => Scope::Prefix("k/".to_owned()),
        _ => Scope::Prefix("l/".to_owned()),
    };
    let (number, prev_kv) = (number as u32, number % 3 != 2);
    shared.record(Record::Watcher(Watcher { watcher: number, scope: scope.clone(), prev_kv }));
    let mut follower = Follower { shared, number, scope, prev_kv, next: 0, rng };
    loop {
        match follower.stream(&servers).await {
            Ended::Round => return,
            Ended::Stream(why) => {
                follower.record(Delivery::Lost(why));
                servers.rotate();
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
        if follower.is_over(None) {
            return;
        }
    }
}

impl Follower {
    /// Watches on one stream: until it breaks, until this watcher breaks it, or until the round is over.
    async fn stream(&mut self, servers: &Servers) -> Ended {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let create = RequestUnion::CreateRequest(self.create());
        // The channel is new and its receiver is here.
        let _ = requests.try_send(WatchRequest { request_union: Some(create) });
        let mut client = servers.watch();
        let opened = client.watch(ReceiverStream::new(outgoing));
        let mut incoming = match timeout(self.shared.args.timeout, opened).await {
            Ok(Ok(opened)) => opened.into_inner(),
            Ok(Err(status)) => return Ended::Stream(status.message().to_owned()),
            Err(_) => return Ended::Stream("no answer in time".to_owned()),
        };
        let lasts = Duration::from_millis(self.rng.u64(200..4_000));
        let breaks_at = Instant::now() + lasts;
        let mut end = self.shared.end.clone();
        let mut gives_up_at = None;
        let mut asks_at = Instant::now() + Duration::from_millis(self.rng.u64(50..1_000));
        loop {
            let over = *end.borrow_and_update();
            if self.is_over(over) {
                return Ended::Round;
            }
            if over.is_some() && gives_up_at.is_none() {
                gives_up_at = Some(Instant::now() + self.shared.args.settle);
            }
            // Even when the round is over the stream is broken now and then: it may hang.
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(response)) => if let Some(why) = self.take(response) {
                        return Ended::Stream(why);
                    },
                    Ok(None) => return Ended::Stream("the stream ended".to_owned()),
                    Err(status) => return Ended::Stream(status.message().to_owned()),
                },
                () = sleep_until(asks_at), if asks_progress(&self.shared.args) => {
                    let ask = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    // When requests wait to be sent, another one tells nothing more.
                    let _ = requests.try_send(WatchRequest { request_union: Some(ask) });
                    asks_at = Instant::now() + Duration::from_millis(self.rng.u64(50..1_000));
                }
                () = sleep_until(breaks_at) => return Ended::Stream("by the client".to_owned()),
                () = sleep_until(gives_up_at.unwrap_or(breaks_at)), if gives_up_at.is_some() => {
                    return Ended::Round;
                }
                changed = end.changed() => if changed.is_err() { return Ended::Round },
            }
        }
    }

    fn create(&self) -> WatchCreateRequest {
        let (key, range_end) = match &self.scope {
            Scope::Key(key) => (self.shared.sent(key), bytes::Bytes::new()),
            Scope::Prefix(prefix) => {
                let begin = self.shared.sent(prefix);
                let mut end = begin.to_vec();
                *end.last_mut().expect("a round's prefix is not empty") += 1;
                (begin, end.into())
            }
        };
        WatchCreateRequest {
            key,
            range_end,
            start_revision: self.next,
            progress_notify: true,
            prev_kv: self.prev_kv,
            ..WatchCreateRequest::default()
        }
    }

    /// Records a response. Returns why the stream is of no use any more, if so.
    fn take(&mut self, response: WatchResponse) -> Option<String> {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.created {
            self.record(Delivery::Created { start: self.next, revision });
            if self.next == 0 {
                self.next = revision + 1;
            }
        }
        if response.canceled {
            if response.compact_revision > 0 {
                self.record(Delivery::Compacted(response.compact_revision));
                self.next = self.next.max(response.compact_revision);
            }
            return Some(format!("canceled: {}", response.cancel_reason));
        }
        if !response.events.is_empty() {
            let events: Vec<Event> =
                response.events.iter().map(|event| self.event(event)).collect();
            let last = events.iter().map(|event| event.revision).max().unwrap_or(0);
            self.next = self.next.max(last + 1);
            self.record(Delivery::Events(events));
        } else if !response.created {
            self.record(Delivery::Progress(revision));
            self.next = self.next.max(revision + 1);
        }
        None
    }

    fn event(&self, event: &quorate_api::mvccpb::Event) -> Event {
        let pair = event.kv.clone().unwrap_or_default();
        Event {
            key: self.shared.shown(&pair.key),
            revision: pair.mod_revision,
            put: (event.r#type() == EventType::Put).then(|| pair_of(&pair)),
            prev: event.prev_kv.as_ref().map(pair_of),
        }
    }

    fn record(&self, what: Delivery) {
        let at_us = self.shared.now_us();
        self.shared.record(Record::Watch(Watch { watcher: self.number, at_us, what }));
    }

    /// Whether the round is over and this watcher has come to its end, or need not.
    fn is_over(&self, end: Option<i64>) -> bool {
        let end = end.or_else(|| *self.shared.end.borrow());
        end.is_some_and(|end| end == 0 || self.next > end)
    }
}
