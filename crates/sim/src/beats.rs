//! The ticker of a node: it tells the other nodes that it is there and how its disk is, hears of them, ticks the groups
//! that are awake, and wakes those that cannot sleep on because nodes are gone. As on a node, a [`Wheel`] decides that,
//! from nothing but what the network brought.

use std::collections::BTreeMap;

use quorate_group::{FailureDetector, Heard, Wheel};
use quorate_types::NodeId;

use crate::check::Checked;
use crate::disks::Beat;
use crate::event::Event;
use crate::plan::Cluster;
use crate::world::World;

/// Beats in an election timeout, so that a lost one makes nobody pass for gone.
const BEATS_PER_ELECTION: u32 = 8;

/// Sleeping groups that hear of a loss at one tick: few, so that others have to wait for theirs.
const TOLD_PER_TICK_MAX: usize = 1;

/// What a process hears of the other nodes.
pub(crate) struct Hearing {
    pub(crate) wheel: Wheel,
    heard: BTreeMap<NodeId, Heard>,
    /// Beats on their way here, or in the socket.
    arriving: Vec<Arriving>,
    ticks: u32,
}

/// A beat under way.
struct Arriving {
    at_us: u64,
    from: NodeId,
    /// The life of the sender.
    session: u64,
    beat: Option<Beat>,
}

impl Hearing {
    /// Of a process that has heard nobody yet.
    pub(crate) fn new(node: NodeId, cluster: &Cluster) -> Self {
        let nodes = FailureDetector::new(cluster.election_ticks_min);
        Self {
            wheel: Wheel::new(node, nodes, TOLD_PER_TICK_MAX),
            heard: BTreeMap::new(),
            arriving: Vec::new(),
            ticks: 0,
        }
    }

    /// Something has come from a process of `from`.
    pub(crate) fn on_datagram(&mut self, from: NodeId, session: u64) {
        let heard = self.heard.entry(from).or_insert(Heard { session, datagrams: 0 });
        if session > heard.session {
            *heard = Heard { session, datagrams: 0 };
        }
        // What an earlier process sent comes over no connection that is open now.
        heard.datagrams += u64::from(session == heard.session);
    }

    /// Takes in what has arrived by now, and returns what it says.
    fn receive(&mut self, now_us: u64) -> Vec<(NodeId, Beat)> {
        let mut arrived = Vec::new();
        self.arriving.retain(|arriving| {
            let waits = arriving.at_us > now_us;
            if !waits {
                arrived.push((arriving.at_us, arriving.from, arriving.session, arriving.beat));
            }
            waits
        });
        arrived.sort_by_key(|&(at_us, ..)| at_us);
        let mut told = Vec::new();
        for (_, from, session, beat) in arrived {
            self.on_datagram(from, session);
            told.extend(beat.map(|beat| (from, beat)));
        }
        told
    }
}

impl World {
    pub(crate) fn on_tick(&mut self, node: NodeId, life: u64) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let tick_us = self.plan.cluster.tick_us;
        let span_us = self.node(node).clock.true_span_us(tick_us);
        self.queue.push(self.now_us + span_us, Event::Tick { node, life });
        self.hear(node)?;
        if !self.is_alive(node, life) {
            return Ok(());
        }
        self.tick_awake(node, 1)?;
        if self.is_alive(node, life) {
            self.tick_kinds(node);
        }
        Ok(())
    }

    /// Ticks those groups of a node that are awake.
    pub(crate) fn tick_awake(&mut self, node: NodeId, ticks: u64) -> Checked {
        let Some(process) = &self.node(node).process else { return Ok(()) };
        let wheel = &process.hearing.wheel;
        let (awake, asleep) = (wheel.awake().collect::<Vec<_>>(), wheel.asleep_count());
        self.counts.asleep += asleep as u64;
        for group in awake {
            if let Some(resident) = self.node(node).resident_mut(group) {
                (0..ticks).for_each(|_| resident.group.tick());
            }
            self.input(node, group)?;
        }
        Ok(())
    }

    /// What is heard by now, and what follows from it for groups.
    fn hear(&mut self, node: NodeId) -> Checked {
        let is_watched = self.plan.disk.watched;
        if self.plan.cluster.quiesce_ticks == 0 && !is_watched {
            return Ok(());
        }
        let now_us = self.now_us;
        let others: Vec<_> = self.nodes.iter().map(|at| at.id).filter(|&id| id != node).collect();
        let Some(process) = &mut self.node(node).process else { return Ok(()) };
        for (from, beat) in process.hearing.receive(now_us) {
            process.disks.hear(from, beat, now_us);
        }
        let hearing = &mut process.hearing;
        let heard = others.iter().map(|peer| (*peer, hearing.heard.get(peer).copied())).collect();
        let told = hearing.wheel.tick(&heard);
        for (group, lost) in told {
            self.counts.told += 1;
            if let Some(resident) = self.node(node).resident_mut(group) {
                resident.group.nodes_lost(&lost);
            }
            self.input(node, group)?;
        }
        let beat = if is_watched { self.look_at_disk(node)? } else { None };
        let beat_ticks = (self.plan.cluster.election_ticks_min / BEATS_PER_ELECTION).max(1);
        let Some(process) = &mut self.node(node).process else { return Ok(()) };
        process.hearing.ticks += 1;
        if beat.is_some() || process.hearing.ticks.is_multiple_of(beat_ticks) {
            others.into_iter().for_each(|peer| self.send_beat(node, peer, beat));
        }
        Ok(())
    }

    /// No event of its own: the receiver looks at its next tick.
    fn send_beat(&mut self, from: NodeId, to: NodeId, beat: Option<Beat>) {
        let Some(at_us) = self.net.send_datagram(self.now_us, from, to) else { return };
        let session = self.node(from).life;
        if let Some(process) = &mut self.node(to).process {
            process.hearing.arriving.push(Arriving { at_us, from, session, beat });
        }
    }
}
