//! Ranges, puts, deletes, transactions and compactions, and ranges in parts.

use bytes::Bytes;
use prost::Message;
use quorate_api::etcdserverpb::{
    Compare, RangeRequest, RangeResponse, RequestOp, TxnRequest, compare, request_op,
};
use quorate_tests::client::Client;
use tonic::{Code, Status};

use super::compare::{Answer, difference};
use super::generate::Request;
use super::harness::{QUORATE, Run};
use super::known::Known;

/// A number that no enumeration has.
const UNKNOWN: i32 = 9;

/// One sequence.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    for step in 0..run.steps {
        let (node, request) = match run.rng.u32(..25) {
            0 => (run.rng.usize(..3), odd(run)),
            _ => run.generator.next(),
        };
        let shown = format!("step {step}, node {node}: {request:?}");
        if kills_etcd(&request) {
            let found = send(&mut run.sides[QUORATE][node], &request).await;
            let expected = refused("etcdserver: invalid sort option");
            let excuse = (found == expected).then_some(Some(Known::UnknownSortTarget));
            run.conclude(shown, [&expected, &found], excuse)?;
            continue;
        }
        let answers = ask(run, node, shown, &request).await?;
        if let Request::Range(range) = &request {
            let streamed = streamed(&mut run.sides[QUORATE][node], range.clone()).await;
            if difference(&request, &answers[QUORATE], &streamed).is_some() {
                return Err(format!("step {step}: {range:?} in parts: {streamed:#?}"));
            }
        }
    }
    Ok(())
}

/// Asks both sides, and compares their answers. Notes what they say of the store.
pub(crate) async fn ask(
    run: &mut Run,
    node: usize,
    shown: String,
    request: &Request,
) -> Result<[Answer; 2], String> {
    if may_be_stale(request) {
        // A node may answer such a read from before what another one acknowledged. After a
        // linearizable read of its own it may not: then both sides have one right answer.
        run.both(node, async |client| send(client, &read()).await).await;
    }
    let answers = run.both(node, async |client| send(client, request).await).await;
    let [expected, found] = &answers;
    run.generator.learn(request, expected);
    let verdict = match difference(request, expected, found) {
        None => Some(None),
        Some(_) => excuse(request, expected, found).map(Some),
    };
    run.conclude(shown, [expected, found], verdict)?;
    Ok(answers)
}

/// Which row of the table a difference is.
fn excuse(request: &Request, expected: &Answer, found: &Answer) -> Option<Known> {
    match (request, expected) {
        (Request::Range(range), Answer::Range(_)) if range.sort_order == UNKNOWN => {
            let refused = refused("etcdserver: invalid sort option");
            (*found == refused).then_some(Known::UnknownSortOrder)
        }
        (Request::Txn(txn), Answer::Txn(_)) if txn.compare.iter().any(is_unknown) => {
            let refused = refused("quorate: invalid compare target or result");
            (*found == refused).then_some(Known::UnknownCompare)
        }
        _ => None,
    }
}

/// Whether etcd's process would end by it.
fn kills_etcd(request: &Request) -> bool {
    matches!(request, Request::Range(range) if range.sort_target == UNKNOWN)
}

/// A request that etcd 3.5.1 answers otherwise than we do, if it can answer it; none changes anything.
fn odd(run: &mut Run) -> Request {
    let key = Bytes::from_static(b"a");
    let range = RangeRequest { key: key.clone(), range_end: "c".into(), ..Default::default() };
    let txn = |range| {
        let operation = RequestOp { request: Some(request_op::Request::RequestRange(range)) };
        TxnRequest {
            success: vec![operation.clone()],
            failure: vec![operation],
            ..TxnRequest::default()
        }
    };
    let compare = Compare { key, ..Compare::default() };
    let union = Some(compare::TargetUnion::Version(1));
    match run.rng.u32(..4) {
        0 => Request::Range(RangeRequest { sort_target: UNKNOWN, sort_order: 1, ..range }),
        1 => Request::Range(RangeRequest { sort_order: UNKNOWN, ..range }),
        2 => {
            let compare = Compare { target: UNKNOWN, ..compare };
            Request::Txn(TxnRequest { compare: vec![compare], ..txn(range) })
        }
        _ => {
            let compare = Compare { result: UNKNOWN, target_union: union, ..compare };
            Request::Txn(TxnRequest { compare: vec![compare], ..txn(range) })
        }
    }
}

fn is_unknown(compare: &Compare) -> bool {
    compare.target == UNKNOWN || compare.result == UNKNOWN
}

fn refused(text: &str) -> Answer {
    Answer::Error { code: Code::InvalidArgument, text: text.to_owned() }
}

fn read() -> Request {
    Request::Range(super::harness::linearizable())
}

/// True for a request that a node may answer from its own state, however old that is.
fn may_be_stale(request: &Request) -> bool {
    match request {
        Request::Range(range) => range.serializable,
        // One of serializable ranges only is such a read; it does no harm to take all for one.
        Request::Txn(_) => true,
        Request::Put(_) | Request::DeleteRange(_) | Request::Compact(_) => false,
    }
}

/// What a range in parts comes to, where it may be asked for in parts; etcd has had that since 3.7.
async fn streamed(client: &mut Client, range: RangeRequest) -> Answer {
    // Orders and filters it does not take.
    let in_parts = RangeRequest {
        sort_order: 0,
        sort_target: 0,
        min_mod_revision: 0,
        max_mod_revision: 0,
        min_create_revision: 0,
        max_create_revision: 0,
        ..range.clone()
    };
    if in_parts != range {
        return send(client, &Request::Range(range)).await;
    }
    let answer = async {
        let mut parts = client.kv.range_stream(range).await?.into_inner();
        let mut whole = RangeResponse::default();
        while let Some(part) = parts.message().await? {
            let bytes = part.range_response.unwrap_or_default().encode_to_vec();
            whole.merge(&*bytes).expect("it was encoded just now");
        }
        Ok(whole.into())
    };
    answer.await.unwrap_or_else(|status: Status| error(&status))
}

/// Sends one request and takes its answer, errors as values.
pub(crate) async fn send(client: &mut Client, request: &Request) -> Answer {
    let answer = match request.clone() {
        Request::Range(request) => client.kv.range(request).await.map(|r| r.into_inner().into()),
        Request::Put(request) => client.kv.put(request).await.map(|r| r.into_inner().into()),
        Request::DeleteRange(request) => {
            client.kv.delete_range(request).await.map(|r| r.into_inner().into())
        }
        Request::Txn(request) => client.kv.txn(request).await.map(|r| r.into_inner().into()),
        Request::Compact(request) => {
            client.kv.compact(request).await.map(|r| r.into_inner().into())
        }
    };
    answer.unwrap_or_else(|status| error(&status))
}

fn error(status: &Status) -> Answer {
    Answer::Error { code: status.code(), text: status.message().to_owned() }
}
