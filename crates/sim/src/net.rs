//! The network between nodes: it delays, loses, repeats, reorders and cuts, each direction by itself.

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::NodeId;

use crate::fault::node_of;
use crate::plan::{Network, Plan};

/// What happens to one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It arrives then, and perhaps once more.
    Arrives { at_us: u64, again_us: Option<u64> },
    /// It does not.
    Lost { reported: bool },
}

#[derive(Debug)]
pub(crate) struct Net {
    spec: Network,
    random: fastrand::Rng,
    /// The region of each node, by id.
    regions: Vec<u64>,
    exact: BTreeMap<(NodeId, NodeId), u64>,
    /// How many faults cut each direction: faults may overlap.
    cut: BTreeMap<(NodeId, NodeId), u32>,
    /// What is sent there arrives not before.
    clogged: BTreeMap<(NodeId, NodeId), u64>,
    /// The last arrival of each ordered link.
    last_arrival: BTreeMap<(NodeId, NodeId), u64>,
    /// Losses that faults add, in a thousand.
    storm_permille: u32,
    calm: bool,
}

impl Net {
    pub(crate) fn new(plan: &Plan, nodes: u64, random: fastrand::Rng) -> Self {
        let mut regions = Vec::new();
        for (region, &count) in (0..).zip(&plan.cluster.regions) {
            regions.extend((0..count).map(|_| region));
        }
        let last = plan.cluster.regions.len().saturating_sub(1) as u64;
        regions.resize(nodes as usize, last);
        let exact =
            plan.network.links.iter().filter_map(|link| {
                Some(((node_of(&link.from)?, node_of(&link.to)?), link.latency_us))
            });
        Self {
            exact: exact.collect(),
            spec: plan.network.clone(),
            random,
            regions,
            cut: BTreeMap::new(),
            clogged: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            storm_permille: 0,
            calm: false,
        }
    }

    /// A frame leaves.
    pub(crate) fn send(&mut self, now_us: u64, from: NodeId, to: NodeId) -> Fate {
        let loss = self.loss_permille();
        let lost = loss > 0 && self.random.u32(..1000) < loss;
        if lost || self.is_cut(from, to) {
            let reported = self.random.u32(..1000) < self.spec.loss_reported_permille;
            return Fate::Lost { reported };
        }
        let at_us = self.arrival(now_us, from, to);
        let again = !self.calm
            && self.spec.duplicate_permille > 0
            && self.random.u32(..1000) < self.spec.duplicate_permille;
        let again_us = again.then(|| self.arrival(now_us, from, to) + self.random.u64(..50_000));
        Fate::Arrives { at_us, again_us }
    }

    /// A datagram leaves that holds up nobody, and that nobody repeats: when it arrives, if it does.
    pub(crate) fn send_datagram(&mut self, now_us: u64, from: NodeId, to: NodeId) -> Option<u64> {
        let loss = self.loss_permille();
        let lost = loss > 0 && self.random.u32(..1000) < loss;
        (!lost && !self.is_cut(from, to)).then(|| self.latest(now_us, from, to))
    }

    /// True when every message travels alone.
    pub(crate) const fn is_unordered(&self) -> bool {
        !self.spec.ordered
    }

    pub(crate) const fn is_encoded(&self) -> bool {
        self.spec.encoded
    }

    pub(crate) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.get(&(from, to)).is_some_and(|&faults| faults > 0)
    }

    pub(crate) fn cut(&mut self, links: &BTreeSet<(NodeId, NodeId)>) {
        for &link in links {
            *self.cut.entry(link).or_default() += 1;
        }
    }

    pub(crate) fn mend(&mut self, links: &BTreeSet<(NodeId, NodeId)>) {
        for link in links {
            if let Some(faults) = self.cut.get_mut(link) {
                *faults = faults.saturating_sub(1);
            }
        }
    }

    pub(crate) fn clog(&mut self, from: NodeId, to: NodeId, until_us: u64) {
        let until = self.clogged.entry((from, to)).or_default();
        *until = until_us.max(*until);
    }

    pub(crate) const fn storm(&mut self, permille: i32) {
        self.storm_permille = self.storm_permille.saturating_add_signed(permille);
    }

    /// No more cuts, losses, repetitions and stragglers; latencies stay.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.clogged.clear();
        self.calm = true;
    }

    const fn loss_permille(&self) -> u32 {
        if self.calm { 0 } else { self.spec.loss_permille + self.storm_permille }
    }

    fn arrival(&mut self, now_us: u64, from: NodeId, to: NodeId) -> u64 {
        let mut at_us = self.latest(now_us, from, to);
        if self.spec.ordered {
            let last = self.last_arrival.entry((from, to)).or_default();
            at_us = at_us.max(*last);
            *last = at_us;
        }
        at_us
    }

    /// When something arrives that waits for nothing before it.
    fn latest(&mut self, now_us: u64, from: NodeId, to: NodeId) -> u64 {
        let mut latency = match self.exact.get(&(from, to)) {
            Some(&exact) => exact,
            None => {
                let region = |node: NodeId| self.regions.get(node.value() as usize - 1);
                let away = if region(from) == region(to) { 0 } else { self.spec.region_latency_us };
                self.spec.latency_us + away + self.random.u64(..=self.spec.jitter_us)
            }
        };
        if !self.calm
            && self.spec.tail_permille > 0
            && self.random.u32(..1000) < self.spec.tail_permille
        {
            latency += self.spec.tail_us;
        }
        let clogged_us = self.clogged.get(&(from, to)).copied().unwrap_or(0);
        (now_us + latency).max(clogged_us)
    }
}
