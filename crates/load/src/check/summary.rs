//! What a run says in the end.

use std::io::Write;

use serde_json::json;

use super::history::{Delivery, History, Record};
use super::verdict::{Verdict, Violation};
use super::work::Round;
use crate::Fault;

/// What was recorded, and what was found.
#[derive(Debug, Default)]
pub(super) struct Summary {
    rounds: u64,
    calls: u64,
    unanswered: u64,
    deliveries: u64,
    events: u64,
    resumed: u64,
    promises: u64,
    lease_calls: u64,
    holds: u64,
    lock_service: Option<bool>,
    verdict: Verdict,
}

impl Summary {
    /// Adds one round.
    pub(super) fn add(&mut self, history: &History, verdict: Verdict) {
        self.rounds += 1;
        for record in &history.records {
            match record {
                Record::Call(call) => {
                    self.calls += 1;
                    self.unanswered += u64::from(call.answer.is_none());
                }
                Record::Watch(watch) => match &watch.what {
                    Delivery::Events(events) => {
                        self.deliveries += 1;
                        self.events += events.len() as u64;
                    }
                    Delivery::Progress(_) => self.promises += 1,
                    Delivery::Lost(_) => self.resumed += 1,
                    Delivery::Created { .. } | Delivery::Compacted(_) => {}
                },
                Record::Lease(_) => self.lease_calls += 1,
                Record::Hold(_) => self.holds += 1,
                Record::Round(_) | Record::Watcher(_) | Record::Settled(_) => {}
            }
        }
        self.verdict.add(verdict);
    }

    /// Adds what only the workload knows.
    pub(super) fn served(&mut self, round: &Round) {
        self.lock_service = round.lock_service.or(self.lock_service);
    }

    /// Whether nothing is broken.
    pub(super) fn is_clean(&self) -> bool {
        self.verdict.is_clean()
    }

    /// Prints it to standard output.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(super) fn print(&self, as_json: bool) -> Result<(), Fault> {
        let text = if as_json { self.json() } else { self.text() };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}"))
    }

    fn json(&self) -> String {
        let violation = |found: &Violation| json!({ "kind": found.kind.name(), "text": found.text, "witness": found.witness });
        let violations: Vec<_> = self.verdict.violations.iter().map(violation).collect();
        let counts: serde_json::Map<_, _> =
            self.verdict.counts.iter().map(|(kind, n)| (kind.name().into(), json!(n))).collect();
        let object = json!({
            "rounds": self.rounds,
            "calls": self.calls,
            "unanswered": self.unanswered,
            "responses": self.deliveries,
            "events": self.events,
            "resumed": self.resumed,
            "progress": self.promises,
            "lease_calls": self.lease_calls,
            "expired": self.verdict.expired,
            "late_us_max": self.verdict.late_us,
            "holds": self.holds,
            "lock_service": self.lock_service,
            "broken": counts,
            "violations": violations,
        });
        format!("{object}\n")
    }

    fn text(&self) -> String {
        let mut text = format!(
            "rounds      {}\n\
             calls       {}, {} without an answer\n\
             watches     {} events in {} responses, {} progress headers, resumed {} times\n\
             leases      {} calls, {} ends seen, at most {} ms late\n\
             locks       held {} times{}\n",
            self.rounds,
            self.calls,
            self.unanswered,
            self.events,
            self.deliveries,
            self.promises,
            self.resumed,
            self.lease_calls,
            self.verdict.expired,
            self.verdict.late_us / 1_000,
            self.holds,
            match self.lock_service {
                Some(true) => ", the service Lock among them",
                Some(false) => "; the service Lock is not served",
                None => "",
            },
        );
        if self.is_clean() {
            text.push_str("broken      nothing\n");
        }
        for (kind, count) in &self.verdict.counts {
            text.push_str(&format!("broken      {kind}: {count}\n"));
        }
        for violation in &self.verdict.violations {
            text.push_str(&format!("\n{violation}\n"));
        }
        text
    }
}
