//! Who is let in: while a cluster is founded, by its founders' table, and by the placement map.

use std::collections::BTreeSet;

use quorate_placement::Node;
use quorate_types::{GroupId, LogIndex, Membership};

use super::*;

fn names() -> BTreeMap<NodeId, String> {
    (1..=3).map(|id| (NodeId(id), format!("n{id}"))).collect()
}

fn hello(node: u64, incarnation: u64) -> Hello {
    Hello {
        cluster_name: "c".into(),
        cluster_digest: [9; 32],
        node: NodeId(node),
        node_name: format!("n{node}"),
        incarnation: Incarnation(incarnation),
        session: 0,
        started: false,
        synced_batches: 0,
        target: NodeId(1),
    }
}

fn gathering() -> Admission {
    Admission::gathering(NodeId(1), Incarnation(10), [9; 32], names())
}

fn started() -> Admission {
    let founders = [(1, 10), (2, 20), (3, 30)].map(|(n, i)| (NodeId(n), Incarnation(i)));
    Admission::started(NodeId(1), [9; 32], names(), BTreeMap::from(founders))
}

/// The founders' map, in which ids are those of [`names`].
fn map() -> PlacementMap {
    let node = |id: u64| Node {
        id: NodeId(id),
        name: format!("n{id}"),
        peer_address: format!("h{id}:2380"),
        incarnation: Incarnation(id * 10),
        ..Node::default()
    };
    PlacementMap::first((1..=3).map(node)).expect("a map")
}

/// Lets every group have just these voters.
fn report(map: &mut PlacementMap, voters: &[u64]) {
    let replicas = Membership::of_voters(voters.iter().copied().map(NodeId));
    for group in [GroupId::PLACEMENT, GroupId::FIRST_DATA] {
        map.report(group, &replicas, LogIndex(9)).expect("fits");
    }
}

#[test]
fn a_founder_has_its_table_when_it_has_heard_all_others() {
    let mut admission = gathering();
    assert_eq!(admission.hear(&hello(2, 20)), None);
    assert_eq!(admission.hear(&hello(2, 21)), None, "n2 was wiped before anything began");
    let table = admission.hear(&hello(3, 30)).expect("all were heard");
    let expected = [(1, 10), (2, 21), (3, 30)].map(|(n, i)| (NodeId(n), Incarnation(i)));
    assert_eq!(table, BTreeMap::from(expected));
}

#[test]
fn a_wiped_node_is_refused_after_the_start() {
    let mut admission = gathering();
    admission.hear(&hello(2, 20));
    let table = admission.hear(&hello(3, 30)).expect("complete");
    admission.start(table);
    assert_eq!(admission.judge(&hello(2, 20)), Ok(()));
    assert!(admission.judge(&hello(2, 21)).is_err());
}

#[test]
fn strangers_and_nodes_of_another_initial_cluster_are_refused() {
    let mut known = started();
    known.learn(&map());
    for admission in [gathering(), started(), known] {
        assert!(admission.judge(&hello(4, 1)).is_err(), "not a member");
        assert!(admission.judge(&hello(1, 1)).is_err(), "our own id");
        assert!(admission.judge(&Hello { node_name: "n3".into(), ..hello(2, 20) }).is_err());
        assert!(admission.judge(&Hello { cluster_digest: [8; 32], ..hello(2, 20) }).is_err());
    }
}

#[test]
fn a_founder_that_meets_a_started_peer_makes_no_table_of_its_own() {
    let mut admission = gathering();
    assert_eq!(admission.hear(&hello(2, 20)), None);
    assert_eq!(admission.hear(&Hello { started: true, ..hello(3, 30) }), None);
    assert_eq!(admission.hear(&hello(2, 21)), None);
}

#[test]
fn a_table_is_adopted_only_if_it_holds_this_very_node() {
    let admission = gathering();
    let table = |own| {
        BTreeMap::from([(1, own), (2, 20), (3, 30)].map(|(n, i)| (NodeId(n), Incarnation(i))))
    };
    assert!(admission.adopt(&table(10)));
    assert!(!admission.adopt(&table(11)));
}

#[test]
fn who_has_no_id_yet_is_let_in_by_those_that_have_started() {
    let nobody = Hello { cluster_digest: [0; 32], ..hello(0, 40) };
    assert!(gathering().judge(&nobody).is_err());
    let mut admission = started();
    assert_eq!(admission.judge(&nobody), Ok(()));
    admission.learn(&map());
    assert_eq!(admission.judge(&nobody), Ok(()));
}

#[test]
fn the_map_says_who_has_come_and_who_has_gone() {
    let mut admission = started();
    let mut map = map();
    let new = map.add_node("n4", "h4:2380", Standing::Voter).expect("added").node;
    admission.learn(&map);
    let of_new = |incarnation| Hello { node: new, ..hello(4, incarnation) };
    assert!(admission.judge(&of_new(40)).is_err(), "it has not joined");
    map.join_node("n4", "h4:2380", Incarnation(40)).expect("joined");
    map.remove_node(NodeId(3)).expect("removed");
    admission.learn(&map);
    assert_eq!(admission.judge(&of_new(40)), Ok(()));
    assert!(admission.judge(&of_new(41)).is_err(), "another directory");
    assert_eq!(admission.judge(&hello(3, 30)), Ok(()), "some group may still need it");

    report(&mut map, &[1, 2]);
    let before = admission.clone();
    admission.learn(&map);
    let refused = admission.judge(&hello(3, 30));
    let reason = "node n3 (3) has been removed from the cluster".to_owned();
    assert_eq!(refused, Err(Refusal::Removed(reason)));
    // An older map, as a restarted replica may have it, is no news.
    let mut old = before;
    old.learn(&map);
    old.learn(&self::map());
    assert_eq!(old.judge(&hello(3, 30)), refused);
}

#[test]
fn a_successor_is_let_in_and_its_wiped_predecessor_not_dialed() {
    let mut admission = started();
    let mut map = map();
    let new = map.replace_node(NodeId(2), "").expect("replaced").node;
    assert!(peers_in(&map, NodeId(1)).contains_key(&NodeId(2)), "it may still be there");
    map.join_node("n2", "h2:2380", Incarnation(50)).expect("joined");
    admission.learn(&map);
    assert_eq!(admission.judge(&Hello { node: new, ..hello(2, 50) }), Ok(()));
    let peers = peers_in(&map, NodeId(1));
    assert_eq!(peers.keys().copied().collect::<BTreeSet<_>>(), [new, NodeId(3)].into());
    assert_eq!(peers[&new], ("n2".to_owned(), "h2:2380".to_owned()));
}
