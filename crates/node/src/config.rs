//! What an engine is opened with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_transport::{Link, TlsConfig};
use quorate_types::{GroupId, KeyRange};

/// Settings of a node. [`EngineConfig::new`] fills in the defaults.
#[derive(Clone)]
pub struct EngineConfig {
    /// The node's own directory: identity, log and state. Made if it does not exist.
    pub data_dir: PathBuf,
    /// The cluster's name; certificates carry it, and it enters every node's id.
    pub cluster_name: String,
    /// Tells clusters of the same name apart; enters every node's id.
    pub cluster_token: String,
    /// This node's name; a key of `initial_cluster`.
    pub node_name: String,
    /// Name and peer address (`host:port`) of every initial node, this one included; for a node that
    /// joins, of nodes that it asks. A node that has joined does without.
    pub initial_cluster: BTreeMap<String, String>,
    /// Whether an empty directory may start a cluster, or joins one.
    pub initial_state: InitialState,
    /// Where other nodes reach this one, `host:port`.
    pub advertise_peer: String,
    /// Where peers are listened for (UDP).
    pub listen_peer: SocketAddr,
    /// Where clients reach this node, as told to them by member lists.
    pub advertise_client: Vec<String>,
    /// Locality labels, such as `region=eu`.
    pub labels: BTreeMap<String, String>,
    /// Certificate, key and cluster CA.
    pub tls: TlsConfig,
    /// The delays, losses and cuts between nodes; [`quorate_transport::Straight`] outside of tests.
    pub link: Arc<dyn Link>,
    /// The groups that every initial node hosts from the first start, beside the placement group.
    pub initial_groups: Vec<InitialGroup>,
    /// How often a leader says that it leads. Default 100 ms: quick enough for elections within two
    /// seconds, seldom enough to cost nothing. Smaller finds a dead leader sooner and wakes idle nodes
    /// more often.
    pub heartbeat_interval: Duration,
    /// How long a follower waits for a leader before it stands for election, at least; at most half
    /// as long again. Default 1,000 ms: above what a slow sync or a long pause takes.
    pub election_timeout: Duration,
    /// A group that had nothing to do for this long falls asleep: it neither beats nor ticks, its leader
    /// has no lease until it has made a round again, and the node watches over the others for it. Zero:
    /// never. Default 5 s: more often than that and it is not idle, and a group that wakes costs
    /// more than a few beats.
    pub sleep_after: Duration,
    /// Streams for appends to each peer. Default 4: a lost packet holds up a fourth of the groups.
    pub append_lanes: usize,
    /// Bytes of proposals that may wait on this node at a time; more are refused as overload. Default
    /// 256 MiB.
    pub proposal_bytes_max: usize,
    /// Bytes of entries that all groups of this node keep in memory, beyond those that are not durable or not
    /// applied: for followers that lag a little, so that the log is only written. Each group keeps 4 MiB at
    /// most. Default 256 MiB. Less, with many busy groups, and followers are served from the disk.
    pub entry_cache_bytes: usize,
    /// Applied entries that a log keeps behind the durable state, for replicas that were away for a while;
    /// older ones are truncated, and who needs them gets a snapshot. Default 100,000, as etcd's.
    pub snapshot_count: u64,
    /// Bytes of the disk that are kept free. Default `None`: a twentieth of it, at least 256 MiB and at most 2 GiB.
    /// Below that writes that grow the state are refused, below half of it the node takes no entries. Less
    /// gives room for data, and risks that a compaction meets a full disk, which ends the node.
    pub disk_reserve_bytes: Option<u64>,
    /// What all snapshots may take of this node, in bytes per second: so much of the network for those that are
    /// sent, and so much of the disk for whatever is written of them, backups too. Default 32 MiB/s, a small part
    /// of what disks and networks of servers give.
    pub snapshot_bytes_per_second: u64,
    /// Fixes how many appends that are not full may be under way to one peer; `None`, the default, lets the
    /// round trip to it decide: one on a LAN, more over a long link. For measurements (`bench-engine
    /// --window`): a small number costs latency over long links, a large one CPU on short ones.
    pub append_window: Option<NonZeroUsize>,
    /// How long the engine works on one request before it reports the outcome as unknown. Default 7 s,
    /// as etcd's: five seconds and two election timeouts.
    pub request_timeout: Duration,
}

/// Whether an empty data directory may start a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitialState {
    /// Yes, together with all other initial nodes.
    New,
    /// No: the node joins a cluster that runs, where it was added before.
    Existing,
}

/// A group that a cluster starts with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InitialGroup {
    /// Its id, above that of the placement group.
    pub id: GroupId,
    /// The name of its machine's kind.
    pub kind: String,
    /// The keys it owns, for a kind whose rows lie in the keyspace.
    pub range: Option<KeyRange>,
}

impl EngineConfig {
    /// Settings with their defaults; the arguments are those that have none.
    #[must_use]
    pub fn new(
        data_dir: PathBuf,
        node_name: &str,
        listen_peer: SocketAddr,
        tls: TlsConfig,
    ) -> Self {
        let own_address = (node_name.to_owned(), listen_peer.to_string());
        Self {
            data_dir,
            cluster_name: "quorate".into(),
            cluster_token: "quorate-cluster".into(),
            node_name: node_name.into(),
            initial_cluster: BTreeMap::from([own_address]),
            initial_state: InitialState::New,
            advertise_peer: listen_peer.to_string(),
            listen_peer,
            advertise_client: Vec::new(),
            labels: BTreeMap::new(),
            tls,
            link: Arc::new(quorate_transport::Straight),
            initial_groups: Vec::new(),
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_millis(1000),
            sleep_after: Duration::from_secs(5),
            append_lanes: 4,
            proposal_bytes_max: 256 << 20,
            entry_cache_bytes: 256 << 20,
            snapshot_count: 100_000,
            disk_reserve_bytes: None,
            snapshot_bytes_per_second: 32 << 20,
            append_window: None,
            request_timeout: Duration::from_secs(7),
        }
    }
}

impl std::fmt::Debug for EngineConfig {
    /// Leaves out what must not reach a log: keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineConfig")
            .field("data_dir", &self.data_dir)
            .field("cluster_name", &self.cluster_name)
            .field("node_name", &self.node_name)
            .field("initial_cluster", &self.initial_cluster)
            .field("listen_peer", &self.listen_peer)
            .finish_non_exhaustive()
    }
}
