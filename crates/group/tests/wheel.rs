//! The wheel keeps track of groups through any history, compared with a slow twin that remembers everything.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use quorate_group::{FailureDetector, Heard, Wheel};
use quorate_types::{GroupId, NodeId};

const OWN: NodeId = NodeId(1);
const SILENT_TICKS_MAX: u32 = 3;
const TOLD_MAX: usize = 2;

/// What may happen to the groups and nodes of the tests: few of each, so that they meet.
#[derive(Clone, Copy, Debug)]
enum Step {
    Awake(GroupId),
    Asleep(GroupId, NodeId),
    Gone(GroupId),
    /// A tick at which these nodes are heard: bit by bit.
    Tick(u8),
    /// Another process of a node.
    Restart(NodeId),
}

fn step() -> impl Strategy<Value = Step> {
    let group = || (1..=8u64).prop_map(GroupId);
    let node = || (1..=4u64).prop_map(NodeId);
    prop_oneof![
        2 => group().prop_map(Step::Awake),
        6 => (group(), node()).prop_map(|(group, leader)| Step::Asleep(group, leader)),
        1 => group().prop_map(Step::Gone),
        8 => (0..8u8).prop_map(Step::Tick),
        1 => (2..=4u64).prop_map(|node| Step::Restart(NodeId(node))),
    ]
}

/// The other nodes, as the transport counts what comes from them.
#[derive(Default)]
struct Nodes {
    sessions: BTreeMap<NodeId, u64>,
    datagrams: BTreeMap<NodeId, u64>,
}

impl Nodes {
    fn tick(&mut self, heard: u8) -> BTreeMap<NodeId, Option<Heard>> {
        (2..=4u64)
            .map(|node| {
                let id = NodeId(node);
                let datagrams = self.datagrams.entry(id).or_default();
                *datagrams += u64::from(heard >> (node - 2) & 1);
                let session = self.sessions.get(&id).copied().unwrap_or_default();
                (id, Some(Heard { session, datagrams: *datagrams }))
            })
            .collect()
    }
}

/// One group as the twin knows it.
#[derive(Clone, Default, Debug)]
struct Twin {
    /// Under whom it sleeps; `None` while it is awake.
    leader: Option<NodeId>,
    /// What it must still hear of: a loss of its leader, or any loss where it leads.
    leader_lost: bool,
    any_lost: bool,
}

proptest! {
    #[test]
    fn who_sleeps_is_not_ticked_and_hears_of_losses_in_order_and_a_few_at_a_time(
        steps in vec(step(), 1..200),
    ) {
        let mut wheel = Wheel::new(OWN, FailureDetector::new(SILENT_TICKS_MAX), TOLD_MAX);
        let mut detector = FailureDetector::new(SILENT_TICKS_MAX);
        let (mut nodes, mut twins) = (Nodes::default(), BTreeMap::<GroupId, Twin>::new());
        for step in steps {
            match step {
                Step::Awake(group) => {
                    wheel.on_awake(group);
                    twins.insert(group, Twin::default());
                }
                Step::Asleep(group, leader) => {
                    wheel.on_asleep(group, leader);
                    let leader_lost = detector.is_gone(leader);
                    let any_lost = leader == OWN && detector.gone().count() > 0;
                    twins.insert(group, Twin { leader: Some(leader), leader_lost, any_lost });
                }
                Step::Gone(group) => {
                    wheel.on_gone(group);
                    twins.remove(&group);
                }
                Step::Restart(node) => *nodes.sessions.entry(node).or_default() += 1,
                Step::Tick(heard) => {
                    let heard = nodes.tick(heard);
                    let lost = detector.tick(&heard);
                    for twin in twins.values_mut() {
                        let Some(leader) = twin.leader else { continue };
                        twin.leader_lost |= lost.contains(&leader);
                        twin.any_lost |= leader == OWN && !lost.is_empty();
                    }
                    // The most urgent first, and then by number.
                    let mut due: Vec<_> = twins
                        .iter()
                        .filter(|(_, twin)| twin.leader_lost || twin.any_lost)
                        .map(|(&group, twin)| (!twin.leader_lost, group))
                        .collect();
                    due.sort_unstable();
                    let gone: BTreeSet<_> = detector.gone().collect();
                    let mut expected = Vec::new();
                    for (_, group) in due {
                        if expected.len() == TOLD_MAX {
                            break;
                        }
                        let twin = twins.get_mut(&group).expect("it is due");
                        let mut lost = gone.clone();
                        lost.extend(twin.leader.filter(|_| twin.leader_lost));
                        (twin.leader_lost, twin.any_lost) = (false, false);
                        // All are back: nothing is lost to a group that is led here.
                        if !lost.is_empty() {
                            expected.push((group, lost));
                        }
                    }
                    prop_assert_eq!(wheel.tick(&heard), expected);
                }
            }
            let awake: Vec<_> = twins.iter().filter(|(_, twin)| twin.leader.is_none()).collect();
            prop_assert!(wheel.awake().eq(awake.into_iter().map(|(group, _)| *group)));
            let asleep = twins.values().filter(|twin| twin.leader.is_some()).count();
            prop_assert_eq!(wheel.asleep_count(), asleep);
            prop_assert!(wheel.to_tell_count() <= asleep);
        }
    }

    #[test]
    fn every_sleeping_group_of_a_lost_leader_hears_of_it_within_a_bounded_number_of_ticks(
        groups in 1..100u64,
        told_max in 1..20usize,
    ) {
        let mut wheel = Wheel::new(OWN, FailureDetector::new(SILENT_TICKS_MAX), told_max);
        let leader = NodeId(2);
        (1..=groups).for_each(|group| wheel.on_asleep(GroupId(group), leader));
        let heard = BTreeMap::from([(leader, Some(Heard { session: 1, datagrams: 9 }))]);
        for _ in 0..SILENT_TICKS_MAX {
            prop_assert_eq!(wheel.tick(&heard), []);
        }
        let ticks = (groups as usize).div_ceil(told_max);
        let told: Vec<_> = (0..ticks).flat_map(|_| wheel.tick(&heard)).collect();
        let expected = (1..=groups).map(|group| (GroupId(group), BTreeSet::from([leader])));
        prop_assert!(told.into_iter().eq(expected));
        prop_assert_eq!(wheel.to_tell_count(), 0);
    }
}

#[test]
fn a_follower_whose_leader_is_there_sleeps_on() {
    let mut wheel = Wheel::new(OWN, FailureDetector::new(1), TOLD_MAX);
    wheel.on_asleep(GroupId(5), NodeId(2));
    let heard = |datagrams| {
        let there = |datagrams| Some(Heard { session: 1, datagrams });
        BTreeMap::from([(NodeId(2), there(datagrams)), (NodeId(3), there(0))])
    };
    for datagrams in 0..9 {
        assert_eq!(wheel.tick(&heard(datagrams)), []);
    }
    assert_eq!(wheel.tick(&heard(8)), [(GroupId(5), BTreeSet::from([NodeId(2), NodeId(3)]))]);
}
