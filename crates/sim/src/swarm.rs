//! Plans drawn from a seed.
//!
//! Not everything goes wrong in every run: each seed draws which faults occur at all, how often, and how rough the
//! links, disks and clocks are (swarm testing). A fault that is always on hides what only its absence would let
//! happen.

use quorate_types::NodeId;

use crate::fault::{Fault, FaultKind, Target, node_name};
use crate::plan::{Clocks, Cluster, Disk, Network, Plan, Workload};
use crate::{moves, recipes};

/// Two clocks that run apart by this, one fast and one slow, are within what leases allow for: one per cent.
pub(crate) const DRIFT_PPM_MAX: i32 = 4_900;

/// Events of a run before it is healed.
pub const EVENTS: u64 = 20_000;

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        // Another stream than the one that the run draws from.
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5157_4152_4d21_7a11);
        let cluster = cluster(&mut random);
        let network = network(&mut random, &cluster);
        let mut plan = Self {
            title: format!("seed {seed}"),
            events_max: EVENTS,
            duration_ms: random.u64(20_000..60_000),
            network,
            disk: disk(&mut random),
            clocks: clocks(&mut random),
            workload: workload(&mut random),
            cluster,
            absent: Vec::new(),
            faults: Vec::new(),
        };
        plan.absent = absent(&mut random, &plan.cluster);
        plan.faults = faults(&mut random, &plan);
        if !recipes::maybe_compose(&mut random, &mut plan) {
            moves::maybe_move(&mut random, &mut plan);
        }
        lease_and_watch(seed, &mut plan);
        users(seed, &mut plan);
        // Not drawn, so that nothing else of a seed depends on it.
        plan.cluster.quiet_commit = seed.is_multiple_of(2);
        plan
    }
}

fn one_of<T: Copy>(random: &mut fastrand::Rng, values: &[T]) -> T {
    values[random.usize(..values.len())]
}

fn chance(random: &mut fastrand::Rng, percent: u32) -> bool {
    random.u32(..100) < percent
}

fn cluster(random: &mut fastrand::Rng) -> Cluster {
    let voters = one_of(random, &[1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 7]);
    let is_joint = chance(random, 10) && voters > 2;
    let heartbeat_ticks = random.u32(1..=3);
    let election_ticks_min = heartbeat_ticks * random.u32(3..=10) + 1;
    let lease = chance(random, 70);
    // Now and then everything is small, so that windows, budgets and caches are at their bounds all the time.
    let tight = chance(random, 40);
    let bytes = |random: &mut fastrand::Rng, small: &[usize], usual: usize| {
        if tight { one_of(random, small) } else { usual }
    };
    Cluster {
        voters,
        outgoing: if is_joint { voters } else { 0 },
        learners: if chance(random, 25) { random.u64(1..=2) } else { 0 },
        spares: if chance(random, 40) { random.u64(1..=3) } else { 0 },
        placement: chance(random, 20),
        regions: one_of(random, &[[9, 9, 9], [1, 1, 9], [2, 2, 9], [1, 9, 9]]).to_vec(),
        tick_us: one_of(random, &[20_000, 50_000, 100_000]),
        election_ticks_min,
        election_ticks_max: election_ticks_min + random.u32(3..=election_ticks_min + 3),
        heartbeat_ticks,
        append_bytes_max: bytes(random, &[1, 120, 4_000, 1 << 20], 1 << 20),
        inflight_appends_max: bytes(random, &[1, 2, 5, 256], 256),
        inflight_partial_max: one_of(random, &[1, 1, 2, 256]),
        eager_commit: random.bool(),
        inflight_bytes_max: bytes(random, &[1, 500, 1 << 20], 16 << 20),
        uncommitted_bytes_max: bytes(random, &[1, 500, 1 << 20], 64 << 20),
        cached_bytes_max: bytes(random, &[0, 500, 1 << 20], 4 << 20),
        // Whoever embeds the core may do without, but leases need CheckQuorum.
        pre_vote: chance(random, 90),
        check_quorum: lease || chance(random, 60),
        lease,
        proposal_ticks_max: random.u64(10..200),
        log_tail: one_of(random, &[u64::MAX >> 1, 0, 10, 100]),
        quiesce_ticks: one_of(random, &[0, 0, 4, 30]),
        turn_delay_us_max: one_of(random, &[0, 0, 0, 300]),
        ..Cluster::default()
    }
}

/// Now and then only a quorum comes back: the others must not be needed.
fn absent(random: &mut fastrand::Rng, cluster: &Cluster) -> Vec<String> {
    if cluster.outgoing > 0 || chance(random, 50) {
        return Vec::new();
    }
    let mut voters: Vec<u64> = (1..=cluster.voters).collect();
    random.shuffle(&mut voters);
    let spare = (cluster.voters as usize - 1) / 2;
    let count = random.usize(..=spare);
    voters.truncate(count);
    voters.into_iter().map(|voter| node_name(NodeId(voter))).collect()
}

fn network(random: &mut fastrand::Rng, cluster: &Cluster) -> Network {
    let is_spread = chance(random, 20);
    // No link may be slower than what an election timeout allows, or nobody could lead.
    let timeout_us = cluster.tick_us * u64::from(cluster.election_ticks_min);
    let region_latency_us =
        if is_spread { random.u64(5_000..75_000).min(timeout_us / 10) } else { 0 };
    let ordered = chance(random, 60);
    let rough = chance(random, 60);
    let tail_permille = if rough { random.u32(0..30) } else { 0 };
    Network {
        latency_us: random.u64(50..2_000),
        region_latency_us,
        jitter_us: if ordered { random.u64(0..2_000) } else { random.u64(0..10_000) },
        tail_permille,
        tail_us: random.u64(10_000..1_000_000),
        loss_permille: if rough { random.u32(0..50) } else { 0 },
        duplicate_permille: if ordered || !rough { 0 } else { random.u32(0..100) },
        ordered,
        loss_reported_permille: one_of(random, &[0, 500, 1_000]),
        encoded: chance(random, 10),
        links: Vec::new(),
    }
}

fn disk(random: &mut fastrand::Rng) -> Disk {
    let rough = chance(random, 40);
    Disk {
        sync_us: one_of(random, &[0, 100, 500, 4_000]),
        sync_jitter_us: one_of(random, &[0, 200, 10_000]),
        tail_permille: if rough { random.u32(0..50) } else { 0 },
        tail_us: random.u64(10_000..500_000),
        apply_us: one_of(random, &[0, 50, 1_000, 20_000]),
        flush_ms: one_of(random, &[0, 100, 1_000, 10_000]),
        fetch_refused_permille: one_of(random, &[0, 0, 100, 500]),
        watched: chance(random, 75),
    }
}

fn clocks(random: &mut fastrand::Rng) -> Clocks {
    Clocks {
        skew_ms_max: one_of(random, &[0, 100, 3_600_000]),
        drift_ppm_max: one_of(random, &[0, 0, 100, DRIFT_PPM_MAX as u32]),
    }
}

fn workload(random: &mut fastrand::Rng) -> Workload {
    let mut weight = |percent: u32, most: u32| {
        if random.u32(..100) < percent { random.u32(1..=most) } else { 0 }
    };
    let defaults = Workload {
        put: weight(90, 6),
        swap: weight(60, 4),
        delete: weight(50, 2),
        batch: weight(50, 2),
        read: weight(90, 6),
        range: weight(50, 2),
        serializable: weight(60, 4),
        history: weight(40, 2),
        compact: weight(30, 1),
        placement: weight(80, 3),
        ..Workload::default()
    };
    Workload {
        clients: random.u32(1..=8),
        keys: random.u32(1..=6),
        think_us: one_of(random, &[2_000, 10_000, 50_000]),
        timeout_ms: one_of(random, &[500, 2_000, 5_000]),
        at_hand_permille: one_of(random, &[0, 500, 1_000]),
        answers_lost_permille: one_of(random, &[0, 0, 10, 100]),
        value_bytes_max: one_of(random, &[0, 16, 400]),
        // Something has to be written.
        put: defaults.put + u32::from(defaults.put + defaults.swap + defaults.batch == 0),
        ..defaults
    }
}

/// Leases and watchers, from a stream of their own: seeds without them are what they would be if there were none.
fn lease_and_watch(seed: u64, plan: &mut Plan) {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x6c65_6173_6564_7761);
    if chance(&mut random, 50) {
        plan.workload.lease = random.u32(1..=12);
        plan.workload.lease_ttl_s_max = random.i64(1..=3);
        if chance(&mut random, 15) {
            take_turns(&mut random, plan);
        }
    }
    if chance(&mut random, 50) {
        plan.workload.watchers = random.u32(1..=3);
    }
}

/// Users, from a stream of their own too.
fn users(seed: u64, plan: &mut Plan) {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x7573_6572_735f_6d61);
    if chance(&mut random, 25) {
        plan.workload.users = random.u32(1..=8);
    }
}

/// Leaders hand over all the time, so that one leads again while what it wanted in an earlier term still waits.
fn take_turns(random: &mut fastrand::Rng, plan: &mut Plan) {
    let timeout_us = plan.cluster.tick_us * u64::from(plan.cluster.election_ticks_max);
    let mut at_us = 2 * timeout_us;
    while at_us < plan.duration_ms * 1000 && plan.faults.len() < 400 {
        let kind = FaultKind::Transfer { to: Target::Follower(1) };
        plan.faults.push(Fault { at_us, for_us: 1, kind });
        at_us += random.u64(timeout_us / 8..timeout_us);
    }
}

/// Which kinds of faults a seed may have.
const KINDS: usize = 26;

fn faults(random: &mut fastrand::Rng, plan: &Plan) -> Vec<Fault> {
    if chance(random, 5) {
        return Vec::new();
    }
    let nodes = plan.cluster.voters + plan.cluster.learners + plan.cluster.spares;
    let timeout_us = plan.cluster.tick_us * u64::from(plan.cluster.election_ticks_max);
    let enabled: Vec<usize> = (0..KINDS).filter(|_| random.bool()).collect();
    let gap_us = one_of(random, &[1, 2, 4]) * timeout_us / 2;
    let mut faults = Vec::new();
    let mut at_us = random.u64(0..2 * timeout_us);
    while at_us < plan.duration_ms * 1000 && !enabled.is_empty() && faults.len() < 200 {
        let kind = one_of(random, &enabled);
        let spans = [timeout_us / 100, timeout_us / 5, timeout_us, 3 * timeout_us];
        let span_us = one_of(random, &spans).max(1);
        let for_us = 1 + random.u64(..span_us);
        faults.push(Fault { at_us, for_us, kind: draw(random, kind, nodes, timeout_us) });
        at_us += random.u64(1..2 * gap_us);
    }
    faults
}

fn draw(random: &mut fastrand::Rng, kind: usize, nodes: u64, timeout_us: u64) -> FaultKind {
    let mut anybody = || match random.u8(..4) {
        0 | 1 => Target::Leader,
        2 => Target::Follower(random.u64(1..nodes.max(2))),
        _ => Target::Node(NodeId(random.u64(1..=nodes))),
    };
    let (node, other) = (anybody(), anybody());
    match kind {
        0 | 1 => FaultKind::Crash {
            node,
            power: random.bool(),
            after_effects: if random.bool() { random.u32(1..20) } else { 0 },
        },
        2 => match random.u8(..6) {
            0 | 1 => FaultKind::Blackout,
            2 | 3 => FaultKind::CrashWinner {
                after_effects: random.u32(..4),
                for_good: random.u8(..4) == 0,
            },
            _ => FaultKind::Crash { node: Target::Leader, power: true, after_effects: 0 },
        },
        3 => FaultKind::Pause { node, late_ticks: random.bool() },
        4 => {
            // Mostly a leader goes on with fewer than a quorum, so that logs come to differ.
            let side = if random.u8(..3) == 0 {
                let some = (1..=nodes).filter(|_| random.bool());
                some.map(|id| Target::Node(NodeId(id))).collect()
            } else {
                let company = random.u64(..=nodes.saturating_sub(1) / 2);
                let followers = (1..=company).map(Target::Follower);
                std::iter::once(Target::Leader).chain(followers).collect()
            };
            FaultKind::Partition { side }
        }
        5 => FaultKind::Partition { side: vec![node] },
        6 => FaultKind::Cut { a: node, b: other },
        7 => FaultKind::OneWay { from: node, to: other },
        8 => FaultKind::Deafen { node },
        9 => FaultKind::Mute { node },
        10 => FaultKind::Clog { from: node, to: other },
        11 => FaultKind::Loss { permille: random.u32(10..600) },
        12 => FaultKind::SlowDisk { node, sync_us: random.u64(1_000..2 * timeout_us) },
        13 => match random.u8(..8) {
            0 => FaultKind::Wipe { node },
            1 => FaultKind::Damage { node },
            2 | 3 => FaultKind::FullDisk { node },
            _ => FaultKind::FailedSync { node, after: random.u64(..5) },
        },
        14 => match random.bool() {
            true => FaultKind::Drift { node, ppm: random.i32(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX) },
            false => FaultKind::Jump { node, by_ms: random.i64(-3_600_000..=3_600_000) },
        },
        15 => FaultKind::Campaign { node },
        16 => FaultKind::Prefer { node },
        17 => FaultKind::Transfer { to: node },
        18 => FaultKind::Rest,
        19 => FaultKind::Intrude { node },
        20 => FaultKind::CrashInstaller { step: random.u8(..3) },
        21 => FaultKind::LowDisk {
            // Often a quorum of them.
            nodes: match random.bool() {
                true => (1..=nodes).map(|id| Target::Node(NodeId(id))).collect(),
                false => vec![node, other],
            },
            percent: one_of(random, &[20, 45, 80, 80, 150]),
        },
        22 => FaultKind::HungDisk { node },
        23 => FaultKind::Panic { node, in_machine: random.bool() },
        _ => {
            let mut some = |most: usize| {
                let count = random.usize(..=most);
                let node = |_| Target::Node(NodeId(random.u64(1..=nodes)));
                (0..count).map(node).collect::<Vec<_>>()
            };
            let (add, learn, mut remove) = (some(2), some(1), some(2));
            if random.u8(..4) == 0 {
                remove.push(Target::Leader);
            }
            FaultKind::Members { add, learn, remove, explicit: random.u8(..4) == 0 }
        }
    }
}
