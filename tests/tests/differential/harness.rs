//! What all families share: two clusters, sequences from seeds, and the judge of two answers.

use std::collections::VecDeque;
use std::env;
use std::fmt::Debug;
use std::io::Write;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::future::join_all;
use quorate_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseLeasesRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest,
};
use quorate_api::v3electionpb::election_client::ElectionClient;
use quorate_api::v3lockpb::lock_client::LockClient;
use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::programs;
use tonic::transport::Endpoint;

use super::generate::Generator;
use super::known::{Family, Known, Ledger};

/// Sequences of each family that a change is tested with.
const SEQUENCES: u64 = 12;

/// Steps of one sequence.
const STEPS: usize = 60;

/// Steps before a difference that are shown.
const HISTORY: usize = 12;

/// How long what must come may take: for a broken server.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// Between two looks.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

/// What is written to bring revisions together; outside of what families look at.
const SCRATCH: &[u8] = b"~";

/// etcd's passwords cost a tenth of a second each otherwise, and no answer shows it.
const QUICK: [&str; 2] = ["--bcrypt-cost", "4"];

/// The number of etcd's side, and of Quorate's.
pub(crate) const ETCD: usize = 0;
pub(crate) const QUORATE: usize = 1;

/// One family against both sides.
pub(crate) struct Run {
    /// Clients of each of the nodes: etcd's first.
    pub(crate) sides: [Vec<Client>; 2],
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    pub(crate) rng: Rng,
    /// Of requests for keys.
    pub(crate) generator: Generator,
    pub(crate) ledger: Ledger,
    endpoints: [Vec<String>; 2],
    history: VecDeque<String>,
    requests: u64,
}

/// Runs the sequences of a family, each from an empty store, and reports.
pub(crate) fn run(
    test: &str,
    family: Family,
    sequence: impl AsyncFn(&mut Run) -> Result<(), String>,
) {
    let Some(programs) = programs::etcd(test) else { return };
    let Some(quorate) = Cluster::quorate(test) else { return };
    let clusters = [Cluster::etcd_with(programs, &QUICK), quorate];
    let began = Instant::now();
    let (seeds, steps) = (seeds(), number("DIFFERENTIAL_STEPS").unwrap_or(STEPS as u64) as usize);
    let count = seeds.clone().count();
    let run = runtime().block_on(async {
        let clients = |endpoints: &Vec<String>| -> Vec<_> {
            endpoints.iter().map(|endpoint| Client::new(endpoint)).collect()
        };
        let endpoints = clusters.each_ref().map(Cluster::endpoints);
        let mut run = Run {
            sides: endpoints.each_ref().map(clients),
            seed: 0,
            steps,
            rng: Rng::with_seed(0),
            generator: Generator::new(0, 1, 0),
            ledger: Ledger::default(),
            endpoints,
            history: VecDeque::new(),
            requests: 0,
        };
        for seed in seeds {
            run.begin(seed).await;
            if let Err(difference) = sequence(&mut run).await {
                panic!("{test}: DIFFERENTIAL_SEED={seed}: {difference}");
            }
            run.generator.left_out.drain(..).for_each(|known| run.ledger.note(known));
            run.ledger.end_sequence();
        }
        run
    });
    let took = began.elapsed().as_secs_f64();
    let report = format!(
        "{test}: {count} sequences, {} answers, {:.0} sequences a minute; known differences:\n{}",
        run.requests,
        count as f64 / took * 60.0,
        run.ledger.report(family)
    );
    // Nothing is left to do when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{report}");
    // Shorter sequences meet less.
    let missing = match steps < STEPS {
        true => Vec::new(),
        false => run.ledger.missing(family, count as u64),
    };
    assert!(missing.is_empty(), "{test}: none of {count} sequences met {missing:?}");
}

/// One seed, or so many from the first one on.
fn seeds() -> std::ops::RangeInclusive<u64> {
    match number("DIFFERENTIAL_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("DIFFERENTIAL_SEEDS").unwrap_or(SEQUENCES),
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is a number, and not {value}")))
}

impl Run {
    /// A store with but one key on both sides, at one revision and compacted there: as if nothing had ever been.
    async fn begin(&mut self, seed: u64) {
        self.history.clear();
        self.settle().await;
        let [etcd, quorate] = &mut self.sides;
        tokio::join!(revoke_all(&mut etcd[0]), revoke_all(&mut quorate[0]));
        self.level().await;
        let [etcd, quorate] = &mut self.sides;
        tokio::join!(delete_all(&mut etcd[0]), delete_all(&mut quorate[0]));
        let revision = self.level().await;
        for side in &mut self.sides {
            let compact = CompactionRequest { revision, physical: true };
            side[0].kv.compact(compact).await.expect("a compaction");
        }
        self.settle().await;
        self.seed = seed;
        self.rng = Rng::with_seed(seed);
        self.generator = Generator::new(seed, revision, revision);
    }

    /// Clients whose calls for locks and elections wait for as long as it takes.
    pub(crate) fn patient(&self) -> [Vec<Client>; 2] {
        let patient = |(client, endpoint): (&Client, &String)| {
            let endpoint = Endpoint::from_shared(format!("http://{endpoint}"));
            let channel = endpoint.expect("an address").connect_lazy();
            let (lock, election) =
                (LockClient::new(channel.clone()), ElectionClient::new(channel.clone()));
            Client { lock, election, ..client.clone() }
        };
        let side = |side: usize| self.sides[side].iter().zip(&self.endpoints[side]);
        [side(ETCD).map(patient).collect(), side(QUORATE).map(patient).collect()]
    }

    /// Brings every node up to what has been acknowledged: what they say of their own state is the same then.
    pub(crate) async fn settle(&mut self) {
        let read = async |client: &mut Client| {
            // One that does not answer shows in what follows.
            let _ = client.kv.range(linearizable()).await;
        };
        join_all(self.sides.iter_mut().flatten().map(read)).await;
    }

    /// Brings the side that has the lower revision to the other's by writes that mean nothing. Returns the
    /// revision.
    pub(crate) async fn level(&mut self) -> i64 {
        let [etcd, quorate] = &mut self.sides;
        let (mut theirs, mut ours) =
            tokio::join!(revision(&mut etcd[0]), revision(&mut quorate[0]));
        while theirs < ours {
            theirs = write(&mut etcd[0]).await;
        }
        while ours < theirs {
            ours = write(&mut quorate[0]).await;
        }
        ours
    }

    /// Asks one node of each side the same.
    pub(crate) async fn both<T>(
        &mut self,
        node: usize,
        ask: impl AsyncFn(&mut Client) -> T,
    ) -> [T; 2] {
        let [etcd, quorate] = &mut self.sides;
        let (expected, found) = tokio::join!(ask(&mut etcd[node]), ask(&mut quorate[node]));
        [expected, found]
    }

    /// Whether two answers are the same or differ as a row of the table says.
    pub(crate) fn judge<A: Debug + PartialEq>(
        &mut self,
        shown: String,
        [expected, found]: &[A; 2],
        excuse: impl FnOnce() -> Option<Known>,
    ) -> Result<(), String> {
        let excuse = match expected == found {
            true => Some(None),
            false => excuse().map(Some),
        };
        self.conclude(shown, [expected, found], excuse)
    }

    /// The same for answers that are compared in another way: `None` is a difference that nothing excuses.
    pub(crate) fn conclude(
        &mut self,
        shown: String,
        [expected, found]: [&dyn Debug; 2],
        verdict: Option<Option<Known>>,
    ) -> Result<(), String> {
        self.requests += 1;
        let Some(excuse) = verdict else {
            let before: Vec<_> = self.history.iter().map(String::as_str).collect();
            return Err(format!(
                "{}\n{shown}\netcd answers {expected:#?}\nQuorate answers {found:#?}",
                before.join("\n")
            ));
        };
        let mut shown = format!("{shown}\n  answered {expected:?}");
        if let Some(known) = excuse {
            self.ledger.note(known);
            shown = format!("{shown}\n  and by Quorate {found:?}: {known:?}");
        }
        self.history.push_back(shown);
        self.history.drain(..self.history.len().saturating_sub(HISTORY));
        Ok(())
    }
}

/// A read that brings the node which answers it up to date.
pub(crate) fn linearizable() -> RangeRequest {
    RangeRequest { key: SCRATCH.into(), ..RangeRequest::default() }
}

async fn revision(client: &mut Client) -> i64 {
    let read = client.kv.range(linearizable()).await.expect("a read").into_inner();
    read.header.expect("every answer has a header").revision
}

async fn write(client: &mut Client) -> i64 {
    let put = PutRequest { key: SCRATCH.into(), ..PutRequest::default() };
    let put = client.kv.put(put).await.expect("a write").into_inner();
    put.header.expect("every answer has a header").revision
}

/// Deletes everything but what was just written.
async fn delete_all(client: &mut Client) {
    write(client).await;
    let all = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: false };
    client.kv.delete_range(all).await.expect("a delete");
    // Of nothing at all etcd has no certain hash.
    write(client).await;
}

async fn revoke_all(client: &mut Client) {
    let leases = client.lease.lease_leases(LeaseLeasesRequest {}).await.expect("a list");
    for lease in leases.into_inner().leases {
        // It may have ended by itself.
        let _ = client.lease.lease_revoke(LeaseRevokeRequest { id: lease.id }).await;
    }
}
