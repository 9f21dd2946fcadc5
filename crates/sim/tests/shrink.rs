//! A failure is shrunk to the faults that it needs: none, or some of many. Failures are planted by plans that may not be
//! drawn.

use std::panic;

use quorate_sim::{Cluster, Fault, FaultKind, Oracle, Plan, Shrunk, Target, node_of, run, shrink};

/// As `sim` shrinks, without the words of broken assertions.
fn shrunk(plan: &Plan, seed: u64, oracle: Oracle) -> Shrunk {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let shrunk = shrink(plan, seed, oracle, 200);
    panic::set_hook(hook);
    shrunk.expect("it fails again")
}

fn fault(at_ms: u64, for_ms: u64, kind: FaultKind) -> Fault {
    Fault { at_us: at_ms * 1000, for_us: for_ms * 1000, kind }
}

/// What disturbs nobody: jumps of wall clocks, and disks that are slower now and then.
fn harmless() -> Vec<Fault> {
    let node = |number: u64| {
        let names = ["A", "B", "C"];
        Target::Node(node_of(names[number as usize % names.len()]).expect("a node"))
    };
    let faults = (0..12).map(|number| {
        let kind = match number % 2 {
            0 => FaultKind::Jump { node: node(number), by_ms: 60_000 },
            _ => FaultKind::SlowDisk { node: node(number), sync_us: 2_000 },
        };
        fault(2_000 + number * 300, 200, kind)
    });
    faults.collect()
}

/// Leases of three voters, and faults in the order of their times.
fn plan(faults: impl IntoIterator<Item = Fault>) -> Plan {
    let mut plan = Plan { duration_ms: 10_000, ..Plan::default() };
    plan.faults = harmless();
    plan.faults.extend(faults);
    plan.faults.sort_by_key(|fault| fault.at_us);
    plan
}

fn slow_clock() -> Fault {
    // Half as fast as the others: a lease allows for one per cent.
    fault(3_000, 5_000, FaultKind::Drift { node: Target::Leader, ppm: -500_000 })
}

fn cut_off() -> Fault {
    fault(4_000, 4_000, FaultKind::Partition { side: vec![Target::Leader] })
}

#[test]
fn a_failure_that_needs_no_fault_is_shrunk_to_none() {
    let mut plan = Plan::of_seed(3);
    plan.cluster = Cluster { voters: 2, ..Cluster::default() };
    plan.absent.clear();
    assert!(plan.faults.len() > 3, "a plan with something to leave out");
    assert_eq!(run(&plan, 3, false).violation, None);
    plan.cluster.proposal_ticks_max = 0;
    plan.workload.timeout_ms = 0;
    let failed = run(&plan, 3, false).violation.expect("nobody can wait for nothing");
    assert_eq!(failed.oracle, Oracle::Liveness);
    let shrunk = shrunk(&plan, 3, failed.oracle);
    assert!(shrunk.plan.faults.is_empty(), "{:?}", shrunk.plan.faults);
}

#[test]
fn a_failure_that_needs_two_of_many_faults_is_shrunk_to_these() {
    // Either alone breaks nothing.
    for alone in [slow_clock(), cut_off()] {
        assert_eq!(run(&plan([alone]), 1, false).violation, None);
    }
    // Cut off, a leader with a clock that slow believes in its lease when the others have another leader.
    let plan = plan([slow_clock(), cut_off()]);
    let failed = run(&plan, 1, false).violation.expect("two leaders may read");
    assert_eq!(failed.oracle, Oracle::LeaseExclusivity);
    let shrunk = shrunk(&plan, 1, failed.oracle);
    assert_eq!(shrunk.plan.faults, [slow_clock(), cut_off()]);
    assert_eq!(shrunk.outcome.violation.map(|found| found.oracle), Some(failed.oracle));
}
