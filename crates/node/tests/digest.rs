//! A replica that has written something else than the others is found out, and rebuilds its state: three
//! nodes over real QUIC and RocksDB, in one process. What goes wrong is a machine that spoils one row.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use quorate_group::DIGEST_INTERVAL;
use quorate_node::{Consistency, Engine, EngineConfig, Role, local};
use quorate_types::machine::StateError;
use quorate_types::{
    Committed, Digest, Digested, GroupId, MachineKind, NodeId, ReadError, StateBatch, StateMachine,
    StateReader,
};

const GROUP: GroupId = GroupId(100);

/// Only ends what would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Commands that begin so make the state large, so that a snapshot takes its time.
const FILL: &[u8] = b"fill";
const FILLING_BYTES: usize = 4 << 20;

/// Commands under way at a time.
const AT_ONCE: u64 = 64;

/// One row, which holds the last command.
#[derive(Debug, Default)]
struct LastKind {
    /// The next command is stored as another one.
    spoils: AtomicBool,
}

struct Last {
    kind: Arc<LastKind>,
    digest: Digest,
}

#[derive(Debug)]
struct Kind(Arc<LastKind>);

impl StateMachine for Last {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let mut batch = Digested::new(batch, &mut self.digest);
        for one in committed {
            if one.command.starts_with(FILL) {
                batch.put(&one.command, &vec![0; FILLING_BYTES]);
                continue;
            }
            match self.kind.spoils.swap(false, Ordering::Relaxed) {
                true => batch.put(b"first", b"spoiled"),
                false => batch.put(b"last", &one.command),
            }
        }
        Ok(vec![Bytes::new(); committed.len()])
    }

    fn meta(&self) -> Bytes {
        Bytes::copy_from_slice(&self.digest.0.to_le_bytes())
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.digest)
    }
}

impl MachineKind for Kind {
    fn name(&self) -> &str {
        "last"
    }

    fn open(
        &self,
        _: GroupId,
        meta: &[u8],
        _: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        let digest = Digest(meta.try_into().map_or(0, u64::from_le_bytes));
        Ok(Box::new(Last { kind: Arc::clone(&self.0), digest }))
    }

    fn read(
        &self,
        _: GroupId,
        query: &Bytes,
        _: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        Ok(state.get(query)?.unwrap_or_default())
    }
}

/// Keeps two numbers and drops everything else.
#[derive(Default)]
struct Counted {
    rebuilt: Arc<AtomicU64>,
    /// As the bits of an `f64`.
    distrusted: Arc<AtomicU64>,
}

impl Counted {
    fn is_distrusted(&self) -> bool {
        f64::from_bits(self.distrusted.load(Ordering::Relaxed)) > 0.0
    }
}

impl Recorder for Counted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match key.name() {
            "quorate_node_states_rebuilt_total" => Counter::from_arc(Arc::clone(&self.rebuilt)),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match key.name() {
            "quorate_node_states_distrusted" => Gauge::from_arc(Arc::clone(&self.distrusted)),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

struct Cluster {
    configs: Vec<EngineConfig>,
    nodes: Vec<Engine>,
    kinds: Vec<Arc<LastKind>>,
    counted: Vec<Counted>,
}

impl Cluster {
    async fn new(dir: &Path, snapshot_bytes_per_second: u64) -> Self {
        let mut configs = local::configs(3, dir).expect("settings");
        for config in &mut configs {
            config.snapshot_bytes_per_second = snapshot_bytes_per_second;
        }
        let cluster = Self::open(configs).await;
        let voters: Vec<NodeId> = cluster.nodes.iter().map(Engine::node).collect();
        for node in &cluster.nodes {
            node.create_group(GROUP, "last", None, voters.clone()).await.expect("created");
        }
        cluster
    }

    async fn open(configs: Vec<EngineConfig>) -> Self {
        let kinds: Vec<_> = (0..3).map(|_| Arc::new(LastKind::default())).collect();
        let counted: Vec<_> = (0..3).map(|_| Counted::default()).collect();
        let opening = configs.iter().zip(&kinds).zip(&counted).map(|((config, kind), to)| {
            Engine::open(config.clone(), vec![Arc::new(Kind(Arc::clone(kind))) as _], to)
        });
        let nodes = try_join_all(opening).await.expect("the nodes open");
        Self { configs, nodes, kinds, counted }
    }

    /// Writes until every replica has passed a checkpoint or two.
    async fn write(&self, node: usize) {
        for first in (0..2 * DIGEST_INTERVAL).step_by(AT_ONCE as usize) {
            let commands = (first..first + AT_ONCE).map(|number| {
                let command = Bytes::from(number.to_string());
                async move {
                    // While the leadership changes an outcome may be unknown; the next round goes on.
                    drop(self.nodes[node].propose(GROUP, command).await);
                }
            });
            futures::future::join_all(commands).await;
        }
    }

    /// Who leads, as the leader itself knows.
    fn leader(&self) -> Option<usize> {
        let leads = |node: &Engine| {
            node.leadership(GROUP).is_ok_and(|now| now.borrow().role == Role::Leader)
        };
        self.nodes.iter().position(leads)
    }

    /// Spoils a row of `wrong`, and waits until that is mended.
    async fn spoil_and_mend(&self, wrong: usize) {
        let other = (wrong + 1) % 3;
        self.kinds[wrong].spoils.store(true, Ordering::Relaxed);
        let mended = async {
            while self.counted[wrong].rebuilt.load(Ordering::Relaxed) == 0 {
                self.write(other).await;
            }
        };
        tokio::time::timeout(PATIENCE, mended).await.expect("the state is rebuilt");
        assert!(!self.kinds[wrong].spoils.load(Ordering::Relaxed), "a row was spoiled");
        for number in [0, 1, 2] {
            assert_eq!(self.read(number, "first").await, "", "node {number}");
            assert_ne!(self.read(number, "last").await, "", "node {number}");
            let expected = u64::from(number == wrong);
            assert_eq!(
                self.counted[number].rebuilt.load(Ordering::Relaxed),
                expected,
                "node {number}"
            );
        }
    }

    async fn read(&self, number: usize, key: &'static str) -> Bytes {
        let asked = self.nodes[number].read(GROUP, Bytes::from(key), Consistency::Linearizable);
        asked.await.expect("it is read").answer
    }

    async fn shut_down(self) {
        for node in self.nodes {
            node.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_follower_whose_state_is_wrong_rebuilds_it_from_its_leader() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cluster = Cluster::new(dir.path(), 32 << 20).await;
    cluster.write(0).await;
    let leader = cluster.leader().expect("somebody leads");
    cluster.spoil_and_mend((leader + 1) % 3).await;
    cluster.shut_down().await;
}

#[tokio::test]
async fn a_leader_whose_state_is_wrong_hands_over_and_rebuilds_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cluster = Cluster::new(dir.path(), 32 << 20).await;
    cluster.write(0).await;
    let leader = cluster.leader().expect("somebody leads");
    cluster.spoil_and_mend(leader).await;
    cluster.shut_down().await;
}

#[tokio::test]
async fn a_wrong_state_is_known_to_the_next_process_until_it_is_rebuilt() {
    let dir = tempfile::tempdir().expect("temporary directory");
    // The least that is allowed: no snapshot comes through before the restart, half a minute's worth of one.
    let cluster = Cluster::new(dir.path(), 1 << 20).await;
    for number in 0..8 {
        let fill = [FILL, &[number]].concat();
        cluster.nodes[0].propose(GROUP, fill.into()).await.expect("proposed");
    }
    cluster.write(0).await;
    let wrong = (cluster.leader().expect("somebody leads") + 1) % 3;
    cluster.kinds[wrong].spoils.store(true, Ordering::Relaxed);
    let found = async {
        while !cluster.counted[wrong].is_distrusted() {
            cluster.write((wrong + 1) % 3).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("the state is found to be wrong");
    assert_eq!(cluster.counted[wrong].rebuilt.load(Ordering::Relaxed), 0);
    let mut configs = cluster.configs.clone();
    cluster.shut_down().await;

    // Nothing is written any more, so no checkpoint says it again.
    configs.iter_mut().for_each(|config| config.snapshot_bytes_per_second = 32 << 20);
    let cluster = Cluster::open(configs.clone()).await;
    let mended = async {
        while cluster.counted[wrong].rebuilt.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, mended).await.expect("the state is rebuilt");
    assert_eq!(cluster.read(wrong, "first").await, "");
    cluster.shut_down().await;

    let cluster = Cluster::open(configs).await;
    assert_ne!(cluster.read(wrong, "last").await, "");
    assert!(!cluster.counted[wrong].is_distrusted(), "it is trusted again");
    cluster.shut_down().await;
}

#[test]
#[ignore = "a measurement: cargo test --release --workspace --test digest what_a_put_costs -- --ignored --nocapture"]
#[expect(clippy::print_stderr, reason = "what it is for")]
fn what_a_put_costs() {
    const PUTS: u32 = 1_000_000;
    for value_bytes in [128, 256, 1024] {
        let value = vec![7; value_bytes];
        let mut digest = Digest::default();
        let began = std::time::Instant::now();
        for number in 0..PUTS {
            // The three rows of a put of the keyspace.
            let key = number.to_le_bytes();
            digest.put(&key, &value[..16]);
            digest.put(&key, &value);
            digest.put(&key, &value[..32]);
        }
        let each = began.elapsed() / PUTS;
        eprintln!("{value_bytes} B: {each:?} a put ({digest:?})");
    }
}
