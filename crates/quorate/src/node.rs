//! A node from its settings to its end, and several of them in one process.
//!
//! The start, one log line for each step:
//!
//! 1. Bind the client and metrics ports, and read certificate, key and authority: what is most often
//!    wrong fails before any data is touched.
//! 2. The metrics port answers: alive, not ready.
//! 3. The engine opens on a thread of its own: data directory, log, state, peers. A new node waits here
//!    for the other initial ones.
//! 4. The gateway serves the client port and takes the metrics port over, on a thread of its own.
//! 5. Ready, once every group of the node knows its leader.
//!
//! The end goes backwards: the gateway lets open requests finish, for a while; then the engine flushes
//! and closes. Both are bounded.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::BuildError;
use quorate_gateway::{
    AuthConfig, Backend, ClientTls, Gateway, GatewayConfig, TokenKind, compaction,
};
use quorate_node::{EngineConfig, Expelled, Link, OpenError, TlsConfig};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::config::ServeConfig;
use crate::engine_life::{Ending, run_engine};
use crate::exporter::Exporter;
use crate::shutdown::{ENGINE_STOP_MAX, Stop};
use crate::threads::{Part, RuntimeThread};
use crate::wiring::{self, EngineBackend};

/// How often a node that starts is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// Time beyond the gateway's own grace after which its thread counts as stuck.
const GATEWAY_STOP_SLACK: Duration = Duration::from_secs(2);

/// For a keep-alive that was switched off: longer than any process lives, and short enough to add to a
/// clock.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why a node is not running.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A port cannot be listened on.
    #[error("{key} {address}: {source}")]
    Bind {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the node's identity cannot be read.
    #[error("{key} {path}: {source}")]
    File {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The client port's certificates cannot be used.
    #[error(transparent)]
    ClientTls(#[from] quorate_gateway::TlsError),
    /// The setting of tokens is none, or its keys are none.
    #[error("auth-token: {0}")]
    AuthToken(String),
    /// The engine does not open.
    #[error(transparent)]
    Engine(#[from] OpenError),
    /// The metrics cannot be set up.
    #[error("metrics: {0}")]
    Metrics(#[from] BuildError),
    /// The system gives no thread or event queue.
    #[error("thread: {0}")]
    Thread(io::Error),
    /// It was told to stop before it had started.
    #[error("stopped before it had started")]
    Stopped,
    /// Its cluster has removed it.
    #[error("stopped for good: {0}")]
    Removed(String),
    /// Its data directory is a copy: older than what the node had, or in use by another process.
    #[error("stopped, because its data directory must not be used: {0}")]
    Copy(String),
    /// A part of it ended by itself.
    #[error("its {0} ended by itself")]
    Broken(&'static str),
    /// It did not stop in time; what was acknowledged is on disk all the same.
    #[error("its {0} did not stop in time")]
    Stuck(&'static str),
}

/// A node that serves.
struct RunningNode {
    name: String,
    backend: Arc<EngineBackend>,
    gateway: Part<io::Result<()>>,
    gateway_stop: watch::Sender<bool>,
    engine: RuntimeThread<()>,
    engine_stop: watch::Sender<bool>,
    /// Why the cluster does not let the node take part any more, once it does not.
    expelled: watch::Receiver<Option<Expelled>>,
    upkeep: JoinHandle<()>,
}

/// Runs nodes until `stop` is requested or one of them ends by itself; `link` lies between them and their
/// peers; `on_ready` is called once, when all of them serve. One wrong node stops all.
///
/// # Errors
/// The first node that did not start, broke, or did not stop in time, with its name.
pub async fn run(
    configs: Vec<ServeConfig>,
    link: Arc<dyn Link>,
    stop: Stop,
    on_ready: impl FnOnce(),
) -> Result<(), (String, NodeError)> {
    let (halt, halted) = Stop::channel();
    let Some(mut nodes) = start_all(configs, &link, &stop, &halt, halted).await? else {
        return Ok(());
    };
    let ended = tokio::select! {
        () = stop.requested() => Ok(()),
        broken = serve(&mut nodes, on_ready) => Err(broken),
    };
    let stopped = stop_all(nodes).await;
    ended.and(stopped)
}

/// Starts nodes side by side, since each waits for the others. `None`: `stop` was requested meanwhile.
async fn start_all(
    configs: Vec<ServeConfig>,
    link: &Arc<dyn Link>,
    stop: &Stop,
    halt: &watch::Sender<bool>,
    halted: Stop,
) -> Result<Option<Vec<RunningNode>>, (String, NodeError)> {
    let mut starting = JoinSet::new();
    // Several nodes are a whole cluster, which stops as one.
    let ending = if configs.len() > 1 { Ending::WithCluster } else { Ending::Alone };
    for config in configs {
        let (halted, name, link) = (halted.clone(), config.name.clone(), Arc::clone(link));
        starting.spawn(async move {
            RunningNode::start(config, link, ending, &halted).await.map_err(|error| (name, error))
        });
    }
    let (mut nodes, mut failed) = (Vec::new(), None);
    loop {
        let started = tokio::select! {
            started = starting.join_next() => started,
            () = stop.requested(), if !*halt.borrow() => {
                halt.send_replace(true);
                continue;
            }
        };
        match started {
            None => break,
            Some(Ok(Ok(node))) => nodes.push(node),
            Some(Ok(Err((_, NodeError::Stopped)))) => {}
            Some(Ok(Err(error))) => {
                failed.get_or_insert(error);
                halt.send_replace(true);
            }
            Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    if !*halt.borrow() {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        return Ok(Some(nodes));
    }
    let stopped = stop_all(nodes).await;
    match failed {
        Some(error) => Err(error),
        None => stopped.map(|()| None),
    }
}

/// Reports readiness, then waits for a node to end by itself.
async fn serve(nodes: &mut [RunningNode], on_ready: impl FnOnce()) -> (String, NodeError) {
    let mut on_ready = Some(on_ready);
    loop {
        for node in nodes.iter_mut() {
            if let Some(why) = node.expelled.borrow().clone() {
                let error = match why {
                    Expelled::Removed(reason) => NodeError::Removed(reason),
                    Expelled::Copy(reason) => NodeError::Copy(reason),
                };
                return (node.name.clone(), error);
            }
            if let Some(part) = node.broken_part() {
                return (node.name.clone(), NodeError::Broken(part));
            }
        }
        if nodes.iter().all(|node| node.backend.is_ready())
            && let Some(on_ready) = on_ready.take()
        {
            on_ready();
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

async fn stop_all(nodes: Vec<RunningNode>) -> Result<(), (String, NodeError)> {
    let mut stopping = JoinSet::new();
    for node in nodes {
        let name = node.name.clone();
        stopping.spawn(async move { node.stop().await.map_err(|error| (name, error)) });
    }
    let mut result = Ok(());
    while let Some(stopped) = stopping.join_next().await {
        match stopped {
            Ok(stopped) => result = result.and(stopped),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    result
}

impl RunningNode {
    /// Starts a node, as the chapter of this file says.
    async fn start(
        config: ServeConfig,
        link: Arc<dyn Link>,
        ending: Ending,
        halt: &Stop,
    ) -> Result<Self, NodeError> {
        let name = config.name.clone();
        let node = name.as_str();
        let clients = bind("listen-client", config.listen_client)?;
        let scrapers = bind("listen-metrics", config.listen_metrics)?;
        let tls = read_tls(&config)?;
        let client_tls = config.clients.tls.clone().map(ClientTls::load).transpose()?;
        let auth_config = auth_config(&config)?;
        tracing::info!(
            node,
            clients = %config.listen_client,
            metrics = %config.listen_metrics,
            "ports are bound and certificates read"
        );

        let exporter = Exporter::new(node)?;
        let engine_config = EngineConfig { link, ..wiring::engine_config(&config, tls) };
        let (engine_stop, stop) = Stop::channel();
        let (open, opened) = oneshot::channel();
        let (expel, expelled) = watch::channel(None);
        let recorder = exporter.recorder();
        let quota_bytes = config.quota_backend_bytes;
        let mut engine = thread(node, "engine", config.engine_threads, move || {
            run_engine(engine_config, recorder, quota_bytes, open, expel, stop, ending)
        })?;
        tracing::info!(
            node,
            data_dir = %config.data_dir.display(),
            peers = %config.listen_peer,
            "the engine opens"
        );
        let starting = tokio_listener(&scrapers)?;
        let backend = tokio::select! {
            opened = opened => match opened {
                Ok(opened) => opened?,
                Err(_) => return Err(NodeError::Broken("engine")),
            },
            () = exporter.answer_while_starting(&starting) => unreachable!("it answers for ever"),
            () = halt.requested() => {
                engine_stop.send_replace(true);
                drop(timeout(ENGINE_STOP_MAX, engine.ended()).await);
                return Err(NodeError::Stopped);
            }
        };
        drop(starting);
        tracing::info!(node, "the engine is open");

        let backend = Arc::new(backend);
        let (gateway_stop, stop) = Stop::channel();
        let recorder = exporter.recorder();
        let page = exporter.page();
        let for_gateway = Arc::clone(&backend);
        let (for_compaction, retention) = (Arc::clone(&backend), config.retention);
        let gateway_config = gateway_config(&config);
        let serve = async move {
            let mut gateway =
                Gateway::with_auth(for_gateway, gateway_config, auth_config, page, &*recorder);
            if let Some(tls) = client_tls {
                gateway = gateway.with_tls(tls);
            }
            let (clients, scrapers) = (from_std(clients)?, from_std(scrapers)?);
            let served = async {
                tokio::join!(
                    gateway.serve(clients, stop.requested()),
                    gateway.serve_metrics(scrapers, stop.requested()),
                )
            };
            let compacting = async {
                match retention {
                    Some(retention) => compaction::run(for_compaction, retention).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = served => {}
                () = compacting => unreachable!("it compacts for ever"),
            }
            Ok(())
        };
        let gateway = match config.gateway_threads {
            0 => engine.take_in(serve),
            threads => Part::Own(thread(node, "gateway", threads, move || serve)?),
        };
        tracing::info!(node, advertised = config.client_url(), "the gateway serves clients");
        let upkeep = tokio::spawn(async move { exporter.upkeep().await });
        Ok(Self { name, backend, gateway, gateway_stop, engine, engine_stop, expelled, upkeep })
    }

    /// The part that ended by itself, if one did.
    fn broken_part(&mut self) -> Option<&'static str> {
        if self.engine.has_ended() {
            Some("engine")
        } else if self.gateway.has_ended() {
            Some("gateway")
        } else {
            None
        }
    }

    /// Stops the node, the outermost part first.
    async fn stop(mut self) -> Result<(), NodeError> {
        let node = self.name;
        tracing::info!(node, "stopping: open requests may finish");
        self.gateway_stop.send_replace(true);
        let grace = GatewayConfig::default().shutdown_grace + GATEWAY_STOP_SLACK;
        let gateway = timeout(grace, self.gateway.ended()).await;
        // The engine is shut down by its last owner, which must be its thread.
        drop(self.backend);
        tracing::info!(node, "stopping: the engine flushes and closes");
        self.engine_stop.send_replace(true);
        let engine = timeout(ENGINE_STOP_MAX, self.engine.ended()).await;
        self.upkeep.abort();
        let part = if gateway.is_err() { "gateway" } else { "engine" };
        if gateway.is_err() || engine.is_err() {
            return Err(NodeError::Stuck(part));
        }
        tracing::info!(node, "stopped");
        Ok(())
    }
}

fn gateway_config(config: &ServeConfig) -> GatewayConfig {
    GatewayConfig {
        max_request_bytes: config.max_request_bytes,
        max_txn_ops: config.max_txn_ops,
        watch_progress_interval: config.watch_progress_interval,
        election_timeout: config.election,
        grpc_keepalive_interval: config.keepalive.interval.unwrap_or(NEVER),
        grpc_keepalive_timeout: config.keepalive.timeout,
        grpc_keepalive_min_time: config.keepalive.min_time,
        max_concurrent_streams: config.clients.max_concurrent_streams,
        max_connections: config.clients.max_connections,
        // etcd's rule: one and a half election timeouts, in whole seconds.
        lease_ttl_min_s: (config.election * 3 / 2).as_millis().div_ceil(1_000) as i64,
        ..GatewayConfig::default()
    }
}

fn auth_config(config: &ServeConfig) -> Result<AuthConfig, NodeError> {
    let tokens = TokenKind::parse(&config.auth_token, |path| std::fs::read(path));
    let tokens = tokens.map_err(|error| NodeError::AuthToken(error.to_string()))?;
    Ok(AuthConfig { tokens, token_ttl: config.auth_token_ttl, ..AuthConfig::default() })
}

fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, NodeError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| NodeError::Bind { key, address, source })
}

/// A second handle on a listener, for the runtime that this is called on.
fn tokio_listener(listener: &TcpListener) -> Result<tokio::net::TcpListener, NodeError> {
    listener.try_clone().and_then(from_std).map_err(NodeError::Thread)
}

fn from_std(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(listener)
}

fn read_tls(config: &ServeConfig) -> Result<TlsConfig, NodeError> {
    let read = |key: &'static str, path: &Path| {
        std::fs::read_to_string(path).map_err(|source| NodeError::File {
            key,
            path: path.to_owned(),
            source,
        })
    };
    Ok(TlsConfig {
        cert_pem: read("cert", &config.tls.cert)?,
        key_pem: read("key", &config.tls.key)?,
        ca_pem: read("ca", &config.tls.ca)?,
    })
}

fn thread<T, F, M>(
    node: &str,
    part: &str,
    threads: usize,
    main: F,
) -> Result<RuntimeThread<T>, NodeError>
where
    T: Send + 'static,
    F: FnOnce() -> M + Send + 'static,
    M: Future<Output = T>,
{
    RuntimeThread::start(node, part, threads, main).map_err(NodeError::Thread)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use quorate_gateway::compaction::Retention;

    use super::*;
    use crate::config::{Layers, Settings};

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    fn checked(flags: &[&str]) -> ServeConfig {
        let always = ["serve", "--cert=c", "--key=k", "--ca=a"];
        let flags = Flags::try_parse_from(always.iter().chain(flags)).unwrap().settings;
        ServeConfig::check(&Layers { flags, ..Layers::default() }).unwrap()
    }

    #[test]
    fn every_flag_about_clients_reaches_the_gateway() {
        let config = gateway_config(&checked(&[
            "--max-request-bytes=1001",
            "--max-txn-ops=102",
            "--grpc-keepalive-interval=103s",
            "--grpc-keepalive-timeout=104s",
            "--grpc-keepalive-min-time=105s",
            "--watch-progress-notify-interval=106s",
            "--election-timeout=4700",
            "--max-concurrent-streams=108",
            "--max-connections=109",
        ]));
        let seconds = Duration::from_secs;
        let expected = GatewayConfig {
            max_request_bytes: 1001,
            max_txn_ops: 102,
            grpc_keepalive_interval: seconds(103),
            grpc_keepalive_timeout: seconds(104),
            grpc_keepalive_min_time: seconds(105),
            watch_progress_interval: seconds(106),
            election_timeout: Duration::from_millis(4_700),
            max_concurrent_streams: 108,
            max_connections: 109,
            // 7.05 s, rounded up.
            lease_ttl_min_s: 8,
            // No setting says anything about the others.
            ..GatewayConfig::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn without_flags_the_gateway_has_its_own_defaults_but_pings_as_seldom_as_etcd() {
        let expected = GatewayConfig {
            grpc_keepalive_interval: Duration::from_secs(2 * 60 * 60),
            ..GatewayConfig::default()
        };
        assert_eq!(gateway_config(&checked(&[])), expected);
        let never = gateway_config(&checked(&["--grpc-keepalive-interval=0s"]));
        assert_eq!(never.grpc_keepalive_interval, NEVER);
    }

    #[test]
    fn the_flags_of_compaction_say_what_history_is_kept() {
        let retention = |flags| checked(flags).retention;
        assert_eq!(retention(&[]), None);
        let hours = retention(&["--auto-compaction-retention=2"]);
        assert_eq!(hours, Some(Retention::Period(Duration::from_secs(2 * 60 * 60))));
        let revisions =
            retention(&["--auto-compaction-mode=revision", "--auto-compaction-retention=7"]);
        assert_eq!(revisions, Some(Retention::Revisions(7)));
    }

    #[test]
    fn the_flags_of_tokens_say_how_they_are_made_and_how_long_they_live() {
        let simple = auth_config(&checked(&["--auth-token-ttl=7"])).unwrap();
        assert!(matches!(simple.tokens, TokenKind::Simple));
        assert_eq!(simple.token_ttl, Duration::from_secs(7));

        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let jwt = format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=5m", key.display());
        let missing = auth_config(&checked(&[&jwt])).unwrap_err().to_string();
        assert!(missing.starts_with("auth-token: priv-key "), "{missing}");
        std::fs::write(&key, b"a secret of thirty-two bytes or more").unwrap();
        let signed = auth_config(&checked(&[&jwt])).unwrap();
        assert!(matches!(signed.tokens, TokenKind::Jwt(_)));

        let other = auth_config(&checked(&["--auth-token=paper"])).unwrap_err().to_string();
        assert_eq!(other, "auth-token: must be simple or jwt,..., found \"paper\"");
    }
}
