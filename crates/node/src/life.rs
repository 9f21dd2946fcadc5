//! What a life of a group begins from: its log and its state as they are, at the start of the node or after
//! a panic.

use std::sync::Arc;

use quorate_group::{Descriptor, Generation, Group, WrongState};
use quorate_raft::LogState;
use quorate_store::GroupRow;
use quorate_types::{EntryId, GroupId, LogIndex, MachineKind};
use quorate_wal::RecoveredLog;

use crate::actor::{ProposalSlot, ReadSlot};
use crate::apply::OpenMachine;
use crate::engine::{FIRST, Parts};
use crate::open::OpenError;
use crate::snapshot::words::Intent;

/// A group that is about to live.
pub(crate) struct Life {
    pub(crate) group: Group<ProposalSlot, ReadSlot>,
    pub(crate) generation: Generation,
    pub(crate) descriptor: Descriptor,
    /// For the applier.
    pub(crate) machine: OpenMachine,
    /// Until this is applied the state may be older than what was served from it before.
    pub(crate) caught_up_at: LogIndex,
    /// What the log says of the state, if that is wrong. The group is to inherit it.
    pub(crate) wrong_state: Option<WrongState>,
}

impl Parts {
    /// A life of `group` that begins from `log` and `row`, both as they are now.
    ///
    /// # Errors
    /// When the two do not belong together, or the log says nothing that we understand.
    pub(crate) fn life(
        &self,
        group: GroupId,
        generation: Generation,
        kind: &Arc<dyn MachineKind>,
        log: RecoveredLog,
        row: Option<GroupRow>,
    ) -> Result<Life, OpenError> {
        let base = log.snapshot.last;
        // A group that has applied nothing has no row: its log begins where every group's does.
        let first = if base.index <= FIRST.index { base } else { EntryId::ZERO };
        let GroupRow { applied, membership, meta, .. } = row.unwrap_or_else(|| GroupRow {
            applied: first,
            membership: log.snapshot.membership.clone(),
            ..GroupRow::default()
        });
        // Apply takes only what is durable in this log, so a state ahead of it is another log's.
        if applied.index > log.last.index {
            return Err(OpenError::StateAheadOfLog { group, applied, last: log.last });
        }
        // And only what is durable in the state is truncated.
        if applied.index < base.index {
            return Err(OpenError::StateBehindLog { group, applied, base });
        }
        let damaged = |reason: String| OpenError::Group { group, reason };
        let descriptor =
            Descriptor::decode(&log.label).map_err(|error| damaged(error.to_string()))?;
        let intent = log.intent.map(Intent::read).transpose();
        let wrong_state = match intent.map_err(|error| damaged(error.to_string()))? {
            Some(Intent::Rebuild(known)) => Some(known),
            Some(Intent::Install(file)) => {
                return Err(damaged(format!("snapshot {file} is being installed")));
            }
            None => None,
        };
        let caught_up_at = log.hard_state.commit;
        let state = LogState {
            hard_state: log.hard_state,
            snapshot: log.snapshot,
            memberships: log.memberships,
            terms: log.terms,
            last: log.last,
            applied: applied.index,
        };
        let kind = Arc::clone(kind);
        let machine = OpenMachine { group, generation, kind, membership, applied, meta };
        let mut group = Group::new(self.group_config(group), state);
        let disks = self.router.disks.view();
        group.set_fitness(disks.fitness, &disks.unfit);
        Ok(Life { group, generation, descriptor, machine, caught_up_at, wrong_state })
    }
}
