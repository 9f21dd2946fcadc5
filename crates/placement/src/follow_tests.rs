//! What a group's leader does for the map, one decision at a time.

use super::*;

fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn membership(voters: &[u64], learners: &[u64]) -> Membership {
    Membership { learners: ids(learners), ..Membership::of_voters(ids(voters)) }
}

fn peer(node: u64, streams: bool, match_index: u64) -> Peer {
    Peer { node: NodeId(node), streams, heard: true, match_index: LogIndex(match_index) }
}

#[test]
fn a_change_names_each_node_that_changes_once() {
    let table = [
        (membership(&[1, 2, 3], &[]), membership(&[1, 2, 3], &[4])),
        (membership(&[1, 2, 3], &[4]), membership(&[1, 2, 4], &[])),
        (membership(&[1, 2, 3], &[4, 5]), membership(&[1], &[])),
        (membership(&[1], &[2]), membership(&[2], &[3])),
        (membership(&[1, 2], &[3]), membership(&[1], &[2, 3])),
    ];
    for (now, target) in table {
        let Difference { voters, learners, removed } = Difference::between(&now, &target);
        let mut next = now.clone();
        for node in voters.iter().chain(&learners).chain(&removed) {
            next.voters.remove(node);
            next.learners.remove(node);
        }
        next.voters.extend(&voters);
        next.learners.extend(&learners);
        assert_eq!(next, target);
        let named = voters.len() + learners.len() + removed.len();
        let all: BTreeSet<_> = voters.into_iter().chain(learners).chain(removed).collect();
        assert_eq!(all.len(), named, "{now:?} to {target:?}");
    }
    let same = membership(&[1, 2], &[3]);
    assert_eq!(Difference::between(&same, &same), Difference::default());
}

#[test]
fn who_is_silent_or_not_fed_or_has_a_long_way_to_go_gets_no_vote() {
    let membership = membership(&[1], &[2, 3, 4, 5, 6, 8]);
    let peers = [
        peer(2, true, 100),
        peer(3, true, 96),
        peer(4, true, 95),
        peer(5, false, 100),
        peer(6, true, 1),
        Peer { heard: false, ..peer(8, true, 100) },
        // A voter needs none.
        peer(7, true, 100),
    ];
    let led = Led {
        leader: NodeId(1),
        membership: &membership,
        last: LogIndex(100),
        peers: &peers,
        lag_max: 4,
    };
    assert_eq!(caught_up(&led), ids(&[2, 3]));
    // Nothing but the first entry is nothing, however short the leader's log is.
    assert_eq!(caught_up(&Led { lag_max: 1000, ..led }), ids(&[2, 3, 4]));
}

#[test]
fn the_leadership_goes_to_whoever_holds_most_and_is_fed() {
    let wanted = Wanted { voters: ids(&[2, 3, 4]), ..Wanted::default() };
    let membership = membership(&[1, 2, 3, 4], &[]);
    let with = |peers: &[Peer]| {
        let leader = NodeId(1);
        let last = LogIndex(9);
        let led = Led { leader, membership: &membership, last, peers, lag_max: LAG_MAX };
        next_action(&wanted, &led)
    };
    let peers = [peer(2, true, 7), peer(3, true, 8), peer(4, false, 9)];
    assert_eq!(with(&peers), Action::Transfer(NodeId(3)));
    assert_eq!(with(&peers[2..]), Action::Wait);
}

#[test]
fn a_new_leader_takes_no_vote_of_whom_it_only_does_not_feed_yet() {
    let wanted = Wanted { voters: ids(&[1, 2, 4]), ..Wanted::default() };
    let membership = membership(&[1, 2, 3], &[4]);
    let with = |heard| {
        let leaves = Peer { heard, ..peer(3, false, 1) };
        let peers = [peer(2, true, 9), leaves, peer(4, false, 1)];
        let leader = NodeId(1);
        let last = LogIndex(9);
        next_action(
            &wanted,
            &Led { leader, membership: &membership, last, peers: &peers, lag_max: LAG_MAX },
        )
    };
    assert_eq!(with(true), Action::Wait);
    // Its vote is worth nothing any more: it goes, whoever else comes or not.
    let removed = Difference { removed: ids(&[3]), ..Difference::default() };
    assert_eq!(with(false), Action::Change(removed));
}

#[test]
fn the_map_is_told_where_replicas_are_and_nothing_else() {
    let replicas = membership(&[1, 2], &[3]);
    let placed = Group { id: GroupId(2), replicas: replicas.clone(), reported_at: LogIndex(5) };
    assert_eq!(untold(&placed, None), None);
    let promoting = Membership { promote: ids(&[3]), auto_leave: true, ..replicas.clone() };
    assert_eq!(untold(&placed, Some(&promoting)), None);
    let moved = membership(&[1, 2, 3], &[]);
    assert_eq!(untold(&placed, Some(&moved)), Some(moved.clone()));
    assert!(is_told(&placed, Some(&replicas), &replicas));
    assert!(!is_told(&placed, Some(&replicas), &moved), "it will have to be told");
    assert!(!is_told(&placed, None, &replicas));
}

#[test]
fn a_group_with_a_node_that_the_map_has_forgotten_lets_go_of_it() {
    // The map refuses to be told of such replicas: the next step makes them some that it can be told of.
    let membership = membership(&[1, 2], &[3]);
    let led = Led {
        leader: NodeId(1),
        membership: &membership,
        last: LogIndex(9),
        peers: &[peer(2, true, 9)],
        lag_max: LAG_MAX,
    };
    let wanted = Wanted { voters: ids(&[1, 2]), ..Wanted::default() };
    let removed = Difference { removed: ids(&[3]), ..Difference::default() };
    assert_eq!(next_action(&wanted, &led), Action::Change(removed));
}

#[test]
fn a_settled_group_is_looked_at_again_for_another_map_or_leadership() {
    let group = GroupId(2);
    let mut rounds = Rounds::default();
    rounds.settle(group, 7, Term(3));
    assert!(rounds.is_settled(group, 7, Term(3)));
    assert!(!rounds.is_settled(group, 8, Term(3)));
    assert!(!rounds.is_settled(group, 7, Term(4)));
    assert!(!rounds.is_settled(GroupId(1), 7, Term(3)));
}

#[test]
fn sleeping_groups_are_looked_at_for_each_new_map_and_now_and_then() {
    let (all, awake) = ([GroupId(1), GroupId(2)], [GroupId(1)]);
    let mut rounds = Rounds::default();
    let mut next = |version| rounds.next(version, all.into_iter(), awake.into_iter()).len();
    let looks: Vec<_> = (0..=ROUNDS_PER_SWEEP).map(|_| next(1)).collect();
    assert_eq!(looks, [2, 1, 1, 1, 1, 1, 1, 1, 2]);
    assert_eq!([next(1), next(2), next(2)], [1, 2, 1]);
}
