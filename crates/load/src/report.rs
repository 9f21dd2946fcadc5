//! What a run prints: for people, or as one JSON object.

use std::collections::BTreeMap;
use std::io::{self, StdoutLock, Write};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Fault;
use crate::args::Load;
use crate::drive::Measured;
use crate::process::Sample;
use crate::tally::Tally;
use crate::workload::{Shape, Workload};

/// Width of the longest bar of the text histogram, characters.
const BAR_WIDTH: u64 = 50;

/// Microseconds in a millisecond, for display.
const US_PER_MS: f64 = 1e3;

/// Everything that a run came to.
#[derive(Serialize)]
pub(crate) struct Report {
    /// The workload's name.
    workload: &'static str,
    clients: usize,
    /// Operations per second on the schedule of an open loop; none in a closed one.
    scheduled_rate: Option<f64>,
    elapsed_s: f64,
    answered: u64,
    ops_per_s: f64,
    failed: u64,
    /// Open loop: operations whose time came and which were never sent.
    unsent: u64,
    errors: BTreeMap<String, u64>,
    latency_ms: Latency,
    /// The same for each kind of operation, when there are several.
    operations: BTreeMap<&'static str, Latency>,
    /// CPU of all server processes over answered operations, microseconds, when pids were given.
    server_cpu_us_per_op: Option<f64>,
    client_cpu_us_per_op: f64,
    servers: Vec<Sample>,
    #[serde(skip)]
    histogram_us: Histogram<u64>,
}

/// Latencies of answered operations, milliseconds.
#[derive(Serialize)]
pub(crate) struct Latency {
    count: u64,
    mean: f64,
    /// Half of the operations took no longer.
    pub(crate) p50: f64,
    p90: f64,
    /// One in a hundred took longer.
    pub(crate) p99: f64,
    p999: f64,
    max: f64,
}

impl Latency {
    /// Sums a histogram of microseconds up.
    pub(crate) fn of(us: &Histogram<u64>) -> Self {
        let at = |quantile| us.value_at_quantile(quantile) as f64 / US_PER_MS;
        Self {
            count: us.len(),
            mean: us.mean() / US_PER_MS,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us.max() as f64 / US_PER_MS,
        }
    }

    /// One line of text that begins with `name`.
    pub(crate) fn text(&self, out: &mut impl Write, name: &str) -> io::Result<()> {
        let Self { count: _, mean, p50, p90, p99, p999, max } = self;
        writeln!(
            out,
            "  {name} ms: mean {mean:.3}  p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p999:.3}  \
             max {max:.3}"
        )
    }
}

impl Report {
    /// Sums a run up.
    pub(crate) fn new(shape: Shape, load: &Load, workload: &Workload, measured: &Measured) -> Self {
        let Measured { tally, elapsed, servers, client_cpu_us } = measured;
        let histogram_us = all(tally);
        let answered = histogram_us.len();
        let per_op = |us: u64| us as f64 / answered.max(1) as f64;
        let operations = match workload.operations.len() {
            1 => BTreeMap::new(),
            _ => workload
                .operations
                .iter()
                .zip(&tally.latency_us)
                .map(|(operation, us)| (operation.name, Latency::of(us)))
                .collect(),
        };
        let server_us = servers.processes.iter().map(|sample| sample.cpu_us).sum();
        let elapsed_s = elapsed.as_secs_f64();
        Self {
            workload: shape.name(),
            clients: load.clients,
            scheduled_rate: load.rate,
            elapsed_s,
            answered,
            ops_per_s: if elapsed_s > 0.0 { answered as f64 / elapsed_s } else { 0.0 },
            failed: tally.errors.values().sum(),
            unsent: tally.unsent,
            errors: tally.errors.clone(),
            latency_ms: Latency::of(&histogram_us),
            operations,
            server_cpu_us_per_op: (!servers.processes.is_empty()).then(|| per_op(server_us)),
            client_cpu_us_per_op: per_op(*client_cpu_us),
            servers: servers.processes.clone(),
            histogram_us,
        }
    }

    /// Prints to standard output.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(crate) fn print(&self, json: bool) -> Result<(), Fault> {
        print(self, json, |out| self.text(out))
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let rate = self.scheduled_rate.map(|rate| format!(", {rate} ops/s scheduled"));
        let rate = rate.unwrap_or_default();
        writeln!(out, "{}, {} clients{rate}", self.workload, self.clients)?;
        let (answered, elapsed_s, ops_per_s) = (self.answered, self.elapsed_s, self.ops_per_s);
        writeln!(out, "  {ops_per_s:.0} ops/s ({answered} answered in {elapsed_s:.2} s)")?;
        self.latency_ms.text(out, "latency")?;
        for (name, of_operation) in &self.operations {
            of_operation.text(out, name)?;
        }
        writeln!(out, "  client CPU {:.1} us/op", self.client_cpu_us_per_op)?;
        if let Some(us) = self.server_cpu_us_per_op {
            let mib: u64 = self.servers.iter().map(|sample| sample.resident_bytes >> 20).sum();
            writeln!(out, "  server CPU {us:.1} us/op, resident {mib} MiB")?;
        }
        for (kind, count) in &self.errors {
            writeln!(out, "  {count} errors: {kind}")?;
        }
        if self.unsent > 0 {
            let unsent = self.unsent;
            writeln!(
                out,
                "  {unsent} operations never sent: the rate is too high for these clients"
            )?;
        }
        bars(out, &self.histogram_us)
    }
}

/// All operations' latencies in one histogram.
fn all(tally: &Tally) -> Histogram<u64> {
    let (first, rest) = tally.latency_us.split_first().expect("a workload has an operation");
    let mut all = first.clone();
    for part in rest {
        all.add(part).expect("all histograms have the same bounds");
    }
    all
}

/// Prints a report, as one JSON object or as text.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn print<R: Serialize>(
    report: &R,
    json: bool,
    text: impl FnOnce(&mut StdoutLock<'static>) -> io::Result<()>,
) -> Result<(), Fault> {
    let mut out = io::stdout().lock();
    let printed = match json {
        true => serde_json::to_writer(&mut out, report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
        false => text(&mut out),
    };
    printed.map_err(|error| format!("standard output: {error}"))
}

/// A bar for every doubling of the latency that occurs.
fn bars(out: &mut impl Write, us: &Histogram<u64>) -> io::Result<()> {
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for step in us.iter_recorded() {
        *counts.entry(step.value_iterated_to().max(1).ilog2()).or_default() +=
            step.count_since_last_iteration();
    }
    let Some(most) = counts.values().copied().max() else { return Ok(()) };
    let (Some((&from, _)), Some((&to, _))) = (counts.first_key_value(), counts.last_key_value())
    else {
        return Ok(());
    };
    for power in from..=to {
        let count = counts.get(&power).copied().unwrap_or(0);
        let below_ms = (1_u64 << (power + 1)) as f64 / US_PER_MS;
        let bar = "#".repeat((count * BAR_WIDTH).div_ceil(most) as usize);
        writeln!(out, "  < {below_ms:>12.3} ms {count:>10} {bar}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn bars_double_and_skip_nothing_between() {
        let mut tally = Tally::new(2);
        for _ in 0..100 {
            tally.answered(0, Duration::from_micros(900));
        }
        tally.answered(1, Duration::from_micros(3_000));
        let mut out = Vec::new();
        bars(&mut out, &all(&tally)).expect("a vector takes it");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("  <        1.024 ms        100 ####"), "{text}");
        assert!(lines[1].ends_with("         0 "), "{text}");
        assert!(lines[2].ends_with("         1 #"), "{text}");
    }

    #[test]
    fn nothing_answered_is_no_bars() {
        let mut out = Vec::new();
        bars(&mut out, &all(&Tally::new(1))).expect("a vector takes it");
        assert!(out.is_empty());
    }
}
