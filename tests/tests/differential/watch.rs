//! Watches: from random revisions, over all forms of ranges, with filters and pairs before, while generated
//! writes happen; created and told the same as by etcd.
//!
//! One round: watches are created, between them come writes, and in the end every key is put in one transaction
//! and deleted in another one, which every watch that is left must see. How events are cut into responses is open,
//! but for one thing: the events of one revision come in one response. Cancels and compactions under a live watch
//! are left out, because what is told before them depends on time; so are watches that filter everything.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use quorate_api::etcdserverpb::watch_create_request::FilterType;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
    WatchResponse, request_op,
};
use quorate_api::mvccpb::Event;
use quorate_tests::client::Client;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::compare;
use super::generate::{Generator, KEYS, Request};

/// Watches of one round, all on one stream.
const WATCHES: usize = 8;

/// The most writes between two of them.
const WRITES_MAX: usize = 6;

/// How long what must come may take: for a broken server.
const EVENTS_BOUND: Duration = Duration::from_secs(30);

/// What a watch was told.
#[derive(Debug, Clone, PartialEq, Default)]
struct Told {
    created: Option<Made>,
    /// Why it was cancelled, and the revision before which there is nothing.
    canceled: Option<(String, i64)>,
    events: Vec<Event>,
}

/// The answer to its creation.
#[derive(Debug, Clone, PartialEq)]
struct Made {
    id: i64,
    revision: i64,
    canceled: bool,
}

/// A stream of one side.
struct Stream {
    client: Client,
    requests: mpsc::Sender<WatchRequest>,
    /// Until the first request: etcd's side of a stream begins with its first response.
    outgoing: Option<mpsc::Receiver<WatchRequest>>,
    responses: Option<Streaming<WatchResponse>>,
    /// By the watches' ids.
    told: BTreeMap<i64, Told>,
}

impl Stream {
    fn new(client: Client) -> Self {
        let (requests, outgoing) = mpsc::channel(WATCHES);
        let told = BTreeMap::new();
        Self { client, requests, outgoing: Some(outgoing), responses: None, told }
    }

    /// Asks for a watch, and reads until it is answered.
    async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        self.requests.send(request).await.expect("the stream lasts");
        if let Some(outgoing) = self.outgoing.take() {
            let opened = self.client.watch.watch(ReceiverStream::new(outgoing)).await;
            self.responses = Some(opened.expect("a stream can be opened").into_inner());
        }
        loop {
            let response = self.read().await;
            if response.created {
                return response;
            }
        }
    }

    /// Reads and notes one response.
    async fn read(&mut self) -> WatchResponse {
        let responses = self.responses.as_mut().expect("a watch was asked for");
        let response = timeout(EVENTS_BOUND, responses.message()).await;
        let response = response.unwrap_or_else(|_| panic!("nothing comes after {:#?}", self.told));
        let response = response.expect("the stream lasts").expect("the stream lasts");
        let revision = response.header.as_ref().expect("a header").revision;
        let told = self.told.entry(response.watch_id).or_default();
        if response.created {
            let (id, canceled) = (response.watch_id, response.canceled);
            told.created = Some(Made { id, revision, canceled });
        }
        if response.canceled {
            told.canceled = Some((response.cancel_reason.clone(), response.compact_revision));
        }
        let at = |event: &Event| event.kv.as_ref().map_or(0, |pair| pair.mod_revision);
        if let (Some(before), Some(next)) = (told.events.last(), response.events.first()) {
            assert!(at(before) < at(next), "a revision comes in one response: {before:?} {next:?}");
        }
        told.events.extend(response.events.iter().cloned());
        response
    }

    /// Reads until every watch has been told of the last revision that it can be told of.
    async fn settle(&mut self, last: &BTreeMap<i64, i64>) {
        let has_come = |told: &BTreeMap<i64, Told>| {
            last.iter().all(|(id, last)| {
                let told = &told[id];
                let end = told.events.last().and_then(|event| event.kv.as_ref());
                told.canceled.is_some() || end.is_some_and(|pair| pair.mod_revision >= *last)
            })
        };
        while !has_come(&self.told) {
            self.read().await;
        }
    }
}

/// One round; returns how the sides differ, if they do.
pub(crate) async fn differences(
    sides: &mut [Vec<Client>; 2],
    seed: u64,
    generator: &mut Generator,
) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let node = rng.usize(..3);
    let mut shown = Vec::new();
    let mut streams: Vec<_> = sides.iter().map(|side| Stream::new(side[node].clone())).collect();
    let mut creates = BTreeMap::new();
    for number in 0..WATCHES {
        for _ in 0..rng.usize(..WRITES_MAX) {
            let (_, request) = generator.next();
            if matches!(request, Request::Range(_) | Request::Compact(_)) {
                continue;
            }
            if let Some(difference) = write(sides, node, &request, generator).await {
                return vec![difference];
            }
            shown.push(format!("{request:?}"));
        }
        let create = create(&mut rng, generator, number);
        let mut answers = Vec::new();
        for (stream, side) in streams.iter_mut().zip(sides.iter_mut()) {
            super::settle(side).await;
            answers.push(stream.create(create.clone()).await);
        }
        shown.push(format!("{create:?}"));
        let id = answers[0].watch_id;
        // A refused one may have the id of another one, or none at all.
        let refused = answers[0].canceled;
        if id != answers[1].watch_id || refused != answers[1].canceled {
            return vec![format!(
                "seed {seed}: {}\netcd answers {:#?}\nQuorate answers {:#?}",
                shown.join("\n"),
                answers[0],
                answers[1]
            )];
        }
        if !refused {
            creates.insert(id, create);
        }
    }
    // Every key is put, and then deleted.
    let put = |key: &&'static [u8]| {
        let put = PutRequest { key: Bytes::from_static(key), ..PutRequest::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    };
    let all = TxnRequest { success: KEYS.iter().map(put).collect(), ..TxnRequest::default() };
    let zero = Bytes::from_static(b"\0");
    let none = DeleteRangeRequest { key: zero.clone(), range_end: zero, prev_kv: false };
    let mut ends = Vec::new();
    for request in [Request::Txn(all), Request::DeleteRange(none)] {
        if let Some(difference) = write(sides, node, &request, generator).await {
            return vec![difference];
        }
        ends.push(generator.position().0);
    }
    let end = |create: &WatchCreateRequest| {
        let no_delete = create.filters.contains(&FilterType::Nodelete.into());
        // One that begins later has nothing to be told.
        let end = if no_delete { ends[0] } else { ends[1] };
        (create.start_revision <= end).then_some(end)
    };
    let last = creates.iter().filter_map(|(id, create)| Some((*id, end(create)?))).collect();
    let mut told = Vec::new();
    for mut stream in streams {
        stream.settle(&last).await;
        told.push(stream.told);
    }
    if told[0] == told[1] {
        return Vec::new();
    }
    let mut lines = vec![format!("seed {seed}: {}", shown.join("\n"))];
    for (id, expected) in &told[0] {
        let found = told[1].get(id);
        if found != Some(expected) {
            let create = creates.get(id);
            lines.push(format!(
                "watch {id}, {create:?}:\netcd tells {expected:#?}\nQuorate tells {found:#?}"
            ));
        }
    }
    lines
}

/// One write on both sides; says how the answers differ, if they do.
async fn write(
    sides: &mut [Vec<Client>; 2],
    node: usize,
    request: &Request,
    generator: &mut Generator,
) -> Option<String> {
    let mut answers = Vec::new();
    for side in sides.iter_mut() {
        super::settle(side).await;
        answers.push(super::send(&mut side[node], request).await);
    }
    generator.learn(request, &answers[0]);
    let difference = compare::difference(request, &answers[0], &answers[1]);
    difference.map(|how| format!("{how}: {request:#?}: {answers:#?}"))
}

fn create(rng: &mut Rng, generator: &mut Generator, number: usize) -> WatchCreateRequest {
    let (revision, compacted) = generator.position();
    let key = generator.key();
    let mut range_end = generator.range_end(&key);
    // etcd refuses an empty range by other rules in other versions.
    if !range_end.is_empty() && range_end[..] != b"\0"[..] && range_end <= key {
        range_end = Bytes::new();
    }
    let filters = [vec![], vec![], vec![FilterType::Noput], vec![FilterType::Nodelete]];
    let filters = rng.choice(filters).expect("there are filters");
    WatchCreateRequest {
        key,
        range_end,
        start_revision: match rng.u32(..8) {
            0 => compacted,
            1 => (compacted - 1).max(0),
            2 => revision + 1,
            3 => revision + rng.i64(2..8),
            4..7 => rng.i64(compacted..=revision),
            _ => 0,
        },
        filters: filters.into_iter().map(Into::into).collect(),
        prev_kv: rng.bool(),
        fragment: rng.u32(..4) == 0,
        // Sometimes one that is taken.
        watch_id: if rng.u32(..4) == 0 { rng.i64(1..=number as i64 + 1) } else { 0 },
        ..WatchCreateRequest::default()
    }
}
