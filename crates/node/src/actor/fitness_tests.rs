//! Every replica comes to know how its node's disk is, whenever it begins or wakes.
//!
//! The node's own watch over its disk is switched off here: what it would tell is shown by the test.

use std::time::Duration;

use quorate_group::{Fitness, Room};
use quorate_raft::Role;
use tokio::time::timeout;

use super::reload_tests::{GROUP, Nodes};
use crate::engine::{Engine, lock};

/// Only ends what would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first of a node's tasks is the one that looks at its disk.
fn stop_watching(node: &Engine) {
    lock(&node.parts.tasks).remove(0).abort();
}

/// Shows that the disk hangs, and tells nobody.
fn show_stall(node: &Engine) {
    let router = &node.parts.router;
    let news = router.disks.look(router.node, Room::Ample, Fitness::Stalled);
    assert!(news.is_some(), "it was fit before");
}

/// Waits until another one than `leader` leads.
async fn handed_over(nodes: &Nodes, leader: usize) {
    let mut leadership = nodes.nodes[leader].leadership(GROUP).expect("lives here");
    let own = nodes.nodes[leader].node();
    let other = leadership
        .wait_for(|now| now.role != Role::Leader && now.leader.is_some_and(|leader| leader != own));
    let moved = timeout(PATIENCE, other).await;
    assert!(moved.is_ok_and(|moved| moved.is_ok()), "the leadership goes to a fit node");
}

#[tokio::test]
async fn a_group_that_begins_while_the_disk_comes_to_hang_hears_of_it() {
    let nodes = Nodes::open(3).await;
    nodes.propose(GROUP, "a").await;
    let leader = nodes.leader().await;
    let node = &nodes.nodes[leader];
    stop_watching(node);
    let router = &node.parts.router;
    let before = router.disks.view();
    // As between the beginning of its life and the moment when it can be told anything.
    let resident = router.resident(GROUP).expect("lives here");
    router.residents.rcu(|residents| {
        let mut residents = residents.as_ref().clone();
        residents.remove(&GROUP);
        residents
    });
    show_stall(node);
    router.take_in(GROUP, resident, &before);
    handed_over(&nodes, leader).await;
    nodes.shut_down().await;
}

#[tokio::test]
async fn a_group_that_was_asleep_when_the_disk_came_to_hang_sees_it_when_it_wakes() {
    let nodes = Nodes::open_with(3, |config| config.sleep_after = Duration::from_millis(500)).await;
    nodes.propose(GROUP, "a").await;
    let leader = nodes.leader().await;
    let node = &nodes.nodes[leader];
    stop_watching(node);
    let resident = node.parts.router.resident(GROUP).expect("lives here");
    let asleep = async {
        while !resident.is_asleep() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, asleep).await.expect("it falls asleep");
    show_stall(node);
    nodes.propose(GROUP, "b").await;
    handed_over(&nodes, leader).await;
    nodes.shut_down().await;
}
