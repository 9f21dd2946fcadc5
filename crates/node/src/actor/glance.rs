//! [`Glance`]: what others may see of a group at any time without asking it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_raft::Replica;
use quorate_types::LogIndex;

/// A few facts of a group, as of its last turn. They are renewed one by one, so that two of them may be of
/// two turns.
#[derive(Debug, Default)]
pub(crate) struct Glance {
    commit: AtomicU64,
    applied: AtomicU64,
    is_learner: AtomicBool,
}

impl Glance {
    /// A turn has ended; `applied` is what the group has heard of.
    pub(crate) fn renew(&self, replica: &Replica, applied: LogIndex) {
        // Commit first: who reads the other way round sees no applied entry that was not committed.
        self.commit.store(replica.commit().value(), Ordering::Release);
        self.applied.store(applied.value(), Ordering::Release);
        let is_learner = replica.membership().learners.contains(&replica.config().node);
        self.is_learner.store(is_learner, Ordering::Relaxed);
    }

    /// Known committed, and applied to the state.
    pub(crate) fn indexes(&self) -> (LogIndex, LogIndex) {
        let applied = LogIndex(self.applied.load(Ordering::Acquire));
        (LogIndex(self.commit.load(Ordering::Acquire)), applied)
    }

    /// True while the node takes part without a vote.
    pub(crate) fn is_learner(&self) -> bool {
        self.is_learner.load(Ordering::Relaxed)
    }
}
