//! Replicas of the keyspace that differ: an alarm where nobody can say which is right, and none where a majority
//! can. Nodes over real QUIC and RocksDB in one process; what goes wrong is a machine that applies another command
//! than the others once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use prost::Message;
use quorate::alarms::tell_of_corruption;
use quorate::exporter::Exporter;
use quorate_node::{Consistency, Engine, InitialGroup, KvKind, local};
use quorate_types::auth::Caller;
use quorate_types::kv::{self, KvError, command, outcome, query};
use quorate_types::kv_maintenance::{Alarm, AlarmKind, ChangeAlarm, Conditions};
use quorate_types::machine::{Feed, ReadError, RowScope, StateError};
use quorate_types::{
    Committed, Digest, Due, GroupId, KeyRange, Led, MachineKind, Moment, StateBatch, StateMachine,
    StateReader, Term,
};

const GROUP: GroupId = GroupId::FIRST_DATA;

/// Only ends what would hang.
const PATIENCE: Duration = Duration::from_secs(90);

/// More entries than lie between two comparisons, and by so little that there is one in between, not two.
const ENTRIES: usize = 1_050;

/// The keyspace, but for one command.
#[derive(Debug, Default)]
struct Spoiling {
    keyspace: KvKind,
    /// The next command is another one here.
    spoils: Arc<AtomicBool>,
}

struct Spoiled {
    machine: Box<dyn StateMachine>,
    spoils: Arc<AtomicBool>,
}

impl StateMachine for Spoiled {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let mut committed = committed.to_vec();
        if let Some(first) = committed.first_mut()
            && self.spoils.swap(false, Ordering::Relaxed)
        {
            first.command = put("spoiled");
        }
        self.machine.apply(&committed, batch)
    }

    fn take_feed(&mut self) -> Option<Feed> {
        self.machine.take_feed()
    }

    fn meta(&self) -> Bytes {
        self.machine.meta()
    }

    fn digest(&self) -> Option<Digest> {
        self.machine.digest()
    }

    fn sweep(
        &mut self,
        budget_rows: usize,
        batch: &mut dyn StateBatch,
    ) -> Result<bool, StateError> {
        self.machine.sweep(budget_rows, batch)
    }
}

impl MachineKind for Spoiling {
    fn name(&self) -> &str {
        self.keyspace.name()
    }

    fn grows(&self, command: &Bytes) -> bool {
        self.keyspace.grows(command)
    }

    fn scope(&self) -> RowScope {
        self.keyspace.scope()
    }

    fn open(
        &self,
        group: GroupId,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        let machine = self.keyspace.open(group, meta, state)?;
        Ok(Box::new(Spoiled { machine, spoils: Arc::clone(&self.spoils) }))
    }

    fn read(
        &self,
        group: GroupId,
        query: &Bytes,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        self.keyspace.read(group, query, meta, state)
    }

    fn on_leadership(&self, group: GroupId, term: Option<Term>) {
        self.keyspace.on_leadership(group, term);
    }

    fn tick(&self, now: Moment) -> Vec<Due> {
        self.keyspace.tick(now)
    }

    fn read_led(
        &self,
        group: GroupId,
        query: &Bytes,
        led: Led,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        self.keyspace.read_led(group, query, led, meta, state)
    }
}

fn put(key: &str) -> Bytes {
    let put = kv::Put { key: key.to_owned().into(), value: "v".into(), ..kv::Put::default() };
    let body = Some(command::Body::Put(put));
    kv::Command { body, ..kv::Command::default() }.encode_to_vec().into()
}

struct Cluster {
    nodes: Vec<Arc<Engine>>,
    spoils: Vec<Arc<AtomicBool>>,
    exporters: Vec<Exporter>,
    alarms: Vec<tokio::task::JoinHandle<()>>,
}

impl Cluster {
    async fn open(count: usize, dir: &Path) -> Self {
        let mut configs = local::configs(count, dir).expect("settings");
        for config in &mut configs {
            let (id, kind, range) = (GROUP, KvKind::NAME.to_owned(), Some(KeyRange::all()));
            config.initial_groups = vec![InitialGroup { id, kind, range }];
        }
        let kinds: Vec<_> = (0..count).map(|_| Arc::new(Spoiling::default())).collect();
        let spoils = kinds.iter().map(|kind| Arc::clone(&kind.spoils)).collect();
        let exporter = |number: usize| Exporter::new(&format!("n{number}")).expect("metrics");
        let exporters: Vec<_> = (0..count).map(exporter).collect();
        let recorders: Vec<_> = exporters.iter().map(Exporter::recorder).collect();
        let opening = configs.into_iter().zip(kinds).zip(&recorders);
        let opening =
            opening.map(|((config, kind), to)| Engine::open(config, vec![kind as _], &**to));
        let nodes = try_join_all(opening).await.expect("the nodes open");
        let nodes: Vec<_> = nodes.into_iter().map(Arc::new).collect();
        let tell = |node: &Arc<Engine>| {
            let node = Arc::clone(node);
            tokio::spawn(async move { tell_of_corruption(&node).await })
        };
        let alarms = nodes.iter().map(tell).collect();
        Self { nodes, spoils, exporters, alarms }
    }

    async fn propose(&self, command: Bytes) -> kv::Outcome {
        let proposed = self.nodes[0].propose(GROUP, command).await.expect("it is applied");
        kv::Outcome::decode(proposed.outcome).expect("an outcome")
    }

    /// Puts until all replicas have been compared; how many were refused because of the alarm.
    async fn write(&self) -> usize {
        let mut refused = 0;
        for first in (0..ENTRIES).step_by(50) {
            let puts = (first..first + 50).map(|number| self.propose(put(&format!("{number}"))));
            for outcome in join_all(puts).await {
                match outcome.body {
                    Some(outcome::Body::Put(_)) => {}
                    Some(outcome::Body::Error(error)) if error == KvError::Corrupt as i32 => {
                        refused += 1;
                    }
                    other => panic!("a put came to {other:?}"),
                }
            }
        }
        refused
    }

    async fn alarms(&self) -> Vec<Alarm> {
        let body = Some(query::Body::Conditions(Conditions {}));
        let query = kv::Query { body, caller: Some(Caller::system()) };
        let query = query.encode_to_vec().into();
        let read = self.nodes[0].read(GROUP, query, Consistency::Linearizable).await;
        let read = kv::Outcome::decode(read.expect("it is read").answer).expect("an outcome");
        match read.body {
            Some(outcome::Body::Conditions(found)) => found.alarms,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until every node has raised CORRUPT for itself, and nobody anything else.
    async fn await_alarms(&self) {
        let kind = AlarmKind::Corrupt as i32;
        let member = |node: &Arc<Engine>| Alarm { member: node.node().value(), kind };
        let mut expected: Vec<_> = self.nodes.iter().map(member).collect();
        expected.sort_by_key(|alarm| alarm.member);
        let raised = async {
            while self.alarms().await != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, raised).await.expect("the alarms are raised");
    }

    async fn shut_down(self) {
        for alarms in self.alarms {
            alarms.abort();
            drop(alarms.await);
        }
        for node in self.nodes {
            Arc::into_inner(node).expect("nobody else has it").shutdown().await;
        }
    }
}

#[tokio::test]
async fn where_nobody_can_say_who_is_right_the_alarm_is_raised_and_stays_until_it_is_cleared() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::open(2, dir.path()).await;
    assert_eq!(cluster.write().await, 0);
    assert_eq!(cluster.alarms().await, []);
    cluster.spoils[1].store(true, Ordering::Relaxed);
    cluster.write().await;
    cluster.await_alarms().await;
    let outcome = cluster.propose(put("refused")).await;
    assert_eq!(outcome.body, Some(outcome::Body::Error(KvError::Corrupt as i32)));

    // Cleared, it does not come back by itself, but with the next comparison: they still differ.
    for alarm in cluster.alarms().await {
        let change = command::Body::ChangeAlarm(ChangeAlarm { alarm, raise: false });
        let command = kv::Command { body: Some(change), ..kv::Command::default() };
        cluster.propose(command.encode_to_vec().into()).await;
    }
    let outcome = cluster.propose(put("taken")).await;
    assert!(matches!(outcome.body, Some(outcome::Body::Put(_))), "{outcome:?}");
    cluster.write().await;
    cluster.await_alarms().await;
    cluster.shut_down().await;
}

#[tokio::test]
async fn a_minority_rebuilds_itself_without_an_alarm_and_no_put_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::open(3, dir.path()).await;
    assert_eq!(cluster.write().await, 0);
    let leader = async {
        loop {
            let leads = |node: &Arc<Engine>| {
                let now = *node.leadership(GROUP).expect("it lives here").borrow();
                now.leader == Some(node.node())
            };
            match cluster.nodes.iter().position(leads) {
                Some(leader) => break leader,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    // Of a leader callers may hear an outcome that nobody else has.
    let wrong = (leader.await + 1) % 3;
    cluster.spoils[wrong].store(true, Ordering::Relaxed);
    let rebuilt = async {
        let page = cluster.exporters[wrong].page();
        let is_rebuilt = |line: &str| {
            line.starts_with("quorate_node_states_rebuilt_total") && line.ends_with(" 1")
        };
        while !page().lines().any(is_rebuilt) {
            assert_eq!(cluster.write().await, 0);
        }
    };
    tokio::time::timeout(PATIENCE, rebuilt).await.expect("the state is rebuilt");
    assert!(!cluster.nodes[wrong].is_distrusted(GROUP));
    for node in &cluster.nodes {
        assert_eq!(node.undecided(GROUP), None);
    }
    assert_eq!(cluster.alarms().await, []);
    cluster.shut_down().await;
}
