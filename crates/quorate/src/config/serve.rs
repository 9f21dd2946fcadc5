//! The checked whole of a node's settings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use quorate_gateway::compaction::Retention;

use super::ConfigError;
use super::clients::Clients;
use super::settings::{Layers, Settings};
use super::values::{ClusterState, Count, HostPort, InitialCluster, LogFormat, Span, Value};

/// Everything that one node is started with.
///
/// Invariants, checked when it is made:
/// - `name` is one of `initial_cluster`, with `advertise_peer` as its address, unless the node joins by
///   `join`: then those stand there that it asks.
/// - `heartbeat` is not zero and `election` is at least five times as long.
/// - The three listen addresses are different.
/// - Counts and sizes are within the bounds that their constants say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServeConfig {
    /// The node's name, as its certificate has it.
    pub name: String,
    /// The cluster's name, as every certificate has it.
    pub cluster_name: String,
    /// Goes into the ids of the initial nodes.
    pub cluster_token: String,
    /// Whether an empty data directory starts a new cluster, or joins one.
    pub cluster_state: ClusterState,
    /// Names and peer addresses of the initial members, or of those that a node asks that joins.
    pub initial_cluster: BTreeMap<String, HostPort>,
    /// Locality.
    pub labels: BTreeMap<String, String>,
    /// Where everything is stored.
    pub data_dir: PathBuf,
    /// Listens for clients (TCP).
    pub listen_client: SocketAddr,
    /// Listens for nodes (UDP).
    pub listen_peer: SocketAddr,
    /// Listens for scrapers and probes (TCP).
    pub listen_metrics: SocketAddr,
    /// Where clients reach the node.
    pub advertise_client: HostPort,
    /// Where nodes reach the node.
    pub advertise_peer: HostPort,
    /// Certificate, key and authority.
    pub tls: TlsFiles,
    /// How clients are let in.
    pub clients: Clients,
    /// Between a leader's heartbeats.
    pub heartbeat: Duration,
    /// The least time without a heartbeat before an election; at most half as long again.
    pub election: Duration,
    /// Idle groups fall asleep after this long; zero: never.
    pub sleep_after: Duration,
    /// Most operations in a transaction.
    pub max_txn_ops: usize,
    /// Largest request in bytes.
    pub max_request_bytes: usize,
    /// Largest state in bytes; `None`: as the disk has room.
    pub quota_backend_bytes: Option<u64>,
    /// What history is kept; `None`: all.
    pub retention: Option<Retention>,
    /// Bytes of the disk that are kept free; `None` for the default.
    pub disk_reserve_bytes: Option<u64>,
    /// Applied entries that a log keeps.
    pub snapshot_count: u64,
    /// Most that all snapshots take of the network.
    pub snapshot_bytes_per_second: u64,
    /// Between the notices of quiet watches; not zero.
    pub watch_progress_interval: Duration,
    /// Pings on client connections.
    pub keepalive: Keepalive,
    /// What tokens are, as etcd says it.
    pub auth_token: String,
    /// How long a simple token lives after its last use.
    pub auth_token_ttl: Duration,
    /// Threads for groups and peers.
    pub engine_threads: usize,
    /// Threads for clients; 0: the engine's serve them too.
    pub gateway_threads: usize,
    /// Parallel streams of entries to each peer.
    pub append_lanes: usize,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: String,
}

/// The files of a node's identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The node's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority that signed all certificates of the cluster.
    pub ca: PathBuf,
}

/// How idle client connections are watched; etcd's three settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// Clients that ping more often are cut off.
    pub min_time: Duration,
    /// The server pings a connection after this long without traffic; `None`: never.
    pub interval: Option<Duration>,
    /// The connection is closed when such a ping is not answered for this long.
    pub timeout: Duration,
}

impl ServeConfig {
    /// The longest election timeout, as etcd has it.
    pub const ELECTION_MAX: Duration = Duration::from_secs(50);
    /// An election timeout is at least this many heartbeats: fewer, and one lost beat starts an election.
    pub const BEATS_PER_ELECTION: u64 = 5;
    /// A transaction takes at most this many operations, whatever the setting.
    pub const TXN_OPS_MAX: u64 = 10_000;
    /// A request is one entry and one message between nodes, which must fit a frame of the transport.
    pub const REQUEST_BYTES_MAX: u64 = 12 << 20;
    /// Threads of one kind.
    pub const THREADS_MAX: u64 = 64;
    /// Snapshots may always take this much of the network: slower, and a replica that lags hardly ever catches up.
    pub const SNAPSHOT_BYTES_PER_SECOND_MIN: u64 = 1 << 20;
    /// Streams to one peer.
    pub const LANES_MAX: u64 = 16;

    /// Where clients reach the node, with the scheme that they have to speak.
    #[must_use]
    pub fn client_url(&self) -> String {
        let scheme = if self.clients.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.advertise_client)
    }

    /// Checks the whole.
    ///
    /// # Errors
    /// When an invariant would not hold; the text says where the setting was made and what to do.
    pub fn check(layers: &Layers) -> Result<Self, ConfigError> {
        Check { layers, settings: layers.resolve() }.whole()
    }
}

/// The checks, one method for each group of settings that belong together.
pub(super) struct Check<'l> {
    layers: &'l Layers,
    pub(super) settings: Settings,
}

/// The three sockets.
struct Listen {
    client: SocketAddr,
    peer: SocketAddr,
    metrics: SocketAddr,
}

/// How the node is reached, and by whom it is joined.
struct Members {
    advertise_client: HostPort,
    advertise_peer: HostPort,
    initial_cluster: BTreeMap<String, HostPort>,
    cluster_state: ClusterState,
}

impl Check<'_> {
    fn whole(&self) -> Result<ServeConfig, ConfigError> {
        let settings = &self.settings;
        let name = settings.name.as_ref().map_or("default", |name| &name.0).to_owned();
        let listen = self.listen()?;
        let members = self.members(&name, &listen)?;
        let (heartbeat, election) = self.timing()?;
        let words = |given: Option<&String>, default: &str| {
            given.map_or_else(|| default.to_owned(), String::clone)
        };
        let count = |given: Option<Count>, default: u64| given.map_or(default, |count| count.0);
        let data_dir = settings.data_dir.clone();
        let most_bytes = ServeConfig::REQUEST_BYTES_MAX;
        let bytes = settings.max_request_bytes.map_or(DEFAULT_REQUEST_BYTES, |bytes| bytes.0);
        let quota = settings.quota_backend_bytes.map_or(0, |bytes| bytes.0);
        let reserve = settings.disk_reserve_bytes.map_or(0, |bytes| bytes.0);
        let snapshot_count = count(settings.snapshot_count, 100_000);
        let (snapshot_rate, least_rate) =
            (settings.snapshot_bytes_per_second, ServeConfig::SNAPSHOT_BYTES_PER_SECOND_MIN);
        let snapshot_rate = snapshot_rate.map_or(32 << 20, |bytes| bytes.0);
        let txn_ops = count(settings.max_txn_ops, 128);
        let token_ttl = count(settings.auth_token_ttl, 300);
        let token_ttl = self.within("auth-token-ttl", token_ttl, 1..=u32::MAX.into())?;
        let engine_threads = count(settings.engine_threads, 1);
        let gateway_threads = count(settings.gateway_threads, 0);
        let lanes = count(settings.append_lanes, 4);
        Ok(ServeConfig {
            cluster_name: words(settings.cluster_name.as_ref().map(|name| &name.0), "quorate"),
            cluster_token: words(
                settings.initial_cluster_token.as_ref().map(|token| &token.0),
                "quorate-cluster",
            ),
            cluster_state: members.cluster_state,
            initial_cluster: members.initial_cluster,
            labels: settings.labels.clone().unwrap_or_default().0,
            data_dir: data_dir.unwrap_or_else(|| format!("{name}.quorate").into()),
            listen_client: listen.client,
            listen_peer: listen.peer,
            listen_metrics: listen.metrics,
            advertise_client: members.advertise_client,
            advertise_peer: members.advertise_peer,
            tls: TlsFiles {
                cert: self.tls_file("cert", settings.cert.as_ref())?,
                key: self.tls_file("key", settings.key.as_ref())?,
                ca: self.tls_file("ca", settings.ca.as_ref())?,
            },
            clients: self.clients()?,
            auth_token: words(settings.auth_token.as_ref().map(|kind| &kind.0), "simple"),
            auth_token_ttl: Duration::from_secs(token_ttl as u64),
            heartbeat,
            election,
            sleep_after: self.settings.sleep_after.map_or(DEFAULT_SLEEP_AFTER, |span| span.0),
            max_txn_ops: self.within("max-txn-ops", txn_ops, 1..=ServeConfig::TXN_OPS_MAX)?,
            max_request_bytes: self.within("max-request-bytes", bytes, 1..=most_bytes)?,
            quota_backend_bytes: (quota > 0).then_some(quota),
            retention: self.retention()?,
            disk_reserve_bytes: (reserve > 0).then_some(reserve),
            snapshot_count: self.within("snapshot-count", snapshot_count, 1..=u32::MAX.into())?
                as u64,
            snapshot_bytes_per_second: self.within(
                "snapshot-bytes-per-second",
                snapshot_rate,
                least_rate..=u64::MAX >> 1,
            )? as u64,
            watch_progress_interval: self.watch_progress_interval()?,
            keepalive: self.keepalive()?,
            engine_threads: self.within(
                "engine-threads",
                engine_threads,
                1..=ServeConfig::THREADS_MAX,
            )?,
            gateway_threads: self.within(
                "gateway-threads",
                gateway_threads,
                0..=ServeConfig::THREADS_MAX,
            )?,
            append_lanes: self.within("append-lanes", lanes, 1..=ServeConfig::LANES_MAX)?,
            log_format: settings.log_format.unwrap_or(LogFormat::Human),
            log_filter: words(settings.log_level.as_ref().map(|filter| &filter.0), "info"),
            name,
        })
    }

    fn listen(&self) -> Result<Listen, ConfigError> {
        let or = |given: Option<SocketAddr>, port: u16| {
            given.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)))
        };
        let client = or(self.settings.listen_client, 2379);
        let peer = or(self.settings.listen_peer, 2380);
        let metrics = or(self.settings.listen_metrics, 2381);
        // The peer port is UDP and may have a TCP neighbour, but nobody means that.
        let pairs = [
            ("listen-client", client, "listen-peer", peer),
            ("listen-client", client, "listen-metrics", metrics),
            ("listen-peer", peer, "listen-metrics", metrics),
        ];
        for (key, address, other_key, other) in pairs {
            if address == other && address.port() != 0 {
                return Err(self.fail(key, &format!("and {other_key:?} are both {address}")));
            }
        }
        Ok(Listen { client, peer, metrics })
    }

    fn members(&self, name: &str, listen: &Listen) -> Result<Members, ConfigError> {
        let settings = &self.settings;
        let advertise_client = match &settings.advertise_client {
            Some(given) => given.clone(),
            None => self.advertised("advertise-client", "listen-client", listen.client)?,
        };
        let cluster_state = settings.initial_cluster_state.unwrap_or(ClusterState::New);
        let addresses = |InitialCluster(members): &InitialCluster| {
            members.iter().map(|(member, at)| (member.0.clone(), at.clone())).collect()
        };
        if let Some(join) = &settings.join {
            self.joins_alone()?;
            let advertise_peer = self.advertise_peer(listen)?;
            let (initial_cluster, cluster_state) = (addresses(join), ClusterState::Existing);
            return Ok(Members {
                advertise_client,
                advertise_peer,
                initial_cluster,
                cluster_state,
            });
        }
        let Some(initial_cluster) = &settings.initial_cluster else {
            let advertise_peer = self.advertise_peer(listen)?;
            let initial_cluster = BTreeMap::from([(name.to_owned(), advertise_peer.clone())]);
            return Ok(Members {
                advertise_client,
                advertise_peer,
                initial_cluster,
                cluster_state,
            });
        };
        let initial_cluster: BTreeMap<String, HostPort> = addresses(initial_cluster);
        let Some(own) = initial_cluster.get(name) else {
            let names: Vec<_> = initial_cluster.keys().map(String::as_str).collect();
            let names = names.join(", ");
            let what = format!("is {name:?}, but \"initial-cluster\" names only {names}");
            return Err(self.fail("name", &what));
        };
        if let Some(given) = settings.advertise_peer.as_ref().filter(|given| *given != own) {
            let what = format!("is {given}, but \"initial-cluster\" has {name}={own}");
            return Err(self.fail("advertise-peer", &what));
        }
        let advertise_peer = own.clone();
        Ok(Members { advertise_client, advertise_peer, initial_cluster, cluster_state })
    }

    /// A node that joins has no part in how the cluster began.
    fn joins_alone(&self) -> Result<(), ConfigError> {
        if self.settings.initial_cluster.is_some() {
            return Err(
                self.fail("join", "and \"initial-cluster\" are for different nodes: set one")
            );
        }
        if self.settings.initial_cluster_state == Some(ClusterState::New) {
            return Err(self.fail("join", "is set, so \"initial-cluster-state\" cannot be \"new\""));
        }
        Ok(())
    }

    fn advertise_peer(&self, listen: &Listen) -> Result<HostPort, ConfigError> {
        match &self.settings.advertise_peer {
            Some(given) => Ok(given.clone()),
            None => self.advertised("advertise-peer", "listen-peer", listen.peer),
        }
    }

    fn advertised(
        &self,
        key: &str,
        listen_key: &str,
        listen: SocketAddr,
    ) -> Result<HostPort, ConfigError> {
        HostPort::from_text(&listen.to_string()).map_err(|_| {
            let what = format!("must be set, since {listen_key:?} is {listen}");
            self.fail(key, &what)
        })
    }

    fn tls_file(&self, key: &str, given: Option<&PathBuf>) -> Result<PathBuf, ConfigError> {
        given.cloned().ok_or_else(|| {
            let what = "must be set: nodes know each other by certificates; \
                        `quorate cert ca` and `quorate cert node` make them";
            self.fail(key, what)
        })
    }

    fn timing(&self) -> Result<(Duration, Duration), ConfigError> {
        let heartbeat_ms = self.settings.heartbeat_interval.map_or(100, |ms| ms.0);
        let election_ms = self.settings.election_timeout.map_or(1000, |ms| ms.0);
        if heartbeat_ms == 0 {
            return Err(self.fail("heartbeat-interval", "must be at least 1 ms"));
        }
        let beats = ServeConfig::BEATS_PER_ELECTION;
        let least_ms = heartbeat_ms.saturating_mul(beats);
        if election_ms < least_ms {
            let what = format!(
                "is {election_ms} ms and must be at least {beats} times \"heartbeat-interval\" \
                 ({beats} x {heartbeat_ms} ms)"
            );
            return Err(self.fail("election-timeout", &what));
        }
        let (election, most) = (Duration::from_millis(election_ms), ServeConfig::ELECTION_MAX);
        if election > most {
            let what = format!("must be at most {} ms, found {election_ms}", most.as_millis());
            return Err(self.fail("election-timeout", &what));
        }
        Ok((Duration::from_millis(heartbeat_ms), election))
    }

    fn watch_progress_interval(&self) -> Result<Duration, ConfigError> {
        let interval = self.settings.watch_progress_notify_interval;
        let interval = interval.map_or(Duration::from_secs(600), |Span(interval)| interval);
        match interval.is_zero() {
            true => Err(self.fail("watch-progress-notify-interval", "must be more than 0")),
            false => Ok(interval),
        }
    }

    fn keepalive(&self) -> Result<Keepalive, ConfigError> {
        let or = |given: Option<Span>, default_s: u64| {
            given.map_or_else(|| Duration::from_secs(default_s), |span| span.0)
        };
        let interval = or(self.settings.grpc_keepalive_interval, 2 * 60 * 60);
        let timeout = or(self.settings.grpc_keepalive_timeout, 20);
        if timeout.is_zero() {
            return Err(self.fail("grpc-keepalive-timeout", "must be more than 0"));
        }
        Ok(Keepalive {
            min_time: or(self.settings.grpc_keepalive_min_time, 5),
            interval: (!interval.is_zero()).then_some(interval),
            timeout,
        })
    }

    fn retention(&self) -> Result<Option<Retention>, ConfigError> {
        let Settings { auto_compaction_mode: mode, auto_compaction_retention: length, .. } =
            &self.settings;
        let (mode, length) = (mode.as_ref(), length.as_ref());
        super::retention::retention(mode.map(|mode| &*mode.0), length.map(|length| &*length.0))
            .map_err(|(key, what)| self.fail(key, &what))
    }

    pub(super) fn within(
        &self,
        key: &str,
        value: u64,
        allowed: RangeInclusive<u64>,
    ) -> Result<usize, ConfigError> {
        if allowed.contains(&value) {
            return Ok(usize::try_from(value).unwrap_or(usize::MAX));
        }
        let (least, most) = allowed.into_inner();
        Err(self.fail(key, &format!("must be between {least} and {most}, found {value}")))
    }

    /// An error about `key`, with the place where it was set.
    pub(super) fn fail(&self, key: &str, what: &str) -> ConfigError {
        let origin = self.layers.origin(key).map_or_else(String::new, |at| format!("{at}: "));
        ConfigError(format!("{origin}{key:?} {what}"))
    }
}

/// As the engine's own.
const DEFAULT_SLEEP_AFTER: Duration = Duration::from_secs(5);

/// etcd's: 1.5 MiB.
const DEFAULT_REQUEST_BYTES: u64 = 1_572_864;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
