//! `quorate dev`: a whole cluster in one process, through the same settings as `serve`, with real
//! sockets, real certificates and real disks.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_node::{Distant, Link, Straight};
use tempfile::TempDir;

use super::cert::{self, CertError, Files};
use super::{Failure, block_on, print};
use crate::config::settings::from_env;
use crate::config::values::{
    HostPort, InitialCluster, LogFilter, LogFormat, Name, Text, Value, parser,
};
use crate::config::{Layers, ServeConfig, Settings};
use crate::log;
use crate::node;
use crate::shutdown::{Exit, on_signals};

/// The most nodes: each has two databases and two threads, and a laptop has only so much.
const NODES_MAX: u16 = 9;

/// Between the ports of two nodes.
const PORT_STEP: u16 = 10;

/// The longest round trip: half of an election timeout, beyond which nobody stays leader.
const RTT_MS_MAX: u64 = 500;

/// The name of the cluster.
const CLUSTER: &str = "dev";

/// Arguments of `dev`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Node i (from 0) listens for clients on PORT + 10 i, for nodes on the port after that (UDP) and for \
scrapers on the one after. Settings that the nodes share can be given in the environment, as for \
serve: QUORATE_HEARTBEAT_INTERVAL=50 quorate dev")]
pub struct Args {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=NODES_MAX.into()))]
    nodes: u16,
    /// Client port of the first node
    #[arg(long, value_name = "PORT", default_value_t = 2379)]
    port: u16,
    /// Milliseconds that a round trip between two nodes takes, beside what loopback takes
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=RTT_MS_MAX))]
    rtt: u64,
    /// Directory of all data, kept on exit [default: a temporary one, removed on exit]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Form of the log: human or json [default: human]
    #[arg(long, value_name = "FORMAT", value_parser = parser::<LogFormat>)]
    log_format: Option<LogFormat>,
    /// What is logged: a level, or target=level,... [default: warn]
    #[arg(long, value_name = "FILTER", value_parser = parser::<LogFilter>)]
    log_level: Option<LogFilter>,
}

/// Where everything is stored.
enum Store {
    Kept(PathBuf),
    Removed(TempDir),
}

impl Store {
    fn open(data_dir: Option<&Path>) -> std::io::Result<Self> {
        match data_dir {
            Some(dir) => {
                fs::create_dir_all(dir)?;
                Ok(Self::Kept(dir.to_owned()))
            }
            None => Ok(Self::Removed(tempfile::Builder::new().prefix("quorate-dev-").tempdir()?)),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(dir) => dir,
            Self::Removed(dir) => dir.path(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// See [`crate::shutdown`] for the exit codes.
pub fn run(args: &Args) -> Result<(), Failure> {
    let failed = |error: &dyn ToString| Failure::new(Exit::Failed, error.to_string());
    check_ports(args)?;
    let env = from_env(std::env::vars_os()).map_err(|error| Failure::new(Exit::Usage, error))?;
    let store = Store::open(args.data_dir.as_deref()).map_err(|error| failed(&error))?;
    check_kept(args, store.path())?;
    let layers = layers(args, store.path(), env.settings).map_err(|error| failed(&error))?;
    let configs: Result<Vec<_>, _> = layers.iter().map(ServeConfig::check).collect();
    let configs = configs.map_err(|error| Failure::new(Exit::Usage, error))?;
    log::start(configs[0].log_format, &configs[0].log_filter);
    for warning in env.warnings {
        tracing::warn!("{warning}");
    }
    print(&greeting(&configs, &store));
    let ended = block_on(async {
        let stop = on_signals().map_err(|error| failed(&error))?;
        let (began, hint) = (Instant::now(), hint(&configs));
        let on_ready = || {
            let seconds = began.elapsed().as_secs_f64();
            print(&format!("ready after {seconds:.1} s\n\n{hint}"));
        };
        node::run(configs, link(args.rtt), stop, on_ready).await.map_err(|(node, error)| {
            let failure = super::serve::failure(&error);
            Failure { message: format!("{node}: {}", failure.message), ..failure }
        })
    });
    if let Store::Removed(dir) = store {
        dir.close().map_err(|error| failed(&error))?;
    }
    ended
}

/// What lies between the nodes, if a round trip takes so long.
fn link(rtt_ms: u64) -> Arc<dyn Link> {
    match Duration::from_millis(rtt_ms) / 2 {
        Duration::ZERO => Arc::new(Straight),
        delay => Arc::new(Distant { delay }),
    }
}

fn check_ports(args: &Args) -> Result<(), Failure> {
    let last = u32::from(args.port) + u32::from(PORT_STEP) * u32::from(args.nodes - 1) + 2;
    if args.port == 0 || last > u32::from(u16::MAX) {
        let message = format!(
            "--port {}: {} nodes need the ports up to {last}, between 1 and {}",
            args.port,
            args.nodes,
            u16::MAX
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(())
}

/// A directory keeps the cluster that it was made with: with fewer nodes it would have no quorum, and
/// further ones it does not know.
fn check_kept(args: &Args, dir: &Path) -> Result<(), Failure> {
    let kept = (1..=NODES_MAX).filter(|node| dir.join(format!("n{node}")).exists()).count();
    if kept == 0 || kept == usize::from(args.nodes) {
        return Ok(());
    }
    let dir = dir.display();
    let message = format!("--nodes {}: {dir} holds a cluster of {kept}", args.nodes);
    Err(Failure::new(Exit::Usage, message))
}

/// The layers of each node: what differs between nodes as flags, the rest from the environment.
fn layers(args: &Args, dir: &Path, env: Settings) -> Result<Vec<Layers>, CertError> {
    let name = |node: u16| Name(format!("n{}", node + 1));
    let at = |node: u16, offset: u16| {
        SocketAddr::from(([127, 0, 0, 1], args.port + PORT_STEP * node + offset))
    };
    let cluster: std::collections::BTreeMap<_, _> =
        (0..args.nodes).map(|node| (name(node), HostPort::from(at(node, 1)))).collect();
    (0..args.nodes)
        .map(|node| {
            let certificates = certificates(&dir.join("certificates"), &name(node).0)?;
            let flags = Settings {
                name: Some(name(node)),
                data_dir: Some(dir.join(name(node).0)),
                listen_client: Some(at(node, 0)),
                listen_peer: Some(at(node, 1)),
                listen_metrics: Some(at(node, 2)),
                advertise_client: Some(at(node, 0).into()),
                advertise_peer: Some(at(node, 1).into()),
                initial_cluster: Some(InitialCluster(cluster.clone())),
                initial_cluster_token: Some(Text(CLUSTER.to_owned())),
                cluster_name: Some(Name(CLUSTER.to_owned())),
                cert: Some(certificates.0.cert),
                key: Some(certificates.0.key),
                ca: Some(certificates.1),
                log_format: args.log_format,
                log_level: args.log_level.clone(),
                ..Settings::default()
            };
            let mut env = env.clone();
            if env.log_level.is_none() {
                env.log_level = LogFilter::from_text("warn").ok();
            }
            Ok(Layers { flags, env, ..Layers::default() })
        })
        .collect()
}

/// The certificate of `node` and its authority's; those that are not in `dir` yet are made.
fn certificates(dir: &Path, node: &str) -> Result<(Files, PathBuf), CertError> {
    let authority = Files::in_dir(dir, "ca");
    let ca = match authority.cert.exists() {
        true => cert::load_ca(&authority.cert, &authority.key)?,
        false => cert::write_ca(dir, CLUSTER)?.0,
    };
    let files = Files::in_dir(dir, node);
    if !files.cert.exists() {
        cert::write_node(dir, &ca, CLUSTER, node, &["127.0.0.1".to_owned()])?;
    }
    Ok((files, authority.cert))
}

fn greeting(configs: &[ServeConfig], store: &Store) -> String {
    let (dir, kept) = match store {
        Store::Kept(dir) => (dir.as_path(), "kept on exit"),
        Store::Removed(dir) => (dir.path(), "removed on exit"),
    };
    let nodes = match configs.len() {
        1 => "1 node".to_owned(),
        many => format!("{many} nodes"),
    };
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!(
        "Quorate {version}: {nodes} in one process, data in {} ({kept})\n\n",
        dir.display()
    );
    for config in configs {
        let (name, client, metrics) =
            (&config.name, &config.advertise_client, config.listen_metrics);
        text.push_str(&format!("  {name}  {client}  metrics: http://{metrics}/metrics\n"));
    }
    text.push('\n');
    text
}

fn hint(configs: &[ServeConfig]) -> String {
    let endpoints: Vec<_> = configs.iter().map(|config| config.advertise_client.as_str()).collect();
    let endpoints = endpoints.join(",");
    format!(
        "Try:\n  export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={endpoints}\n  \
         etcdctl put hello world\n  etcdctl get hello\n  etcdctl endpoint status -w table\n  \
         quorate status --endpoints {endpoints}\n\nCtrl-C stops it.\n"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn args(nodes: u16, port: u16) -> Args {
        Args { nodes, port, rtt: 0, data_dir: None, log_format: None, log_level: None }
    }

    #[test]
    fn nodes_get_ports_ten_apart_and_know_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let layers = layers(&args(3, 2379), dir.path(), Settings::default()).unwrap();
        let configs: Vec<_> =
            layers.iter().map(|layers| ServeConfig::check(layers).unwrap()).collect();
        let clients: Vec<_> = configs.iter().map(|config| config.listen_client.port()).collect();
        let peers: Vec<_> = configs.iter().map(|config| config.listen_peer.port()).collect();
        let metrics: Vec<_> = configs.iter().map(|config| config.listen_metrics.port()).collect();
        assert_eq!(clients, [2379, 2389, 2399]);
        assert_eq!(peers, [2380, 2390, 2400]);
        assert_eq!(metrics, [2381, 2391, 2401]);
        assert!(configs.iter().all(|config| config.initial_cluster == configs[0].initial_cluster));
        assert_eq!(configs[0].log_filter, "warn");
        let dirs: BTreeSet<_> = configs.iter().map(|config| &config.data_dir).collect();
        assert_eq!(dirs.len(), 3);
        let hint = hint(&configs);
        assert!(hint.contains("127.0.0.1:2379,127.0.0.1:2389,127.0.0.1:2399"), "{hint}");
    }

    #[test]
    fn certificates_of_a_kept_directory_are_used_again() {
        let dir = tempfile::tempdir().unwrap();
        layers(&args(2, 2379), dir.path(), Settings::default()).unwrap();
        let before = fs::read(dir.path().join("certificates/n2.key")).unwrap();
        layers(&args(3, 2379), dir.path(), Settings::default()).unwrap();
        assert_eq!(fs::read(dir.path().join("certificates/n2.key")).unwrap(), before);
        assert!(dir.path().join("certificates/n3.crt").exists());
    }

    #[test]
    fn what_the_nodes_share_comes_from_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let vars = [("QUORATE_HEARTBEAT_INTERVAL".into(), "50".into())];
        let env = from_env(vars).unwrap().settings;
        let layers = layers(&args(1, 2379), dir.path(), env).unwrap();
        let config = ServeConfig::check(&layers[0]).unwrap();
        assert_eq!(config.heartbeat.as_millis(), 50);
    }

    #[test]
    fn ports_beyond_the_last_are_refused() {
        assert!(check_ports(&args(3, 65513)).is_ok());
        let error = check_ports(&args(3, 65514)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--port 65514: 3 nodes need the ports up to 65536, between 1 and 65535"
        );
        assert!(check_ports(&args(1, 0)).is_err());
    }

    #[test]
    fn a_kept_cluster_is_opened_with_as_many_nodes_as_it_has() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_kept(&args(3, 2379), dir.path()).is_ok());
        for node in ["n1", "n2", "n3"] {
            fs::create_dir(dir.path().join(node)).unwrap();
        }
        assert!(check_kept(&args(3, 2379), dir.path()).is_ok());
        let error = check_kept(&args(1, 2379), dir.path()).unwrap_err().to_string();
        assert_eq!(error, format!("--nodes 1: {} holds a cluster of 3", dir.path().display()));
    }

    #[test]
    fn a_temporary_directory_is_removed_and_a_named_one_is_not() {
        let named = tempfile::tempdir().unwrap();
        let path = named.path().join("data");
        drop(Store::open(Some(&path)).unwrap());
        assert!(path.is_dir());
        let store = Store::open(None).unwrap();
        let path = store.path().to_owned();
        drop(store);
        assert!(!path.exists());
    }
}
