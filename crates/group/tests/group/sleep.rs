//! Groups that sleep: who wakes, for what, and who leads afterwards.

use super::*;

/// Ticks and settles until node 1 and its group sleep.
pub(crate) fn fall_asleep(cluster: &mut Cluster) {
    for _ in 0..200 {
        if cluster.groups.values().all(Group::is_asleep) {
            return;
        }
        cluster.tick(1..=3);
        cluster.settle();
    }
    panic!("the group does not fall asleep");
}

/// Tells the others that node 1 is gone.
fn lose_the_leader(cluster: &mut Cluster, told: impl IntoIterator<Item = u64>) {
    cluster.cut = vec![NodeId(1)];
    // Nobody is found to be gone sooner; the last promise of silence has ended by then.
    cluster.now = cluster.now.plus_us(1_000_000);
    for node in told {
        cluster.group(node).nodes_lost(&BTreeSet::from([NodeId(1)]));
        cluster.turn(node);
    }
}

/// Of the nodes 2 and 3, the one that should stand for election when node 1 is gone, and the other one.
fn heir() -> (u64, u64) {
    if GROUP.value().is_multiple_of(2) { (2, 3) } else { (3, 2) }
}

#[test]
fn a_sleeping_group_that_hears_of_the_loss_of_its_leader_has_another_before_a_timer_fires() {
    let mut cluster = Cluster::led_and_asleep();
    lose_the_leader(&mut cluster, [2, 3]);
    assert_eq!(cluster.group(2).leadership().leader, None, "nobody is sent to the old leader");
    let timeout = cluster.group(2).replica().config().election_ticks_min;
    for _ in 0..=timeout / 4 {
        cluster.tick([2, 3]);
        cluster.settle();
    }
    let (heir, other) = heir();
    assert!(cluster.group(heir).leadership().serving);
    assert_eq!(cluster.group(other).leadership().leader, Some(NodeId(heir)));
    // The old leader was there all the time: it follows.
    cluster.cut.clear();
    for _ in 0..3 {
        cluster.tick([2, 3]);
        cluster.settle();
    }
    assert_eq!(cluster.group(1).leadership().leader, Some(NodeId(heir)));
}

#[test]
fn a_sleeping_group_has_a_new_leader_though_the_heir_has_not_heard_of_the_loss() {
    let mut cluster = Cluster::led_and_asleep();
    let (heir, other) = heir();
    lose_the_leader(&mut cluster, [other]);
    let timeout = cluster.group(other).replica().config().election_ticks_max;
    for _ in 0..=3 * timeout {
        cluster.tick([heir, other]);
        cluster.settle();
    }
    let leads = |cluster: &mut Cluster, node| cluster.group(node).leadership().serving;
    assert!(leads(&mut cluster, heir) || leads(&mut cluster, other));
}

#[test]
fn a_sleeping_leader_wakes_for_lost_nodes_only_when_it_has_no_quorum_left() {
    let mut cluster = Cluster::led_and_asleep();
    cluster.group(1).nodes_lost(&BTreeSet::from([NodeId(3)]));
    cluster.group(2).nodes_lost(&BTreeSet::from([NodeId(3)]));
    cluster.settle();
    assert!(cluster.group(1).is_asleep() && cluster.group(2).is_asleep());
    cluster.cut = vec![NodeId(2), NodeId(3)];
    cluster.group(1).nodes_lost(&BTreeSet::from([NodeId(2), NodeId(3)]));
    let timeout = cluster.group(1).replica().config().election_ticks_min;
    for _ in 0..=timeout {
        cluster.tick([1]);
        cluster.settle();
    }
    assert_ne!(cluster.group(1).leadership().role, Role::Leader, "it could not commit anything");
}

#[test]
fn a_sleeping_leader_reads_only_after_a_round_and_its_first_write_takes_no_longer() {
    let mut cluster = Cluster::led_and_asleep();
    cluster.group(1).read('r');
    cluster.turn(1);
    assert_eq!(cluster.heard(1).grants, [], "there is no lease");
    assert_eq!(cluster.undone[&NodeId(1)].sends.len(), 2, "it asks");
    cluster.settle();
    assert_eq!(cluster.heard(1).grants.len(), 1);

    let mut cluster = Cluster::led_and_asleep();
    cluster.propose(1, 'a');
    cluster.turn(1);
    let is_append = |message: &&Message| matches!(message.body, Body::Append { .. });
    let appends = cluster.undone[&NodeId(1)].sends.iter().filter(is_append).count();
    assert_eq!(appends, 2, "the first messages carry the entry");
    cluster.settle();
    assert_eq!(cluster.heard(1).answers, [('a', Ok(Bytes::from("A")))]);
}
