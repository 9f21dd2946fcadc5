//! The applier of a node, and what its host does now and then: one round takes what waits, of all groups, into one
//! batch, rows and applied index together; only then do the groups hear of it.

use bytes::Bytes;
use quorate_group::{Checkpoint, is_checkpoint};
use quorate_store::{GroupRow, Overlay, StateEngine};
use quorate_types::{Committed, Entry, EntryId, GroupId, NodeId, Payload, defect};

use crate::check::{Checked, Oracle, Violation, promise};
use crate::event::Event;
use crate::node::Resident;
use crate::spoil::Spoil;
use crate::trace::What;
use crate::world::World;

/// Entries from one comparison of digests to the next: runs are short.
const DIGEST_INTERVAL: u64 = 8;

/// Rows that one sweep removes, at most.
const SWEEP_ROWS_MAX: usize = 16;

impl World {
    pub(crate) fn submit_apply(&mut self, node: NodeId, group: GroupId, entries: Vec<Entry>) {
        let at_us = self.now_us + self.plan.disk.apply_us;
        let at = self.node(node);
        let life = at.life;
        let Some(process) = &mut at.process else { return };
        let Some(resident) = process.residents.get(&group) else { return };
        let is_first = process.to_apply.is_empty();
        process.to_apply.push_back((group, resident.generation, entries));
        if is_first {
            self.queue.push(at_us, Event::Apply { node, life });
        }
    }

    /// One round of the applier: what waits becomes one batch; only then do the groups hear of it.
    pub(crate) fn on_apply(&mut self, node: NodeId, life: u64) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let sweeps = self.random.u8(..8) == 0;
        let at = &mut self.nodes[node.value() as usize - 1];
        let Some(process) = &mut at.process else { return Ok(()) };
        let tasks = std::mem::take(&mut process.to_apply);
        let (mut done, mut panicked, mut feeds) = (Vec::new(), Vec::new(), Vec::new());
        let rows = {
            let mut overlay = Overlay::new(at.state.view());
            for (group, generation, entries) in tasks {
                let resident = match process.residents.get_mut(&group) {
                    Some(resident) => Some(resident),
                    None => process.dead.get_mut(&group),
                };
                let Some(resident) = resident else { continue };
                if std::mem::take(&mut resident.machine_panics) {
                    resident.machine_failed = true;
                    panicked.push(group);
                }
                // Its part of the batch is never written.
                if resident.machine_failed {
                    continue;
                }
                let mut outcomes = Vec::new();
                let mut checkpoints = Vec::new();
                let ends_run = |entry: &Entry| is_checkpoint(entry.id.index, DIGEST_INTERVAL);
                for run in entries.split_inclusive(ends_run) {
                    let spoil = (group == GroupId::FIRST_DATA).then_some(&mut at.spoil);
                    outcomes.extend(apply(resident, group, run, &mut overlay, spoil)?);
                    let at = resident.applied;
                    checkpoints.extend(
                        resident
                            .machine
                            .digest()
                            .filter(|_| is_checkpoint(at.index, DIGEST_INTERVAL))
                            .map(|digest| Checkpoint { at, digest }),
                    );
                }
                if let Some(platter) = self.checks.platters.get(&node) {
                    promise::on_applied(node, group, &entries, platter)?;
                }
                feeds.extend(resident.machine.take_feed().map(|feed| (group, feed)));
                let checks = self.checks.group(group);
                let wrong_at = at.spoil.at.filter(|_| group == GroupId::FIRST_DATA);
                if let Some(wrong_at) = wrong_at {
                    let since = self.spoiled.entry(node).or_insert(wrong_at);
                    *since = wrong_at.min(*since);
                }
                let is_right = wrong_at.is_none();
                checks.apply.on_applied(node, &entries, &outcomes, &checks.log, is_right)?;
                for (command, outcome) in std::mem::take(&mut checks.apply.of_leases) {
                    checks.tenure.on_applied(self.now_us, &command, &outcome)?;
                }
                done.push((group, generation, resident.applied.index, outcomes, checkpoints));
            }
            if sweeps {
                for (&group, resident) in &mut process.residents {
                    sweep(resident, group, &mut overlay)?;
                }
            }
            overlay.into_rows()
        };
        at.state.write(rows).map_err(|error| Oracle::Assertion.broken(error.to_string()))?;
        // Who follows may see it from now on.
        for (group, feed) in feeds {
            if let Some(resident) = process.residents.get_mut(&group) {
                resident.ring.publish(feed);
            }
        }
        if defect!(AppliedIndexApart) {
            let mut overlay = Overlay::new(at.state.view());
            for (&group, resident) in &process.residents {
                put_group_row(resident, group, &mut overlay);
            }
            let rows = overlay.into_rows();
            at.state.write(rows).map_err(|error| Oracle::Assertion.broken(error.to_string()))?;
        }
        if done.iter().any(|(group, ..)| *group == GroupId::PLACEMENT) {
            self.survey(node)?;
        }
        for (group, generation, through, outcomes, checkpoints) in done {
            if !self.is_alive(node, life) {
                return Ok(());
            }
            self.note(node, What::Applied { group, index: through });
            let resident = self.node(node).resident_mut(group);
            let Some(resident) = resident.filter(|r| r.generation == generation) else { continue };
            resident.group.applied(through, outcomes);
            checkpoints.into_iter().for_each(|checkpoint| resident.group.checkpoint(checkpoint));
            self.input(node, group)?;
        }
        for group in panicked {
            self.panic_group(node, group, false)?;
        }
        self.reload_groups(node)
    }

    pub(crate) fn on_flush(&mut self, node: NodeId, life: u64) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        self.node(node)
            .state
            .flush()
            .map_err(|error| Oracle::Assertion.broken(error.to_string()))?;
        self.plan_flush(node);
        if self.plan.cluster.log_tail < u64::MAX >> 1 { self.cut_logs(node) } else { Ok(()) }
    }

    pub(crate) fn plan_flush(&mut self, node: NodeId) {
        let life = self.node(node).life;
        if self.plan.disk.flush_ms > 0 {
            let at_us = self.now_us + 1 + self.random.u64(..self.plan.disk.flush_ms * 2_000);
            self.queue.push(at_us, Event::Flush { node, life });
        }
    }
}

fn apply(
    resident: &mut Resident,
    group: GroupId,
    entries: &[Entry],
    overlay: &mut Overlay<'_>,
    mut spoil: Option<&mut Spoil>,
) -> Result<Vec<(EntryId, Bytes)>, Violation> {
    let committed: Vec<_> = entries
        .iter()
        .filter_map(|entry| match &entry.payload {
            Payload::Empty | Payload::Membership(_) => None,
            Payload::Command(command) => {
                let altered = spoil.as_mut().and_then(|s| s.alter(entry.id.index, command));
                Some(Committed {
                    id: entry.id,
                    command: altered.unwrap_or_else(|| command.clone()),
                })
            }
        })
        .collect();
    let mut outcomes = Vec::new();
    if !committed.is_empty() {
        let mut batch = overlay.scoped(resident.kind.scope(), group);
        outcomes = resident
            .machine
            .apply(&committed, &mut batch)
            .map_err(|error| Oracle::Assertion.broken(error.to_string()))?;
        resident.sweeping = true;
    }
    for entry in entries {
        resident.applied = entry.id;
        if let Payload::Membership(membership) = &entry.payload {
            resident.membership = (**membership).clone();
        }
    }
    if !defect!(AppliedIndexApart) {
        put_group_row(resident, group, overlay);
    }
    Ok(committed.into_iter().map(|committed| committed.id).zip(outcomes).collect())
}

pub(crate) fn sweep(resident: &mut Resident, group: GroupId, overlay: &mut Overlay<'_>) -> Checked {
    if resident.sweeping {
        let mut batch = overlay.scoped(resident.kind.scope(), group);
        let more = resident.machine.sweep(SWEEP_ROWS_MAX, &mut batch);
        resident.sweeping = more.map_err(|error| Oracle::Assertion.broken(error.to_string()))?;
        put_group_row(resident, group, overlay);
    }
    Ok(())
}

fn put_group_row(resident: &Resident, group: GroupId, overlay: &mut Overlay<'_>) {
    let row = GroupRow {
        applied: resident.applied,
        membership: resident.membership.clone(),
        kind: resident.kind.name().to_owned(),
        meta: resident.machine.meta(),
    };
    overlay.put_group_row(group, &row);
}
