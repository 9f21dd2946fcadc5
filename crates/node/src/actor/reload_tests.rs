//! A group that panics is loaded again, alone; over real logs and state engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::try_join_all;
use metrics::NoopRecorder;
use quorate_group::Generation;
use quorate_raft::{Role, Ticket};
use quorate_types::machine::{Direction, StateError};
use quorate_types::{
    Committed, GroupId, LogIndex, MachineKind, NodeId, ReadError, StateBatch, StateMachine,
    StateReader,
};

use super::Input;
use crate::apply::Applied;
use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::local;
use crate::router::{Consistency, EngineError};

pub(super) const GROUP: GroupId = GroupId(100);
const OTHER: GroupId = GroupId(101);

/// Keeps every command as a row; a query lists them all. It panics when it applies `panic`, after it has
/// written the row, as often as it was told to.
#[derive(Debug, Default)]
struct JournalKind {
    panics_left: Arc<AtomicU64>,
}

struct Journal {
    entries: u64,
    panics_left: Arc<AtomicU64>,
}

impl StateMachine for Journal {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let mut outcomes = Vec::new();
        for one in committed {
            self.entries += 1;
            batch.put(&self.entries.to_be_bytes(), &one.command);
            let take = |left: u64| left.checked_sub(1);
            if *one.command == *b"panic" {
                let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
                assert!(self.panics_left.fetch_update(set, get, take).is_err(), "as asked");
            }
            outcomes.push(Bytes::from(self.entries.to_string()));
        }
        Ok(outcomes)
    }

    fn meta(&self) -> Bytes {
        Bytes::copy_from_slice(&self.entries.to_le_bytes())
    }
}

impl MachineKind for JournalKind {
    fn name(&self) -> &str {
        "journal"
    }

    fn open(
        &self,
        _: GroupId,
        meta: &[u8],
        _: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        let entries = meta.try_into().map_or(0, u64::from_le_bytes);
        Ok(Box::new(Journal { entries, panics_left: Arc::clone(&self.panics_left) }))
    }

    fn read(
        &self,
        _: GroupId,
        _: &Bytes,
        _: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        let mut all = Vec::new();
        state.scan(&[], None, Direction::Forward, &mut |_, command| {
            all.push(String::from_utf8_lossy(command).into_owned());
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(Bytes::from(all.join(" ")))
    }
}

pub(super) struct Nodes {
    pub(super) nodes: Vec<Engine>,
    /// How often machines still panic when they are asked to.
    panics_left: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl Nodes {
    /// So many nodes, with both groups on all of them.
    pub(super) async fn open(count: usize) -> Self {
        Self::open_with(count, |_| {}).await
    }

    /// The same, with other settings.
    pub(super) async fn open_with(count: usize, set: impl Fn(&mut EngineConfig)) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let panics_left = Arc::new(AtomicU64::new(0));
        let open = |config: EngineConfig| {
            let kind = JournalKind { panics_left: Arc::clone(&panics_left) };
            async move { Engine::open(config, vec![Arc::new(kind)], &NoopRecorder).await }
        };
        let mut configs = local::configs(count, dir.path()).expect("settings");
        configs.iter_mut().for_each(set);
        let nodes = try_join_all(configs.into_iter().map(open)).await.expect("the nodes open");
        let voters: Vec<NodeId> = nodes.iter().map(Engine::node).collect();
        for node in &nodes {
            for group in [GROUP, OTHER] {
                let created = node.create_group(group, "journal", None, voters.clone()).await;
                created.expect("created");
            }
        }
        Self { nodes, panics_left, _dir: dir }
    }

    pub(super) async fn propose(&self, group: GroupId, command: &'static str) -> Bytes {
        let proposed = self.nodes[0].propose(group, Bytes::from(command)).await;
        proposed.expect("proposed").outcome
    }

    async fn journal(&self, node: usize, group: GroupId) -> String {
        let query = self.nodes[node].read(group, Bytes::new(), Consistency::Linearizable);
        String::from_utf8_lossy(&query.await.expect("read").answer).into_owned()
    }

    /// Tells a node's replica of `GROUP` something.
    fn tell(&self, node: usize, input: Input) {
        let router = &self.nodes[node].parts.router;
        let resident = router.resident(GROUP).expect("lives here");
        router.tell(&resident, input).expect("its actor lives");
    }

    fn generation(&self, node: usize, group: GroupId) -> Option<Generation> {
        self.nodes[node].parts.with_host(|host| host.generation(group))
    }

    pub(super) async fn leader(&self) -> usize {
        let mut leadership = self.nodes[0].leadership(GROUP).expect("lives here");
        let led = leadership.wait_for(|now| now.leader.is_some()).await.expect("elected");
        let leader = led.leader.expect("there is one");
        self.nodes.iter().position(|node| node.node() == leader).expect("one of these")
    }

    pub(super) async fn shut_down(self) {
        for node in self.nodes {
            node.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_panic_in_a_handler_or_a_turn_loads_the_group_again_and_no_other() {
    let nodes = Nodes::open(1).await;
    assert_eq!(nodes.propose(GROUP, "a").await, "1");
    let (before, other) = (nodes.generation(0, GROUP), nodes.generation(0, OTHER));
    nodes.tell(0, Input::Panic { in_turn: false });
    assert_eq!(nodes.propose(GROUP, "b").await, "2");
    nodes.tell(0, Input::Panic { in_turn: true });
    assert_eq!(nodes.propose(GROUP, "c").await, "3");
    assert_eq!(nodes.journal(0, GROUP).await, "a b c");
    assert!(nodes.generation(0, GROUP) > before, "two lives later");
    assert_eq!(nodes.generation(0, OTHER), other);
    assert_eq!(nodes.propose(OTHER, "x").await, "1");
    nodes.shut_down().await;
}

#[tokio::test]
async fn a_caller_whose_proposal_may_be_in_the_log_hears_that_its_outcome_is_unknown() {
    let nodes = Nodes::open(1).await;
    nodes.propose(GROUP, "a").await;
    // One mailbox: the panic comes in the turn that has proposed, or right after it.
    let proposal = nodes.nodes[0].propose(GROUP, Bytes::from("b"));
    let told = async {
        tokio::task::yield_now().await;
        nodes.tell(0, Input::Panic { in_turn: true });
    };
    let (proposed, ()) = tokio::join!(proposal, told);
    let outcome = proposed.map(|proposed| proposed.outcome);
    assert!(
        matches!(outcome, Err(EngineError::TimedOut)) || outcome == Ok(Bytes::from("2")),
        "{outcome:?}"
    );
    nodes.propose(GROUP, "c").await;
    let journal = nodes.journal(0, GROUP).await;
    assert!(["a b c", "a c"].contains(&journal.as_str()), "{journal}");
    assert!(outcome.is_err() || journal == "a b c", "what was acknowledged is there: {journal}");
    nodes.shut_down().await;
}

#[tokio::test]
async fn completions_of_an_earlier_life_do_not_reach_the_next_one() {
    let nodes = Nodes::open(1).await;
    nodes.propose(GROUP, "a").await;
    let old = nodes.generation(0, GROUP).expect("lives here");
    nodes.tell(0, Input::Panic { in_turn: false });
    nodes.propose(GROUP, "b").await;
    let reloaded = nodes.generation(0, GROUP);
    // Each would break an invariant of the new life, which has asked for nothing of the kind.
    nodes.tell(0, Input::Persisted { generation: old, ticket: Ticket(u64::MAX) });
    let applied =
        Applied { through: LogIndex(1 << 40), outcomes: Vec::new(), checkpoints: Vec::new() };
    nodes.tell(0, Input::Applied { generation: old, applied });
    nodes.tell(0, Input::MachineFailed { generation: old });
    assert_eq!(nodes.propose(GROUP, "c").await, "3");
    assert_eq!(nodes.generation(0, GROUP), reloaded, "it lives on");
    nodes.shut_down().await;
}

#[tokio::test]
async fn a_leader_that_panics_follows_and_nothing_acknowledged_is_lost() {
    let nodes = Nodes::open(3).await;
    nodes.propose(GROUP, "a").await;
    let leader = nodes.leader().await;
    let term = nodes.nodes[leader].leadership(GROUP).expect("lives here").borrow().term;
    nodes.tell(leader, Input::Panic { in_turn: true });
    let mut leadership = nodes.nodes[leader].leadership(GROUP).expect("its actor lives");
    let follows = leadership.wait_for(|now| now.role != Role::Leader).await.map(|now| *now);
    assert!(follows.is_ok());
    nodes.propose(GROUP, "b").await;
    let now = leadership.wait_for(|now| now.leader.is_some()).await.map(|now| *now);
    assert!(now.expect("somebody leads").term > term, "a reloaded leader does not lead on");
    for node in 0..3 {
        assert_eq!(nodes.journal(node, GROUP).await, "a b");
    }
    nodes.shut_down().await;
}

#[tokio::test]
async fn a_panic_in_apply_writes_nothing_and_the_entry_is_applied_once_afterwards() {
    let nodes = Nodes::open(1).await;
    nodes.propose(GROUP, "a").await;
    nodes.panics_left.store(1, Ordering::SeqCst);
    let lost = nodes.nodes[0].propose(GROUP, Bytes::from("panic")).await;
    assert_eq!(lost.map(|proposed| proposed.id), Err(EngineError::TimedOut));
    assert_eq!(nodes.propose(GROUP, "b").await, "3");
    assert_eq!(nodes.journal(0, GROUP).await, "a panic b");
    nodes.shut_down().await;
}

#[tokio::test]
async fn a_panic_in_apply_leaves_what_other_groups_apply_at_the_same_time_alone() {
    let nodes = Nodes::open(1).await;
    for round in 1..=2_u64 {
        nodes.panics_left.store(1, Ordering::SeqCst);
        let node = &nodes.nodes[0];
        let (lost, applied) = tokio::join!(
            node.propose(GROUP, Bytes::from("panic")),
            node.propose(OTHER, Bytes::from("x"))
        );
        assert_eq!(lost.map(|proposed| proposed.id), Err(EngineError::TimedOut));
        assert_eq!(applied.expect("applied").outcome, round.to_string());
        // Loaded again, and past the entry: the next panic is not meant for that.
        nodes.journal(0, GROUP).await;
    }
    assert_eq!(nodes.journal(0, OTHER).await, "x x");
    assert_eq!(nodes.journal(0, GROUP).await, "panic panic");
    nodes.shut_down().await;
}

#[tokio::test]
async fn the_third_panic_keeps_the_group_away_and_the_others_go_on() {
    let nodes = Nodes::open(1).await;
    nodes.panics_left.store(u64::MAX, Ordering::SeqCst);
    let mut leadership = nodes.nodes[0].leadership(GROUP).expect("lives here");
    let lost = nodes.nodes[0].propose(GROUP, Bytes::from("panic")).await;
    assert_eq!(lost.map(|proposed| proposed.id), Err(EngineError::TimedOut));
    // The entry is committed, so each life meets it again.
    let gone = leadership.wait_for(|_| false).await;
    assert!(gone.is_err(), "its actor ends");
    let refused = nodes.nodes[0].propose(GROUP, Bytes::from("late")).await;
    assert_eq!(refused.map(|proposed| proposed.id), Err(EngineError::UnknownGroup(GROUP)));
    assert_eq!(nodes.propose(OTHER, "x").await, "1");
    nodes.shut_down().await;
}
