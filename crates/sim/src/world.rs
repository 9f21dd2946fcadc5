//! The world: nodes, network, clients and faults in one queue of events, under one true time.
//!
//! 1. [`World::new`] founds the nodes of a plan and plans the first events.
//! 2. [`World::run`] takes one event after another. Each concerns one node, client or fault, and is handed to
//!    where that is dealt with: `host` (turns and effects), `requests` (clients and routing), `chaos` (faults).
//!    The oracles look on.
//! 3. After the plan's bound of events or time the faults end (`heal`): everybody must come together and serve.

use std::collections::BTreeMap;

use quorate_types::{LogIndex, Membership, NodeId, Term};

use crate::atlas::Atlas;
use crate::chaos::Undo;
use crate::check::durable::Platter;
use crate::check::{Checked, Checks, Oracle};
use crate::client::Client;
use crate::clock::Clock;
use crate::event::{Event, Queue};
use crate::heal::Healing;
use crate::net::Net;
use crate::node::{Node, PlannedCrash, groups};
use crate::plan::Plan;
use crate::requests::Request;
use crate::trace::{Trace, What};
use crate::watch::Watcher;

/// Events of a run, at most, whatever its plan says: a run that does not end has livelocked.
const EVENTS_MAX: u64 = 2_000_000;

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now_us: u64,
    pub(crate) events: u64,
    pub(crate) queue: Queue,
    /// By id, from 1.
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Net,
    pub(crate) checks: Checks,
    pub(crate) trace: Trace,
    /// Everything that is drawn on nodes.
    pub(crate) random: fastrand::Rng,
    pub(crate) clients: Vec<Client>,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) last_request: u64,
    pub(crate) last_value: u64,
    /// What takes back the faults that are under way.
    pub(crate) undo: BTreeMap<usize, Undo>,
    /// Waits for whoever is elected next.
    pub(crate) crash_winner: Option<PlannedCrash>,
    /// Waits for whoever installs a snapshot next: at which step, and for how long.
    pub(crate) crash_installer: Option<(u8, u64)>,
    /// Clients ask for nothing new before this.
    pub(crate) rested_until_us: u64,
    pub(crate) healing: Option<Healing>,
    pub(crate) atlas: Atlas,
    /// How often operators have asked already, by the numbers of their faults.
    pub(crate) operators: BTreeMap<usize, u32>,
    /// Which nodes have ever had a wrong state, and from where on.
    pub(crate) spoiled: BTreeMap<NodeId, LogIndex>,
    /// Writes that were made for the sake of a checkpoint.
    pub(crate) nudges: u32,
    pub(crate) done: bool,
    pub(crate) counts: Counts,
}

/// What a run has seen: so that a run that tests nothing shows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Leaders, over all groups.
    pub elections: u64,
    /// Entries committed, over all groups.
    pub committed: u64,
    /// Requests that clients got an answer to.
    pub answered: u64,
    /// Requests of which a client knows that they failed.
    pub failed: u64,
    /// Requests of which no client knows the outcome.
    pub unknown: u64,
    /// Faults that began.
    pub faults: u64,
    /// Processes that were started.
    pub starts: u64,
    /// Messages that were lost.
    pub lost: u64,
    /// Ticks that groups have slept through.
    pub asleep: u64,
    /// Histories that the judge gave up: nobody knows whether a single copy could have given them.
    pub undecided: u64,
    /// Sleeping groups that heard that a node is gone.
    pub told: u64,
    /// How often a node found its disk unfit.
    pub unfit: u64,
    /// Groups that panicked.
    pub panics: u64,
    /// Those that did so too often.
    pub quarantined: u64,
    /// Replicas that found their state wrong.
    pub distrusted: u64,
    /// Replicas that were given a right one since.
    pub rebuilt: u64,
    /// Proposals that were refused because disks were nearly full.
    pub refused_no_space: u64,
    /// Changes of the placement map that operators were told of.
    pub map_changes: u64,
    /// Changes of memberships that followed from the map.
    pub moved: u64,
    /// Leases whose time was over.
    pub expired: u64,
    /// Keep-alives that were acknowledged.
    pub kept_alive: u64,
    /// Events that watchers were told of.
    pub told_events: u64,
    /// Virtual time, in milliseconds.
    pub virtual_ms: u64,
}

impl Counts {
    /// Adds up.
    pub const fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.elections += other.elections;
        self.committed += other.committed;
        self.answered += other.answered;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.faults += other.faults;
        self.starts += other.starts;
        self.lost += other.lost;
        self.asleep += other.asleep;
        self.undecided += other.undecided;
        self.told += other.told;
        self.unfit += other.unfit;
        self.panics += other.panics;
        self.quarantined += other.quarantined;
        self.distrusted += other.distrusted;
        self.rebuilt += other.rebuilt;
        self.refused_no_space += other.refused_no_space;
        self.map_changes += other.map_changes;
        self.moved += other.moved;
        self.expired += other.expired;
        self.kept_alive += other.kept_alive;
        self.told_events += other.told_events;
        self.virtual_ms += other.virtual_ms;
    }
}

impl World {
    pub(crate) fn new(mut plan: Plan, seed: u64, keep_trace: bool) -> Self {
        plan.cluster.placement |= plan.cluster.mover;
        let mut seeds = fastrand::Rng::with_seed(seed);
        let mut fork = || fastrand::Rng::with_seed(seeds.u64(..));
        let (mut random, network, mut clients) = (fork(), fork(), fork());
        let (membership, count) = membership(&plan);
        let nodes: Vec<_> = (1..=count)
            .map(|id| {
                let drift = i64::from(plan.clocks.drift_ppm_max);
                let skew_us = plan.clocks.skew_ms_max as i64 * 1000;
                let clock = Clock::new(
                    random.u64(..1 << 40),
                    random.i64(-drift..=drift),
                    random.i64(-skew_us..=skew_us),
                );
                Node::found(NodeId(id), &plan, &membership, clock)
            })
            .collect();
        let ids = groups(&plan.cluster).into_iter().map(|(group, ..)| group);
        let mut world = Self {
            net: Net::new(&plan, count, network),
            checks: Checks::new(ids),
            now_us: 0,
            events: 0,
            queue: Queue::default(),
            nodes,
            trace: Trace::new(keep_trace),
            random,
            clients: (0..plan.workload.clients)
                .map(|_| Client::new(clients.u64(..), count))
                .collect(),
            watchers: (0..plan.workload.watchers)
                .map(|number| {
                    let seed = seed ^ u64::from(number + 1).rotate_left(40);
                    Watcher::new(seed, count, plan.workload.keys)
                })
                .collect(),
            requests: BTreeMap::new(),
            last_request: 0,
            last_value: 0,
            undo: BTreeMap::new(),
            crash_winner: None,
            crash_installer: None,
            rested_until_us: 0,
            healing: None,
            atlas: Atlas::default(),
            operators: BTreeMap::new(),
            spoiled: BTreeMap::new(),
            nudges: 0,
            done: false,
            counts: Counts::default(),
            plan,
        };
        world.begin(&membership);
        world
    }

    fn begin(&mut self, membership: &Membership) {
        let cluster = &self.plan.cluster;
        for checks in self.checks.groups.values_mut() {
            checks.log.found(Term(cluster.first_term), cluster.first_entries);
            checks.members.found(membership);
        }
        for number in 0..self.plan.faults.len() {
            let at_us = self.plan.faults[number].at_us;
            self.queue.push(at_us, Event::FaultBegins { number });
        }
        for node in &self.nodes {
            self.queue.push(0, Event::Start { node: node.id, life: 0 });
        }
        for client in 0..self.plan.workload.clients {
            let at_us = self.random.u64(..=self.plan.workload.think_us);
            self.queue.push(at_us, Event::Client { client });
        }
        for number in 0..self.watchers.len() {
            self.queue.push(number as u64 + 1, Event::Watch { number });
        }
        for number in 0..self.plan.workload.requests.len() {
            // Planned anew just before, so that it comes after a tick of the same moment.
            let at_us = self.plan.workload.requests[number].at_us.saturating_sub(1);
            self.queue.push(at_us, Event::PlanRequest { number });
        }
    }

    /// Runs to the end, or to the first broken promise.
    pub(crate) fn run(&mut self) -> Checked {
        while !self.done {
            let due = self.healing.is_none()
                && (self.events >= self.plan.events_max
                    || self.now_us >= self.plan.duration_ms * 1000);
            if due {
                self.heal()?;
            }
            let Some((at_us, event)) = self.queue.pop() else {
                return Err(Oracle::Liveness.broken("nothing is going to happen any more"));
            };
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err(Oracle::Liveness.broken("too many events: a livelock"));
            }
            self.now_us = at_us.max(self.now_us);
            self.handle(event)?;
        }
        Ok(())
    }

    /// What was seen so far.
    pub(crate) fn counts(&self) -> Counts {
        let groups = self.checks.groups.values();
        let committed = |log: LogIndex| log.value() - 1;
        let expired = groups.clone().map(|group| group.tenure.expired()).sum();
        Counts {
            events: self.events,
            elections: groups.clone().map(|group| group.election.elections() as u64).sum(),
            committed: groups.map(|group| committed(group.log.last_committed())).sum(),
            expired,
            virtual_ms: self.now_us / 1000,
            ..self.counts
        }
    }

    pub(crate) fn node(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.value() as usize - 1]
    }

    pub(crate) fn platter(&mut self, node: NodeId) -> &mut Platter {
        self.checks.platters.entry(node).or_default()
    }

    pub(crate) fn note(&mut self, node: impl Into<Option<NodeId>>, what: What) {
        self.trace.push(self.now_us, node.into(), what);
    }

    fn handle(&mut self, event: Event) -> Checked {
        let Some(event) = self.put_off(event) else { return Ok(()) };
        match event {
            Event::Tick { node, life } => self.on_tick(node, life),
            Event::Frame { from, to, session, sent_us, messages } => {
                self.on_frame(from, to, session, sent_us, messages)
            }
            Event::Unreachable { node, life, peer } => self.on_unreachable(node, life, peer),
            Event::Turn { node, life, group } => self.on_turn_due(node, life, group),
            Event::Synced { node, life } => self.on_synced(node, life),
            Event::Apply { node, life } => self.on_apply(node, life),
            Event::Fetched { node, life, group, generation, fetch } => {
                self.on_fetched(node, life, group, generation, fetch)
            }
            Event::Snapshot { life, generation, sent_us, message, snapshot } => {
                self.on_snapshot(life, generation, sent_us, message, snapshot)
            }
            Event::SnapshotSent { node, life, group, generation, to, last } => {
                self.on_snapshot_sent(node, life, group, generation, to, last)
            }
            Event::Install { node, life, rows_written } => {
                self.on_install(node, life, rows_written)
            }
            Event::Rebuild { node, life, group, generation, snapshot } => {
                self.on_rebuild(node, life, group, generation, &snapshot)
            }
            Event::Due { node, life, number } => self.on_due(node, life, number),
            Event::Granted { node, life, group, slot, term } => {
                self.on_granted(node, life, group, slot, term)
            }
            Event::Watch { number } => self.on_watch(number),
            Event::Flush { node, life } => self.on_flush(node, life),
            Event::Start { node, life } => self.on_start(node, life),
            Event::Resume { node } => self.on_resume(node),
            Event::Client { client } => self.on_client(client),
            Event::PlanRequest { number } => {
                let at_us = self.plan.workload.requests[number].at_us;
                self.queue.push(at_us, Event::Planned { number });
                Ok(())
            }
            Event::Mover { node, life, step } => self.on_mover(node, life, step),
            Event::Planned { number } => self.on_planned(number),
            Event::Route { request, attempt } => self.on_route(request, attempt),
            Event::Forward { request, attempt, to } => self.on_forward(request, attempt, to),
            Event::Reply { request, attempt, answer } => self.on_reply(request, attempt, answer),
            Event::Answered { request, result } => self.on_answered(request, result),
            Event::Expire { request } => self.on_expire(request),
            Event::FaultBegins { number } => self.on_fault_begins(number),
            Event::FaultEnds { number } => self.on_fault_ends(number),
            Event::Look => self.on_look(),
        }
    }

    /// A process that stands still sees nothing until it goes on; what reaches it meanwhile waits.
    fn put_off(&mut self, event: Event) -> Option<Event> {
        let node = match &event {
            Event::Tick { node, .. }
            | Event::Frame { to: node, .. }
            | Event::Unreachable { node, .. }
            | Event::Turn { node, .. }
            | Event::Synced { node, .. }
            | Event::Apply { node, .. }
            | Event::Fetched { node, .. }
            | Event::SnapshotSent { node, .. }
            | Event::Install { node, .. }
            | Event::Rebuild { node, .. }
            | Event::Due { node, .. }
            | Event::Granted { node, .. }
            | Event::Flush { node, .. }
            | Event::Mover { node, .. }
            | Event::Forward { to: node, .. } => *node,
            Event::Snapshot { message, .. } => message.to,
            Event::Route { request, .. } | Event::Reply { request, .. } => {
                match self.requests.get(request) {
                    Some(request) => request.gateway,
                    None => return Some(event),
                }
            }
            Event::Start { .. }
            | Event::Resume { .. }
            | Event::Client { .. }
            | Event::Watch { .. }
            | Event::PlanRequest { .. }
            | Event::Planned { .. }
            | Event::Answered { .. }
            | Event::Expire { .. }
            | Event::FaultBegins { .. }
            | Event::FaultEnds { .. }
            | Event::Look => return Some(event),
        };
        let at = self.node(node);
        if at.paused_until.is_none() {
            return Some(event);
        }
        at.put_off.push(event);
        None
    }

    /// A process goes on, or has stopped for good: what was put off reaches it now, or whoever follows it.
    pub(crate) fn release_put_off(&mut self, node: NodeId) {
        let now_us = self.now_us;
        for event in std::mem::take(&mut self.node(node).put_off) {
            self.queue.push(now_us, event);
        }
    }
}

/// Who takes part, and how many nodes there are.
pub(crate) fn membership(plan: &Plan) -> (Membership, u64) {
    let cluster = &plan.cluster;
    let range = |from: u64, count: u64| (from..from + count).map(NodeId);
    let mut membership = Membership::of_voters(range(1, cluster.voters));
    let mut count = cluster.voters;
    if cluster.outgoing > 0 {
        // One voter goes, the others are in both halves.
        let outgoing = range(2, cluster.outgoing);
        count = count.max(cluster.outgoing + 1);
        membership.outgoing = outgoing.collect();
    }
    membership.learners = range(count + 1, cluster.learners).collect();
    // Half of the clusters that begin in the middle of a change are to end it by themselves.
    membership.auto_leave = membership.is_joint() && cluster.voters % 2 == 1;
    (membership, count + cluster.learners + cluster.spares)
}
