//! Disk, memory and p99 while a data set is overwritten, steadily and for long.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::graph::{Panel, svg};
use super::{DataSet, Slice, compact, disk_bytes, mib, rss_bytes};
use crate::cluster::Cluster;
use crate::verify::say;

/// How much, how long, how fast.
#[derive(Debug, Args)]
pub struct Settings {
    /// MiB of values of 1 KiB, each under a key of its own.
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Minutes of overwrites.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Overwrites a second, on a schedule; 0: as fast as 64 clients can.
    #[arg(long, default_value_t = 2000)]
    rate: u64,
    /// Seconds from one sample to the next.
    #[arg(long, default_value_t = 5)]
    sample: u64,
    /// Seconds from one compaction of the history to the next.
    #[arg(long, default_value_t = 30)]
    compact: u64,
    /// Where `steady.csv` and `steady.svg` go.
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    out: PathBuf,
}

/// The three nodes at one moment, and the slice of load before it.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at_s: f64,
    slice: Slice,
    log_bytes: u64,
    state_bytes: u64,
    rss_bytes: u64,
}

/// Prints a table of the run in ten parts; writes every sample as CSV and a graph as SVG.
///
/// # Errors
/// When the load fails, or a file cannot be written.
pub fn run(settings: &Settings) -> Result<(), String> {
    let cluster = Cluster::quorate("steady overwrites").ok_or("no cluster")?;
    let data = DataSet::of_mib(settings.mib);
    let filled = data.fill(&cluster)?;
    say(&format!("{} MiB written, {:.0} puts a second", settings.mib, filled.ops_per_s));
    compact(&cluster)?;
    let (began, mut compacted) = (Instant::now(), Instant::now());
    let end = Duration::from_secs_f64(settings.minutes * 60.0);
    let mut samples = Vec::new();
    while began.elapsed() < end {
        let seed = samples.len() as u64 + 1;
        let slice = data.overwrite(&cluster, settings.sample, settings.rate, seed)?;
        samples.push(sample(&cluster, began.elapsed(), slice));
        if compacted.elapsed() >= Duration::from_secs(settings.compact) {
            compact(&cluster)?;
            compacted = Instant::now();
        }
    }
    let write = |name: &str, text: String| {
        let path = settings.out.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    write("steady.csv", csv(&samples))?;
    write("steady.svg", graph(&samples))?;
    say(&table(&samples));
    Ok(())
}

fn sample(cluster: &Cluster, at: Duration, slice: Slice) -> Sample {
    let sum = |of: &dyn Fn(&crate::cluster::Node) -> u64| cluster.nodes.iter().map(of).sum();
    Sample {
        at_s: at.as_secs_f64(),
        slice,
        log_bytes: sum(&|node| disk_bytes(&node.data.join("log"))),
        state_bytes: sum(&|node| disk_bytes(&node.data.join("state"))),
        rss_bytes: sum(&rss_bytes),
    }
}

const COLUMNS: &str = "seconds,puts/s,p50 ms,p99 ms,failed,log MiB,state MiB,RSS MiB";

fn csv(samples: &[Sample]) -> String {
    let mut out = format!("{COLUMNS}\n");
    for Sample { at_s, slice, log_bytes, state_bytes, rss_bytes } in samples {
        let Slice { ops_per_s, p50_ms, p99_ms, failed } = slice;
        let (log, state, rss) = (mib(*log_bytes), mib(*state_bytes), mib(*rss_bytes));
        writeln!(
            out,
            "{at_s:.0},{ops_per_s:.0},{p50_ms:.2},{p99_ms:.2},{failed},{log:.0},{state:.0},{rss:.0}"
        )
        .expect("a string takes all");
    }
    out
}

fn graph(samples: &[Sample]) -> String {
    let panel = |title, value: &dyn Fn(&Sample) -> f64| Panel {
        title,
        points: samples.iter().map(|sample| (sample.at_s, value(sample))).collect(),
    };
    svg(&[
        panel("disk of three nodes, MiB", &|sample| mib(sample.log_bytes + sample.state_bytes)),
        panel("memory (RSS) of three nodes, MiB", &|sample| mib(sample.rss_bytes)),
        panel("p99 of puts, ms", &|sample| sample.slice.p99_ms),
        panel("puts a second", &|sample| sample.slice.ops_per_s),
    ])
}

/// Ten parts: of each the median p99, and disk and memory at their highest.
fn table(samples: &[Sample]) -> String {
    let mut out = "| until s | puts/s | p99 ms (median) | p99 ms (most) | log MiB | state MiB | RSS MiB |\n|---|---|---|---|---|---|---|".to_owned();
    for part in samples.chunks(samples.len().div_ceil(10).max(1)) {
        let most = |of: &dyn Fn(&Sample) -> f64| part.iter().map(of).fold(0.0, f64::max);
        let mut p99: Vec<f64> = part.iter().map(|sample| sample.slice.p99_ms).collect();
        p99.sort_by(f64::total_cmp);
        let rate: f64 = part.iter().map(|sample| sample.slice.ops_per_s).sum();
        write!(
            out,
            "\n| {:.0} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} |",
            part.last().map_or(0.0, |sample| sample.at_s),
            rate / part.len() as f64,
            p99[p99.len() / 2],
            p99.last().copied().unwrap_or_default(),
            most(&|sample| mib(sample.log_bytes)),
            most(&|sample| mib(sample.state_bytes)),
            most(&|sample| mib(sample.rss_bytes)),
        )
        .expect("a string takes all");
    }
    out
}
