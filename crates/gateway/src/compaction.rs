//! When history is forgotten by itself, as etcd's `--auto-compaction-mode` and `--auto-compaction-retention`.
//!
//! [`AutoCompaction`] decides, as a value that is handed the time and the revision; [`run`] asks it on the node
//! that leads, and proposes what it says. The rules are etcd's:
//!
//! - *Periodic*: everything older than the retention goes, once in a retention, at most once an hour. The
//!   revision is looked at ten times as often; the first time is a whole retention after the start.
//! - *Revision*: every five minutes everything goes but the last so many revisions.

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
    /// The revisions of the last looks, the oldest first.
    seen: VecDeque<i64>,
    /// The last compaction, or the beginning.
    last: Duration,
    /// How long after `last` the next one is due.
    due_after: Duration,
    compacted: i64,
}

impl AutoCompaction {
    /// Nothing was compacted yet at `now`, the time since any fixed moment.
    #[must_use]
    pub fn new(retention: Retention, now: Duration) -> Self {
        let due_after = match retention {
            Retention::Period(period) => period,
            Retention::Revisions(_) => REVISION_INTERVAL,
        };
        Self { retention, seen: VecDeque::new(), last: now, due_after, compacted: 0 }
    }

    /// How often to [`look`](Self::look).
    #[must_use]
    pub fn look_interval(&self) -> Duration {
        match self.retention {
            Retention::Period(period) => period.min(INTERVAL_MAX) / LOOKS,
            Retention::Revisions(_) => REVISION_INTERVAL,
        }
    }

    /// Notes that the keyspace is at `revision` now; gives the revision to compact at, if it is time to.
    pub fn look(&mut self, now: Duration, revision: i64) -> Option<i64> {
        let target = match self.retention {
            Retention::Period(period) => {
                self.seen.push_back(revision);
                let looks = period.as_nanos() / self.look_interval().as_nanos().max(1);
                while self.seen.len() as u128 > looks + 1 {
                    self.seen.pop_front();
                }
                *self.seen.front()?
            }
            Retention::Revisions(kept) => revision.saturating_sub(kept),
        };
        let is_due = now.saturating_sub(self.last) >= self.due_after;
        (is_due && target > 0 && target != self.compacted).then_some(target)
    }

    /// The compaction at `revision` was done at `now`, by whomever.
    pub fn done(&mut self, now: Duration, revision: i64) {
        self.last = now;
        self.compacted = revision;
        if let Retention::Period(period) = self.retention {
            self.due_after = period.min(INTERVAL_MAX);
        }
    }
}

/// Compacts the keyspace behind `backend` for as long as this is polled, while its node leads. A node that
/// begins to lead begins to look anew: it may keep more than it must, and never less.
pub async fn run<B: Backend>(backend: Arc<B>, retention: Retention) {
    let began = Instant::now();
    let mut leading: Option<AutoCompaction> = None;
    let interval = AutoCompaction::new(retention, Duration::ZERO).look_interval();
    loop {
        let status = backend.node_status();
        if status.leader == Some(status.member_id) {
            let auto =
                leading.get_or_insert_with(|| AutoCompaction::new(retention, began.elapsed()));
            look(&*backend, auto, began).await;
        } else {
            leading = None;
        }
        tokio::time::sleep(interval).await;
    }
}

async fn look<B: Backend>(backend: &B, auto: &mut AutoCompaction, began: Instant) {
    let query = kv::Query { body: Some(query::Body::Status(kv::Status {})), caller: None };
    let Ok(answer) = backend.read(query, Consistency::Serializable).await else { return };
    let Some(revision) = auto.look(began.elapsed(), answer.outcome.revision) else { return };
    let body = Some(command::Body::Compact(kv::Compact { revision }));
    let command = kv::Command { body, caller: Some(Caller::system()), ..kv::Command::default() };
    match backend.propose(command).await {
        Ok(answer) => match answer.outcome.body {
            Some(outcome::Body::Compact(_)) => {
                tracing::info!(revision, "compacted the history by itself");
                auto.done(began.elapsed(), revision);
            }
            Some(outcome::Body::Error(error)) if error == KvError::Compacted as i32 => {
                auto.done(began.elapsed(), revision);
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
    }
}
