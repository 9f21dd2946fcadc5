//! What a run with leases prints: for people, or as one JSON object.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::{Counted, GRANT, KEEP_ALIVE};
use crate::Fault;
use crate::args::Leases;
use crate::process::Sample;
use crate::report::{self, Latency};

/// What a part of the run used.
pub(super) struct Used {
    pub(super) elapsed: Duration,
    pub(super) client_cpu_us: u64,
    pub(super) servers: Vec<Sample>,
}

/// Everything that a run came to.
#[derive(Serialize)]
pub(super) struct Report {
    /// What tells this report from those of other workloads.
    workload: &'static str,
    leases: u64,
    ttl_s: i64,
    streams: usize,
    pub(super) granted: u64,
    pub(super) grants: Part,
    /// While all leases are kept alive.
    pub(super) keep_alives: Part,
    /// Leases of which a keep-alive said that they are gone.
    pub(super) lost: u64,
    /// Those of them that were promised to live.
    pub(super) lost_early: u64,
    /// Those of them that are there at the end: what the keep-alive said was not true.
    pub(super) lost_there: u64,
    /// Leases that nobody said are gone, and that are not there at the end.
    pub(super) missing: u64,
    /// Keep-alives without an answer at the end.
    pub(super) unanswered: u64,
    pub(super) errors: BTreeMap<String, u64>,
    /// Memory of all server processes at the end, bytes; 0 without pids.
    resident_bytes: u64,
}

/// One part of the run.
#[derive(Serialize)]
pub(super) struct Part {
    elapsed_s: f64,
    pub(super) answered: u64,
    per_s: f64,
    latency_ms: Latency,
    /// CPU of all server processes for each answer, microseconds, when pids were given.
    server_cpu_us_per_answer: Option<f64>,
    /// The same in hundredths of one core.
    server_cpu_percent: Option<f64>,
    client_cpu_us_per_answer: f64,
}

impl Part {
    fn new(us: &hdrhistogram::Histogram<u64>, used: &Used) -> Self {
        let answered = us.len();
        let elapsed_us = used.elapsed.as_secs_f64() * 1e6;
        let per_answer = |us: u64| us as f64 / answered.max(1) as f64;
        let server_us = (!used.servers.is_empty())
            .then(|| used.servers.iter().map(|sample| sample.cpu_us).sum::<u64>());
        Self {
            elapsed_s: elapsed_us / 1e6,
            answered,
            per_s: answered as f64 / elapsed_us * 1e6,
            latency_ms: Latency::of(us),
            server_cpu_us_per_answer: server_us.map(per_answer),
            server_cpu_percent: server_us.map(|us| us as f64 / elapsed_us * 100.0),
            client_cpu_us_per_answer: per_answer(used.client_cpu_us),
        }
    }

    fn text(&self, out: &mut impl Write, name: &str) -> io::Result<()> {
        let Self { elapsed_s, answered, per_s, latency_ms, .. } = self;
        writeln!(out, "  {name}: {per_s:.0} per second ({answered} in {elapsed_s:.2} s)")?;
        latency_ms.text(out, &format!("{name}, latency"))?;
        write!(out, "  {name}, CPU: client {:.1} us each", self.client_cpu_us_per_answer)?;
        if let (Some(us), Some(percent)) = (self.server_cpu_us_per_answer, self.server_cpu_percent)
        {
            write!(out, ", servers {us:.1} us each, {percent:.1} % of a core")?;
        }
        writeln!(out)
    }
}

impl Report {
    /// Sums a run up.
    pub(super) fn new(
        args: &Leases,
        counted: &Counted,
        (missing, lost_there): (u64, u64),
        granting: Used,
        keeping: Used,
    ) -> Self {
        let tally = &counted.tally;
        Self {
            workload: "leases",
            leases: args.leases,
            ttl_s: args.ttl,
            streams: args.streams,
            granted: counted.granted,
            grants: Part::new(&tally.latency_us[GRANT], &granting),
            keep_alives: Part::new(&tally.latency_us[KEEP_ALIVE], &keeping),
            lost: counted.lost.len() as u64,
            lost_early: counted.lost_early,
            lost_there,
            missing,
            unanswered: counted.unanswered,
            errors: tally.errors.clone(),
            resident_bytes: keeping.servers.iter().map(|sample| sample.resident_bytes).sum(),
        }
    }

    /// Whether every lease was granted, and is there.
    pub(super) fn is_clean(&self) -> bool {
        self.granted == self.leases && self.lost == 0 && self.missing == 0
    }

    /// Prints to standard output.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(super) fn print(&self, json: bool) -> Result<(), Fault> {
        report::print(self, json, |out| self.text(out))
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { leases, ttl_s, streams, granted, .. } = self;
        writeln!(out, "leases, {granted} of {leases} granted for {ttl_s} s, on {streams} streams")?;
        self.grants.text(out, "grants")?;
        self.keep_alives.text(out, "keep-alives")?;
        if self.resident_bytes > 0 {
            writeln!(out, "  servers, resident: {} MiB", self.resident_bytes >> 20)?;
        }
        let Self { lost, lost_early, lost_there, missing, unanswered, .. } = self;
        writeln!(
            out,
            "  lost: {lost}, {lost_early} of them early, {lost_there} there at the end; missing at the end: {missing}; keep-alives \
             unanswered: {unanswered}"
        )?;
        for (kind, count) in &self.errors {
            writeln!(out, "  {count} errors: {kind}")?;
        }
        Ok(())
    }
}
