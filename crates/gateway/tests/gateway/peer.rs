//! A real etcd beside the tests, where one is installed.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

use crate::support::{PATIENCE, within};

/// A fresh single-member etcd, ended when dropped.
pub(crate) struct Etcd {
    process: Child,
    pub(crate) address: String,
    _data: TempDir,
}

/// Where the peers' programs are: `$PEERS/bin`, by default under the user's cache directory.
///
/// `None`, with the reason on standard error, where they are not; a panic if `REQUIRE_PEERS` is set.
pub(crate) fn programs() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let peers = env::var_os("PEERS").map(PathBuf::from);
    let bin = peers.or_else(|| Some(cache?.join("quorate-peers")))?.join("bin");
    if bin.join("etcd").exists() && bin.join("etcdctl").exists() {
        return Some(bin);
    }
    let reason = format!("skipped: no etcd and etcdctl in {}", bin.display());
    assert!(env::var_os("REQUIRE_PEERS").is_none(), "{reason}");
    // Not the macro: its words are kept back unless the test fails.
    let _ = writeln!(std::io::stderr(), "{reason}");
    None
}

impl Etcd {
    /// Starts an etcd and waits until it serves; `None` where none is installed.
    pub(crate) async fn start() -> Option<Self> {
        let program = programs()?.join("etcd");
        let data = TempDir::new().expect("a temporary directory");
        let (client, peer) = (free_address(), free_address());
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let mut process = Command::new(program)
            .args(["--name", "n1", "--log-level", "info", "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("n1={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd starts");
        let log = process.stderr.take().expect("the log is piped");
        let (tell, told) = oneshot::channel();
        // Reads on to the end: a full pipe would stop the process.
        thread::spawn(move || {
            let mut lines = BufReader::new(log).lines().map_while(Result::ok);
            if lines.any(|line| line.contains("ready to serve client requests")) {
                // The test may be gone already.
                let _ = tell.send(());
            }
            lines.for_each(drop);
        });
        let etcd = Self { process, address: client, _data: data };
        within("etcd says that it serves", told).await.expect("it does not end");
        Some(etcd)
    }

    /// A connection that is made when it is first used.
    pub(crate) fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
        endpoint.expect("an address").timeout(PATIENCE).connect_lazy()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    listener.local_addr().expect("a bound port").to_string()
}
