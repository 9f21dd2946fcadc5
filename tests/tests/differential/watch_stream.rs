//! One watch stream of one side, and what it was told.

use std::collections::BTreeMap;

use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use quorate_api::mvccpb::Event;
use quorate_tests::client::Client;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::harness::{BOUND, LOOK};

/// Requests that wait for the server.
const REQUESTS_MAX: usize = 64;

/// The watch of answers to progress requests.
const EVERY_WATCH: i64 = -1;

/// What a watch was told. How events are cut into responses is open.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    /// It was created; refused if there is a reason.
    Created {
        /// The header's revision.
        revision: i64,
        /// Why it is none.
        refused: Option<String>,
    },
    /// One event.
    Event(Box<Event>),
    /// It was cancelled: why, and the revision before which there is nothing.
    Canceled(String, i64),
    /// So far it had been told when the stream's progress was told, and when all before had been awaited.
    Progress(i64),
}

/// A stream of one side.
pub(crate) struct Stream {
    client: Client,
    requests: mpsc::Sender<WatchRequest>,
    /// Until the first request: etcd's side of a stream begins with its first response.
    outgoing: Option<mpsc::Receiver<WatchRequest>>,
    responses: Option<Streaming<WatchResponse>>,
    /// By the watches' ids.
    pub(crate) told: BTreeMap<i64, Vec<Told>>,
    /// Up to which revision the live watches were told, and those that are cancelled without having been asked.
    reached: BTreeMap<i64, i64>,
    /// Progress that was told before all events up to it were.
    pub(crate) early: u64,
    /// Progress that was not awaited: its revision, and what of each watch's story was told before.
    hasty: Vec<(i64, BTreeMap<i64, usize>)>,
}

impl Stream {
    pub(crate) fn new(client: Client) -> Self {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        Self {
            client,
            requests,
            outgoing: Some(outgoing),
            responses: None,
            told: BTreeMap::new(),
            reached: BTreeMap::new(),
            early: 0,
            hasty: Vec::new(),
        }
    }

    /// Asks for a watch, and reads until it is answered.
    pub(crate) async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(create)).await;
        self.read_until(|response| response.created).await
    }

    /// Asks for the end of a watch. Of one that is there the answer is read.
    pub(crate) async fn cancel(&mut self, watch_id: i64, is_there: bool) {
        self.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
        if is_there {
            self.read_until(|response| response.canceled && response.watch_id == watch_id).await;
            self.reached.remove(&watch_id);
        }
    }

    /// Asks how far the stream is, until it is at `revision`, and notes where the last answer stands in what each watch
    /// was told: everything up to there has been. Returns the first answer.
    pub(crate) async fn progress(&mut self, revision: i64) -> i64 {
        let first = self.ask_progress().await;
        let (began, mut last) = (Instant::now(), first);
        while last < revision {
            assert!(began.elapsed() < BOUND, "progress does not come to {revision}");
            sleep(LOOK).await;
            last = self.ask_progress().await;
        }
        self.told.values_mut().for_each(|told| told.push(Told::Progress(last)));
        first
    }

    /// Asks how far the stream is while something may be under way. Whether it was true is looked at later.
    pub(crate) async fn hasty_progress(&mut self) -> i64 {
        let revision = self.ask_progress().await;
        let before = self.told.iter().map(|(id, told)| (*id, told.len())).collect();
        self.hasty.push((revision, before));
        revision
    }

    async fn ask_progress(&mut self) -> i64 {
        self.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        let is_progress = |response: &WatchResponse| {
            response.watch_id == EVERY_WATCH && !response.created && !response.canceled
        };
        let told = self.read_until(is_progress).await;
        told.header.as_ref().expect("a header").revision
    }

    async fn ask(&mut self, union: RequestUnion) {
        let request = WatchRequest { request_union: Some(union) };
        self.requests.send(request).await.expect("the stream lasts");
        if let Some(outgoing) = self.outgoing.take() {
            let opened = self.client.watch.watch(ReceiverStream::new(outgoing)).await;
            self.responses = Some(opened.expect("a stream can be opened").into_inner());
        }
    }

    async fn read_until(&mut self, wanted: impl Fn(&WatchResponse) -> bool) -> WatchResponse {
        loop {
            let response = self.read().await;
            if wanted(&response) {
                return response;
            }
        }
    }

    /// Reads and notes one response.
    async fn read(&mut self) -> WatchResponse {
        let responses = self.responses.as_mut().expect("something was asked for");
        let response = timeout(BOUND, responses.message()).await;
        let response = response.unwrap_or_else(|_| panic!("nothing comes after {:#?}", self.told));
        let response = response.expect("the stream lasts").expect("the stream lasts");
        let (id, revision) =
            (response.watch_id, response.header.as_ref().expect("a header").revision);
        if id == EVERY_WATCH && !response.created {
            return response;
        }
        let told = self.told.entry(id).or_default();
        if response.created {
            let refused = response.canceled.then(|| response.cancel_reason.clone());
            if refused.is_none() {
                self.reached.insert(id, 0);
                // What progress said was said of another watch.
                for (_, before) in &mut self.hasty {
                    before.remove(&id);
                }
            }
            told.push(Told::Created { revision, refused });
            return response;
        }
        if response.canceled {
            told.push(Told::Canceled(response.cancel_reason.clone(), response.compact_revision));
            self.reached.insert(id, i64::MAX);
        }
        let at = |event: &Event| event.kv.as_ref().map_or(0, |pair| pair.mod_revision);
        if let (Some(reached), Some(first), Some(last)) =
            (self.reached.get_mut(&id), response.events.first(), response.events.last())
        {
            assert!(*reached < at(first), "a revision comes in one response: {reached}, {first:?}");
            *reached = at(last);
        }
        told.extend(response.events.iter().map(|event| Told::Event(Box::new(event.clone()))));
        response
    }

    /// Reads until every watch has been told of the last revision that it can be told of, or is cancelled.
    pub(crate) async fn settle(&mut self, last: &BTreeMap<i64, i64>) {
        while last.iter().any(|(id, last)| self.reached.get(id).is_some_and(|now| now < last)) {
            self.read().await;
        }
        for (revision, before) in self.hasty.drain(..) {
            let is_late = |told: &Told| match told {
                Told::Event(event) => {
                    event.kv.as_ref().is_some_and(|pair| pair.mod_revision <= revision)
                }
                _ => false,
            };
            let mut late = before.iter().flat_map(|(id, before)| &self.told[id][*before..]);
            self.early += u64::from(late.any(is_late));
        }
    }
}
