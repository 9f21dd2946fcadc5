//! Hashes of the keyspace at revisions past and present, compactions, and alarms, between all kinds of KV requests.
//!
//! What a member is called differs, so alarms are compared by the place of their member among the nodes. The alarm
//! CORRUPT stays for a few requests only, because nothing else is served then.

use quorate_api::etcdserverpb::alarm_request::AlarmAction;
use quorate_api::etcdserverpb::{self as pb, AlarmType, RequestOp, request_op};
use quorate_tests::client::Client;
use tonic::{Code, Status};

use super::generate::{Generator, Request};
use super::harness::{ETCD, QUORATE, Run};
use super::keys;
use super::known::Known;

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
    /// A compaction at the present.
    CompactNow,
    /// An alarm of a kind that does not exist.
    UnknownAlarm,
    /// A write that changes nothing, to see whether it is taken.
    DeleteNothing,
    Kv(Request),
}

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Hash { hash: u32, compact_revision: i64, revision: i64 },
    Alarms(Vec<(Option<usize>, i32)>),
    Defragmented,
    Deleted(i64),
    Error { code: Code, text: String },
}

fn steps(run: &mut Run) -> Vec<Step> {
    let Run { rng, generator, .. } = run;
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
        42 => vec![Step::UnknownAlarm],
        44 => {
            // Nothing is left at the revision of the compaction.
            let all = bytes::Bytes::from_static(b"\0");
            let (key, range_end) = (all.clone(), all);
            let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: false };
            let delete = Step::Kv(Request::DeleteRange(delete));
            vec![delete, Step::CompactNow, Step::HashKv(0), Step::HashKv(0), Step::HashKv(0)]
        }
        43 => {
            // Of two kinds, one is taken back.
            let (nospace, corrupt) = (AlarmType::Nospace, AlarmType::Corrupt);
            let member = rng.usize(..3);
            let mut steps = vec![alarm(on, member, nospace), alarm(on, member, corrupt)];
            steps.extend([Step::DeleteNothing, alarm(off, member, nospace), Step::DeleteNothing]);
            steps.extend([alarm(off, member, corrupt), Step::DeleteNothing]);
            steps
        }
        _ => vec![Step::Kv(generator.next().1)],
    }
}

/// A request without a transaction in a transaction.
fn flat(generator: &mut Generator) -> Request {
    let is_txn = |op: &RequestOp| matches!(op.request, Some(request_op::Request::RequestTxn(_)));
    loop {
        match generator.next().1 {
            Request::Txn(txn) if txn.success.iter().chain(&txn.failure).any(is_txn) => {
                generator.left_out.push(Known::NestedPutWithoutSpace);
            }
            request => return request,
        }
    }
}

/// One sequence.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    let members = [members(&mut run.sides[0]).await, members(&mut run.sides[1]).await];
    for number in 0..run.steps {
        for step in steps(run) {
            let node = run.rng.usize(..3);
            let step = match step {
                Step::CompactNow => {
                    let (revision, _) = run.generator.position();
                    let compact = pb::CompactionRequest { revision, physical: false };
                    Step::Kv(Request::Compact(compact))
                }
                step => step,
            };
            let shown = format!("step {number}, node {node}: {step:?}");
            if let Step::Kv(request) = &step {
                keys::ask(run, node, shown, request).await?;
                continue;
            }
            // Hashes and alarms are told by whoever is asked, of its own state.
            run.settle().await;
            match &step {
                Step::UnknownAlarm => {
                    let found = send(&mut run.sides[QUORATE][node], &members[QUORATE], &step).await;
                    let text = "quorate: no such kind of alarm, or too many alarms".to_owned();
                    let expected = Answer::Error { code: Code::InvalidArgument, text };
                    let excuse = (found == expected).then_some(Some(Known::UnknownAlarm));
                    run.conclude(shown, [&expected, &found], excuse)?;
                }
                step => {
                    let [etcd, quorate] = &mut run.sides;
                    let answers = tokio::join!(
                        send(&mut etcd[node], &members[ETCD], step),
                        send(&mut quorate[node], &members[QUORATE], step)
                    );
                    let answers: [Answer; 2] = answers.into();
                    let mut known = excuse(step, &answers[ETCD], &answers[QUORATE]);
                    if let (Step::HashKv(revision), None) = (step, known) {
                        let is_empty = is_empty_at(run, *revision).await;
                        known = is_hash_of_one_state(&answers).filter(|_| is_empty);
                    }
                    run.judge(shown, &answers, || known)?;
                }
            }
        }
    }
    Ok(())
}

fn excuse(step: &Step, expected: &Answer, found: &Answer) -> Option<Known> {
    let Answer::Error { code: Code::DataLoss, .. } = found else { return None };
    let excused = matches!((step, expected), (Step::DeleteNothing, Answer::Deleted(0)));
    excused.then_some(Known::OneAlarmClearsAll)
}

/// A hash that differs from another one of the same revisions.
fn is_hash_of_one_state(answers: &[Answer; 2]) -> Option<Known> {
    let revisions = |answer: &Answer| match answer {
        Answer::Hash { compact_revision, revision, .. } => Some((*compact_revision, *revision)),
        _ => None,
    };
    let [expected, found] = answers.each_ref().map(revisions);
    (expected.is_some() && expected == found).then_some(Known::HashOfNothing)
}

/// Whether no key was there at a revision; 0 for the present.
async fn is_empty_at(run: &mut Run, revision: i64) -> bool {
    let all = bytes::Bytes::from_static(b"\0");
    let (key, range_end) = (all.clone(), all);
    let range = pb::RangeRequest { key, range_end, revision, ..Default::default() };
    let range = Request::Range(pb::RangeRequest { count_only: true, ..range });
    let [there, _] = run.both(0, async |client| keys::send(client, &range).await).await;
    matches!(there, super::compare::Answer::Range(there) if there.count == 0)
}

/// What the nodes of a side are called.
pub(crate) async fn members(side: &mut [Client]) -> Vec<u64> {
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
        Step::UnknownAlarm => {
            let request = pb::AlarmRequest { action: 1, member_id: members[0], alarm: 7 };
            maintenance.alarm(request).await.map(|_| Answer::Alarms(Vec::new()))
        }
        Step::DeleteNothing => {
            let delete = pb::DeleteRangeRequest { key: "nothing".into(), ..Default::default() };
            let deleted = client.kv.delete_range(delete).await;
            deleted.map(|deleted| Answer::Deleted(deleted.into_inner().deleted))
        }
        Step::Kv(_) | Step::CompactNow => unreachable!("those are sent otherwise"),
    };
    answer.unwrap_or_else(error)
}

fn error(status: Status) -> Answer {
    Answer::Error { code: status.code(), text: status.message().to_owned() }
}
