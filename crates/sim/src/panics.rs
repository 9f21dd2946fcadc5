//! A panic in a group's turn or in its machine ends that life of the group and nothing else. As on a node, its callers are
//! answered, and the next life begins from what is durable: the log as it is behind the group's own appends, and the row
//! as it is behind what is still being applied. Completions for the old life reach nobody. The third panic within ten
//! minutes keeps the group away until the next start.

use quorate_group::{Generation, Verdict};
use quorate_types::{GroupId, NodeId};
use quorate_wal::LogStore;

use crate::check::{Checked, Oracle};
use crate::node::Process;
use crate::trace::What;
use crate::world::World;

impl World {
    /// The next apply of a group panics.
    pub(crate) fn plan_machine_panic(&mut self, node: NodeId, group: GroupId) {
        if let Some(resident) = self.node(node).resident_mut(group) {
            resident.machine_panics = true;
        }
    }

    /// A group panics: `in_turn` after its turn has changed it and before anything of that was carried out, else with
    /// its inputs noted.
    pub(crate) fn panic_group(&mut self, node: NodeId, group: GroupId, in_turn: bool) -> Checked {
        let now = self.moment(node);
        let at = self.node(node);
        // What an installation does goes on without its group; here both are one, and not torn apart.
        if at.installing.as_ref().is_some_and(|(of, _)| *of == group) {
            return Ok(());
        }
        let Some(process) = &mut at.process else { return Ok(()) };
        let Some(mut resident) = process.residents.remove(&group) else { return Ok(()) };
        if in_turn {
            drop(resident.group.turn(now, &mut |_| {}));
        }
        let effects = resident.group.abandon();
        process.dead.insert(group, resident);
        let verdict = process.panics.entry(group).or_default().note(now);
        match verdict {
            Verdict::Quarantine => {
                process.quarantined.insert(group);
                process.hearing.wheel.on_gone(group);
            }
            Verdict::Reload => {
                let generation = process.host.reload(group);
                process.reloading.extend(generation.map(|generation| (group, generation)));
                process.hearing.wheel.on_awake(group);
            }
        }
        self.counts.panics += 1;
        self.counts.quarantined += u64::from(verdict == Verdict::Quarantine);
        self.note(node, What::Panicked { group, quarantined: verdict == Verdict::Quarantine });
        self.carry_out(node, group, effects)?;
        // It has no life to lead in.
        if let Some(dead) = self.node(node).process.as_ref().and_then(|p| p.dead.get(&group)) {
            dead.kind.on_leadership(group, None);
        }
        self.reload_groups(node)
    }

    /// Begins the next life of those groups for which everything of the last one is written and applied.
    pub(crate) fn reload_groups(&mut self, node: NodeId) -> Checked {
        let Some(process) = &self.nodes[node.value() as usize - 1].process else { return Ok(()) };
        let ready = process.reloading.iter().filter(|(group, _)| process.is_idle(**group));
        let ready: Vec<_> = ready.map(|(&group, &generation)| (group, generation)).collect();
        ready.into_iter().try_for_each(|(group, generation)| self.reload(node, group, generation))
    }

    fn reload(&mut self, node: NodeId, group: GroupId, generation: Generation) -> Checked {
        let at = &mut self.nodes[node.value() as usize - 1];
        let log = at.process.as_ref().and_then(|process| process.wal.log.log(group));
        let Some(log) = log else {
            return Err(Oracle::Recovery.broken(format!("node {node}: no log of group {group}")));
        };
        if let Some(platter) = self.checks.platters.get(&node) {
            platter.on_found(node, group, &log)?;
        }
        let opened = at.begin_life(&self.plan.cluster, group, generation, log);
        let mut resident = opened.map_err(|why| {
            Oracle::Recovery.broken(format!("node {node}: group {group} is not loaded: {why:?}"))
        })?;
        let checks = self.checks.groups.get_mut(&group).expect("every group is watched");
        checks.log.on_started(node, resident.group.replica());
        checks.apply.on_started(node, resident.applied.index);
        let Some(process) = &mut at.process else { return Ok(()) };
        process.disks.show(&mut resident.group);
        process.reloading.remove(&group);
        let wrong = process.dead.remove(&group).and_then(|dead| dead.group.wrong_state());
        if let Some(wrong) = wrong {
            resident.group.inherit(wrong);
        }
        process.residents.insert(group, resident);
        process.hearing.wheel.on_awake(group);
        self.note(node, What::Reloaded { group });
        self.input(node, group)
    }
}

impl Process {
    /// True when nothing that a group has asked of the log or of the applier is under way.
    fn is_idle(&self, group: GroupId) -> bool {
        !self.wal.busy
            && self.wal.waiting.iter().all(|task| task.group != group)
            && self.to_apply.iter().all(|(of, ..)| *of != group)
    }
}
