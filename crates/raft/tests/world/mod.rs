//! A group of replicas over a network that loses, reorders and repeats, on disks that lose what was
//! not synced, driven by one seed and watched by an [`Oracle`](oracle::Oracle).

pub(crate) mod disk;
mod driver;
pub(crate) mod oracle;
mod recovery;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_raft::{Config, LogFetch, MembershipChange, NodeChange, ReadId, Replica, Via};
use quorate_types::{
    Entry, EntryId, GroupId, LogIndex, Membership, Message, Moment, NodeId, SnapshotMeta, Term,
};

use disk::Disk;
use oracle::Oracle;

/// Messages under way; the oldest go when there are more.
const MESSAGES_MAX: usize = 400;
/// Nodes that are no members at first.
const SPARES: usize = 3;

struct Machine {
    /// `None` while the node is down.
    replica: Option<Replica>,
    to_apply: Vec<Entry>,
    applied: LogIndex,
    fetches: Vec<LogFetch>,
    starts: u64,
    /// How often its ticks come, in per cent.
    pace: u32,
    clock: Clock,
    /// A snapshot that is being installed.
    installing: Option<SnapshotMeta>,
    /// The node is paused until this step: nothing happens to it but time.
    paused_until: u64,
}

/// A node's own clock: it starts anywhere and runs a little fast or slow, and through crashes.
#[derive(Clone, Copy)]
struct Clock {
    start_us: u64,
    /// Thousandths of true time.
    rate: u64,
}

impl Clock {
    /// Two of them differ by one per cent at most, the default bound.
    fn draw(random: &mut fastrand::Rng) -> Self {
        Self { start_us: random.u64(0..1 << 40), rate: random.u64(995..=1005) }
    }

    fn at(self, true_us: u64) -> Moment {
        Moment(self.start_us + true_us / 1000 * self.rate)
    }
}

/// How rough the world is; drawn from the seed.
struct Weather {
    loss_percent: u32,
    repeat_percent: u32,
    crash_permille: u32,
    /// Of the steps of a node that is down, after how many per cent it starts again.
    start_percent: u32,
    cut_permille: u32,
    tick_permille: u32,
    /// Of the messages, how many per cent are put off for long.
    delay_percent: u32,
    /// Of the inputs, how many per cent are followed by a turn at once.
    turn_percent: u32,
    /// The most true time that a step takes.
    step_us_max: u64,
    /// Of a thousand steps, in how many somebody proposes.
    proposals: u32,
    /// Of ten thousand steps, in how many somebody wants other members.
    churn: u32,
    /// Of ten thousand steps, before how many everybody pauses for up to two promises, and in how
    /// many one node pauses alone.
    pauses: u32,
}

pub(crate) struct World {
    random: fastrand::Rng,
    weather: Weather,
    config: Config,
    snapshot: SnapshotMeta,
    machines: BTreeMap<NodeId, Machine>,
    disks: BTreeMap<NodeId, Disk>,
    network: Vec<Message>,
    /// Snapshots under way; each takes its own time.
    streams: Vec<Message>,
    steps: u64,
    /// True time, which no node knows.
    true_us: u64,
    /// Pairs that cannot hear each other; one way.
    cut: BTreeSet<(NodeId, NodeId)>,
    commands: u64,
    reads: u64,
    pub(crate) oracle: Oracle,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let membership = draw_membership(&mut random);
        let base = EntryId::new(Term(1), LogIndex(1));
        let snapshot = SnapshotMeta { last: base, membership };
        let weather = Weather {
            loss_percent: random.u32(0..30),
            repeat_percent: random.u32(0..20),
            // Seldom enough that the group gets somewhere in between, and cuts last for elections.
            crash_permille: random.u32(0..4),
            start_percent: random.choice([5, 60]).unwrap_or(5),
            cut_permille: random.u32(0..5),
            tick_permille: random.u32(50..200),
            delay_percent: random.u32(0..20),
            turn_percent: random.u32(20..=100),
            step_us_max: random.choice([1_000, 5_000, 20_000]).unwrap_or(1_000),
            proposals: random.choice([2, 50, 50]).unwrap_or(50),
            churn: random.choice([0, 100, 500]).unwrap_or(0),
            pauses: random.u32(0..40),
        };
        let config = Config {
            append_bytes_max: random.choice([1, 80, 1 << 20]).unwrap_or(1),
            inflight_appends_max: random.usize(1..6),
            inflight_partial_max: random.usize(1..4),
            partial_interval_us: random.choice([1_000, 50_000, u64::MAX]).unwrap_or(u64::MAX),
            eager_commit: random.bool(),
            inflight_bytes_max: random.choice([1, 200, 1 << 20]).unwrap_or(1),
            uncommitted_bytes_max: random.choice([1, 300, 1 << 20]).unwrap_or(1),
            cached_bytes_max: random.choice([0, 200, 1 << 20]).unwrap_or(0),
            election_ticks_min: random.u32(3..10),
            lease: random.u32(..4) > 0,
            quiesce_ticks: random.choice([0, 0, 3, 20]).unwrap_or(0),
            preferred_leader: random.bool().then(|| NodeId(random.u64(1..7))),
            quiet_commit: random.bool(),
            ..Config::new(GroupId(2), NodeId(0))
        };
        let config = Config {
            election_ticks_max: config.election_ticks_min * random.u32(2..4),
            heartbeat_ticks: random.u32(1..3),
            ..config
        };
        let mut world = Self {
            random,
            weather,
            config,
            machines: BTreeMap::new(),
            disks: BTreeMap::new(),
            network: Vec::new(),
            streams: Vec::new(),
            steps: 0,
            true_us: 0,
            cut: BTreeSet::new(),
            commands: 0,
            reads: 0,
            oracle: Oracle::default(),
            snapshot,
        };
        // Those who are no members yet know nothing, or hold what the group began with, and wait.
        let members = world.snapshot.membership.nodes();
        let spares = (1..).map(NodeId).filter(|node| !members.contains(node)).take(SPARES);
        let all: Vec<_> = members.iter().copied().chain(spares).collect();
        for node in all {
            let knows = members.contains(&node) || world.random.bool();
            let first = if knows { world.snapshot.clone() } else { SnapshotMeta::default() };
            let applied = first.last.index;
            world.disks.insert(node, Disk::new(first));
            let machine = Machine {
                replica: None,
                to_apply: Vec::new(),
                applied,
                fetches: Vec::new(),
                starts: 0,
                pace: 100,
                clock: Clock::draw(&mut world.random),
                installing: None,
                paused_until: 0,
            };
            world.machines.insert(node, machine);
            world.start(node);
        }
        world
    }

    /// Something happens.
    pub(crate) fn step(&mut self) {
        self.true_us += self.random.u64(0..=self.weather.step_us_max);
        if self.random.u32(..10_000) < self.weather.pauses {
            self.true_us += self.random.u64(0..2 * self.config.promise_us());
        }
        let nodes: Vec<_> = self.machines.keys().copied().collect();
        let node = nodes[self.random.usize(..nodes.len())];
        self.steps += 1;
        if self.machines[&node].paused_until > self.steps {
            return;
        }
        if self.random.u32(..10_000) < self.weather.pauses {
            let steps = self.random.u64(..1500);
            self.machines.get_mut(&node).expect("a member").paused_until = self.steps + steps;
            return;
        }
        if self.machines[&node].replica.is_none() {
            if self.random.u32(..100) < self.weather.start_percent {
                self.start(node);
            }
            return;
        }
        if self.random.u32(..1000) < self.weather.crash_permille {
            return self.crash(node);
        }
        if self.random.u32(..1000) < self.weather.cut_permille {
            let pace = self.random.u32(5..200);
            self.machines.get_mut(&node).expect("a member").pace = pace;
            return self.change_cuts(&nodes);
        }
        if self.random.u32(..100_000) < self.weather.tick_permille * self.machines[&node].pace {
            // Sometimes several late ones at once.
            let count = if self.random.u32(..20) == 0 { self.random.u32(1..20) } else { 1 };
            (0..count).for_each(|_| self.replica(node).tick());
        }
        if self.random.u32(..10_000) < self.weather.churn {
            self.change_members(node, &nodes);
        }
        match self.random.u32(..1000) {
            ..50 => {
                if self.random.u32(..50) < self.weather.proposals {
                    self.propose(node);
                }
            }
            50..70 => self.read(node),
            70..72 => self.replica(node).campaign(),
            72..74 => {
                let to = nodes[self.random.usize(..nodes.len())];
                let _ = self.replica(node).transfer_leadership(to);
            }
            74 => self.replica(node).forget_leader(),
            75..79 => {
                let peer = nodes[self.random.usize(..nodes.len())];
                self.replica(node).unreachable(peer);
            }
            79..250 => self.sync(node),
            250..320 => self.apply(node),
            320..390 => self.answer_fetch(node, true),
            390..400 => self.compact(node),
            400..410 => self.end_stream(false),
            410..430 => self.install(node, true),
            _ => self.deliver_any(),
        }
        if self.random.u32(..100) < self.weather.turn_percent {
            self.turn(node);
        }
    }

    fn replica(&mut self, node: NodeId) -> &mut Replica {
        let machine = self.machines.get_mut(&node).expect("a member");
        machine.replica.as_mut().expect("a running node")
    }

    fn now(&self, node: NodeId) -> Moment {
        self.machines[&node].clock.at(self.true_us)
    }

    fn start(&mut self, node: NodeId) {
        let machine = self.machines.get_mut(&node).expect("a member");
        machine.starts += 1;
        let seed = node.value() * 1_000_003 + machine.starts;
        let config = Config { node, seed, ..self.config.clone() };
        machine.replica = Some(Replica::new(config, self.disks[&node].recover(machine.applied)));
    }

    fn crash(&mut self, node: NodeId) {
        let disk = self.disks.get_mut(&node).expect("a member");
        let written = self.random.usize(..=disk.unsynced());
        disk.crash(written);
        let machine = self.machines.get_mut(&node).expect("a member");
        if let Some(replica) = machine.replica.take() {
            self.oracle.on_end(&replica);
        }
        machine.to_apply.clear();
        machine.fetches.clear();
        machine.installing = None;
        // The state engine was not synced either; the log brings it back.
        let base = self.disks[&node].base();
        machine.applied = LogIndex(self.random.u64(base.value()..=machine.applied.value()));
    }

    fn change_cuts(&mut self, nodes: &[NodeId]) {
        self.cut.clear();
        let mut random_node = || nodes[self.random.usize(..nodes.len())];
        let (a, b) = (random_node(), random_node());
        match self.random.u32(..4) {
            0 => {}
            1 => {
                self.cut.insert((a, b));
            }
            2 => {
                self.cut.insert((a, b));
                self.cut.insert((b, a));
            }
            _ => {
                for &other in nodes {
                    self.cut.insert((a, other));
                    self.cut.insert((other, a));
                }
            }
        }
    }

    /// One to three nodes come, go, or change what they are.
    fn change_members(&mut self, node: NodeId, nodes: &[NodeId]) {
        let count = self.random.usize(0..4);
        let changes = (0..count).map(|_| {
            let node = nodes[self.random.usize(..nodes.len())];
            match self.random.u32(..5) {
                0 | 1 => NodeChange::Voter(node),
                2 => NodeChange::Learner { node, promote: self.random.bool() },
                _ => NodeChange::Remove(node),
            }
        });
        let nodes = changes.collect();
        let via = self.random.choice([Via::Auto, Via::Joint, Via::JointExplicit]);
        let change = MembershipChange { nodes, via: via.unwrap_or_default() };
        let last = self.replica(node).last();
        match self.replica(node).change_membership(&change) {
            Ok(id) => {
                assert_eq!(id.index, last.index.next());
                self.oracle.changes += 1;
            }
            Err(_) => assert_eq!(self.replica(node).last(), last, "nothing is appended"),
        }
    }

    fn propose(&mut self, node: NodeId) {
        let count = self.random.u64(0..4);
        let commands = (0..count).map(|at| {
            let mut command = (self.commands + at).to_le_bytes().to_vec();
            command.resize(8 + self.random.usize(..40), 0);
            Bytes::from(command)
        });
        let commands: Vec<_> = commands.collect();
        let last = self.replica(node).last();
        match self.replica(node).propose(commands) {
            Ok(first) => {
                self.commands += count;
                assert_eq!(first.index, last.index.next());
                assert_eq!(self.replica(node).last().index, last.index.plus(count));
            }
            Err(_) => assert_eq!(self.replica(node).last(), last, "all or nothing"),
        }
    }

    fn read(&mut self, node: NodeId) {
        self.reads += 1;
        let id = ReadId(self.reads);
        if self.replica(node).read(id).is_ok() {
            self.oracle.on_read_asked(id);
        }
    }
}

/// Mostly three or five voters; sometimes one, a learner, or two halves.
fn draw_membership(random: &mut fastrand::Rng) -> Membership {
    let voters = random.choice([1, 2, 3, 3, 3, 4, 5, 5]).unwrap_or(3);
    let mut membership = Membership::of_voters((1..=voters).map(NodeId));
    if random.u32(..4) == 0 {
        membership.learners.insert(NodeId(voters + 1));
    }
    if random.u32(..4) == 0 {
        membership.outgoing = (voters..voters + 3).map(|node| NodeId(node + 2)).collect();
        membership.outgoing.insert(NodeId(1));
        membership.learners.clear();
    }
    membership
}
