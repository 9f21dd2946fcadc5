//! Bad input from outside: a clear error, nothing else disturbed, nothing lost.
//!
//! The rows of the table in `docs/testing.md` that take a real process: [`requests`] at the client port,
//! [`bytes`] that are no protocol at every port, [`identity`] of peers and of data directories, and
//! [`settings`].

mod bytes;
mod identity;
mod requests;
mod settings;

use std::time::Duration;

use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::wait;

use quorate_api::etcdserverpb::{PutRequest, RangeRequest};

/// How long a cluster may take to answer, elections included.
const SERVE_BOUND: Duration = Duration::from_secs(30);

/// A put and a linearizable get through every running node.
///
/// # Panics
/// When one of them is not served.
fn assert_serves(cluster: &Cluster) {
    for node in cluster.nodes.iter().filter(|node| node.process.is_some()) {
        wait::until(&format!("{} serves", node.name), SERVE_BOUND, || {
            runtime().block_on(put_and_get(&node.client)).map_err(|status| status.to_string())
        });
    }
}

async fn put_and_get(endpoint: &str) -> Result<(), tonic::Status> {
    let mut client = Client::new(endpoint);
    let put = PutRequest { key: "alive".into(), value: "yes".into(), ..PutRequest::default() };
    client.kv.put(put).await?;
    let get = RangeRequest { key: "alive".into(), ..RangeRequest::default() };
    let found = client.kv.range(get).await?.into_inner();
    assert_eq!(found.kvs.len(), 1, "what was just put is there");
    Ok(())
}
