//! The settings of a whole cluster on loopback, for examples, tests and measurements: free ports, and
//! certificates made on the spot.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Mutex;

use quorate_transport::{TlsConfig, tls};

use crate::config::EngineConfig;

/// Settings for nodes `n1`, `n2`, ... of one cluster, each with a directory of its own under `dir`.
/// They must be opened at the same time: each waits for the others.
///
/// # Errors
/// When there is no free port, or a certificate cannot be made.
pub fn configs(nodes: usize, dir: &Path) -> io::Result<Vec<EngineConfig>> {
    let addresses: Vec<_> = (0..nodes).map(|_| free_address()).collect::<Result<_, _>>()?;
    let name = |node: usize| format!("n{}", node + 1);
    let initial_cluster: BTreeMap<_, _> =
        addresses.iter().enumerate().map(|(node, at)| (name(node), at.to_string())).collect();
    let cluster_name = "local";
    let ca = tls::make_ca(cluster_name).map_err(io::Error::other)?;
    let config = |(node, at): (usize, &SocketAddr)| {
        let name = name(node);
        let hosts = [at.ip().to_string()];
        let issued = ca.issue(cluster_name, &name, &hosts).map_err(io::Error::other)?;
        let tls = TlsConfig {
            cert_pem: issued.cert_pem,
            key_pem: issued.key_pem,
            ca_pem: ca.cert_pem().to_owned(),
        };
        Ok(EngineConfig {
            cluster_name: cluster_name.into(),
            initial_cluster: initial_cluster.clone(),
            ..EngineConfig::new(dir.join(&name), &name, *at, tls)
        })
    };
    addresses.iter().enumerate().map(config).collect()
}

/// An address that nobody listens at, and that this process has not been given before: a node that was
/// stopped may want its own again.
fn free_address() -> io::Result<SocketAddr> {
    static GIVEN: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());
    loop {
        let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        if GIVEN.lock().map_err(|_| io::Error::other("a thread panicked"))?.insert(address) {
            return Ok(address);
        }
    }
}
