//! A watch is fed by the node's own replica while it has one, through reloads, and by others when it has none.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{BoxStream, StreamExt};
use quorate::wiring::EngineBackend;
use quorate_gateway::{Backend, BackendError, Consistency, Happened};
use quorate_node::Shape;
use quorate_types::kv::{
    self, Compact, DeleteRange, EventKind, Events, EventsOutcome, Put, WatchEvents, command,
    outcome, query,
};
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

const ASKED: &str = "quorate_node_follows_asked_total";
const ANSWERED: &str = "quorate_node_follows_answered_total";

/// Makes a node lose its replica for the rest of its life: the machine panics whenever it is given commands.
async fn lose_replica(cluster: &Cluster, node: usize) {
    let mut leadership = cluster.nodes[node].leadership(GROUP).expect("it lives here");
    cluster.trouble[node].panics.store(3, Ordering::Relaxed);
    let leaves = async {
        let other = (node + 1) % cluster.nodes.len();
        while !timeout(Duration::from_millis(20), leadership.wait_for(|_| false))
            .await
            .is_ok_and(|waited| waited.is_err())
        {
            cluster.propose_at(other, put("lost")).await;
        }
    };
    timeout(PATIENCE, leaves).await.expect("it leaves");
    assert!(cluster.nodes[node].leadership(GROUP).is_err(), "there is no replica here");
}

/// Puts at a node until another one, which follows through others, has answers of `member`.
async fn until_answered_by(
    cluster: &Cluster,
    writer: usize,
    member: usize,
    follower: &mut Follower,
) {
    let before = cluster.counted(member, ANSWERED);
    let answered = async {
        while cluster.counted(member, ANSWERED) < before + 5 {
            follower.until(put_all(cluster, writer, 0..1).await).await;
        }
    };
    timeout(PATIENCE, answered).await.expect("it answers");
}

/// Puts the keys `keys` at a node; the revision of the last.
async fn put_all(cluster: &Cluster, node: usize, keys: Range<u32>) -> i64 {
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
    assert_eq!(cluster.counted(astray, ASKED), 0, "it has a replica of its own");
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
    assert!(cluster.counted(astray, ASKED) > 0, "where else would it know from?");
    for node in [whole, (whole + 2) % 3] {
        assert_eq!(cluster.counted(node, ASKED), 0, "it has a replica of its own");
    }

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

#[tokio::test]
async fn a_watch_without_a_replica_is_served_by_the_nearest_that_has_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::open(3, dir.path()).await;
    let leader = cluster.leader().await;
    let astray = (leader + 1) % 3;
    lose_replica(&cluster, astray).await;
    // The far one is the one that would be asked first otherwise.
    let mut others = [leader, (leader + 2) % 3];
    others.sort_by_key(|node| cluster.nodes[*node].node());
    let [far, near] = others;
    let delay = Duration::from_millis(60);
    cluster.shape(astray, far, Shape { delay, ..Shape::default() });
    let mut follower = Follower::new(&cluster, astray);
    until_answered_by(&cluster, leader, near, &mut follower).await;
    drop(follower);
    cluster.shut_down().await;
}

#[tokio::test]
async fn a_watch_without_a_replica_goes_past_a_member_that_is_cut_off_and_misses_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::open(5, dir.path()).await;
    let leader = cluster.leader().await;
    let [astray, near, one, other] = [1, 2, 3, 4].map(|after| (leader + after) % 5);
    lose_replica(&cluster, astray).await;
    for far in [leader, one, other] {
        let delay = Duration::from_millis(60);
        cluster.shape(astray, far, Shape { delay, ..Shape::default() });
    }
    let mut follower = Follower::new(&cluster, astray);
    until_answered_by(&cluster, leader, near, &mut follower).await;
    for member in [leader, one, other] {
        cluster.shape(near, member, Shape { cut: true, ..Shape::default() });
    }
    let cut_off = async {
        let mut leadership = cluster.nodes[near].leadership(GROUP).expect("it lives here");
        while leadership.borrow_and_update().leader.is_some() {
            put_all(&cluster, leader, 0..1).await;
        }
    };
    timeout(PATIENCE, cut_off).await.expect("it forgets its leader");
    follower.until(put_all(&cluster, leader, 100..110).await).await;
    let keys: Vec<_> = follower.told.iter().rev().take(10).map(|(_, key)| key.clone()).collect();
    let last: Vec<_> = (100..110).rev().map(|key| key.to_string()).collect();
    assert_eq!(keys, last);
    let revisions: Vec<_> = follower.told.iter().map(|(revision, _)| *revision).collect();
    assert!(revisions.windows(2).all(|two| two[1] == two[0] + 1), "{revisions:?}");
    cluster.link.heal();
    drop(follower);
    cluster.shut_down().await;
}

#[tokio::test]
async fn a_revision_that_fits_no_frame_is_told_whole_where_there_is_no_replica() {
    const KEYS: usize = 400;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::open(3, dir.path()).await;
    let leader = cluster.leader().await;
    let astray = (leader + 1) % 3;
    lose_replica(&cluster, astray).await;
    // Deletes are told with their keys: these are 20 MB.
    let key = |number: usize| Bytes::from(format!("{number:050000}"));
    let put = |number: usize| {
        let put = Put { key: key(number), value: "v".into(), ..Put::default() };
        cluster.propose_at(leader, command(command::Body::Put(put)))
    };
    for first in (0..KEYS).step_by(50) {
        join_all((first..first + 50).map(put)).await;
    }
    let before = put_all(&cluster, leader, 7..8).await;
    let mut follower = Follower::new(&cluster, astray);
    follower.feed = follower.backend.follow(before);
    let delete = DeleteRange { key: "0".into(), range_end: "1".into(), ..DeleteRange::default() };
    let at = cluster.propose_at(leader, command(command::Body::DeleteRange(delete))).await.revision;
    let expect = |events: &WatchEvents, through: i64| {
        let deletes = events.0.iter().filter(|event| event.kind == EventKind::Delete as i32);
        assert!(events.0.iter().all(|event| event.revision() == at), "nothing else happened");
        assert!(deletes.map(|event| &event.kv.key).eq(&(0..KEYS).map(key).collect::<Vec<_>>()));
        assert_eq!(through, at);
    };
    let told = timeout(PATIENCE, follower.feed.next()).await.expect("it is told");
    match told {
        Some(Ok(Happened::Batch(batch))) => expect(&batch.events, batch.through),
        other => panic!("{:?}", other.map(|other| other.map(drop))),
    }
    // And whoever comes late, with a bound and without; and with what was there before.
    for (bytes_max, through) in [(1 << 20, 0), (0, at)] {
        let range_end = Bytes::from_static(&[0]);
        let asked = Events {
            after: before,
            range_end,
            bytes_max,
            through,
            prev_kv: true,
            ..Events::default()
        };
        let query = kv::Query { body: Some(query::Body::Events(asked)), caller: None };
        let read =
            follower.backend.read(query, Consistency::Serializable).await.expect("an answer");
        let Some(outcome::Body::Events(EventsOutcome { events, through, .. })) = read.outcome.body
        else {
            panic!("a question for events has another answer");
        };
        assert!(
            events.iter().all(|event| event.prev_kv.as_ref().is_some_and(|kv| kv.value == "v"))
        );
        expect(&WatchEvents(events), through);
    }
    drop(follower);
    cluster.shut_down().await;
}
