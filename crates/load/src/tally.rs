//! What was counted: latencies, and errors by kind.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::call::Failure;

/// The longest latency that is told apart, microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Kinds of errors that are told apart; beyond, they are counted as [`OTHER_ERRORS`].
const ERROR_KINDS_MAX: usize = 64;

/// Bytes of an error's text that are kept.
const ERROR_TEXT_MAX: usize = 160;

/// Where errors go when there are too many kinds.
const OTHER_ERRORS: &str = "other errors";

/// Counts of one worker, and after [`merge`](Tally::merge) of all.
pub(crate) struct Tally {
    /// Latencies of answered operations in microseconds, per operation of the workload.
    pub(crate) latency_us: Vec<Histogram<u64>>,
    /// Errors by code and text.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Open loop: operations whose time came and which were never sent.
    pub(crate) unsent: u64,
}

impl Tally {
    /// Nothing counted yet, for a workload of `operations` kinds.
    pub(crate) fn new(operations: usize) -> Self {
        let empty = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
            .expect("the bounds and the precision are valid constants");
        Self { latency_us: vec![empty; operations], errors: BTreeMap::new(), unsent: 0 }
    }

    /// Counts an answer to operation number `operation`.
    pub(crate) fn answered(&mut self, operation: usize, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
        self.latency_us[operation].saturating_record(us.max(1));
    }

    /// Counts an error.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        let mut kind = failure.to_string();
        if let Some((cut, _)) = kind.char_indices().nth(ERROR_TEXT_MAX) {
            kind.truncate(cut);
        }
        if self.errors.len() >= ERROR_KINDS_MAX && !self.errors.contains_key(&kind) {
            OTHER_ERRORS.clone_into(&mut kind);
        }
        *self.errors.entry(kind).or_default() += 1;
    }

    /// Adds what another worker counted for the same workload.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (all, part) in self.latency_us.iter_mut().zip(&other.latency_us) {
            all.add(part).expect("all histograms have the same bounds");
        }
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.unsent += other.unsent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn errors_are_told_apart_up_to_a_bound() {
        let mut tally = Tally::new(1);
        for number in 0..200 {
            tally.failed(&Failure { code: Code::Internal, text: format!("n {number}") });
        }
        tally.failed(&Failure { code: Code::Internal, text: "n 3".to_owned() });
        assert_eq!(tally.errors["Internal: n 3"], 2);
        assert_eq!(tally.errors[OTHER_ERRORS], 200 - 64);
        let long = Failure { code: Code::Internal, text: "ä".repeat(500) };
        let mut tally = Tally::new(1);
        tally.failed(&long);
        assert_eq!(tally.errors.keys().next().map(|kind| kind.chars().count()), Some(160));
    }

    #[test]
    fn merging_adds() {
        let (mut one, mut two) = (Tally::new(2), Tally::new(2));
        one.answered(0, Duration::from_millis(1));
        two.answered(0, Duration::from_millis(3));
        two.answered(1, Duration::ZERO);
        two.unsent = 5;
        one.merge(&two);
        assert_eq!(one.latency_us[0].len(), 2);
        assert_eq!(one.latency_us[1].len(), 1);
        assert_eq!(one.unsent, 5);
    }
}
