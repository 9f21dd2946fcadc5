//! From `kill -9` to serving, with much data.

use std::time::Instant;

use clap::Args;

use super::{DataSet, disk_bytes, mib};
use crate::cluster::Cluster;
use crate::verify::say;

/// How much, and how often.
#[derive(Debug, Args)]
pub struct Settings {
    /// MiB of values of 1 KiB, each under a key of its own.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Restarts of one node, and of all.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of overwrites before each kill, so that logs and memtables are full.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// Prints a table of restarts.
///
/// # Errors
/// When the load fails.
///
/// # Panics
/// When a node does not serve again.
pub fn run(settings: &Settings) -> Result<(), String> {
    let mut cluster = Cluster::quorate("restarts with much data").ok_or("no cluster")?;
    let data = DataSet::of_mib(settings.mib);
    let filled = data.fill(&cluster)?;
    say(&format!("{} MiB written, {:.0} puts a second", settings.mib, filled.ops_per_s));
    say(
        "| killed | data directory MiB | serving after ms | first write after ms |\n|---|---|---|---|",
    );
    for round in 0..settings.rounds {
        data.overwrite(&cluster, settings.seconds, 0, round as u64 + 1)?;
        let follower = (cluster.leader() + 1) % 3;
        restart(&mut cluster, "a follower", &[follower]);
        data.overwrite(&cluster, settings.seconds, 0, round as u64 + 101)?;
        restart(&mut cluster, "all", &[0, 1, 2]);
    }
    Ok(())
}

fn restart(cluster: &mut Cluster, who: &str, nodes: &[usize]) {
    nodes.iter().for_each(|&number| cluster.kill(number));
    let bytes = disk_bytes(&cluster.nodes[nodes[0]].data);
    let began = Instant::now();
    nodes.iter().for_each(|&number| cluster.start(number));
    nodes.iter().for_each(|&number| cluster.wait_ready(number));
    let ready = began.elapsed();
    // Through the node itself; a linearizable read waits for a leader, as a write does.
    cluster.write_through(nodes[0]);
    let written = began.elapsed();
    let (ready, written) = (ready.as_millis(), written.as_millis());
    say(&format!("| {who} | {:.0} | {ready} | {written} |", mib(bytes)));
}
