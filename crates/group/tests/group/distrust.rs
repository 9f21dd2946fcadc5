//! A replica whose state a majority contradicts is found out, is not read, and gets another state.

use super::*;

/// The state of `node` after the last entry comes to `digest`.
fn checkpoint(cluster: &mut Cluster, node: u64, digest: u64) -> EntryId {
    let at = cluster.group(node).replica().last();
    assert_eq!(cluster.group(node).applied_index(), at.index);
    cluster.group(node).checkpoint(Checkpoint { at, digest: Digest(digest) });
    at
}

/// A cluster led by node 1 in which `wrong` has found out that its state is wrong.
fn distrusted(wrong: u64) -> Cluster {
    let mut cluster = Cluster::led();
    cluster.propose(1, 'a');
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    (1..=3).for_each(|node| drop(cluster.heard(node)));
    for node in 1..=3 {
        checkpoint(&mut cluster, node, if node == wrong { 8 } else { 7 });
    }
    cluster.settle();
    cluster
}

/// The snapshot that `leader` was asked for arrives at `to`.
fn snapshot_arrives(cluster: &mut Cluster, leader: u64, to: u64) -> SnapshotMeta {
    let sender = cluster.undone.get_mut(&NodeId(leader)).expect("known");
    let request = sender.snapshots.remove(0);
    assert_eq!(request.to, NodeId(to));
    let replica = cluster.group(leader).replica();
    let last = replica.applied_index();
    let meta = replica.snapshot_meta(last).expect("applied");
    let (from, to, term) = (NodeId(leader), NodeId(to), replica.term());
    let body = Body::Snapshot { meta: meta.clone() };
    cluster.group(leader).snapshot_sent(to, Some(last));
    cluster.group(to.value()).step(Message { group: GROUP, from, to, term, body });
    meta
}

#[test]
fn replicas_that_agree_go_on_and_those_that_do_not_say_so() {
    let mut cluster = distrusted(0);
    for node in 1..=3 {
        assert_eq!(cluster.heard(node), Heard::default());
    }
    let mut cluster = distrusted(3);
    assert_eq!(cluster.heard(1).divergences, [NodeId(3)]);
    assert_eq!(cluster.heard(2).divergences, [NodeId(3)]);
    let heard = cluster.heard(3);
    assert_eq!(heard.divergences.len(), 2);
    assert_eq!(heard.distrusted, [true], "two against one");
}

#[test]
fn two_that_differ_are_both_left_alone() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(3)];
    checkpoint(&mut cluster, 1, 7);
    checkpoint(&mut cluster, 2, 8);
    cluster.settle();
    for (node, other) in [(1, 2), (2, 1)] {
        let heard = cluster.heard(node);
        assert_eq!((heard.divergences, heard.distrusted), (vec![NodeId(other)], Vec::new()));
        assert!(!cluster.group(node).is_distrusted());
        assert_eq!(cluster.group(node).undecided(), None, "the third one may decide");
    }
}

#[test]
fn three_that_all_differ_know_that_nobody_can_say_who_is_right() {
    let mut cluster = Cluster::led();
    cluster.propose(1, 'a');
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    let at: Vec<_> = (1..=3).map(|node| checkpoint(&mut cluster, node, node)).collect();
    cluster.settle();
    for node in 1..=3 {
        assert_eq!(cluster.group(node).undecided(), Some(at[0]), "node {node}");
        assert!(!cluster.group(node).is_distrusted());
    }
    let mut decided = distrusted(3);
    (1..=3).for_each(|node| assert_eq!(decided.group(node).undecided(), None, "node {node}"));
}

#[test]
fn a_distrusted_replica_is_not_read_but_the_group_keeps_its_acknowledgement() {
    let mut cluster = distrusted(3);
    cluster.group(3).read('r');
    cluster.cut = vec![NodeId(2)];
    cluster.propose(1, 'b');
    cluster.settle();
    assert_eq!(cluster.heard(3).denials, ['r']);
    assert_eq!(cluster.heard(1).answers, [('b', Ok(Bytes::from("B")))]);
}

#[test]
fn a_distrusted_replica_gets_the_leaders_state_and_applies_its_own_log_on_it() {
    let mut cluster = distrusted(3);
    cluster.tick(1..=3);
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    // While it is on its way, and while it is put in place, the log grows.
    let meta = snapshot_arrives(&mut cluster, 1, 3);
    let log = cluster.group(3).replica().base();
    cluster.propose(1, 'b');
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    let rebuilds = std::mem::take(&mut cluster.undone.get_mut(&NodeId(3)).expect("known").rebuilds);
    assert_eq!(rebuilds, std::slice::from_ref(&meta));
    assert!(cluster.undone[&NodeId(3)].applies.is_empty(), "rows are being replaced");
    cluster.group(3).rebuilt(&meta);
    assert_eq!(cluster.group(3).applied_index(), meta.last.index);
    cluster.settle();
    assert_eq!(cluster.group(3).applied_index(), cluster.group(1).replica().last().index);
    assert_eq!(cluster.group(3).replica().base(), log, "its log is as it was");
    assert_eq!(cluster.heard(3).distrusted, [true, false]);
    cluster.group(3).read('r');
    cluster.settle();
    assert_eq!(cluster.heard(3).grants.len(), 1);
    // It is compared again from here on.
    (1..=3).for_each(|node| drop(cluster.heard(node)));
    for node in 1..=3 {
        checkpoint(&mut cluster, node, 9);
    }
    cluster.settle();
    (1..=3).for_each(|node| assert_eq!(cluster.heard(node), Heard::default()));
}

#[test]
fn a_snapshot_older_than_what_was_applied_puts_the_state_back() {
    let mut cluster = distrusted(3);
    cluster.tick(1..=3);
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    cluster.propose(1, 'b');
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    let old = cluster.group(1).replica().snapshot_meta(LogIndex(3)).expect("in its log");
    let (from, to, term) = (NodeId(1), NodeId(3), cluster.group(1).replica().term());
    assert!(cluster.group(3).applied_index() > old.last.index);
    let body = Body::Snapshot { meta: old.clone() };
    cluster.group(3).step(Message { group: GROUP, from, to, term, body });
    cluster.settle();
    cluster.group(3).rebuilt(&old);
    assert_eq!(cluster.group(3).applied_index(), old.last.index);
    cluster.settle();
    assert_eq!(cluster.group(3).applied_index(), cluster.group(1).applied_index());
}

#[test]
fn a_distrusted_leader_answers_nobody_and_hands_over() {
    let mut cluster = Cluster::led();
    cluster.propose(1, 'a');
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    drop(cluster.heard(1));
    cluster.propose(1, 'b');
    cluster.group(1).read('r');
    cluster.turn(1);
    let at = EntryId::new(cluster.group(1).replica().term(), LogIndex(3));
    for (node, digest) in [(1, 8), (2, 7), (3, 7)] {
        cluster.group(node).checkpoint(Checkpoint { at, digest: Digest(digest) });
    }
    [2, 3].into_iter().for_each(|node| {
        cluster.turn(node);
        cluster.deliver(node);
    });
    cluster.propose(1, 'c');
    cluster.turn(1);
    let heard = cluster.heard(1);
    assert_eq!(
        heard.answers[0],
        ('b', Err(Refusal::Unknown)),
        "it may be committed, its outcome is not to be had here"
    );
    assert!(matches!(heard.answers[1], ('c', Err(Refusal::NotLeader { leader: None, .. }))));
    assert_eq!((heard.distrusted, cluster.group(1).reads_waiting()), (vec![true], 0));
    for _ in 0..5 {
        cluster.tick(1..=3);
        cluster.settle();
    }
    let leader = cluster.group(1).leadership().leader.expect("somebody leads");
    assert_ne!(leader, NodeId(1));
    // Nor does it take part as if it were well when it is asked to.
    cluster.propose(1, 'd');
    cluster.settle();
    assert!(matches!(cluster.heard(1).answers[..], [('d', Err(Refusal::NotLeader { .. }))]));
    let meta = snapshot_arrives(&mut cluster, leader.value(), 1);
    cluster.settle();
    cluster.group(1).rebuilt(&meta);
    assert!(!cluster.group(1).is_distrusted());
}

#[test]
fn a_distrusted_leader_whose_heir_is_gone_leaves_it_to_the_others() {
    let mut cluster = Cluster::led();
    let known = distrusted(3).group(3).wrong_state().expect("distrusted");
    cluster.cut = vec![NodeId(2)];
    cluster.group(1).inherit(known);
    // Who agreed then were nodes 1 and 2: nobody that could take over is among them.
    for _ in 0..60 {
        cluster.tick(1..=3);
        cluster.settle();
    }
    assert_eq!(cluster.group(3).leadership().leader, Some(NodeId(3)));
    cluster.propose(3, 'x');
    cluster.settle();
    assert!(matches!(cluster.heard(3).answers[..], [('x', Ok(_))]), "the group goes on");
}

#[test]
fn a_wrong_state_is_known_to_the_next_life_and_begins_no_other_replica() {
    let known = distrusted(3).group(3).wrong_state().expect("distrusted");
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(3)];
    for name in ['a', 'b', 'c'] {
        cluster.propose(1, name);
        cluster.settle();
    }
    let applied = cluster.group(1).applied_index();
    cluster.group(1).compact(applied);
    cluster.group(1).inherit(known);
    cluster.group(1).read('r');
    cluster.cut.clear();
    // Before it has handed over it is asked for what its log does not hold any more.
    cluster.tick(1..=2);
    cluster.settle();
    let heard = cluster.heard(1);
    assert_eq!((heard.distrusted, heard.grants.len()), (vec![true], 0));
    assert!(cluster.undone[&NodeId(1)].snapshots.is_empty(), "its rows are wrong");
    assert!(cluster.group(1).is_distrusted());
}

#[test]
fn a_snapshot_is_sent_to_a_member_once_at_a_time_and_only_by_a_leader() {
    let mut cluster = Cluster::led();
    let at = cluster.group(1).replica().last();
    let (term, digest) = (cluster.group(1).replica().term(), Digest(0));
    let ask = |cluster: &mut Cluster, from: u64, to: u64| {
        let body = Body::Digest { at, digest, wants_snapshot: true };
        let (from, to) = (NodeId(from), NodeId(to));
        cluster.group(to.value()).step(Message { group: GROUP, from, to, term, body });
        cluster.turn(to.value());
        cluster.undone[&to].snapshots.len()
    };
    assert_eq!(ask(&mut cluster, 1, 2), 0, "a follower");
    assert_eq!(ask(&mut cluster, 9, 1), 0, "a stranger");
    assert_eq!(ask(&mut cluster, 3, 1), 1);
    assert_eq!(ask(&mut cluster, 3, 1), 1, "one is under way");
    cluster.group(1).snapshot_sent(NodeId(3), None);
    assert_eq!(ask(&mut cluster, 3, 1), 2);
}
