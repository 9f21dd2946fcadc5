//! Watches under faults: each goes on, here or elsewhere, and is told everything once and in order.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    MoveLeaderRequest, PutRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use quorate_api::mvccpb::Event;
use quorate_tests::client::{self, Client, runtime, runtime_beside};
use quorate_tests::cluster::Cluster;
use quorate_tests::verify::say;
use quorate_tests::wait;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// How long anything may take here.
const BOUND: Duration = Duration::from_secs(60);

/// Entries that logs keep in the tests of snapshots.
const KEPT: &str = "200";

/// Writes while a node is away in those: more than a leader waits for anybody.
const WRITES: usize = 3_000;

/// Writes under way at a time.
const AT_ONCE: usize = 50;

/// Kills of who leads, in the test of a stream that lasts.
const KILLS: usize = 3;

/// Writers in that test, and acknowledged puts before and after each kill.
const WRITERS: usize = 8;
const WRITES_BETWEEN: usize = 300;

/// An event, or the put that it is of: revision, key, value.
type Put = (i64, Bytes, Bytes);

/// A watch of all keys of a test, `k/`.
struct Watcher {
    _requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Watcher {
    /// From revision `from` on.
    async fn open(endpoint: &str, from: i64) -> Result<Self, Status> {
        let (requests, sent) = mpsc::channel(1);
        let create = WatchCreateRequest {
            key: "k/".into(),
            range_end: "k0".into(),
            start_revision: from,
            ..WatchCreateRequest::default()
        };
        let request_union = Some(RequestUnion::CreateRequest(create));
        requests.send(WatchRequest { request_union }).await.expect("the receiver is here");
        let opened = Client::new(endpoint).watch.watch(ReceiverStream::new(sent)).await?;
        Ok(Self { _requests: requests, responses: opened.into_inner() })
    }

    /// The events of the next response; none if that is about something else.
    async fn events(&mut self) -> Result<Vec<Put>, Status> {
        let response = timeout(BOUND, self.responses.message()).await.expect("in time")?;
        let response = response.expect("a stream ends with a reason");
        assert!(!response.canceled, "{response:?}");
        let put = |event: Event| {
            let pair = event.kv.expect("every event has a pair");
            (pair.mod_revision, pair.key, pair.value)
        };
        Ok(response.events.into_iter().map(put).collect())
    }

    /// Adds what is told to `seen`, until there is something of revision `until`.
    async fn follow(&mut self, seen: &mut Vec<Put>, until: i64) -> Result<(), Status> {
        while seen.last().is_none_or(|last| last.0 < until) {
            seen.extend(self.events().await?);
        }
        Ok(())
    }
}

/// Follows from what was seen last, however often it has to begin again.
async fn go_on(endpoint: &str, seen: &mut Vec<Put>, until: i64) {
    let followed = async {
        loop {
            let next = seen.last().expect("something was seen").0 + 1;
            if let Ok(mut watcher) = Watcher::open(endpoint, next).await
                && watcher.follow(seen, until).await.is_ok()
            {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(BOUND, followed).await.expect("it goes on");
}

/// Puts numbered values at `endpoint`, some at a time; returns them in the order of their revisions.
async fn write(endpoint: &str, numbers: std::ops::Range<usize>) -> Vec<Put> {
    let client = Client::new(endpoint);
    let numbers: Vec<usize> = numbers.collect();
    let mut written = Vec::new();
    for numbers in numbers.chunks(AT_ONCE) {
        let puts = numbers.iter().map(|number| {
            let mut kv = client.kv.clone();
            let key = Bytes::from(format!("k/{:03}", number % 300));
            let value = Bytes::from(format!("{number} {}", "x".repeat(200)));
            async move {
                let put =
                    PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
                let answer = kv.put(put).await.expect("a put").into_inner();
                (answer.header.expect("every answer has a header").revision, key, value)
            }
        });
        written.extend(futures::future::join_all(puts).await);
    }
    written.sort();
    written
}

fn last(puts: &[Put]) -> i64 {
    puts.last().expect("there are some").0
}

fn assert_same(seen: &[Put], written: &[Put]) {
    let revisions = |puts: &[Put]| puts.iter().map(|put| put.0).collect::<Vec<_>>();
    assert_eq!(revisions(seen), revisions(written), "a gap, or something twice");
    assert!(seen == written, "other keys or values");
}

#[test]
fn watches_at_a_node_that_is_cut_off_end_and_go_on_elsewhere_without_a_gap() {
    let cluster = Cluster::relayed();
    let runtime = runtime();
    for cut_leader in [false, true] {
        let victim = (cluster.leader() + usize::from(!cut_leader)) % 3;
        let (at_victim, other) = (&cluster.nodes[victim].client, (victim + 1) % 3);
        let at_other = &cluster.nodes[other].client;
        let mut written = runtime.block_on(write(at_other, 0..20));
        let (first, mut seen) = (written[0].0, Vec::new());
        let mut watcher = runtime.block_on(Watcher::open(at_victim, first)).expect("a stream");
        runtime.block_on(watcher.follow(&mut seen, last(&written))).expect("the node is there");
        let dropped = cluster.relays().dropped();
        cluster.relays().cut(victim);
        // The others go on, with another leader if need be.
        cluster.write_through(other);
        runtime.block_on(async {
            written.extend(write(at_other, 20..40).await);
            let status = loop {
                match watcher.events().await {
                    Ok(more) => seen.extend(more),
                    Err(status) => break status,
                }
            };
            let said = (status.code(), status.message());
            assert_eq!(said, (Code::Unavailable, "etcdserver: unhealthy cluster"));
            assert!(cluster.relays().dropped() > dropped, "it was cut off");
            // Whoever comes there now is not kept either.
            let mut late = Watcher::open(at_victim, first).await.expect("a stream");
            let status = late.events().await.expect_err("it ends");
            assert_eq!(status.code(), Code::Unavailable);

            go_on(at_other, &mut seen, last(&written)).await;
            assert_same(&seen, &written);
            cluster.relays().mend();
            seen.truncate(1);
            go_on(at_victim, &mut seen, last(&written)).await;
            assert_same(&seen, &written);
        });
    }
}

/// A cluster whose nodes need snapshots soon; the number of a node that does not lead, and where the leader is.
fn forgetful(test: &str) -> Option<(Cluster, usize, String)> {
    let cluster = Cluster::quorate_with(test, &["--snapshot-count", KEPT])?;
    let leader = cluster.leader();
    let at_leader = cluster.nodes[leader].client.clone();
    Some((cluster, (leader + 1) % 3, at_leader))
}

/// Waits until node `number` has counted so far, since it was started. The peer counts otherwise.
fn await_count(cluster: &Cluster, number: usize, name: &str, at_least: usize) {
    if !cluster.is_quorate() {
        return;
    }
    let what = format!("{name} of {} at {at_least}", cluster.nodes[number].name);
    wait::until(&what, BOUND, || match cluster.metric(number, name) {
        Some(count) if count >= at_least as f64 => Ok(()),
        count => Err(format!("{count:?}")),
    });
}

fn await_truncation(cluster: &Cluster, victim: usize) {
    for number in (0..3).filter(|number| *number != victim) {
        await_count(cluster, number, "quorate_node_entries_truncated_total", WRITES / 2);
    }
}

const INSTALLED: &str = "quorate_node_snapshots_installed_total";

#[test]
fn a_watch_at_a_node_that_was_stopped_goes_on_over_a_snapshot() {
    let Some((cluster, victim, at_leader)) = forgetful("a watch goes on over a snapshot") else {
        return;
    };
    let at_victim = &cluster.nodes[victim].client;
    let runtime = runtime();
    let mut written = runtime.block_on(write(&at_leader, 0..100));
    let first = written[0].0;
    // One that is up to date, and one that has everything before it yet.
    let (mut watcher, mut late) = runtime.block_on(async {
        let watcher = Watcher::open(at_victim, first).await.expect("a stream");
        let late = Watcher::open(at_victim, first).await.expect("a stream");
        (watcher, late)
    });
    let (mut seen, mut seen_late) = (Vec::new(), Vec::new());
    runtime.block_on(watcher.follow(&mut seen, last(&written))).expect("the node is there");
    cluster.freeze(victim);
    // As long as its connections last it may have been sent everything, and would need no snapshot.
    let leader = cluster.nodes.iter().find(|node| node.client == at_leader).expect("it is one");
    let lost = format!("connection lost peer={}", cluster.nodes[victim].name);
    wait::until("the node is missed", BOUND, || {
        let log = leader.process.as_ref().expect("it runs").log();
        if log.contains(&lost) || !cluster.is_quorate() { Ok(()) } else { Err(lost.clone()) }
    });
    written.extend(runtime.block_on(write(&at_leader, 100..WRITES)));
    await_truncation(&cluster, victim);
    cluster.nodes[victim].process.as_ref().expect("it is frozen").thaw();
    runtime.block_on(async {
        watcher.follow(&mut seen, last(&written)).await.expect("the stream lasts");
        late.follow(&mut seen_late, last(&written)).await.expect("the stream lasts");
    });
    assert_same(&seen, &written);
    assert_same(&seen_late, &written);
    await_count(&cluster, victim, INSTALLED, 1);
    // And it goes on from there.
    written.extend(runtime.block_on(write(&at_leader, 0..100)));
    runtime.block_on(watcher.follow(&mut seen, last(&written))).expect("the stream lasts");
    assert_same(&seen, &written);
}

#[test]
fn a_watch_resumes_at_a_node_that_comes_back_by_a_snapshot() {
    let Some((mut cluster, victim, at_leader)) = forgetful("a watch resumes over a snapshot")
    else {
        return;
    };
    let at_victim = cluster.nodes[victim].client.clone();
    let runtime = runtime();
    let mut written = runtime.block_on(write(&at_leader, 0..100));
    let mut seen = Vec::new();
    runtime.block_on(async {
        let mut watcher = Watcher::open(&at_victim, written[0].0).await.expect("a stream");
        watcher.follow(&mut seen, last(&written)).await.expect("the node is there");
    });
    cluster.kill(victim);
    written.extend(runtime.block_on(write(&at_leader, 100..WRITES)));
    await_truncation(&cluster, victim);
    cluster.start(victim);
    // As soon as it lets anybody watch: it may know nothing of all this yet.
    runtime.block_on(go_on(&at_victim, &mut seen, last(&written)));
    assert_same(&seen, &written);
    await_count(&cluster, victim, INSTALLED, 1);
}

/// What the writers of a test have done, and whether they are to end.
#[derive(Default)]
struct Written {
    acknowledged: Mutex<Vec<Put>>,
    unanswered: AtomicUsize,
    done: AtomicBool,
}

impl Written {
    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no writer panics").len()
    }

    /// One put, tried once, of what is not put again: whether it was acknowledged.
    async fn put(&self, client: &mut Client, key: &str, turn: usize) -> bool {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(turn.to_string()));
        let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
        match client.kv.put(put).await {
            Ok(answer) => {
                let header = answer.into_inner().header.expect("every answer has a header");
                let mut acknowledged = self.acknowledged.lock().expect("no writer panics");
                acknowledged.push((header.revision, key, value));
                true
            }
            Err(_) => {
                self.unanswered.fetch_add(1, Ordering::AcqRel);
                sleep(Duration::from_millis(20)).await;
                false
            }
        }
    }

    /// One put after the other, until told to end; through another node whenever one does not answer.
    async fn write(&self, number: usize, endpoints: &[String]) {
        let mut clients: Vec<_> = endpoints.iter().map(|endpoint| Client::new(endpoint)).collect();
        let mut at = number % clients.len();
        let (key, mut turn) = (format!("k/{number}"), 0);
        while !self.done.load(Ordering::Acquire) {
            turn += 1;
            if !self.put(&mut clients[at], &key, turn).await {
                at = (at + 1) % clients.len();
            }
        }
    }
}

/// Follows on one stream while the writers write, up to a last put of all.
async fn follow_all(
    endpoint: String,
    others: Vec<String>,
    from: i64,
    written: Arc<Written>,
) -> Vec<Put> {
    let (mut seen, mut turn) = (Vec::new(), 0);
    let mut watcher = Watcher::open(&endpoint, from).await.expect("a stream");
    let writers = (0..WRITERS).map(|number| written.write(number, &others));
    tokio::select! {
        _ = futures::future::join_all(writers) => {}
        ended = watcher.follow(&mut seen, i64::MAX) => panic!("the stream has ended: {ended:?}"),
    }
    let mut client = Client::new(&others[0]);
    while !written.put(&mut client, "k/last", turn).await {
        turn += 1;
    }
    let last = written.acknowledged.lock().expect("no writer panics").last().expect("the last").0;
    watcher.follow(&mut seen, last).await.expect("the stream lasts");
    seen
}

/// Who leads and may be killed: when it is the node `spared`, that hands over first.
fn victim(cluster: &Cluster, spared: usize) -> usize {
    let leader = cluster.leader();
    if leader != spared {
        return leader;
    }
    let to = &cluster.nodes[(spared + 1) % 3];
    wait::until("a hand-over", BOUND, || {
        let members = client::members(&to.client).map_err(|status| status.to_string())?;
        let to = members.iter().find(|member| member.name == to.name).expect("it is a member");
        runtime().block_on(async {
            let mut asked = Client::new(&cluster.nodes[spared].client).maintenance;
            let moved = asked.move_leader(MoveLeaderRequest { target_id: to.id }).await;
            moved.map(drop).map_err(|status| status.to_string())
        })?;
        match cluster.leader() {
            leader if leader != spared => Ok(leader),
            _ => Err("it leads again".to_owned()),
        }
    })
}

#[test]
fn one_stream_is_told_of_everything_while_one_leader_after_the_other_is_killed() {
    let Some(mut cluster) = Cluster::quorate("a stream outlasts the leaders") else { return };
    let carrier = (cluster.leader() + 1) % 3;
    let others: Vec<_> =
        [1, 2].map(|step| cluster.nodes[(carrier + step) % 3].client.clone()).into();
    let at_carrier = cluster.nodes[carrier].client.clone();
    let from = cluster.revision() + 1;
    let (written, clients) = (Arc::new(Written::default()), runtime_beside());
    let followed = follow_all(at_carrier, others, from, Arc::clone(&written));
    let followed = clients.spawn(followed);
    let await_puts = || {
        let from = written.count();
        wait::until("puts go through", BOUND, || {
            assert!(!followed.is_finished(), "the stream lasts, and the writers write");
            match written.count() {
                now if now >= from + WRITES_BETWEEN => Ok(()),
                now => Err(format!("{now}, from {from}")),
            }
        });
    };
    let mut killed = Vec::new();
    for _ in 0..KILLS {
        await_puts();
        let leader = victim(&cluster, carrier);
        killed.push(cluster.nodes[leader].name.clone());
        cluster.kill(leader);
        await_puts();
        cluster.start(leader);
        cluster.wait_ready(leader);
        cluster.await_read(leader);
    }
    await_puts();
    written.done.store(true, Ordering::Release);
    let seen = clients.block_on(followed).expect("the stream lasted");

    let acknowledged = written.acknowledged.lock().expect("no writer panics");
    // Nobody else writes here, and every put has a revision of its own.
    let revisions: Vec<i64> = seen.iter().map(|put| put.0).collect();
    let all: Vec<i64> = (from..=last(&acknowledged)).collect();
    assert_eq!(revisions, all, "a gap, something twice, or out of order");
    for put in acknowledged.iter() {
        assert_eq!(&seen[usize::try_from(put.0 - from).expect("after the first")], put);
    }
    let puts: BTreeSet<(&Bytes, &Bytes)> = seen.iter().map(|put| (&put.1, &put.2)).collect();
    assert_eq!(puts.len(), seen.len(), "a put happened twice");
    let unanswered = written.unanswered.load(Ordering::Acquire);
    assert!(seen.len() <= acknowledged.len() + unanswered, "more than was put");
    say(&format!(
        "{killed:?} killed: one stream told of {} puts, {} of them acknowledged",
        seen.len(),
        acknowledged.len()
    ));
}
