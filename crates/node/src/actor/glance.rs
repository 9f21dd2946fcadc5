//! [`Glance`]: what others may see of a group at any time without asking it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_group::Group;
use quorate_types::LogIndex;

/// A few facts of a group, as of its last turn. They are renewed one by one, so that two of them may be of
/// two turns.
#[derive(Debug, Default)]
pub(crate) struct Glance {
    commit: AtomicU64,
    applied: AtomicU64,
    is_learner: AtomicBool,
    is_distrusted: AtomicBool,
    /// 0 while nothing is.
    undecided: AtomicU64,
}

impl Glance {
    /// A turn has ended.
    pub(crate) fn renew<P, R>(&self, group: &Group<P, R>) {
        let (replica, applied) = (group.replica(), group.applied_index());
        // Commit first: who reads the other way round sees no applied entry that was not committed.
        self.commit.store(replica.commit().value(), Ordering::Release);
        self.applied.store(applied.value(), Ordering::Release);
        let is_learner = replica.membership().learners.contains(&replica.config().node);
        self.is_learner.store(is_learner, Ordering::Relaxed);
        self.is_distrusted.store(group.is_distrusted(), Ordering::Relaxed);
        let undecided = group.undecided().map_or(0, |at| at.index.value());
        self.undecided.store(undecided, Ordering::Relaxed);
    }

    /// The replica's state is known to be wrong: it is being rebuilt.
    pub(crate) fn is_distrusted(&self) -> bool {
        self.is_distrusted.load(Ordering::Relaxed)
    }

    /// See [`Group::undecided`].
    pub(crate) fn undecided(&self) -> Option<LogIndex> {
        Some(LogIndex(self.undecided.load(Ordering::Relaxed))).filter(|at| at.value() > 0)
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
