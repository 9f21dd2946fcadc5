//! What an initial node does once all others were heard: steps, each durable before the next.
//!
//! A crash between any two leaves a directory with which the next start does all of it again, or one that has
//! started. A log that was deleted cannot pass for new: the groups are there before the identity says so.

use quorate_store::restore::RESTORED;
use quorate_types::GroupId;
use quorate_wal::rocks::RocksLog;

use crate::config::InitialGroup;
use crate::engine::FIRST;
use crate::founding::make_groups;
use crate::identity::{DataDir, Identity};
use crate::open::OpenError;
use crate::restore::{self, Restoring};

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// What was restored goes in the place of the keyspace's rows, if anything was. State before log, as with
    /// any snapshot.
    Rows,
    /// The first groups, in the log.
    Groups,
    /// The identity says that the node has started: what comes now is not done again, but by a start that
    /// still finds it.
    Identity,
    /// The record of what was restored goes: without it the snapshot begins nothing.
    Record,
    /// The snapshot goes.
    Snapshot,
}

/// The first start of an initial node.
pub(crate) struct FirstStart<'s> {
    groups: &'s [InitialGroup],
    identity: Identity,
    data_dir: &'s DataDir,
    log: &'s mut RocksLog,
    is_restored: bool,
    restored: Option<Restoring<'s>>,
}

impl<'s> FirstStart<'s> {
    /// All steps, in their order.
    pub(crate) const STEPS: [Step; 5] =
        [Step::Rows, Step::Groups, Step::Identity, Step::Record, Step::Snapshot];

    /// Of the node of this identity, which has the table of the founders.
    pub(crate) const fn new(
        groups: &'s [InitialGroup],
        identity: Identity,
        data_dir: &'s DataDir,
        log: &'s mut RocksLog,
        restored: Option<Restoring<'s>>,
    ) -> Self {
        let is_restored = restored.is_some();
        Self { groups, identity, data_dir, log, is_restored, restored }
    }

    /// Carries out a step. When it returns, it is durable, but for the removals: what a power cut brings back of those
    /// the next start removes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn carry_out(&mut self, step: Step) -> Result<(), OpenError> {
        match step {
            Step::Rows => self.restored.take().map_or(Ok(()), Restoring::run)?,
            Step::Groups => {
                let is_restored = self.is_restored;
                let first = |group: &InitialGroup| match group.id {
                    GroupId::FIRST_DATA if is_restored => RESTORED,
                    _ => FIRST,
                };
                let voters = self.identity.founders.keys().copied();
                make_groups(self.log, self.groups, voters, first)?;
            }
            Step::Identity => self.data_dir.store(&self.identity)?,
            Step::Record => restore::remove_record(self.data_dir)?,
            Step::Snapshot => restore::remove_snapshot(self.data_dir)?,
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "first_start_tests.rs"]
mod tests;
