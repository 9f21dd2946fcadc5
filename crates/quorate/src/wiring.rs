//! The thin adapter between the two halves: [`quorate_gateway::Backend`] over [`quorate_node::Engine`].
//!
//! Neither half knows the other. Commands, queries and outcomes of the keyspace cross here as protobuf;
//! to the engine they are bytes. What the gateway asks "from memory" is what the engine publishes with every
//! turn of a group, except for the size of the state, which a task of the engine's thread measures.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::BoxStream;
use prost::Message;
use quorate_gateway::{
    Answer, Backend, BackendError, Backup, BackupError, BackupForm, Consistency, GroupStatus,
    Happened, Member, MemberChange, MemberError, MembersAnswer, NodeStatus, PeerLag, Role,
};
use quorate_node::{
    Engine, EngineConfig, EngineError, InitialGroup, InitialState, KvKind, Leadership, TlsConfig,
    stored_key,
};
use quorate_types::auth::{AuthCell, Directory};
use quorate_types::kv_maintenance::AlarmKind;
use quorate_types::{GroupId, KeyRange, LogIndex, MachineKind, NodeId, Term, kv};

use crate::alarms;
use crate::config::ServeConfig;
use crate::config::values::ClusterState;
use crate::events;
use crate::members::{
    backup_error, client_address, etcd_member, member_change, member_error, members,
};

/// How often the state is measured, unless that takes so long that it would cost more than
/// [`MEASURE_SHARE`] of the engine's time.
const MEASURE_INTERVAL: Duration = Duration::from_millis(50);

/// The longer a measurement takes, the longer the next one waits: this many times as long, up to
/// [`MEASURE_INTERVAL_MAX`]. On a busy machine it takes long because others have the processor.
const MEASURE_SHARE: u32 = 20;

/// The size is never older than this and one measurement.
const MEASURE_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// The engine's settings of a node; `tls` is what its files hold.
#[must_use]
pub fn engine_config(config: &ServeConfig, tls: TlsConfig) -> EngineConfig {
    let members = &config.initial_cluster;
    EngineConfig {
        cluster_name: config.cluster_name.clone(),
        cluster_token: config.cluster_token.clone(),
        initial_cluster: members.iter().map(|(name, at)| (name.clone(), at.to_string())).collect(),
        initial_state: match config.cluster_state {
            ClusterState::New => InitialState::New,
            ClusterState::Existing => InitialState::Existing,
        },
        advertise_peer: config.advertise_peer.to_string(),
        advertise_client: vec![client_address(config)],
        labels: config.labels.clone(),
        initial_groups: vec![InitialGroup {
            id: GroupId::FIRST_DATA,
            kind: KvKind::NAME.to_owned(),
            range: Some(KeyRange::all()),
        }],
        heartbeat_interval: config.heartbeat,
        election_timeout: config.election,
        append_lanes: config.append_lanes,
        snapshot_count: config.snapshot_count,
        disk_reserve_bytes: config.disk_reserve_bytes,
        snapshot_bytes_per_second: config.snapshot_bytes_per_second,
        sleep_after: config.sleep_after,
        // etcd's rule: time for the disk, and for the cluster to find a new leader.
        request_timeout: Duration::from_secs(5) + 2 * config.election,
        ..EngineConfig::new(config.data_dir.clone(), &config.name, config.listen_peer, tls)
    }
}

/// The state machines that a node runs beside placement, and where the keyspace's shows its users.
#[must_use]
pub fn kinds() -> (Vec<Arc<dyn MachineKind>>, Arc<AuthCell>) {
    // Keys are the clients' choice; where they lie in memory is not.
    let seed = RandomState::new().hash_one(KvKind::NAME);
    let keyspace = KvKind::seeded(seed);
    let auth = keyspace.auth();
    (vec![Arc::new(keyspace)], auth)
}

/// An engine as the gateway wants it.
#[derive(Debug)]
pub struct EngineBackend {
    engine: Arc<Engine>,
    state_bytes: Arc<AtomicU64>,
    /// Writes that grow the state are refused above this many bytes.
    quota_bytes: Option<u64>,
    auth: Arc<AuthCell>,
}

/// Measures the state for an [`EngineBackend`]; holds the engine no longer than the backend's owner does.
#[derive(Debug)]
pub struct StateMeasure {
    state_bytes: Arc<AtomicU64>,
}

impl EngineBackend {
    /// An adapter over `engine`, and what keeps it up to date.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        quota_bytes: Option<u64>,
        auth: Arc<AuthCell>,
    ) -> (Self, StateMeasure) {
        let state_bytes = Arc::new(AtomicU64::new(engine.state_bytes()));
        let measure = StateMeasure { state_bytes: Arc::clone(&state_bytes) };
        (Self { engine, state_bytes, quota_bytes, auth }, measure)
    }

    fn state_bytes(&self) -> u64 {
        self.state_bytes.load(Ordering::Relaxed)
    }

    fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.leadership(group)?.leader
    }

    /// As published by the group, not as of the view.
    fn leadership(&self, group: GroupId) -> Option<Leadership> {
        Some(*self.engine.leadership(group).ok()?.borrow())
    }

    fn placement_term(&self) -> Term {
        self.leadership(GroupId::PLACEMENT).map(|now| now.term).unwrap_or_default()
    }
}

impl StateMeasure {
    /// Measures until it is dropped.
    pub async fn run(&self, engine: &Engine) {
        loop {
            let begun = Instant::now();
            self.state_bytes.store(engine.state_bytes(), Ordering::Relaxed);
            let pause = begun.elapsed() * MEASURE_SHARE;
            tokio::time::sleep(pause.clamp(MEASURE_INTERVAL, MEASURE_INTERVAL_MAX)).await;
        }
    }
}

impl Backend for EngineBackend {
    async fn propose(&self, command: kv::Command) -> Result<Answer, BackendError> {
        let full = self.quota_bytes.is_some_and(|quota| self.state_bytes() > quota);
        if full && command.grows() {
            // As etcd does it: the alarm stays until somebody clears it.
            if let Err(error) = alarms::raise(&self.engine, AlarmKind::NoSpace).await {
                tracing::warn!(%error, "the alarm that this node is above its quota was not raised");
            }
            return Err(BackendError::NoSpace);
        }
        let group = self.engine.route(&stored_key::of_command(&command)).group;
        let proposed = self.engine.propose(group, command.encode_to_vec().into()).await;
        let proposed = proposed.map_err(backend_error)?;
        Ok(Answer { outcome: outcome(proposed.outcome)?, raft_term: proposed.id.term })
    }

    async fn read(
        &self,
        query: kv::Query,
        consistency: Consistency,
    ) -> Result<Answer, BackendError> {
        let consistency = match consistency {
            Consistency::Linearizable if query.asks_leader() => quorate_node::Consistency::Led,
            Consistency::Linearizable => quorate_node::Consistency::Linearizable,
            Consistency::Serializable => quorate_node::Consistency::Serializable,
        };
        let group = self.engine.route(&stored_key::of_query(&query)).group;
        let read = self.engine.read(group, query.encode_to_vec().into(), consistency).await;
        let read = match (read, query.body) {
            (Err(EngineError::TooLarge { .. }), Some(kv::query::Body::Events(asked))) => {
                let (found, raft_term) = events::in_parts(&self.engine, group, asked).await?;
                let revision = found.through;
                let body = Some(kv::outcome::Body::Events(found));
                return Ok(Answer { outcome: kv::Outcome { revision, body }, raft_term });
            }
            (read, _) => read.map_err(backend_error)?,
        };
        Ok(Answer { outcome: outcome(read.answer)?, raft_term: read.term })
    }

    fn follow(&self, after: i64) -> BoxStream<'static, Result<Happened, BackendError>> {
        let group = self.engine.route(&stored_key::of_client(&[])).group;
        events::follow(Arc::clone(&self.engine), group, after)
    }

    fn auth_is_off(&self) -> bool {
        self.auth.is_off()
    }

    fn directory(&self) -> Option<Arc<Directory>> {
        // A replica that takes no part any more knows what was, not what is.
        let takes_part = !self.engine.fenced().contains_key(&GroupId::FIRST_DATA);
        self.auth.directory().filter(|_| takes_part)
    }

    fn node_status(&self) -> NodeStatus {
        let leadership = self.leadership(GroupId::FIRST_DATA);
        let leader = leadership.and_then(|now| now.leader);
        let (raft_index, raft_applied) =
            self.engine.indexes(GroupId::FIRST_DATA).unwrap_or_default();
        NodeStatus {
            cluster_id: self.engine.cluster(),
            member_id: self.engine.node(),
            member_name: self.engine.name().to_owned(),
            leader,
            raft_term: leadership.map(|now| now.term).unwrap_or_default(),
            raft_index,
            raft_applied,
            db_size_bytes: self.state_bytes(),
            db_in_use_bytes: self.state_bytes(),
            is_learner: self.engine.is_learner(GroupId::FIRST_DATA),
            errors: fenced(self.engine.fenced())
                .chain(leader.is_none().then(|| "etcdserver: no leader".to_owned()))
                .chain(self.engine.is_distrusted(GroupId::FIRST_DATA).then(|| {
                    let group = GroupId::FIRST_DATA;
                    format!("quorate: group {group} on this node differs from a majority and is being rebuilt")
                }))
                .collect(),
        }
    }

    fn is_cut_off(&self) -> bool {
        // What has no replica here is served by others: they can be reached while the map's group, of which every
        // node has a replica, has a leader.
        let leadership = self.leadership(GroupId::FIRST_DATA);
        let leadership = leadership.or_else(|| self.leadership(GroupId::PLACEMENT));
        leadership.is_none_or(|now| now.leader.is_none())
    }

    fn members(&self) -> Vec<Member> {
        members(&self.engine.map())
    }

    async fn members_now(&self) -> Result<(Vec<Member>, Term), BackendError> {
        let map = self.engine.map_now().await.map_err(backend_error)?;
        Ok((members(&map), self.placement_term()))
    }

    async fn change_members(&self, change: MemberChange) -> Result<MembersAnswer, MemberError> {
        let changed = self.engine.change_members(member_change(change)).await;
        let (id, map) = changed.map_err(member_error)?;
        Ok(MembersAnswer { id, members: members(&map), raft_term: self.placement_term() })
    }

    async fn move_leader(&self, to: NodeId) -> Result<(), MemberError> {
        self.engine.move_leader(GroupId::FIRST_DATA, to).await.map_err(member_error)
    }

    async fn defragment(&self) -> Result<(), BackendError> {
        self.engine.compact_state().await.map_err(backend_error)
    }

    async fn backup(&self, form: BackupForm) -> Result<Backup, BackupError> {
        let form = match form {
            BackupForm::Quorate => quorate_node::BackupForm::Quorate,
            BackupForm::Etcd => quorate_node::BackupForm::Etcd(
                self.members().into_iter().map(etcd_member).collect(),
            ),
        };
        let written = self.engine.backup(GroupId::FIRST_DATA, form).await;
        let quorate_node::BackupFile { revision, bytes, content } =
            written.map_err(backup_error)?;
        Ok(Backup { revision, bytes, content: Box::new(content) })
    }

    async fn groups(&self) -> Vec<GroupStatus> {
        let status = self.engine.status().await;
        status.groups.iter().map(|group| group_status(group, status.node)).collect()
    }

    fn is_ready(&self) -> bool {
        [GroupId::PLACEMENT, GroupId::FIRST_DATA]
            .into_iter()
            .all(|group| self.leader(group).is_some() && self.engine.is_caught_up(group))
    }
}

/// What a status says of groups that do not take part here any more.
fn fenced(fenced: &BTreeMap<GroupId, String>) -> impl Iterator<Item = String> {
    fenced
        .iter()
        .map(|(group, reason)| format!("quorate: group {group} is fenced on this node: {reason}"))
}

fn group_status(group: &quorate_node::GroupStatus, node: NodeId) -> GroupStatus {
    let peer = |(&node, &match_index): (&NodeId, &LogIndex)| PeerLag {
        node,
        match_index,
        lag: group.last.index.since(match_index),
    };
    GroupStatus {
        group: group.group,
        kind: group.kind.clone(),
        node,
        role: match group.leadership.role {
            quorate_node::Role::Leader => Role::Leader,
            quorate_node::Role::Candidate | quorate_node::Role::PreCandidate => Role::Candidate,
            quorate_node::Role::Follower if is_learner(group, node) => Role::Learner,
            quorate_node::Role::Follower => Role::Follower,
        },
        leader: group.leadership.leader,
        term: group.leadership.term,
        commit: group.commit,
        applied: group.applied,
        last: group.last.index,
        peers: group.matched.iter().map(peer).collect(),
        asleep: group.asleep,
    }
}

fn is_learner(group: &quorate_node::GroupStatus, node: NodeId) -> bool {
    group.membership.learners.contains(&node)
}

pub(crate) fn outcome(bytes: Bytes) -> Result<kv::Outcome, BackendError> {
    kv::Outcome::decode(bytes).map_err(|error| {
        tracing::error!(%error, "the keyspace gave an outcome that cannot be read");
        BackendError::Corrupt
    })
}

pub(crate) fn backend_error(error: EngineError) -> BackendError {
    match error {
        EngineError::NoLeader => BackendError::NoLeader,
        EngineError::TimedOut => BackendError::TimedOut,
        EngineError::Overloaded => BackendError::Overloaded,
        EngineError::NoSpace => BackendError::NoSpace,
        EngineError::TooLarge { .. } => BackendError::TooLarge,
        EngineError::Stopping => BackendError::Stopping,
        // The map knows a group that has not come to this node yet, or has left it.
        EngineError::UnknownGroup(_) => BackendError::NoLeader,
        // The gateway's queries are well formed, so this is the state's fault.
        error @ (EngineError::Read(_) | EngineError::UnknownKind(_) | EngineError::Host(_)) => {
            tracing::error!(%error, "the engine cannot serve the keyspace");
            BackendError::Corrupt
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_whether_a_command_may_have_been_applied() {
        assert_eq!(backend_error(EngineError::TimedOut), BackendError::TimedOut);
        for (error, expected) in [
            (EngineError::NoLeader, BackendError::NoLeader),
            (EngineError::UnknownGroup(GroupId(9)), BackendError::NoLeader),
            (EngineError::Overloaded, BackendError::Overloaded),
            (EngineError::NoSpace, BackendError::NoSpace),
            (EngineError::Stopping, BackendError::Stopping),
            (EngineError::Read("damaged".to_owned()), BackendError::Corrupt),
        ] {
            assert_eq!(backend_error(error), expected);
        }
    }

    #[test]
    fn an_unreadable_outcome_is_not_passed_on() {
        assert_eq!(outcome(Bytes::from_static(b"\xff\xff")), Err(BackendError::Corrupt));
    }
}
