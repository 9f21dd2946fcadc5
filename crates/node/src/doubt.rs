//! What a node says of states that differ between the replicas of a group.

use quorate_types::{GroupId, LogIndex};

use crate::engine::Engine;

impl Engine {
    /// True while this node's replica of `group` is known to have written other rows than a majority: nobody
    /// reads it, and its state is being rebuilt from another one's.
    #[must_use]
    pub fn is_distrusted(&self, group: GroupId) -> bool {
        let resident = self.parts.router.resident(group);
        resident.is_ok_and(|resident| resident.glance.is_distrusted())
    }

    /// Where the replicas of `group` were last found to differ so that no majority of the voters can say which
    /// is right, as far as this one was there; `None` if never since this process began. Everything goes on:
    /// what is to be done about it is for whoever owns the data.
    #[must_use]
    pub fn undecided(&self, group: GroupId) -> Option<LogIndex> {
        self.parts.router.resident(group).ok()?.glance.undecided()
    }
}
