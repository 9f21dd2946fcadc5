//! Faults under load, round after round.
//!
//! A [`Session`] is a fresh cluster with `quorate-load verify` at work: it remembers what was acknowledged,
//! holds every answer against what was known before, and looks for everything in the end. In between come
//! rounds of one kind of fault; each ends with all nodes serving and writes going through again:
//!
//! - [`kill`]: `kill -9` of the leader, of a follower, of all at once.
//! - [`power`]: the power of one disk goes, or that of all, with what was written and not synced.
//! - [`damage`]: a bit flips in a file of a node that is down, or its newest log loses its end.
//!
//! Beside those stands [`check`]: the contract checker at work instead, while nodes are killed, paused, or cut off.
//!
//! Whatever is lost or served wrongly is a panic with the report, and the data directories are kept. What
//! went well is added to a [`Tally`].

pub mod check;
pub mod damage;
pub mod kill;
pub mod power;
mod tally;

use std::path::PathBuf;
use std::time::Instant;

use crate::cluster::Cluster;
use crate::verify::{Verify, await_writes};

pub use tally::Tally;

/// A cluster under load, and what has been done to it.
pub struct Session {
    verify: Verify,
    /// What was acknowledged, when the session has ended.
    pub record: PathBuf,
    /// The cluster.
    pub cluster: Cluster,
    /// Faults that were survived.
    pub tally: Tally,
}

impl Session {
    /// Starts the load on `cluster`, which serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn begin(cluster: Cluster, args: &[&str]) -> Self {
        let record = cluster.dir().join("acknowledged.json");
        let path = record.to_str().expect("temporary paths are text");
        let args: Vec<_> = args.iter().copied().chain(["--record", path]).collect();
        let verify = Verify::start(&cluster, &args);
        await_writes(&cluster);
        Self { verify, record, cluster, tally: Tally::default() }
    }

    /// Says that a fault is about to happen.
    ///
    /// # Panics
    /// When the load has ended.
    pub fn announce(&mut self, what: &str) {
        self.verify.announce(what);
    }

    /// Starts `nodes`, which do not run, and waits until each serves what was written meanwhile too; notes
    /// how long that took.
    ///
    /// # Panics
    /// When one does not come to serve.
    pub fn restart(&mut self, nodes: &[usize]) {
        let began = Instant::now();
        nodes.iter().for_each(|&number| self.cluster.start(number));
        for &number in nodes {
            self.cluster.wait_ready(number);
            self.cluster.await_read(number);
            self.tally.serving_ms.push(began.elapsed().as_millis() as u64);
        }
    }

    /// Ends the load and looks for everything that was acknowledged, through every node.
    ///
    /// # Panics
    /// When something is lost, or went backwards.
    pub fn end(mut self) -> Tally {
        await_writes(&self.cluster);
        let (report, code) = self.verify.end();
        assert_eq!(code, Some(0), "{report:#}");
        let count = |part: &str, field: &str| report[part][field].as_u64().unwrap_or_default();
        self.tally.acknowledged += count("workload", "acknowledged");
        self.tally.reads += count("workload", "reads");
        self.tally.looked_for += count("check", "looked_for");
        self.tally
    }
}
