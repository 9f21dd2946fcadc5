//! A replica whose state is wrong: an apply of it wrote something else than what its log says, as if a bit had flipped in
//! memory. The replicas must find that by their digests, and the wrong one must be rebuilt.
//!
//! What such a replica says before that is not judged (nobody can know it then); from the moment on in which it distrusts
//! itself nobody may read it. That only the right one is distrusted, and that it is found at all, is checked.

use bytes::Bytes;
use prost::Message;
use quorate_group::{Divergence, Generation, Refusal};
use quorate_types::kv::{Command, command};
use quorate_types::{GroupId, LogIndex, NodeId, SnapshotMeta};

use crate::check::{Checked, Oracle, Violation};
use crate::client::Ask;
use crate::event::{Answer, Event};
use crate::requests::NOBODY;
use crate::snapshot::{Snapshot, reopen, replace_rows};
use crate::users::may_be_refused;
use crate::world::World;

/// So many writes in quiet, and a wrong state must be found and replaced.
const NUDGES_MAX: u32 = 500;

/// What is wrong with a state.
#[derive(Default, Debug)]
pub(crate) struct Spoil {
    /// The next put that is applied writes another value.
    pub(crate) is_planned: bool,
    /// The first entry whose rows are wrong.
    pub(crate) at: Option<LogIndex>,
}

impl Spoil {
    /// The command with another value, if it is due and puts one.
    pub(crate) fn alter(&mut self, index: LogIndex, bytes: &Bytes) -> Option<Bytes> {
        if !self.is_planned {
            return None;
        }
        let mut command = Command::decode(bytes.clone()).ok()?;
        let Some(command::Body::Put(put)) = &mut command.body else { return None };
        if may_be_refused(put) {
            // Nothing would be written.
            return None;
        }
        let mut value = put.value.to_vec();
        *value.first_mut()? ^= 1;
        put.value = value.into();
        *self = Self { is_planned: false, at: Some(index) };
        Some(Bytes::from(command.encode_to_vec()))
    }

    /// A process finds its state applied up to here: what was spoiled may have been lost, and be applied again.
    pub(crate) fn recover(&mut self, applied: LogIndex) {
        self.is_planned = false;
        self.at = self.at.filter(|&at| at <= applied);
    }
}

impl World {
    /// One replica of the data group is going to write something wrong, if the others can find out.
    pub(crate) fn spoil(&mut self, node: NodeId) {
        let is_sound = |at: &crate::node::Node| {
            !at.lost && !at.damaged && at.spoil.at.is_none() && !at.spoil.is_planned
        };
        if !self.nodes.iter().all(is_sound) {
            return;
        }
        let at = self.node(node);
        let Some(resident) = at.resident(GroupId::FIRST_DATA) else { return };
        let membership = resident.group.replica().membership();
        if membership.voters.len() >= 3 && !membership.is_joint() && membership.contains(node) {
            at.spoil.is_planned = true;
        }
    }

    /// True while the state of a group on a node is wrong.
    pub(crate) fn is_spoiled(&self, node: NodeId, group: GroupId) -> bool {
        let at = &self.nodes[node.value() as usize - 1];
        group == GroupId::FIRST_DATA && at.spoil.at.is_some()
    }

    /// What a wrong state says is not judged: nobody hears it.
    pub(crate) fn unjudged(&self, node: NodeId, group: GroupId, answer: Answer) -> Answer {
        if !self.is_spoiled(node, group) {
            return answer;
        }
        match answer {
            Answer::Written { .. } => Answer::Refused(Refusal::Unknown),
            Answer::Read { .. } => Answer::NotSent,
            Answer::Refused(_) | Answer::NotSent => answer,
        }
    }

    /// Two replicas differ: one of them must have been spoiled.
    pub(crate) fn on_diverged(
        &mut self,
        node: NodeId,
        group: GroupId,
        found: &Divergence,
    ) -> Checked {
        let was_spoiled =
            |node| self.spoiled.get(&node).is_some_and(|&since| since <= found.own.at.index);
        let is_known =
            group == GroupId::FIRST_DATA && (was_spoiled(node) || was_spoiled(found.peer));
        Oracle::StateMachineSafety.check(is_known, || format!("group {group}: {found:?}"))
    }

    pub(crate) fn on_distrusted(&mut self, node: NodeId, group: GroupId, is: bool) -> Checked {
        self.counts.distrusted += u64::from(is);
        self.counts.rebuilt += u64::from(!is);
        // While a snapshot takes its place the rows are right already, and the group does not know it yet.
        let installs = self.node(node).installing.as_ref().is_some_and(|(of, _)| *of == group);
        let as_it_is = self.is_spoiled(node, group) == is || installs;
        Oracle::StateMachineSafety.check(as_it_is, || {
            format!("node {node}, group {group}: distrusted {is}, but wrong is {}", !is)
        })
    }

    /// A replica wants the rows of the snapshot that was announced to it, and to keep its log.
    pub(crate) fn begin_rebuild(
        &mut self,
        node: NodeId,
        group: GroupId,
        meta: &SnapshotMeta,
    ) -> Checked {
        self.checks.on_snapshot(group, node, meta)?;
        let at_us = self.now_us + self.plan.disk.sync_us + 1;
        let at = self.node(node);
        let life = at.life;
        let found = at.received.remove(&group).filter(|found| found.meta == *meta);
        let Some(resident) = at.resident_mut(group) else { return Ok(()) };
        let generation = resident.generation;
        match found {
            Some(snapshot) => {
                let snapshot = Box::new(snapshot);
                self.queue.push(at_us, Event::Rebuild { node, life, group, generation, snapshot });
                Ok(())
            }
            None => {
                resident.group.rebuild_failed();
                self.input(node, group)
            }
        }
    }

    /// The rows are replaced, in one change.
    pub(crate) fn on_rebuild(
        &mut self,
        node: NodeId,
        life: u64,
        group: GroupId,
        generation: Generation,
        snapshot: &Snapshot,
    ) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let at = &mut self.nodes[node.value() as usize - 1];
        let is_current = |at: &crate::node::Node| {
            at.resident(group).is_some_and(|resident| resident.generation == generation)
        };
        if !is_current(&*at) {
            return Ok(());
        }
        replace_rows(at, group, snapshot)?;
        reopen(at, group, snapshot)?;
        at.spoil.at = None;
        let Some(resident) = at.resident_mut(group) else { return Ok(()) };
        resident.applied = snapshot.meta.last;
        resident.membership = snapshot.meta.membership.clone();
        resident.sweeping = true;
        // What was committed by now may have been read here before.
        resident.caught_up_at = resident.group.replica().commit();
        resident.group.rebuilt(&snapshot.meta);
        let checks = self.checks.groups.get_mut(&group);
        if let (Some(checks), Some(resident)) = (checks, at.resident(group)) {
            checks.apply.on_started(node, snapshot.meta.last.index);
            checks.log.on_started(node, resident.group.replica());
        }
        self.input(node, group)
    }

    /// While a replica is wrong, somebody writes, so that there is a checkpoint. False when all are right.
    pub(crate) fn nudge_spoiled(&mut self) -> Result<bool, Violation> {
        let wrong = self.nodes.iter().find(|at| !at.lost && at.spoil.at.is_some());
        let Some(wrong) = wrong.map(|at| at.id) else { return Ok(false) };
        self.nudges += 1;
        Oracle::Liveness.check(self.nudges <= NUDGES_MAX, || {
            format!("the state of node {wrong} is wrong, and nobody does anything about it")
        })?;
        let others = self.nodes.iter().filter(|at| at.id != wrong && at.process.is_some());
        let others: Vec<_> = others.map(|at| at.id).collect();
        let Some(&gateway) = others.get(self.nudges as usize % others.len().max(1)) else {
            return Ok(true);
        };
        // A leader that does not know yet sends no snapshots here, and who needs one could not judge it.
        if let Some(resident) = self.node(wrong).resident_mut(GroupId::FIRST_DATA) {
            // It may not lead.
            let _ = resident.group.transfer_leadership(gateway);
            self.input(wrong, GroupId::FIRST_DATA)?;
        }
        self.last_value += 1;
        let value = self.last_value;
        self.ask(NOBODY, gateway, Ask::Put { key: 0, value })?;
        Ok(true)
    }
}
