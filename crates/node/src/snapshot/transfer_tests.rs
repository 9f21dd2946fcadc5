//! Snapshots from one node to another over real QUIC and through log and applier threads, with neither
//! actor nor replica: what those would do, the tests do.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use metrics::NoopRecorder;
use quorate_group::{FailureDetector, Wheel};
use quorate_placement::{Node as PlacedNode, PlacementMap};
use quorate_store::{GroupRow, KvKind, MemState, Overlay};
use quorate_transport::tls::{Ca, make_ca};
use quorate_transport::{
    Handler, Hello, Limits, PeerEvent, Refusal, Replier, Straight, TlsConfig, TransportConfig,
};
use quorate_types::machine::RowScope;
use quorate_types::{
    Body, EntryId, Incarnation, KeyRange, MachineKind, Membership, StateBatch, Term,
};
use quorate_wal::mem::MemDisk;
use quorate_wal::{LogStore, WalConfig, Write};
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::*;
use crate::entry_cache::EntryCache;
use crate::metrics::NodeMetrics;
use crate::router::Router;
use crate::snapshot::pace::DiskPace;

const PATIENCE: Duration = Duration::from_secs(60);
const GROUP: GroupId = GroupId(2);

struct Probe {
    node: NodeId,
    offers: mpsc::UnboundedSender<SnapshotOffer>,
    up: mpsc::UnboundedSender<()>,
}

impl Handler for Probe {
    fn hello(&self, target: NodeId) -> Hello {
        Hello {
            cluster_name: "c".into(),
            cluster_digest: [0; 32],
            node: self.node,
            node_name: format!("n{}", self.node.value()),
            incarnation: Incarnation(1),
            session: 1,
            started: true,
            synced_batches: 0,
            target,
        }
    }

    fn admit(&self, _: &Hello) -> Result<(), Refusal> {
        Ok(())
    }

    fn on_peer(&self, _: NodeId, event: PeerEvent) {
        if matches!(event, PeerEvent::Up { .. }) {
            self.up.send(()).unwrap();
        }
    }

    fn on_messages(&self, _: NodeId, _: Vec<Message>) {}

    fn on_request(&self, _: NodeId, _: &str, _: Bytes, _: u32, _: Replier) {}

    fn on_snapshot(&self, offer: SnapshotOffer) {
        self.offers.send(offer).unwrap();
    }
}

/// A node but for its actors.
struct Node {
    snapshots: Arc<Snapshots>,
    transport: Transport,
    offers: mpsc::UnboundedReceiver<SnapshotOffer>,
    up: mpsc::UnboundedReceiver<()>,
    disk: MemDisk,
    state: MemState,
    directory: TempDir,
}

fn router(node: NodeId) -> Arc<Router> {
    let placed = PlacedNode {
        id: node,
        name: "n".into(),
        peer_address: "127.0.0.1:1".into(),
        incarnation: Incarnation(1),
        ..PlacedNode::default()
    };
    Arc::new(Router {
        node,
        residents: ArcSwap::default(),
        map: ArcSwap::from_pointee(PlacementMap::first([placed]).unwrap()),
        map_version: watch::Sender::new(PlacementMap::FIRST_VERSION),
        transport: ArcSwapOption::empty(),
        proposal_bytes: Arc::new(Semaphore::new(1)),
        request_timeout: PATIENCE,
        metrics: Arc::new(NodeMetrics::new(&NoopRecorder, &[])),
        disks: Arc::default(),
        distances: Arc::default(),
        entries: Arc::new(EntryCache::new(0)),
        feeds: Arc::default(),
        wheel: Arc::new(Mutex::new(Wheel::new(node, FailureDetector::new(1), 1))),
        stopping: AtomicBool::new(false),
    })
}

impl Node {
    async fn open(ca: &Ca, id: u64, limits: Limits) -> Self {
        let (node, name) = (NodeId(id), format!("n{id}"));
        let issued = ca.issue("c", &name, &[]).unwrap();
        let tls = TlsConfig {
            cert_pem: issued.cert_pem,
            key_pem: issued.key_pem,
            ca_pem: ca.cert_pem().to_owned(),
        };
        let config = TransportConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            node,
            name,
            cluster_name: "c".into(),
            tls,
            lanes: 1,
            limits,
        };
        let (offering, offers) = mpsc::unbounded_channel();
        let (rising, up) = mpsc::unbounded_channel();
        let probe = Arc::new(Probe { node, offers: offering, up: rising });
        let transport = Transport::open(config, probe, Arc::new(Straight), &NoopRecorder).await;
        let (disk, state) = (MemDisk::new(), MemState::new());
        let directory = tempfile::tempdir().unwrap();
        let router = router(node);
        let completions = Arc::new(LogCompletions::new(Arc::clone(&router)));
        let wal = Wal::start(
            disk.open(),
            Arc::clone(&completions) as _,
            WalConfig::default(),
            &NoopRecorder,
        );
        let engine: Arc<dyn StateEngine> = Arc::new(state.clone());
        let (applier, _) = Applier::start(
            Arc::clone(&engine),
            Box::new(|_, _, _| {}),
            Box::new(|_, _| {}),
            Arc::clone(&router.metrics),
            Arc::clone(&router.feeds),
        )
        .unwrap();
        let kind: Arc<dyn MachineKind> = Arc::new(KvKind::default());
        let kinds = BTreeMap::from([(kind.name().to_owned(), kind)]);
        let files = Files::open(directory.path()).unwrap();
        let snapshots =
            Snapshots::new(node, files, engine, Arc::new(wal), completions, applier, kinds);
        let snapshots = Arc::new(snapshots);
        Self { snapshots, transport: transport.unwrap(), offers, up, disk, state, directory }
    }

    async fn offer(&mut self) -> SnapshotOffer {
        timeout(PATIENCE, self.offers.recv()).await.expect("no snapshot comes").unwrap()
    }

    /// Those that are in use; what was given up is removed a little later.
    fn files(&self) -> usize {
        let files = std::fs::read_dir(self.directory.path().join("snapshots")).unwrap();
        let names = files.map(|file| file.unwrap().file_name());
        names.filter(|name| !name.to_string_lossy().starts_with("gone-")).count()
    }
}

async fn pair(limits: Limits) -> (Node, Node) {
    let ca = make_ca("c").unwrap();
    let mut from = Node::open(&ca, 1, limits.clone()).await;
    let mut to = Node::open(&ca, 2, limits).await;
    let dial = |one: &Node, other: &Node, id: u64| {
        let address = other.transport.local_addr().to_string();
        one.transport.add_peer(NodeId(id), &format!("n{id}"), address).unwrap();
    };
    dial(&from, &to, 2);
    dial(&to, &from, 1);
    from.up.recv().await.unwrap();
    to.up.recv().await.unwrap();
    (from, to)
}

fn target(node: &Node) -> Target {
    let descriptor = Descriptor { kind: "kv".into(), range: Some(KeyRange::all()) };
    Target::new(&node.snapshots.kinds, GROUP, descriptor).unwrap()
}

fn membership() -> Membership {
    Membership::of_voters([NodeId(1), NodeId(2)])
}

/// Rows as a keyspace might have them, as of `applied`.
fn fill(engine: &MemState, applied: u64, rows: u64) {
    let mut overlay = Overlay::new(engine.view());
    let mut batch = overlay.scoped(RowScope::Keyspace, GROUP);
    for row in 0..rows {
        let key = [&b"C\x02"[..], &row.to_be_bytes()].concat();
        batch.put(&key, &vec![applied as u8; 1_000]);
    }
    let applied = EntryId::new(Term(3), LogIndex(applied));
    let kind = "kv".to_owned();
    overlay.put_group_row(
        GROUP,
        &GroupRow { applied, membership: membership(), kind, meta: Bytes::new() },
    );
    engine.write(overlay.into_rows()).unwrap();
}

/// True when both have the same state of the group, but for what a sweep may note in its own row.
fn same(one: &Node, other: &Node) -> bool {
    let parts = |node: &Node| {
        let row = GroupRow::load(GROUP, &*node.state.view()).unwrap().unwrap();
        let mut rows = node.state.rows();
        rows.retain(|key, _| key.first() != Some(&b'M'));
        (rows, row.applied, row.membership, row.kind)
    };
    parts(one) == parts(other)
}

/// Some message of the group's leader.
fn message(to: u64) -> Message {
    Message {
        group: GROUP,
        from: NodeId(1),
        to: NodeId(to),
        term: Term(4),
        body: Body::Heartbeat { commit: LogIndex(1), round: 1 },
    }
}

fn send(from: &Node, to: u64) -> tokio::task::JoinHandle<Result<SnapshotMeta, SendError>> {
    let (snapshots, transport) = (Arc::clone(&from.snapshots), from.transport.clone());
    let target = target(from);
    tokio::spawn(async move {
        snapshots.send(&transport, target, NodeId(2), LogIndex(1), move |_| message(to)).await
    })
}

/// What the sender keeps the entries behind of, for the receiver.
fn underway(from: &Node) -> Option<LogIndex> {
    from.snapshots.on_its_way(GROUP, NodeId(2), LogIndex::ZERO, Instant::now())
}

/// What the group has at the receiver before.
async fn old(to: &Node) {
    let label = target(to).descriptor.encode();
    let last = EntryId::new(Term(1), LogIndex(1));
    let snapshot = SnapshotMeta { last, membership: membership() };
    let create = Write::Create { group: GROUP, label, snapshot };
    to.snapshots.completions.write(&to.snapshots.wal, create).await.unwrap();
    fill(&to.state, 7, 20);
}

#[tokio::test]
async fn a_snapshot_travels_and_takes_the_place_of_log_and_state() {
    let (from, mut to) = pair(Limits::default()).await;
    fill(&from.state, 50, 2_000);
    old(&to).await;
    let sent = send(&from, 2);
    let offer = to.offer().await;
    let announced = to.snapshots.announced(offer.from(), offer.header()).unwrap();
    assert_eq!(announced.message, message(2));
    assert_eq!(announced.descriptor, target(&to).descriptor);
    let received = Arc::clone(&to.snapshots).receive(offer, &announced, target(&to));
    let (arrived, receiver) = received.await.unwrap();
    let last = EntryId::new(Term(3), LogIndex(50));
    let meta = SnapshotMeta { last, membership: membership() };
    assert_eq!(arrived.meta, meta);
    assert!(!same(&to, &from), "nothing is changed yet");
    receiver.confirm().await.unwrap();
    assert_eq!(sent.await.unwrap().unwrap(), meta);
    assert_eq!((from.files(), to.files()), (0, 1));

    let installed = Arc::clone(&to.snapshots).install(arrived, target(&to)).await;
    assert_eq!(installed.unwrap(), meta);
    assert!(same(&to, &from));
    to.state.crash(0);
    assert!(same(&to, &from), "it is durable");
    to.snapshots.wal.shutdown();
    let log = to.disk.open().log(GROUP).unwrap();
    assert_eq!((log.snapshot, log.last, log.intent), (meta, last, None));
    assert_eq!(to.files(), 0);
}

#[tokio::test]
async fn an_interrupted_snapshot_goes_on_where_it_stopped() {
    // Slow enough that it can be interrupted.
    let limits = Limits { snapshot_bytes_per_second: 1 << 20, ..Limits::default() };
    let (from, mut to) = pair(limits).await;
    fill(&from.state, 50, 1_000);
    let sent = send(&from, 2);
    let offer = to.offer().await;
    let announced = to.snapshots.announced(offer.from(), offer.header()).unwrap();
    let receive = Arc::clone(&to.snapshots).receive(offer, &announced, target(&to));
    let interrupted = async {
        let part = || {
            let files = std::fs::read_dir(to.directory.path().join("snapshots")).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
        };
        while part() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = receive => panic!("it was not interrupted: {result:?}"),
        () = interrupted => {}
    }
    assert!(matches!(sent.await.unwrap(), Err(SendError::Transport(_))));
    assert_eq!((from.files(), to.files()), (1, 1), "both sides keep what they have");

    let sent = send(&from, 2);
    let offer = to.offer().await;
    let again = to.snapshots.announced(offer.from(), offer.header()).unwrap();
    assert_eq!(again.export, announced.export);
    let incoming = to.snapshots.files.incoming(GROUP, again.export, offer.total_bytes()).unwrap();
    assert!(incoming.bytes() > 0);
    drop(incoming);
    let received = Arc::clone(&to.snapshots).receive(offer, &again, target(&to));
    let (arrived, receiver) = received.await.unwrap();
    receiver.confirm().await.unwrap();
    sent.await.unwrap().unwrap();
    assert_eq!(arrived.meta.last.index, LogIndex(50));
}

#[tokio::test]
async fn what_a_snapshot_will_not_hold_is_kept_while_it_is_written() {
    let (mut from, _to) = pair(Limits::default()).await;
    fill(&from.state, 50, 10);
    // Somebody else has the disk for days.
    let pace = Arc::new(DiskPace::new(1));
    pace.wait(1_000_000).unwrap();
    let snapshots = Arc::get_mut(&mut from.snapshots).unwrap();
    snapshots.files = snapshots.files.clone().with_pace(pace);
    let sent = send(&from, 2);
    let noted = async {
        while underway(&from).is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, noted).await.unwrap();
    assert_eq!(underway(&from), Some(LogIndex(1)));
    from.snapshots.stop();
    assert!(matches!(sent.await.unwrap(), Err(SendError::Export(_))));
    assert_eq!(underway(&from), None);
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_with_its_reason_and_changes_nothing() {
    let (from, mut to) = pair(Limits::default()).await;
    fill(&from.state, 50, 10);
    old(&to).await;
    let rows = to.state.rows();

    // The message is for another node.
    let sent = send(&from, 3);
    let offer = to.offer().await;
    let error = to.snapshots.announced(offer.from(), offer.header()).unwrap_err();
    offer.refuse(&error.to_string()).await;
    let error = sent.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("not one message of this peer"), "{error}");

    // The group is another one than this node has under the number.
    let sent = send(&from, 2);
    let offer = to.offer().await;
    let announced = to.snapshots.announced(offer.from(), offer.header()).unwrap();
    let range = KeyRange { start: Bytes::from_static(b"a"), end: None };
    let descriptor = Descriptor { range: Some(range), ..target(&to).descriptor };
    let other = Target::new(&to.snapshots.kinds, GROUP, descriptor).unwrap();
    let received = Arc::clone(&to.snapshots).receive(offer, &announced, other).await;
    assert!(matches!(received, Err(ReceiveError::Content(_))), "{received:?}");
    let error = sent.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("another range"), "{error}");
    assert_eq!(underway(&from), None);

    // Another one is under way.
    let sent = send(&from, 2);
    let offer = to.offer().await;
    let busy = Busy::take(&to.snapshots, GROUP).unwrap();
    let received = Arc::clone(&to.snapshots).receive(offer, &announced, target(&to)).await;
    assert!(matches!(received, Err(ReceiveError::Busy)), "{received:?}");
    assert!(matches!(sent.await.unwrap(), Err(SendError::Transport(SnapshotError::BusyThere))));
    assert_eq!(underway(&from), Some(LogIndex(50)), "it is to be sent again");
    drop(busy);
    assert!(to.state.rows() == rows);
    assert_eq!(to.files(), 0);
}

#[tokio::test]
async fn an_installation_that_the_end_of_the_node_cuts_short_is_done_again() {
    let (from, mut to) = pair(Limits::default()).await;
    fill(&from.state, 50, 10);
    old(&to).await;
    let sent = send(&from, 2);
    let offer = to.offer().await;
    let announced = to.snapshots.announced(offer.from(), offer.header()).unwrap();
    let received = Arc::clone(&to.snapshots).receive(offer, &announced, target(&to));
    let (arrived, receiver) = received.await.unwrap();
    receiver.confirm().await.unwrap();
    sent.await.unwrap().unwrap();
    // The applier is gone; the log takes the intent.
    to.snapshots.applier.stop();
    let installed = Arc::clone(&to.snapshots).install(arrived, target(&to)).await;
    assert!(matches!(installed, Err(PlaceError::Stopping)));
    to.snapshots.wal.shutdown();
    let mut log = to.disk.open();
    assert!(log.log(GROUP).unwrap().intent.is_some());
    let Snapshots { files, kinds, .. } = &*to.snapshots;
    crate::snapshot::installation::redo_all(&mut log, &to.state, files, kinds).unwrap();
    assert_eq!(log.log(GROUP).unwrap().last.index, LogIndex(50));
    assert!(same(&to, &from));
    assert_eq!(to.files(), 0);
}
