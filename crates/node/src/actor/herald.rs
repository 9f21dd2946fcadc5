//! [`Herald`]: what the rest of the node hears of a group's leadership, and what is counted of it.

use std::sync::Arc;
use std::time::Instant;

use quorate_group::Leadership;
use quorate_raft::{Cause, Role};
use quorate_types::{GroupId, Term};
use tokio::sync::watch;

use crate::metrics::NodeMetrics;

/// Tells of one group, over all its lives.
pub(crate) struct Herald {
    group: GroupId,
    leadership: watch::Sender<Leadership>,
    metrics: Arc<NodeMetrics>,
    /// When this replica last began to look for a leader.
    leaderless_since: Option<Instant>,
    /// Why it last asked for pre-votes.
    stands_because: Option<Cause>,
}

impl Herald {
    pub(crate) fn new(
        group: GroupId,
        leadership: watch::Sender<Leadership>,
        metrics: Arc<NodeMetrics>,
    ) -> Self {
        let leaderless_since = Some(Instant::now());
        Self { group, leadership, metrics, leaderless_since, stands_because: None }
    }

    /// The term that was told last.
    pub(crate) fn term(&self) -> Term {
        self.leadership.borrow().term
    }

    /// Tells what changed, and counts it.
    pub(crate) fn publish(&mut self, now_leads: Leadership, now: Instant) {
        let before = *self.leadership.borrow();
        match (now_leads.leader, self.leaderless_since) {
            (Some(_), Some(since)) => {
                self.metrics.election_seconds.record(now.saturating_duration_since(since));
                self.leaderless_since = None;
            }
            (None, None) => self.leaderless_since = Some(now),
            (Some(_), None) | (None, Some(_)) => {}
        }
        let (led, leads) = (before.role == Role::Leader, now_leads.role == Role::Leader);
        if led != leads {
            self.metrics.leaders.increment(if leads { 1.0 } else { -1.0 });
            if let Some(cause) = now_leads.cause {
                self.metrics.leader_change(cause);
            }
        }
        self.count_election(before, now_leads);
        tracing::info!(
            group = %self.group,
            role = ?now_leads.role,
            term = %now_leads.term,
            leader = ?now_leads.leader,
            serving = now_leads.serving,
            cause = ?now_leads.cause,
            "leadership"
        );
        self.leadership.send_replace(now_leads);
    }

    /// The group's life has ended: nobody may take this replica for a leader, or for one that knows one.
    pub(crate) fn resign(&mut self) {
        self.leaderless_since = Some(Instant::now());
        if self.leadership.borrow().role == Role::Leader {
            self.metrics.leaders.decrement(1.0);
        }
        self.leadership.send_modify(|now| {
            (now.role, now.leader, now.serving) = (Role::Follower, None, false);
        });
    }

    fn count_election(&mut self, before: Leadership, now: Leadership) {
        if now.role == Role::PreCandidate {
            self.stands_because = now.cause;
        }
        // A voter without others is candidate and leader in one turn.
        let stands = match now.role {
            Role::Candidate => before.role != Role::Candidate,
            Role::Leader => before.role != Role::Candidate && before.term != now.term,
            Role::Follower | Role::PreCandidate => false,
        };
        if stands {
            // The pre-votes were asked for because of something too.
            let cause = match now.cause {
                Some(Cause::PreVotesGranted | Cause::Elected) | None => self.stands_because.take(),
                cause => cause,
            };
            self.metrics.election(cause.unwrap_or(Cause::ElectionTimeout));
        }
    }
}
