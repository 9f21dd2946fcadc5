//! Replicas that differ: an alarm where nobody can say which is right, and none where a majority can.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::join_all;
use prost::Message;
use quorate::alarms::tell_of_corruption;
use quorate_node::{Consistency, Engine};
use quorate_types::auth::Caller;
use quorate_types::kv::{self, KvError, command, outcome, query};
use quorate_types::kv_maintenance::{Alarm, AlarmKind, ChangeAlarm, Conditions};

use super::cluster::{self, GROUP, PATIENCE, put};

/// More entries than lie between two comparisons, and by so little that there is one in between, not two.
const ENTRIES: usize = 1_050;

/// Nodes that raise alarms for themselves.
struct Cluster {
    cluster: cluster::Cluster,
    alarms: Vec<tokio::task::JoinHandle<()>>,
}

impl Cluster {
    async fn open(count: usize, dir: &Path) -> Self {
        let cluster = cluster::Cluster::open(count, dir).await;
        let tell = |node: &Arc<Engine>| {
            let node = Arc::clone(node);
            tokio::spawn(async move { tell_of_corruption(&node).await })
        };
        let alarms = cluster.nodes.iter().map(tell).collect();
        Self { cluster, alarms }
    }

    async fn propose(&self, command: Bytes) -> kv::Outcome {
        self.cluster.propose_at(0, command).await
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
        let read = self.cluster.nodes[0].read(GROUP, query, Consistency::Linearizable).await;
        let read = kv::Outcome::decode(read.expect("it is read").answer).expect("an outcome");
        match read.body {
            Some(outcome::Body::Conditions(found)) => found.alarms,
            other => panic!("{other:?}"),
        }
    }

    /// Writes until every node has raised CORRUPT for itself, and nobody anything else. A digest may get lost on its
    /// way, and the next checkpoint has another one.
    async fn await_alarms(&self) {
        let kind = AlarmKind::Corrupt as i32;
        let member = |node: &Arc<Engine>| Alarm { member: node.node().value(), kind };
        let mut expected: Vec<_> = self.cluster.nodes.iter().map(member).collect();
        expected.sort_by_key(|alarm| alarm.member);
        let raised = async {
            while self.alarms().await != expected {
                self.write().await;
            }
        };
        tokio::time::timeout(PATIENCE, raised).await.expect("the alarms are raised");
    }

    async fn shut_down(self) {
        for alarms in self.alarms {
            alarms.abort();
            drop(alarms.await);
        }
        self.cluster.shut_down().await;
    }
}

#[tokio::test]
async fn where_nobody_can_say_who_is_right_the_alarm_is_raised_and_stays_until_it_is_cleared() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::open(2, dir.path()).await;
    assert_eq!(cluster.write().await, 0);
    assert_eq!(cluster.alarms().await, []);
    cluster.cluster.trouble[1].spoils.store(true, Ordering::Relaxed);
    cluster.await_alarms().await;
    let outcome = cluster.propose(put("refused")).await;
    assert_eq!(outcome.body, Some(outcome::Body::Error(KvError::Corrupt as i32)));

    // Cleared, writes pass until the next comparison: they still differ.
    for alarm in cluster.alarms().await {
        let change = command::Body::ChangeAlarm(ChangeAlarm { alarm, raise: false });
        cluster.propose(cluster::command(change)).await;
    }
    let outcome = cluster.propose(put("taken")).await;
    assert!(matches!(outcome.body, Some(outcome::Body::Put(_))), "{outcome:?}");
    cluster.await_alarms().await;
    cluster.shut_down().await;
}

#[tokio::test]
async fn a_minority_rebuilds_itself_without_an_alarm_and_no_put_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::open(3, dir.path()).await;
    assert_eq!(cluster.write().await, 0);
    // Of a leader callers may hear an outcome that nobody else has.
    let wrong = (cluster.cluster.leader().await + 1) % 3;
    cluster.cluster.trouble[wrong].spoils.store(true, Ordering::Relaxed);
    let rebuilt = async {
        let page = cluster.cluster.exporters[wrong].page();
        let is_rebuilt = |line: &str| {
            line.starts_with("quorate_node_states_rebuilt_total") && line.ends_with(" 1")
        };
        while !page().lines().any(is_rebuilt) {
            assert_eq!(cluster.write().await, 0);
        }
    };
    tokio::time::timeout(PATIENCE, rebuilt).await.expect("the state is rebuilt");
    assert!(!cluster.cluster.nodes[wrong].is_distrusted(GROUP));
    for node in &cluster.cluster.nodes {
        assert_eq!(node.undecided(GROUP), None);
    }
    assert_eq!(cluster.alarms().await, []);
    cluster.shut_down().await;
}
