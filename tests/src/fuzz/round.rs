//! [`Round`]: targets that are fuzzed at the same time.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::call::Answer;
use super::message::Author;
use super::target::{Company, Target};
use super::{call, connection, json, token};
use crate::client::{Client, runtime};
use crate::cluster::Cluster;
use crate::measure::{mib, rss_bytes};
use crate::verify::say;

/// Calls of each target under way at a time.
const CALLS: usize = 16;

/// What a node may hold more than before it was fuzzed: its caches are filled, and nothing else. Blocks and rows of the
/// state take 160 MiB, memtables of log and state some 100, events that are kept for watches 40, and calls the rest.
const GROWTH_BYTES_MAX: u64 = 320 << 20;

/// And for each call under way: its connection, a message and an answer.
const CALL_BYTES_MAX: u64 = 1 << 20;

/// How far each target of a round is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// What the messages are drawn from.
    pub seed: u64,
    /// For so long, seconds.
    pub seconds: u64,
    /// So many calls, if that is less.
    pub calls: u64,
}

/// Targets that do not keep each other from being fuzzed.
#[derive(Clone, Debug)]
pub struct Round {
    targets: Vec<Target>,
}

/// A round of up to `together` targets, the least fuzzed one and others that go with it, as `count` counts them.
#[must_use]
pub fn least_fuzzed(count: impl Fn(&Target) -> u64, together: usize) -> Round {
    let mut targets = super::targets(&[]);
    targets.sort_by_key(count);
    let company = targets.first().map(Target::company);
    targets.retain(|target| Some(target.company()) == company);
    targets.truncate(together);
    Round { targets }
}

impl Round {
    /// All of `targets` in rounds of up to `together`.
    #[must_use]
    pub fn all(targets: Vec<Target>, together: usize) -> Vec<Self> {
        let of = |company| {
            let those = targets.iter().filter(move |target| target.company() == company);
            those.cloned().collect::<Vec<_>>()
        };
        let rounds = Company::EACH.into_iter().flat_map(|company| {
            let chunks = of(company);
            chunks.chunks(together).map(|part| Self { targets: part.to_vec() }).collect::<Vec<_>>()
        });
        rounds.collect()
    }

    /// What is fuzzed.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Fuzzes at the first node of a fresh cluster, and says what came back. Returns the number of calls.
    ///
    /// # Errors
    /// When a node ends, panics, grows without bound, or does not serve afterwards.
    ///
    /// # Panics
    /// When there is no cluster.
    pub fn run(&self, extent: Extent) -> Result<u64, String> {
        let mut cluster = Cluster::quorate("hostile bytes").expect("it is built");
        let before = memory_bytes(&cluster);
        let address = cluster.nodes[0].client.clone();
        let answers = runtime().block_on(self.fuzz(&address, extent))?;
        let growth_max = GROWTH_BYTES_MAX + (self.targets.len() * CALLS) as u64 * CALL_BYTES_MAX;
        judge(&mut cluster, &before, growth_max)
            .map_err(|why| format!("{}: {why}", self.names()))?;
        let shown = |bytes: &[u64]| {
            bytes.iter().map(|bytes| format!("{:.0}", mib(*bytes))).collect::<Vec<_>>().join(" + ")
        };
        let growth = (shown(&before), shown(&memory_bytes(&cluster)));
        for (target, answers) in self.targets.iter().zip(&answers) {
            say(&format!("{}: {answers}", target.path()));
        }
        say(&format!("memory of the nodes: {} MiB, then {} MiB", growth.0, growth.1));
        Ok(answers.iter().map(|answers| answers.sum()).sum())
    }

    fn names(&self) -> String {
        self.targets.iter().map(Target::path).collect::<Vec<_>>().join(", ")
    }

    async fn fuzz(&self, address: &str, extent: Extent) -> Result<Vec<Arc<Answers>>, String> {
        let mut client = Client::new(address);
        let counts_users = self.targets.iter().any(|target| target.company() == Company::Users);
        let honest = match counts_users {
            true => token::enable(&mut client).await.map_err(text)?,
            false => String::new(),
        };
        let end = Instant::now() + Duration::from_secs(extent.seconds);
        let mut calls = tokio::task::JoinSet::new();
        let mut all = Vec::new();
        for (place, target) in self.targets.iter().enumerate() {
            let (answers, left) =
                (Arc::<Answers>::default(), Arc::new(AtomicU64::new(extent.calls)));
            all.push(Arc::clone(&answers));
            for number in 0..CALLS as u64 {
                let seed = extent.seed.wrapping_add((place * CALLS) as u64 + number);
                let door = Door::open(address, number, &honest, target, seed).await?;
                let (answers, left) = (Arc::clone(&answers), Arc::clone(&left));
                let goes_on = move || Instant::now() < end && take_one(&left);
                calls.spawn(async move { door.send(&answers, goes_on).await });
            }
        }
        while let Some(ended) = calls.join_next().await {
            ended.map_err(text)??;
        }
        if counts_users {
            token::disable(&mut client).await.map_err(text)?;
        }
        Ok(all)
    }
}

/// What came back from one target.
#[derive(Default)]
struct Answers {
    served: AtomicU64,
    refused: AtomicU64,
    /// Streams that stayed open.
    open: AtomicU64,
}

impl Answers {
    fn sum(&self) -> u64 {
        [&self.served, &self.refused, &self.open]
            .map(|count| count.load(Ordering::Relaxed))
            .iter()
            .sum()
    }
}

impl std::fmt::Display for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [served, refused, open] =
            [&self.served, &self.refused, &self.open].map(|count| count.load(Ordering::Relaxed));
        write!(f, "{served} served, {refused} refused, {open} left open")
    }
}

/// Where the calls of one task go: over gRPC, over HTTP/1, or to a socket.
struct Door {
    channel: Channel,
    client: Client,
    address: String,
    honest: String,
    target: Target,
    author: Option<Author>,
    random: Rng,
}

impl Door {
    async fn open(
        address: &str,
        number: u64,
        honest: &str,
        target: &Target,
        seed: u64,
    ) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(text)?;
        // Of eight, two are there before the first call.
        let channel = match number % 8 {
            0 | 1 => endpoint.connect().await.map_err(text)?,
            _ => endpoint.connect_lazy(),
        };
        Ok(Self {
            channel,
            client: Client::new(address),
            address: address.to_owned(),
            honest: honest.to_owned(),
            target: target.clone(),
            author: target.input().map(|input| Author::new(input, seed)),
            random: Rng::with_seed(seed),
        })
    }

    async fn send(mut self, answers: &Answers, goes_on: impl Fn() -> bool) -> Result<(), String> {
        while goes_on() {
            match self.call().await? {
                Answer::Served => answers.served.fetch_add(1, Ordering::Relaxed),
                Answer::Open => answers.open.fetch_add(1, Ordering::Relaxed),
                // A node that is gone, or a task of it: the client's own words, with a cause. Locks and elections say
                // `Unknown` too, as etcd's do.
                Answer::Refused(status)
                    if status.code() == Code::Unknown && status.source().is_some() =>
                {
                    return Err(format!("{}: {status:?}", self.target.path()));
                }
                Answer::Refused(_) => answers.refused.fetch_add(1, Ordering::Relaxed),
            };
        }
        Ok(())
    }

    async fn call(&mut self) -> Result<Answer, String> {
        let path = self.target.path();
        match (&self.target, &mut self.author) {
            (Target::Method(method), Some(author)) => {
                let messages = author.messages(method.is_client_streaming());
                Ok(call::call(&self.channel, &path, messages).await)
            }
            (Target::Json { .. }, Some(author)) => {
                json::post(&self.address, &path, &author.text()).await
            }
            (Target::Token, _) => {
                token::show(&mut self.client, &self.honest, &mut self.random).await
            }
            _ => connection::disturb(&self.address, &mut self.random).await,
        }
    }
}

/// False once there is nothing left.
fn take_one(left: &AtomicU64) -> bool {
    let less = |left: u64| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

/// Of each node.
fn memory_bytes(cluster: &Cluster) -> Vec<u64> {
    cluster.nodes.iter().map(rss_bytes).collect()
}

/// After a round the nodes must be as good as before.
fn judge(cluster: &mut Cluster, before: &[u64], growth_max: u64) -> Result<(), String> {
    for node in &mut cluster.nodes {
        let process = node.process.as_mut().expect("nobody ends it");
        if let Some(status) = process.ended() {
            return Err(format!("{} ended with {status}", node.name));
        }
        if let Some(line) = process.log().lines().find(|line| line.contains("panicked")) {
            return Err(format!("{} panicked: {line}", node.name));
        }
    }
    for ((node, before), after) in cluster.nodes.iter().zip(before).zip(memory_bytes(cluster)) {
        if after > before + growth_max {
            let (name, before, after) = (&node.name, mib(*before), mib(after));
            return Err(format!("{name} grew from {before:.0} to {after:.0} MiB"));
        }
    }
    (0..cluster.nodes.len()).for_each(|number| cluster.await_read(number));
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
