//! [`Rest`]: lets the rest of the node know whether a group sleeps, and how it is while it does.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use quorate_group::Wheel;
use quorate_types::{GroupId, NodeId};

use crate::actor::GroupReport;
use crate::engine::lock;

/// A group's place in the wheel of its node. Awake, it costs nothing but a look; the wheel hears only of
/// changes.
pub(crate) struct Rest {
    group: GroupId,
    wheel: Arc<Mutex<Wheel>>,
    /// The last report, while the group sleeps.
    report: Arc<ArcSwapOption<GroupReport>>,
    asleep: bool,
}

impl Rest {
    /// A group that is awake, as each is at first.
    pub(crate) fn new(group: GroupId, wheel: Arc<Mutex<Wheel>>) -> Self {
        lock(&wheel).on_awake(group);
        Self { group, wheel, report: Arc::default(), asleep: false }
    }

    /// How the group is, as long as it sleeps.
    pub(crate) fn report(&self) -> Arc<ArcSwapOption<GroupReport>> {
        Arc::clone(&self.report)
    }

    /// A turn has ended, and the group sleeps under `leader`.
    pub(crate) fn sleep(&mut self, leader: NodeId, report: GroupReport) {
        self.report.store(Some(Arc::new(report)));
        if !std::mem::replace(&mut self.asleep, true) {
            lock(&self.wheel).on_asleep(self.group, leader);
        }
    }

    /// A turn has ended, and the group is awake. True if it was asleep.
    pub(crate) fn wake(&mut self) -> bool {
        let was_asleep = std::mem::replace(&mut self.asleep, false);
        if was_asleep {
            self.report.store(None);
            lock(&self.wheel).on_awake(self.group);
        }
        was_asleep
    }

    /// True while the rest of the node takes the group for asleep.
    pub(crate) const fn is_asleep(&self) -> bool {
        self.asleep
    }

    /// The group is not here any more.
    pub(crate) fn end(&self) {
        self.report.store(None);
        lock(&self.wheel).on_gone(self.group);
    }
}
