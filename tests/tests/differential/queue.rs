//! Locks and elections: who is let in, who waits, who is refused, and what observers are told.
//!
//! After each step the calls that have to end by now are awaited and compared, and so is what observers are told. In the
//! end all keys are deleted, so that nobody waits any more.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use quorate_api::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
};
use quorate_api::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use quorate_api::v3lockpb::{LockRequest, UnlockRequest};
use quorate_tests::client::Client;

use super::harness::{ETCD, QUORATE, Run};
use super::known::Known;
use super::queue_calls::{Answer, Call, Ended, Side, own_key, prefix};

/// The names; the keys of one are among those of another, and one is empty.
const NAMES: [&str; 4] = ["n", "n/x", "m", ""];

/// The leases; one is negative.
const LEASES: [i64; 5] = [10, 11, 12, 13, -5];

/// A lease that nobody granted.
const UNKNOWN_LEASE: i64 = 99;

const VALUES: [&str; 3] = ["", "v1", "v2"];

/// Observers of one sequence.
const OBSERVERS_MAX: usize = 3;

/// Seconds: no lease ends during the test.
const TTL_S: i64 = 600;

#[derive(Debug, Clone)]
enum Step {
    Grant(i64),
    Revoke(i64),
    Call(Call),
    Unlock(Bytes),
    /// Of a key whose lease the server drew, by its place.
    UnlockDrawn(usize),
    Proclaim(ProclaimRequest),
    Resign(ResignRequest),
    Leader(Bytes),
    Keys(Bytes),
    Observe(Bytes),
    /// The client of a call that waits goes.
    GiveUp(usize),
    /// A key that is nobody's is put under a name.
    Put(Bytes),
    /// Somebody's key is deleted by hand.
    Delete(Bytes),
    /// All keys are.
    Clear,
}

/// What is kept of a sequence.
struct Play {
    sides: [Side; 2],
    /// Leaderships that somebody was given.
    leaderships: Vec<LeaderKey>,
    /// Of calls that waited: what one side has answered and the other one not yet.
    ended: [BTreeMap<usize, Ended>; 2],
    calls: usize,
}

/// One sequence.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    let [etcd, quorate] = run.patient();
    let sides = [Side::new(&etcd, false), Side::new(&quorate, true)];
    let ended = [BTreeMap::new(), BTreeMap::new()];
    let mut play = Play { sides, leaderships: Vec::new(), ended, calls: 0 };
    let mut script: Vec<_> = LEASES.map(Step::Grant).into();
    // In one of a run, for certain.
    if run.seed == 1 {
        script.extend(made_anew());
    }
    let mut script = script.into_iter();
    for number in 0..run.steps {
        let node = run.rng.usize(..3);
        let step = match script.next() {
            Some(step) => step,
            None => play.draw(run).await,
        };
        play.take(run, number, node, step).await?;
    }
    play.take(run, run.steps, 0, Step::Clear).await?;
    let left = play.ended.each_ref().map(BTreeMap::len);
    run.judge("calls that ended on one side".to_owned(), &left, || None)
}

/// Somebody waits for a lock, and another call makes its key anew: [`Known::HolderByName`], which chance seldom meets.
fn made_anew() -> [Step; 5] {
    let name = Bytes::from_static(NAMES[0].as_bytes());
    let key = |lease| own_key(&prefix(&name), lease);
    let lock = |lease| Step::Call(Call::Lock(LockRequest { name: name.clone(), lease }));
    let [holder, waiter, ..] = LEASES;
    let deleted = Step::Delete(key(waiter));
    [lock(holder), lock(waiter), deleted, lock(waiter), Step::Unlock(key(holder))]
}

impl Play {
    async fn draw(&mut self, run: &mut Run) -> Step {
        loop {
            let step = self.wish(&mut run.rng);
            match &step {
                Step::Call(call) if call.lease() == 0 => {
                    // Which key it has can only be told when it is let in.
                    if self.sides[ETCD].keys(&call.prefix()).await.1.is_empty() {
                        return step;
                    }
                }
                Step::Call(call) => {
                    let (_, keys) = self.sides[ETCD].keys(&call.prefix()).await;
                    let own = keys.iter().position(|pair| pair.key == call.key());
                    if own.is_none_or(|own| own == 0) {
                        return step;
                    }
                    run.ledger.note(Known::TwoCallsOfOneLease);
                }
                Step::GiveUp(at) => {
                    let in_place = self.sides[ETCD].in_place().await;
                    if let Some((number, _)) = in_place.get(*at) {
                        return Step::GiveUp(*number);
                    }
                }
                Step::Observe(_) if self.sides[ETCD].observers() >= OBSERVERS_MAX => {}
                Step::UnlockDrawn(at) if *at >= self.sides[ETCD].drawn.len() => {}
                _ => return step,
            }
        }
    }

    fn wish(&self, rng: &mut Rng) -> Step {
        let name = Bytes::from_static(rng.choice(NAMES).expect("there are names").as_bytes());
        let lease = match rng.u32(..16) {
            0 => UNKNOWN_LEASE,
            1 => 0,
            _ => rng.choice(LEASES).expect("there are leases"),
        };
        let value = Bytes::from_static(rng.choice(VALUES).expect("there are values").as_bytes());
        let key = match rng.u32(..12) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"n/nope"),
            _ => own_key(&prefix(&name), rng.choice(LEASES).expect("there are leases")),
        };
        match rng.u32(..100) {
            0..6 => Step::Grant(rng.choice(LEASES).expect("there are leases")),
            6..13 => Step::Revoke(lease),
            13..30 => Step::Call(Call::Lock(LockRequest { name, lease })),
            30..45 => Step::Call(Call::Campaign(CampaignRequest { name, lease, value })),
            45..55 => Step::Unlock(key),
            55..57 => Step::UnlockDrawn(rng.usize(..3)),
            57..65 => Step::Proclaim(ProclaimRequest { leader: self.leadership(rng), value }),
            65..73 => Step::Resign(ResignRequest { leader: self.leadership(rng) }),
            73..80 => Step::Leader(name),
            80..85 => Step::Keys(prefix(&name)),
            85..89 => Step::Observe(name),
            89..94 => Step::GiveUp(rng.usize(..4)),
            94..96 => Step::Put([&prefix(&name)[..], b"zz"].concat().into()),
            _ => Step::Delete(key),
        }
    }

    /// A leadership, mostly one that somebody was given, and rarely none at all.
    fn leadership(&self, rng: &mut Rng) -> Option<LeaderKey> {
        let given = match self.leaderships.len() {
            0 => LeaderKey { name: "n".into(), key: "n/a".into(), rev: 0, lease: 10 },
            // Of late ones more are still there.
            count => self.leaderships[rng.usize(count.saturating_sub(4)..count)].clone(),
        };
        match rng.u32(..12) {
            0 => None,
            1 => Some(LeaderKey { key: Bytes::new(), ..given }),
            2 => Some(LeaderKey { rev: given.rev - 1, ..given }),
            3 => Some(LeaderKey { lease: UNKNOWN_LEASE, ..given }),
            4 => Some(LeaderKey { name: "other".into(), ..given }),
            _ => Some(given),
        }
    }

    async fn take(
        &mut self,
        run: &mut Run,
        number: usize,
        node: usize,
        step: Step,
    ) -> Result<(), String> {
        let shown = format!("step {number}, node {node}: {step:?}");
        self.calls += 1;
        let answers = match &step {
            Step::Call(call) => {
                let held = self.sides[ETCD].keys(&call.prefix()).await.1;
                let held = held.into_iter().find(|pair| pair.key == call.key());
                let [etcd, quorate] = &mut self.sides;
                let answers = tokio::join!(
                    etcd.start(self.calls, node, call),
                    quorate.start(self.calls, node, call)
                );
                if let (Call::Campaign(_), Answer::Key { key, rev, lease, .. }) = (call, &answers.0)
                    && LEASES.contains(lease)
                {
                    let name = call.prefix().slice(..call.prefix().len() - 1);
                    let (key, rev, lease) = (key.clone(), *rev, *lease);
                    self.leaderships.push(LeaderKey { name, key, rev, lease });
                }
                let answers = answers.into();
                if let Some(held) = held {
                    self.held_again(run, shown, &(held.key, held.create_revision), answers).await?;
                    return self.follow(run, Some(Known::HeldAgain)).await;
                }
                answers
            }
            Step::GiveUp(number) => {
                let [etcd, quorate] = &mut self.sides;
                tokio::join!(etcd.give_up(*number), quorate.give_up(*number));
                [Answer::Done(0), Answer::Done(0)]
            }
            Step::Observe(name) => {
                self.sides.iter_mut().for_each(|side| side.observe(node, name));
                [Answer::Done(0), Answer::Done(0)]
            }
            step => {
                let drawn = |side: &Side, at: usize| side.drawn[at].key.clone();
                let step_of = |side: &Side| match step {
                    Step::UnlockDrawn(at) => Step::Unlock(drawn(side, *at)),
                    other => other.clone(),
                };
                let steps = self.sides.each_ref().map(step_of);
                let [etcd, quorate] = &mut run.sides;
                let answers = tokio::join!(
                    send(&mut etcd[node], &steps[ETCD]),
                    send(&mut quorate[node], &steps[QUORATE])
                );
                [self.sides[ETCD].neutral(answers.0), self.sides[QUORATE].neutral(answers.1)]
            }
        };
        run.judge(shown, &answers, || None)?;
        self.follow(run, None).await
    }

    /// A call of a lease that has the key already: Quorate writes it again, also where etcd only reads it. Brings
    /// the revisions together.
    async fn held_again(
        &mut self,
        run: &mut Run,
        shown: String,
        key: &(Bytes, i64),
        answers: [Answer; 2],
    ) -> Result<(), String> {
        let revision = |answer: &Answer| match answer {
            Answer::Key { revision, .. } => Some(*revision),
            _ => None,
        };
        let [expected, found] = answers.each_ref().map(revision);
        let without = |mut answer: Answer| {
            if let Answer::Key { revision, .. } = &mut answer {
                *revision = 0;
            }
            answer
        };
        let one_more = expected.zip(found).is_some_and(|(expected, found)| found == expected + 1);
        let same = one_more && without(answers[0].clone()) == without(answers[1].clone());
        run.judge(shown, &answers, || same.then_some(Known::HeldAgain))?;
        self.sides.iter_mut().for_each(|side| side.rewritten.push(key.clone()));
        run.level().await;
        Ok(())
    }

    /// Awaits and compares what follows from a step.
    async fn follow(&mut self, run: &mut Run, expected: Option<Known>) -> Result<(), String> {
        let [etcd, quorate] = &mut self.sides;
        let (theirs, ours) = tokio::join!(etcd.ended(), quorate.ended());
        for (side, ended) in [theirs, ours].into_iter().enumerate() {
            self.ended[side].extend(ended.into_iter().map(|ended| (ended.number, ended)));
        }
        let numbers: Vec<usize> = self.ended[QUORATE].keys().copied().collect();
        for number in numbers {
            let Some(theirs) = self.ended[ETCD].remove(&number) else {
                if self.ended[QUORATE][&number].lost {
                    // Noted once for each step that it goes on waiting.
                    run.ledger.note(Known::RefusedAtOnce);
                }
                continue;
            };
            let ours = self.ended[QUORATE].remove(&number).expect("it is there");
            let shown = format!("  then call {number} ends: {:?}", theirs.call);
            let answers = [theirs.answer.clone(), ours.answer.clone()];
            run.judge(shown, &answers, || excuse(&theirs, &ours))?;
            if let (Call::Campaign(campaign), Answer::Key { key, rev, lease, .. }) =
                (ours.call, ours.answer)
            {
                self.leaderships.push(LeaderKey { name: campaign.name, key, rev, lease });
            }
        }
        let [etcd, quorate] = &mut self.sides;
        let told = tokio::join!(etcd.observed(), quorate.observed());
        run.judge("  then observers are told".to_owned(), &told.into(), || expected)
    }
}

/// Which row a difference between two calls that waited is.
fn excuse(theirs: &Ended, ours: &Ended) -> Option<Known> {
    if !(ours.lost && matches!(theirs.answer, Answer::Key { .. })) {
        return None;
    }
    let Answer::Refused(_, text) = &ours.answer else { return None };
    match (&theirs.call, text.as_str()) {
        (Call::Campaign(_), "election: not leader") => Some(Known::LeaderWithoutKey),
        (Call::Lock(_), "mutex: session is expired") => Some(Known::HolderByName),
        _ => None,
    }
}

async fn send(client: &mut Client, step: &Step) -> Answer {
    let (kv, election) = (&mut client.kv, &mut client.election);
    let done = |header| Answer::Done(Answer::revision(header));
    let answer = match step.clone() {
        Step::Grant(id) => {
            let granted = client.lease.lease_grant(LeaseGrantRequest { id, ttl: TTL_S }).await;
            granted.map(|granted| done(granted.into_inner().header))
        }
        Step::Revoke(id) => {
            let revoked = client.lease.lease_revoke(LeaseRevokeRequest { id }).await;
            revoked.map(|revoked| Answer::Revoked(Answer::revision(revoked.into_inner().header)))
        }
        Step::Unlock(key) => {
            let unlocked = client.lock.unlock(UnlockRequest { key }).await;
            unlocked.map(|unlocked| done(unlocked.into_inner().header))
        }
        Step::Proclaim(request) => {
            election.proclaim(request).await.map(|told| done(told.into_inner().header))
        }
        Step::Resign(request) => {
            election.resign(request).await.map(|told| done(told.into_inner().header))
        }
        Step::Leader(name) => election.leader(LeaderRequest { name }).await.map(|told| {
            let told = told.into_inner();
            Answer::Leader(Answer::revision(told.header), told.kv)
        }),
        Step::Keys(prefix) => {
            let (revision, keys) =
                Side::new(std::slice::from_ref(client), false).keys(&prefix).await;
            Ok(Answer::Keys(revision, keys))
        }
        Step::Put(key) => {
            let put = PutRequest { key, value: "by hand".into(), ..PutRequest::default() };
            kv.put(put).await.map(|put| done(put.into_inner().header))
        }
        Step::Delete(key) => {
            let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
            kv.delete_range(delete).await.map(|deleted| done(deleted.into_inner().header))
        }
        Step::Clear => {
            let all = Bytes::from_static(b"\0");
            let delete = DeleteRangeRequest { key: all.clone(), range_end: all, prev_kv: false };
            kv.delete_range(delete).await.map(|deleted| done(deleted.into_inner().header))
        }
        Step::Call(_) | Step::Observe(_) | Step::GiveUp(_) | Step::UnlockDrawn(_) => {
            unreachable!("those are sent otherwise")
        }
    };
    answer.unwrap_or_else(Answer::refused)
}
