//! A peer may say anything: terms and indexes from nowhere, entries that are no run, answers to
//! questions that were never asked. A replica may refuse all of it, but it never panics, never
//! forgets what is committed, and keeps the contract with its driver.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;
use quorate_raft::{
    Config, LogFetch, LogState, MembershipChange, NodeChange, ReadId, Replica, Ticket, Via,
};
use quorate_types::{
    Body, Digest, Entry, EntryId, GroupId, LogIndex, Membership, Message, Moment, NodeId, Payload,
    ReadContext, SnapshotMeta, Term,
};

#[derive(Clone, Debug)]
enum Input {
    Step(Message),
    Tick,
    Campaign,
    Transfer(u64),
    Prefer(u64),
    Forget,
    Wake,
    Change(MembershipChange),
    Installed(bool),
    SnapshotSent(u64, Option<u64>),
    Compact,
    Propose(usize),
    Read,
    Persisted,
    Applied,
    Fetched(bool),
    Unreachable(u64),
    /// After so many microseconds.
    Turn(u64),
}

/// Mostly small, so that it hits something; sometimes at the edges of the type.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..12, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1), 1 => any::<u64>()]
}

fn id() -> impl Strategy<Value = EntryId> {
    (number(), number()).prop_map(|(term, index)| EntryId::new(Term(term), LogIndex(index)))
}

fn nodes() -> impl Strategy<Value = BTreeSet<NodeId>> {
    proptest::collection::btree_set((0u64..5).prop_map(NodeId), 0..4)
}

fn payload() -> impl Strategy<Value = Payload> {
    let membership = (nodes(), nodes(), nodes(), nodes(), any::<bool>());
    prop_oneof![
        4 => Just(Payload::Command(Bytes::from_static(b"hostile"))),
        1 => membership.prop_map(|(voters, outgoing, learners, promote, auto_leave)| {
            let all = Membership { voters, outgoing, learners, promote, auto_leave };
            Payload::Membership(Box::new(all))
        }),
    ]
}

fn change() -> impl Strategy<Value = MembershipChange> {
    let node = (0u64..6, 0u8..4).prop_map(|(node, kind)| match kind {
        0 => NodeChange::Voter(NodeId(node)),
        1 => NodeChange::Learner { node: NodeId(node), promote: true },
        2 => NodeChange::Learner { node: NodeId(node), promote: false },
        _ => NodeChange::Remove(NodeId(node)),
    });
    let via = prop_oneof![Just(Via::Auto), Just(Via::Joint), Just(Via::JointExplicit)];
    (proptest::collection::vec(node, 0..3), via)
        .prop_map(|(nodes, via)| MembershipChange { nodes, via })
}

/// A run from `prev` on whose terms rise, or some of whose ids are from nowhere.
fn entries(prev: EntryId) -> impl Strategy<Value = Vec<Entry>> {
    let step = (0u64..2, proptest::option::weighted(0.05, id()), payload());
    let steps = proptest::collection::vec(step, 0..6);
    steps.prop_map(move |steps| {
        let mut last = prev;
        let entries = steps.into_iter().map(|(step, other, payload)| {
            let term = last.term.value().saturating_add(step);
            let next = EntryId::new(Term(term), last.index.plus(1));
            last = other.unwrap_or(next);
            Entry { id: last, payload }
        });
        entries.collect()
    })
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        id().prop_map(|last| Body::PreVote { last }),
        any::<bool>().prop_map(|granted| Body::PreVoteReply { granted }),
        (id(), any::<bool>()).prop_map(|(last, transfer)| Body::Vote { last, transfer }),
        Just(Body::TimeoutNow),
        Just(Body::Wake),
        (id(), number()).prop_map(|(last, round)| Body::Sleep { last, round }),
        number().prop_map(|round| Body::Asleep { round }),
        (id(), number(), any::<bool>()).prop_map(|(at, digest, wants_snapshot)| {
            Body::Digest { at, digest: Digest(digest), wants_snapshot }
        }),
        (id(), nodes(), nodes()).prop_map(|(last, voters, learners)| {
            let membership = Membership { voters, learners, ..Membership::default() };
            Body::Snapshot { meta: SnapshotMeta { last, membership } }
        }),
        any::<bool>().prop_map(|granted| Body::VoteReply { granted }),
        (id(), number()).prop_flat_map(|(prev, commit)| {
            let commit = LogIndex(commit);
            entries(prev).prop_map(move |entries| Body::Append { prev, entries, commit })
        }),
        number().prop_map(|last| Body::AppendAccepted { last: LogIndex(last) }),
        (number(), id())
            .prop_map(|(refused, hint)| Body::AppendRejected { refused: LogIndex(refused), hint }),
        number().prop_map(|commit| Body::Commit { commit: LogIndex(commit) }),
        (number(), number())
            .prop_map(|(commit, round)| Body::Heartbeat { commit: LogIndex(commit), round }),
        (number(), number())
            .prop_map(|(round, promise_us)| Body::HeartbeatReply { round, promise_us }),
        (number(), number()).prop_map(|(life, number)| {
            Body::ReadIndex { context: ReadContext { life, number } }
        }),
        (0u64..2, number(), number()).prop_map(|(life, number, index)| {
            let context = ReadContext { life, number };
            Body::ReadIndexReply { context, index: LogIndex(index) }
        }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    (1u64..5, 0u64..20, number(), body()).prop_map(|(from, misled, term, body)| Message {
        group: GroupId(if misled == 0 { 3 } else { 2 }),
        from: NodeId(from),
        to: NodeId(if misled == 1 { 2 } else { 1 }),
        term: Term(term),
        body,
    })
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        10 => message().prop_map(Input::Step),
        2 => Just(Input::Tick),
        1 => Just(Input::Campaign),
        1 => (0u64..5).prop_map(Input::Transfer),
        1 => (0u64..5).prop_map(Input::Prefer),
        1 => Just(Input::Forget),
        1 => Just(Input::Wake),
        2 => change().prop_map(Input::Change),
        1 => any::<bool>().prop_map(Input::Installed),
        1 => (0u64..5, proptest::option::of(number()))
            .prop_map(|(to, last)| Input::SnapshotSent(to, last)),
        1 => Just(Input::Compact),
        1 => (0usize..4).prop_map(Input::Propose),
        1 => Just(Input::Read),
        2 => Just(Input::Persisted),
        1 => Just(Input::Applied),
        1 => any::<bool>().prop_map(Input::Fetched),
        1 => (0u64..5).prop_map(Input::Unreachable),
        5 => prop_oneof![Just(0), 0u64..300_000].prop_map(Input::Turn),
    ]
}

fn replica(voters: u64, cached_bytes_max: usize) -> Replica {
    let config = Config {
        election_ticks_min: 3,
        election_ticks_max: 5,
        append_bytes_max: 100,
        inflight_appends_max: 2,
        inflight_partial_max: voters as usize,
        eager_commit: voters.is_multiple_of(2),
        quiet_commit: voters == 3,
        inflight_bytes_max: 100,
        quiesce_ticks: u32::from(voters > 1),
        cached_bytes_max,
        ..Config::new(GroupId(2), NodeId(1))
    };
    let last = EntryId::new(Term(1), LogIndex(3));
    let membership = Membership::of_voters((1..=voters).map(NodeId));
    Replica::new(config, LogState::of_snapshot(SnapshotMeta { last, membership }))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3_000,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn no_message_makes_a_replica_panic(
        voters in 1u64..4,
        cached_bytes_max in prop_oneof![Just(0), Just(1000)],
        inputs in proptest::collection::vec(input(), 0..80),
    ) {
        let mut replica = replica(voters, cached_bytes_max);
        let mut tickets: VecDeque<Ticket> = VecDeque::new();
        let mut fetches: VecDeque<LogFetch> = VecDeque::new();
        let mut next = LogIndex(4);
        let mut now = Moment::ZERO;
        let (mut installing, mut installed) = (None, None);
        let (mut term, mut commit) = (replica.term(), replica.commit());
        for input in inputs {
            match input {
                Input::Step(message) => replica.step(message),
                Input::Tick => replica.tick(),
                Input::Campaign => replica.campaign(),
                Input::Transfer(to) => {
                    let _ = replica.transfer_leadership(NodeId(to));
                }
                Input::Prefer(node) => replica.prefer_leader(Some(NodeId(node))),
                Input::Forget => replica.forget_leader(),
                Input::Wake => replica.wake(),
                Input::Installed(succeeds) => match installing.take() {
                    Some(meta) if succeeds => {
                        replica.installed(&meta);
                        installed = Some(meta.last.index);
                    }
                    Some(_) => replica.install_failed(),
                    None => {}
                },
                Input::SnapshotSent(to, last) => {
                    // The driver never claims more than it has applied.
                    let last = last.map(|last| LogIndex(last).min(replica.applied_index()));
                    replica.snapshot_sent(NodeId(to), last);
                }
                Input::Compact => replica.compact(replica.applied_index()),
                Input::Change(change) => {
                    let _ = replica.change_membership(&change);
                }
                Input::Propose(count) => {
                    let _ = replica.propose(vec![Bytes::from_static(b"mine"); count]);
                }
                Input::Read => {
                    let _ = replica.read(ReadId(1));
                }
                Input::Persisted => {
                    tickets.pop_front().into_iter().for_each(|ticket| replica.persisted(ticket));
                }
                Input::Applied => replica.applied(replica.applying()),
                Input::Fetched(right) => {
                    if let Some(fetch) = fetches.pop_front() {
                        let indexes = fetch.from.value()..=fetch.to.value();
                        let entries = indexes.map(|index| {
                            let term = replica.term_at(LogIndex(index)).unwrap_or(Term(9));
                            let index = LogIndex(index + u64::from(!right));
                            Entry { id: EntryId::new(term, index), payload: Payload::Empty }
                        });
                        let entries = entries.collect();
                        replica.fetched(fetch, entries);
                    }
                }
                Input::Unreachable(peer) => replica.unreachable(NodeId(peer)),
                Input::Turn(us) => {
                    now = now.plus_us(us);
                    let has_ready = replica.has_ready(now);
                    let ready = replica.take_ready(now);
                    prop_assert_eq!(has_ready, !ready.is_empty());
                    tickets.extend(ready.append.map(|append| append.ticket));
                    fetches.extend(ready.fetch);
                    if let Some(last) = installed.take() {
                        // Everything begins anew behind a snapshot.
                        next = last.next();
                    }
                    installing = ready.install.or(installing);
                    for entry in &ready.committed {
                        prop_assert_eq!(entry.id.index, next, "handed out in order, once");
                        next = next.next();
                    }
                }
            }
            prop_assert!(replica.term() >= term);
            prop_assert!(replica.commit() >= commit);
            prop_assert!(replica.commit() <= replica.last().index);
            prop_assert!(replica.durable() <= replica.last().index);
            (term, commit) = (replica.term(), replica.commit());
        }
    }
}

#[test]
fn an_append_from_below_the_base_that_contradicts_it_is_ignored() {
    let mut replica = replica(3, 1000);
    let base = replica.last();
    let entry = |index| Entry {
        id: EntryId::new(Term::ZERO, LogIndex(index)),
        payload: Payload::Command(Bytes::from_static(b"hostile")),
    };
    let body = Body::Append {
        prev: EntryId::ZERO,
        entries: (1..=base.index.value() + 1).map(entry).collect(),
        commit: LogIndex(9),
    };
    let (from, to) = (NodeId(2), NodeId(1));
    replica.step(Message { group: GroupId(2), from, to, term: Term(1), body });
    assert_eq!(replica.last(), base);
    assert_eq!(replica.counters().ignored_messages, 1);
}
