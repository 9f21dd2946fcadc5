//! Members and leaderships: lists, learners and voters that are added, changed and removed again, promotions of what is
//! not ready, leaders that move; right and wrong arguments. The three nodes that run stay, so that both sides always
//! have their majority.
//!
//! Members are called by their parts: the leader, the two that follow, and the one that was added.

use fastrand::Rng;
use quorate_api::etcdserverpb as pb;
use quorate_tests::client::Client;
use tonic::Code;

use super::harness::{ETCD, QUORATE, Run};
use super::known::Known;
use super::members_side::{Added, Answer, OTHER, PATIENCE, PORTS, Side, Step, Url, Who};

/// What is no peer URL.
const WRONG: [&str; 4] = ["", "nonsense", "http://127.0.0.1:1/path", "ftp://127.0.0.1:1"];

/// One sequence.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    let [etcd, quorate] = run.sides.clone();
    let sides = tokio::join!(Side::new(etcd, Some(PATIENCE)), Side::new(quorate, None));
    let mut sides = [sides.0, sides.1];
    let mut added = None;
    // Each step is several requests.
    for number in 0..run.steps / 2 {
        let step = draw(&mut run.rng, added, run.seed * run.steps as u64 + number as u64);
        let part = match step {
            // Others refuse it whatever it is.
            Step::MoveLeader(_) if run.rng.bool() => 0,
            _ => run.rng.usize(..3),
        };
        run.settle().await;
        // So that etcd's Raft is done with the change before.
        let write = async |client: &mut Client| {
            let put = pb::PutRequest { key: "members".into(), ..Default::default() };
            client.kv.put(put).await.expect("a write");
        };
        run.both(0, write).await;
        let shown = format!("step {number}, part {part}: {step:?}");
        let [etcd, quorate] = &mut sides;
        // A leader may have changed by itself, where the machine is slow.
        tokio::join!(etcd.know_parts(), quorate.know_parts());
        let answers = tokio::join!(etcd.send(part, &step), quorate.send(part, &step)).into();
        let before = added;
        if let (Step::Add { learner, .. }, None) = (&step, added) {
            added = Some(if *learner { Added::Learner } else { Added::Voter });
        }
        let known = excuse(&step, [before, added], &answers);
        run.judge(shown, &answers, || known)?;
        let apart = [
            Known::UpdatedLearnerVotes,
            Known::UpdateUnchecked,
            Known::OnePeerUrl,
            Known::AddWhileUnhealthy,
        ];
        if answers[ETCD] != answers[QUORATE] && known.is_some_and(|known| apart.contains(&known)) {
            tokio::join!(etcd.remove_added(), quorate.remove_added());
        }
        if etcd.added.len() != quorate.added.len() {
            return Err(format!("added: {:?}, {:?}", etcd.added, quorate.added));
        }
        if etcd.added.is_empty() {
            added = None;
        }
    }
    let [etcd, quorate] = &mut sides;
    tokio::join!(etcd.remove_added(), quorate.remove_added());
    Ok(())
}

/// `number` is that of the step among all.
fn draw(rng: &mut Rng, added: Option<Added>, number: u64) -> Step {
    let urls = |rng: &mut Rng| match rng.u32(..10) {
        0 => vec![],
        1 => vec![Url::Text(rng.choice(WRONG).expect("some"))],
        2 => vec![Url::Of(rng.usize(..3))],
        3 => vec![Url::New(number), Url::New(number + PORTS / 2)],
        _ => vec![Url::New(number)],
    };
    let who = |rng: &mut Rng| match rng.u32(..6) {
        0 => Who::Stranger,
        1 => Who::Gone,
        2 => Who::Runs(rng.usize(..3)),
        _ => Who::Added,
    };
    match rng.u32(..100) {
        0..15 => Step::List,
        // Beside a learner no voter: one at a time is enough.
        15..40 => {
            let learner = rng.u32(..4) > 0 || added == Some(Added::Learner);
            Step::Add { urls: urls(rng), learner }
        }
        40..60 => Step::Remove(match who(rng) {
            Who::Runs(_) => Who::Added,
            other => other,
        }),
        60..72 => match who(rng) {
            // Elsewhere it would not be reached.
            Who::Runs(at) if rng.bool() => Step::Update(Who::Runs(at), vec![Url::Of(at)]),
            Who::Runs(at) => Step::Update(Who::Runs(at), vec![Url::Of((at + 1) % 3)]),
            Who::Added if added.is_some() => Step::Update(Who::Added, vec![Url::New(number)]),
            who => Step::Update(who, urls(rng)),
        },
        72..82 => Step::Promote(who(rng)),
        82..95 => match who(rng) {
            // To a voter that does not run etcd's leader would hand over for a second, and serve nobody.
            Who::Added if added == Some(Added::Voter) => Step::List,
            who => Step::MoveLeader(who),
        },
        _ => Step::Status,
    }
}

/// `added` is what was there before the step, and is after it.
fn excuse(
    step: &Step,
    [before, added]: [Option<Added>; 2],
    [expected, found]: &[Answer; 2],
) -> Option<Known> {
    use Answer::{Members, Refused};
    let says = |text: &str| matches!(found, Refused(_, said) if said == text);
    let bad = "etcdserver: given member URLs are invalid";
    let one = "quorate: a member has exactly one peer URL";
    match (step, expected, found) {
        (_, Members(one, theirs), Members(other, ours)) => {
            let schemes = quic(theirs);
            match (step, added) {
                _ if one != other => None,
                _ if schemes == *ours => Some(Known::PeerUrlScheme),
                _ if of_learner(&schemes) != *ours => None,
                (Step::Update(Who::Added, _), Some(Added::Learner)) => {
                    Some(Known::UpdatedLearnerVotes)
                }
                (_, Some(Added::Voter)) => Some(Known::AddedVoterWaits),
                _ => None,
            }
        }
        (Step::Promote(Who::Added), Refused(_, theirs), Refused(..))
            if added == Some(Added::Voter)
                && theirs == "etcdserver: can only promote a learner member" =>
        {
            let lags = "etcdserver: can only promote a learner member which is in sync with leader";
            says(lags).then_some(Known::AddedVoterWaits)
        }
        (Step::Update(_, urls), _, Refused(Code::InvalidArgument, _)) if says(bad) => {
            let is_wrong = urls.is_empty() || urls.iter().any(|url| matches!(url, Url::Text(_)));
            is_wrong.then_some(Known::UpdateUnchecked)
        }
        (Step::Add { urls, .. } | Step::Update(_, urls), _, Refused(Code::InvalidArgument, _))
            if says(one) =>
        {
            (urls.len() > 1).then_some(Known::OnePeerUrl)
        }
        (Step::Add { .. }, _, Members(_, ours))
            if is_unhealthy(expected) && before == Some(Added::Voter) =>
        {
            let others = ours.iter().filter(|member| member.starts_with(OTHER)).count();
            (others == 2).then_some(Known::AddWhileUnhealthy)
        }
        // What is wrong otherwise too is refused for that.
        (Step::Add { urls, .. }, _, Refused(..))
            if is_unhealthy(expected) && before == Some(Added::Voter) =>
        {
            let is_used =
                matches!(urls[..], [Url::Of(_)]) && says("etcdserver: Peer URLs already exists");
            is_used.then_some(Known::AddWhileUnhealthy)
        }
        // Etcd never answers: whose deadline is over first is told by its code.
        (
            Step::Promote(who),
            Refused(Code::DeadlineExceeded | Code::Cancelled | Code::Unavailable, _),
            Refused(Code::NotFound, _),
        ) => {
            let is_unknown = match who {
                Who::Stranger | Who::Gone => true,
                Who::Added => added.is_none(),
                Who::Runs(_) => false,
            };
            (is_unknown && says("etcdserver: member not found")).then_some(Known::PromoteUnknown)
        }
        _ => None,
    }
}

fn is_unhealthy(answer: &Answer) -> bool {
    let Answer::Refused(Code::Unavailable, text) = answer else { return false };
    text == "etcdserver: unhealthy cluster"
}

/// Members with the scheme that all of ours have.
fn quic(members: &[String]) -> Vec<String> {
    members.iter().map(|member| member.replace("http://", "quic://")).collect()
}

/// Members as if the one that was added were a learner.
fn of_learner(members: &[String]) -> Vec<String> {
    let learner = |member: &String| match member.starts_with(OTHER) {
        true => member.replace("learner false", "learner true"),
        false => member.clone(),
    };
    members.iter().map(learner).collect()
}
