//! The one table of settings: key, type and help of each, from which flags, environment variables and
//! file keys are made. A setting has one name everywhere: `--listen-client`, `QUORATE_LISTEN_CLIENT` and
//! `listen-client`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeValue;

use super::ConfigError;
use super::values::{
    ByteCount, ClusterState, Count, HostPort, InitialCluster, Labels, LogFilter, LogFormat, Millis,
    Name, Span, Switch, Text, Value, Wrong, parser,
};

/// The start of the names of our environment variables.
pub const ENV_PREFIX: &str = "QUORATE_";

/// The start of the names of etcd's. They are not read: an address or a cluster's members are written otherwise here.
const ETCD_PREFIX: &str = "ETCD_";

/// The variable that names the configuration file.
pub const ENV_CONFIG: &str = "QUORATE_CONFIG";

/// What one layer says: a value for each setting that it names.
macro_rules! settings {
    ($(
        $(#[doc = $help:literal])+
        $field:ident: $type:ty = $key:literal, $shown:literal $(, bare $bare:literal)?;
    )+) => {
        /// What one layer says: a value for each setting that it names. Also the flags of `serve`.
        #[derive(Clone, Default, Debug, clap::Args)]
        pub struct Settings {
            $(
                $(#[doc = $help])+
                #[arg(
                    long = $key, value_name = $shown, value_parser = parser::<$type>,
                    $(num_args = 0..=1, require_equals = true, default_missing_value = $bare)?
                )]
                pub $field: Option<$type>,
            )+
        }

        impl Settings {
            /// Every key.
            pub const KEYS: &'static [&'static str] = &[$($key),+];

            /// True when this layer names the setting `key`.
            #[must_use]
            pub fn has(&self, key: &str) -> bool {
                match key {
                    $($key => self.$field.is_some(),)+
                    _ => false,
                }
            }

            /// This layer over another: what this one does not name is taken from there.
            #[must_use]
            pub fn over(&self, lower: &Self) -> Self {
                Self { $($field: self.$field.as_ref().or(lower.$field.as_ref()).cloned(),)+ }
            }

            /// Sets `key` from text. `None`: there is no such key. The error has what was expected and
            /// what was found.
            pub(super) fn set_text(&mut self, key: &str, text: &str) -> Option<Result<(), String>> {
                Some(match key {
                    $($key => put(&mut self.$field, <$type as Value>::from_text(text)),)+
                    _ => return None,
                })
            }

            /// Sets `key` from TOML, as [`set_text`](Self::set_text) does from text.
            pub(super) fn set_toml(
                &mut self,
                key: &str,
                value: &DeValue<'_>,
            ) -> Option<Result<(), String>> {
                Some(match key {
                    $($key => put(&mut self.$field, <$type as Value>::from_toml(value)),)+
                    _ => return None,
                })
            }
        }
    };
}

settings! {
    /// Name of this node, as its certificate has it [default: default]
    name: Name = "name", "NAME";
    /// Directory of everything this node stores [default: NAME.quorate]
    data_dir: PathBuf = "data-dir", "DIR";
    /// Address for clients [default: 127.0.0.1:2379]
    listen_client: SocketAddr = "listen-client", "IP:PORT";
    /// Address for the other nodes (QUIC, so UDP) [default: 127.0.0.1:2380]
    listen_peer: SocketAddr = "listen-peer", "IP:PORT";
    /// Address for /metrics, /livez, /readyz and /health [default: 127.0.0.1:2381]
    listen_metrics: SocketAddr = "listen-metrics", "IP:PORT";
    /// Where clients reach this node [default: as listen-client]
    advertise_client: HostPort = "advertise-client", "HOST:PORT";
    /// Where other nodes reach this node [default: as initial-cluster says, else as listen-peer]
    advertise_peer: HostPort = "advertise-peer", "HOST:PORT";
    /// Members of a new cluster with their peer addresses [default: this node alone]
    initial_cluster: InitialCluster = "initial-cluster", "NAME=HOST:PORT,...";
    /// Nodes of a running cluster that let this one in, after `quorate member add` [default: none]
    join: InitialCluster = "join", "NAME=HOST:PORT,...";
    /// Whether an empty data directory starts a new cluster: new; or joins the others of
    /// initial-cluster: existing [default: new]
    initial_cluster_state: ClusterState = "initial-cluster-state", "STATE";
    /// Goes into the ids of a new cluster, so that two of one name are told apart
    /// [default: quorate-cluster]
    initial_cluster_token: Text = "initial-cluster-token", "TOKEN";
    /// Name of the cluster, as all certificates have it [default: quorate]
    cluster_name: Name = "cluster-name", "NAME";
    /// Locality of this node, such as region=eu,zone=eu-1a [default: none]
    labels: Labels = "labels", "KEY=VALUE,...";
    /// Certificate of this node (PEM)
    cert: PathBuf = "cert", "FILE";
    /// Private key of this node (PEM)
    key: PathBuf = "key", "FILE";
    /// Certificate of the cluster's authority (PEM)
    ca: PathBuf = "ca", "FILE";
    /// Certificate of the client port (PEM); with it, clients speak TLS; read again when it changes
    /// [default: none]
    cert_file: PathBuf = "cert-file", "FILE";
    /// Private key of the client port's certificate (PEM)
    key_file: PathBuf = "key-file", "FILE";
    /// Authority of clients' certificates (PEM); with it, every client must have one [default: none]
    trusted_ca_file: PathBuf = "trusted-ca-file", "FILE";
    /// Whether the common name of a client's certificate is its user; needs trusted-ca-file
    /// [default: false]
    client_cert_auth: Switch = "client-cert-auth", "BOOL", bare "true";
    /// Calls that one client connection may have open at a time [default: 10000]
    max_concurrent_streams: Count = "max-concurrent-streams", "N";
    /// Client connections at a time; further ones wait [default: 16384]
    max_connections: Count = "max-connections", "N";
    /// Milliseconds between a leader's heartbeats [default: 100]
    heartbeat_interval: Millis = "heartbeat-interval", "MS";
    /// Milliseconds without a heartbeat before an election; the actual value is drawn between this and
    /// half as much again [default: 1000]
    election_timeout: Millis = "election-timeout", "MS";
    /// Time without anything to do after which a group falls asleep: it costs nothing then, and its first
    /// read takes a round trip more; 0: never [default: 5s]
    sleep_after: Span = "sleep-after", "TIME";
    /// Most operations in a transaction, by etcd's rule [default: 128]
    max_txn_ops: Count = "max-txn-ops", "N";
    /// Largest request [default: 1572864]
    max_request_bytes: ByteCount = "max-request-bytes", "BYTES";
    /// Refuse writes that grow a larger state than this; 0: no limit but the disk [default: 0]
    quota_backend_bytes: ByteCount = "quota-backend-bytes", "BYTES";
    /// What history is forgotten by itself: periodic, all older than a time; revision, all but the last
    /// revisions [default: periodic]
    auto_compaction_mode: Text = "auto-compaction-mode", "MODE";
    /// How much history is kept: a time or hours, or a count of revisions; 0: all [default: 0]
    auto_compaction_retention: Text = "auto-compaction-retention", "LENGTH";
    /// Bytes of the disk that are kept free; 0: a twentieth of it, at least 256 MiB, at most 2 GiB
    /// [default: 0]
    disk_reserve_bytes: ByteCount = "disk-reserve-bytes", "BYTES";
    /// Applied entries that a group's log keeps, for replicas that lag [default: 100000]
    snapshot_count: Count = "snapshot-count", "N";
    /// Most that snapshots take of the network, and of the disk, per second each [default: 33554432]
    snapshot_bytes_per_second: ByteCount = "snapshot-bytes-per-second", "BYTES";
    /// Time between the notices that a quiet watch gets which has asked for them [default: 10m]
    watch_progress_notify_interval: Span = "watch-progress-notify-interval", "TIME";
    /// Least time between a client's keep-alive pings [default: 5s]
    grpc_keepalive_min_time: Span = "grpc-keepalive-min-time", "TIME";
    /// Time without traffic after which a client connection is pinged; 0: never [default: 2h]
    grpc_keepalive_interval: Span = "grpc-keepalive-interval", "TIME";
    /// Time for the answer to such a ping before the connection is closed [default: 20s]
    grpc_keepalive_timeout: Span = "grpc-keepalive-timeout", "TIME";
    /// What tokens are: simple, or jwt,sign-method=ES256,pub-key=FILE,priv-key=FILE,ttl=5m
    /// [default: simple]
    auth_token: Text = "auth-token", "KIND";
    /// Seconds that a simple token lives after its last use [default: 300]
    auth_token_ttl: Count = "auth-token-ttl", "S";
    /// Threads for groups and peers [default: 1]
    engine_threads: Count = "engine-threads", "N";
    /// Threads for clients; 0: those of the groups serve them too [default: 0]
    gateway_threads: Count = "gateway-threads", "N";
    /// Parallel streams of log entries to each peer [default: 4]
    append_lanes: Count = "append-lanes", "N";
    /// Form of the log: human or json [default: human]
    log_format: LogFormat = "log-format", "FORMAT";
    /// What is logged: a level, or target=level,... [default: info]
    log_level: LogFilter = "log-level", "FILTER";
}

/// All layers, the strongest first.
#[derive(Clone, Default, Debug)]
pub struct Layers {
    /// Flags of the command line.
    pub flags: Settings,
    /// Environment variables.
    pub env: Settings,
    /// The file.
    pub file: super::file::FileLayer,
}

impl Layers {
    /// For each setting what the strongest layer that names it says.
    #[must_use]
    pub fn resolve(&self) -> Settings {
        self.flags.over(&self.env).over(&self.file.settings)
    }

    /// Where `key` was set, for messages: `--name`, `QUORATE_NAME` or `quorate.toml:3`; `None` when it
    /// has its default.
    #[must_use]
    pub fn origin(&self, key: &str) -> Option<String> {
        if self.flags.has(key) {
            Some(format!("--{key}"))
        } else if self.env.has(key) {
            Some(env_name(key))
        } else {
            let line = self.file.lines.get(key)?;
            Some(format!("{}:{line}", self.file.path.display()))
        }
    }
}

/// What the environment says.
#[derive(Default, Debug)]
pub struct EnvLayer {
    /// The settings.
    pub settings: Settings,
    /// The configuration file that it names.
    pub config: Option<PathBuf>,
    /// Variables that look like ours but are not: no error, since an orchestrator may add its own
    /// (a Kubernetes service called `quorate` does).
    pub warnings: Vec<String>,
}

/// Reads the variables that begin with [`ENV_PREFIX`]; an empty one says nothing.
///
/// # Errors
/// When a variable of ours holds what its setting cannot be.
pub fn from_env(
    vars: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<EnvLayer, ConfigError> {
    let mut layer = EnvLayer::default();
    let named: BTreeMap<String, OsString> = vars
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let (ours, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        named.into_iter().partition(|(name, _)| name.starts_with(ENV_PREFIX));
    for name in others.into_keys().filter(|name| name.starts_with(ETCD_PREFIX)) {
        let key = name[ETCD_PREFIX.len()..].to_ascii_lowercase().replace('_', "-");
        if let Some(ours) = closest(&key).map(env_name) {
            layer.warnings.push(format!("{name} is etcd's and is not read: set {ours}"));
        }
    }
    for (name, value) in ours {
        if name == ENV_CONFIG {
            layer.config = Some(value.into());
            continue;
        }
        let key = name[ENV_PREFIX.len()..].to_ascii_lowercase().replace('_', "-");
        let Ok(text) = value.into_string() else {
            return Err(ConfigError(format!("{name}: is not UTF-8")));
        };
        match layer.settings.set_text(&key, &text) {
            Some(Ok(())) => {}
            Some(Err(wrong)) => return Err(ConfigError(format!("{name}: {wrong}"))),
            None => {
                let hint = closest(&key).map(env_name);
                let hint = hint.map_or_else(String::new, |hint| format!(" (did you mean {hint}?)"));
                layer.warnings.push(format!("unknown environment variable {name}{hint}"));
            }
        }
    }
    Ok(layer)
}

/// The key that someone who wrote `word` may have meant.
#[must_use]
pub fn closest(word: &str) -> Option<&'static str> {
    // A third of the letters may be wrong: "listen-clinet" is near, "tls" is not.
    let allowed = (word.len() / 3).max(1);
    let distance = |key: &str| strsim::damerau_levenshtein(word, key);
    let nearest = Settings::KEYS.iter().min_by_key(|key| distance(key))?;
    (distance(nearest) <= allowed).then_some(*nearest)
}

fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_ascii_uppercase().replace('-', "_"))
}

fn put<T: Value>(field: &mut Option<T>, value: Result<T, Wrong>) -> Result<(), String> {
    match value {
        Ok(value) => {
            *field = Some(value);
            Ok(())
        }
        Err(wrong) => Err(format!("must be {}, {wrong}", T::EXPECTED)),
    }
}
