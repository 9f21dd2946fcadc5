//! The same watches on a real etcd and on the gateway: whatever a client is told must be equal, but for who
//! told it.
//!
//! A step makes calls or requests, and says how many responses it brings. Several watches of one stream are
//! told in any order, so the responses of a step are compared by watch.

use bytes::Bytes;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::request_op::Request as Op;
use quorate_api::etcdserverpb::watch_client::WatchClient;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, ResponseHeader, TxnRequest,
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::peer::Etcd;
use crate::support::{Door, PATIENCE, heard, within};

/// A client with one watch stream.
pub(crate) struct Watching {
    pub(crate) kv: KvClient<Channel>,
    requests: mpsc::Sender<WatchRequest>,
    /// etcd answers with a head only when it has something to say, so nobody waits for that before.
    call: Option<JoinHandle<Streaming<WatchResponse>>>,
    responses: Option<Streaming<WatchResponse>>,
}

/// What a client does.
#[derive(Clone)]
enum Act {
    Put(&'static str, &'static str),
    Delete(&'static str, &'static str),
    Txn(Vec<Op>),
    Compact(i64),
    Create(WatchCreateRequest),
    Cancel(i64),
    Progress,
}

impl Watching {
    pub(crate) async fn on(channel: Channel) -> Self {
        let (requests, sent) = mpsc::channel(64);
        let kv = KvClient::new(channel.clone());
        let call = tokio::spawn(async {
            let answer = WatchClient::new(channel).watch(ReceiverStream::new(sent)).await;
            answer.expect("a stream").into_inner()
        });
        Self { kv, requests, call: Some(call), responses: None }
    }

    pub(crate) async fn send(&self, union: RequestUnion) {
        let request = WatchRequest { request_union: Some(union) };
        self.requests.send(request).await.expect("the stream is open");
    }

    pub(crate) async fn create(&self, create: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(create)).await;
    }

    /// The next response, without who sent it.
    pub(crate) async fn next(&mut self) -> WatchResponse {
        within("a response of a watch", self.unbounded()).await
    }

    async fn unbounded(&mut self) -> WatchResponse {
        let responses = self.responses().await;
        let mut response = responses.message().await.expect("no error").expect("no end");
        let header = response.header.expect("every response has a header");
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
        let revision = header.revision;
        response.header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
        response
    }

    /// The next response; none if the stream ends instead.
    pub(crate) async fn response(&mut self) -> Option<WatchResponse> {
        heard(self.responses().await).await.ok().flatten()
    }

    pub(crate) async fn end(&mut self) -> tonic::Status {
        heard(self.responses().await).await.expect_err("the stream ends with a reason")
    }

    async fn responses(&mut self) -> &mut Streaming<WatchResponse> {
        if let Some(call) = &mut self.call {
            let called = within("a stream", call).await;
            self.responses = Some(called.expect("the call does not panic"));
            self.call = None;
        }
        self.responses.as_mut().expect("the call is over")
    }

    async fn act(&mut self, act: Act) {
        match act {
            Put(key, value) => drop(self.kv.put(put(key, value)).await.expect("a put")),
            Delete(key, end) => {
                drop(self.kv.delete_range(delete(key, end)).await.expect("a delete"));
            }
            Txn(ops) => drop(self.kv.txn(txn(ops)).await.expect("a transaction")),
            Compact(revision) => {
                let request = CompactionRequest { revision, physical: true };
                drop(self.kv.compact(request).await.expect("a compaction"));
            }
            Create(create) => self.create(create).await,
            Cancel(watch_id) => {
                self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
            }
            Progress => {
                self.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
            }
        }
    }

    async fn step(&mut self, acts: Vec<Act>, responses: usize) -> Vec<WatchResponse> {
        for act in acts {
            self.act(act).await;
        }
        let mut told = Vec::new();
        for _ in 0..responses {
            // The comparison shows which is missing.
            let Ok(response) = timeout(PATIENCE, self.unbounded()).await else { break };
            told.push(response);
        }
        told.sort_by_key(|response| (response.watch_id, !response.created));
        told
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() }
}

fn delete(key: &str, end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: false }
}

fn txn(ops: Vec<Op>) -> TxnRequest {
    let success = ops.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
    TxnRequest { success, ..TxnRequest::default() }
}

pub(crate) fn watch(key: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), range_end: bytes(end), ..WatchCreateRequest::default() }
}

pub(crate) fn from(start_revision: i64, create: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest { start_revision, ..create }
}

fn numbered(watch_id: i64, create: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest { watch_id, ..create }
}

pub(crate) fn with_prev(create: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest { prev_kv: true, ..create }
}

fn filtered(filters: &[i32], create: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest { filters: filters.to_vec(), ..create }
}

async fn same_story(script: Vec<(&str, Vec<Act>, usize)>) {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let mut theirs = Watching::on(etcd.channel()).await;
    let mut ours = Watching::on(door.channel().await).await;
    for (name, acts, responses) in script {
        let expected = theirs.step(acts.clone(), responses).await;
        assert_eq!(expected.len(), responses, "{name}: etcd says {expected:?}");
        assert_eq!(ours.step(acts, responses).await, expected, "{name}");
    }
}

use Act::{Cancel, Compact, Create, Delete, Progress, Put, Txn};

#[tokio::test]
async fn watches_are_created_told_and_cancelled_as_by_etcd() {
    same_story(vec![
        ("one key, the next revision", vec![Create(watch("a", ""))], 1),
        ("it is made", vec![Put("a", "1")], 1),
        ("another key says nothing, then it is changed", vec![Put("b", "1"), Put("a", "2")], 1),
        ("a range, numbered", vec![Create(numbered(7, with_prev(watch("a", "c"))))], 1),
        ("the number again", vec![Create(numbered(7, watch("z", "")))], 1),
        ("both are told", vec![Put("a", "3")], 2),
        ("of a delete too", vec![Delete("a", "")], 2),
        ("a delete of nothing is nothing", vec![Delete("a", ""), Put("b", "2")], 1),
        ("a range that ends before it begins", vec![Create(watch("b", "a"))], 1),
        ("a range that ends where it begins", vec![Create(watch("b", "b"))], 1),
        ("no key", vec![Create(numbered(30, watch("", "")))], 1),
        ("cancelled, and what is not there", vec![Cancel(99), Cancel(7), Cancel(7)], 1),
        ("its number is free", vec![Create(numbered(7, watch("q", "")))], 1),
        ("told no more", vec![Put("b", "3"), Put("a", "4")], 1),
        ("numbers go on", vec![Create(watch("n", "")), Create(watch("n", ""))], 2),
    ])
    .await;
}

#[tokio::test]
async fn watches_begin_in_the_past_and_in_the_future_as_with_etcd() {
    let past = || vec![Put("a", "1"), Put("b", "1"), Put("a", "2"), Delete("a", ""), Put("a", "3")];
    same_story(vec![
        ("what happened", past(), 0),
        ("all of it, once", vec![Create(with_prev(from(1, watch("\0", "\0"))))], 2),
        ("a part, without pairs of before", vec![Create(from(4, watch("a", "b")))], 2),
        ("the last", vec![Create(numbered(40, from(6, watch("a", ""))))], 2),
        ("the next", vec![Create(numbered(41, from(7, watch("c", ""))))], 1),
        ("a later one", vec![Create(numbered(42, from(9, watch("c", ""))))], 1),
        ("too early for the later one", vec![Put("c", "1")], 2),
        ("too early again", vec![Put("c", "2")], 2),
        ("now", vec![Put("c", "3")], 3),
        ("how far it is", vec![Progress], 1),
    ])
    .await;
}

#[tokio::test]
async fn a_revision_is_told_in_one_response_and_filters_leave_out_as_with_etcd() {
    let op_put = |key: &str, value: &str| Op::RequestPut(put(key, value));
    let op_delete = |key: &str, end: &str| Op::RequestDeleteRange(delete(key, end));
    same_story(vec![
        ("all", vec![Create(with_prev(watch("a", "z")))], 1),
        ("no puts", vec![Create(filtered(&[0], watch("a", "z")))], 1),
        ("no deletes", vec![Create(filtered(&[1], watch("a", "z")))], 1),
        ("neither", vec![Create(filtered(&[1, 0], watch("a", "z")))], 1),
        ("puts", vec![Put("k", "1")], 2),
        ("a delete", vec![Delete("k", "")], 2),
        ("many at once", vec![Txn(vec![op_put("b", "1"), op_put("c", "1"), op_put("d", "1")])], 2),
        ("a range", vec![Delete("a", "z")], 2),
        ("some", vec![Put("e", "1"), Put("f", "1")], 4),
        (
            "what a transaction puts and what it deletes",
            vec![Txn(vec![op_put("g", "1"), op_delete("e", "g"), op_put("h", "1")])],
            3,
        ),
        (
            "a key that is put and deleted in one revision",
            vec![Txn(vec![op_put("i", "1"), op_delete("i", "\0")])],
            3,
        ),
        (
            "a key that is changed and deleted in one revision",
            vec![Txn(vec![op_put("h", "2"), op_delete("h", "\0")])],
            3,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_watch_that_needs_what_is_compacted_is_cancelled_as_by_etcd() {
    same_story(vec![
        ("what happened", vec![Put("a", "1"), Put("a", "2"), Put("a", "3"), Put("b", "1")], 0),
        ("compacted", vec![Compact(4)], 0),
        ("below", vec![Create(from(3, watch("a", "")))], 2),
        ("at it", vec![Create(from(4, watch("a", "")))], 2),
        ("far below", vec![Create(numbered(11, from(1, watch("x", ""))))], 2),
        ("no revision at all", vec![Create(numbered(12, from(-5, watch("a", ""))))], 2),
        ("its number is taken", vec![Create(numbered(11, watch("a", "")))], 1),
        ("it is gone", vec![Cancel(11), Cancel(11), Put("a", "4")], 2),
        ("its number is free", vec![Create(numbered(11, watch("a", "")))], 1),
        ("it is told, as the one that goes on", vec![Put("a", "5")], 2),
        ("a number that others come to", vec![Create(numbered(3, from(1, watch("a", ""))))], 2),
        ("the number before", vec![Create(watch("x", ""))], 1),
        ("the number after", vec![Create(watch("x", ""))], 1),
        ("the number is taken all the while", vec![Create(numbered(3, watch("x", "")))], 1),
        ("it is cancelled, and watched", vec![Cancel(3), Create(numbered(3, watch("y", "")))], 2),
        ("the new watch is told", vec![Put("y", "1")], 1),
    ])
    .await;
}

#[tokio::test]
async fn a_revision_is_cut_into_fragments_where_etcd_cuts_it() {
    let in_fragments = |create| WatchCreateRequest { fragment: true, ..create };
    let value = |bytes: usize| -> &'static str { "v".repeat(bytes).leak() };
    let (large, middle) = (value(700_000), value(650_000));
    let delete_all = || Txn(vec![Op::RequestDeleteRange(delete("a", "z"))]);
    same_story(vec![
        ("three large ones", vec![Put("b", large), Put("c", large), Put("d", large)], 0),
        ("a watch", vec![Create(with_prev(in_fragments(watch("a", "z"))))], 1),
        ("they are deleted at once: two, and one", vec![delete_all()], 2),
        ("five", vec![Put("b", large), Put("c", middle), Put("d", middle), Put("e", large)], 4),
        ("the fifth is small", vec![Put("f", "v")], 1),
        ("deleted at once: three, and two", vec![delete_all()], 2),
    ])
    .await;
}
