//! One client's stream: what it asks, and what it is told.
//!
//! One task, one thing at a time, so that a response is sent before anything that follows from it. What
//! waits in the registry's queue goes out first; then one step of one lagging watcher, in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use quorate_api::etcdserverpb::watch_create_request::FilterType;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use quorate_types::kv::EventKind;
use quorate_types::{KeyRange, Term};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tonic::{Status, Streaming};

use super::catch_up::{self, Read};
use super::ending::{Ending, must_end};
use super::hub::Hub;
use super::permits::{self, Permits};
use super::registry::{Note, StreamId, Wish};
use super::respond;
use crate::backend::Backend;

/// The watch of responses that are about the whole stream.
const EVERY_WATCH: i64 = -1;

/// Watches that compaction has cancelled and that are remembered for that, for each stream.
const COMPACTED_MAX: usize = 1_000;

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
    /// Watches that compaction has cancelled: to etcd they are there until their client cancels them too.
    compacted: BTreeSet<i64>,
    /// Progress requests that wait until everything is sent.
    progress_asked: usize,
    /// The lagging watcher that read last.
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
type Reading = BoxFuture<'static, (Lagging, Result<Read, Status>)>;

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
            compacted: BTreeSet::new(),
            progress_asked: 0,
            last_read: EVERY_WATCH,
            found_nothing: false,
        }
    }

    /// To the end of the stream.
    pub(crate) async fn run(mut self, requests: Streaming<WatchRequest>) {
        if let Err(End::Status(status)) = self.serve(requests).await {
            // Whoever has gone needs no reason.
            drop(self.responses.send(Err(status)).await);
        }
    }

    async fn serve(&mut self, mut requests: Streaming<WatchRequest>) -> Result<(), End> {
        let interval = self.hub.desk.config.watch_progress_interval;
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut asks, mut reading) = (true, None::<Reading>);
        let (mut ending, news) = (self.ending.clone(), Arc::clone(&self.news));
        let (responses, requires_leader) = (self.responses.clone(), self.requires_leader);
        loop {
            while let Some(note) = self.hub.with(|registry| registry.take(self.id)) {
                self.tell(note).await?;
            }
            self.answer_progress().await?;
            if reading.is_none() {
                reading = self.read_next();
            }
            tokio::select! {
                biased;
                why = must_end(&mut ending, requires_leader) => {
                    return Err(Status::from(why).into());
                }
                () = responses.closed() => return Err(End::Gone),
                request = requests.message(), if asks => match request? {
                    Some(request) => self.take(request).await?,
                    // It says nothing more, and may go on to listen.
                    None => asks = false,
                },
                _ = ticks.tick() => self.tick().await?,
                () = news.notified() => {}
                (lagging, read) = async { reading.as_mut().expect("it reads").await },
                    if reading.is_some() =>
                {
                    reading = None;
                    self.told_by_rows(lagging, read?).await?;
                }
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
                    cancel_reason: permits::reason(why),
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
                self.compacted.remove(&watch_id);
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
        if !self.remove(watch_id) && !self.compacted.remove(&watch_id) {
            return Ok(());
        }
        let header = Some(self.here());
        let canceled = true;
        self.send(WatchResponse { header, watch_id, canceled, ..WatchResponse::default() }).await
    }

    fn remove(&mut self, watch: i64) -> bool {
        self.manners.remove(&watch);
        self.permits.forget(watch);
        self.hub.with(|registry| registry.cancel(self.id, watch))
    }

    /// The head of a response that is about no event.
    fn here(&self) -> quorate_api::etcdserverpb::ResponseHeader {
        let (revision, term) = self.hub.with(|now| (now.through(), now.raft_term()));
        self.hub.desk.header(revision, term)
    }

    async fn tell(&mut self, note: Note) -> Result<(), End> {
        let Note { watch, batch, picks, .. } = note;
        // Cancelled since.
        let Some(manner) = self.manners.get(&watch).copied() else { return Ok(()) };
        let is_old = |place: &u32| !batch.events()[*place as usize].is_create();
        let prev_kvs = match manner.prev_kv && picks.iter().any(is_old) {
            true => catch_up::prev_kvs(&self.hub.desk, &batch).await?,
            false => &[],
        };
        let event = |place: &u32| {
            let place = *place as usize;
            let prev_kv = prev_kvs.get(place).and_then(Option::as_ref);
            respond::event(&batch.events()[place], prev_kv)
        };
        let last = &batch.events()[*picks.last().expect("a note has events") as usize];
        let header = (last.revision(), batch.raft_term);
        self.send_events(watch, manner, header, picks.iter().map(event).collect()).await
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
            let (header, cancel_reason) = (Some(self.here()), permits::reason(why));
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

    /// The read of the lagging watcher whose turn it is.
    fn read_next(&mut self) -> Option<Reading> {
        let next = self.hub.with(|registry| registry.next_lagging(self.id, self.last_read));
        let (watch, wish, next) = next?;
        self.last_read = watch;
        let prev_kv = self.manners.get(&watch).is_some_and(|manner| manner.prev_kv);
        let (hub, waits) = (Arc::clone(&self.hub), self.found_nothing);
        Some(Box::pin(async move {
            if waits {
                sleep(LOOK_AGAIN).await;
            }
            let read = match hub.turn_to_read().await {
                Ok(_turn) => catch_up::read(&hub.desk, &wish.range, next, prev_kv).await,
                Err(status) => Err(status),
            };
            ((watch, wish, next), read)
        }))
    }

    async fn told_by_rows(&mut self, lagging: Lagging, read: Read) -> Result<(), End> {
        // Cancelled since; another one may have its number by now.
        let still = self.hub.with(|registry| registry.is_lagging(self.id, &lagging));
        let (watch, wish, next) = lagging;
        let Some(manner) = self.manners.get(&watch).copied().filter(|_| still) else {
            return Ok(());
        };
        let Read { found, raft_term } = read;
        if let Some(compact_revision) = found.compacted {
            self.remove(watch);
            self.compacted.insert(watch);
            if self.compacted.len() > COMPACTED_MAX {
                self.compacted.pop_first();
            }
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
