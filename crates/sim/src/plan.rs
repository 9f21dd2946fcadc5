//! A run as data: the cluster, its network, disks and clocks, what clients do, and what goes wrong.
//!
//! A plan is drawn from a seed ([`swarm`](crate::swarm)) or read from a scenario. What a plan leaves open
//! (latencies, losses, keys) is drawn from the seed while it runs, so plan and seed give one run.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// Everything that a run is made from, beside its seed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Plan {
    /// What it is about, in one line.
    pub title: String,
    /// After so many events the world is healed and has to serve. The bound of work for one seed.
    pub events_max: u64,
    /// After so much virtual time the same; whichever comes first.
    pub duration_ms: u64,
    /// The nodes and their groups.
    pub cluster: Cluster,
    /// Links between nodes.
    pub network: Network,
    /// Logs and states.
    pub disk: Disk,
    /// How far clocks are apart, and how fast they run.
    pub clocks: Clocks,
    /// Clients.
    pub workload: Workload,
    /// Nodes that stay away at the end, by letter: whoever is left must be able to serve.
    pub absent: Vec<String>,
    /// What goes wrong, and when.
    #[serde(rename = "fault")]
    pub faults: Vec<Fault>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            title: String::new(),
            events_max: 20_000,
            duration_ms: 60_000,
            cluster: Cluster::default(),
            network: Network::default(),
            disk: Disk::default(),
            clocks: Clocks::default(),
            workload: Workload::default(),
            absent: Vec::new(),
            faults: Vec::new(),
        }
    }
}

/// The nodes, and the settings of their groups.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cluster {
    /// Nodes 1 to this many vote.
    pub voters: u64,
    /// So many of them are voters of the outgoing half too, with as many others: 0 for a simple membership.
    pub outgoing: u64,
    /// The next so many nodes only receive the log.
    pub learners: u64,
    /// The next so many nodes are no members until a change of the membership makes them.
    pub spares: u64,
    /// Run the placement group beside the data group.
    pub placement: bool,
    /// Groups follow the placement map: nodes that vote have founded it, spares may be added to it.
    pub mover: bool,
    /// So many entries behind a learner may be to get its vote.
    pub mover_lag_max: u64,
    /// Nodes per region, in order of their ids; nodes beyond the list are in the last one.
    pub regions: Vec<u64>,
    /// Length of a tick on a node's own clock.
    pub tick_us: u64,
    /// See `quorate_raft::Config`.
    pub election_ticks_min: u32,
    /// See `quorate_raft::Config`.
    pub election_ticks_max: u32,
    /// See `quorate_raft::Config`.
    pub heartbeat_ticks: u32,
    /// See `quorate_raft::Config`.
    pub append_bytes_max: usize,
    /// See `quorate_raft::Config`.
    pub inflight_appends_max: usize,
    /// See `quorate_raft::Config`.
    pub inflight_partial_max: usize,
    /// See `quorate_raft::Config`.
    pub eager_commit: bool,
    /// See `quorate_raft::Config`.
    pub quiet_commit: bool,
    /// See `quorate_raft::Config`.
    pub inflight_bytes_max: usize,
    /// See `quorate_raft::Config`.
    pub uncommitted_bytes_max: usize,
    /// See `quorate_raft::Config`.
    pub cached_bytes_max: usize,
    /// See `quorate_raft::Config`.
    pub pre_vote: bool,
    /// See `quorate_raft::Config`.
    pub check_quorum: bool,
    /// See `quorate_raft::Config`.
    pub lease: bool,
    /// See `quorate_group::GroupConfig`; for proposals and reads.
    pub proposal_ticks_max: u64,
    /// The group waits so long for more inputs before it takes its turn; drawn up to this.
    pub turn_delay_us_max: u64,
    /// The term that every log begins in; the first election makes the next one.
    pub first_term: u64,
    /// Committed entries that every log begins with.
    pub first_entries: u64,
    /// Cut the log after flushes of the state, to so many entries behind it at most. A large number: never.
    pub log_tail: u64,
    /// Let idle groups fall asleep after so many ticks; 0 for never.
    pub quiesce_ticks: u32,
    /// All first ticks come at once and not at random: for scenarios that count milliseconds.
    pub ticks_aligned: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            voters: 3,
            outgoing: 0,
            learners: 0,
            spares: 0,
            placement: false,
            mover: false,
            mover_lag_max: 1024,
            regions: Vec::new(),
            tick_us: 50_000,
            election_ticks_min: 20,
            election_ticks_max: 30,
            heartbeat_ticks: 2,
            append_bytes_max: 1 << 20,
            inflight_appends_max: 256,
            inflight_partial_max: 1,
            eager_commit: false,
            quiet_commit: false,
            inflight_bytes_max: 16 << 20,
            uncommitted_bytes_max: 64 << 20,
            cached_bytes_max: 4 << 20,
            pre_vote: true,
            check_quorum: true,
            lease: true,
            proposal_ticks_max: 100,
            turn_delay_us_max: 0,
            first_term: 1,
            first_entries: 0,
            log_tail: u64::MAX,
            quiesce_ticks: 0,
            ticks_aligned: false,
        }
    }
}

/// Links between nodes. Each message's latency is the link's base plus a part drawn for it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Network {
    /// Least latency within a region.
    pub latency_us: u64,
    /// Added between two regions.
    pub region_latency_us: u64,
    /// Drawn for each message, up to this.
    pub jitter_us: u64,
    /// So many messages in a thousand take `tail_us` more.
    pub tail_permille: u32,
    /// See `tail_permille`.
    pub tail_us: u64,
    /// So many messages in a thousand are lost.
    pub loss_permille: u32,
    /// So many messages in a thousand arrive twice.
    pub duplicate_permille: u32,
    /// Messages of one link keep their order, as on one stream; otherwise each travels alone.
    pub ordered: bool,
    /// Of the losses, so many in a thousand are reported to the sender, as when a connection breaks.
    pub loss_reported_permille: u32,
    /// Every frame is encoded and decoded, as between processes.
    pub encoded: bool,
    /// Links with a latency of their own.
    #[serde(rename = "link")]
    pub links: Vec<Link>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            latency_us: 500,
            region_latency_us: 0,
            jitter_us: 500,
            tail_permille: 0,
            tail_us: 0,
            loss_permille: 0,
            duplicate_permille: 0,
            ordered: true,
            loss_reported_permille: 0,
            encoded: false,
            links: Vec::new(),
        }
    }
}

/// One direction between two nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Link {
    /// Letter of the sender.
    pub from: String,
    /// Letter of the receiver.
    pub to: String,
    /// Exactly so long.
    pub latency_us: u64,
}

/// Logs and states of all nodes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// Least time of a sync.
    pub sync_us: u64,
    /// Drawn for each sync, up to this.
    pub sync_jitter_us: u64,
    /// So many syncs in a thousand take `tail_us` more.
    pub tail_permille: u32,
    /// See `tail_permille`.
    pub tail_us: u64,
    /// Time of an apply.
    pub apply_us: u64,
    /// Mean time between two flushes of a node's state; 0 for none but at a stop.
    pub flush_ms: u64,
    /// So many reads of old entries in a thousand are refused, as by a full queue.
    pub fetch_refused_permille: u32,
    /// Nodes look after their disks: they tell each other how much is free, refuse growth when that is little, and hand
    /// over while nothing is synced.
    pub watched: bool,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            sync_us: 200,
            sync_jitter_us: 300,
            tail_permille: 0,
            tail_us: 0,
            apply_us: 100,
            flush_ms: 1_000,
            fetch_refused_permille: 0,
            watched: true,
        }
    }
}

/// The clocks of all nodes.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Clocks {
    /// Wall clocks differ from true time by up to this.
    pub skew_ms_max: u64,
    /// Rates differ from that of true time by up to this, in parts per million.
    pub drift_ppm_max: u32,
}

/// What clients do. Weights are relative to each other.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Workload {
    /// Clients, each with one request at a time.
    pub clients: u32,
    /// Keys.
    pub keys: u32,
    /// Mean time between an answer and the next request.
    pub think_us: u64,
    /// A client gives up after so long.
    pub timeout_ms: u64,
    /// Latency between a client and the node that it talks to.
    pub latency_us: u64,
    /// So many answers in a thousand never reach their client.
    pub answers_lost_permille: u32,
    /// Bytes of a value, at most.
    pub value_bytes_max: usize,
    /// Weight of puts.
    pub put: u32,
    /// Weight of compare-and-swap transactions.
    pub swap: u32,
    /// Weight of deletes, of one key or all.
    pub delete: u32,
    /// Weight of transactions that put several keys.
    pub batch: u32,
    /// Weight of linearizable reads of a key.
    pub read: u32,
    /// Weight of linearizable reads of all keys.
    pub range: u32,
    /// Weight of serializable reads.
    pub serializable: u32,
    /// Weight of reads at an old revision.
    pub history: u32,
    /// Of linearizable reads, so many in a thousand are made at the replica at hand, whoever leads.
    pub at_hand_permille: u32,
    /// Weight of compactions.
    pub compact: u32,
    /// Weight of changes of the placement map, where there is one.
    pub placement: u32,
    /// Weight of what is done with leases: grants, keys attached to them, keep-alives, revokes.
    pub lease: u32,
    /// Leases live so many seconds, at most.
    pub lease_ttl_s_max: i64,
    /// Weight of changes of users and roles, and of puts by users. Without any, users do not count.
    pub users: u32,
    /// Watchers.
    pub watchers: u32,
    /// Requests at given times, for scenarios.
    #[serde(rename = "request")]
    pub requests: Vec<PlannedRequest>,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            clients: 4,
            keys: 4,
            think_us: 20_000,
            timeout_ms: 5_000,
            latency_us: 100,
            answers_lost_permille: 0,
            value_bytes_max: 16,
            put: 4,
            swap: 2,
            delete: 1,
            batch: 1,
            read: 4,
            range: 1,
            serializable: 2,
            history: 1,
            at_hand_permille: 500,
            compact: 0,
            placement: 1,
            lease: 0,
            lease_ttl_s_max: 2,
            users: 0,
            watchers: 0,
            requests: Vec::new(),
        }
    }
}

/// What a planned request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestKind {
    /// A new value.
    #[default]
    Put,
    /// A linearizable read.
    Read,
}

/// A request at a given time, by a client of its own, sent to a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PlannedRequest {
    /// When it reaches the node.
    pub at_us: u64,
    /// Letter of the node.
    pub node: String,
    /// The key's number.
    pub key: u32,
    /// What is asked for.
    #[serde(default)]
    pub kind: RequestKind,
}
