//! The plan against a group that does what it is told, and lets others catch up when it likes.

use proptest::prelude::*;
use quorate_types::Incarnation;

use super::*;
use crate::map::Node;

fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn wanted(voters: &[u64], learners: &[u64]) -> Wanted {
    Wanted { voters: ids(voters), learners: ids(learners), successions: Vec::new() }
}

fn membership(voters: &[u64], learners: &[u64]) -> Membership {
    Membership { learners: ids(learners), ..Membership::of_voters(ids(voters)) }
}

fn step(wanted: &Wanted, leader: u64, now: &Membership, caught_up: &[u64]) -> Step {
    step_without(wanted, leader, now, caught_up, &[])
}

fn step_without(
    wanted: &Wanted,
    leader: u64,
    now: &Membership,
    caught_up: &[u64],
    dead: &[u64],
) -> Step {
    let caught_up = ids(caught_up);
    let there = now.nodes().difference(&ids(dead)).copied().collect();
    let leader = NodeId(leader);
    let (membership, caught_up) = (now, &caught_up);
    next_step(wanted, View { leader, membership, caught_up, heard: &there, there: &there })
}

#[test]
fn a_new_node_learns_before_it_votes() {
    let wanted = wanted(&[1, 2, 3, 4], &[]);
    let learning = membership(&[1, 2, 3], &[4]);
    assert_eq!(
        step(&wanted, 1, &membership(&[1, 2, 3], &[]), &[4]),
        Step::Change(learning.clone())
    );
    assert_eq!(step(&wanted, 1, &learning, &[]), Step::Wait);
    let voting = membership(&[1, 2, 3, 4], &[]);
    assert_eq!(step(&wanted, 1, &learning, &[4]), Step::Change(voting.clone()));
    assert_eq!(step(&wanted, 1, &voting, &[]), Step::Done);
}

#[test]
fn who_leaves_votes_on_while_those_left_could_not_decide() {
    let wanted = wanted(&[1, 2, 4], &[]);
    let now = membership(&[1, 2, 3], &[4]);
    // Without node 1, nodes 1 and 2 are no group.
    assert_eq!(step_without(&wanted, 2, &now, &[], &[1]), Step::Wait);
    let replaced = Step::Change(membership(&[1, 2, 4], &[]));
    assert_eq!(step_without(&wanted, 2, &now, &[4], &[1]), replaced);
    assert_eq!(step_without(&wanted, 2, &now, &[], &[]), Step::Wait);
}

#[test]
fn who_leaves_votes_on_while_those_left_could_bear_fewer_losses_than_before_and_after() {
    // Two of two must live; of three, before and after, any two.
    let now = membership(&[1, 2, 3], &[4]);
    assert_eq!(step(&wanted(&[1, 2, 4], &[]), 1, &now, &[]), Step::Wait);
    assert_eq!(step(&wanted(&[1, 2, 4], &[]), 3, &now, &[]), Step::Wait);
    let five = membership(&[1, 2, 3, 4, 5], &[6]);
    assert_eq!(step(&wanted(&[1, 2, 3, 4, 6], &[]), 1, &five, &[]), Step::Wait);
    // Two are wanted, who cannot bear more.
    let two = Step::Change(membership(&[1, 2], &[]));
    assert_eq!(step(&wanted(&[1, 2], &[]), 1, &membership(&[1, 2, 3], &[]), &[]), two);
}

#[test]
fn who_is_dead_keeps_no_vote_that_bears_no_loss() {
    // Three of five must live and three do; without the dead, two of three.
    let now = membership(&[1, 2, 3, 4, 5], &[6, 7]);
    let fewer = Step::Change(membership(&[1, 2, 3], &[6, 7]));
    let five = wanted(&[1, 2, 3, 6, 7], &[]);
    assert_eq!(step_without(&five, 1, &now, &[], &[4, 5]), fewer);
    // One that stays is dead: the end bears no loss either.
    let end = Step::Change(membership(&[1, 2, 3], &[]));
    let now = membership(&[1, 2, 3, 4, 5], &[]);
    assert_eq!(step_without(&wanted(&[1, 2, 3], &[]), 1, &now, &[], &[3]), end);
}

#[test]
fn a_learner_stays_one() {
    let wanted = wanted(&[1, 2, 3], &[4]);
    assert_eq!(step(&wanted, 1, &membership(&[1, 2, 3], &[4]), &[4]), Step::Done);
}

#[test]
fn a_leader_that_leaves_hands_over_first() {
    let wanted = wanted(&[2, 3], &[]);
    let now = membership(&[1, 2, 3], &[]);
    assert_eq!(step(&wanted, 1, &now, &[]), Step::Transfer(ids(&[2, 3])));
    assert_eq!(step(&wanted, 2, &now, &[]), Step::Change(membership(&[2, 3], &[])));
}

#[test]
fn a_leader_that_leaves_waits_for_no_dead_heir() {
    let wanted = wanted(&[3, 4, 5], &[1, 2]);
    let now = membership(&[1, 2, 3], &[4, 5]);
    // Of those that stay, only node 3 votes yet, and it is dead: others get their votes first.
    let beside = membership(&[2, 3, 4, 5], &[1]);
    assert_eq!(step_without(&wanted, 2, &now, &[4, 5], &[3]), Step::Change(beside.clone()));
    let heirs = Step::Transfer(ids(&[4, 5]));
    assert_eq!(step_without(&wanted, 2, &beside, &[], &[3]), heirs);
    // With all there, it hands over at once.
    assert_eq!(step(&wanted, 2, &now, &[4, 5]), Step::Transfer(ids(&[3])));
}

#[test]
fn the_only_voter_waits_for_its_successor_and_hands_over_to_it() {
    let wanted = Wanted { successions: vec![(NodeId(1), NodeId(2))], ..wanted(&[2], &[]) };
    let alone = membership(&[1], &[]);
    let both = membership(&[1, 2], &[]);
    assert_eq!(step(&wanted, 1, &alone, &[]), Step::Change(membership(&[1], &[2])));
    assert_eq!(step(&wanted, 1, &membership(&[1], &[2]), &[]), Step::Wait);
    assert_eq!(step(&wanted, 1, &membership(&[1], &[2]), &[2]), Step::Change(both.clone()));
    assert_eq!(step(&wanted, 1, &both, &[]), Step::Transfer(ids(&[2])));
    assert_eq!(step(&wanted, 2, &both, &[]), Step::Change(membership(&[2], &[])));
}

#[test]
fn a_replaced_voter_keeps_its_vote_until_its_successor_has_one() {
    let wanted = Wanted { successions: vec![(NodeId(3), NodeId(4))], ..wanted(&[1, 2, 4], &[]) };
    let learning = membership(&[1, 2, 3], &[4]);
    assert_eq!(step(&wanted, 1, &membership(&[1, 2, 3], &[]), &[]), Step::Change(learning.clone()));
    assert_eq!(step(&wanted, 1, &learning, &[]), Step::Wait);
    assert_eq!(step(&wanted, 1, &learning, &[4]), Step::Change(membership(&[1, 2, 4], &[])));
}

#[test]
fn nothing_is_planned_while_a_change_is_under_way() {
    let joint = Membership { outgoing: ids(&[1, 2, 3]), ..membership(&[1, 2], &[]) };
    assert_eq!(step(&wanted(&[1, 2], &[]), 1, &joint, &[]), Step::Wait);
}

#[test]
fn only_nodes_that_have_joined_are_wanted() {
    let founder = Node {
        id: NodeId(1),
        name: "n1".to_owned(),
        peer_address: "h1:2380".to_owned(),
        incarnation: Incarnation(1),
        ..Node::default()
    };
    let mut map = PlacementMap::first([founder]).unwrap();
    map.add_node("n2", "h2:2380", Standing::Voter).unwrap();
    assert_eq!(Wanted::of(&map, GroupId::FIRST_DATA), wanted(&[1], &[]));
    map.join_node("n2", "h2:2380", Incarnation(2)).unwrap();
    assert_eq!(Wanted::of(&map, GroupId::FIRST_DATA), wanted(&[1, 2], &[]));
    map.replace_node(NodeId(2), "h3:2380").unwrap();
    // It never was in a group, so it is forgotten.
    assert_eq!(Wanted::of(&map, GroupId::FIRST_DATA), wanted(&[1], &[]));
}

#[test]
fn group_1_lets_go_of_a_node_last_and_of_its_vote_at_once() {
    let founder = |id: u64| Node {
        id: NodeId(id),
        name: format!("n{id}"),
        peer_address: format!("h{id}:2380"),
        incarnation: Incarnation(id),
        ..Node::default()
    };
    let mut map = PlacementMap::first((1..=4).map(founder)).unwrap();
    map.remove_node(NodeId(4)).unwrap();
    let gone = wanted(&[1, 2, 3], &[]);
    assert_eq!(Wanted::of(&map, GroupId::FIRST_DATA), gone);
    assert_eq!(Wanted::of(&map, GroupId::PLACEMENT), wanted(&[1, 2, 3], &[4]));
    let without = membership(&[1, 2, 3], &[]);
    map.report(GroupId::FIRST_DATA, &without, quorate_types::LogIndex(9)).unwrap();
    assert_eq!(Wanted::of(&map, GroupId::PLACEMENT), gone);
    assert!(map.gone(NodeId(4)).is_none(), "group 1 has it still");
}

fn nodes(least: usize) -> impl Strategy<Value = BTreeSet<NodeId>> {
    proptest::collection::btree_set((1u64..7).prop_map(NodeId), least..6)
}

/// Wanted members; learners are no voters, successions lead from nodes that are not wanted to voters.
fn any_wanted() -> impl Strategy<Value = Wanted> {
    let successions = proptest::collection::vec((1u64..7, 1u64..7), 0..3);
    (nodes(1), nodes(0), successions).prop_map(|(voters, learners, successions)| {
        let learners: BTreeSet<_> = learners.difference(&voters).copied().collect();
        let pairs = successions.into_iter().map(|(old, new)| (NodeId(old), NodeId(new)));
        let fit = |(old, new): &(NodeId, NodeId)| {
            voters.contains(new) && !voters.contains(old) && !learners.contains(old)
        };
        let successions = pairs.filter(fit).collect();
        Wanted { voters, learners, successions }
    })
}

proptest! {
    #[test]
    fn the_plan_ends_in_the_wanted_membership_and_keeps_quorums(
        wanted in any_wanted(),
        start in nodes(1),
        learners in nodes(0),
        choices in proptest::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let learners: BTreeSet<_> = learners.difference(&start).copied().collect();
        let mut now = Membership { learners, ..Membership::of_voters(start) };
        let mut caught_up = BTreeSet::new();
        let mut leader = *now.voters.first().unwrap();
        let mut choices = choices.iter();
        for _ in 0..64 {
            let there = now.nodes();
            let (membership, heard, there) = (&now, &there, &there);
            let view =
                View { leader, membership, caught_up: &caught_up, heard, there };
            match next_step(&wanted, view) {
                Step::Done => break,
                Step::Wait => {
                    // One more learner catches up.
                    let lags: Vec<_> = now.learners.difference(&caught_up).copied().collect();
                    prop_assert!(!lags.is_empty(), "{now:?} waits for nobody, {wanted:?}");
                    caught_up.insert(lags[choices.next().unwrap().index(lags.len())]);
                }
                Step::Transfer(heirs) => {
                    prop_assert!(heirs.is_subset(&now.voters) && !heirs.contains(&leader));
                    let heirs: Vec<_> = heirs.into_iter().collect();
                    leader = heirs[choices.next().unwrap().index(heirs.len())];
                }
                Step::Change(next) => {
                    prop_assert!(next != now && !next.is_joint());
                    prop_assert!(next.voters.contains(&leader));
                    prop_assert!(next.learners.is_disjoint(&next.voters));
                    let votes = |of: &Membership| of.voters.intersection(&wanted.voters).count();
                    let majority = wanted.voters.len() / 2 + 1;
                    let dropped = now.voters.difference(&next.voters).count();
                    prop_assert!(dropped == 0 || votes(&next) >= majority, "{now:?} to {next:?}");
                    let bears = |voters: &BTreeSet<_>| (voters.len() - 1) / 2;
                    let least = bears(&now.voters).min(bears(&wanted.voters));
                    prop_assert!(bears(&next.voters) >= least, "{now:?} to {next:?}");
                    let new = next.voters.difference(&now.voters);
                    for node in new {
                        prop_assert!(now.learners.contains(node) && caught_up.contains(node));
                    }
                    now = next;
                }
            }
        }
        prop_assert_eq!(&now.voters, &wanted.voters);
        prop_assert_eq!(&now.learners, &wanted.learners);
    }
}
