//! A watch is fed by the node's own replica while it has one, through reloads, and by others when it has none.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::stream::{BoxStream, StreamExt};
use quorate::wiring::EngineBackend;
use quorate_gateway::{Backend, BackendError, Happened};
use quorate_types::kv::{Compact, command};
use tokio::time::timeout;

use super::cluster::{Cluster, GROUP, PATIENCE, command, put};

/// What a gateway hears of: it asks again where a feed ends.
struct Follower {
    backend: EngineBackend,
    feed: BoxStream<'static, Result<Happened, BackendError>>,
    through: i64,
    /// Revision and key of each event.
    /// No batch has come since it began to follow.
    is_first: bool,
    told: Vec<(i64, String)>,
}

impl Follower {
    fn new(cluster: &Cluster, node: usize) -> Self {
        let engine = Arc::clone(&cluster.nodes[node]);
        let (backend, _) = EngineBackend::new(engine, None, Arc::clone(&cluster.auth[node]));
        let feed = backend.follow(0);
        Self { backend, feed, through: 0, is_first: true, told: Vec::new() }
    }

    /// Until it has heard of a revision, from wherever.
    async fn until(&mut self, revision: i64) {
        let told = async {
            while self.through < revision {
                match self.feed.next().await {
                    Some(Ok(Happened::Batch(batch))) => {
                        // The first one may begin before where it was asked for; the others must not.
                        let from = if self.is_first { self.through } else { 0 };
                        self.is_first = false;
                        let events = batch.events.0.iter().filter(|one| one.revision() > from);
                        let event = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
                        self.told.extend(events.map(|one| (one.revision(), event(&one.kv.key))));
                        self.through = batch.through;
                    }
                    Some(Ok(Happened::Compacted)) => panic!("nothing was compacted"),
                    Some(Err(_)) | None => {
                        self.feed = self.backend.follow(self.through);
                        self.is_first = true;
                    }
                }
            }
        };
        timeout(PATIENCE, told).await.expect("it hears of everything");
    }
}

/// Puts the keys `keys` at a node; the revision of the last.
async fn put_all(cluster: &Cluster, node: usize, keys: std::ops::Range<u32>) -> i64 {
    let mut revision = 0;
    for key in keys {
        revision = cluster.propose_at(node, put(&format!("{key}"))).await.revision;
    }
    revision
}

#[tokio::test]
async fn a_watch_misses_nothing_when_its_replica_is_loaded_again_nor_when_there_is_none_any_more() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::open(3, dir.path()).await;
    let whole = cluster.leader().await;
    let astray = (whole + 1) % 3;
    let mut follower = Follower::new(&cluster, astray);
    let panics = &cluster.trouble[astray].panics;

    follower.until(put_all(&cluster, whole, 0..20).await).await;
    panics.store(1, Ordering::Relaxed);
    follower.until(put_all(&cluster, whole, 20..40).await).await;
    assert_eq!(panics.load(Ordering::Relaxed), 0, "its machine was lost once");
    assert!(cluster.nodes[astray].leadership(GROUP).is_ok(), "and is back");

    // The third time it is not loaded again.
    let mut leadership = cluster.nodes[astray].leadership(GROUP).expect("it lives here");
    panics.store(2, Ordering::Relaxed);
    let through = put_all(&cluster, whole, 40..60).await;
    let gone = timeout(PATIENCE, leadership.wait_for(|_| false)).await.expect("it leaves");
    assert!(gone.is_err());
    assert!(cluster.nodes[astray].leadership(GROUP).is_err(), "there is no replica here");
    follower.until(through).await;
    let through = put_all(&cluster, astray, 60..80).await;
    follower.until(through).await;

    let keys: Vec<_> = follower.told.iter().map(|(_, key)| key.clone()).collect();
    let all: Vec<_> = (0..80).map(|key| key.to_string()).collect();
    assert_eq!(keys, all, "each once, and in order");
    assert!(follower.told.is_sorted_by_key(|(revision, _)| *revision));

    // Whoever comes late, and asks for what is compacted, is told so by the others too.
    let compact = Compact { revision: through - 10 };
    cluster.propose_at(whole, command(command::Body::Compact(compact))).await;
    for node in [whole, (whole + 2) % 3] {
        cluster.catch_up(node).await;
    }
    let mut late = follower.backend.follow(through - 20);
    let heard = timeout(PATIENCE, late.next()).await.expect("it is told");
    assert!(matches!(heard, Some(Ok(Happened::Compacted))), "{heard:?}");
    drop((late, follower));
    cluster.shut_down().await;
}
