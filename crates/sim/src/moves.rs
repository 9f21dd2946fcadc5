//! Seeds in which groups follow the placement map: nodes come, go and are replaced by way of the map, under whatever
//! else was drawn. Nobody else changes memberships there, or each would undo what the other does.

use quorate_types::NodeId;

use crate::fault::{Fault, FaultKind, Target};
use crate::plan::Plan;

/// Now and then, lets the groups of `plan` follow the map.
pub(crate) fn maybe_move(random: &mut fastrand::Rng, plan: &mut Plan) {
    if random.u32(..100) >= 12 {
        return;
    }
    let cluster = &mut plan.cluster;
    cluster.mover = true;
    cluster.placement = true;
    cluster.mover_lag_max = [0, 4, 1024][random.usize(..3)];
    cluster.outgoing = 0;
    cluster.learners = 0;
    cluster.spares = random.u64(3..=6);
    // Versions of the map must not change faster than anybody can follow.
    plan.workload.placement = plan.workload.placement.min(1);
    plan.faults.retain(|fault| !matches!(fault.kind, FaultKind::Members { .. }));
    let timeout_us = plan.cluster.tick_us * u64::from(plan.cluster.election_ticks_max);
    let nodes = plan.cluster.voters + plan.cluster.spares;
    let pause_us = timeout_us * [1, 4, 10][random.usize(..3)];
    let mut at_us = 2 * timeout_us;
    while at_us < plan.duration_ms * 1000 {
        let kind = draw(random, nodes);
        let replaces = match kind {
            FaultKind::ReplaceNode { node } => Some(node),
            _ => None,
        };
        // Often a node is replaced because it has lost what it had.
        if let Some(node) = replaces.filter(|_| random.u8(..3) == 0) {
            let at_us = at_us.saturating_sub(random.u64(1..timeout_us));
            plan.faults.push(Fault { at_us, for_us: 0, kind: FaultKind::Wipe { node } });
        }
        plan.faults.push(Fault { at_us, for_us: 0, kind });
        at_us += random.u64(1..2 * pause_us);
    }
}

fn draw(random: &mut fastrand::Rng, nodes: u64) -> FaultKind {
    let node = match random.u8(..4) {
        0 => Target::Leader,
        _ => Target::Node(NodeId(random.u64(1..=nodes))),
    };
    match random.u8(..8) {
        0..3 => FaultKind::AddNode { learner: random.u8(..3) == 0 },
        3 => FaultKind::PromoteNode,
        4..6 => FaultKind::RemoveNode { node },
        _ => FaultKind::ReplaceNode { node },
    }
}
