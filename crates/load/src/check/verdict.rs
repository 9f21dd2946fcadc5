//! What the judges find.

use std::collections::BTreeMap;
use std::fmt;

use super::history::{History, Record, line};

/// A broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A read shows a state that was over when it was sent.
    StaleRead,
    /// An acknowledged write is not there, and never comes back.
    LostWrite,
    /// A value that nobody wrote, or a pair that contradicts its other appearances.
    PhantomValue,
    /// An answer that no order of the calls explains.
    WrongAnswer,
    /// A revision is not above all that were known before, or is given to two writes.
    RevisionBackwards,
    /// An event is delivered twice to one watcher.
    DuplicateEvent,
    /// A watcher was not told of a change that lies before what it was told.
    Gap,
    /// The events of one revision come in two responses, or some of them not at all.
    SplitRevision,
    /// An event comes after one of a higher revision, or after a promise that it would not come.
    OutOfOrder,
    /// An event that was no write.
    PhantomEvent,
    /// The pair before an event is not what was there.
    WrongPrevious,
    /// A watcher did not come to the end in all the time that it was given.
    StalledWatch,
    /// A lease was over before its time.
    EarlyExpiry,
    /// Keys of one lease did not vanish in one revision.
    PartialVanishing,
    /// Two held one lock.
    TwoHolders,
    /// A later holder has no higher fencing token.
    TokenBackwards,
}

impl Kind {
    /// What it is called.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::StaleRead => "stale read",
            Self::LostWrite => "lost write",
            Self::PhantomValue => "phantom value",
            Self::WrongAnswer => "wrong answer",
            Self::RevisionBackwards => "revision backwards",
            Self::DuplicateEvent => "duplicate event",
            Self::Gap => "gap",
            Self::SplitRevision => "split revision",
            Self::OutOfOrder => "out of order",
            Self::PhantomEvent => "phantom event",
            Self::WrongPrevious => "wrong previous pair",
            Self::StalledWatch => "stalled watch",
            Self::EarlyExpiry => "early expiry",
            Self::PartialVanishing => "partial vanishing",
            Self::TwoHolders => "two holders",
            Self::TokenBackwards => "token backwards",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One broken promise and what shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which promise.
    pub(crate) kind: Kind,
    /// What happened, in words.
    pub(crate) text: String,
    /// The shortest part of the history that shows it, in the order of recording.
    pub(crate) witness: Vec<Record>,
}

impl Violation {
    /// A violation that the records of `history` at `positions` show.
    pub(crate) fn new(
        kind: Kind,
        text: String,
        history: &History,
        positions: impl IntoIterator<Item = usize>,
    ) -> Self {
        let mut positions: Vec<usize> = positions.into_iter().collect();
        positions.sort_unstable();
        positions.dedup();
        let witness = positions.into_iter().map(|at| history.records[at].clone()).collect();
        Self { kind, text, witness }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)?;
        self.witness.iter().try_for_each(|record| write!(f, "\n    {}", line(record)))
    }
}

/// Violations of each kind that are kept with their witnesses; beyond, they are only counted.
const KEPT_PER_KIND: usize = 3;

/// What was found in a history, or in several.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// The first ones of each kind.
    pub(crate) violations: Vec<Violation>,
    /// All, by kind.
    pub(crate) counts: BTreeMap<Kind, u64>,
    /// Leases whose end was seen, and how long after their time at most, in microseconds.
    pub(crate) expired: u64,
    /// The longest time from a lease's end to the first sign of it, in microseconds.
    pub(crate) late_us: u64,
}

impl Verdict {
    /// Adds one. Of a kind, the ones with the shortest witnesses are kept.
    pub(crate) fn push(&mut self, violation: Violation) {
        *self.counts.entry(violation.kind).or_default() += 1;
        self.keep(violation);
    }

    /// Adds what was found elsewhere.
    pub(crate) fn add(&mut self, other: Self) {
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        other.violations.into_iter().for_each(|violation| self.keep(violation));
        self.expired += other.expired;
        self.late_us = self.late_us.max(other.late_us);
    }

    /// Whether nothing is broken.
    pub(crate) fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// Whether enough of this kind are kept, so that no more witnesses need to be sought.
    pub(crate) fn has_enough(&self, kind: Kind) -> bool {
        self.violations.iter().filter(|kept| kept.kind == kind).count() >= KEPT_PER_KIND
    }

    fn keep(&mut self, violation: Violation) {
        if !self.has_enough(violation.kind) {
            self.violations.push(violation);
            return;
        }
        let longest = self.violations.iter_mut().filter(|kept| kept.kind == violation.kind);
        if let Some(kept) = longest.max_by_key(|kept| kept.witness.len())
            && kept.witness.len() > violation.witness.len()
        {
            *kept = violation;
        }
    }
}
