//! Leases: grants with chosen ids, puts and transactions that attach keys, revokes, lists and times to live.
//!
//! What depends on time or chance is left out: leases that end while the test runs (short times to live), and ids
//! that the server chooses. What is left of a time to live is compared only as some, none, or no lease.

use bytes::Bytes;
use fastrand::Rng;
use quorate_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RequestOp, ResponseHeader,
    TxnRequest, request_op,
};
use quorate_tests::client::Client;
use tonic::{Code, Status};

use super::generate::{Generator, Request};
use super::harness::Run;
use super::keys;

/// The ids, edges among them. 0 would let the server choose.
const IDS: [i64; 7] = [1, 2, 3, 77, i64::MAX, -1, i64::MIN];

/// The times to live, seconds: none ends during the test, and the last one is above what is allowed.
const TTLS_S: [i64; 5] = [600, 3_600, 1_000_000, 9_000_000_000, 9_000_000_001];

/// One request.
#[derive(Debug, Clone)]
enum Step {
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases,
    KeepAlive(LeaseKeepAliveRequest),
    Kv(Request),
}

/// What it came to.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Grant(LeaseGrantResponse),
    Revoke(LeaseRevokeResponse),
    TimeToLive(LeaseTimeToLiveResponse),
    Leases(LeaseLeasesResponse),
    KeepAlive(Option<LeaseKeepAliveResponse>),
    Error { code: Code, text: String },
}

fn step(rng: &mut Rng, generator: &mut Generator) -> Step {
    let id = rng.choice(IDS).expect("there are ids");
    match rng.u32(..100) {
        0..16 => Step::Grant(LeaseGrantRequest { id, ttl: rng.choice(TTLS_S).expect("some") }),
        16..24 => Step::Revoke(LeaseRevokeRequest { id }),
        24..40 => Step::TimeToLive(LeaseTimeToLiveRequest { id, keys: rng.bool() }),
        40..45 => Step::Leases,
        45..52 => Step::KeepAlive(LeaseKeepAliveRequest { id }),
        52..75 => Step::Kv(Request::Put(put(rng, id))),
        75..82 => {
            let puts = (0..rng.usize(1..4)).map(|_| put(rng, id));
            let success =
                puts.map(|put| RequestOp { request: Some(request_op::Request::RequestPut(put)) });
            let txn = TxnRequest { success: success.collect(), ..TxnRequest::default() };
            Step::Kv(Request::Txn(txn))
        }
        _ => Step::Kv(generator.next().1),
    }
}

fn put(rng: &mut Rng, lease: i64) -> PutRequest {
    let keys: [&[u8]; 6] = [b"a", b"a/", b"a/1", b"b", b"c", b"\xff"];
    PutRequest {
        key: Bytes::from_static(rng.choice(keys).expect("there are keys")),
        value: Bytes::from_static(b"leased"),
        lease: if rng.u32(..6) == 0 { 0 } else { lease },
        prev_kv: rng.bool(),
        ignore_lease: rng.u32(..12) == 0,
        ..PutRequest::default()
    }
}

/// One sequence.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    for number in 0..run.steps {
        let step = step(&mut run.rng, &mut run.generator);
        let node = run.rng.usize(..3);
        let shown = format!("step {number}, node {node}: {step:?}");
        if let Step::Kv(request) = &step {
            keys::ask(run, node, shown, request).await?;
        } else {
            // Of times to live the leader answers, of lists whoever is asked, each from its own state.
            run.settle().await;
            let answers = run.both(node, async |client| send(client, &step).await).await;
            run.judge(shown, &answers, || None)?;
        }
    }
    Ok(())
}

async fn send(client: &mut Client, step: &Step) -> Answer {
    let lease = &mut client.lease;
    let answer = match step.clone() {
        Step::Grant(request) => {
            lease.lease_grant(request).await.map(|r| Answer::Grant(r.into_inner()))
        }
        Step::Revoke(request) => {
            lease.lease_revoke(request).await.map(|r| Answer::Revoke(r.into_inner()))
        }
        Step::TimeToLive(request) => {
            lease.lease_time_to_live(request).await.map(|r| Answer::TimeToLive(r.into_inner()))
        }
        Step::Leases => {
            let leases = lease.lease_leases(LeaseLeasesRequest {}).await;
            leases.map(|r| Answer::Leases(r.into_inner()))
        }
        Step::KeepAlive(request) => keep_alive(client, request).await.map(Answer::KeepAlive),
        Step::Kv(_) => unreachable!("those are sent otherwise"),
    };
    answer.map_or_else(error, neutral)
}

/// One keep-alive; none when the stream ends without an answer.
async fn keep_alive(
    client: &mut Client,
    request: LeaseKeepAliveRequest,
) -> Result<Option<LeaseKeepAliveResponse>, Status> {
    let answers = client.lease.lease_keep_alive(tokio_stream::iter([request])).await?;
    answers.into_inner().message().await
}

fn error(status: Status) -> Answer {
    Answer::Error { code: status.code(), text: status.message().to_owned() }
}

/// Without identities, times, and the order of what has none.
fn neutral(mut answer: Answer) -> Answer {
    let header = |header: &mut Option<ResponseHeader>| {
        let header = header.as_mut().expect("every answer has a header");
        *header = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
    };
    match &mut answer {
        Answer::Grant(grant) => header(&mut grant.header),
        Answer::Revoke(revoke) => header(&mut revoke.header),
        Answer::TimeToLive(left) => {
            header(&mut left.header);
            left.ttl = left.ttl.signum();
            left.keys.sort();
        }
        Answer::Leases(leases) => {
            header(&mut leases.header);
            leases.leases.sort_by_key(|lease| lease.id);
        }
        Answer::KeepAlive(kept) => {
            if let Some(kept) = kept {
                header(&mut kept.header);
            }
        }
        Answer::Error { .. } => {}
    }
    answer
}
