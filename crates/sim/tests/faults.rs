//! What can go wrong with a node goes through the code that ships, and does what it is said to do. Each test is one plan;
//! that the same happens under everything else at once is for the seeds.

use std::collections::BTreeMap;

use quorate_raft::Role;
use quorate_sim::{
    Cluster, Counts, Disk, Fault, FaultKind, Network, Outcome, Plan, Target, TraceEvent, What,
    Workload, campaign, run,
};
use quorate_types::{GroupId, NodeId};

const SECOND: u64 = 1_000_000;

/// A quiet cluster of three, with one fault.
fn plan(kind: FaultKind, at_us: u64, for_us: u64) -> Plan {
    Plan {
        duration_ms: 30_000,
        events_max: 200_000,
        workload: Workload { placement: 0, ..Workload::default() },
        faults: vec![Fault { at_us, for_us, kind }],
        ..Plan::default()
    }
}

fn kept(plan: &Plan) -> Outcome {
    let outcome = run(plan, 1, true);
    assert_eq!(outcome.violation, None, "{plan:?}");
    outcome
}

fn node(id: u64) -> Target {
    Target::Node(NodeId(id))
}

fn all() -> Vec<Target> {
    (1..=3).map(node).collect()
}

/// What clients heard to requests of a kind that were asked and answered within a span: a word, and how often.
fn answers(
    trace: &[TraceEvent],
    of: &str,
    span_us: std::ops::Range<u64>,
) -> BTreeMap<&'static str, u32> {
    let mut asked = BTreeMap::new();
    let mut heard = BTreeMap::new();
    for event in trace.iter().filter(|event| span_us.contains(&event.at_us)) {
        match event.what {
            What::Asked { request, kind, .. } if kind == of => drop(asked.insert(request, kind)),
            What::Answered { request, result, .. } if asked.contains_key(&request) => {
                *heard.entry(result).or_default() += 1;
            }
            _ => {}
        }
    }
    heard
}

/// Who led the data group at the end of a span.
fn leader(trace: &[TraceEvent], until_us: u64) -> Option<NodeId> {
    let mut leads = None;
    for event in trace.iter().take_while(|event| event.at_us < until_us) {
        if let What::Role { group: GroupId::FIRST_DATA, role: Role::Leader, .. } = event.what {
            leads = event.node;
        }
    }
    leads
}

#[test]
fn few_seeds_have_every_kind_of_trouble() {
    let report = campaign(40_000..40_400, 2, 1, &|_| {});
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let Counts { told, unfit, refused_no_space, panics, quarantined, distrusted, rebuilt, .. } =
        report.counts;
    let Counts { map_changes, moved, .. } = report.counts;
    let seen = [told, unfit, refused_no_space, panics, quarantined, distrusted, rebuilt];
    let seen = seen.into_iter().chain([map_changes, moved]).map(|n| n > 0);
    assert!(seen.into_iter().all(|seen| seen), "{:?}", report.counts);
}

#[test]
fn a_sleeping_group_hears_of_its_lost_leader_by_what_the_network_brings() {
    let mut plan = plan(FaultKind::Rest, SECOND, 60 * SECOND);
    plan.cluster = Cluster { quiesce_ticks: 4, ..Cluster::default() };
    let quiet = kept(&plan);
    assert!(quiet.counts.asleep > 0 && quiet.counts.told == 0, "{:?}", quiet.counts);
    let first = leader(&quiet.trace, 10 * SECOND).expect("a leader");
    let side = vec![Target::Node(first)];
    let (at_us, for_us) = (10 * SECOND, 15 * SECOND);
    plan.faults.push(Fault { at_us, for_us, kind: FaultKind::Partition { side } });
    let cut = kept(&plan);
    assert!(cut.counts.told > 0, "{:?}", cut.counts);
    assert_ne!(leader(&cut.trace, 25 * SECOND), Some(first), "nobody asked for anything");
}

#[test]
fn writes_are_refused_while_disks_are_nearly_full_and_resume_by_themselves() {
    let low = FaultKind::LowDisk { nodes: all(), percent: 80 };
    let mut plan = plan(low, 5 * SECOND, 10 * SECOND);
    plan.workload.compact = 1;
    let outcome = kept(&plan);
    let of = |kind, from: u64, to: u64| answers(&outcome.trace, kind, from * SECOND..to * SECOND);
    assert!(of("put", 1, 5).keys().eq(&["ok"]), "{:?}", of("put", 1, 5));
    for grows in ["put", "swap", "batch"] {
        assert!(of(grows, 6, 15).keys().eq(&["no space"]), "{grows}: {:?}", of(grows, 6, 15));
    }
    for passes in ["delete", "compact", "read", "serializable read"] {
        assert!(of(passes, 6, 15).keys().eq(&["ok"]), "{passes}: {:?}", of(passes, 6, 15));
    }
    assert!(of("put", 16, 30).keys().eq(&["ok"]), "{:?}", of("put", 16, 30));
    assert!(outcome.counts.refused_no_space > 0);
}

#[test]
fn a_full_disk_stops_its_own_node_and_nobody_else() {
    let mut full =
        plan(FaultKind::LowDisk { nodes: vec![node(3)], percent: 20 }, 5 * SECOND, 10 * SECOND);
    // Another one leads.
    let prefer = FaultKind::Prefer { node: node(1) };
    full.faults.push(Fault { at_us: 0, for_us: 60 * SECOND, kind: prefer });
    let outcome = kept(&full);
    let applies = |of: u64, from: u64, to: u64| {
        let within = |event: &&TraceEvent| (from * SECOND..to * SECOND).contains(&event.at_us);
        let applies = |event: &&TraceEvent| matches!(event.what, What::Applied { .. });
        let of = |event: &&TraceEvent| event.node == Some(NodeId(of));
        outcome.trace.iter().filter(within).filter(applies).filter(of).count()
    };
    assert_eq!(applies(3, 6, 15), 0);
    assert!(applies(3, 1, 5) > 0 && applies(1, 6, 15) > 0 && applies(3, 16, 30) > 0);
}

#[test]
fn a_leader_whose_disk_hangs_hands_over() {
    let hung = kept(&plan(FaultKind::HungDisk { node: Target::Leader }, 5 * SECOND, 10 * SECOND));
    let first = leader(&hung.trace, 5 * SECOND);
    let second = leader(&hung.trace, 8 * SECOND);
    assert!(first.is_some() && first != second, "{first:?} {second:?}");
    let puts = answers(&hung.trace, "put", 8 * SECOND..15 * SECOND);
    assert!(puts.contains_key("ok"), "{puts:?}");

    let mut unwatched = plan(FaultKind::HungDisk { node: Target::Leader }, 5 * SECOND, 5 * SECOND);
    unwatched.disk.watched = false;
    let outcome = kept(&unwatched);
    assert_eq!(leader(&outcome.trace, 5 * SECOND), leader(&outcome.trace, 10 * SECOND));
}

#[test]
fn a_group_that_panics_is_loaded_again_alone_and_the_third_time_stays_away() {
    for in_machine in [false, true] {
        let panic = || FaultKind::Panic { node: node(2), in_machine };
        let mut thrice = plan(panic(), 5 * SECOND, 0);
        for at_us in [10 * SECOND, 15 * SECOND] {
            thrice.faults.push(Fault { at_us, for_us: 0, kind: panic() });
        }
        let outcome = kept(&thrice);
        let at = |event: &TraceEvent| (event.node, event.at_us / SECOND);
        let of = |wanted: fn(&What) -> bool| {
            let found = outcome.trace.iter().filter(|event| wanted(&event.what));
            found.map(at).collect::<Vec<_>>()
        };
        let panics = of(|what| matches!(what, What::Panicked { .. }));
        assert!(panics.iter().all(|(node, _)| *node == Some(NodeId(2))), "{panics:?}");
        let counts = (panics.len(), of(|what| matches!(what, What::Reloaded { .. })).len());
        assert_eq!(counts, (3, 2), "in the machine: {in_machine}");
        assert_eq!(outcome.counts.quarantined, 1);
        let others = of(|what| matches!(what, What::Stopped(_) | What::Paused));
        assert_eq!(others, [(Some(NodeId(2)), 30)], "only the quarantine ends with a start");
    }
}

#[test]
fn leases_live_on_while_they_are_kept_alive_and_end_by_themselves_whoever_leads() {
    for (kind, for_us) in [
        (FaultKind::Pause { node: Target::Leader, late_ticks: false }, 6 * SECOND),
        (FaultKind::Partition { side: vec![Target::Leader] }, 6 * SECOND),
        (FaultKind::Transfer { to: Target::Follower(1) }, 1),
        (FaultKind::Panic { node: Target::Leader, in_machine: true }, 1),
    ] {
        let mut leased = plan(kind, 10 * SECOND, for_us);
        leased.workload = Workload { lease: 20, watchers: 3, ..leased.workload };
        let outcome = kept(&leased);
        let Counts { expired, kept_alive, told_events, .. } = outcome.counts;
        assert!(expired >= 5, "{expired} leases ended by themselves");
        assert!(kept_alive >= 3 * expired, "{kept_alive} keep-alives, {expired} ended");
        assert!(told_events >= 1_000, "watchers were told of {told_events} events");
    }
}

#[test]
fn in_quiet_everybody_is_served_though_a_lease_ends_at_each_tick() {
    // There is room for one proposal at a time. The new leader begins all deadlines anew, so that they are over in
    // quiet, and then the end of a lease is in the way for half of each tick.
    let mut leased = plan(FaultKind::Transfer { to: Target::Follower(1) }, 4_300_000, 1);
    leased.duration_ms = 5_002;
    leased.cluster =
        Cluster { voters: 5, ticks_aligned: true, uncommitted_bytes_max: 1, ..leased.cluster };
    leased.disk = Disk { sync_us: 24_000, sync_jitter_us: 0, ..leased.disk };
    leased.workload = Workload { clients: 30, lease: 100, lease_ttl_s_max: 1, ..leased.workload };
    let outcome = kept(&leased);
    let served = answers(&outcome.trace, "put", 5_100_000..9 * SECOND);
    assert!(served["failed"] >= 3 && served["ok"] == 5, "{served:?}");
}

#[test]
fn a_spoiled_replica_is_found_and_rebuilt_from_a_snapshot() {
    for target in [Target::Leader, Target::Follower(1)] {
        let outcome = kept(&plan(FaultKind::Spoil { node: target }, 5 * SECOND, 0));
        let Counts { distrusted, rebuilt, .. } = outcome.counts;
        assert_eq!((distrusted, rebuilt), (1, 1), "{target}");
    }
    let sound = kept(&plan(FaultKind::Rest, 5 * SECOND, 1));
    assert_eq!(sound.counts.distrusted, 0);
}

#[test]
fn the_survivors_of_a_lost_region_serve_and_it_returns_without_a_word() {
    let side = vec![node(1), node(2)];
    let mut lost = plan(FaultKind::Partition { side }, 10 * SECOND, 10 * SECOND);
    lost.cluster = Cluster { voters: 5, regions: vec![2, 2, 1], ..Cluster::default() };
    lost.network = Network { region_latency_us: 20_000, ..Network::default() };
    let prefer = FaultKind::Prefer { node: node(1) };
    lost.faults.push(Fault { at_us: 0, for_us: 8 * SECOND, kind: prefer });
    let outcome = kept(&lost);
    assert!(leader(&outcome.trace, 10 * SECOND) <= Some(NodeId(2)));
    let puts = answers(&outcome.trace, "put", 14 * SECOND..20 * SECOND);
    assert!(puts.contains_key("ok"), "{puts:?}");
    let before = leader(&outcome.trace, 20 * SECOND);
    assert!(before > Some(NodeId(2)));
    assert_eq!(leader(&outcome.trace, 30 * SECOND), before, "whoever returns disturbs nobody");
}
