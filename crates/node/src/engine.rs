//! [`Engine`]: a node, for those who embed it.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use kameo::actor::Spawn;
use kameo::mailbox;
use metrics::Recorder;
use quorate_group::{Descriptor, Generation, GroupConfig, Host, Leadership};
use quorate_placement::PlacementMap;
use quorate_raft::Config as RaftConfig;
use quorate_store::{GroupRow, GroupRows, StateEngine};
use quorate_transport::Transport;
use quorate_types::machine::RowScope;
use quorate_types::{
    ClusterId, EntryId, GroupId, HardState, LogIndex, MachineKind, Membership, NodeId,
    SnapshotMeta, Term,
};
use quorate_wal::{RecoveredLog, Wal, Write};
use tokio::sync::{Notify, Semaphore, watch};

use crate::actor::{Drive, Glance, GroupActor, GroupReport, Input, Reloader, Rest};
use crate::apply::Applier;
use crate::background;
use crate::completions::LogCompletions;
use crate::config::EngineConfig;
use crate::entry_cache::CachePart;
use crate::feed::Subscription;
use crate::identity::{DataDir, Identity};
use crate::life::Life;
use crate::members::hand_over;
use crate::metrics::NodeMetrics;
use crate::net::Network;
use crate::open::{self, OpenError};
use crate::router::{Consistency, EngineError, ReadAnswer, Resident, Route, Router};
use crate::snapshot::installation::Target;
use crate::snapshot::transfer::Snapshots;
use crate::state::GroupState;
use crate::ticker;

/// The first snapshot of every group: nothing, at index 1 of term 1, under its first voters.
pub(crate) const FIRST: EntryId = EntryId::new(Term(1), LogIndex(1));

/// Kinds of machines by name.
pub(crate) type Kinds = BTreeMap<String, Arc<dyn MachineKind>>;

/// A node: its groups, their shared log and state, and its connections.
///
/// It runs on the tokio runtime that opened it, best a current-thread one, and on three threads of its
/// own (log writer, log reader, applier). All methods may be called from anywhere. It lives until
/// [`Engine::shutdown`] or the end of its runtime, which is as safe as a crash: what was acknowledged is
/// on disk. Dropping the handle alone does not stop it.
pub struct Engine {
    pub(crate) parts: Arc<Parts>,
}

/// What an engine consists of.
pub(crate) struct Parts {
    pub(crate) router: Arc<Router>,
    pub(crate) network: Arc<Network>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) completions: Arc<LogCompletions>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) transport: Transport,
    pub(crate) applier: Applier,
    pub(crate) applier_thread: Mutex<Option<JoinHandle<()>>>,
    pub(crate) state: Arc<dyn StateEngine>,
    pub(crate) host: Mutex<Host>,
    pub(crate) kinds: Kinds,
    pub(crate) config: EngineConfig,
    pub(crate) identity: Identity,
    /// Drawn at random: tells this process from those that had the directory before.
    pub(crate) session: u64,
    pub(crate) metrics: Arc<NodeMetrics>,
    pub(crate) tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    pub(crate) placement_applied: Arc<Notify>,
    /// Backups that are being written: one at a time.
    pub(crate) backups: Arc<Semaphore>,
    /// Held by whoever gives space back: one at a time.
    pub(crate) compacting: Arc<tokio::sync::Mutex<()>>,
    /// Which groups were found damaged, now or earlier, and why.
    pub(crate) fenced: BTreeMap<GroupId, String>,
    /// Locks the directory as long as anything of the node is left.
    pub(crate) data_dir: Arc<DataDir>,
}

/// A node and its groups, for people.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Bytes of state on disk, about.
    pub state_bytes: u64,
    /// The groups that live here, by id.
    pub groups: Vec<GroupStatus>,
    /// The groups that must not take part here any more, and why: what the disk holds of them is damaged.
    pub fenced: BTreeMap<GroupId, String>,
}

/// One replica.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The kind of its machine.
    pub kind: String,
    /// Who leads, as the replica sees it.
    pub leadership: Leadership,
    /// Known committed.
    pub commit: LogIndex,
    /// Applied to the state.
    pub applied: LogIndex,
    /// The last entry of the log.
    pub last: EntryId,
    /// It has nothing to do, and neither beats nor ticks until something happens.
    pub asleep: bool,
    /// Who takes part.
    pub membership: Membership,
    /// What a leader has seen acknowledged by each other replica; empty elsewhere.
    pub matched: BTreeMap<NodeId, LogIndex>,
}

impl Engine {
    /// Opens a node: takes its directory, recovers its log and state, and, if it is new, founds the
    /// cluster together with the other initial nodes, for which it waits.
    ///
    /// `kinds` are the state machines that this node can run; all groups found in the log must be of
    /// one of them. Metrics go to `recorder`.
    ///
    /// # Errors
    /// When the directory is not this node's or is in use, log or state are damaged, the address is
    /// taken, or the certificates do not fit. Nothing was changed then.
    pub async fn open(
        config: EngineConfig,
        kinds: Vec<Arc<dyn MachineKind>>,
        recorder: &dyn Recorder,
    ) -> Result<Self, OpenError> {
        open::open(config, kinds, recorder).await
    }

    /// Nodes that join from now on are shown under their own names in the metrics per peer, as those are that
    /// the node was opened with; otherwise they share the label `other`.
    pub fn label_later_peers(&self, recorder: Arc<dyn Recorder + Send + Sync>) {
        self.parts.metrics.label_later_peers(recorder);
    }

    /// Creates a group of which this node is a voter, with an empty machine of `kind`. A majority of the
    /// voters must create it, with the same arguments; then it elects a leader, and the others get it by a
    /// snapshot. The group is there again after a restart. `range` is one of stored keys.
    ///
    /// # Errors
    /// When the kind is unknown, or the group or part of its range lives here already.
    pub async fn create_group(
        &self,
        group: GroupId,
        kind: &str,
        range: Option<quorate_types::KeyRange>,
        voters: impl IntoIterator<Item = NodeId>,
    ) -> Result<(), EngineError> {
        let parts = &self.parts;
        let kind = parts.kind(kind)?;
        let range = range.filter(|_| kind.scope() == RowScope::Keyspace);
        let descriptor = Descriptor { kind: kind.name().to_owned(), range };
        let generation = parts.with_host(|host| host.admit(group, descriptor.clone()))?;
        let snapshot = SnapshotMeta { last: FIRST, membership: Membership::of_voters(voters) };
        let write = Write::Create { group, label: descriptor.encode(), snapshot: snapshot.clone() };
        if parts.completions.write(&parts.wal, write).await.is_err() {
            parts.with_host(|host| host.dismiss(group));
            return Err(EngineError::Stopping);
        }
        let log = RecoveredLog {
            label: descriptor.encode(),
            // What a restart would find: nothing but the snapshot is on disk.
            hard_state: HardState::default(),
            terms: Vec::new(),
            last: FIRST,
            snapshot,
            memberships: Vec::new(),
            intent: None,
        };
        parts.spawn_group(group, generation, &kind, log).map_err(|error| {
            parts.with_host(|host| host.dismiss(group));
            EngineError::Read(error.to_string())
        })
    }

    /// Replicates `command` and returns what the group's machine made of it, once it is applied where
    /// its leader is.
    ///
    /// # Errors
    /// [`EngineError::TimedOut`] leaves open whether the command was or will be applied; after any
    /// other error it certainly was not.
    pub async fn propose(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> Result<quorate_group::Proposed, EngineError> {
        self.parts.router.propose(group, command).await
    }

    /// Answers `query` from the group's state.
    ///
    /// # Errors
    /// When there is no leader to confirm a linearizable read, or the machine refuses the query.
    pub async fn read(
        &self,
        group: GroupId,
        query: Bytes,
        consistency: Consistency,
    ) -> Result<ReadAnswer, EngineError> {
        self.parts.router.read(group, query, consistency).await
    }

    /// Follows what the commands of `group` do after the position `after`, which is of its machine's kind
    /// (see [`Feed`](quorate_types::machine::Feed)).
    #[must_use]
    pub fn subscribe(&self, group: GroupId, after: i64) -> Subscription {
        Subscription::new(Arc::clone(&self.parts.router), group, after)
    }

    /// Where a stored key lives; see [`stored_key`](quorate_store::stored_key).
    #[must_use]
    pub fn route(&self, key: &[u8]) -> Route {
        self.parts.router.route(key)
    }

    /// True once this node's replica of `group` has applied what was known to be committed at its last
    /// stop, or, if it is new, when it was let in.
    #[must_use]
    pub fn is_caught_up(&self, group: GroupId) -> bool {
        let resident = self.parts.router.resident(group);
        resident.is_ok_and(|resident| resident.caught_up.load(Ordering::Acquire))
    }

    /// Who leads `group`, now and from now on, as this node's replica sees it.
    ///
    /// # Errors
    /// When the group does not live here.
    pub fn leadership(&self, group: GroupId) -> Result<watch::Receiver<Leadership>, EngineError> {
        Ok(self.parts.router.resident(group)?.leadership.clone())
    }

    /// Who should lead `group`: when somebody else does and this voter has caught up, the leader hands over
    /// to it. To be told to every node that may lead, and again after a restart; `None`: nobody.
    ///
    /// # Errors
    /// When the group does not live here.
    pub fn prefer_leader(
        &self,
        group: GroupId,
        preferred: Option<NodeId>,
    ) -> Result<(), EngineError> {
        let router = &self.parts.router;
        router.tell(&*router.resident(group)?, Input::Prefer(preferred))
    }

    /// The placement map as this node knows it.
    #[must_use]
    pub fn map(&self) -> Arc<PlacementMap> {
        self.parts.router.map.load_full()
    }

    /// What of `group` is known committed here, and what is applied to the state, as of its last turn;
    /// `None` when it does not live here.
    #[must_use]
    pub fn indexes(&self, group: GroupId) -> Option<(LogIndex, LogIndex)> {
        Some(self.parts.router.resident(group).ok()?.glance.indexes())
    }

    /// True while this node takes part in `group` without a vote.
    #[must_use]
    pub fn is_learner(&self, group: GroupId) -> bool {
        self.parts.router.resident(group).is_ok_and(|resident| resident.glance.is_learner())
    }

    /// Groups that must not take part here any more, each with the reason.
    #[must_use]
    pub fn fenced(&self) -> &BTreeMap<GroupId, String> {
        &self.parts.fenced
    }

    /// Bytes of state on disk, about.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.parts.state.size_bytes()
    }

    /// Gives back the space of what was removed, see [`StateEngine::compact`]. Of several calls one is carried out at
    /// a time. It comes to its end although nobody waits any more, unless the node stops.
    ///
    /// # Errors
    /// When the engine fails, or the node stops.
    pub async fn compact_state(&self) -> Result<(), EngineError> {
        let turn = Arc::clone(&self.parts.compacting).lock_owned().await;
        let (state, router) = (Arc::clone(&self.parts.state), Arc::clone(&self.parts.router));
        let compacted = background::run(move || {
            let compacted = state.compact(&|| !router.stopping.load(Ordering::Acquire));
            drop((state, turn));
            compacted.map(|()| !router.stopping.load(Ordering::Acquire))
        });
        match compacted.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(EngineError::Stopping),
            Ok(Err(error)) => Err(EngineError::Read(error.to_string())),
            Err(unfinished) => Err(EngineError::Read(unfinished.to_string())),
        }
    }

    /// How the node and its groups are. Asks all groups that are awake: not for every request.
    pub async fn status(&self) -> NodeStatus {
        let parts = &self.parts;
        let kinds: BTreeMap<GroupId, String> = parts.with_host(|host| {
            host.groups().map(|(group, descriptor)| (group, descriptor.kind.clone())).collect()
        });
        let status = |report: Arc<GroupReport>| GroupStatus {
            group: report.group,
            kind: kinds.get(&report.group).cloned().unwrap_or_default(),
            leadership: report.leadership,
            commit: report.commit,
            applied: report.applied,
            last: report.last,
            asleep: report.asleep,
            membership: report.membership.clone(),
            matched: report
                .peers
                .iter()
                .map(|(node, progress)| (*node, progress.match_index))
                .collect(),
        };
        NodeStatus {
            cluster: self.cluster(),
            node: self.node(),
            name: self.name().to_owned(),
            state_bytes: self.state_bytes(),
            groups: ticker::reports(&parts.router).await.into_iter().map(status).collect(),
            fenced: parts.fenced.clone(),
        }
    }

    /// This node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.parts.identity.node_name
    }

    /// This node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.parts.identity.node
    }

    /// The cluster's id.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.parts.identity.cluster_id()
    }

    /// Stops the node: no new requests, leaderships handed over, groups stopped, state flushed, log drained, connections closed.
    /// Callers that still wait are answered. Blocks a little on disk work.
    pub async fn shutdown(self) {
        self.parts.router.stopping.store(true, Ordering::Release);
        // Ticks go on meanwhile; whoever takes over within an election timeout saves the others one.
        hand_over(&self.parts.router, self.parts.config.election_timeout).await;
        self.shutdown_with_cluster().await;
    }

    /// As [`Engine::shutdown`], when all other nodes stop too: leaderships are not handed over, since nobody
    /// would have them for long.
    pub async fn shutdown_with_cluster(self) {
        let parts = &self.parts;
        parts.router.stopping.store(true, Ordering::Release);
        parts.snapshots.stop();
        for task in std::mem::take(&mut *lock(&parts.tasks)) {
            task.abort();
        }
        let residents = parts.router.residents.swap(Arc::default());
        for resident in residents.values() {
            // An actor that has stopped already is as good.
            let _ = resident.actor.stop_gracefully().await;
            resident.actor.wait_for_shutdown().await;
        }
        // It ends after its piece, and nobody closes the state's files before.
        drop(parts.compacting.lock().await);
        parts.applier.stop();
        let thread = lock(&parts.applier_thread).take();
        let (wal, state) = (Arc::clone(&parts.wal), Arc::clone(&parts.state));
        let stopped = tokio::task::spawn_blocking(move || {
            wal.shutdown();
            let applied = thread.is_none_or(|thread| thread.join().is_ok());
            applied && state.flush().is_ok()
        });
        if !matches!(stopped.await, Ok(true)) {
            tracing::warn!(
                "the state was not flushed; it is rebuilt from the log at the next start"
            );
        }
        parts.transport.clone().close().await;
        // The transport's handler holds the router: let go of each other.
        parts.router.transport.store(None);
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("node", &self.node()).finish_non_exhaustive()
    }
}

impl Parts {
    pub(crate) fn kind(&self, name: &str) -> Result<Arc<dyn MachineKind>, EngineError> {
        self.kinds.get(name).cloned().ok_or_else(|| EngineError::UnknownKind(name.to_owned()))
    }

    pub(crate) fn with_host<T>(&self, act: impl FnOnce(&mut Host) -> T) -> T {
        act(&mut lock(&self.host))
    }

    /// Gives a group that was admitted its actor, its machine and its place in the router.
    pub(crate) fn spawn_group(
        self: &Arc<Self>,
        group: GroupId,
        generation: Generation,
        kind: &Arc<dyn MachineKind>,
        log: RecoveredLog,
    ) -> Result<(), OpenError> {
        let row = GroupRow::load(group, &*self.state.view())?;
        let disks = self.router.disks.view();
        let Life { group: mut value, descriptor, machine, caught_up_at, wrong_state, .. } =
            self.life(group, generation, kind, log, row)?;
        if let Some(known) = wrong_state.clone() {
            value.inherit(known);
        }
        let rows = GroupRows::new(kind.scope(), group, descriptor.range.as_ref());
        let target = Target { group, descriptor, rows };
        self.applier.open(machine);
        let (published, leadership) = watch::channel(value.leadership());
        let group_state = GroupState::new(group, Arc::clone(kind), Arc::clone(&self.state));
        let drive = Drive::new(
            group,
            generation,
            Arc::clone(&self.wal),
            self.transport.clone(),
            self.applier.clone(),
            Arc::clone(&self.router),
            group_state.clone(),
            Arc::clone(&self.metrics),
            published,
            Arc::clone(&self.snapshots),
            target,
            wrong_state,
        );
        let caught_up = Arc::new(AtomicBool::new(false));
        let rest = Rest::new(group, Arc::clone(&self.router.wheel));
        let (resting, glance) = (rest.report(), Arc::new(Glance::default()));
        let (shown, caught) = (Arc::clone(&glance), Arc::clone(&caught_up));
        let reloader = Reloader::new(group, Arc::clone(kind), Arc::downgrade(self));
        let cache = CachePart::new(Arc::clone(&self.router.entries));
        let actor = GroupActor::new(
            value,
            generation,
            drive,
            rest,
            cache,
            shown,
            caught,
            caught_up_at,
            reloader,
        );
        // Unbounded, so that no completion ever waits for room. What may enter is bounded elsewhere:
        // proposals by the node's bytes, messages by the peers' windows, completions by what was
        // submitted, ticks by the ticker.
        let actor = GroupActor::spawn_with_mailbox(actor, mailbox::unbounded());
        let state = group_state;
        let resident = Resident { actor, leadership, state, caught_up, glance, resting };
        self.router.take_in(group, Arc::new(resident), &disks);
        self.metrics.groups.increment(1.0);
        Ok(())
    }

    pub(crate) fn group_config(&self, group: GroupId) -> GroupConfig {
        let ticks = |time: std::time::Duration| {
            let ticks = time.as_nanos() / self.tick().as_nanos().max(1);
            u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
        };
        let election_ticks_min = ticks(self.config.election_timeout);
        let sleep_after = self.config.sleep_after;
        // Replicas of one group must not time out together, nor in step with those of other groups.
        let seed = self.identity.incarnation.value() ^ group.value().rotate_left(32);
        let defaults = RaftConfig::new(group, self.identity.node);
        // Measured: with 64 clients on a LAN, one append at a time has a third more throughput for a
        // quarter less CPU than a deep pipeline of small ones.
        let (inflight_partial_max, partial_interval_us) = match self.config.append_window {
            None => (1, defaults.partial_interval_us),
            Some(fixed) => (fixed.get(), u64::MAX),
        };
        GroupConfig {
            raft: RaftConfig {
                election_ticks_min,
                // A spread of half the timeout is enough to tell candidates of a small group apart,
                // and saves 150 ms of the median pause after a leader's death.
                election_ticks_max: election_ticks_min + election_ticks_min.div_ceil(2),
                heartbeat_ticks: ticker::TICKS_PER_HEARTBEAT,
                seed,
                inflight_partial_max,
                partial_interval_us,
                eager_commit: false,
                quiet_commit: true,
                quiesce_ticks: if sleep_after.is_zero() { 0 } else { ticks(sleep_after) },
                tick_us: u64::try_from(self.tick().as_micros()).unwrap_or(u64::MAX),
                life: self.session,
                ..defaults
            },
            proposal_ticks_max: u64::from(ticks(self.config.request_timeout)),
            // As long as it may take to find a new leader: then the caller tries elsewhere.
            read_ticks_max: u64::from(election_ticks_min) * 2,
        }
    }

    pub(crate) fn tick(&self) -> std::time::Duration {
        self.config.heartbeat_interval / ticker::TICKS_PER_HEARTBEAT
    }
}

/// Locks; what a panicking holder left behind is still whole, since every critical section is one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        Self::other(error)
    }
}
