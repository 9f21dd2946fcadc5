//! The p99 of puts while a snapshot is under way.
//!
//! A node joins a cluster under a steady load, again and again: each time all of the data goes to it as a
//! snapshot. Slices of load during which one was under way are held against those between.

use std::time::Instant;

use clap::Args;

use super::{DataSet, Slice};
use crate::cluster::Cluster;
use crate::http;
use crate::verify::say;

/// How much, how fast, how often.
#[derive(Debug, Args)]
pub struct Settings {
    /// MiB of values of 1 KiB, each under a key of its own.
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Puts a second, on a schedule; 0: as fast as 64 clients can.
    #[arg(long, default_value_t = 2000)]
    rate: u64,
    /// Seconds of a slice.
    #[arg(long, default_value_t = 3)]
    slice: u64,
    /// Times that a node joins.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Slices before each, and after the data was written.
    #[arg(long, default_value_t = 6)]
    quiet: u64,
}

/// Prints the slices, and the medians of both kinds.
///
/// # Errors
/// When the load fails, or the node cannot join.
///
/// # Panics
/// When it does not come to serve.
pub fn run(settings: &Settings) -> Result<(), String> {
    let mut cluster = Cluster::quorate("snapshots beside puts").ok_or("no cluster")?;
    let data = DataSet::of_mib(settings.mib);
    let filled = data.fill(&cluster)?;
    say(&format!("{} MiB written, {:.0} puts a second", settings.mib, filled.ops_per_s));
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut seed = 0;
    let mut slice = |cluster: &Cluster| {
        seed += 1;
        data.overwrite(cluster, settings.slice, settings.rate, seed)
    };
    // Not counted: what was just written is compacted meanwhile.
    for _ in 0..settings.quiet {
        slice(&cluster)?;
    }
    for round in 0..settings.rounds {
        for _ in 0..settings.quiet {
            without.push(slice(&cluster)?);
        }
        let name = format!("joins{round}");
        let joins = cluster.further_node(&name);
        let peer = cluster.nodes[joins].peer.clone();
        member(&cluster, &["add", &name, "--peer", &peer, "--learner"])?;
        cluster.start(joins);
        // Its own endpoint takes no load: it is the three others that should not notice.
        let process = cluster.nodes[joins].process.take();
        let mut during = Vec::new();
        let began = Instant::now();
        while !is_ready(&cluster.nodes[joins].metrics) {
            let slice = slice(&cluster)?;
            let (since, p99) = (began.elapsed().as_secs_f64(), slice.p99_ms);
            say(&format!(
                "  p99 of the slice that ended {since:.1} s after the start: {p99:.2} ms"
            ));
            during.push(slice);
        }
        cluster.nodes[joins].process = process;
        // It came to its end somewhere in the last one.
        say(&format!("{name}: {} slices with a snapshot under way", during.len()));
        with.append(&mut during);
        cluster.kill(joins);
        member(&cluster, &["remove", &name])?;
    }
    say(
        "| snapshot | slices | puts/s | p50 ms | p99 ms (median of slices) | p99 ms (most) |\n|---|---|---|---|---|---|",
    );
    row("none", &without);
    row("under way", &with);
    let ratio = p99(&with) / p99(&without);
    say(&format!("p99 with a snapshot under way: {ratio:.2} times that without"));
    Ok(())
}

fn row(what: &str, slices: &[Slice]) {
    let count = slices.len();
    let mean = |of: &dyn Fn(&Slice) -> f64| slices.iter().map(of).sum::<f64>() / count as f64;
    let (rate, p50) = (mean(&|slice| slice.ops_per_s), mean(&|slice| slice.p50_ms));
    let most = slices.iter().map(|slice| slice.p99_ms).fold(0.0, f64::max);
    say(&format!("| {what} | {count} | {rate:.0} | {p50:.2} | {:.2} | {most:.2} |", p99(slices)));
}

/// The median of the slices' p99.
fn p99(slices: &[Slice]) -> f64 {
    let mut sorted: Vec<f64> = slices.iter().map(|slice| slice.p99_ms).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn member(cluster: &Cluster, args: &[&str]) -> Result<(), String> {
    let (code, said) = cluster.member(0, args);
    if code == Some(0) { Ok(()) } else { Err(format!("quorate member {args:?}: {said}")) }
}

/// It serves: all of the data is there.
fn is_ready(metrics: &str) -> bool {
    matches!(http::get(metrics, "/readyz"), Ok((200, _)))
}
