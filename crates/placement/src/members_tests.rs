//! How nodes come and go: each rule, and that random changes keep the map whole.

use proptest::prelude::*;

use super::*;

/// Nodes 1 to `count`, which have joined, vote in both groups, and are called `n1`, `n2`, ...
fn founded(count: u64) -> PlacementMap {
    let node = |id| Node {
        id: NodeId(id << 32),
        name: format!("n{id}"),
        peer_address: format!("h{id}:2380"),
        incarnation: Incarnation(id),
        ..Node::default()
    };
    PlacementMap::first((1..=count).map(node)).unwrap()
}

fn founder(id: u64) -> NodeId {
    NodeId(id << 32)
}

fn everywhere(map: &mut PlacementMap, voters: &[NodeId], learners: &[NodeId], at: u64) {
    let learners = learners.iter().copied().collect();
    let replicas = Membership { learners, ..Membership::of_voters(voters.iter().copied()) };
    for group in [GroupId::PLACEMENT, GroupId::FIRST_DATA] {
        map.report(group, &replicas, LogIndex(at)).unwrap();
    }
}

#[test]
fn ids_are_allotted_once_and_never_again() {
    let mut map = founded(3);
    let first = map.add_node("n4", "h4:2380", Standing::Voter).unwrap().node;
    assert_eq!(first, NodeId(1));
    map.remove_node(first).unwrap();
    assert_eq!(map.node(first), None);
    assert_eq!(map.gone(first), Some("n4"));
    let second = map.add_node("n4", "h4:2380", Standing::Voter).unwrap().node;
    assert_eq!(second, NodeId(2));
    let decoded = PlacementMap::decode(map.encode()).unwrap();
    assert_eq!(decoded, map);
    assert_eq!((decoded.gone(first), decoded.allotted()), (Some("n4"), second));
}

#[test]
fn an_id_that_a_founder_has_by_chance_is_passed_over() {
    let founder = Node {
        id: NodeId(1),
        name: "n1".to_owned(),
        peer_address: "h1:2380".to_owned(),
        incarnation: Incarnation(1),
        ..Node::default()
    };
    let mut map = PlacementMap::first([founder]).unwrap();
    let added = map.add_node("n2", "h2:2380", Standing::Voter).unwrap().node;
    assert_eq!(added, NodeId(2));
}

#[test]
fn a_name_and_an_address_belong_to_one_node() {
    let mut map = founded(3);
    let before = map.clone();
    let add = |map: &mut PlacementMap, name, at| map.add_node(name, at, Standing::Voter);
    assert_eq!(add(&mut map, "n1", "h4:2380"), Err(MemberRefusal::NameTaken));
    assert_eq!(add(&mut map, "n4", "h1:2380"), Err(MemberRefusal::AddressTaken));
    assert_eq!(add(&mut map, "n4", ""), Err(MemberRefusal::NoAddress));
    let moved =
        Node { peer_address: "h1:2380".to_owned(), ..map.node(founder(2)).unwrap().clone() };
    assert_eq!(map.update_node(&moved), Err(MemberRefusal::AddressTaken));
    assert_eq!(map, before, "a refused change leaves the map as it was");
}

#[test]
fn a_node_joins_under_its_name_or_its_address_and_with_one_directory() {
    let mut map = founded(3);
    let named = map.add_node("n4", "h4:2380", Standing::Voter).unwrap().node;
    let nameless = map.add_node("", "h5:2380", Standing::Learner).unwrap().node;
    let directory = Incarnation(77);
    assert_eq!(map.join_node("n6", "h6:2380", directory), Err(MemberRefusal::NotFound));
    assert_eq!(map.join_node("", "h5:2380", directory), Err(MemberRefusal::NotFound));
    assert_eq!(map.join_node("n4", "elsewhere", directory).unwrap().node, named);
    assert_eq!(map.join_node("n5", "h5:2380", Incarnation(78)).unwrap().node, nameless);
    assert_eq!(map.node(nameless).unwrap().name, "n5");
    // The answer was lost: it asks again.
    assert_eq!(map.join_node("n4", "elsewhere", directory).unwrap().node, named);
    let wiped = map.join_node("n4", "h4:2380", Incarnation(79));
    assert_eq!(wiped, Err(MemberRefusal::OtherDirectory));
    let wiped = map.join_node("n1", "h1:2380", Incarnation(79));
    assert_eq!(wiped, Err(MemberRefusal::OtherDirectory), "founders, too");
}

#[test]
fn a_learner_is_promoted_and_a_voter_is_not() {
    let mut map = founded(3);
    let learner = map.add_node("n4", "h4:2380", Standing::Learner).unwrap().node;
    let second = map.add_node("n5", "h5:2380", Standing::Learner);
    assert_eq!(second, Err(MemberRefusal::TooManyLearners));
    assert_eq!(map.promote_node(founder(1)), Err(MemberRefusal::NotLearner));
    assert_eq!(map.promote_node(NodeId(99)), Err(MemberRefusal::NotFound));
    map.promote_node(learner).unwrap();
    assert_eq!(map.node(learner).unwrap().standing, Standing::Voter);
    map.promote_node(learner).unwrap();
    everywhere(&mut map, &[founder(1), founder(2), founder(3), learner], &[], 9);
    assert_eq!(map.promote_node(learner), Err(MemberRefusal::NotLearner));
}

#[test]
fn a_removed_node_stays_until_no_group_has_it() {
    let mut map = founded(3);
    map.remove_node(founder(3)).unwrap();
    assert_eq!(map.node(founder(3)).unwrap().standing, Standing::Leaving);
    assert_eq!(map.promote_node(founder(3)), Err(MemberRefusal::NotFound));
    let rest = Membership::of_voters([founder(1), founder(2)]);
    map.report(GroupId::PLACEMENT, &rest, LogIndex(5)).unwrap();
    assert!(map.node(founder(3)).is_some());
    let touched = map.report(GroupId::FIRST_DATA, &rest, LogIndex(5)).unwrap();
    assert_eq!(touched.nodes, BTreeSet::from([founder(3)]));
    assert_eq!((map.node(founder(3)), map.gone(founder(3))), (None, Some("n3")));
    assert_eq!(map.remove_node(founder(3)), Err(MemberRefusal::NotFound));
}

#[test]
fn an_older_report_changes_nothing_and_one_of_unknown_nodes_is_refused() {
    let mut map = founded(3);
    let rest = Membership::of_voters([founder(1), founder(2)]);
    map.report(GroupId::FIRST_DATA, &rest, LogIndex(7)).unwrap();
    let before = map.clone();
    let all = Membership::of_voters([founder(1), founder(2), founder(3)]);
    assert_eq!(map.report(GroupId::FIRST_DATA, &all, LogIndex(6)), Ok(Touched::default()));
    let unknown = Membership::of_voters([founder(1), NodeId(9)]);
    let refused = Err(MemberRefusal::Replicas(GroupId::FIRST_DATA));
    assert_eq!(map.report(GroupId::FIRST_DATA, &unknown, LogIndex(8)), refused);
    let nobody = Membership::default();
    assert_eq!(map.report(GroupId::FIRST_DATA, &nobody, LogIndex(8)), refused);
    let refused = Err(MemberRefusal::Replicas(GroupId(9)));
    assert_eq!(map.report(GroupId(9), &rest, LogIndex(8)), refused);
    assert_eq!(map, before);
}

#[test]
fn the_last_voter_and_the_majority_that_has_joined_cannot_be_removed() {
    let mut map = founded(1);
    assert_eq!(map.remove_node(founder(1)), Err(MemberRefusal::NotEnoughStarted));
    let second = map.add_node("n2", "h2:2380", Standing::Voter).unwrap().node;
    assert_eq!(map.remove_node(founder(1)), Err(MemberRefusal::NotEnoughStarted));
    let third = map.add_node("n3", "h3:2380", Standing::Voter);
    assert_eq!(third, Err(MemberRefusal::NotEnoughStarted), "one of three has joined");
    map.join_node("n2", "h2:2380", Incarnation(5)).unwrap();
    map.remove_node(founder(1)).unwrap();
    assert_eq!(map.remove_node(second), Err(MemberRefusal::NotEnoughStarted));
}

#[test]
fn a_replaced_node_leaves_when_its_successor_votes() {
    let mut map = founded(3);
    let new = map.replace_node(founder(2), "").unwrap().node;
    let successor = map.node(new).unwrap();
    assert_eq!((successor.name.as_str(), successor.peer_address.as_str()), ("n2", "h2:2380"));
    assert_eq!(successor.replaces, Some(founder(2)));
    assert_eq!(map.node(founder(2)).unwrap().standing, Standing::Leaving);
    assert_eq!(map.named("n2").unwrap().id, new);
    map.join_node("n2", "h2:2380", Incarnation(50)).unwrap();
    everywhere(&mut map, &[founder(1), new, founder(3)], &[], 9);
    assert_eq!(map.gone(founder(2)), Some("n2"));
    assert_eq!(map.node(new).unwrap().replaces, None);
}

#[test]
fn who_has_no_replica_is_replaced_at_once() {
    let mut map = founded(3);
    let added = map.add_node("n4", "h4:2380", Standing::Voter).unwrap().node;
    let new = map.replace_node(added, "h5:2380").unwrap().node;
    assert_eq!(map.gone(added), Some("n4"));
    let successor = map.node(new).unwrap();
    assert_eq!((successor.replaces, successor.peer_address.as_str()), (None, "h5:2380"));
}

#[derive(Clone, Debug)]
enum Change {
    Add(u8, Standing),
    Join(u8, u64),
    Promote(usize),
    Remove(usize),
    Replace(usize),
    Report(bool, Vec<usize>, u64),
}

fn change() -> impl Strategy<Value = Change> {
    let standing = prop_oneof![Just(Standing::Voter), Just(Standing::Learner)];
    prop_oneof![
        (0u8..8, standing).prop_map(|(name, standing)| Change::Add(name, standing)),
        (0u8..8, 0u64..3).prop_map(|(name, incarnation)| Change::Join(name, incarnation)),
        (0usize..8).prop_map(Change::Promote),
        (0usize..8).prop_map(Change::Remove),
        (0usize..8).prop_map(Change::Replace),
        (any::<bool>(), proptest::collection::vec(0usize..8, 0..5), 0u64..9)
            .prop_map(|(first, nodes, at)| Change::Report(first, nodes, at)),
    ]
}

proptest! {
    #[test]
    fn random_changes_keep_the_map_whole_and_never_reuse_an_id(
        changes in proptest::collection::vec(change(), 0..60),
    ) {
        let mut map = founded(3);
        let mut ever: BTreeSet<NodeId> = map.nodes().map(|node| node.id).collect();
        for change in changes {
            let before = map.clone();
            let ids: Vec<_> = map.nodes().map(|node| node.id).collect();
            let id = |at: usize| ids[at % ids.len()];
            let name = |name: u8| format!("n{name}");
            let at = |name: u8| format!("h{name}:2380");
            let added = matches!(change, Change::Add(..) | Change::Replace(_));
            let result = match change {
                Change::Add(n, standing) => map.add_node(&name(n), &at(n), standing),
                Change::Join(n, incarnation) => {
                    map.join_node(&name(n), &at(n), Incarnation(incarnation))
                }
                Change::Promote(n) => map.promote_node(id(n)),
                Change::Remove(n) => map.remove_node(id(n)),
                Change::Replace(n) => map.replace_node(id(n), ""),
                Change::Report(first, nodes, at) => {
                    let group = if first { GroupId::PLACEMENT } else { GroupId::FIRST_DATA };
                    let voters = Membership::of_voters(nodes.into_iter().map(id));
                    map.report(group, &voters, LogIndex(at))
                }
            };
            match result {
                Err(_) => prop_assert_eq!(&map, &before),
                Ok(touched) => {
                    if added {
                        prop_assert!(ever.insert(touched.node), "{} again", touched.node);
                    }
                    for node in before.nodes().filter(|node| map.node(node.id) != Some(*node)) {
                        prop_assert!(touched.nodes.contains(&node.id), "{:?} untold", node);
                    }
                }
            }
            prop_assert!(map.standing(Standing::Voter).next().is_some());
            prop_assert_eq!(PlacementMap::decode(map.encode()), Ok(map.clone()));
        }
    }
}
