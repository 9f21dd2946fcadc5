//! What a verification prints.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::check::Found;
use super::ledger::{Contradictions, Ledger, Mark, READ, WRITE};
use crate::Fault;
use crate::report::{self, Latency};

/// The workload's part and the check's part; each is left out when it was not run.
#[derive(Default, Serialize)]
pub(crate) struct Summary {
    workload: Option<WorkloadPart>,
    check: Option<CheckPart>,
}

#[derive(Serialize)]
struct WorkloadPart {
    elapsed_s: f64,
    /// Writes that were acknowledged.
    acknowledged: u64,
    /// Writes without an answer.
    unknown: u64,
    /// Reads that were answered.
    reads: u64,
    write_ms: Latency,
    read_ms: Latency,
    /// The longest time without an acknowledged write, milliseconds.
    longest_pause_ms: f64,
    marks: Vec<MarkPart>,
    /// Over the marks' pauses, milliseconds.
    pause_median_ms: Option<f64>,
    pause_max_ms: Option<f64>,
    /// Answers that contradict earlier ones.
    contradictions: u64,
    contradiction_texts: Vec<String>,
    errors: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct MarkPart {
    name: String,
    unix_ms: u64,
    pause_ms: f64,
    resumed: bool,
}

#[derive(Serialize)]
struct CheckPart {
    looked_for: u64,
    lost: u64,
    lost_texts: Vec<String>,
}

impl Summary {
    /// Takes over what the workload saw.
    pub(crate) fn of_workload(&mut self, ledger: &Ledger, elapsed: Duration) {
        let (acknowledged, unknown) = ledger.writes();
        let mut pauses: Vec<f64> = ledger.marks.iter().map(|mark| ms(mark.pause)).collect();
        pauses.sort_by(f64::total_cmp);
        let Contradictions { texts, count } = &ledger.contradictions;
        self.workload = Some(WorkloadPart {
            elapsed_s: elapsed.as_secs_f64(),
            acknowledged,
            unknown,
            reads: ledger.reads,
            write_ms: Latency::of(&ledger.tally.latency_us[WRITE]),
            read_ms: Latency::of(&ledger.tally.latency_us[READ]),
            longest_pause_ms: ms(ledger.longest_pause),
            marks: ledger.marks.iter().map(MarkPart::from).collect(),
            pause_median_ms: pauses.get(pauses.len() / 2).copied(),
            pause_max_ms: pauses.last().copied(),
            contradictions: *count,
            contradiction_texts: texts.clone(),
            errors: ledger.errors().clone(),
        });
    }

    /// Takes over what the check found.
    pub(crate) fn of_check(&mut self, found: Found) {
        let Found { looked_for, lost: Contradictions { texts, count } } = found;
        self.check = Some(CheckPart { looked_for, lost: count, lost_texts: texts });
    }

    /// Whether nothing is lost and nothing went backwards.
    pub(crate) fn is_clean(&self) -> bool {
        self.workload.as_ref().is_none_or(|part| part.contradictions == 0)
            && self.check.as_ref().is_none_or(|part| part.lost == 0)
    }

    /// Prints to standard output.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(crate) fn print(&self, json: bool) -> Result<(), Fault> {
        report::print(self, json, |out| self.text(out))
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some(part) = &self.workload {
            writeln!(
                out,
                "{} writes acknowledged, {} without an answer, {} reads, in {:.1} s",
                part.acknowledged, part.unknown, part.reads, part.elapsed_s
            )?;
            let (write, read) = (&part.write_ms, &part.read_ms);
            writeln!(
                out,
                "writes p50 {:.1} ms, p99 {:.1} ms; reads p50 {:.1} ms, p99 {:.1} ms",
                write.p50, write.p99, read.p50, read.p99
            )?;
            writeln!(out, "longest pause between writes {:.0} ms", part.longest_pause_ms)?;
            for mark in &part.marks {
                let tail = if mark.resumed { "" } else { ", not resumed" };
                writeln!(out, "  {}: {:.0} ms{tail}", mark.name, mark.pause_ms)?;
            }
            if let (Some(median), Some(max)) = (part.pause_median_ms, part.pause_max_ms) {
                let faults = part.marks.len();
                writeln!(out, "  {faults} faults: pause median {median:.0} ms, max {max:.0} ms")?;
            }
            for (kind, count) in &part.errors {
                writeln!(out, "  {count} errors: {kind}")?;
            }
            writeln!(out, "{} contradictions", part.contradictions)?;
            for text in &part.contradiction_texts {
                writeln!(out, "  {text}")?;
            }
        }
        if let Some(part) = &self.check {
            writeln!(
                out,
                "{} acknowledged writes looked for, {} lost",
                part.looked_for, part.lost
            )?;
            for text in &part.lost_texts {
                writeln!(out, "  {text}")?;
            }
        }
        Ok(())
    }
}

impl From<&Mark> for MarkPart {
    fn from(mark: &Mark) -> Self {
        Self {
            name: mark.name.clone(),
            unix_ms: mark.unix_ms,
            pause_ms: ms(mark.pause),
            resumed: mark.resumed,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
