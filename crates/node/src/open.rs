//! Opening a node, step by step.
//!
//! 1. Take and identify the data directory; recover the log and open the state.
//! 2. Listen for peers, and dial them.
//! 3. A node that has not started gathers the incarnations of all founders, or takes the table over
//!    from one that has started; makes the first groups in its log; and only then makes the table
//!    durable. So a directory with a table has its groups: a log that was deleted cannot pass for new.
//! 4. Start the log's threads and the applier, and give every group its actor.
//! 5. Tick.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use metrics::Recorder;
use quorate_group::{Descriptor, Host, HostError};
use quorate_placement::{MapError, Node, PlacementKind, PlacementMap};
use quorate_store::{RocksConfig, RocksState, StateEngine};
use quorate_transport::{Limits, Transport, TransportConfig};
use quorate_types::machine::StateError;
use quorate_types::{EntryId, GroupId, Incarnation, MachineKind, Membership, NodeId, SnapshotMeta};
use quorate_wal::rocks::{RocksLog, RocksOptions};
use quorate_wal::{LogError, LogStore, RecoveredLog, Wal, WalConfig, Write};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::timeout;

use crate::actor::Input;
use crate::admission::Admission;
use crate::apply::Applier;
use crate::completions::LogCompletions;
use crate::config::{EngineConfig, InitialGroup, InitialState};
use crate::engine::{Engine, FIRST, Kinds, Parts, lock};
use crate::forward::{Request, reply};
use crate::identity::{DataDir, DataDirError, Identity, cluster_digest, node_id, random_u64};
use crate::metrics::NodeMetrics;
use crate::net::{Heard, Network};
use crate::router::Router;
use crate::{steward, ticker};

/// How long a gathering node waits for a peer's table.
const FOUNDERS_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a gathering node asks its peers whether they have started.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// Why a node does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log.
    #[error("log: {0}")]
    Log(#[from] LogError),
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The network.
    #[error("transport: {0}")]
    Transport(#[from] quorate_transport::OpenError),
    /// The system refused a thread or a random number.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A node's name that no certificate can carry.
    #[error(transparent)]
    Name(#[from] quorate_transport::NameError),
    /// The settings contradict each other.
    #[error("{0}")]
    Config(String),
    /// The first map would break its own rules.
    #[error("initial cluster: {0}")]
    Map(#[from] MapError),
    /// A group in the log cannot live here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A group in the log is of a kind that was not registered, or its descriptor is damaged.
    #[error("group {group}: {reason}")]
    Group {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// The directory has started, but its log misses a group that it started with.
    #[error("the log has no group {0}, which this node has started with: data is missing")]
    MissingGroup(GroupId),
    /// The state holds what the log does not: they do not belong together.
    #[error(
        "group {group}: the state is at {applied}, beyond the log's end {last}: data is missing"
    )]
    StateAheadOfLog {
        /// The group.
        group: GroupId,
        /// Where the state is.
        applied: EntryId,
        /// Where the log ends.
        last: EntryId,
    },
}

pub(crate) async fn open(
    config: EngineConfig,
    kinds: Vec<Arc<dyn MachineKind>>,
    recorder: &dyn Recorder,
) -> Result<Engine, OpenError> {
    let founders = Founders::of(&config)?;
    let kinds = kinds_by_name(kinds);
    let data_dir = DataDir::open(&config.data_dir)?;
    let identity = identify(&data_dir, &config, &founders)?;
    let mut log = RocksLog::open(&data_dir.log_path(), &RocksOptions::default())?;
    let mut recovered = log.recover()?;
    let state: Arc<dyn StateEngine> =
        Arc::new(RocksState::open(&RocksConfig::new(data_dir.state_path()))?);

    let metrics = Arc::new(NodeMetrics::new(recorder, &founders.peers_of(identity.node)));
    let first_map = founders.first_map(&identity)?;
    let router = Arc::new(Router {
        node: identity.node,
        residents: ArcSwap::default(),
        map: ArcSwap::from_pointee(first_map),
        transport: ArcSwapOption::empty(),
        proposal_bytes: Arc::new(Semaphore::new(
            config.proposal_bytes_max.min(Semaphore::MAX_PERMITS),
        )),
        request_timeout: config.request_timeout,
        metrics: Arc::clone(&metrics),
        stopping: AtomicBool::new(false),
    });
    let session = random_u64()?;
    let (gathering, heard) = mpsc::unbounded_channel();
    let admission = founders.admission(&identity);
    let network = Arc::new(Network::new(
        Arc::clone(&router),
        identity.clone(),
        session,
        admission,
        gathering,
    ));
    let transport = listen(&config, &identity, &network, recorder).await?;
    router.transport.store(Some(Arc::new(transport.clone())));
    for (node, name) in founders.peers_of(identity.node) {
        transport.label_peer(&name, recorder);
        transport.add_peer(node, &name, founders.addresses[&name].clone())?;
    }

    let groups = founders.initial_groups(&config);
    let identity = if identity.has_started() {
        if let Some(group) = groups.iter().find(|group| !recovered.contains_key(&group.id)) {
            return Err(OpenError::MissingGroup(group.id));
        }
        identity
    } else {
        let table = gather(&founders, &identity, &network, &router, heard).await;
        found(&mut log, &mut recovered, &groups, founders.names.keys().copied())?;
        let identity = Identity { founders: table.clone(), ..identity };
        data_dir.store(&identity)?;
        network.start(table);
        identity
    };

    let first_map = founders.first_map(&identity)?;
    let completions = Arc::new(LogCompletions::new(Arc::clone(&router)));
    let for_wal = Arc::clone(&completions);
    let wal = Arc::new(Wal::start(log, for_wal, WalConfig::default(), recorder));
    let placement_applied = Arc::new(Notify::new());
    let (applier, applier_thread) = Applier::start(
        Arc::clone(&state),
        on_applied(Arc::clone(&router), Arc::clone(&placement_applied)),
        on_failed(Arc::clone(&router)),
        Arc::clone(&metrics),
    )?;
    let parts = Arc::new(Parts {
        router,
        wal,
        completions,
        transport,
        applier,
        applier_thread: Mutex::new(Some(applier_thread)),
        state,
        host: Mutex::new(Host::new()),
        kinds,
        config,
        identity,
        session,
        metrics,
        tasks: Mutex::new(Vec::new()),
        placement_applied,
        _data_dir: data_dir,
    });
    for (group, log) in recovered {
        resume(&parts, group, log)?;
    }
    start_tasks(&parts, first_map);
    Ok(Engine { parts })
}

/// The initial nodes, as the settings name them.
struct Founders {
    names: BTreeMap<NodeId, String>,
    addresses: BTreeMap<String, String>,
    digest: [u8; 32],
}

impl Founders {
    fn of(config: &EngineConfig) -> Result<Self, OpenError> {
        let EngineConfig { cluster_name, cluster_token, node_name, initial_cluster, .. } = config;
        if !initial_cluster.contains_key(node_name) {
            return Err(OpenError::Config(format!(
                "node {node_name} is not among the initial nodes {:?}",
                initial_cluster.keys().collect::<Vec<_>>()
            )));
        }
        let id = |name: &String| (node_id(cluster_name, cluster_token, name), name.clone());
        let names: BTreeMap<_, _> = initial_cluster.keys().map(id).collect();
        let digest = cluster_digest(cluster_name, cluster_token, &names, &config.initial_groups);
        Ok(Self { names, addresses: initial_cluster.clone(), digest })
    }

    fn peers_of(&self, own: NodeId) -> Vec<(NodeId, String)> {
        let others = self.names.iter().filter(|(node, _)| **node != own);
        others.map(|(node, name)| (*node, name.clone())).collect()
    }

    fn admission(&self, identity: &Identity) -> Admission {
        let Identity { node, incarnation, cluster_digest, founders, .. } = identity;
        let names = self.names.clone();
        if identity.has_started() {
            Admission::started(*node, *cluster_digest, names, founders.clone())
        } else {
            Admission::gathering(*node, *incarnation, *cluster_digest, names)
        }
    }

    /// The placement group and the groups that the settings ask for.
    fn initial_groups(&self, config: &EngineConfig) -> Vec<InitialGroup> {
        let kind = PlacementKind::NAME.to_owned();
        let placement = InitialGroup { id: GroupId::PLACEMENT, kind, range: None };
        std::iter::once(placement).chain(config.initial_groups.iter().cloned()).collect()
    }

    /// The map that the cluster starts with. Nobody knows the others' client addresses and labels yet:
    /// each node adds its own.
    fn first_map(&self, identity: &Identity) -> Result<PlacementMap, OpenError> {
        let node = |(&id, name): (&NodeId, &String)| Node {
            id,
            name: name.clone(),
            client_address: String::new(),
            peer_address: self.addresses[name].clone(),
            labels: BTreeMap::new(),
            incarnation: identity.founders.get(&id).copied().unwrap_or_default(),
        };
        Ok(PlacementMap::first(self.names.iter().map(node))?)
    }
}

fn kinds_by_name(kinds: Vec<Arc<dyn MachineKind>>) -> Kinds {
    let placement: Arc<dyn MachineKind> = Arc::new(PlacementKind);
    let all = kinds.into_iter().chain([placement]);
    all.map(|kind| (kind.name().to_owned(), kind)).collect()
}

fn identify(
    data_dir: &DataDir,
    config: &EngineConfig,
    founders: &Founders,
) -> Result<Identity, OpenError> {
    let EngineConfig { cluster_name, cluster_token, node_name, .. } = config;
    let fresh = || {
        if config.initial_state == InitialState::Existing {
            return Err(DataDirError::Empty(config.data_dir.clone()));
        }
        let io_error = |source| DataDirError::Io { path: config.data_dir.clone(), source };
        Ok(Identity {
            cluster_name: cluster_name.clone(),
            cluster_token: cluster_token.clone(),
            node_name: node_name.clone(),
            node: node_id(cluster_name, cluster_token, node_name),
            incarnation: Incarnation(random_u64().map_err(io_error)?),
            cluster_digest: founders.digest,
            founders: BTreeMap::new(),
        })
    };
    let identity = data_dir.identify(fresh, (cluster_name, cluster_token, node_name))?;
    if identity.cluster_digest == founders.digest {
        return Ok(identity);
    }
    if identity.has_started() {
        return Err(OpenError::Config(format!(
            "the initial cluster is not the one that this node was started with: {:?}",
            config.initial_cluster.keys().collect::<Vec<_>>()
        )));
    }
    // It has promised nothing yet: the settings were corrected.
    let identity = Identity { cluster_digest: founders.digest, ..identity };
    data_dir.store(&identity)?;
    Ok(identity)
}

async fn listen(
    config: &EngineConfig,
    identity: &Identity,
    network: &Arc<Network>,
    recorder: &dyn Recorder,
) -> Result<Transport, OpenError> {
    let transport = TransportConfig {
        listen: config.listen_peer,
        node: identity.node,
        name: identity.node_name.clone(),
        cluster_name: identity.cluster_name.clone(),
        tls: config.tls.clone(),
        lanes: config.append_lanes,
        limits: Limits::default(),
    };
    let handler = Arc::clone(network);
    Ok(Transport::open(transport, handler, Arc::clone(&config.link), recorder).await?)
}

/// Waits until every founder was heard and none of them has started, or until one that has started says
/// that this node had been heard when it did.
async fn gather(
    founders: &Founders,
    identity: &Identity,
    network: &Network,
    router: &Router,
    mut heard: mpsc::UnboundedReceiver<Heard>,
) -> BTreeMap<NodeId, Incarnation> {
    let others = founders.peers_of(identity.node);
    if others.is_empty() {
        return BTreeMap::from([(identity.node, identity.incarnation)]);
    }
    tracing::info!(nodes = founders.names.len(), "waiting for the other initial nodes");
    let mut complete = None;
    loop {
        // A peer that starts after its hello does not say so again: ask, now and then.
        match timeout(ASK_INTERVAL, heard.recv()).await {
            Ok(Some(Heard::All(table))) => complete = Some(table),
            Ok(Some(Heard::Started)) | Err(_) => {}
            // The network holds the sender as long as it lives.
            Ok(None) => std::future::pending().await,
        }
        let mut unstarted = 0;
        for (peer, name) in &others {
            let deadline = Instant::now() + FOUNDERS_TIMEOUT;
            let Ok(reply::Body::Founders(table)) =
                router.ask(*peer, Request::founders(), deadline).await
            else {
                continue;
            };
            let table = table.into_table();
            if table.is_empty() {
                unstarted += 1;
            } else if network.adopt(&table) {
                return table;
            } else {
                tracing::error!(
                    peer = name,
                    "the cluster has started with another incarnation of this node, or without it"
                );
            }
        }
        // Whoever has started knows more than this node: only if nobody has may it found.
        if unstarted == others.len()
            && let Some(table) = complete.take()
        {
            return table;
        }
    }
}

/// Makes the groups that the cluster starts with, in one synced batch. A crash before the identity is
/// stored leaves them behind, unused: then they are made again.
fn found(
    log: &mut RocksLog,
    recovered: &mut BTreeMap<GroupId, RecoveredLog>,
    groups: &[InitialGroup],
    voters: impl Iterator<Item = NodeId>,
) -> Result<(), OpenError> {
    let snapshot = SnapshotMeta { last: FIRST, membership: Membership::of_voters(voters) };
    let create = |group: &InitialGroup| {
        let descriptor = Descriptor { kind: group.kind.clone(), range: group.range.clone() };
        Write::Create { group: group.id, label: descriptor.encode(), snapshot: snapshot.clone() }
    };
    let creates: Vec<_> = groups.iter().map(create).collect();
    log.write(&creates)?;
    *recovered = log.recover()?;
    Ok(())
}

/// Brings a group of the log back to life.
fn resume(parts: &Parts, group: GroupId, log: RecoveredLog) -> Result<(), OpenError> {
    let damaged = |reason: String| OpenError::Group { group, reason };
    let descriptor = Descriptor::decode(&log.label).map_err(|error| damaged(error.to_string()))?;
    let kind = parts.kind(&descriptor.kind).map_err(|error| damaged(error.to_string()))?;
    let generation = parts.with_host(|host| host.admit(group, descriptor))?;
    parts.spawn_group(group, generation, &kind, log)
}

fn on_applied(router: Arc<Router>, placement_applied: Arc<Notify>) -> crate::apply::OnApplied {
    Box::new(move |group, generation, through, outcomes| {
        // A group that has left needs no completions.
        if let Some(resident) = router.residents.load().get(&group) {
            drop(router.tell(resident, Input::Applied { generation, through, outcomes }));
        }
        if group == GroupId::PLACEMENT {
            placement_applied.notify_one();
        }
    })
}

fn on_failed(router: Arc<Router>) -> crate::apply::OnFailed {
    Box::new(move |group, generation| {
        if let Some(resident) = router.residents.load().get(&group) {
            drop(router.tell(resident, Input::MachineFailed { generation }));
        }
    })
}

fn start_tasks(parts: &Arc<Parts>, first_map: PlacementMap) {
    let config = &parts.config;
    let own = Node {
        id: parts.identity.node,
        name: parts.identity.node_name.clone(),
        client_address: config.advertise_client.join(","),
        peer_address: config.initial_cluster[&config.node_name].clone(),
        labels: config.labels.clone(),
        incarnation: parts.identity.incarnation,
    };
    let ticker = ticker::run(Arc::clone(&parts.router), parts.tick());
    let notify = Arc::clone(&parts.placement_applied);
    let steward = steward::run(Arc::clone(&parts.router), first_map, own, notify);
    let looks = ticker::look_around(Arc::clone(&parts.router));
    let tasks = [tokio::spawn(ticker), tokio::spawn(looks), tokio::spawn(steward)];
    lock(&parts.tasks).extend(tasks);
}
