//! One client's stream: what it asks, and what it is told.
//!
//! One task, one thing at a time, so that a response is sent before anything that follows from it. In a turn one
//! note goes out, and what one lagging watcher has read; and one request is taken, which so waits for no more than
//! that. Only reads go on meanwhile, by themselves: a client that does not take its responses must not hold on to
//! what others need to read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_api::etcdserverpb::watch_create_request::FilterType;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use quorate_types::kv::EventKind;
use quorate_types::{KeyRange, Term};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tonic::{Status, Streaming};

use super::catch_up::{self, Read};
use super::ending::{Ending, must_end};
use super::hub::Hub;
use super::permits::{self, Permits};
use super::prev_kvs::PrevKvs;
use super::registry::{Note, StreamId, Wish};
use super::respond;
use crate::backend::Backend;
use crate::error::in_etcd_words;

/// The watch of responses that are about the whole stream.
const EVERY_WATCH: i64 = -1;

/// A stream, and how its watches want to be told.
pub(crate) struct ClientStream<B: Backend> {
    hub: Arc<Hub<B>>,
    id: StreamId,
    news: Arc<Notify>,
    ending: watch::Receiver<Ending>,
    requires_leader: bool,
    responses: mpsc::Sender<Result<WatchResponse, Status>>,
    manners: BTreeMap<i64, Manner>,
    permits: Permits,
    /// Progress requests that wait until everything is sent.
    progress_asked: usize,
    /// One at most; it ends with its stream.
    reading: JoinSet<Reading>,
    /// The lagging watcher that reads, or read last.
    last_read: i64,
    /// It found nothing at all, and has to wait.
    found_nothing: bool,
}

/// How a watch wants to be told.
#[derive(Clone, Copy, Debug)]
struct Manner {
    prev_kv: bool,
    fragment: bool,
    progress: bool,
    /// It was told something since the last tick, so that it needs no progress.
    told: bool,
}

/// Why the task ends.
#[derive(Debug)]
enum End {
    /// Nobody listens any more.
    Gone,
    /// The client is told why.
    Status(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// How long a lagging watcher waits whose replica knows nothing yet of where it stands.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A lagging watcher: its number, its wish, and where it stands.
type Lagging = (i64, Wish, i64);

/// A read of a lagging watcher, and what came of it.
type Reading = (Lagging, Result<Read, Status>);

impl<B: Backend> ClientStream<B> {
    pub(crate) fn new(
        hub: Arc<Hub<B>>,
        requires_leader: bool,
        permits: Permits,
        responses: mpsc::Sender<Result<WatchResponse, Status>>,
    ) -> Self {
        let news = Arc::new(Notify::new());
        let id = hub.with(|registry| registry.open_stream(Arc::clone(&news)));
        let ending = hub.ending();
        Self {
            hub,
            id,
            news,
            ending,
            requires_leader,
            responses,
            manners: BTreeMap::new(),
            permits,
            progress_asked: 0,
            reading: JoinSet::new(),
            last_read: EVERY_WATCH,
            found_nothing: false,
        }
    }

    /// To the end of the stream.
    pub(crate) async fn run(mut self, requests: Streaming<WatchRequest>) {
        let (served, responses) = (self.serve(requests).await, self.responses.clone());
        // Nothing is held for it any more, however long its client takes to hear the reason.
        drop(self);
        if let Err(End::Status(status)) = served {
            // Whoever has gone needs no reason.
            drop(responses.send(Err(status)).await);
        }
    }

    async fn serve(&mut self, mut requests: Streaming<WatchRequest>) -> Result<(), End> {
        let interval = self.hub.desk.config.watch_progress_interval;
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asks = true;
        let (mut ending, news) = (self.ending.clone(), Arc::clone(&self.news));
        let (responses, requires_leader) = (self.responses.clone(), self.requires_leader);
        loop {
            if let Some(read) = self.reading.try_join_next() {
                self.told_by_rows(read).await?;
            }
            if let Some(note) = self.hub.with(|registry| registry.take(self.id)) {
                self.tell(note).await?;
                // There may be more.
                news.notify_one();
            }
            self.answer_progress().await?;
            self.read_next();
            tokio::select! {
                biased;
                why = must_end(&mut ending, requires_leader) => {
                    return Err(Status::from(why).into());
                }
                () = responses.closed() => return Err(End::Gone),
                request = requests.message(), if asks => match request.map_err(in_etcd_words)? {
                    Some(request) => self.take(request).await?,
                    // It says nothing more, and may go on to listen.
                    None => asks = false,
                },
                _ = ticks.tick() => self.tick().await?,
                Some(read) = self.reading.join_next() => self.told_by_rows(read).await?,
                () = news.notified() => {}
            }
        }
    }

    async fn send(&self, response: WatchResponse) -> Result<(), End> {
        self.responses.send(Ok(response)).await.map_err(|_| End::Gone)
    }

    async fn take(&mut self, request: WatchRequest) -> Result<(), End> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                self.hub.ensure_followed().await.map_err(Status::from)?;
                self.progress_asked = self.progress_asked.saturating_add(1);
                Ok(())
            }
            // Of a kind that a later version knows.
            None => Ok(()),
        }
    }

    async fn create(&mut self, create: WatchCreateRequest) -> Result<(), End> {
        self.hub.ensure_followed().await.map_err(Status::from)?;
        let has = |filter: FilterType| create.filters.contains(&(filter as i32));
        let wish = Wish {
            range: range(&create),
            no_put: has(FilterType::Noput),
            no_delete: has(FilterType::Nodelete),
        };
        let answered = self.hub.desk.answered();
        let range = wish.range.clone();
        let allowed_at = match self.permits.ask(&self.hub.desk, &range).await {
            Ok(auth_revision) => auth_revision,
            Err(why) => {
                let response = WatchResponse {
                    header: Some(self.here()),
                    watch_id: EVERY_WATCH,
                    created: true,
                    canceled: true,
                    cancel_reason: permits::reason(why)?,
                    ..WatchResponse::default()
                };
                return self.send(response).await;
            }
        };
        let (revision, raft_term, created) = self.hub.with(|registry| {
            let revision = registry.through().max(answered);
            let start = match create.start_revision {
                0 => revision + 1,
                start => start,
            };
            let created = registry.create(self.id, create.watch_id, wish, start);
            (revision, registry.raft_term(), created)
        });
        let response = WatchResponse {
            header: Some(self.hub.desk.header(revision, raft_term)),
            created: true,
            ..WatchResponse::default()
        };
        let response = match created {
            Ok(watch_id) => {
                let manner = Manner {
                    prev_kv: create.prev_kv,
                    fragment: create.fragment,
                    progress: create.progress_notify,
                    told: false,
                };
                self.manners.insert(watch_id, manner);
                self.permits.note(watch_id, range, allowed_at);
                WatchResponse { watch_id, ..response }
            }
            Err(why) => WatchResponse {
                watch_id: EVERY_WATCH,
                canceled: true,
                cancel_reason: why.text().to_owned(),
                ..response
            },
        };
        self.send(response).await
    }

    /// Of a watch that is not there: nothing, as etcd.
    async fn cancel(&mut self, watch_id: i64) -> Result<(), End> {
        if !self.remove(watch_id) {
            return Ok(());
        }
        let header = Some(self.here());
        let canceled = true;
        self.send(WatchResponse { header, watch_id, canceled, ..WatchResponse::default() }).await
    }

    fn remove(&mut self, watch: i64) -> bool {
        self.forget(watch);
        self.hub.with(|registry| registry.cancel(self.id, watch))
    }

    /// But for what the registry knows.
    fn forget(&mut self, watch: i64) {
        self.manners.remove(&watch);
        self.permits.forget(watch);
        if self.last_read == watch {
            // Another one may have its number next, and want to be told in another way.
            self.reading = JoinSet::new();
        }
    }

    /// The head of a response that is about no event.
    fn here(&self) -> quorate_api::etcdserverpb::ResponseHeader {
        let (revision, term) = self.hub.with(|now| (now.through(), now.raft_term()));
        self.hub.desk.header(revision, term)
    }

    /// Of a note whose pairs of before are too large, a part; the rest goes out next.
    async fn tell(&mut self, note: Note) -> Result<(), End> {
        let Note { watch, batch, picks, .. } = &note;
        // Cancelled since.
        let Some(manner) = self.manners.get(watch).copied() else { return Ok(()) };
        let is_old = |place: &u32| !batch.events()[*place as usize].is_create();
        let prev_kvs = match manner.prev_kv && picks.iter().any(is_old) {
            true => Some(PrevKvs::of(&self.hub, batch, picks).await?),
            false => None,
        };
        let told = &picks[..prev_kvs.as_ref().map_or(picks.len(), Vec::len)];
        let event = |(nth, place): (usize, &u32)| {
            let prev_kv = prev_kvs.as_ref().and_then(|prev_kvs| prev_kvs[nth].as_ref());
            respond::event(&batch.events()[*place as usize], prev_kv)
        };
        let events = told.iter().enumerate().map(event).collect();
        let last = &batch.events()[*told.last().expect("a note has events") as usize];
        let header = (last.revision(), batch.raft_term);
        // Before anybody waits for the client, so that it is counted meanwhile, and may be dropped.
        self.hub.with(|registry| registry.put_back(self.id, &note, told.len()));
        self.send_events(*watch, manner, header, events).await
    }

    async fn send_events(
        &mut self,
        watch: i64,
        manner: Manner,
        (revision, raft_term): (i64, Term),
        events: Vec<quorate_api::mvccpb::Event>,
    ) -> Result<(), End> {
        if let Err(why) = self.permits.ask_again(&self.hub.desk, watch).await {
            self.remove(watch);
            let (header, cancel_reason) = (Some(self.here()), permits::reason(why)?);
            return self
                .send(WatchResponse {
                    header,
                    watch_id: watch,
                    canceled: true,
                    cancel_reason,
                    ..WatchResponse::default()
                })
                .await;
        }
        self.hub.metrics.events_total.increment(events.len() as u64);
        let header = self.hub.desk.header(revision, raft_term);
        let whole = respond::events(header, watch, events);
        if manner.fragment {
            for part in respond::fragments(whole, self.hub.desk.config.message_bytes_max()) {
                self.send(part).await?;
            }
        } else {
            self.send(whole).await?;
        }
        if let Some(manner) = self.manners.get_mut(&watch) {
            manner.told = true;
        }
        Ok(())
    }

    /// Once everything up to the answer's revision was sent; not before.
    async fn answer_progress(&mut self) -> Result<(), End> {
        while self.progress_asked > 0 {
            let ready = self.hub.with(|now| Some((now.progress(self.id)?, now.raft_term())));
            let Some((revision, term)) = ready else { return Ok(()) };
            self.progress_asked -= 1;
            let header = Some(self.hub.desk.header(revision, term));
            let watch_id = EVERY_WATCH;
            self.send(WatchResponse { header, watch_id, ..WatchResponse::default() }).await?;
        }
        Ok(())
    }

    /// Tells those who want it how far everything is, unless they were told something since the last tick.
    async fn tick(&mut self) -> Result<(), End> {
        let wanting: Vec<_> = self.manners.iter().filter(|(_, manner)| manner.progress).collect();
        let quiet: Vec<i64> = wanting
            .into_iter()
            .filter(|(_, manner)| !manner.told)
            .map(|(watch, _)| *watch)
            .collect();
        self.manners.values_mut().for_each(|manner| manner.told = false);
        for watch_id in quiet {
            let ready =
                self.hub.with(|now| Some((now.progress_of(self.id, watch_id)?, now.raft_term())));
            let Some((revision, term)) = ready else { continue };
            let header = Some(self.hub.desk.header(revision, term));
            self.send(WatchResponse { header, watch_id, ..WatchResponse::default() }).await?;
        }
        Ok(())
    }

    /// Begins the read of the lagging watcher whose turn it is, unless one reads.
    fn read_next(&mut self) {
        if !self.reading.is_empty() {
            return;
        }
        let next = self.hub.with(|registry| registry.next_lagging(self.id, self.last_read));
        let Some((watch, wish, next)) = next else { return };
        self.last_read = watch;
        let prev_kv = self.manners.get(&watch).is_some_and(|manner| manner.prev_kv);
        let (hub, waits) = (Arc::clone(&self.hub), self.found_nothing);
        self.reading.spawn(async move {
            if waits {
                sleep(LOOK_AGAIN).await;
            }
            let read = match hub.turn_to_read().await {
                Ok(_turn) => catch_up::read(&hub.desk, &wish.range, next, prev_kv).await,
                Err(status) => Err(status),
            };
            ((watch, wish, next), read)
        });
    }

    async fn told_by_rows(&mut self, read: Result<Reading, JoinError>) -> Result<(), End> {
        let (lagging, read) = read.expect("a read does not panic, and ends with its stream");
        let Read { found, raft_term } = read?;
        // Cancelled since; another one may have its number by now.
        let still = self.hub.with(|registry| registry.is_lagging(self.id, &lagging));
        let (watch, wish, next) = lagging;
        let Some(manner) = self.manners.get(&watch).copied().filter(|_| still) else {
            return Ok(());
        };
        if let Some(compact_revision) = found.compacted {
            self.forget(watch);
            self.hub.with(|registry| registry.end_compacted(self.id, watch));
            // As etcd's: there is nothing to resume from.
            let header = Some(self.hub.desk.header(0, raft_term));
            return self
                .send(WatchResponse {
                    header,
                    watch_id: watch,
                    canceled: true,
                    compact_revision,
                    ..WatchResponse::default()
                })
                .await;
        }
        let wanted = found.events.iter().filter(|event| wish.wants(event));
        let events: Vec<_> =
            wanted.map(|event| respond::event(event, event.prev_kv.as_ref())).collect();
        if !events.is_empty() {
            self.send_events(watch, manner, (found.through, raft_term), events).await?;
        }
        let joined = self
            .hub
            .with(|registry| registry.join(self.id, watch, found.through.max(next - 1) + 1));
        self.found_nothing = !joined && found.through < next;
        Ok(())
    }
}

impl<B: Backend> Drop for ClientStream<B> {
    fn drop(&mut self) {
        self.hub.with(|registry| registry.close_stream(self.id));
    }
}

/// The range of a request: no key at all stands for the smallest.
fn range(create: &WatchCreateRequest) -> KeyRange {
    let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() };
    KeyRange::from_request(&key, &create.range_end)
}

const _: () = assert!(EventKind::Put as i32 == 0 && EventKind::Delete as i32 == 1, "as etcd's");
