//! A group keeps its promises to those who wait on it: three groups, joined by a test that carries out
//! their effects by hand.

mod distrust;
mod fitness;
mod sleep;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_group::{Checkpoint, Effect, Fitness, Group, GroupConfig, Proposed, Refusal};
use quorate_raft::{
    Config, LogState, MembershipChange, MembershipError, NodeChange, Role, SnapshotRequest, Ticket,
};
use quorate_types::{
    Body, Digest, Entry, EntryId, GroupId, LogIndex, Membership, Message, Moment, NodeId, Payload,
    SnapshotMeta, Term,
};

const GROUP: GroupId = GroupId(7);
const PROPOSAL_TICKS_MAX: u64 = 50;
const READ_TICKS_MAX: u64 = 7;
const QUIESCE_TICKS: u32 = 30;

/// What a replica has been asked to do and has not done yet.
#[derive(Default)]
struct Undone {
    appends: Vec<Ticket>,
    applies: Vec<Vec<Entry>>,
    sends: Vec<Message>,
    installs: Vec<SnapshotMeta>,
    snapshots: Vec<SnapshotRequest>,
    rebuilds: Vec<SnapshotMeta>,
}

/// What callers have heard: proposals and reads are named by letters.
#[derive(Default, Debug, PartialEq, Eq)]
struct Heard {
    answers: Vec<(char, Result<Bytes, Refusal>)>,
    grants: Vec<(char, LogIndex)>,
    denials: Vec<char>,
    divergences: Vec<NodeId>,
    distrusted: Vec<bool>,
}

struct Cluster {
    groups: BTreeMap<NodeId, Group<char, char>>,
    undone: BTreeMap<NodeId, Undone>,
    heard: BTreeMap<NodeId, Heard>,
    cut: Vec<NodeId>,
    /// Their syncs do not return.
    hung: Vec<u64>,
    /// Of all nodes; a tick of any node is 100 ms.
    now: Moment,
}

impl Cluster {
    fn new() -> Self {
        Self::quiescing(0)
    }

    /// A cluster whose group may sleep, and does.
    fn led_and_asleep() -> Self {
        let mut cluster = Self::quiescing(QUIESCE_TICKS);
        cluster.group(1).campaign();
        cluster.settle();
        sleep::fall_asleep(&mut cluster);
        assert_eq!(cluster.group(2).leadership().leader, Some(NodeId(1)));
        cluster
    }

    fn quiescing(quiesce_ticks: u32) -> Self {
        let nodes: Vec<_> = (1..=3).map(NodeId).collect();
        let last = EntryId::new(Term(1), LogIndex(1));
        let membership = Membership::of_voters(nodes.iter().copied());
        let log = LogState::of_snapshot(SnapshotMeta { last, membership });
        let group = |&node: &NodeId| {
            let config = GroupConfig {
                raft: Config { quiesce_ticks, ..Config::new(GROUP, node) },
                proposal_ticks_max: PROPOSAL_TICKS_MAX,
                read_ticks_max: READ_TICKS_MAX,
            };
            (node, Group::new(config, log.clone()))
        };
        Self {
            groups: nodes.iter().map(group).collect(),
            undone: nodes.iter().map(|&node| (node, Undone::default())).collect(),
            heard: nodes.iter().map(|&node| (node, Heard::default())).collect(),
            cut: Vec::new(),
            hung: Vec::new(),
            now: Moment::ZERO,
        }
    }

    /// A cluster in which node 1 leads and has applied its no-op everywhere.
    fn led() -> Self {
        let mut cluster = Self::new();
        cluster.group(1).campaign();
        cluster.settle();
        assert!(cluster.group(1).leadership().serving);
        cluster
    }

    fn group(&mut self, node: u64) -> &mut Group<char, char> {
        self.groups.get_mut(&NodeId(node)).expect("a node of the cluster")
    }

    fn heard(&mut self, node: u64) -> Heard {
        std::mem::take(self.heard.get_mut(&NodeId(node)).expect("a node of the cluster"))
    }

    fn tick(&mut self, nodes: impl IntoIterator<Item = u64>) {
        self.now = self.now.plus_us(100_000);
        nodes.into_iter().for_each(|node| self.group(node).tick());
    }

    fn propose(&mut self, node: u64, name: char) {
        self.group(node).propose(Bytes::from(name.to_string()), name);
    }

    /// Ends a node's turn and notes its effects.
    fn turn(&mut self, node: u64) {
        let now = self.now;
        let effects = self.group(node).turn(now, &mut |_| {});
        let node = NodeId(node);
        let undone = self.undone.get_mut(&node).expect("a node of the cluster");
        let heard = self.heard.get_mut(&node).expect("a node of the cluster");
        for effect in effects {
            match effect {
                Effect::Append { ticket, .. } => undone.appends.push(ticket),
                Effect::Send(messages) => undone.sends.extend(messages),
                Effect::Apply(entries) => undone.applies.push(entries),
                Effect::Fetch(fetch) => {
                    panic!("everything is in memory, but {fetch:?} was asked for")
                }
                Effect::Answer { slot, result } => {
                    heard.answers.push((slot, result.map(|Proposed { outcome, .. }| outcome)));
                }
                Effect::Grant { slot, index, .. } => heard.grants.push((slot, index)),
                Effect::Deny { slot, .. } => heard.denials.push(slot),
                Effect::Install(meta) => undone.installs.push(meta),
                Effect::SendSnapshot(request) => undone.snapshots.push(request),
                Effect::Rebuild(meta) => undone.rebuilds.push(meta),
                Effect::Diverged(divergence) => heard.divergences.push(divergence.peer),
                Effect::Distrusted(is) => heard.distrusted.push(is),
                Effect::Leadership(_) | Effect::Membership(_) => {}
            }
        }
    }

    fn persist(&mut self, node: u64) -> bool {
        if self.hung.contains(&node) {
            return false;
        }
        let tickets =
            std::mem::take(&mut self.undone.get_mut(&NodeId(node)).expect("known").appends);
        tickets.last().map(|&last| self.group(node).persisted(last)).is_some()
    }

    /// A machine whose outcome is the command in capitals.
    fn apply(&mut self, node: u64) -> bool {
        let applies =
            std::mem::take(&mut self.undone.get_mut(&NodeId(node)).expect("known").applies);
        assert!(applies.len() <= 1, "one apply at a time");
        for entries in &applies {
            let through = entries.last().expect("an apply has entries").id.index;
            let outcomes = entries.iter().filter_map(|entry| match &entry.payload {
                Payload::Command(command) => {
                    Some((entry.id, Bytes::from(command.to_ascii_uppercase())))
                }
                Payload::Empty | Payload::Membership(_) => None,
            });
            self.group(node).applied(through, outcomes.collect());
        }
        !applies.is_empty()
    }

    fn deliver(&mut self, node: u64) -> bool {
        let sends = std::mem::take(&mut self.undone.get_mut(&NodeId(node)).expect("known").sends);
        let any = !sends.is_empty();
        for message in sends {
            if !self.cut.contains(&message.from) && !self.cut.contains(&message.to) {
                self.group(message.to.value()).step(message);
            }
        }
        any
    }

    /// Carries everything out until nothing is left to do.
    fn settle(&mut self) {
        loop {
            let mut busy = false;
            for node in 1..=3 {
                self.turn(node);
                busy |= self.persist(node) | self.apply(node) | self.deliver(node);
            }
            if !busy {
                return;
            }
        }
    }
}

#[test]
fn a_proposal_is_answered_with_the_outcome_of_its_own_entry() {
    let mut cluster = Cluster::led();
    cluster.propose(1, 'a');
    cluster.propose(1, 'b');
    cluster.settle();
    let expected = vec![('a', Ok(Bytes::from("A"))), ('b', Ok(Bytes::from("B")))];
    assert_eq!(cluster.heard(1).answers, expected);
    assert_eq!(cluster.group(1).proposals_waiting(), 0);
}

#[test]
fn a_burst_of_proposals_becomes_one_append_and_one_message_to_each_peer() {
    let mut cluster = Cluster::led();
    ('a'..='z').for_each(|name| cluster.propose(1, name));
    cluster.turn(1);
    let undone = &cluster.undone[&NodeId(1)];
    assert_eq!(undone.appends.len(), 1);
    let is_append = |message: &&Message| matches!(message.body, Body::Append { .. });
    assert_eq!(undone.sends.iter().filter(is_append).count(), 2);
}

#[test]
fn an_acknowledgement_leaves_only_after_the_sync_it_rests_on() {
    let mut cluster = Cluster::led();
    cluster.propose(1, 'a');
    cluster.turn(1);
    cluster.deliver(1);
    cluster.turn(2);
    let acknowledges = |cluster: &Cluster| {
        let sends = &cluster.undone[&NodeId(2)].sends;
        sends.iter().any(|message| matches!(message.body, Body::AppendAccepted { .. }))
    };
    assert!(!acknowledges(&cluster), "the append is not durable yet");
    assert!(cluster.persist(2));
    cluster.turn(2);
    assert!(acknowledges(&cluster));
}

#[test]
fn the_leader_does_not_count_itself_before_its_own_sync() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(3)];
    cluster.propose(1, 'a');
    cluster.turn(1);
    cluster.deliver(1);
    cluster.turn(2);
    cluster.persist(2);
    cluster.turn(2);
    cluster.deliver(2);
    cluster.turn(1);
    assert!(cluster.undone[&NodeId(1)].applies.is_empty(), "one of three has it durably");
    cluster.settle();
    assert_eq!(cluster.heard(1).answers.len(), 1);
}

#[test]
fn a_follower_refuses_and_names_the_leader() {
    let mut cluster = Cluster::led();
    cluster.propose(2, 'a');
    cluster.turn(2);
    let leader = Some(NodeId(1));
    let term = cluster.group(2).leadership().term;
    let heard = cluster.heard(2);
    assert_eq!(heard.answers, [('a', Err(Refusal::NotLeader { leader, term }))]);
}

#[test]
fn a_follower_grants_reads_of_its_own_state_once_it_has_applied_what_was_committed() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(3)];
    cluster.propose(1, 'a');
    cluster.settle();
    cluster.cut.clear();
    let written = cluster.group(1).applied_index();
    assert!(cluster.group(3).applied_index() < written);
    cluster.group(3).read('r');
    cluster.turn(3);
    assert_eq!(cluster.undone[&NodeId(3)].sends.len(), 1, "one request to the leader");
    cluster.deliver(3);
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    assert_eq!(cluster.heard(3).grants, [('r', written)]);
}

#[test]
fn a_leader_with_a_lease_grants_reads_without_a_message() {
    let mut cluster = Cluster::led();
    cluster.tick(1..=3);
    cluster.settle();
    cluster.group(1).read('r');
    cluster.turn(1);
    assert!(cluster.undone[&NodeId(1)].sends.is_empty());
    assert_eq!(cluster.heard(1).grants.len(), 1);
}

#[test]
fn proposals_wait_for_the_end_of_a_transfer_and_are_then_refused_or_proposed() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(2)];
    cluster.group(1).transfer_leadership(NodeId(2)).expect("a voter");
    cluster.propose(1, 'a');
    cluster.settle();
    assert_eq!((cluster.group(1).proposals_waiting(), cluster.heard(1).answers), (1, vec![]));
    // Node 2 is not there: the leader goes on after an election timeout.
    for _ in 0..10 {
        cluster.tick([1]);
        cluster.settle();
    }
    assert_eq!(cluster.heard(1).answers, [('a', Ok(Bytes::from("A")))]);
    // Node 3 is, and takes over.
    cluster.group(1).transfer_leadership(NodeId(3)).expect("a voter");
    cluster.propose(1, 'b');
    cluster.settle();
    assert!(cluster.group(3).leadership().serving);
    let answers = cluster.heard(1).answers;
    assert!(matches!(answers[..], [('b', Err(Refusal::NotLeader { .. }))]), "{answers:?}");
}

#[test]
fn a_change_of_the_membership_is_answered_when_it_is_applied_or_refused_with_its_reason() {
    let mut cluster = Cluster::led();
    let learner = NodeChange::Learner { node: NodeId(3), promote: false };
    cluster.propose(1, 'a');
    cluster.group(1).change_membership(MembershipChange::of([learner]), 'm');
    cluster.propose(1, 'b');
    cluster.group(1).change_membership(MembershipChange::leave(), 'n');
    cluster.settle();
    let Heard { mut answers, .. } = cluster.heard(1);
    answers.sort_by_key(|(name, _)| *name);
    let [a, b, m, n] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((&a.1, &b.1), (&Ok(Bytes::from("A")), &Ok(Bytes::from("B"))));
    assert_eq!(m.1, Ok(Bytes::new()));
    assert!(matches!(n.1, Err(Refusal::Membership(MembershipError::Pending { .. }))), "{n:?}");
    assert!(cluster.group(3).replica().membership().learners.contains(&NodeId(3)));
    cluster.group(2).change_membership(MembershipChange::leave(), 'o');
    cluster.settle();
    assert!(matches!(cluster.heard(2).answers[..], [('o', Err(Refusal::NotLeader { .. }))]));
}

#[test]
fn a_snapshot_is_installed_after_the_apply_under_way_and_serves_reads_from_then_on() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(3)];
    cluster.propose(1, 'a');
    cluster.settle();
    let through = cluster.group(1).applied_index();
    cluster.group(1).compact(through);
    cluster.cut.clear();
    while cluster.undone[&NodeId(1)].snapshots.is_empty() {
        cluster.tick(1..=3);
        cluster.settle();
    }
    let request = cluster.undone.get_mut(&NodeId(1)).expect("known").snapshots.remove(0);
    assert_eq!((request.to, request.min_index), (NodeId(3), through));
    // The content has arrived at node 3, and its host says so.
    let replica = cluster.group(1).replica();
    let meta = replica.snapshot_meta(through).expect("applied");
    let (from, to, term) = (NodeId(1), NodeId(3), replica.term());
    let body = Body::Snapshot { meta: meta.clone() };
    cluster.group(1).snapshot_sent(to, Some(through));
    cluster.group(3).step(Message { group: GROUP, from, to, term, body });
    cluster.group(3).read('r');
    cluster.settle();
    let installs = std::mem::take(&mut cluster.undone.get_mut(&to).expect("known").installs);
    assert_eq!(installs, std::slice::from_ref(&meta));
    assert_eq!(cluster.heard(3).grants, []);
    cluster.group(3).installed(&meta);
    cluster.settle();
    assert_eq!(cluster.heard(3).grants, [('r', through)]);
    assert_eq!(cluster.group(3).applied_index(), through);
    cluster.propose(1, 'b');
    cluster.settle();
    cluster.tick(1..=3);
    cluster.settle();
    assert_eq!(cluster.group(3).applied_index(), cluster.group(1).applied_index());
}

#[test]
fn a_read_without_an_answer_is_denied_in_time() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(2)];
    cluster.group(2).read('r');
    cluster.settle();
    for _ in 0..READ_TICKS_MAX {
        cluster.tick([2]);
        cluster.settle();
    }
    assert_eq!(cluster.heard(2).denials, []);
    cluster.tick([2]);
    cluster.settle();
    assert_eq!((cluster.heard(2).denials, cluster.group(2).reads_waiting()), (vec!['r'], 0));
}

#[test]
fn a_new_leader_holds_proposals_until_its_own_noop_is_applied() {
    let mut cluster = Cluster::new();
    cluster.group(1).campaign();
    for _ in 0..20 {
        if cluster.group(1).leadership().role == Role::Leader {
            break;
        }
        for node in 1..=3 {
            cluster.turn(node);
            cluster.persist(node);
            cluster.turn(node);
            cluster.deliver(node);
        }
    }
    assert_eq!(cluster.group(1).leadership().role, Role::Leader);
    let noop = cluster.group(1).replica().last();
    cluster.propose(1, 'a');
    cluster.turn(1);
    assert_eq!(cluster.group(1).replica().last(), noop, "nothing was proposed yet");
    assert_eq!(cluster.group(1).proposals_waiting(), 1);
    cluster.settle();
    assert_eq!(cluster.heard(1).answers, [('a', Ok(Bytes::from("A")))]);
}

#[test]
fn the_reads_of_a_turn_share_one_confirmation() {
    let mut cluster = Cluster::led();
    ('a'..='z').for_each(|name| cluster.group(1).read(name));
    cluster.turn(1);
    let is_beat = |message: &&Message| matches!(message.body, Body::Heartbeat { .. });
    assert_eq!(cluster.undone[&NodeId(1)].sends.iter().filter(is_beat).count(), 2);
    assert!(cluster.heard(1).grants.is_empty(), "nobody has confirmed yet");
    cluster.settle();
    assert_eq!(cluster.heard(1).grants.len(), 26);
}

#[test]
fn a_read_sees_every_write_that_was_answered_before_it() {
    let mut cluster = Cluster::led();
    cluster.propose(1, 'a');
    cluster.settle();
    let written = cluster.group(1).applied_index();
    cluster.group(1).read('r');
    cluster.settle();
    let grants = cluster.heard(1).grants;
    assert!(matches!(grants[..], [('r', index)] if index >= written), "{grants:?}");
}

#[test]
fn a_deposed_leader_grants_no_read() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(1)];
    cluster.group(1).read('r');
    cluster.settle();
    assert_eq!(cluster.group(1).reads_waiting(), 1);
    assert_eq!(cluster.heard(1).grants, []);
    elect_another(&mut cluster);
    cluster.cut.clear();
    for _ in 0..3 {
        cluster.tick(1..=3);
        cluster.settle();
    }
    let heard = cluster.heard(1);
    assert_eq!((heard.grants, heard.denials), (vec![], vec!['r']));
}

#[test]
fn a_proposal_that_lost_its_place_is_told_so_and_one_that_kept_it_is_answered() {
    let mut cluster = Cluster::led();
    cluster.propose(1, 'a');
    cluster.settle();
    cluster.cut = vec![NodeId(1)];
    cluster.propose(1, 'b');
    cluster.settle();
    elect_another(&mut cluster);
    cluster.cut.clear();
    for _ in 0..3 {
        cluster.tick(1..=3);
        cluster.settle();
    }
    let answers = cluster.heard(1).answers;
    assert_eq!(answers[0], ('a', Ok(Bytes::from("A"))));
    assert!(matches!(answers[1], ('b', Err(Refusal::NotLeader { .. }))), "{answers:?}");
    assert_eq!(cluster.group(1).proposals_waiting(), 0);
}

#[test]
fn a_proposal_without_a_quorum_ends_as_unknown() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(1)];
    cluster.propose(1, 'a');
    cluster.settle();
    for _ in 0..=PROPOSAL_TICKS_MAX {
        cluster.tick([1]);
    }
    cluster.turn(1);
    assert_eq!(cluster.heard(1).answers, [('a', Err(Refusal::Unknown))]);
}

#[test]
fn everybody_who_waits_hears_that_the_group_is_abandoned() {
    let mut cluster = Cluster::led();
    cluster.cut = vec![NodeId(1)];
    cluster.propose(1, 'a');
    cluster.group(1).read('r');
    cluster.settle();
    cluster.propose(1, 'b');
    let mut told: Vec<char> = cluster
        .group(1)
        .abandon()
        .into_iter()
        .map(|effect| match effect {
            Effect::Answer { slot, result: Err(_) } | Effect::Deny { slot, .. } => slot,
            other => panic!("{other:?} after the end"),
        })
        .collect();
    told.sort_unstable();
    assert_eq!(told, ['a', 'b', 'r']);
}

/// Lets the nodes that are not cut off elect one of themselves, in virtual time.
fn elect_another(cluster: &mut Cluster) {
    for _ in 0..100 {
        cluster.tick(2..=3);
        cluster.settle();
        if (2..=3).any(|node| cluster.group(node).leadership().serving) {
            return;
        }
    }
    panic!("nobody was elected");
}
