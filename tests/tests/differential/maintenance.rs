//! What a node says of itself: status, hashes of everything, snapshots and downgrades, between requests for keys.
//!
//! Hashes of everything cover etcd's file, and so do sizes: they are compared in that there are some. A snapshot must
//! end with the right checksum, and `etcdutl` find the same revision in it.

use std::io::Write;
use std::process::Command;

use quorate_api::etcdserverpb as pb;
use quorate_tests::client::Client;
use quorate_tests::programs;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::generate::Request;
use super::harness::{BOUND, ETCD, LOOK, QUORATE, Run};
use super::known::Known;
use super::{keys, upkeep};

/// What a downgrade is asked for.
const VALIDATE: i32 = 0;
const ENABLE: i32 = 1;
const CANCEL: i32 = 2;

/// Bytes of the checksum that ends a snapshot.
const CHECKSUM_BYTES: usize = 32;

#[derive(Debug, Clone)]
enum Step {
    Status,
    Hash,
    Snapshot,
    Downgrade(pb::DowngradeRequest),
    /// An alarm about space of a node, which its status tells.
    Alarm {
        raise: bool,
        member: usize,
    },
    Kv(Request),
}

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Status {
        revision: i64,
        version: String,
        errors: Vec<String>,
        is_learner: bool,
        /// Whether what has no like on the other side makes sense: sizes, indexes, terms, a leader.
        is_sound: bool,
    },
    /// The same of two calls at one revision.
    Hash {
        revision: i64,
        is_same: bool,
        /// It is another one after a write.
        changes: bool,
    },
    Snapshot {
        revision: u64,
    },
    Version(String),
    /// It was done, and nobody said so.
    Unanswered,
    Alarms(usize),
    Refused(Code, String),
}

/// One sequence.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    let members = [
        upkeep::members(&mut run.sides[ETCD]).await,
        upkeep::members(&mut run.sides[QUORATE]).await,
    ];
    // Whether a downgrade is under way.
    let mut down = false;
    for number in 0..run.steps {
        for step in draw(run) {
            let node = run.rng.usize(..3);
            let shown = format!("step {number}, node {node}: {step:?}");
            if let Step::Kv(request) = &step {
                keys::ask(run, node, shown, request).await?;
                continue;
            }
            // Each node speaks of its own state.
            run.settle().await;
            let [etcd, quorate] = &mut run.sides;
            let answers = tokio::join!(
                async {
                    match &step {
                        Step::Downgrade(request) => downgrade(&mut etcd[node], request, down).await,
                        step => send(&mut etcd[node], &members[ETCD], step).await,
                    }
                },
                send(&mut quorate[node], &members[QUORATE], &step)
            );
            let answers: [Answer; 2] = answers.into();
            if let (Step::Downgrade(request), Answer::Version(_)) = (&step, &answers[QUORATE]) {
                down = match request.action {
                    ENABLE => true,
                    CANCEL => false,
                    _ => down,
                };
            }
            run.judge(shown, &answers, || excuse(&answers))?;
        }
    }
    // Whatever is under way ends with the sequence.
    let end = pb::DowngradeRequest { action: CANCEL, version: String::new() };
    let step = Step::Downgrade(end.clone());
    let [etcd, quorate] = &mut run.sides;
    tokio::join!(
        downgrade(&mut etcd[0], &end, down),
        send(&mut quorate[0], &members[QUORATE], &step)
    );
    Ok(())
}

/// etcd's side of a downgrade. 3.5.1 never answers where it begins or ends one: then it is seen by asking again whether
/// one is under way.
async fn downgrade(client: &mut Client, request: &pb::DowngradeRequest, down: bool) -> Answer {
    let step = Step::Downgrade(request.clone());
    let changes = match request.action {
        ENABLE => !down && request.version.starts_with("3.4"),
        CANCEL => down,
        _ => false,
    };
    if !changes {
        return send(client, &[], &step).await;
    }
    let mut other = client.clone();
    let call = send(client, &[], &step);
    let seen = async {
        let ask = pb::DowngradeRequest { action: VALIDATE, version: "3.4.0".to_owned() };
        let ask = Step::Downgrade(ask);
        let began = Instant::now();
        loop {
            let is_down = matches!(send(&mut other, &[], &ask).await, Answer::Refused(..));
            if is_down != down {
                return Answer::Unanswered;
            }
            assert!(began.elapsed() < BOUND, "a downgrade does not begin or end");
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        answer = call => answer,
        answer = seen => answer,
    }
}

fn excuse(answers: &[Answer; 2]) -> Option<Known> {
    if let [Answer::Unanswered, Answer::Version(_)] = answers {
        return Some(Known::DowngradeUnanswered);
    }
    let [Answer::Refused(Code::Unknown, theirs), Answer::Refused(Code::InvalidArgument, ours)] =
        answers
    else {
        return None;
    };
    let same = theirs == ours && ours == "etcdserver: unknown method";
    same.then_some(Known::UnknownMethodCode)
}

fn draw(run: &mut Run) -> Vec<Step> {
    let rng = &mut run.rng;
    match rng.u32(..100) {
        0..25 => vec![Step::Status],
        25..35 => vec![Step::Hash],
        35..37 => {
            // So that the last revision is in the file, however far it was swept.
            let put = pb::PutRequest { key: "a".into(), ..pb::PutRequest::default() };
            vec![Step::Kv(Request::Put(put)), Step::Snapshot]
        }
        37..50 => {
            let versions = ["3.4.0", "3.4", "3.5.0", "3.3.0", "3.4.9", "4.4.0", "x", "", "3"];
            let version = rng.choice(versions).expect("there are versions").to_owned();
            let action = rng
                .choice([VALIDATE, VALIDATE, ENABLE, ENABLE, CANCEL, CANCEL, 9])
                .expect("there are actions");
            vec![Step::Downgrade(pb::DowngradeRequest { action, version })]
        }
        50..56 => {
            let member = rng.usize(..3);
            let alarm = |raise| Step::Alarm { raise, member };
            vec![alarm(true), Step::Status, Step::Status, alarm(false), Step::Status]
        }
        _ => vec![Step::Kv(run.generator.next().1)],
    }
}

async fn send(client: &mut Client, members: &[u64], step: &Step) -> Answer {
    let maintenance = &mut client.maintenance;
    let answer = match step.clone() {
        Step::Status => {
            let status = maintenance.status(pb::StatusRequest {}).await;
            status.map(|status| told(status.into_inner(), members))
        }
        Step::Hash => hash(client).await,
        Step::Snapshot => snapshot(client).await,
        Step::Downgrade(request) => {
            let answer = maintenance.downgrade(request).await;
            answer.map(|answer| Answer::Version(answer.into_inner().version))
        }
        Step::Alarm { raise, member } => {
            let (action, member_id) = (if raise { 1 } else { 2 }, members[member]);
            let request = pb::AlarmRequest { action, member_id, alarm: 1 };
            let answer = maintenance.alarm(request).await;
            answer.map(|answer| Answer::Alarms(answer.into_inner().alarms.len()))
        }
        Step::Kv(_) => unreachable!("those are sent otherwise"),
    };
    answer.unwrap_or_else(|status| Answer::Refused(status.code(), status.message().to_owned()))
}

/// Asks for the hash twice, and once more after a write.
async fn hash(client: &mut Client) -> Result<Answer, Status> {
    let Client { maintenance, kv, .. } = client;
    let first = maintenance.hash(pb::HashRequest {}).await?.into_inner();
    let second = maintenance.hash(pb::HashRequest {}).await?.into_inner();
    let put = pb::PutRequest { key: "hash".into(), ..Default::default() };
    // Refused to both sides while there is no space.
    let is_put = kv.put(put).await.is_ok();
    let third = maintenance.hash(pb::HashRequest {}).await?.into_inner();
    Ok(Answer::Hash {
        revision: first.header.expect("every answer has a header").revision,
        is_same: first.hash == second.hash,
        changes: is_put && third.hash != second.hash,
    })
}

/// A status without what only this cluster has.
fn told(status: pb::StatusResponse, members: &[u64]) -> Answer {
    let header = status.header.expect("every answer has a header");
    let mut errors = status.errors;
    for (place, member) in members.iter().enumerate() {
        let named = format!("memberID:{member} ");
        errors.iter_mut().for_each(|error| *error = error.replace(&named, &format!("{place} ")));
    }
    errors.sort();
    let applied = status.raft_applied_index;
    let is_sound = members.contains(&status.leader)
        && members.contains(&header.member_id)
        && header.cluster_id != 0
        && header.raft_term == status.raft_term
        && status.raft_term > 0
        && (1..=status.raft_index).contains(&applied)
        && (1..=status.db_size).contains(&status.db_size_in_use);
    let (version, is_learner) = (status.version, status.is_learner);
    Answer::Status { revision: header.revision, version, errors, is_learner, is_sound }
}

/// Takes a snapshot and looks into it.
async fn snapshot(client: &mut Client) -> Result<Answer, Status> {
    let mut parts = client.maintenance.snapshot(pb::SnapshotRequest {}).await?.into_inner();
    let (mut bytes, mut left) = (Vec::new(), Vec::new());
    while let Some(part) = parts.message().await? {
        bytes.extend_from_slice(&part.blob);
        left.push(part.remaining_bytes);
    }
    assert!(left.is_sorted_by(|before, after| before >= after), "it counts down: {left:?}");
    assert_eq!(left.last(), Some(&0));
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    let file = |bytes: &[u8]| {
        let mut file = NamedTempFile::new().expect("a temporary file can be made");
        file.write_all(bytes).expect("it can be written");
        file
    };
    let said = said(Command::new("sha256sum").arg(file(content).path()));
    let sum: String = checksum.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(said.split(' ').next(), Some(&*sum), "the checksum at the end");
    let etcdutl =
        programs::etcd("differential: snapshots").expect("it is there").program("etcdutl");
    let mut command = Command::new(etcdutl);
    let whole = file(&bytes);
    command.args(["snapshot", "status", "-w", "json"]).arg(whole.path());
    let said: Value = serde_json::from_str(&self::said(&mut command)).expect("JSON");
    let revision = said["revision"].as_u64().unwrap_or_else(|| panic!("no revision: {said}"));
    Ok(Answer::Snapshot { revision })
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
