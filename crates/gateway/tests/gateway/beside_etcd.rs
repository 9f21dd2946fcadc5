//! The same requests to a real etcd and to the gateway: whatever a client can see must be equal, but for
//! who answered.
//!
//! The keyspace behind the gateway is the tests' own, so this shows two things: that translation and
//! refusals are etcd's, and that what the other tests expect is what etcd does. Never add an unknown sort
//! target here: it ends the etcd process.

use bytes::Bytes;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, compare::CompareResult, compare::CompareTarget,
    compare::TargetUnion, request_op::Request, response_op::Response,
};
use tonic::Status;
use tonic::transport::Channel;

use crate::peer::Etcd;
use crate::support::Door;

/// One call of a script.
#[derive(Clone, Debug)]
enum Call {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
}

/// Makes a call and writes the answer down, without who gave it.
async fn answer(kv: &mut KvClient<Channel>, call: Call) -> String {
    match call {
        Call::Range(request) => told(kv.range(request).await, |r| anonymous(&mut r.header)),
        Call::Put(request) => told(kv.put(request).await, |r| anonymous(&mut r.header)),
        Call::Delete(request) => told(kv.delete_range(request).await, |r| anonymous(&mut r.header)),
        Call::Compact(request) => told(kv.compact(request).await, |r| anonymous(&mut r.header)),
        Call::Txn(request) => told(kv.txn(request).await, |r| {
            anonymous(&mut r.header);
            r.responses.iter_mut().for_each(inner_header_holds_a_revision_only);
        }),
    }
}

fn told<T: std::fmt::Debug>(
    answer: Result<tonic::Response<T>, Status>,
    forget: impl FnOnce(&mut T),
) -> String {
    match answer {
        Ok(response) => {
            let mut response = response.into_inner();
            forget(&mut response);
            format!("{response:?}")
        }
        Err(status) => format!("{:?} {:?}", status.code(), status.message()),
    }
}

fn anonymous(header: &mut Option<ResponseHeader>) {
    let header = header.as_mut().expect("every response has a header");
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
    *header = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
}

fn inner_header_holds_a_revision_only(op: &mut ResponseOp) {
    let header = match op.response.as_ref().expect("an answer to each operation") {
        Response::ResponseRange(range) => range.header,
        Response::ResponsePut(put) => put.header,
        Response::ResponseDeleteRange(delete) => delete.header,
        Response::ResponseTxn(txn) => txn.header,
    };
    let header = header.expect("every answer has a header");
    assert_eq!((header.cluster_id, header.member_id, header.raft_term), (0, 0, 0));
}

/// Runs a script on both and compares call by call.
async fn same_answers(script: Vec<(&str, Call)>) {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let (mut theirs, mut ours) = (KvClient::new(etcd.channel()), door.kv().await);
    for (name, call) in script {
        let expected = answer(&mut theirs, call.clone()).await;
        assert_eq!(answer(&mut ours, call.clone()).await, expected, "{name}: {call:?}");
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn range(key: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), ..RangeRequest::default() }
}

fn ranges(key: &str, end: &str) -> RangeRequest {
    RangeRequest { range_end: bytes(end), ..range(key) }
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() }
}

fn delete(key: &str, end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: true }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn do_range(range: RangeRequest) -> RequestOp {
    op(Request::RequestRange(range))
}

fn do_put(key: &str, value: &str) -> RequestOp {
    op(Request::RequestPut(put(key, value)))
}

fn do_delete(key: &str, end: &str) -> RequestOp {
    op(Request::RequestDeleteRange(delete(key, end)))
}

fn do_txn(txn: TxnRequest) -> RequestOp {
    op(Request::RequestTxn(txn))
}

fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn either(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, failure, ..TxnRequest::default() }
}

fn when(compare: Vec<Compare>) -> TxnRequest {
    TxnRequest { compare, ..TxnRequest::default() }
}

fn compare(
    key: &str,
    target: CompareTarget,
    result: CompareResult,
    target_union: Option<TargetUnion>,
) -> Compare {
    let (target, result) = (target as i32, result as i32);
    Compare { key: bytes(key), target, result, target_union, range_end: Bytes::new() }
}

/// `depth` transactions inside each other, each with `width` puts of its own beside the next.
fn nested(depth: usize, width: usize) -> TxnRequest {
    let mut ops: Vec<_> = (0..width).map(|at| do_put(&format!("{depth}/{at}"), "v")).collect();
    if depth > 0 {
        ops.push(do_txn(nested(depth - 1, width)));
    }
    then(ops)
}

#[tokio::test]
async fn single_calls_answer_as_etcd_does() {
    let old = |revision| RangeRequest { revision, ..range("a") };
    let put_with = |put: PutRequest| Call::Put(PutRequest { prev_kv: true, ..put });
    let sorted = |sort_order, sort_target| {
        Call::Range(RangeRequest { sort_order, sort_target, ..ranges("a", "z") })
    };
    same_answers(vec![
        ("get nothing", Call::Range(range("a"))),
        ("put", Call::Put(put("a", "1"))),
        ("put again", put_with(put("a", "2"))),
        ("put another", put_with(put("b", "0"))),
        ("put a third", Call::Put(put("c", "3"))),
        ("put an empty value", Call::Put(put("d", ""))),
        ("get", Call::Range(range("a"))),
        ("get at an old revision", Call::Range(old(2))),
        ("get at a negative revision", Call::Range(old(-7))),
        ("get at a future revision", Call::Range(old(99))),
        ("get without a key", Call::Range(range(""))),
        ("get a range", Call::Range(ranges("a", "c"))),
        ("get from a key on", Call::Range(ranges("b", "\0"))),
        ("get an inverted range", Call::Range(ranges("c", "a"))),
        ("get with a limit", Call::Range(RangeRequest { limit: 2, ..ranges("a", "z") })),
        ("get with a negative limit", Call::Range(RangeRequest { limit: -2, ..ranges("a", "z") })),
        ("get keys only", Call::Range(RangeRequest { keys_only: true, ..ranges("a", "z") })),
        ("count only", Call::Range(RangeRequest { count_only: true, ..ranges("a", "z") })),
        ("sort by value", sorted(1, 4)),
        ("sort by value, descending", sorted(2, 4)),
        ("sort by value without an order", sorted(0, 4)),
        ("sort by key, descending", sorted(2, 0)),
        ("sort by version", sorted(1, 1)),
        ("sort by create revision, descending", sorted(2, 2)),
        ("sort by mod revision without an order", sorted(0, 3)),
        (
            "filter by mod revision",
            Call::Range(RangeRequest {
                min_mod_revision: 4,
                max_mod_revision: 5,
                ..ranges("a", "z")
            }),
        ),
        (
            "filter by create revision",
            Call::Range(RangeRequest {
                min_create_revision: 3,
                max_create_revision: 4,
                ..ranges("a", "z")
            }),
        ),
        ("put without a key", Call::Put(put("", "v"))),
        ("put a value and ignore it", put_with(PutRequest { ignore_value: true, ..put("a", "9") })),
        (
            "put a lease and ignore it",
            put_with(PutRequest { ignore_lease: true, lease: 5, ..put("a", "9") }),
        ),
        ("put under a lease that is not", put_with(PutRequest { lease: 5, ..put("a", "9") })),
        ("touch", put_with(PutRequest { ignore_value: true, ..put("a", "") })),
        ("touch nothing", put_with(PutRequest { ignore_value: true, ..put("nope", "") })),
        ("keep the lease of nothing", put_with(PutRequest { ignore_lease: true, ..put("x", "") })),
        ("delete without a key", Call::Delete(delete("", ""))),
        ("delete nothing", Call::Delete(delete("nope", ""))),
        ("delete an inverted range", Call::Delete(delete("c", "a"))),
        ("delete a range", Call::Delete(delete("b", "d"))),
        ("compact the future", Call::Compact(CompactionRequest { revision: 99, physical: false })),
        ("compact", Call::Compact(CompactionRequest { revision: 4, physical: true })),
        ("compact again", Call::Compact(CompactionRequest { revision: 4, physical: false })),
        ("compact below", Call::Compact(CompactionRequest { revision: 3, physical: false })),
        ("get at the compacted revision", Call::Range(old(4))),
        ("get below the compacted revision", Call::Range(old(3))),
    ])
    .await;
}

#[tokio::test]
async fn transactions_answer_as_etcd_does() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let check = |compares: Vec<Compare>| {
        Call::Txn(TxnRequest { failure: vec![do_range(range("a"))], ..when(compares) })
    };
    let over =
        |range_end: &str, compare: Compare| Compare { range_end: bytes(range_end), ..compare };
    let value = |text: &str| Some(TargetUnion::Value(bytes(text)));
    same_answers(vec![
        ("empty", Call::Txn(TxnRequest::default())),
        ("put", Call::Put(put("a", "1"))),
        ("version of nothing is 0", check(vec![compare("z", Version, Equal, None)])),
        ("value of nothing is not empty", check(vec![compare("z", Value, Equal, value(""))])),
        ("value of nothing is not unequal", check(vec![compare("z", Value, NotEqual, value("x"))])),
        ("value", check(vec![compare("a", Value, Equal, value("1"))])),
        ("value without one", check(vec![compare("a", Value, Greater, None)])),
        (
            "a field of another target counts as absent",
            check(vec![compare("a", Version, Greater, Some(TargetUnion::ModRevision(50)))]),
        ),
        ("create", check(vec![compare("a", Create, Equal, Some(TargetUnion::CreateRevision(2)))])),
        ("mod", check(vec![compare("a", Mod, Less, Some(TargetUnion::ModRevision(2)))])),
        ("lease", check(vec![compare("a", Lease, Equal, None)])),
        ("over a range", check(vec![over("c", compare("a", Value, Equal, value("1")))])),
        ("over an empty range", check(vec![over("zz", compare("z", Value, Equal, value("1")))])),
        (
            "over an empty range by version",
            check(vec![over("zz", compare("z", Version, Equal, None))]),
        ),
        ("compare without a key", check(vec![compare("", Version, Equal, None)])),
        (
            "headers of a write",
            Call::Txn(then(vec![
                do_range(range("a")),
                do_delete("nope", ""),
                do_put("b", "1"),
                do_range(ranges("a", "z")),
                do_delete("a", ""),
                do_range(range("a")),
            ])),
        ),
        (
            "headers of nested writes",
            Call::Txn(then(vec![
                do_txn(then(vec![do_range(range("b"))])),
                do_put("c", "1"),
                do_txn(then(vec![do_put("d", "2"), do_txn(then(vec![do_range(range("d"))]))])),
                do_range(range("c")),
            ])),
        ),
        ("reads only", Call::Txn(then(vec![do_range(range("b")), do_range(range("nope"))]))),
        (
            "reads at an old revision",
            Call::Txn(then(vec![do_range(RangeRequest { revision: 2, ..range("a") })])),
        ),
        (
            "a future read",
            Call::Txn(then(vec![do_range(RangeRequest { revision: 99, ..range("a") })])),
        ),
        (
            "a future read among writes",
            Call::Txn(then(vec![
                do_put("e", "1"),
                do_range(RangeRequest { revision: 99, ..range("a") }),
            ])),
        ),
        ("nothing was written by it", Call::Range(range("e"))),
        ("an operation that is none", Call::Txn(then(vec![RequestOp { request: None }]))),
        ("a read without a key", Call::Txn(then(vec![do_range(range(""))]))),
        ("a put without a key", Call::Txn(either(vec![], vec![do_put("", "v")]))),
        ("a nested put without a key", Call::Txn(then(vec![do_txn(then(vec![do_put("", "")]))]))),
        ("a delete without a key", Call::Txn(then(vec![do_delete("", "")]))),
        (
            "touch nothing in the branch that does not run",
            Call::Txn(either(
                vec![],
                vec![op(Request::RequestPut(PutRequest { ignore_value: true, ..put("nope", "") }))],
            )),
        ),
        (
            "touch nothing in the branch that runs",
            Call::Txn(then(vec![op(Request::RequestPut(PutRequest {
                ignore_value: true,
                ..put("nope", "")
            }))])),
        ),
    ])
    .await;
}

#[tokio::test]
async fn limits_of_transactions_are_those_of_etcd() {
    let puts = |count: usize| (0..count).map(|at| do_put(&at.to_string(), "v")).collect::<Vec<_>>();
    let gets = |count: usize| (0..count).map(|_| do_range(range("a"))).collect::<Vec<_>>();
    let compares = |count: usize| -> Vec<Compare> {
        let one = compare("a", CompareTarget::Version, CompareResult::Equal, None);
        (0..count).map(|_| one.clone()).collect()
    };
    let beside = |mut ops: Vec<RequestOp>, inner: TxnRequest| {
        ops.push(do_txn(inner));
        Call::Txn(then(ops))
    };
    same_answers(vec![
        ("128 puts", Call::Txn(then(puts(128)))),
        ("129 puts", Call::Txn(then(puts(129)))),
        (
            "128 of each",
            Call::Txn(TxnRequest {
                compare: compares(128),
                success: puts(128),
                failure: gets(128),
            }),
        ),
        ("129 compares", Call::Txn(when(compares(129)))),
        ("129 in the branch that does not run", Call::Txn(either(vec![], gets(129)))),
        ("64 beside 64 nested", beside(gets(63), then(puts(64)))),
        ("64 beside 65 nested", beside(gets(63), then(puts(65)))),
        ("127 beside 1 nested", beside(gets(126), then(puts(1)))),
        ("127 beside 2 nested", beside(gets(126), then(puts(2)))),
        ("128 beside an empty one nested", beside(gets(127), then(vec![]))),
        ("compares of a nested one", beside(gets(126), when(compares(2)))),
        (
            "the limit comes before an empty key",
            Call::Txn(then({
                let mut ops = gets(128);
                ops.push(do_put("", ""));
                ops
            })),
        ),
        (
            "compares come before operations",
            Call::Txn(TxnRequest {
                compare: vec![compare("", CompareTarget::Version, CompareResult::Equal, None)],
                ..then(vec![RequestOp { request: None }])
            }),
        ),
        ("20 levels", Call::Txn(nested(20, 1))),
    ])
    .await;
}

#[tokio::test]
async fn keys_written_twice_are_found_as_etcd_finds_them() {
    let inner = |ops: Vec<RequestOp>| do_txn(then(ops));
    let split = |a: Vec<RequestOp>, b: Vec<RequestOp>| do_txn(either(a, b));
    let a = || do_put("a", "1");
    let b = || do_put("b", "1");
    same_answers(vec![
        ("two puts", Call::Txn(then(vec![a(), a()]))),
        ("two puts in the other branch", Call::Txn(either(vec![], vec![a(), a()]))),
        ("one put in each branch", Call::Txn(either(vec![a()], vec![a()]))),
        ("put and delete", Call::Txn(then(vec![a(), do_delete("a", "")]))),
        ("delete and put", Call::Txn(then(vec![do_delete("a", ""), a()]))),
        ("put in a deleted range", Call::Txn(then(vec![b(), do_delete("a", "c")]))),
        ("put at the end of a deleted range", Call::Txn(then(vec![b(), do_delete("a", "b")]))),
        ("put at the start of one", Call::Txn(then(vec![b(), do_delete("b", "c")]))),
        ("put beside an inverted range", Call::Txn(then(vec![b(), do_delete("c", "a")]))),
        ("two deletes", Call::Txn(then(vec![do_delete("a", "c"), do_delete("b", "d")]))),
        (
            "put behind overlapping deletes",
            Call::Txn(then(vec![do_delete("a", "d"), do_delete("b", "c"), do_put("c", "1")])),
        ),
        ("put beside a longer key", Call::Txn(then(vec![do_delete("a", ""), do_put("a\0", "1")]))),
        ("put in a range without an end", Call::Txn(then(vec![b(), do_delete("a", "\0")]))),
        ("a put nested", Call::Txn(then(vec![a(), inner(vec![a()])]))),
        ("a put nested, before", Call::Txn(then(vec![inner(vec![a()]), a()]))),
        ("a put in either nested branch", Call::Txn(then(vec![split(vec![a()], vec![a()])]))),
        ("and outside", Call::Txn(then(vec![split(vec![b()], vec![a()]), a()]))),
        ("two nested", Call::Txn(then(vec![inner(vec![a()]), inner(vec![a()])]))),
        (
            "two nested, one in a branch that does not run",
            Call::Txn(then(vec![inner(vec![a()]), split(vec![], vec![a()])])),
        ),
        ("a delete nested", Call::Txn(then(vec![b(), inner(vec![do_delete("a", "c")])]))),
        ("a delete outside", Call::Txn(then(vec![do_delete("a", "c"), inner(vec![b()])]))),
        (
            "a delete in one nested branch, a put in the other",
            Call::Txn(then(vec![split(vec![do_delete("b", "")], vec![b()])])),
        ),
        (
            "a delete nested, then a put nested",
            Call::Txn(then(vec![inner(vec![do_delete("b", "")]), inner(vec![b()])])),
        ),
        (
            "a put nested, then a delete nested",
            Call::Txn(then(vec![inner(vec![b()]), inner(vec![do_delete("b", "")])])),
        ),
        ("two levels down", Call::Txn(then(vec![inner(vec![inner(vec![a()])]), a()]))),
        ("inside a nested one", Call::Txn(then(vec![inner(vec![a(), do_delete("a", "")])]))),
        ("in the failure of a nested one", Call::Txn(then(vec![split(vec![], vec![a(), a()])]))),
    ])
    .await;
}

#[tokio::test]
async fn sizes_are_limited_as_etcd_limits_them() {
    let value = |bytes: usize| PutRequest { value: vec![b'v'; bytes].into(), ..put("k", "") };
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let (mut theirs, mut ours) = (KvClient::new(etcd.channel()), door.kv().await);
    for bytes in [1_000_000, 1_572_000, 1_572_900, 2_000_000, 2_097_000, 2_098_000, 5_000_000] {
        let call = Call::Put(value(bytes));
        let expected = answer(&mut theirs, call.clone()).await;
        assert_eq!(answer(&mut ours, call).await, expected, "a value of {bytes} bytes");
    }
}
