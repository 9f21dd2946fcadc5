//! How clusters do over minutes and gigabytes: measurements, which assert nothing about time.
//!
//! - [`restart`]: from `kill -9` to serving, with much data.
//! - [`steady`]: disk, memory and p99 while a data set is overwritten.
//! - [`snapshot`]: the p99 of puts while a snapshot is under way.
//!
//! All load the cluster with `quorate-load`, in slices of a few seconds, and look at it in between: what a
//! slice says about itself and what is seen beside it belong together.

mod graph;
pub mod restart;
pub mod snapshot;
pub mod steady;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use quorate_api::etcdserverpb::CompactionRequest;
use serde_json::Value;

use crate::client::{self, Client};
use crate::cluster::{Cluster, Node};
use crate::programs::quorate_load;

/// Bytes of every value.
const VALUE_BYTES: u64 = 1024;

/// Clients of every load.
const CLIENTS: &str = "64";

/// A data set of numbered keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataSet {
    keys: u64,
}

/// What a slice of load came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slice {
    pub(crate) ops_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) failed: u64,
}

impl DataSet {
    /// One of `mib` MiB of values.
    pub(crate) const fn of_mib(mib: u64) -> Self {
        Self { keys: (mib << 20) / VALUE_BYTES }
    }

    /// Writes every key once.
    pub(crate) fn fill(self, cluster: &Cluster) -> Result<Slice, String> {
        let total = self.keys.to_string();
        self.put(cluster, &["--distribution", "sequential", "--total", &total, "--warmup", "0"])
    }

    /// Overwrites keys at random for `seconds`; `rate` in operations a second, as fast as it goes if 0.
    pub(crate) fn overwrite(
        self,
        cluster: &Cluster,
        seconds: u64,
        rate: u64,
        seed: u64,
    ) -> Result<Slice, String> {
        let (duration, rate_text) = (format!("{seconds}s"), rate.to_string());
        let seed = seed.to_string();
        let mut args = vec!["--duration", &duration, "--warmup", "0", "--seed", &seed];
        if rate > 0 {
            args.extend(["--rate", &rate_text]);
        }
        self.put(cluster, &args)
    }

    fn put(self, cluster: &Cluster, args: &[&str]) -> Result<Slice, String> {
        let running = cluster.nodes.iter().filter(|node| node.process.is_some());
        let endpoints: Vec<_> = running.map(|node| node.client.as_str()).collect();
        let mut command = Command::new(quorate_load());
        command.args(["put", "--json", "--clients", CLIENTS, "--endpoints", &endpoints.join(",")]);
        command.args(["--keys", &self.keys.to_string()]);
        command.args(["--value-size", &VALUE_BYTES.to_string()]).args(args);
        let output = command.output().map_err(|error| format!("quorate-load: {error}"))?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        Ok(Slice {
            ops_per_s: number(&report["ops_per_s"]),
            p50_ms: number(&report["latency_ms"]["p50"]),
            p99_ms: number(&report["latency_ms"]["p99"]),
            failed: report["failed"].as_u64().unwrap_or_default(),
        })
    }
}

/// Gives up the history before the present revision, as somebody does who needs none.
pub(crate) fn compact(cluster: &Cluster) -> Result<(), String> {
    let revision = cluster.revision();
    let endpoint =
        cluster.nodes.iter().find(|node| node.process.is_some()).map(|node| &node.client);
    let endpoint = endpoint.ok_or("nobody runs")?;
    client::runtime().block_on(async {
        let request = CompactionRequest { revision, physical: false };
        let compacted = Client::new(endpoint).kv.compact(request).await;
        // One that was compacted by another call in between is as good.
        compacted.map(drop).or_else(|status| match status.code() {
            tonic::Code::OutOfRange => Ok(()),
            _ => Err(status.to_string()),
        })
    })
}

/// Bytes that `path` takes on its disk, with everything below; files that vanish meanwhile count nothing.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    let Ok(about) = fs::symlink_metadata(path) else { return 0 };
    let below = if about.is_dir() { fs::read_dir(path).ok() } else { None };
    let below = below.into_iter().flatten().flatten().map(|entry| disk_bytes(&entry.path()));
    about.blocks() * 512 + below.sum::<u64>()
}

/// Bytes of memory that a node's process holds.
pub(crate) fn rss_bytes(node: &Node) -> u64 {
    let Some(process) = &node.process else { return 0 };
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_what_its_files_take() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let empty = disk_bytes(directory.path());
        fs::create_dir(directory.path().join("below")).expect("made");
        fs::write(directory.path().join("below").join("file"), [1; 100_000]).expect("written");
        let grown = disk_bytes(directory.path()) - empty;
        assert!((100_000..200_000).contains(&grown), "{grown}");
        assert_eq!(disk_bytes(&directory.path().join("nowhere")), 0);
    }
}
