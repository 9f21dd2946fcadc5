//! The nodes of one cluster in this process, over links that are shaped while they serve.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate::cli::cert::{write_ca, write_node};
use quorate::config::values::{HostPort, InitialCluster, Name, Text};
use quorate::config::{ServeConfig, Settings};
use quorate::node;
use quorate::shutdown::Stop;
use quorate_api::etcdserverpb::RangeRequest;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_node::{Fate, Link, Shaped};
use quorate_types::NodeId;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;

/// The name of the cluster, and its token.
const CLUSTER: &str = "partitions";

/// Only ends what would hang.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long one read may take: above the time after which a node gives a request up.
const READ_BOUND: Duration = Duration::from_secs(15);

/// Links that count what they lose.
pub(crate) struct Links {
    pub(crate) shaped: Shaped,
    lost: AtomicU64,
}

impl Links {
    /// Frames that did not arrive so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }
}

impl Link for Links {
    fn fate(&self, from: NodeId, to: NodeId) -> Fate {
        let fate = self.shaped.fate(from, to);
        self.lost.fetch_add(u64::from(!fate.deliver), Ordering::SeqCst);
        fate
    }
}

/// Nodes that serve.
pub(crate) struct Nodes {
    pub(crate) links: Arc<Links>,
    pub(crate) endpoints: Vec<String>,
    /// In the order of the endpoints.
    pub(crate) ids: Vec<NodeId>,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl Nodes {
    pub(crate) async fn start(count: usize, dir: &Path) -> Self {
        let configs = configs(count, dir);
        let endpoints: Vec<_> =
            configs.iter().map(|config| config.listen_client.to_string()).collect();
        let links = Arc::new(Links { shaped: Shaped::new(1), lost: AtomicU64::new(0) });
        let (stop, stopped) = Stop::channel();
        let (ready, is_ready) = oneshot::channel();
        let between = Arc::clone(&links);
        let running = tokio::spawn(async move {
            let on_ready = || ready.send(()).expect("the test waits");
            node::run(configs, between, stopped, on_ready).await.expect("the nodes serve");
        });
        tokio::time::timeout(PATIENCE, is_ready).await.expect("in time").expect("they are ready");
        let mut ids = Vec::new();
        for endpoint in &endpoints {
            ids.push(read(endpoint).await.expect("it serves").0);
        }
        Self { links, endpoints, ids, stop, running }
    }

    /// Waits until each node answers a linearizable read.
    pub(crate) async fn await_reads(&self) {
        let all = async {
            for endpoint in &self.endpoints {
                while read(endpoint).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("all serve again");
    }

    /// The place of the node that leads, as the first node has it that knows.
    pub(crate) async fn leader(&self) -> usize {
        let known = async {
            loop {
                for endpoint in &self.endpoints {
                    let leader = crate::leader(endpoint).await;
                    if let Some(place) = self.ids.iter().position(|id| Some(*id) == leader) {
                        return place;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, known).await.expect("somebody leads")
    }

    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        self.running.await.expect("they stop");
    }
}

/// The member that answers a linearizable read, and the revision.
async fn read(endpoint: &str) -> Result<(NodeId, i64), tonic::Status> {
    let channel = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
    let channel = channel.connect_timeout(READ_BOUND).timeout(READ_BOUND).connect_lazy();
    let request = RangeRequest { key: "any".into(), ..RangeRequest::default() };
    let header = KvClient::new(channel).range(request).await?.into_inner().header;
    let header = header.expect("every answer has a header");
    Ok((NodeId(header.member_id), header.revision))
}

/// Settings as those of `quorate serve`, on ports that nobody uses.
fn configs(count: usize, dir: &Path) -> Vec<ServeConfig> {
    let certificates = dir.join("certificates");
    let (ca, authority) = write_ca(&certificates, CLUSTER).expect("an authority");
    let names: Vec<_> = (1..=count).map(|number| format!("n{number}")).collect();
    let peers: Vec<_> = names.iter().map(|_| free_udp()).collect();
    let named = names.iter().cloned().map(Name).zip(peers.iter().copied().map(HostPort::from));
    let members = InitialCluster(named.collect::<BTreeMap<_, _>>());
    let config = |(name, peer): (&String, &SocketAddr)| {
        let files = write_node(&certificates, &ca, CLUSTER, name, &[]).expect("a certificate");
        let flags = Settings {
            name: Some(Name(name.clone())),
            data_dir: Some(dir.join(name)),
            listen_client: Some(free_tcp()),
            listen_peer: Some(*peer),
            listen_metrics: Some(free_tcp()),
            initial_cluster: Some(members.clone()),
            initial_cluster_token: Some(Text(CLUSTER.to_owned())),
            cluster_name: Some(Name(CLUSTER.to_owned())),
            cert: Some(files.cert),
            key: Some(files.key),
            ca: Some(authority.cert.clone()),
            ..Settings::default()
        };
        let (config, _) = quorate::config::load(flags, [], None).expect("settings");
        config
    };
    names.iter().zip(&peers).map(config).collect()
}

fn free_tcp() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port")
}

fn free_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port")
}
