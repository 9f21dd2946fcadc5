//! Idle groups sleep and are there when they are needed: three nodes over real QUIC, each on a runtime of its
//! own, so that one can be killed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use metrics::NoopRecorder;
use quorate_node::{
    Consistency, Engine, EngineConfig, EngineError, NodeStatus, Role, Shape, Shaped, local,
};
use quorate_types::machine::StateError;
use quorate_types::{
    Committed, GroupId, MachineKind, NodeId, ReadError, StateBatch, StateMachine, StateReader,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Only ends what would hang.
const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(20);

/// Groups of the tests.
const GROUPS: std::ops::Range<u64> = 100..160;

/// Counts its commands; a query is answered with the count.
#[derive(Debug)]
struct CountKind;

struct Count(u64);

impl StateMachine for Count {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let outcomes = committed.iter().map(|_| {
            self.0 += 1;
            Bytes::from(self.0.to_string())
        });
        let outcomes = outcomes.collect();
        batch.put(b"count", self.0.to_string().as_bytes());
        Ok(outcomes)
    }

    fn meta(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_le_bytes())
    }
}

impl MachineKind for CountKind {
    fn name(&self) -> &str {
        "count"
    }

    fn open(
        &self,
        _: GroupId,
        meta: &[u8],
        _: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        Ok(Box::new(Count(meta.try_into().map_or(0, u64::from_le_bytes))))
    }

    fn read(
        &self,
        _: GroupId,
        _: &Bytes,
        _: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        Ok(state.get(b"count")?.unwrap_or_default())
    }
}

/// A node that can be killed.
struct Node {
    engine: Arc<Engine>,
    runtime: Runtime,
}

struct Cluster {
    nodes: Vec<Node>,
    link: Arc<Shaped>,
    _dir: TempDir,
}

fn groups() -> impl Iterator<Item = GroupId> {
    GROUPS.map(GroupId)
}

impl Cluster {
    /// Three nodes with groups that fall asleep after `sleep_after`.
    async fn open(sleep_after: Duration) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let link = Arc::new(Shaped::new(1));
        let configs = local::configs(3, dir.path()).expect("settings");
        let opening = configs.into_iter().map(|config| {
            let config = EngineConfig { sleep_after, link: link.clone(), ..config };
            tokio::task::spawn_blocking(move || {
                let mut runtime = tokio::runtime::Builder::new_multi_thread();
                let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
                let kinds: Vec<Arc<dyn MachineKind>> = vec![Arc::new(CountKind)];
                let engine = runtime.block_on(Engine::open(config, kinds, &NoopRecorder));
                Node { engine: Arc::new(engine.expect("opens")), runtime }
            })
        });
        let nodes = try_join_all(opening).await.expect("no panic");
        let cluster = Self { nodes, link, _dir: dir };
        let voters: Vec<_> = cluster.nodes.iter().map(|node| node.engine.node()).collect();
        for node in &cluster.nodes {
            let create = |group| node.engine.create_group(group, "count", None, voters.clone());
            try_join_all(groups().map(create)).await.expect("created");
        }
        cluster
    }

    /// Kills a node: it says nothing to anybody.
    fn kill(&mut self, node: NodeId) {
        let at = self.nodes.iter().position(|one| one.engine.node() == node).expect("a node");
        self.nodes.remove(at).runtime.shutdown_background();
    }

    async fn close(self) {
        for Node { engine, runtime } in self.nodes {
            let engine = Arc::into_inner(engine).expect("nobody else has it");
            runtime.spawn(engine.shutdown_with_cluster()).await.expect("no panic");
            runtime.shutdown_background();
        }
    }

    async fn statuses(&self) -> Vec<NodeStatus> {
        join_all(self.nodes.iter().map(|node| node.engine.status())).await
    }

    /// Waits until the groups of all nodes sleep.
    async fn fall_asleep(&self) {
        eventually("the groups fall asleep", async || {
            let statuses = self.statuses().await;
            let mut all = statuses.iter().flat_map(|status| &status.groups);
            all.all(|group| group.asleep)
        })
        .await;
    }

    /// Who leads most groups, and which.
    async fn busiest(&self) -> (NodeId, Vec<GroupId>) {
        let led = |status: NodeStatus| {
            let led = status.groups.iter().filter(|one| one.leadership.role == Role::Leader);
            (status.node, led.map(|one| one.group).collect::<Vec<_>>())
        };
        let all = self.statuses().await.into_iter().map(led);
        all.max_by_key(|(_, groups)| groups.len()).expect("nodes")
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn count(engine: &Engine, group: GroupId) -> String {
    let read = engine.read(group, Bytes::new(), Consistency::Linearizable).await.expect("read");
    String::from_utf8_lossy(&read.answer).into_owned()
}

async fn propose(engine: &Engine, group: GroupId) -> Result<Bytes, EngineError> {
    engine.propose(group, Bytes::from_static(b"one")).await.map(|proposed| proposed.outcome)
}

#[tokio::test]
async fn groups_whose_leader_is_killed_while_they_sleep_are_led_again_without_being_asked() {
    let mut cluster = Cluster::open(Duration::from_millis(300)).await;
    let first = groups().map(|group| propose(&cluster.nodes[0].engine, group));
    assert!(join_all(first).await.iter().all(|outcome| *outcome == Ok(Bytes::from("1"))));
    cluster.fall_asleep().await;
    let (killed, orphans) = cluster.busiest().await;
    cluster.kill(killed);
    eventually("all groups have a leader that lives", async || {
        let statuses = cluster.statuses().await;
        let mut all = statuses.iter().flat_map(|status| &status.groups);
        all.all(|group| group.leadership.leader.is_some_and(|leader| leader != killed))
    })
    .await;
    // What has nothing to do with the killed node has slept on.
    let status = cluster.nodes[0].engine.status().await;
    let spared = status.groups.iter().filter(|group| !orphans.contains(&group.group));
    assert!(spared.clone().count() > 0 && spared.clone().all(|group| group.asleep), "{spared:?}");
    for node in &cluster.nodes {
        let counts = join_all(groups().map(|group| count(&node.engine, group))).await;
        assert!(counts.iter().all(|count| count == "1"), "{counts:?}");
    }
    let second = groups().map(|group| propose(&cluster.nodes[1].engine, group));
    assert!(join_all(second).await.iter().all(|outcome| *outcome == Ok(Bytes::from("2"))));
    cluster.close().await;
}

#[tokio::test]
async fn requests_wake_sleeping_groups_and_looks_do_not() {
    let cluster = Cluster::open(Duration::from_millis(300)).await;
    cluster.fall_asleep().await;
    let statuses = cluster.statuses().await;
    assert!(statuses.iter().flat_map(|status| &status.groups).all(|group| group.asleep));
    for (turn, group) in groups().take(6).enumerate() {
        // Each node is asked, whoever leads.
        let engine = &cluster.nodes[turn % 3].engine;
        if turn < 3 {
            assert_eq!(propose(engine, group).await, Ok(Bytes::from("1")));
        } else {
            assert_eq!(count(engine, group).await, "");
        }
    }
    cluster.fall_asleep().await;
    for group in groups().take(3) {
        assert_eq!(count(&cluster.nodes[0].engine, group).await, "1");
    }
    cluster.close().await;
}

#[tokio::test]
async fn a_sleeping_group_that_cannot_be_reached_at_its_leader_finds_another_when_it_is_asked() {
    let cluster = Cluster::open(Duration::from_millis(300)).await;
    cluster.fall_asleep().await;
    let (cut, led) = cluster.busiest().await;
    let group = *led.iter().find(|group| GROUPS.contains(&group.value())).expect("it leads some");
    // The connections stand, so nobody takes the node for gone.
    for node in &cluster.nodes {
        cluster.link.set_both(cut, node.engine.node(), Shape { cut: true, ..Shape::default() });
    }
    let other = cluster.nodes.iter().find(|node| node.engine.node() != cut).expect("another");
    let asked = async || match propose(&other.engine, group).await {
        Ok(_) => true,
        // The first ones may be lost on the way to the old leader.
        Err(EngineError::TimedOut | EngineError::NoLeader) => false,
        Err(error) => panic!("{error}"),
    };
    eventually("the group serves again", asked).await;
    cluster.link.heal();
    cluster.close().await;
}
