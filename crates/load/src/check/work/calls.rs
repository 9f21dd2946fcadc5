//! Clients that read and write single keys.

use std::sync::Arc;
use std::time::Duration;

use quorate_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_api::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    request_op, response_op,
};
use quorate_api::mvccpb::KeyValue;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::Shared;
use super::servers::{Failure, Servers};
use crate::check::history::{Action, Answer, Call, Pair, Record, Seen, Write};

/// The keys.
pub(super) fn keys(shared: &Shared) -> impl Iterator<Item = String> {
    (0..shared.args.keys).map(key)
}

/// Key number `number`.
pub(super) fn key(number: usize) -> String {
    format!("k/{number}")
}

/// Calls until the round ends.
pub(super) async fn work(
    shared: Arc<Shared>,
    mut servers: Servers,
    client: usize,
    mut rng: fastrand::Rng,
) {
    let mut last: Vec<i64> = vec![0; shared.args.keys];
    let pace = match shared.args.rate {
        0 => Duration::ZERO,
        rate => {
            Duration::from_secs(shared.args.clients as u64)
                / u32::try_from(rate).unwrap_or(u32::MAX)
        }
    };
    let mut next = Instant::now();
    while !shared.stopped() {
        next = (next + pace).max(Instant::now());
        sleep_until(next).await;
        let number = rng.usize(0..last.len());
        let action = draw(&shared, &mut rng, number, last[number]);
        let seen_before = rng.bool();
        let Ok(Some(answer)) =
            call(&shared, &mut servers, client as u32, action, seen_before).await
        else {
            continue;
        };
        last[number] = match (&answer.seen, answer.wrote) {
            (_, true) => answer.revision,
            (Some(Seen::Pair(pair)), false) => pair.modified,
            (Some(Seen::Nothing), false) => 0,
            (None, false) => last[number],
        };
    }
}

fn draw(shared: &Shared, rng: &mut fastrand::Rng, number: usize, last: i64) -> Action {
    match rng.u32(0..100) {
        0..35 => Action::Get(key(number)),
        35..60 => Action::Put(vec![shared.write(&key(number), 0)]),
        60..68 => {
            let others = 1 + rng.usize(0..3).min(shared.args.keys - 1);
            let numbers = (0..others).map(|other| (number + other) % shared.args.keys);
            Action::Put(numbers.map(|number| shared.write(&key(number), 0)).collect())
        }
        68..78 => Action::Delete(key(number)),
        _ => {
            // 0 claims a key that is not there, as locks do.
            let expect = if rng.u32(0..5) == 0 { 0 } else { last };
            Action::Cas { expect, write: shared.write(&key(number), 0) }
        }
    }
}

/// Makes one call and records it. Without an answer there is nothing.
///
/// # Errors
/// When the call was refused, which is not recorded: nothing has happened.
pub(super) async fn call(
    shared: &Shared,
    servers: &mut Servers,
    client: u32,
    action: Action,
    show_before: bool,
) -> Result<Option<Answer>, Status> {
    let sent_us = shared.now_us();
    let outcome = send(shared, servers, &action, show_before).await;
    let answer = match outcome {
        Ok(answer) => Some(answer),
        Err(Failure::Unknown) => None,
        Err(Failure::Refused(status)) => return Err(status),
    };
    if answer.is_some() || !matches!(action, Action::Get(_)) {
        let answer = answer.clone();
        shared.record(Record::Call(Call { client, sent_us, action, answer }));
    }
    Ok(answer)
}

async fn send(
    shared: &Shared,
    servers: &mut Servers,
    action: &Action,
    show_before: bool,
) -> Result<Answer, Failure> {
    let mut kv = servers.kv();
    let done = |header: Option<ResponseHeader>, wrote, seen| Answer {
        at_us: shared.now_us(),
        revision: header.map_or(0, |header| header.revision),
        wrote,
        seen,
    };
    match action {
        Action::Get(key) => {
            let answer = servers.answer(kv.range(get(shared, key))).await?;
            Ok(done(answer.header, false, Some(seen(answer.kvs.first()))))
        }
        Action::Put(writes) if writes.len() == 1 => {
            let request = PutRequest { prev_kv: show_before, ..put(shared, &writes[0]) };
            let answer = servers.answer(kv.put(request)).await?;
            let before = show_before.then(|| seen(answer.prev_kv.as_ref()));
            Ok(done(answer.header, true, before))
        }
        Action::Put(writes) => {
            let success = writes.iter().map(|write| op(shared, write)).collect();
            let request = TxnRequest { success, ..TxnRequest::default() };
            let answer = servers.answer(kv.txn(request)).await?;
            Ok(done(answer.header, true, None))
        }
        Action::Delete(key) => {
            let key = shared.sent(key);
            let request =
                DeleteRangeRequest { key, prev_kv: show_before, ..DeleteRangeRequest::default() };
            let answer = servers.answer(kv.delete_range(request)).await?;
            let before = show_before.then(|| seen(answer.prev_kvs.first()));
            Ok(done(answer.header, answer.deleted > 0, before))
        }
        Action::Cas { expect, write } => {
            let compare = Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key: shared.sent(&write.key),
                target_union: Some(TargetUnion::ModRevision(*expect)),
                ..Compare::default()
            };
            let read = request_op::Request::RequestRange(get(shared, &write.key));
            let request = TxnRequest {
                compare: vec![compare],
                success: vec![op(shared, write)],
                failure: vec![RequestOp { request: Some(read) }],
            };
            let answer = servers.answer(kv.txn(request)).await?;
            let shown = answer.responses.first().and_then(|op| op.response.as_ref());
            let before = match shown {
                Some(response_op::Response::ResponseRange(range)) => Some(seen(range.kvs.first())),
                _ => None,
            };
            Ok(done(answer.header, answer.succeeded, before))
        }
    }
}

fn get(shared: &Shared, key: &str) -> RangeRequest {
    RangeRequest { key: shared.sent(key), ..RangeRequest::default() }
}

fn put(shared: &Shared, write: &Write) -> PutRequest {
    PutRequest {
        key: shared.sent(&write.key),
        value: write.value.clone().into(),
        lease: write.lease,
        ..PutRequest::default()
    }
}

fn op(shared: &Shared, write: &Write) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestPut(put(shared, write))) }
}

/// What an answer shows of a key.
fn seen(pair: Option<&KeyValue>) -> Seen {
    pair.map_or(Seen::Nothing, |found| Seen::Pair(pair_of(found)))
}

/// A pair as it is recorded.
pub(super) fn pair_of(found: &KeyValue) -> Pair {
    Pair {
        value: String::from_utf8_lossy(&found.value).into_owned(),
        create: found.create_revision,
        modified: found.mod_revision,
        version: found.version,
    }
}
