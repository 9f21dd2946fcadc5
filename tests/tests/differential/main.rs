//! The same requests to etcd and to Quorate, one at a time, and the answers compared field by field.
//!
//! A seed makes the requests ([`generate`]); the answers must be equal but for identities and terms
//! ([`compare`]), revisions included. A difference prints the seed, the step, the request and both answers.
//! `DIFFERENTIAL_SEEDS` (comma separated) and `DIFFERENTIAL_STEPS` choose other runs.

mod auth;
mod compare;
mod generate;
mod lease;
mod upkeep;
mod watch;

use std::collections::VecDeque;
use std::env;

use prost::Message;
use quorate_api::etcdserverpb::{RangeRequest, RangeResponse};
use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::programs;
use tokio::runtime::Runtime;
use tonic::Status;

use compare::Answer;
use generate::{Generator, Request};

/// Requests of one seed. Two seeds make the few hundred that a change is tested with.
const STEPS: usize = 400;

/// One round of watches for so many steps.
const WATCH_STEPS: usize = 80;

/// Differences that are shown before the test gives up.
const DIFFERENCES_MAX: usize = 3;

/// Requests before the first difference that are shown: the one that set the stores apart is among them.
const HISTORY: usize = 3;

#[test]
fn etcd_and_quorate_give_the_same_answers() {
    let test = "differential";
    let Some(programs) = programs::etcd(test) else { return };
    let Some(quorate) = Cluster::quorate(test) else { return };
    let etcd = Cluster::etcd(programs);
    let mut revision = 1;
    let mut compacted = 0;
    for seed in seeds() {
        let mut run = Run {
            sides: [side(&etcd), side(&quorate)],
            generator: Generator::new(seed, revision, compacted),
            differences: Vec::new(),
        };
        runtime().block_on(run.run(seed, steps()));
        assert!(run.differences.is_empty(), "{}", run.differences.join("\n\n"));
        (revision, compacted) = run.generator.position();
    }
}

#[test]
fn etcd_and_quorate_answer_the_same_about_leases() {
    let test = "differential: leases";
    let Some(mut pair) = Pair::start(test) else { return };
    for seed in seeds() {
        pair.generator.reseed(seed);
        let differences = lease::differences(&mut pair.sides, seed, steps(), &mut pair.generator);
        let found = pair.runtime.block_on(differences);
        assert!(found.is_empty(), "{}", found.join("\n\n"));
    }
}

#[test]
fn etcd_and_quorate_tell_watchers_the_same() {
    let test = "differential: watches";
    let Some(mut pair) = Pair::start(test) else { return };
    for seed in seeds() {
        for round in 0..steps() / WATCH_STEPS {
            let seed = seed << 32 | round as u64;
            pair.generator.reseed(seed);
            let differences = watch::differences(&mut pair.sides, seed, &mut pair.generator);
            let found = pair.runtime.block_on(differences);
            assert!(found.is_empty(), "{}", found.join("\n\n"));
        }
    }
}

#[test]
fn etcd_and_quorate_hash_compact_and_alarm_the_same() {
    let test = "differential: upkeep";
    let Some(mut pair) = Pair::start(test) else { return };
    for seed in seeds() {
        pair.generator.reseed(seed);
        let differences = upkeep::differences(&mut pair.sides, seed, steps(), &mut pair.generator);
        let found = pair.runtime.block_on(differences);
        assert!(found.is_empty(), "{}", found.join("\n\n"));
    }
}

#[test]
fn etcd_and_quorate_answer_the_same_about_users() {
    let test = "differential: users";
    let Some(pair) = Pair::start(test) else { return };
    // One node only: the others of etcd 3.5.1 come to hold other keys, because they check rights that they remember.
    let sides = pair.sides.each_ref().map(|side| &side[0]);
    for seed in seeds() {
        let found = pair.runtime.block_on(auth::differences(sides, seed, steps()));
        assert!(found.is_empty(), "{}", found.join("\n\n"));
    }
}

fn seeds() -> Vec<u64> {
    let seeds = env::var("DIFFERENTIAL_SEEDS").unwrap_or_else(|_| "1,2".to_owned());
    seeds.split(',').map(|seed| seed.parse().expect("seeds are numbers")).collect()
}

fn steps() -> usize {
    env::var("DIFFERENTIAL_STEPS").map_or(STEPS, |steps| steps.parse().expect("a number"))
}

/// A fresh cluster of each kind, and clients of each of their nodes: etcd's first.
struct Pair {
    sides: [Vec<Client>; 2],
    generator: Generator,
    runtime: Runtime,
    _clusters: [Cluster; 2],
}

impl Pair {
    /// None when etcd cannot be had.
    fn start(test: &str) -> Option<Self> {
        let programs = programs::etcd(test)?;
        let clusters = [Cluster::etcd(programs), Cluster::quorate(test)?];
        let runtime = runtime();
        let clients = |cluster: &Cluster| -> Vec<_> {
            let _inside = runtime.enter();
            cluster.endpoints().iter().map(|endpoint| Client::new(endpoint)).collect()
        };
        let sides = [clients(&clusters[0]), clients(&clusters[1])];
        Some(Self { sides, generator: Generator::new(0, 1, 0), runtime, _clusters: clusters })
    }
}

/// Brings every node of a side up to what has been acknowledged: what they say of their own state is the same
/// then.
async fn settle(side: &mut [Client]) {
    for client in side {
        send(client, &Request::Range(linearizable())).await;
    }
}

fn side(cluster: &Cluster) -> Vec<String> {
    cluster.endpoints()
}

/// One seed against both sides.
struct Run {
    /// The endpoints of etcd and of Quorate.
    sides: [Vec<String>; 2],
    generator: Generator,
    differences: Vec<String>,
}

impl Run {
    async fn run(&mut self, seed: u64, steps: usize) {
        let (mut history, mut differences) = (VecDeque::new(), 0);
        let connect = |side: &Vec<String>| side.iter().map(|e| Client::new(e)).collect::<Vec<_>>();
        let [mut etcd, mut quorate] = [connect(&self.sides[0]), connect(&self.sides[1])];
        for step in 0..steps {
            let (node, request) = self.generator.next();
            if may_be_stale(&request) {
                // A node may answer such a read from before what another one acknowledged. After a
                // linearizable read of its own it may not: then both sides have one right answer.
                for client in [&mut etcd[node], &mut quorate[node]] {
                    send(client, &Request::Range(linearizable())).await;
                }
            }
            let expected = send(&mut etcd[node], &request).await;
            let found = send(&mut quorate[node], &request).await;
            self.generator.learn(&request, &expected);
            if let Request::Range(range) = &request {
                let streamed = streamed(&mut quorate[node], range.clone()).await;
                assert_eq!(streamed, found, "seed {seed}, step {step}: {range:?} in parts");
            }
            let shown =
                format!("step {step}, node {node}: {request:#?}\netcd answers {expected:#?}");
            if let Some(how) = compare::difference(&request, &expected, &found) {
                for before in history.drain(..) {
                    self.differences.push(format!("the same answers at {before}"));
                }
                differences += 1;
                self.differences
                    .push(format!("{how}: seed {seed}, {shown}\nQuorate answers {found:#?}"));
                if differences >= DIFFERENCES_MAX {
                    return;
                }
            } else if !matches!(request, Request::Range(_)) && differences == 0 {
                // What only reads sets nothing apart.
                history.push_back(shown);
                history.drain(..history.len().saturating_sub(HISTORY));
            }
        }
    }
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

/// A read that brings the node which answers it up to date.
fn linearizable() -> RangeRequest {
    RangeRequest { key: "a".into(), ..RangeRequest::default() }
}

/// Sends one request and takes its answer, errors as values.
async fn send(client: &mut Client, request: &Request) -> Answer {
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
