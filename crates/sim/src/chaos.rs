//! Faults begin and end; processes stop and start.

use std::collections::{BTreeMap, BTreeSet};

use quorate_group::Descriptor;
use quorate_raft::{MembershipChange, NodeChange, Via};
use quorate_store::KvKind;
use quorate_types::{GroupId, KeyRange, Membership, NodeId};

use crate::check::{Checked, Oracle};
use crate::client::key_of;
use crate::event::{Event, Finished};
use crate::fault::{FaultKind, Target};
use crate::node::{OpenFailed, PlannedCrash, Slot};
use crate::trace::What;
use crate::world::World;

/// A process that ended by itself is started again after so long, if nothing else says when.
const RESTART_US: u64 = 200_000;

/// How a fault is taken back.
#[derive(Debug)]
pub(crate) enum Undo {
    Links(BTreeSet<(NodeId, NodeId)>),
    Storm(u32),
    SlowDisk(NodeId),
    FullDisk(NodeId),
    LowDisk(BTreeSet<NodeId>, u32),
    Drift(NodeId),
    Preference,
}

impl World {
    pub(crate) fn on_fault_begins(&mut self, number: usize) -> Checked {
        if self.healing.is_some() {
            return Ok(());
        }
        let fault = self.plan.faults[number].clone();
        self.counts.faults += 1;
        self.note(None, What::FaultBegins(number));
        let undo = self.afflict(number, fault.kind, fault.for_us)?;
        if let Some(undo) = undo {
            self.undo.insert(number, undo);
            self.queue.push(self.now_us + fault.for_us, Event::FaultEnds { number });
        }
        Ok(())
    }

    pub(crate) fn on_fault_ends(&mut self, number: usize) -> Checked {
        if let Some(undo) = self.undo.remove(&number) {
            self.note(None, What::FaultEnds(number));
            self.take_back(undo)?;
        }
        Ok(())
    }

    pub(crate) fn take_back(&mut self, undo: Undo) -> Checked {
        match undo {
            Undo::Links(links) => self.net.mend(&links),
            Undo::Storm(permille) => self.net.storm(-(permille as i32)),
            Undo::SlowDisk(node) => self.node(node).slow_sync_us = 0,
            Undo::FullDisk(node) => self.node(node).full = false,
            Undo::LowDisk(nodes, percent) => {
                let now_us = self.now_us;
                nodes.into_iter().for_each(|node| self.node(node).trouble.rise(percent, now_us));
            }
            Undo::Drift(node) => {
                let now_us = self.now_us;
                self.node(node).clock.set_rate(now_us, 0);
            }
            Undo::Preference => self.prefer(None)?,
        }
        Ok(())
    }

    fn prefer(&mut self, preferred: Option<NodeId>) -> Checked {
        for at in 0..self.nodes.len() {
            let node = self.nodes[at].id;
            for group in self.groups_of(node) {
                if let Some(resident) = self.node(node).resident_mut(group) {
                    resident.group.prefer_leader(preferred);
                }
                self.input(node, group)?;
            }
        }
        Ok(())
    }

    fn afflict(
        &mut self,
        number: usize,
        kind: FaultKind,
        for_us: u64,
    ) -> Result<Option<Undo>, crate::check::Violation> {
        let now_us = self.now_us;
        let undo = match kind {
            FaultKind::Crash { node, power, after_effects } => {
                let node = self.whom(node);
                self.node(node).down_us = for_us;
                if after_effects == 0 {
                    self.stop(node, "crash", power)?;
                } else {
                    let planned = PlannedCrash {
                        effects: after_effects,
                        power,
                        down_us: for_us,
                        for_good: false,
                    };
                    self.node(node).crash_after = Some(planned);
                }
                None
            }
            FaultKind::CrashWinner { after_effects, for_good } => {
                let planned =
                    PlannedCrash { effects: after_effects, power: true, down_us: for_us, for_good };
                self.crash_winner = Some(planned);
                None
            }
            FaultKind::CrashInstaller { step } => {
                self.crash_installer = Some((step, for_us));
                None
            }
            FaultKind::Blackout => {
                for at in 0..self.nodes.len() {
                    let node = self.nodes[at].id;
                    self.node(node).down_us = for_us + at as u64 * 20_000;
                    self.stop(node, "blackout", true)?;
                }
                None
            }
            FaultKind::Rest => {
                self.rested_until_us = self.rested_until_us.max(now_us + for_us);
                None
            }
            FaultKind::Pause { node, late_ticks } => {
                let node = self.whom(node);
                let until_us = now_us + for_us;
                // The last one waits like everything else.
                let missed = (for_us / self.plan.cluster.tick_us).saturating_sub(1);
                let at = self.node(node);
                if at.process.is_some() && at.paused_until.is_none() {
                    at.paused_until = Some(until_us);
                    at.late_ticks = if late_ticks { missed } else { 0 };
                    self.note(node, What::Paused);
                    self.queue.push(until_us, Event::Resume { node });
                }
                None
            }
            FaultKind::Partition { side } => {
                let side: BTreeSet<_> = side.into_iter().map(|target| self.whom(target)).collect();
                self.cut(|from, to| side.contains(&from) != side.contains(&to))
            }
            FaultKind::Cut { a, b } => {
                let (a, b) = (self.whom(a), self.whom(b));
                self.cut(|from, to| (from, to) == (a, b) || (from, to) == (b, a))
            }
            FaultKind::OneWay { from, to } => {
                let link = (self.whom(from), self.whom(to));
                self.cut(|from, to| (from, to) == link)
            }
            FaultKind::Deafen { node } => {
                let node = self.whom(node);
                self.cut(|_, to| to == node)
            }
            FaultKind::Mute { node } => {
                let node = self.whom(node);
                self.cut(|from, _| from == node)
            }
            FaultKind::Clog { from, to } => {
                let (from, to) = (self.whom(from), self.whom(to));
                self.net.clog(from, to, now_us + for_us);
                None
            }
            FaultKind::Loss { permille } => {
                self.net.storm(permille as i32);
                Some(Undo::Storm(permille))
            }
            FaultKind::SlowDisk { node, sync_us } => {
                let node = self.whom(node);
                self.node(node).slow_sync_us = sync_us;
                Some(Undo::SlowDisk(node))
            }
            FaultKind::FailedSync { node, after } => {
                let node = self.whom(node);
                self.node(node).down_us = for_us;
                self.node(node).disk.fail_sync_after(after);
                None
            }
            FaultKind::FullDisk { node } => {
                let node = self.whom(node);
                self.node(node).full = true;
                Some(Undo::FullDisk(node))
            }
            FaultKind::LowDisk { nodes, percent } => {
                let nodes: BTreeSet<_> = nodes.into_iter().map(|node| self.whom(node)).collect();
                nodes.iter().for_each(|&node| self.node(node).trouble.fall(percent, now_us));
                Some(Undo::LowDisk(nodes, percent))
            }
            FaultKind::HungDisk { node } => {
                let node = self.whom(node);
                self.node(node).trouble.hangs_until_us = now_us + for_us;
                None
            }
            FaultKind::Spoil { node } => {
                let node = self.whom(node);
                self.spoil(node);
                None
            }
            FaultKind::Panic { node, in_machine } => {
                let node = self.whom(node);
                let placement = self.plan.cluster.placement && self.random.u8(..4) == 0;
                let group = if placement { GroupId::PLACEMENT } else { GroupId::FIRST_DATA };
                if in_machine {
                    self.plan_machine_panic(node, group);
                } else {
                    let in_turn = self.random.bool();
                    self.panic_group(node, group, in_turn)?;
                }
                None
            }
            FaultKind::Damage { node } => {
                let node = self.whom(node);
                if self.may_lose(node) {
                    let seed = self.random.u64(..);
                    self.node(node).damaged = true;
                    self.node(node).down_us = for_us;
                    self.stop(node, "log damaged", true)?;
                    self.node(node).disk.damage(GroupId::FIRST_DATA, seed);
                }
                None
            }
            FaultKind::Wipe { node } => {
                let node = self.whom(node);
                if self.may_lose(node) {
                    self.node(node).lost = true;
                    self.stop(node, "log lost", true)?;
                }
                None
            }
            FaultKind::Drift { node, ppm } => {
                let node = self.whom(node);
                self.node(node).clock.set_rate(now_us, i64::from(ppm));
                Some(Undo::Drift(node))
            }
            FaultKind::Jump { node, by_ms } => {
                let node = self.whom(node);
                self.node(node).clock.jump(by_ms * 1000);
                None
            }
            FaultKind::Transfer { to } => {
                let (leader, to) = (self.whom(Target::Leader), self.whom(to));
                for group in self.groups_of(leader) {
                    if let Some(resident) = self.node(leader).resident_mut(group) {
                        // It may have stepped down, or `to` may be no voter.
                        let _ = resident.group.transfer_leadership(to);
                    }
                    self.input(leader, group)?;
                }
                None
            }
            FaultKind::Intrude { node } => {
                let node = self.whom(node);
                self.intrude(node)?;
                None
            }
            FaultKind::Members { add, learn, remove, explicit } => {
                self.change_members(&add, &learn, &remove, explicit)?;
                None
            }
            FaultKind::AddNode { .. }
            | FaultKind::PromoteNode
            | FaultKind::RemoveNode { .. }
            | FaultKind::ReplaceNode { .. } => {
                self.operate(number, &kind, 1)?;
                None
            }
            FaultKind::Prefer { node } => {
                let node = self.whom(node);
                self.prefer(Some(node))?;
                Some(Undo::Preference)
            }
            FaultKind::Campaign { node } => {
                let node = self.whom(node);
                for group in self.groups_of(node) {
                    if let Some(resident) = self.node(node).resident_mut(group) {
                        resident.group.campaign();
                    }
                    self.input(node, group)?;
                }
                None
            }
        };
        Ok(undo)
    }

    fn cut(&mut self, is_cut: impl Fn(NodeId, NodeId) -> bool) -> Option<Undo> {
        let ids: Vec<_> = self.nodes.iter().map(|node| node.id).collect();
        let all = ids.iter().flat_map(|&from| ids.iter().map(move |&to| (from, to)));
        let links: BTreeSet<_> = all.filter(|&(from, to)| from != to && is_cut(from, to)).collect();
        self.net.cut(&links);
        Some(Undo::Links(links))
    }

    /// Who is meant, now.
    pub(crate) fn whom(&self, target: Target) -> NodeId {
        let count = self.nodes.len() as u64;
        let leader = || {
            let leads = |node: &&crate::node::Node| {
                let resident = node.resident(GroupId::FIRST_DATA);
                resident.is_some_and(|r| r.group.leadership().leader == Some(node.id))
            };
            // Of several, the one of the latest term is the one that counts.
            let term = |node: &&crate::node::Node| {
                node.resident(GroupId::FIRST_DATA).map(|r| r.group.leadership().term)
            };
            self.nodes.iter().filter(leads).max_by_key(term).map_or(NodeId(1), |node| node.id)
        };
        match target {
            Target::Node(NodeId(id)) => NodeId((id - 1) % count + 1),
            Target::Leader => leader(),
            Target::Follower(which) => NodeId((leader().value() - 1 + which) % count + 1),
        }
    }

    /// A cluster survives the loss of a minority only: no plan may lose more.
    pub(crate) fn may_lose(&self, node: NodeId) -> bool {
        // What a node that is down would say of its membership is not known here.
        if self.nodes[node.value() as usize - 1].process.is_none() {
            return false;
        }
        let residents = self.nodes.iter().filter_map(|at| at.process.as_ref());
        // What has panicked counts too: it will be loaded again.
        let mut residents =
            residents.flat_map(|process| process.residents.values().chain(process.dead.values()));
        self.may_move_without(node)
            && residents.all(|resident| {
                let in_force = resident.group.replica().membership();
                // A leader may promote learners before it can know that a node is gone.
                let mut promoted = in_force.clone();
                promoted.voters.extend(&in_force.promote);
                [in_force, &promoted, &resident.membership]
                    .into_iter()
                    .all(|membership| self.survives(membership, Some(node)))
            })
    }

    /// True when `membership` has a quorum of nodes that are not lost, and are not `node`.
    pub(crate) fn survives(&self, membership: &Membership, node: Option<NodeId>) -> bool {
        [&membership.voters, &membership.outgoing].into_iter().all(|half| {
            let gone = |id: &&NodeId| {
                let at = &self.nodes[id.value() as usize - 1];
                at.lost || at.damaged || Some(**id) == node
            };
            half.is_empty() || half.iter().filter(gone).count() * 2 < half.len()
        })
    }

    fn change_members(
        &mut self,
        add: &[Target],
        learn: &[Target],
        remove: &[Target],
        explicit: bool,
    ) -> Checked {
        let mut nodes: BTreeMap<NodeId, NodeChange> = BTreeMap::new();
        for &target in add {
            let node = self.whom(target);
            nodes.insert(node, NodeChange::Voter(node));
        }
        for &target in learn {
            let node = self.whom(target);
            nodes.insert(node, NodeChange::Learner { node, promote: true });
        }
        for &target in remove {
            let node = self.whom(target);
            nodes.insert(node, NodeChange::Remove(node));
        }
        let via = if explicit { Via::JointExplicit } else { Via::Auto };
        let change = MembershipChange { nodes: nodes.into_values().collect(), via };
        let leader = self.whom(Target::Leader);
        for group in self.groups_of(leader) {
            let Some(resident) = self.node(leader).resident(group) else { continue };
            let mut next = resident.group.replica().membership().clone();
            if next.is_joint() {
                // It has to be left first.
                self.change_member(leader, group, MembershipChange::leave())?;
                continue;
            }
            for change in &change.nodes {
                next.voters.remove(&change.node());
                if matches!(change, NodeChange::Voter(_)) {
                    next.voters.insert(change.node());
                }
            }
            if !next.voters.is_empty() && self.survives(&next, None) {
                self.change_member(leader, group, change.clone())?;
            }
        }
        Ok(())
    }

    /// Another group wants to live on a node; it has to be refused what another one owns.
    fn intrude(&mut self, node: NodeId) -> Checked {
        let start = key_of(self.random.u32(..self.plan.workload.keys));
        let range = Some(KeyRange { start, end: None });
        let descriptor = Descriptor { kind: KvKind::NAME.to_owned(), range };
        let intruder = GroupId(GroupId::FIRST_DATA.value() + 1);
        let at = &mut self.nodes[node.value() as usize - 1];
        let Some(process) = &mut at.process else { return Ok(()) };
        if process.host.admit(intruder, descriptor).is_ok() {
            self.checks.identity.on_host(node, &process.host)?;
            process.host.dismiss(intruder);
        }
        Ok(())
    }

    pub(crate) fn change_member(
        &mut self,
        node: NodeId,
        group: GroupId,
        change: MembershipChange,
    ) -> Checked {
        // Nobody waits for the answer: what comes of it shows in the log.
        let slot = Slot { request: 0, attempt: 0, gateway: node };
        if let Some(resident) = self.node(node).resident_mut(group) {
            resident.group.change_membership(change, slot);
        }
        self.input(node, group)
    }

    /// True when a planned crash falls on this effect.
    pub(crate) fn crashes_here(&mut self, node: NodeId) -> Result<bool, crate::check::Violation> {
        let at = self.node(node);
        let Some(planned) = &mut at.crash_after else { return Ok(false) };
        if planned.effects > 0 {
            planned.effects -= 1;
            return Ok(false);
        }
        let PlannedCrash { power, down_us, for_good, .. } = *planned;
        at.down_us = down_us;
        if for_good && self.may_lose(node) {
            self.node(node).lost = true;
        }
        self.stop(node, "crash between effects", power)?;
        Ok(true)
    }

    /// True when a planned crash falls on this step of an install.
    pub(crate) fn crashes_installing(
        &mut self,
        node: NodeId,
        step: u8,
    ) -> Result<bool, crate::check::Violation> {
        let Some((_, down_us)) = self.crash_installer.take_if(|(at, _)| *at == step) else {
            return Ok(false);
        };
        self.node(node).down_us = down_us;
        self.stop(node, "crash during an install", true)?;
        Ok(true)
    }

    /// Ends a process, and plans the start of the next one. Whoever waited for an answer through this node has
    /// lost the connection.
    pub(crate) fn stop(&mut self, node: NodeId, how: &'static str, power: bool) -> Checked {
        let at = &mut self.nodes[node.value() as usize - 1];
        let was_alive = at.process.is_some();
        let survived = at.stop(power, &mut self.random);
        let (life, lost) = (at.life, at.lost);
        let down_us = std::mem::replace(&mut at.down_us, RESTART_US).max(1);
        self.release_put_off(node);
        if let Some(survived) = survived {
            self.platter(node).crash(node, survived)?;
        }
        if was_alive {
            self.note(node, What::Stopped(how));
            let of_node = |id: &u64| {
                let request = &self.requests[id];
                request.gateway == node && !request.ended
            };
            let broken: Vec<_> = self.requests.keys().copied().filter(of_node).collect();
            for request in broken {
                self.finish(request, Finished::Unknown)?;
            }
            if !lost {
                self.queue.push(self.now_us + down_us, Event::Start { node, life });
            }
        }
        Ok(())
    }

    pub(crate) fn on_start(&mut self, node: NodeId, life: u64) -> Checked {
        let at = &mut self.nodes[node.value() as usize - 1];
        if at.process.is_some() || at.lost || at.life != life {
            return Ok(());
        }
        let is_first = !self.checks.platters.contains_key(&node);
        self.platter(node).sync_all(node)?;
        self.install_again(node)?;
        let opened = self.nodes[node.value() as usize - 1].open(&self.plan.cluster);
        let recovered = match opened {
            Ok(recovered) => recovered,
            // Fenced: it neither votes nor acknowledges until it is replaced.
            Err(OpenFailed::Damaged(_)) if self.node(node).damaged => {
                self.node(node).lost = true;
                self.note(node, What::Stopped("fenced: its log is damaged"));
                return Ok(());
            }
            Err(OpenFailed::Damaged(why) | OpenFailed::Inconsistent(why)) => {
                return Err(Oracle::Recovery.broken(format!("node {node} does not start: {why}")));
            }
        };
        if let Some(process) = &self.nodes[node.value() as usize - 1].process {
            self.checks.identity.on_host(node, &process.host)?;
        }
        if is_first {
            self.platter(node).found(&recovered);
        }
        self.platter(node).on_recovered(node, &recovered)?;
        self.counts.starts += 1;
        let now_us = self.now_us;
        self.node(node).trouble.begin(now_us);
        self.note(node, What::Started);
        let life = self.node(node).life;
        let tick_us = self.plan.cluster.tick_us;
        let first_us =
            if self.plan.cluster.ticks_aligned { tick_us } else { self.random.u64(1..=tick_us) };
        self.queue.push(self.now_us + first_us, Event::Tick { node, life });
        self.plan_flush(node);
        self.begin_moving(node);
        for group in self.groups_of(node) {
            let at = &self.nodes[node.value() as usize - 1];
            let Some(resident) = at.resident(group) else { continue };
            let checks = self.checks.group(group);
            checks.log.on_started(node, resident.group.replica());
            checks.apply.on_started(node, resident.applied.index);
            self.input(node, group)?;
        }
        Ok(())
    }

    pub(crate) fn on_resume(&mut self, node: NodeId) -> Checked {
        let now_us = self.now_us;
        let at = self.node(node);
        if at.paused_until.take().is_none() {
            return Ok(());
        }
        at.resumed_us = Some(now_us);
        at.trouble.begin(now_us);
        let missed = std::mem::take(&mut at.late_ticks);
        self.release_put_off(node);
        self.note(node, What::Resumed);
        if missed == 0 {
            return Ok(());
        }
        self.tick_awake(node, missed)
    }
}
