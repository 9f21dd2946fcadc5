//! Faults that are composed, and not drawn one by one: some mistakes show only when several things happen in one order,
//! within one promise or one round trip. Each recipe knows such an order, and no mistake: what it does not fix stays
//! drawn.

use quorate_types::NodeId;

use crate::fault::{Fault, FaultKind, Target, node_name};
use crate::plan::{Cluster, Disk, Network, Plan, PlannedRequest, RequestKind};
use crate::swarm::DRIFT_PPM_MAX;

/// Now and then, puts a recipe in the place of the faults of `plan`; true if it has.
pub(crate) fn maybe_compose(random: &mut fastrand::Rng, plan: &mut Plan) -> bool {
    match random.u32(..100) {
        0..5 => term_race(random, plan),
        5..9 => log_race(random, plan),
        9..13 => promise_race(random, plan),
        13..17 => lease_race(random, plan),
        17..20 => tail_race(random, plan),
        20..23 => drift_race(random, plan),
        23..25 => sleepers(random, plan),
        25..28 => spoiled(random, plan),
        28..31 => lost_regions(random, plan),
        _ => return false,
    }
    true
}

/// The longest time that a replica waits for its leader.
fn timeout_us(plan: &Plan) -> u64 {
    plan.cluster.tick_us * u64::from(plan.cluster.election_ticks_max)
}

/// Three voters and nobody else, all of them needed in the end.
fn three_alone(plan: &mut Plan) {
    plan.cluster = Cluster {
        voters: 3,
        outgoing: 0,
        learners: 0,
        spares: 0,
        placement: false,
        ..plan.cluster.clone()
    };
    plan.absent.clear();
}

/// As [`three_alone`], with leases.
fn three_with_leases(plan: &mut Plan) {
    three_alone(plan);
    plan.cluster.lease = true;
    plan.cluster.check_quorum = true;
    plan.cluster.quiesce_ticks = 0;
}

/// A leader that is cut off keeps the longest log in the lowest term, while those who are elected without it die
/// before they have written anything, the last of them for good: whoever is left has the highest term and the shorter log.
fn term_race(random: &mut fastrand::Rng, plan: &mut Plan) {
    three_alone(plan);
    let timeout_us = timeout_us(plan);
    let start_us = random.u64(3..8) * timeout_us;
    plan.faults = vec![Fault {
        at_us: start_us,
        for_us: 10 * timeout_us,
        kind: FaultKind::Partition { side: vec![Target::Leader] },
    }];
    puts_everywhere(plan, start_us + 10, 1 + random.u64(..3));
    let winners = random.u64(2..4);
    let mut at_us = start_us + 1;
    for number in 0..winners {
        plan.faults.push(Fault {
            at_us,
            for_us: 1 + random.u64(..timeout_us / 10),
            kind: FaultKind::CrashWinner {
                after_effects: u32::from(random.u8(..4) == 0),
                // With the first of them nobody would be left to elect another.
                for_good: number + 1 == winners,
            },
        });
        // The next one has to be waited for before it is elected, and not before the last one was.
        at_us += random.u64(timeout_us..2 * timeout_us);
    }
    plan.duration_ms = plan.duration_ms.max((start_us + 16 * timeout_us) / 1000);
}

/// So many puts through every node: whoever leads writes them, also where it is alone.
fn puts_everywhere(plan: &mut Plan, at_us: u64, count: u64) {
    for node in 1..=plan.cluster.voters {
        let keys = u64::from(plan.workload.keys);
        let puts = (0..count).map(|number| PlannedRequest {
            at_us: at_us + number * 500,
            node: node_name(NodeId(node)),
            key: (number % keys) as u32,
            kind: RequestKind::Put,
        });
        plan.workload.requests.extend(puts);
    }
}

/// A leader whose disk is slow is cut off while it writes: what it wrote is overwritten before it is durable.
fn log_race(random: &mut fastrand::Rng, plan: &mut Plan) {
    let timeout_us = timeout_us(plan);
    // Or it would hand over.
    plan.disk.watched = false;
    let mut at_us = 2 * timeout_us;
    plan.faults.clear();
    while at_us < plan.duration_ms * 1000 {
        let slow = FaultKind::SlowDisk {
            node: Target::Leader,
            sync_us: random.u64(timeout_us..4 * timeout_us),
        };
        plan.faults.push(Fault { at_us, for_us: 8 * timeout_us, kind: slow });
        plan.faults.push(Fault {
            at_us: at_us + random.u64(..timeout_us / 4),
            for_us: random.u64(timeout_us..3 * timeout_us),
            kind: FaultKind::Partition { side: vec![Target::Leader] },
        });
        at_us += 10 * timeout_us;
    }
}

/// A follower that the leader does not reach asks for votes again and again, while the other one, whose promise the
/// leader counts on, forgets all that is in memory. The promise has to hold all the same.
fn promise_race(random: &mut fastrand::Rng, plan: &mut Plan) {
    three_with_leases(plan);
    plan.network.region_latency_us = 0;
    plan.faults.clear();
    let timeout_us = timeout_us(plan);
    let beat_us = plan.cluster.tick_us * u64::from(plan.cluster.heartbeat_ticks);
    let (candidate, promiser) = (Target::Follower(1), Target::Follower(2));
    let mut at_us = 2 * timeout_us;
    while at_us < plan.duration_ms * 1000 {
        plan.faults.push(Fault {
            at_us,
            for_us: 3 * timeout_us,
            kind: FaultKind::OneWay { from: Target::Leader, to: candidate },
        });
        // Appends would tell the promiser at once that the leader is there.
        plan.faults.push(Fault {
            at_us: at_us + timeout_us - timeout_us / 4,
            for_us: 2 * timeout_us,
            kind: FaultKind::Rest,
        });
        let strikes = random.u64(1..4);
        for strike in 0..strikes {
            let at_us = at_us + timeout_us + strike * timeout_us / 2 + random.u64(..timeout_us / 2);
            let power = random.bool();
            plan.faults.push(Fault {
                at_us,
                for_us: 1,
                kind: FaultKind::Crash { node: promiser, power, after_effects: 0 },
            });
            plan.faults.push(Fault {
                at_us: at_us + 2 + random.u64(..=beat_us / 4),
                for_us: 0,
                kind: FaultKind::Campaign { node: candidate },
            });
        }
        at_us += 5 * timeout_us;
    }
}

/// A leader is cut off and stands still until the others have another one. What it is asked for meanwhile is the first
/// thing that it sees, and its lease the last thing that it remembers.
fn lease_race(random: &mut fastrand::Rng, plan: &mut Plan) {
    three_with_leases(plan);
    plan.faults.clear();
    plan.workload.clients = plan.workload.clients.max(4);
    plan.workload.think_us = plan.workload.think_us.min(10_000);
    plan.workload.put += 2;
    plan.workload.read += 4;
    let timeout_us = timeout_us(plan);
    let mut at_us = 2 * timeout_us;
    while at_us < plan.duration_ms * 1000 {
        let side = vec![Target::Leader];
        let cut = FaultKind::Partition { side };
        plan.faults.push(Fault { at_us, for_us: 5 * timeout_us, kind: cut });
        plan.faults.push(Fault {
            at_us: at_us + 1,
            for_us: random.u64(timeout_us..4 * timeout_us),
            kind: FaultKind::Pause { node: Target::Leader, late_ticks: random.u8(..4) == 0 },
        });
        at_us += 8 * timeout_us;
    }
}

/// A leader that is alone writes much, the next one little; and then they restart, one after another, while the log of
/// the new leader is still the shorter one.
fn tail_race(random: &mut fastrand::Rng, plan: &mut Plan) {
    three_alone(plan);
    plan.faults.clear();
    plan.cluster.uncommitted_bytes_max = 64 << 20;
    plan.workload.clients = 2;
    plan.workload.think_us = 50_000;
    plan.workload.timeout_ms = 500;
    let timeout_us = timeout_us(plan);
    // By then clients have given up what the first leader took.
    let alone_us = timeout_us.max(600_000);
    let mut at_us = 2 * timeout_us;
    while at_us < plan.duration_ms * 1000 {
        for target in [Target::Leader, Target::Follower(1)] {
            let cut = FaultKind::Partition { side: vec![target] };
            plan.faults.push(Fault { at_us, for_us: alone_us, kind: cut });
        }
        puts_everywhere(plan, at_us + 10, random.u64(5..25));
        for strike in 0..6 {
            plan.faults.push(Fault {
                at_us: at_us + alone_us + strike * timeout_us / 4 + random.u64(..timeout_us / 4),
                for_us: 1 + random.u64(..timeout_us / 10),
                kind: FaultKind::Crash {
                    node: Target::Follower(1 + strike % 2),
                    power: random.bool(),
                    after_effects: 0,
                },
            });
        }
        at_us += alone_us + 4 * timeout_us;
    }
}

/// The clocks of a leader and of those who promised it silence are as far apart as they may be, the leader is cut off, and
/// one of the others asks for votes around the very moment at which the promises end.
fn drift_race(random: &mut fastrand::Rng, plan: &mut Plan) {
    three_with_leases(plan);
    plan.faults.clear();
    plan.clocks.drift_ppm_max = 0;
    // A long promise of short ticks, and quick elections: one per cent of it is time enough for one.
    plan.cluster.tick_us = 20_000;
    plan.cluster.heartbeat_ticks = random.u32(1..=3);
    plan.cluster.election_ticks_min = 61;
    plan.cluster.election_ticks_max = 64;
    plan.network = Network { latency_us: 100, jitter_us: 100, ..Network::default() };
    plan.disk = Disk { sync_us: 0, sync_jitter_us: 0, ..plan.disk.clone() };
    let timeout_us = timeout_us(plan);
    let promise_us =
        plan.cluster.tick_us * u64::from(plan.cluster.election_ticks_min.saturating_sub(1));
    let mut at_us = 2 * timeout_us;
    while at_us < plan.duration_ms * 1000 {
        for (node, ppm) in [
            (Target::Leader, -DRIFT_PPM_MAX),
            (Target::Follower(1), DRIFT_PPM_MAX),
            (Target::Follower(2), DRIFT_PPM_MAX),
        ] {
            let for_us = 3 * timeout_us;
            plan.faults.push(Fault { at_us, for_us, kind: FaultKind::Drift { node, ppm } });
        }
        let cut_us = at_us + random.u64(timeout_us / 4..timeout_us / 2);
        let cut = FaultKind::Partition { side: vec![Target::Leader] };
        plan.faults.push(Fault { at_us: cut_us, for_us: 3 * timeout_us, kind: cut });
        // The last promise was made up to a beat before the cut.
        let beat_us = plan.cluster.tick_us * u64::from(plan.cluster.heartbeat_ticks);
        let margin_us = promise_us / 100;
        let from_us = cut_us + promise_us - margin_us - beat_us;
        for number in 0..(beat_us + 2 * margin_us) / 2_000 {
            plan.faults.push(Fault {
                at_us: from_us + number * 2_000,
                for_us: 0,
                kind: FaultKind::Campaign { node: Target::Follower(1) },
            });
        }
        at_us += 6 * timeout_us;
    }
}

/// Clients have nothing more to ask, the group falls asleep, and one of its nodes does not come back; or its learner does,
/// as another process, which knows nothing of the group's leader.
fn sleepers(random: &mut fastrand::Rng, plan: &mut Plan) {
    three_alone(plan);
    plan.faults.clear();
    plan.cluster.quiesce_ticks = 4;
    plan.network.loss_permille = 0;
    let timeout_us = timeout_us(plan);
    let rest_us = random.u64(3..6) * timeout_us;
    plan.duration_ms = (rest_us + 20 * timeout_us) / 1000;
    plan.faults.push(Fault { at_us: rest_us, for_us: 20 * timeout_us, kind: FaultKind::Rest });
    if random.bool() {
        plan.absent = vec![node_name(NodeId(random.u64(1..=plan.cluster.voters)))];
        return;
    }
    plan.cluster.learners = 1;
    let node = Target::Node(NodeId(plan.cluster.voters + 1));
    plan.faults.push(Fault {
        at_us: rest_us + random.u64(6..16) * timeout_us,
        for_us: random.u64(timeout_us / 8..3 * timeout_us),
        kind: FaultKind::Crash { node, power: random.bool(), after_effects: 0 },
    });
}

/// Now and then a replica writes something else than its log says; beside that, whatever was drawn that loses nobody, since
/// all are needed to find out who is wrong.
fn spoiled(random: &mut fastrand::Rng, plan: &mut Plan) {
    three_alone(plan);
    plan.workload.put += 6;
    plan.workload.think_us = plan.workload.think_us.min(10_000);
    plan.faults.retain(|fault| {
        !matches!(
            fault.kind,
            FaultKind::Members { .. }
                | FaultKind::Wipe { .. }
                | FaultKind::Damage { .. }
                | FaultKind::CrashWinner { .. }
        )
    });
    let timeout_us = timeout_us(plan);
    let mut at_us = 2 * timeout_us;
    while at_us < plan.duration_ms * 1000 {
        let node = match random.u64(..3) {
            0 => Target::Leader,
            which => Target::Follower(which),
        };
        plan.faults.push(Fault { at_us, for_us: 0, kind: FaultKind::Spoil { node } });
        at_us += random.u64(2 * timeout_us..8 * timeout_us);
    }
}

/// Three regions far apart; one after another is cut off as a whole, or loses its power, and comes back. Sometimes one stays
/// away for good: those who are left must serve.
fn lost_regions(random: &mut fastrand::Rng, plan: &mut Plan) {
    three_alone(plan);
    plan.cluster.voters = if random.bool() { 3 } else { 5 };
    let regions: Vec<u64> = if plan.cluster.voters == 3 { vec![1, 1, 1] } else { vec![2, 2, 1] };
    plan.cluster.regions.clone_from(&regions);
    plan.faults.clear();
    let timeout_us = timeout_us(plan);
    let shortest_us = plan.cluster.tick_us * u64::from(plan.cluster.election_ticks_min);
    plan.network.region_latency_us = random.u64(5_000..75_000).min(shortest_us / 10);
    let members = |region: usize| {
        let first: u64 = regions[..region].iter().sum();
        (first + 1..=first + regions[region]).map(NodeId)
    };
    let mut at_us = 2 * timeout_us;
    while at_us < plan.duration_ms * 1000 {
        let region = random.usize(..regions.len());
        let for_us = random.u64(timeout_us / 2..6 * timeout_us);
        if random.bool() {
            let side = members(region).map(Target::Node).collect();
            plan.faults.push(Fault { at_us, for_us, kind: FaultKind::Partition { side } });
        } else {
            plan.faults.extend(members(region).map(|node| Fault {
                at_us,
                for_us,
                kind: FaultKind::Crash { node: Target::Node(node), power: true, after_effects: 0 },
            }));
        }
        at_us += for_us + random.u64(timeout_us..6 * timeout_us);
    }
    if random.bool() {
        plan.absent = members(random.usize(..regions.len())).map(node_name).collect();
    }
}
