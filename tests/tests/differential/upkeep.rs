//! Hashes of the keyspace at revisions past and present, compactions, and alarms, between all kinds of KV requests.
//!
//! What a member is called differs, so alarms are compared by the place of their member among the nodes. Left out:
//! `Hash` (of a file that only etcd has) and the alarm CORRUPT for longer than a few requests, because nothing else
//! is served then. Without space etcd 3.5.1 takes puts in nested transactions, which it does not count.

use std::collections::VecDeque;

use fastrand::Rng;
use quorate_api::etcdserverpb::alarm_request::AlarmAction;
use quorate_api::etcdserverpb::{self as pb, AlarmType, RequestOp, request_op};
use quorate_tests::client::Client;
use tonic::{Code, Status};

use super::compare;
use super::generate::{Generator, Request};

/// Requests before the first difference that are shown.
const HISTORY: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    /// `HashKV` at a revision; 0 for the present.
    HashKv(i64),
    /// What is asked about an alarm, by the place of its member.
    Alarm {
        action: AlarmAction,
        member: usize,
        alarm: AlarmType,
    },
    Defragment,
    Kv(Request),
}

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Hash { hash: u32, compact_revision: i64, revision: i64 },
    Alarms(Vec<(Option<usize>, i32)>),
    Defragmented,
    Kv(compare::Answer),
    Error { code: Code, text: String },
}

fn steps(rng: &mut Rng, generator: &mut Generator) -> Vec<Step> {
    let alarm = |action, member, alarm| Step::Alarm { action, member, alarm };
    let (get, on, off) = (AlarmAction::Get, AlarmAction::Activate, AlarmAction::Deactivate);
    let (revision, compacted) = generator.position();
    match rng.u32(..100) {
        0..15 => vec![Step::HashKv(0)],
        15..30 => vec![Step::HashKv(rng.i64(compacted - 2..=revision + 2))],
        30..34 => {
            let kind = rng.choice([AlarmType::None, AlarmType::Nospace, AlarmType::Corrupt]);
            vec![alarm(get, 0, kind.expect("some"))]
        }
        34..37 => vec![alarm(off, rng.usize(..3), AlarmType::Nospace)],
        37..41 => {
            // Raised, seen by a few requests, and taken back, each by whom chance says.
            let kind = rng.choice([AlarmType::Nospace, AlarmType::Corrupt]).expect("some");
            let member = rng.usize(..3);
            let mut steps = vec![alarm(on, member, kind), alarm(get, 0, AlarmType::None)];
            steps.extend((0..4).map(|_| Step::Kv(flat(generator))));
            if rng.bool() {
                let other = rng.usize(..3);
                steps.extend([alarm(on, other, kind), alarm(off, other, kind)]);
                steps.push(Step::Kv(flat(generator)));
            }
            steps.extend([alarm(off, member, kind), alarm(get, 0, AlarmType::None)]);
            steps
        }
        41 => vec![Step::Defragment],
        _ => vec![Step::Kv(generator.next().1)],
    }
}

/// A request without a transaction in a transaction.
fn flat(generator: &mut Generator) -> Request {
    let is_txn = |op: &RequestOp| matches!(op.request, Some(request_op::Request::RequestTxn(_)));
    loop {
        match generator.next().1 {
            Request::Txn(txn) if txn.success.iter().chain(&txn.failure).any(is_txn) => {}
            request => return request,
        }
    }
}

/// Sends the same steps to both sides; returns how their answers differ, if they do.
pub(crate) async fn differences(
    sides: &mut [Vec<Client>; 2],
    seed: u64,
    count: usize,
    generator: &mut Generator,
) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let mut history = VecDeque::new();
    let members = [members(&mut sides[0]).await, members(&mut sides[1]).await];
    for number in 0..count {
        for step in steps(&mut rng, generator) {
            let node = rng.usize(..3);
            for side in sides.iter_mut() {
                // Hashes and alarms are told by whoever is asked, of its own state.
                super::settle(side).await;
            }
            let expected = send(&mut sides[0][node], &members[0], &step).await;
            let found = send(&mut sides[1][node], &members[1], &step).await;
            let shown = format!("step {number}, node {node}: {step:?}");
            let same = match (&step, &expected, &found) {
                (Step::Kv(request), Answer::Kv(expected), Answer::Kv(found)) => {
                    generator.learn(request, expected);
                    compare::difference(request, expected, found).is_none()
                }
                _ => expected == found,
            };
            if !same {
                let mut lines: Vec<String> = history.into();
                lines.push(format!(
                    "seed {seed}, {shown}\netcd answers {expected:#?}\nQuorate answers {found:#?}"
                ));
                return lines;
            }
            history.push_back(shown);
            history.drain(..history.len().saturating_sub(HISTORY));
        }
    }
    Vec::new()
}

/// What the nodes of a side are called.
async fn members(side: &mut [Client]) -> Vec<u64> {
    let mut members = Vec::new();
    for client in side {
        let status = client.maintenance.status(pb::StatusRequest::default()).await;
        let status = status.expect("it serves").into_inner();
        members.push(status.header.expect("every answer has a header").member_id);
    }
    members
}

async fn send(client: &mut Client, members: &[u64], step: &Step) -> Answer {
    let maintenance = &mut client.maintenance;
    let answer = match step.clone() {
        Step::HashKv(revision) => {
            maintenance.hash_kv(pb::HashKvRequest { revision }).await.map(|told| {
                let told = told.into_inner();
                let revision = told.header.expect("every answer has a header").revision;
                let (hash, compact_revision) = (told.hash, told.compact_revision);
                Answer::Hash { hash, compact_revision, revision }
            })
        }
        Step::Alarm { action, member, alarm } => {
            let (action, alarm, member_id) = (action as i32, alarm as i32, members[member]);
            let request = pb::AlarmRequest { action, member_id, alarm };
            maintenance.alarm(request).await.map(|told| {
                let place = |id| members.iter().position(|member| *member == id);
                let alarms = told.into_inner().alarms;
                let told = alarms.iter().map(|alarm| (place(alarm.member_id), alarm.alarm));
                let mut told: Vec<_> = told.collect();
                told.sort_unstable();
                Answer::Alarms(told)
            })
        }
        Step::Defragment => {
            let told = maintenance.defragment(pb::DefragmentRequest {}).await;
            told.map(|_| Answer::Defragmented)
        }
        Step::Kv(request) => return Answer::Kv(super::send(client, &request).await),
    };
    answer.unwrap_or_else(error)
}

fn error(status: Status) -> Answer {
    Answer::Error { code: status.code(), text: status.message().to_owned() }
}
