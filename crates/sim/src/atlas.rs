//! The placement map as it is in truth, and operators who change it: nodes are added, promoted, removed and replaced
//! while everything else goes wrong. What a cluster cannot survive is neither asked for nor done to it.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_placement::plan::{Step, View, Wanted, next_step};
use quorate_placement::{Answer as MapAnswer, PlacementMap, Refused, Standing};
use quorate_raft::Role;
use quorate_types::{GroupId, Incarnation, Membership, NodeId};

use crate::check::{Checked, Oracle, Violation};
use crate::client::{Ask, MapChange};
use crate::fault::FaultKind;
use crate::node::Resident;
use crate::requests::OPERATORS;
use crate::world::World;

/// How often an operator asks again when another change of the map was quicker.
const TRIES_MAX: u32 = 5;

/// Steps of a group that may follow before its leader knows of a loss.
const STEPS_AHEAD: usize = 4;

/// What is known of the map from outside.
#[derive(Debug, Default)]
pub(crate) struct Atlas {
    /// The newest version that any replica has applied.
    pub(crate) latest: Option<PlacementMap>,
    /// Changes that were asked for, each with the version that it was made for: they may lie in a log.
    asked: Vec<(u64, MapChange)>,
}

impl Atlas {
    /// True when a node was added, and has not joined.
    pub(crate) fn awaits(&self, node: NodeId) -> bool {
        let known = self.latest.as_ref().and_then(|map| map.node(node));
        known.is_some_and(|node| !node.has_joined() && node.standing != Standing::Leaving)
    }

    /// A change leaves for group 1.
    pub(crate) fn on_asked(&mut self, expected: u64, change: MapChange) {
        self.asked.push((expected, change));
    }

    fn see(&mut self, map: PlacementMap) {
        let version = map.version();
        if self.latest.as_ref().is_none_or(|known| known.version() < version) {
            self.latest = Some(map);
            self.asked.retain(|(expected, _)| *expected >= version);
        }
    }

    /// The map, and every one that what is under way may make of it.
    fn possible(&self) -> Vec<PlacementMap> {
        let Some(latest) = &self.latest else { return Vec::new() };
        let changed = self.asked.iter().filter(|(expected, _)| *expected == latest.version());
        let changed = changed.filter_map(|(_, change)| made_by(latest, *change));
        std::iter::once(latest.clone()).chain(changed).collect()
    }
}

/// The map that a change makes.
fn made_by(map: &PlacementMap, change: MapChange) -> Option<PlacementMap> {
    let mut map = map.clone();
    let done = match change {
        MapChange::Add { standing } => map.add_node("another", "another", standing),
        MapChange::Promote(id) => map.promote_node(id),
        MapChange::Remove(id) => map.remove_node(id),
        MapChange::Replace(id) => map.replace_node(id, ""),
        MapChange::Join(id) => {
            let (name, address) = map
                .node(id)
                .map(|node| (node.name.clone(), node.peer_address.clone()))
                .unwrap_or_default();
            map.join_node(&name, &address, Incarnation(id.value()))
        }
        MapChange::Found { .. } | MapChange::Update => return None,
    };
    done.is_ok().then_some(map)
}

impl World {
    /// The map as a node's replica has it.
    pub(crate) fn map_of(&mut self, node: NodeId) -> Result<Option<PlacementMap>, Violation> {
        let query = quorate_placement::PlacementKind::whole_map();
        let answer = self.look_up(node, GroupId::PLACEMENT, &query)?;
        MapAnswer::map(&answer).map_err(|error| Oracle::Placement.broken(error.to_string()))
    }

    /// A node has applied something to the map.
    pub(crate) fn survey(&mut self, node: NodeId) -> Checked {
        if !self.plan.cluster.mover {
            return Ok(());
        }
        if let Some(map) = self.map_of(node)? {
            self.checks.identity.on_map(&map)?;
            self.atlas.see(map);
        }
        Ok(())
    }

    /// An operator wants the map changed. `number` is that of the fault.
    pub(crate) fn operate(&mut self, number: usize, kind: &FaultKind, tries: u32) -> Checked {
        let Some(map) = &self.atlas.latest else { return Ok(()) };
        let next = map.allotted().value().max(self.plan.cluster.voters) + 1;
        let has_spare = next <= self.nodes.len() as u64;
        let change = match kind {
            FaultKind::AddNode { learner } if has_spare => {
                let standing = if *learner { Standing::Learner } else { Standing::Voter };
                MapChange::Add { standing }
            }
            FaultKind::PromoteNode => match map.standing(Standing::Learner).next() {
                Some(node) => MapChange::Promote(node.id),
                None => return Ok(()),
            },
            FaultKind::RemoveNode { node } => MapChange::Remove(self.whom(*node)),
            FaultKind::ReplaceNode { node } if has_spare => MapChange::Replace(self.whom(*node)),
            _ => return Ok(()),
        };
        let Some(made) = made_by(map, change) else { return Ok(()) };
        // As `quorate member remove` has it: who stays and is there is a majority.
        if !self.can_serve(&made, None) {
            return Ok(());
        }
        let expected = map.version();
        let running: Vec<_> =
            self.nodes.iter().filter(|at| at.process.is_some()).map(|at| at.id).collect();
        if running.is_empty() {
            return Ok(());
        }
        let gateway = running[self.random.usize(..running.len())];
        self.operators.insert(number, tries);
        self.ask(OPERATORS + number as u32, gateway, Ask::ChangeMap { expected, change })
    }

    /// An operator has an answer: it asks again when another change was quicker.
    pub(crate) fn on_operated(&mut self, number: usize, outcome: Option<&Bytes>) -> Checked {
        let tries = self.operators.remove(&number).unwrap_or(TRIES_MAX);
        let answer = outcome.map(MapAnswer::parse);
        self.counts.map_changes += u64::from(matches!(answer, Some(Ok(_))));
        let is_late = matches!(answer, Some(Err(Refused::Conflict { .. })));
        if !is_late || tries >= TRIES_MAX || self.healing.is_some() {
            return Ok(());
        }
        let kind = self.plan.faults[number].kind.clone();
        self.operate(number, &kind, tries + 1)
    }

    /// True when the voters that a map wants can decide, without the nodes that are lost, and without `node`.
    fn can_serve(&self, map: &PlacementMap, node: Option<NodeId>) -> bool {
        self.survives(&Membership::of_voters(Wanted::of(map, GroupId::FIRST_DATA).voters), node)
    }

    /// True when groups can go where the map wants them, or may want them soon, without `node`.
    pub(crate) fn may_move_without(&self, node: NodeId) -> bool {
        self.atlas.possible().iter().all(|map| {
            let processes = self.nodes.iter().filter_map(|at| Some((at.id, at.process.as_ref()?)));
            let mut residents = processes
                .flat_map(|(id, process)| process.residents.values().map(move |r| (id, r)));
            self.can_serve(map, Some(node))
                && residents.all(|(leader, resident)| {
                    let wanted = Wanted::of(map, resident.group.id());
                    let ahead = self.ahead(&wanted, leader, resident);
                    ahead.iter().all(|membership| self.survives(membership, Some(node)))
                })
        })
    }

    /// The memberships that a leader may take a group through before it knows of a loss.
    fn ahead(&self, wanted: &Wanted, leader: NodeId, resident: &Resident) -> Vec<Membership> {
        let mut found = Vec::new();
        for all_caught_up in [false, true] {
            let mut leader = leader;
            let mut now = resident.group.replica().membership().clone();
            now.outgoing.clear();
            for _ in 0..STEPS_AHEAD {
                let learners = now.learners.clone();
                let caught_up = if all_caught_up { learners } else { BTreeSet::new() };
                let there = now.nodes();
                let (membership, heard, there) = (&now, &there, &there);
                let view = View { leader, membership, caught_up: &caught_up, heard, there };
                match next_step(wanted, view) {
                    Step::Change(next) => {
                        found.push(next.clone());
                        now = next;
                    }
                    Step::Transfer(heirs) => leader = heirs.first().copied().unwrap_or(leader),
                    Step::Done | Step::Wait => break,
                }
            }
        }
        found
    }

    /// True when every group is where the map wants it, as far as that is possible, and the map knows.
    pub(crate) fn follows_map(&self) -> bool {
        if !self.plan.cluster.mover {
            return true;
        }
        let Some(map) = &self.atlas.latest else { return false };
        let is_lost = |node: &NodeId| self.nodes[node.value() as usize - 1].lost;
        if self.nodes.iter().any(|at| !at.lost && self.atlas.awaits(at.id)) {
            return false;
        }
        map.groups().all(|group| {
            let Some((leader, resident)) = self.leader_of(group.id) else { return false };
            let known = self.nodes[leader.value() as usize - 1].map.as_ref();
            let membership = resident.group.replica().membership();
            let caught_up = membership.learners.iter().copied().filter(|node| !is_lost(node));
            let caught_up = caught_up.collect();
            let there = membership.nodes().into_iter().filter(|node| !is_lost(node)).collect();
            let wanted = Wanted::of(map, group.id);
            let step = next_step(
                &wanted,
                View { leader, membership, caught_up: &caught_up, heard: &there, there: &there },
            );
            // Whom it waits for is lost, or was never there.
            let is_there = matches!(step, Step::Done | Step::Wait) && !membership.is_joint();
            let is_told = quorate_placement::follow::untold(group, Some(membership)).is_none();
            is_there && is_told && known.is_some_and(|known| known.version() == map.version())
        })
    }

    /// Where groups are, and where the map wants them.
    pub(crate) fn describe_map(&self) -> String {
        let Some(map) = self.atlas.latest.as_ref().filter(|_| self.plan.cluster.mover) else {
            return String::new();
        };
        let mut text =
            format!("; map {}: {:?}", map.version(), Wanted::of(map, GroupId::PLACEMENT));
        for group in map.groups() {
            let Some((leader, resident)) = self.leader_of(group.id) else { continue };
            let known = self.nodes[leader.value() as usize - 1].map.as_ref();
            text += &format!(
                "; g{} told {:?} at {}, led by {leader} with map {:?}: {:?}",
                group.id,
                group.replicas,
                group.reported_at,
                known.map(PlacementMap::version),
                resident.group.replica().membership(),
            );
        }
        let lost = self.nodes.iter().filter(|at| at.lost).map(|at| at.id);
        text + &format!("; lost {:?}", lost.collect::<Vec<_>>())
    }

    fn leader_of(&self, group: GroupId) -> Option<(NodeId, &Resident)> {
        let residents = self.nodes.iter().filter_map(|at| Some((at.id, at.resident(group)?)));
        let leads = |resident: &Resident| resident.group.leadership().role == Role::Leader;
        let leaders = residents.filter(|(_, resident)| leads(resident));
        leaders.max_by_key(|(_, resident)| resident.group.leadership().term)
    }
}
