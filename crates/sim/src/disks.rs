//! What a node knows of disks, and what its groups hear of them: as `node::disks`, by the rules of
//! [`quorate_group::disk`]. Free space is counted in hundredths of a reserve.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_group::disk::is_quorum;
use quorate_group::{Fitness, Group, Room, Stall};
use quorate_raft::Role;
use quorate_types::{GroupId, NodeId};

use crate::check::{Checked, Oracle, Violation};
use crate::world::World;

/// A reserve.
const RESERVE: u64 = 100;

/// What is free on a disk that nothing is wrong with.
const FREE: u64 = 10 * RESERVE;

/// How often the others are told though nothing has changed.
const BEAT_US: u64 = 500_000;

/// Who has told of its disk, and then nothing for so long, does not count as having room.
const HEARD_US_MAX: u64 = 5_000_000;

/// So many ticks after its disk is all but full a node must have told its groups.
const TOLD_TICKS_MAX: u64 = 3;

/// What a node tells of its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Beat {
    room: Room,
    unfit: bool,
}

/// What a process knows of the disks of all nodes.
#[derive(Default)]
pub(crate) struct Disks {
    heard: BTreeMap<NodeId, (u64, Beat)>,
    /// The nodes whose room is not ample.
    rooms: BTreeMap<NodeId, Room>,
    /// The other nodes that cannot lead.
    unfit: BTreeSet<NodeId>,
    stall: Stall,
    fitness: Fitness,
    told: Option<Beat>,
    beaten_us: u64,
    /// Ticks since which the log hangs.
    hung_ticks: u32,
}

/// What is wrong with a disk, beside slow syncs.
#[derive(Default, Debug)]
pub(crate) struct Trouble {
    /// What is free, by each fault that says something about it.
    levels: Vec<u64>,
    /// No sync ends before this.
    pub(crate) hangs_until_us: u64,
    /// Since when its process could know that the disk is all but full.
    exhausted_since_us: Option<u64>,
}

impl Trouble {
    /// Less is free from now on.
    pub(crate) fn fall(&mut self, percent: u32, now_us: u64) {
        self.levels.push(u64::from(percent) * RESERVE / 100);
        self.settle(now_us);
    }

    /// One that fell is over.
    pub(crate) fn rise(&mut self, percent: u32, now_us: u64) {
        let level = u64::from(percent) * RESERVE / 100;
        if let Some(at) = self.levels.iter().position(|&found| found == level) {
            self.levels.swap_remove(at);
        }
        self.settle(now_us);
    }

    /// A process begins, or goes on: it could know nothing before.
    pub(crate) fn begin(&mut self, now_us: u64) {
        self.exhausted_since_us = None;
        self.settle(now_us);
    }

    fn room(&self) -> Room {
        Room::of(self.levels.iter().copied().min().unwrap_or(FREE), RESERVE)
    }

    fn settle(&mut self, now_us: u64) {
        self.exhausted_since_us =
            (self.room() == Room::Exhausted).then(|| self.exhausted_since_us.unwrap_or(now_us));
    }
}

impl Disks {
    /// A peer tells how it is.
    pub(crate) fn hear(&mut self, from: NodeId, beat: Beat, now_us: u64) {
        self.heard.insert(from, (now_us, beat));
    }

    /// A group begins: it hears how things are.
    pub(crate) fn show<P, R>(&self, group: &mut Group<P, R>) {
        group.set_fitness(self.fitness, &self.unfit);
    }

    fn room_of(&self, node: NodeId) -> Room {
        self.rooms.get(&node).copied().unwrap_or(Room::Ample)
    }

    fn look(&mut self, node: NodeId, room: Room, now_us: u64) {
        let room_of = |at_us: u64, beat: Beat| match now_us - at_us > HEARD_US_MAX {
            true => beat.room.min(Room::Short),
            false => beat.room,
        };
        let heard = self.heard.iter().map(|(&peer, &(at_us, beat))| (peer, room_of(at_us, beat)));
        self.rooms = heard.chain([(node, room)]).filter(|(_, room)| *room != Room::Ample).collect();
        let unfit = self.heard.iter().filter(|(_, (_, beat))| beat.unfit);
        self.unfit = unfit.map(|(&peer, _)| peer).collect();
    }
}

impl World {
    /// A node looks at its disk, and tells its groups. Returns what the other nodes are to be told.
    pub(crate) fn look_at_disk(&mut self, node: NodeId) -> Result<Option<Beat>, Violation> {
        let now_us = self.now_us;
        let cluster = &self.plan.cluster;
        let timeout_us = cluster.tick_us * u64::from(cluster.election_ticks_min);
        let at = self.node(node);
        let room = at.trouble.room();
        let Some(process) = &mut at.process else { return Ok(None) };
        let age_us = process.wal.oldest_unsynced_us().map_or(0, |since_us| now_us - since_us);
        let disks = &mut process.disks;
        let stalled = disks.stall.note(now_us, age_us, timeout_us);
        let hangs = age_us >= timeout_us / 4 * 3;
        disks.hung_ticks = if hangs { disks.hung_ticks + 1 } else { 0 };
        let fitness = Fitness::of(room, stalled);
        let changed = std::mem::replace(&mut disks.fitness, fitness) != fitness;
        disks.look(node, room, now_us);
        let beat = Beat { room, unfit: fitness != Fitness::Fit };
        let is_due = disks.told != Some(beat) || now_us - disks.beaten_us >= BEAT_US;
        if is_due {
            (disks.told, disks.beaten_us) = (Some(beat), now_us);
        }
        self.tell_fitness(node, fitness, changed)?;
        self.check_handed_over(node)?;
        Ok(is_due.then_some(beat))
    }

    /// All groups when something has changed, else those that still lead though they should not.
    fn tell_fitness(&mut self, node: NodeId, fitness: Fitness, changed: bool) -> Checked {
        if fitness == Fitness::Fit && !changed {
            return Ok(());
        }
        self.counts.unfit += u64::from(changed && fitness != Fitness::Fit);
        for group in self.groups_of(node) {
            let Some(process) = &mut self.node(node).process else { return Ok(()) };
            let Some(resident) = process.residents.get_mut(&group) else { continue };
            if changed || resident.group.leadership().role == Role::Leader {
                resident.group.set_fitness(fitness, &process.disks.unfit);
                self.input(node, group)?;
            }
        }
        Ok(())
    }

    /// True when `command` must be refused because disks are nearly full. `should` says whether it is one that
    /// grows the state: what makes room passes.
    pub(crate) fn refuses_growth(
        &mut self,
        node: NodeId,
        group: GroupId,
        command: &Bytes,
        should: bool,
    ) -> Result<bool, Violation> {
        let Some(process) = &mut self.node(node).process else { return Ok(false) };
        let Some(resident) = process.residents.get_mut(&group) else { return Ok(false) };
        let (disks, replica) = (&process.disks, resident.group.replica());
        if replica.role() != Role::Leader {
            return Ok(false);
        }
        if disks.rooms.is_empty() {
            resident.growth = Default::default();
            return Ok(false);
        }
        let membership = replica.membership();
        let room_of = |node| disks.room_of(node);
        let grows = resident.kind.grows(command);
        let refuses = resident.growth.refuses(membership, room_of) && grows;
        let has_room = is_quorum(membership, |node| disks.room_of(node) >= Room::Enough);
        Oracle::Disks.check(refuses || has_room || !should, || {
            format!("node {node} takes what grows group {group}: {:?}", disks.rooms)
        })?;
        Oracle::Disks.check(!refuses || should, || {
            format!("node {node} refuses what makes room in group {group}")
        })?;
        self.counts.refused_no_space += u64::from(refuses);
        Ok(refuses)
    }

    /// A group on a disk that is all but full neither takes entries nor applies any.
    pub(crate) fn check_room(&self, node: NodeId, group: GroupId, what: &str) -> Checked {
        let at = &self.nodes[node.value() as usize - 1];
        // A clock that runs slow has longer ticks.
        let told_us = self.plan.cluster.tick_us * TOLD_TICKS_MAX;
        let since_us = at.trouble.exhausted_since_us.filter(|_| self.plan.disk.watched);
        Oracle::Disks.check(since_us.is_none_or(|since| self.now_us - since <= told_us), || {
            format!("node {node}, group {group}: {what} on a disk that is full since {since_us:?}")
        })
    }

    /// Whoever leads on a disk that hangs has handed over in time, if there is anybody who is better off.
    fn check_handed_over(&self, node: NodeId) -> Checked {
        let Some(process) = &self.nodes[node.value() as usize - 1].process else { return Ok(()) };
        let disks = &process.disks;
        if disks.hung_ticks <= 2 * self.plan.cluster.election_ticks_min {
            return Ok(());
        }
        for (group, resident) in &process.residents {
            let replica = resident.group.replica();
            let is_fit = |peer| peer != node && !disks.unfit.contains(&peer);
            let should = !resident.turn_due && is_quorum(replica.membership(), is_fit);
            Oracle::Disks.check(!should || replica.role() != Role::Leader, || {
                format!("node {node} leads group {group} on, though its disk hangs")
            })?;
        }
        Ok(())
    }
}
