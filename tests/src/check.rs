//! `quorate-load --check` beside a test's faults: clients of all kinds load the cluster, and what they were
//! answered is held against what etcd promises.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::programs;

/// What a run must have seen some of: one that saw nothing proves nothing.
pub const SEEN: [&str; 5] = ["calls", "events", "resumed", "lease_calls", "holds"];

/// A running check.
pub struct Check {
    child: Option<Child>,
    history: PathBuf,
}

impl Check {
    /// Starts it, until [`Self::kept`], on all endpoints of `cluster`, with `args`. What it records lies beside the nodes' data, which
    /// is kept when a test fails: `quorate-load --check --judge` judges it again.
    ///
    /// # Panics
    /// When it is not built.
    pub fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let history = cluster.dir().join("history.jsonl");
        let mut command = Command::new(programs::quorate_load());
        command.args(["--check", "--json", "--endpoints", &cluster.endpoints().join(",")]);
        command.arg("--history").arg(&history);
        // The end of its input ends it; the time is for a test that forgets.
        command.args(["--until-input-ends", "--seconds", "3600"]);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: Some(command.spawn().expect("quorate-load starts")), history }
    }

    /// Ends it; returns its report.
    ///
    /// # Panics
    /// When a promise was broken, or the check saw too little.
    pub fn kept(mut self) -> Value {
        let child = self.child.take().expect("it runs");
        // This closes its input.
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        let report = serde_json::from_slice(&output.stdout);
        let report: Value = report.unwrap_or_else(|_| panic!("quorate-load: {said}"));
        let history = self.history.display();
        let code = output.status.code();
        assert_eq!(code, Some(0), "{}: {history}\n{report:#}\n{said}", report["broken"]);
        for what in SEEN {
            assert!(count(&report, what) > 0, "no {what}: {history}\n{report:#}");
        }
        report
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A failed test leaves no load behind; it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A figure of a report.
pub fn count(report: &Value, what: &str) -> u64 {
    report[what].as_u64().unwrap_or_default()
}

/// A report in a line.
pub fn shown(report: &Value) -> String {
    format!(
        "{} calls, {} without an answer, {} events, watches resumed {} times, {} leases ended, locks held {} times",
        report["calls"],
        report["unanswered"],
        report["events"],
        report["resumed"],
        report["expired"],
        report["holds"]
    )
}
