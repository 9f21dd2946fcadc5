//! Bytes that no honest client sends, to every method of the client port, at a running node.
//!
//! A [`Target`] is a method of the services, as the descriptors name them, so that a new one is fuzzed without a
//! further word, or a path of the JSON gateway. Each gets random messages of its own type ([`message`]), whole,
//! damaged, nested too deeply, or cut off. Whatever is sent, the node answers with a status or a response, lives on without a panic in its
//! log, keeps its memory bounded, and serves an honest client afterwards.

mod call;
mod json;
mod message;
mod target;

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use self::call::Answer;
use self::message::Author;
use crate::client::runtime;
use crate::cluster::Cluster;
use crate::measure::{mib, rss_bytes};
use crate::verify::say;

pub use self::target::{Target, targets};

/// Calls under way at a time.
const CALLS: usize = 16;

/// What a node may hold more than before it was fuzzed: its caches are filled, and nothing else.
const GROWTH_BYTES_MAX: u64 = 512 << 20;

/// How long, and what.
#[derive(Debug, Args)]
pub struct Settings {
    /// Seconds for each target.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Calls for each target, if that is less.
    #[arg(long, default_value_t = u64::MAX)]
    calls: u64,
    /// Only methods whose path contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// What the messages are drawn from; a new one each time by default.
    #[arg(long)]
    seed: Option<u64>,
}

impl Settings {
    /// So many calls for each target.
    #[must_use]
    pub const fn brief(calls: u64, seed: u64) -> Self {
        Self { seconds: 600, calls, only: Vec::new(), seed: Some(seed) }
    }
}

/// Fuzzes every method in turn.
///
/// # Errors
/// When a node ends, panics, grows without bound, or does not serve afterwards.
pub fn run(settings: &Settings) -> Result<(), String> {
    let mut cluster = Cluster::quorate("hostile bytes").ok_or("no cluster")?;
    let seed = settings.seed.unwrap_or_else(|| fastrand::u64(..));
    say(&format!("seed {seed}"));
    for target in targets(&settings.only) {
        let (seconds, calls) = (settings.seconds, settings.calls);
        one(&mut cluster, &target, Extent { seed, seconds, calls })?;
    }
    Ok(())
}

/// How far one target is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// What the messages are drawn from.
    pub seed: u64,
    /// For so long, seconds.
    pub seconds: u64,
    /// So many calls, if that is less.
    pub calls: u64,
}

/// Fuzzes one target at the first node of `cluster`.
///
/// # Errors
/// When a node ends, panics, grows without bound, or does not serve afterwards.
pub fn one(cluster: &mut Cluster, target: &Target, extent: Extent) -> Result<(), String> {
    let before = memory_bytes(cluster);
    let answered = runtime().block_on(fuzz(&cluster.nodes[0].client, target, extent))?;
    let path = target.path();
    judge(cluster, &path, before)?;
    say(&format!("{path}: {answered}, {:.0} MiB", mib(memory_bytes(cluster))));
    Ok(())
}

/// What came back.
#[derive(Default)]
struct Answers {
    served: AtomicU64,
    refused: AtomicU64,
    /// Streams that stayed open.
    open: AtomicU64,
}

async fn fuzz(address: &str, target: &Target, extent: Extent) -> Result<String, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(text)?;
    let end = Instant::now() + Duration::from_secs(extent.seconds);
    let (answers, left) = (Arc::<Answers>::default(), Arc::new(AtomicU64::new(extent.calls)));
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..CALLS as u64 {
        // Eight share a connection: what one of them does to it the others feel.
        let channel = match number % 8 {
            0 | 1 => endpoint.connect().await.map_err(text)?,
            _ => endpoint.connect_lazy(),
        };
        let author = Author::new(target.input(), extent.seed.wrapping_add(number));
        let (target, answers, left) = (target.clone(), Arc::clone(&answers), Arc::clone(&left));
        let goes_on = move || Instant::now() < end && take_one(&left);
        let address = address.to_owned();
        calls.spawn(async move {
            let door = Door { channel, address };
            send(&door, &target, author, &answers, goes_on).await
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.map_err(text)??;
    }
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
    Ok(format!(
        "{} served, {} refused, {} streams left open",
        count(&answers.served),
        count(&answers.refused),
        count(&answers.open)
    ))
}

/// Where calls go: over gRPC, and over HTTP/1.
struct Door {
    channel: Channel,
    address: String,
}

impl Door {
    async fn call(&self, target: &Target, author: &mut Author) -> Result<Answer, String> {
        let path = target.path();
        match target {
            Target::Method(method) => {
                let messages = author.messages(method.is_client_streaming());
                Ok(call::call(&self.channel, &path, messages).await)
            }
            Target::Json { .. } => json::post(&self.address, &path, &author.text()).await,
        }
    }
}

async fn send(
    door: &Door,
    target: &Target,
    mut author: Author,
    answers: &Answers,
    goes_on: impl Fn() -> bool,
) -> Result<(), String> {
    let path = target.path();
    while goes_on() {
        match door.call(target, &mut author).await? {
            Answer::Served => answers.served.fetch_add(1, Ordering::Relaxed),
            Answer::Open => answers.open.fetch_add(1, Ordering::Relaxed),
            // A node that is gone, or a task of it: the client's own words, with a cause. Locks and elections say
            // `Unknown` too, as etcd's do.
            Answer::Refused(status)
                if status.code() == Code::Unknown && status.source().is_some() =>
            {
                return Err(format!("{path}: {status:?}"));
            }
            Answer::Refused(_) => answers.refused.fetch_add(1, Ordering::Relaxed),
        };
    }
    Ok(())
}

/// False once there is nothing left.
fn take_one(left: &AtomicU64) -> bool {
    let less = |left: u64| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

fn memory_bytes(cluster: &Cluster) -> u64 {
    cluster.nodes.iter().map(rss_bytes).sum()
}

/// After a target the nodes must be as good as before.
fn judge(cluster: &mut Cluster, path: &str, before: u64) -> Result<(), String> {
    for number in 0..cluster.nodes.len() {
        let node = &mut cluster.nodes[number];
        let process = node.process.as_mut().expect("nobody ends it");
        if let Some(status) = process.ended() {
            return Err(format!("{path}: {} ended with {status}", node.name));
        }
        if let Some(line) = process.log().lines().find(|line| line.contains("panicked")) {
            return Err(format!("{path}: {} panicked: {line}", node.name));
        }
    }
    let after = memory_bytes(cluster);
    if after > before + GROWTH_BYTES_MAX {
        return Err(format!(
            "{path}: memory grew from {:.0} to {:.0} MiB",
            mib(before),
            mib(after)
        ));
    }
    (0..cluster.nodes.len()).for_each(|number| cluster.await_read(number));
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
