//! What a leader does whose node's disk hangs or is all but full, and what such a node still does.

use super::*;

#[test]
fn a_leader_whose_disk_hangs_hands_over_without_it() {
    let mut cluster = Cluster::led();
    cluster.hung = vec![1];
    cluster.propose(1, 'a');
    cluster.settle();
    cluster.group(1).set_fitness(Fitness::Stalled, &BTreeSet::new());
    cluster.settle();
    assert_eq!(cluster.group(3).leadership().role, Role::Leader, "it has as much as 2");
    assert_eq!(cluster.group(1).leadership().leader, Some(NodeId(3)));
    // What it had proposed is in the log of its heir, and it hears of it when its disk returns.
    cluster.hung.clear();
    cluster.group(1).set_fitness(Fitness::Fit, &BTreeSet::new());
    cluster.settle();
    assert_eq!(cluster.heard(1).answers, [('a', Ok(Bytes::from("A")))]);
}

#[test]
fn a_leader_whose_disk_hangs_steps_down_if_nobody_takes_over_and_does_not_campaign() {
    let mut cluster = Cluster::led();
    // Nobody acknowledges, so nobody can be told to take over.
    cluster.hung = vec![1, 2, 3];
    cluster.propose(1, 'a');
    for tick in 0..5 {
        cluster.group(1).set_fitness(Fitness::Stalled, &BTreeSet::new());
        cluster.settle();
        if tick == 0 {
            assert_eq!(cluster.group(1).leadership().role, Role::Leader, "it tries first");
        }
        cluster.tick(1..=3);
    }
    assert_eq!(cluster.group(1).leadership().role, Role::Follower);
    let term = cluster.group(1).leadership().term;
    cluster.cut = vec![NodeId(1)];
    for _ in 0..100 {
        cluster.tick([1]);
        cluster.turn(1);
    }
    let leadership = cluster.group(1).leadership();
    assert_eq!((leadership.role, leadership.term), (Role::Follower, term));
    cluster.hung.clear();
    elect_another(&mut cluster);
}

#[test]
fn a_leader_stays_where_nobody_could_be_elected_who_is_better_off() {
    let mut cluster = Cluster::led();
    let others = BTreeSet::from([2, 3].map(NodeId));
    for _ in 0..20 {
        cluster.group(1).set_fitness(Fitness::Stalled, &others);
        cluster.settle();
        cluster.tick(1..=3);
    }
    assert_eq!(cluster.group(1).leadership().role, Role::Leader);
}

#[test]
fn a_node_without_room_takes_nothing_and_applies_nothing_but_answers_beats() {
    let mut cluster = Cluster::led();
    let nobody = BTreeSet::new();
    cluster.group(2).set_fitness(Fitness::Exhausted, &nobody);
    let last = cluster.group(2).replica().last();
    cluster.cut = vec![NodeId(3)];
    cluster.propose(1, 'a');
    // CheckQuorum holds on its answers alone: longer than an election timeout.
    for _ in 0..40 {
        cluster.tick(1..=2);
        cluster.settle();
    }
    assert_eq!(cluster.group(1).leadership().role, Role::Leader);
    assert_eq!(cluster.group(2).replica().last(), last);
    assert_eq!(cluster.heard(1).answers, [], "no quorum has it");
    cluster.group(2).set_fitness(Fitness::Fit, &nobody);
    for _ in 0..40 {
        cluster.tick(1..=2);
        cluster.settle();
    }
    assert_eq!(cluster.heard(1).answers, [('a', Ok(Bytes::from("A")))]);
    let applied = cluster.group(2).applied_index();
    assert_eq!(applied, cluster.group(1).applied_index());
}
