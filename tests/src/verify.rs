//! `quorate-load verify` beside a test's faults: it writes and reads all the while, and says in the end what
//! was lost and what went backwards.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::{programs, wait};

/// Writes that must go through between two faults.
pub const WRITES_BETWEEN: i64 = 200;

/// How long those may take, with an election on a slow machine.
const WRITES_BOUND: Duration = Duration::from_secs(60);

/// Waits until the store has taken some more writes.
///
/// # Panics
/// When it does not.
pub fn await_writes(cluster: &Cluster) {
    let from = cluster.revision();
    wait::until("writes go through", WRITES_BOUND, || {
        let now = cluster.revision();
        if now >= from + WRITES_BETWEEN { Ok(()) } else { Err(format!("{now}, from {from}")) }
    });
}

/// A running `quorate-load verify`.
pub struct Verify {
    child: Option<Child>,
}

impl Verify {
    /// Starts it on all endpoints of `cluster`.
    ///
    /// # Panics
    /// When it is not built.
    pub fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let mut command = verify(cluster);
        // The end of its input ends it; the duration is for a test that forgets.
        command.args(["--marks", "--duration", "1h"]).args(args);
        let child = command.stdin(Stdio::piped()).spawn().expect("quorate-load starts");
        Self { child: Some(child) }
    }

    /// Tells it that something happens now.
    ///
    /// # Panics
    /// When it has ended.
    pub fn announce(&mut self, what: &str) {
        let child = self.child.as_mut().expect("it runs");
        let stdin = child.stdin.as_mut().expect("it was piped");
        writeln!(stdin, "{what}").expect("it reads");
    }

    /// Ends the workload; returns the report of it and of the check, and the exit code.
    ///
    /// # Panics
    /// When it says nothing that can be read.
    pub fn end(mut self) -> (Value, Option<i32>) {
        let mut child = self.child.take().expect("it runs");
        drop(child.stdin.take());
        report(child.wait_with_output().expect("it ends"))
    }
}

impl Drop for Verify {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A failed test leaves no load behind; it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Looks for what `record` says was acknowledged, through every endpoint.
///
/// # Panics
/// When it says nothing that can be read.
pub fn check(cluster: &Cluster, record: &Path) -> (Value, Option<i32>) {
    let mut command = verify(cluster);
    command.arg("--check").arg(record).arg("--every-endpoint");
    report(command.output().expect("quorate-load starts"))
}

fn verify(cluster: &Cluster) -> Command {
    let mut command = Command::new(programs::quorate_load());
    command.args(["verify", "--json", "--endpoints", &cluster.endpoints().join(",")]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn report(output: Output) -> (Value, Option<i32>) {
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (report.unwrap_or_else(|_| panic!("quorate-load: {said}")), output.status.code())
}

/// Figures, on the real standard error, which the test runner does not hold back.
pub fn say(what: &str) {
    // Nothing is left to do when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{what}");
}
