//! Opening a node, step by step.
//!
//! 1. Take and identify the data directory. A node that joins asks to be let in, and learns its id.
//! 2. Recover the log and open the state; what is damaged, or does not fit together, is fenced, durably, before anybody hears of this
//!    node. Listen for peers, and dial them.
//! 3. An initial node that has not started gathers the incarnations of all founders, or takes the table over
//!    from one that has started; makes the first groups in its log; and only then makes the table
//!    durable. So a directory with a table has its groups: a log that was deleted cannot pass for new.
//! 4. Start the log's threads and the applier, and give every group its actor.
//! 5. Tick.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, ArcSwapOption};
use metrics::Recorder;
use quorate_group::{Descriptor, Host, HostError};
use quorate_placement::{MapError, Node, PlacementKind, PlacementMap};
use quorate_store::{GroupRow, OpenStateError, RocksConfig, RocksState, StateEngine};
use quorate_transport::{Limits, Transport, TransportConfig, vital};
use quorate_types::machine::StateError;
use quorate_types::{EntryId, GroupId, MachineKind, NodeId};
use quorate_wal::rocks::{RocksLog, RocksOptions};
use quorate_wal::{LogError, LogStore, RecoveredLog, Wal, WalConfig};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::actor::Input;
use crate::admission::{Admission, peers_in};
use crate::apply::Applier;
use crate::completions::LogCompletions;
use crate::config::{EngineConfig, InitialState};
use crate::disks::DiskWatch;
use crate::engine::{Engine, FIRST, Kinds, Parts, lock};
use crate::entry_cache::EntryCache;
use crate::feed::Feeds;
use crate::fence::{Fence, Fenced, on_state_damage};
use crate::founding::{Founders, fresh_identity, initial_groups, make_groups};
use crate::identity::{DataDir, DataDirError, Identity, random_u64};
use crate::metrics::NodeMetrics;
use crate::net::Network;
use crate::restore::{self, Restoration, StartRestoredError};
use crate::router::Router;
use crate::snapshot::files::Files;
use crate::snapshot::installation::{InstallError, redo_all};
use crate::snapshot::pace::DiskPace;
use crate::snapshot::transfer::Snapshots;
use crate::snapshot::truncator;
use crate::steward::Steward;
use crate::ticker::GROUP_CACHE_BYTES_MAX;
use crate::witness::Witness;
use crate::{join, mover, ticker};

/// Why a node does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log.
    #[error("log: {0}")]
    Log(#[from] LogError),
    /// Nothing of this node may take part any more.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state's files.
    #[error(transparent)]
    StateFiles(#[from] OpenStateError),
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
    /// The cluster does not let the node in.
    #[error("the cluster does not let this node in: {0}")]
    NotLetIn(String),
    /// This node begins with a backup, and another initial node with something else.
    #[error("the initial nodes do not begin with the same: {0}")]
    Differs(String),
    /// What was restored cannot begin.
    #[error(transparent)]
    Restore(#[from] StartRestoredError),
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
    /// A snapshot was being installed when the node stopped, and cannot be installed again.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The log has forgotten what the state does not hold: they do not belong together.
    #[error(
        "group {group}: the state is at {applied}, but the log begins behind {base}: data is missing"
    )]
    StateBehindLog {
        /// The group.
        group: GroupId,
        /// Where the state is.
        applied: EntryId,
        /// What the log begins behind.
        base: EntryId,
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
    let kinds = kinds_by_name(kinds);
    let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
    let start = Start::of(&config, &data_dir).await?;
    let (mut log, state, mut fence) = open_stores(&data_dir, &config.node_name)?;
    let files = Files::open(data_dir.path())?.with_reserve(config.disk_reserve_bytes);
    // Before anything else: a group with an intent is neither what it was nor what it will be.
    redo_all(&mut log, &*state, &files, &kinds)?;
    let mut recovered = log.recover()?;
    let directory = (&*data_dir, &*config.node_name);
    fence_state_ahead(&mut fence, (&log, &recovered), &*state, directory)?;
    for (group, reason) in fence.groups() {
        tracing::error!(%group, reason, "the group is fenced on this node: replace the node");
    }

    let Start { identity, map, beginning, restoration } = start;
    let groups = initial_groups(&config);
    // Before anybody hears of this node: what cannot be read here must not begin elsewhere.
    let restoring = match &restoration {
        Some(restoration) => Some(restoration.stage(&groups, &*state, &kinds)?),
        None => None,
    };
    if beginning == Beginning::Joins {
        // The identity is last: a directory with an id has its groups, and a log that was deleted
        // cannot pass for new.
        make_groups(&mut log, &groups, identity.founders.keys().copied(), |_| FIRST)?;
        recovered = log.recover()?;
        data_dir.store_map(&map)?;
        data_dir.store(&identity)?;
    }
    let peers: Vec<_> = map.nodes().filter(|node| node.id != identity.node).collect();
    let dialed = peers_in(&map, identity.node);
    let labels: Vec<_> = peers.iter().map(|node| (node.id, node.name.clone())).collect();
    let metrics = NodeMetrics::new(recorder, &labels).with_figures(recorder, kinds.values());
    let metrics = Arc::new(metrics);
    let router = Arc::new(Router {
        node: identity.node,
        residents: ArcSwap::default(),
        wheel: Arc::new(Mutex::new(ticker::wheel(identity.node, &config))),
        map: ArcSwap::from_pointee(map.clone()),
        map_version: watch::Sender::new(map.version()),
        transport: ArcSwapOption::empty(),
        proposal_bytes: Arc::new(Semaphore::new(
            config.proposal_bytes_max.min(Semaphore::MAX_PERMITS),
        )),
        request_timeout: config.request_timeout,
        metrics: Arc::clone(&metrics),
        stopping: AtomicBool::new(false),
        disks: Arc::default(),
        distances: Arc::default(),
        entries: Arc::new(EntryCache::new(GROUP_CACHE_BYTES_MAX)),
        feeds: Arc::new(Feeds::new(metrics.feed_bytes.clone())),
    });
    let session = random_u64()?;
    let (gathering, heard) = mpsc::unbounded_channel();
    let admission = admission(&identity, &map, &beginning);
    let network = Arc::new(Network::new(
        Arc::clone(&router),
        identity.clone(),
        session,
        admission,
        Witness::of(log.noted()),
        log.synced_batches(),
        gathering,
    ));
    let transport = listen(&config, &identity, &network, recorder).await?;
    router.transport.store(Some(Arc::new(transport.clone())));
    for node in peers {
        transport.label_peer(&node.name, recorder);
        // While a cluster is founded nobody knows who has joined: that is what is to be found out.
        let dialed = !identity.has_started() || dialed.contains_key(&node.id);
        if dialed {
            transport.add_peer(node.id, &node.name, node.peer_address.clone())?;
        }
    }

    let identity = match &beginning {
        Beginning::Founds(founders) => {
            let around = (&*network, &*router);
            let founded =
                founders.found(identity, &data_dir, &mut log, around, heard, restoring).await?;
            recovered = founded.1;
            founded.0
        }
        Beginning::Joins | Beginning::Returns(_) => identity,
    };
    let is_missing =
        |group: &GroupId| !recovered.contains_key(group) && !fence.groups().contains_key(group);
    if let Some(group) = groups.iter().map(|group| group.id).find(is_missing) {
        return Err(OpenError::MissingGroup(group));
    }
    recovered.retain(|group, _| !fence.groups().contains_key(group));
    let first_map = match &beginning {
        Beginning::Founds(founders) | Beginning::Returns(Some(founders)) => {
            Some(founders.first_map(&identity)?)
        }
        Beginning::Joins | Beginning::Returns(None) => None,
    };

    let completions = Arc::new(LogCompletions::new(Arc::clone(&router)));
    let for_wal = Arc::clone(&completions);
    let wal = Arc::new(Wal::start(log, for_wal, WalConfig::default(), recorder));
    let placement_applied = Arc::new(Notify::new());
    let (applier, applier_thread) = Applier::start(
        Arc::clone(&state),
        on_applied(Arc::clone(&router), Arc::clone(&placement_applied)),
        on_failed(Arc::clone(&router)),
        Arc::clone(&metrics),
        Arc::clone(&router.feeds),
    )?;
    // Only from here on is there anybody whom a snapshot could hold up.
    let files = files.with_pace(Arc::new(DiskPace::new(config.snapshot_bytes_per_second)));
    let snapshots = Arc::new(Snapshots::new(
        identity.node,
        files,
        Arc::clone(&state),
        Arc::clone(&wal),
        Arc::clone(&completions),
        applier.clone(),
        kinds.clone(),
    ));
    let parts = Arc::new(Parts {
        router,
        network,
        snapshots,
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
        backups: Arc::new(Semaphore::new(1)),
        compacting: Arc::default(),
        fenced: fence.groups().clone(),
        data_dir,
    });
    for &group in fence.groups().keys() {
        parts.with_host(|host| host.fence(group));
    }
    parts.metrics.groups_fenced.set(fence.groups().len() as f64);
    for (group, log) in recovered {
        resume(&parts, group, log)?;
    }
    parts.network.take_snapshots(&parts);
    start_tasks(&parts, first_map);
    Ok(Engine { parts })
}

/// Opens log and state, and fences what is damaged.
pub(crate) fn open_stores(
    data_dir: &Arc<DataDir>,
    node: &str,
) -> Result<(RocksLog, Arc<dyn StateEngine>, Fence), OpenError> {
    let mut fence = Fence::load(data_dir)?;
    fence.admit(data_dir, node)?;
    let opened = RocksLog::open(&data_dir.log_path(), &RocksOptions::default());
    let mut news = match &opened {
        Ok(log) => log.damaged().values().filter(|error| fence.add(error)).count() > 0,
        Err(error @ LogError::DamagedEngine(_)) => fence.add(error),
        Err(_) => false,
    };
    let state = match &opened {
        Ok(_) => Some(RocksState::open(&RocksConfig::new(data_dir.state_path()))),
        Err(_) => None,
    };
    if let Some(Err(OpenStateError::Damaged(what))) = &state {
        news |= fence.add_all(format!("the state is damaged: {what}"));
    }
    let groups = opened.as_ref().ok().map(|log| log.groups().collect::<Vec<_>>());
    fence.settle(news, groups.as_deref(), data_dir, node)?;
    let (log, state) = (opened?, state.transpose()?.expect("the state is opened with the log"));
    if let Err(error) = crate::background::yield_to_foreground() {
        tracing::warn!(%error, "flushes compete with requests: their threads could not be set back");
    }
    state.on_damage(on_state_damage(Arc::clone(data_dir)));
    Ok((log, Arc::new(state), fence))
}

/// Fences the groups whose state is ahead of their log. Apply takes only what is durable in the log, so
/// that log has lost its end, and with it perhaps what the replica had acknowledged.
fn fence_state_ahead(
    fence: &mut Fence,
    (log, recovered): (&RocksLog, &BTreeMap<GroupId, RecoveredLog>),
    state: &dyn StateEngine,
    (data_dir, node): (&DataDir, &str),
) -> Result<(), OpenError> {
    let view = state.view();
    let mut news = false;
    for (&group, log) in recovered {
        let Some(GroupRow { applied, .. }) = GroupRow::load(group, &*view)? else { continue };
        if applied.index > log.last.index {
            let error = OpenError::StateAheadOfLog { group, applied, last: log.last };
            news |= fence.add_group(group, error.to_string());
        }
    }
    fence.settle(news, Some(&log.groups().collect::<Vec<_>>()), data_dir, node)
}

/// What a node knows before it opens its log.
struct Start {
    identity: Identity,
    /// The last map that it knew; before the first one, that of the initial nodes.
    map: PlacementMap,
    beginning: Beginning,
    /// What an initial node that has not started begins with, if it is a backup.
    restoration: Option<Restoration>,
}

/// How a node comes to take part.
#[derive(PartialEq, Eq)]
enum Beginning {
    /// It is an initial node that has not started.
    Founds(Founders),
    /// It has just been let in; nothing of that is on disk yet.
    Joins,
    /// It has started before; with the initial nodes, if it is one.
    Returns(Option<Founders>),
}

impl Start {
    async fn of(config: &EngineConfig, data_dir: &DataDir) -> Result<Self, OpenError> {
        let EngineConfig { cluster_name, cluster_token, node_name, .. } = config;
        let found = data_dir.identity((cluster_name, cluster_token, node_name))?;
        let restoration = restore::pending(data_dir, config, found.as_ref())?;
        let joins = match &found {
            Some(identity) => identity.node == NodeId::ZERO,
            None => config.initial_state == InitialState::Existing,
        };
        if joins && restoration.is_some() {
            return Err(StartRestoredError::Joins.into());
        }
        if joins {
            let identity = match found {
                Some(identity) => identity,
                None => fresh_identity(config)?,
            };
            // The incarnation must be durable before anybody hears of it.
            data_dir.store(&identity)?;
            let (identity, map) = join::ask(config, identity).await?;
            return Ok(Self { identity, map, beginning: Beginning::Joins, restoration: None });
        }
        let known = data_dir.map()?;
        // A founder needs its settings no more either, unless they say how the cluster began: then
        // they must say so rightly.
        let existing = config.initial_state == InitialState::Existing && known.is_some();
        if let Some(identity) = &found
            && identity.has_started()
            && (existing || !identity.is_founder())
        {
            let map = known.ok_or_else(|| DataDirError::NoMap(config.data_dir.clone()))?;
            let identity = identity.clone();
            let beginning = Beginning::Returns(None);
            return Ok(Self { identity, map, beginning, restoration: None });
        }
        // One that has started knows what it began with; one that has not is told by its directory.
        let started = found.as_ref().filter(|identity| identity.has_started());
        let restored = started.map_or_else(
            || restoration.as_ref().map(Restoration::digest),
            |identity| identity.restored,
        );
        let founders = Founders::of(config, restored)?;
        let identity = founders.identity(found, data_dir, config)?;
        let map = known.map_or_else(|| founders.first_map(&identity), Ok)?;
        let beginning = match identity.has_started() {
            true => Beginning::Returns(Some(founders)),
            false => Beginning::Founds(founders),
        };
        Ok(Self { identity, map, beginning, restoration })
    }
}

fn admission(identity: &Identity, map: &PlacementMap, beginning: &Beginning) -> Admission {
    let Identity { node, incarnation, cluster_digest, founders, .. } = identity;
    let names = match beginning {
        Beginning::Founds(initial) => {
            let names = initial.names.clone();
            return Admission::gathering(*node, *incarnation, *cluster_digest, names);
        }
        Beginning::Returns(Some(initial)) => initial.names.clone(),
        Beginning::Joins | Beginning::Returns(None) => BTreeMap::new(),
    };
    let mut admission = Admission::started(*node, *cluster_digest, names, founders.clone());
    // The first map says what the founders' table says.
    admission.learn(map);
    admission
}

fn kinds_by_name(kinds: Vec<Arc<dyn MachineKind>>) -> Kinds {
    let placement: Arc<dyn MachineKind> = Arc::new(PlacementKind);
    let all = kinds.into_iter().chain([placement]);
    all.map(|kind| (kind.name().to_owned(), kind)).collect()
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
        limits: Limits {
            snapshot_bytes_per_second: config.snapshot_bytes_per_second,
            keep_alive_interval: ticker::keep_alive_interval(config),
            ..Limits::default()
        },
    };
    let handler = Arc::clone(network);
    Ok(Transport::open(transport, handler, Arc::clone(&config.link), recorder).await?)
}

/// Brings a group of the log back to life.
fn resume(parts: &Arc<Parts>, group: GroupId, log: RecoveredLog) -> Result<(), OpenError> {
    let damaged = |reason: String| OpenError::Group { group, reason };
    let descriptor = Descriptor::decode(&log.label).map_err(|error| damaged(error.to_string()))?;
    let kind = parts.kind(&descriptor.kind).map_err(|error| damaged(error.to_string()))?;
    let generation = parts.with_host(|host| host.admit(group, descriptor))?;
    parts.spawn_group(group, generation, &kind, log)
}

fn on_applied(router: Arc<Router>, placement_applied: Arc<Notify>) -> crate::apply::OnApplied {
    Box::new(move |group, generation, applied| {
        // A group that has left needs no completions.
        if let Some(resident) = router.residents.load().get(&group) {
            drop(router.tell(resident, Input::Applied { generation, applied }));
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

fn start_tasks(parts: &Arc<Parts>, first_map: Option<PlacementMap>) {
    let config = &parts.config;
    let own = Node {
        id: parts.identity.node,
        name: parts.identity.node_name.clone(),
        client_address: config.advertise_client.join(","),
        peer_address: config.advertise_peer.clone(),
        labels: config.labels.clone(),
        incarnation: parts.identity.incarnation,
        ..Node::default()
    };
    let steward = Steward::new(parts, first_map, own);
    let (router, snapshots) = (&parts.router, &parts.snapshots);
    let truncator =
        truncator::run(Arc::clone(router), Arc::clone(snapshots), config.snapshot_count);
    let disk_watch = DiskWatch {
        router: Arc::clone(router),
        wal: Arc::clone(&parts.wal),
        session: parts.session,
        path: parts.data_dir.path().to_owned(),
        election_timeout: config.election_timeout,
        reserve_bytes: config.disk_reserve_bytes,
    };
    let kinds = parts.kinds.values().cloned().collect();
    let tasks = [
        vital::spawn("disk watch", disk_watch.run()),
        vital::spawn(
            "ticker",
            ticker::run(Arc::clone(router), kinds, parts.tick(), config.entry_cache_bytes),
        ),
        vital::spawn("look", ticker::look_around(Arc::clone(router))),
        vital::spawn("steward", steward.run(Arc::clone(&parts.placement_applied))),
        vital::spawn("mover", mover::run(Arc::clone(router))),
        vital::spawn("truncator", truncator),
    ];
    lock(&parts.tasks).extend(tasks);
}
