//! When history is forgotten by itself, as etcd's `--auto-compaction-mode` and `--auto-compaction-retention`.
//!
//! [`AutoCompaction`] decides, as a value that is handed the time and the revision; [`run`] asks it on every node,
//! and proposes what it says on the one that leads. The rules are etcd's:
//!
//! - *Periodic*: everything older than the retention goes, once in a retention, at most once an hour. The
//!   revision is looked at ten times as often; the first time is a whole retention after the start. What failed is
//!   tried again at the next look.
//! - *Revision*: every five minutes everything goes but the last so many revisions.
//!
//! A node that does not lead looks all the same, so that it knows what was a retention ago when it begins to lead:
//! otherwise a leader that changes more often than that would never forget anything.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_types::auth::Caller;
use quorate_types::kv::{self, KvError, command, outcome, query};

use crate::backend::{Backend, Consistency};

/// The longest time between two compactions of the periodic mode.
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);

/// Looks at the revision in one such time.
const LOOKS: u32 = 10;

/// The time between two compactions by count.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// What history is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retention {
    /// What is younger than this; not zero.
    Period(Duration),
    /// The last so many revisions; positive.
    Revisions(i64),
}

/// Decides when to compact, and at which revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AutoCompaction {
    retention: Retention,
    /// The looks of the last period and the one before them: when, and the revision. The oldest first.
    seen: VecDeque<(Duration, i64)>,
    /// The last compaction, or the beginning.
    last: Duration,
    compacted: i64,
}

impl AutoCompaction {
    /// Nothing was compacted yet at `now`, the time since any fixed moment.
    #[must_use]
    pub const fn new(retention: Retention, now: Duration) -> Self {
        Self { retention, seen: VecDeque::new(), last: now, compacted: 0 }
    }

    /// How often to [`look`](Self::look).
    #[must_use]
    pub fn look_interval(&self) -> Duration {
        match self.retention {
            Retention::Period(_) => self.interval() / LOOKS,
            Retention::Revisions(_) => REVISION_INTERVAL,
        }
    }

    /// The least time between two compactions.
    fn interval(&self) -> Duration {
        match self.retention {
            Retention::Period(period) => period.min(INTERVAL_MAX),
            Retention::Revisions(_) => REVISION_INTERVAL,
        }
    }

    /// Notes that the keyspace is at `revision` now; gives the revision to compact at, if it is time to.
    pub fn look(&mut self, now: Duration, revision: i64) -> Option<i64> {
        let target = match self.retention {
            Retention::Period(period) => {
                self.seen.push_back((now, revision));
                let is_old = |(at, _): &(Duration, i64)| now.saturating_sub(*at) >= period;
                while self.seen.get(1).is_some_and(is_old) {
                    self.seen.pop_front();
                }
                // However many looks have failed: what is younger than the period is kept.
                self.seen.front().filter(|first| is_old(first))?.1
            }
            Retention::Revisions(kept) => revision.saturating_sub(kept),
        };
        let is_due = now.saturating_sub(self.last) >= self.interval();
        (is_due && target > 0 && target != self.compacted).then_some(target)
    }

    /// The compaction at `revision` was done at `now`, by whomever.
    pub const fn done(&mut self, now: Duration, revision: i64) {
        self.last = now;
        self.compacted = revision;
    }
}

/// Compacts the keyspace behind `backend` for as long as this is polled, whenever its node leads.
pub async fn run<B: Backend>(backend: Arc<B>, retention: Retention) {
    let began = Instant::now();
    let mut auto = AutoCompaction::new(retention, Duration::ZERO);
    loop {
        look(&*backend, &mut auto, || began.elapsed()).await;
        tokio::time::sleep(auto.look_interval()).await;
    }
}

/// One look, and the compaction if it is time to and this node leads.
async fn look<B: Backend>(backend: &B, auto: &mut AutoCompaction, now: impl Fn() -> Duration) {
    let query = kv::Query { body: Some(query::Body::Status(kv::Status {})), caller: None };
    let Ok(answer) = backend.read(query, Consistency::Serializable).await else { return };
    let Some(revision) = auto.look(now(), answer.outcome.revision) else { return };
    let status = backend.node_status();
    if status.leader != Some(status.member_id) {
        return;
    }
    let body = Some(command::Body::Compact(kv::Compact { revision }));
    let command = kv::Command { body, caller: Some(Caller::system()), ..kv::Command::default() };
    match backend.propose(command).await {
        Ok(answer) => match answer.outcome.body {
            Some(outcome::Body::Compact(_)) => {
                tracing::info!(revision, "compacted the history by itself");
                auto.done(now(), revision);
            }
            Some(outcome::Body::Error(error)) if error == KvError::Compacted as i32 => {
                auto.done(now(), revision);
            }
            other => tracing::warn!(revision, ?other, "the history was not compacted"),
        },
        Err(error) => tracing::warn!(revision, %error, "the history was not compacted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Looks from one to the next; the revision is the minute.
    fn compactions(retention: Retention, minutes: u32) -> Vec<(u32, i64)> {
        let mut auto = AutoCompaction::new(retention, Duration::ZERO);
        let (mut now, mut found) = (Duration::ZERO, Vec::new());
        while now <= MINUTE * minutes {
            let minute = u32::try_from(now.as_secs() / 60).unwrap();
            if let Some(revision) = auto.look(now, i64::from(minute) + 1) {
                found.push((minute, revision));
                auto.done(now, revision);
            }
            now += auto.look_interval();
        }
        found
    }

    #[test]
    fn a_long_period_is_kept_whole_and_compacted_hourly() {
        let hours = compactions(Retention::Period(MINUTE * 180), 360);
        assert_eq!(hours, [(180, 1), (240, 61), (300, 121), (360, 181)]);
    }

    #[test]
    fn a_short_period_is_compacted_once_in_itself() {
        let tens = compactions(Retention::Period(MINUTE * 10), 40);
        assert_eq!(tens, [(10, 1), (20, 11), (30, 21), (40, 31)]);
    }

    #[test]
    fn a_count_keeps_the_last_revisions() {
        let fives = compactions(Retention::Revisions(8), 21);
        assert_eq!(fives, [(10, 3), (15, 8), (20, 13)]);
    }

    #[test]
    fn what_stands_still_is_not_compacted_again() {
        for retention in [Retention::Period(MINUTE * 10), Retention::Revisions(8)] {
            let mut auto = AutoCompaction::new(retention, Duration::ZERO);
            let mut count = 0;
            for look in 0..500 {
                let now = auto.look_interval() * look;
                if let Some(revision) = auto.look(now, 100) {
                    auto.done(now, revision);
                    count += 1;
                }
            }
            assert_eq!(count, 1, "{retention:?}");
        }
    }

    #[test]
    fn what_failed_is_tried_at_the_next_look() {
        let mut auto = AutoCompaction::new(Retention::Revisions(8), Duration::ZERO);
        assert_eq!(auto.look(MINUTE * 5, 100), Some(92));
        assert_eq!(auto.look(MINUTE * 10, 101), Some(93));
        // After a tenth of the period, or of an hour; and then there is a whole one again until the next.
        for (period, tenth) in [(MINUTE * 10, MINUTE), (MINUTE * 180, MINUTE * 6)] {
            let mut auto = AutoCompaction::new(Retention::Period(period), Duration::ZERO);
            assert_eq!(auto.look_interval(), tenth);
            let (mut now, mut tries) = (Duration::ZERO, Vec::new());
            while tries.len() < 4 {
                let revision = 1 + now.as_secs().cast_signed();
                if let Some(target) = auto.look(now, revision) {
                    tries.push((now, target));
                    if tries.len() == 3 {
                        auto.done(now, target);
                    }
                }
                now += tenth;
            }
            let next = period + tenth * 2 + period.min(INTERVAL_MAX);
            for ((at, target), expected) in
                tries.into_iter().zip([period, period + tenth, period + tenth * 2, next])
            {
                assert_eq!(at, expected);
                assert_eq!(target, 1 + (at - period).as_secs().cast_signed());
            }
        }
    }

    #[test]
    fn what_is_younger_than_the_period_is_kept_however_many_looks_are_missing() {
        let mut auto = AutoCompaction::new(Retention::Period(MINUTE * 10), Duration::ZERO);
        assert_eq!(auto.look(MINUTE * 25, 100), None, "the first look that succeeded");
        assert_eq!(auto.look(MINUTE * 34, 200), None);
        assert_eq!(auto.look(MINUTE * 35, 300), Some(100));
        assert_eq!(auto.look(MINUTE * 60, 400), Some(300));
    }
}
