//! [`Wheel`]: which groups of a node are ticked, and which sleeping ones must hear that nodes are gone.

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::{GroupId, NodeId};

use crate::failure_detector::{FailureDetector, Heard};

/// The groups of a node, awake and asleep.
///
/// Only those that are awake are ticked: a group turns with the wheel from its admission or its waking on,
/// until its turn says that it sleeps. Asleep, a group does not notice that a node is gone. So the
/// wheel watches over the nodes, and when one is lost it names the groups that cannot go on as they are,
/// for [`Group::nodes_lost`](crate::Group::nodes_lost): first those that the lost node led, since nobody
/// serves them, then those that are led here, since they may have lost their quorum. A follower whose
/// leader is there has nothing to do. They are named a few at each tick: thousands of elections at once
/// would hold up whatever else the nodes do.
///
/// Invariants:
/// - A group is awake or asleep or not here.
/// - Whoever is to be told is asleep.
#[derive(Debug)]
pub struct Wheel {
    node: NodeId,
    told_per_tick_max: usize,
    awake: BTreeSet<GroupId>,
    /// With the leader of each.
    asleep: BTreeMap<GroupId, NodeId>,
    nodes: FailureDetector,
    to_tell: BTreeSet<(Concern, GroupId)>,
}

/// Why a group should hear of a loss; the more urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Concern {
    /// Its leader was lost.
    Leader,
    /// It is led here, by a replica that may have lost its quorum.
    Quorum,
}

impl Wheel {
    /// The wheel of `node` without groups, which tells at most `told_per_tick_max` of them of a loss at
    /// each tick.
    ///
    /// # Panics
    /// When nobody could ever be told.
    #[must_use]
    pub fn new(node: NodeId, nodes: FailureDetector, told_per_tick_max: usize) -> Self {
        assert!(told_per_tick_max > 0, "node {node} would tell no group of a loss");
        Self {
            node,
            told_per_tick_max,
            awake: BTreeSet::new(),
            asleep: BTreeMap::new(),
            nodes,
            to_tell: BTreeSet::new(),
        }
    }

    /// A group is here and awake: it is new, or it has woken.
    pub fn on_awake(&mut self, group: GroupId) {
        self.forget(group);
        self.awake.insert(group);
    }

    /// A group has fallen asleep under `leader`. What was lost before that is told to it too.
    pub fn on_asleep(&mut self, group: GroupId, leader: NodeId) {
        self.forget(group);
        self.asleep.insert(group, leader);
        if self.nodes.is_gone(leader) {
            self.to_tell.insert((Concern::Leader, group));
        } else if leader == self.node && self.nodes.gone().next().is_some() {
            self.to_tell.insert((Concern::Quorum, group));
        }
    }

    /// A group is not here any more.
    pub fn on_gone(&mut self, group: GroupId) {
        self.forget(group);
    }

    /// A tick has passed; `heard` as for [`FailureDetector::tick`]. Returns the groups that must hear of a
    /// loss now, with the nodes that are lost, the most urgent first.
    pub fn tick(
        &mut self,
        heard: &BTreeMap<NodeId, Option<Heard>>,
    ) -> Vec<(GroupId, BTreeSet<NodeId>)> {
        let lost = self.nodes.tick(heard);
        if !lost.is_empty() {
            self.to_tell.extend(self.asleep.iter().filter_map(|(&group, leader)| {
                if lost.contains(leader) {
                    Some((Concern::Leader, group))
                } else {
                    (*leader == self.node).then_some((Concern::Quorum, group))
                }
            }));
        }
        if self.to_tell.is_empty() {
            return Vec::new();
        }
        let gone: BTreeSet<_> = self.nodes.gone().collect();
        let mut told = Vec::new();
        while told.len() < self.told_per_tick_max
            && let Some((concern, group)) = self.to_tell.pop_first()
        {
            let mut lost = gone.clone();
            // It may be heard again, but the process that is heard leads nothing.
            if concern == Concern::Leader {
                lost.extend(self.asleep.get(&group));
            }
            if !lost.is_empty() {
                told.push((group, lost));
            }
        }
        told
    }

    /// True while nothing is heard of `node`; see [`FailureDetector::is_gone`].
    #[must_use]
    pub fn is_gone(&self, node: NodeId) -> bool {
        self.nodes.is_gone(node)
    }

    /// The groups that are to be ticked.
    pub fn awake(&self) -> impl Iterator<Item = GroupId> {
        self.awake.iter().copied()
    }

    /// How many groups sleep.
    #[must_use]
    pub fn asleep_count(&self) -> usize {
        self.asleep.len()
    }

    /// How many sleeping groups have still to hear of a loss.
    #[must_use]
    pub fn to_tell_count(&self) -> usize {
        self.to_tell.len()
    }

    fn forget(&mut self, group: GroupId) {
        self.awake.remove(&group);
        self.asleep.remove(&group);
        self.to_tell.remove(&(Concern::Leader, group));
        self.to_tell.remove(&(Concern::Quorum, group));
    }
}
