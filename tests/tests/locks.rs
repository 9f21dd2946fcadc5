//! The services `Lock` and `Election` of real nodes that are killed while locks are held and waited for: one holder
//! at a time, as the fencing token shows, in the order in which they came; and observers miss no leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_api::etcdserverpb::request_op::Request;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};
use quorate_api::mvccpb::{Event, KeyValue, event::EventType};
use quorate_api::v3electionpb::election_client::ElectionClient;
use quorate_api::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use quorate_api::v3lockpb::lock_client::LockClient;
use quorate_api::v3lockpb::{LockRequest, UnlockRequest};
use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::verify::say;
use quorate_tests::wait;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// For broken programs: far above what a slow machine needs.
const BOUND: Duration = Duration::from_secs(120);

/// Between two tries of what nobody has answered.
const PAUSE: Duration = Duration::from_millis(50);

/// A time to live, in seconds, for leases that shall not end by themselves here.
const LONG_S: i64 = 600;

/// A time to live for those that shall, once they are not kept alive any more.
const SHORT_S: i64 = 5;

/// How far the clients are, for the thread that does harm meanwhile, and whether that is done.
#[derive(Default)]
struct Progress {
    steps: AtomicUsize,
    harmed: AtomicBool,
}

impl Progress {
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::AcqRel);
    }

    fn steps(&self) -> usize {
        self.steps.load(Ordering::Acquire)
    }

    fn reached(&self, steps: usize) {
        wait::until(&format!("{steps} steps"), BOUND, || match self.steps() {
            now if now >= steps => Ok(()),
            now => Err(format!("{now} so far")),
        });
    }

    /// Whether a client that has taken its turns takes another one: so that all harm is done to clients at work.
    fn goes_on(&self, turn: usize, turns: usize) -> bool {
        turn < turns || !self.harmed.load(Ordering::Acquire)
    }
}

/// Runs clients on a thread of their own while `harm` happens to the cluster.
fn beside<T: Send>(
    cluster: &mut Cluster,
    clients: impl AsyncFnOnce(Vec<String>, Arc<Progress>) -> T + Send,
    harm: impl FnOnce(&mut Cluster, &Progress),
) -> T {
    let (endpoints, progress) = (cluster.endpoints(), Arc::new(Progress::default()));
    let told = Arc::clone(&progress);
    std::thread::scope(|threads| {
        let clients = threads.spawn(move || {
            let bounded = async { tokio::time::timeout(BOUND, clients(endpoints, told)).await };
            LocalSet::new().block_on(&runtime(), bounded).expect("the clients come to an end")
        });
        harm(cluster, &progress);
        progress.harmed.store(true, Ordering::Release);
        clients.join().expect("the clients got what they were promised")
    })
}

/// Asks one node after the other until one answers, or refuses for good.
async fn anywhere<T>(
    endpoints: &[String],
    mut ask: impl AsyncFnMut(Client) -> Result<T, Status>,
) -> Result<T, Status> {
    for endpoint in endpoints.iter().cycle() {
        match ask(Client::new(endpoint)).await {
            Err(status) if passes(&status) => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
    unreachable!("there are endpoints")
}

/// A node that is gone, or nobody leads.
fn passes(status: &Status) -> bool {
    let codes = [Code::Unavailable, Code::Cancelled, Code::DeadlineExceeded];
    // The library's word for a connection that broke in the middle of an answer.
    let broken = ["transport error", "h2 protocol error"];
    let is_broken = [Code::Unknown, Code::Internal].contains(&status.code())
        && broken.iter().any(|words| status.message().contains(words));
    codes.contains(&status.code()) || is_broken
}

async fn grant(endpoints: &[String], ttl: i64) -> i64 {
    // One whose answer is lost ends by itself, and nothing hangs on it.
    let granted = anywhere(endpoints, async |mut client| {
        client.lease.lease_grant(LeaseGrantRequest { id: 0, ttl }).await
    });
    granted.await.expect("a lease").into_inner().id
}

async fn revoke(endpoints: &[String], id: i64) {
    let revoked = anywhere(endpoints, async |mut client| {
        client.lease.lease_revoke(LeaseRevokeRequest { id }).await
    });
    match revoked.await {
        Ok(_) => {}
        // It was, and the answer was lost.
        Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
    }
}

/// Keeps a lease alive until it is told to end.
fn kept_alive(endpoints: Vec<String>, id: i64) -> JoinHandle<()> {
    spawn_local(async move {
        loop {
            let kept = anywhere(&endpoints, async |mut client| {
                let once = futures::stream::iter([LeaseKeepAliveRequest { id }]);
                client.lease.lease_keep_alive(once).await?.into_inner().message().await
            });
            let ttl = kept.await.expect("an answer").expect("one answer").ttl;
            assert!(ttl > 0, "it was not kept alive in time");
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// The key as it is now.
async fn key(endpoints: &[String], key: &Bytes) -> Option<KeyValue> {
    let range = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    let found = anywhere(endpoints, async |mut client| client.kv.range(range.clone()).await);
    found.await.expect("an answer").into_inner().kvs.pop()
}

/// A connection for calls that wait for their turn, however long.
fn patient(endpoint: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
    endpoint.connect_lazy()
}

/// Waits for a lock at one node.
fn locking(endpoint: &str, name: &'static str, lease: i64) -> JoinHandle<Result<Bytes, Status>> {
    let mut client = LockClient::new(patient(endpoint));
    tokio::spawn(async move {
        let locked = client.lock(LockRequest { name: name.into(), lease }).await;
        locked.map(|locked| locked.into_inner().key)
    })
}

async fn ended<T>(call: JoinHandle<T>) -> T {
    call.await.expect("it does not panic")
}

/// Waits until there are so many keys in a queue.
async fn queued(endpoints: &[String], prefix: &'static str, count: usize) {
    let range_end = Bytes::from(prefix.replace('/', "0"));
    let range = RangeRequest { key: prefix.into(), range_end, ..RangeRequest::default() };
    loop {
        let found = anywhere(endpoints, async |mut client| client.kv.range(range.clone()).await);
        if found.await.expect("an answer").into_inner().kvs.len() == count {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A lock that is held, and what fences its holder off.
struct Held {
    key: Bytes,
    token: i64,
}

impl Held {
    /// What holds the lock with this key; `None` if it is lost already.
    async fn of(endpoints: &[String], own: Bytes) -> Option<Self> {
        let token = key(endpoints, &own).await?.create_revision;
        Some(Self { key: own, token })
    }

    /// Writes under the lock, if it is still held: the revision of the write.
    async fn write(&self, endpoints: &[String]) -> Option<i64> {
        let compare = Compare {
            key: self.key.clone(),
            target: CompareTarget::Create as i32,
            result: CompareResult::Equal as i32,
            target_union: Some(TargetUnion::CreateRevision(self.token)),
            ..Compare::default()
        };
        let value = self.token.to_string().into();
        let put = PutRequest { key: "guarded".into(), value, ..PutRequest::default() };
        let put = RequestOp { request: Some(Request::RequestPut(put)) };
        let txn = TxnRequest { compare: vec![compare], success: vec![put], failure: Vec::new() };
        let done = anywhere(endpoints, async |mut client| client.kv.txn(txn.clone()).await);
        let done = done.await.expect("an answer").into_inner();
        done.succeeded.then(|| done.header.expect("a header").revision)
    }
}

/// Takes the lock several times, and until the harm is done; gives the revision and the token of each write under it.
async fn worker(
    number: usize,
    turns: usize,
    endpoints: Vec<String>,
    progress: Arc<Progress>,
) -> Vec<(i64, i64)> {
    let mut writes = Vec::new();
    for turn in (0..).take_while(|turn| progress.goes_on(*turn, turns)) {
        let lease = grant(&endpoints, LONG_S).await;
        // Each begins at a node of its own; a call that breaks is made again at the next one, with the same lease.
        let mut at = number + turn;
        let own = loop {
            match ended(locking(&endpoints[at % 3], "n", lease)).await {
                Ok(own) => break own,
                Err(status) => assert!(passes(&status), "{status:?}"),
            }
            at += 1;
            tokio::time::sleep(PAUSE).await;
        };
        let held = Held::of(&endpoints, own).await.expect("its lease lives");
        progress.step();
        for _ in 0..3 {
            let revision = held.write(&endpoints).await.expect("its lease lives");
            writes.push((revision, held.token));
        }
        if turn % 2 == 0 {
            let unlock = UnlockRequest { key: held.key.clone() };
            let unlocked = anywhere(&endpoints, async |client| {
                client.lock.clone().unlock(unlock.clone()).await
            });
            unlocked.await.expect("an answer");
        }
        revoke(&endpoints, lease).await;
        assert_eq!(held.write(&endpoints).await, None, "a stale holder was let in");
    }
    writes
}

#[test]
fn locks_have_one_holder_at_a_time_while_nodes_are_killed() {
    const WORKERS: usize = 6;
    const TURNS: usize = 6;
    let test = "locks have one holder at a time while nodes are killed";
    let Some(mut cluster) = Cluster::quorate(test) else { return };
    let clients = async |endpoints: Vec<String>, progress: Arc<Progress>| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| worker(number, TURNS, endpoints.clone(), Arc::clone(&progress)))
            .map(spawn_local)
            .collect();
        let mut writes = Vec::new();
        for worker in workers {
            writes.extend(ended(worker).await);
        }
        (writes, progress.steps())
    };
    let (mut writes, holders) = beside(&mut cluster, clients, |cluster, progress| {
        for (kill, after) in [4, 12, 20].into_iter().enumerate() {
            progress.reached(after);
            // The leader, and then another one: nobody waits there but the clients of that node.
            let number = (cluster.leader() + kill) % 3;
            cluster.kill(number);
            progress.reached(after + 3);
            cluster.start(number);
            cluster.wait_ready(number);
        }
    });
    writes.sort_unstable();
    let mut tokens: Vec<i64> = writes.iter().map(|(_, token)| *token).collect();
    assert!(tokens.is_sorted(), "two held it at a time: {writes:?}");
    tokens.dedup();
    assert!(holders >= WORKERS * TURNS);
    assert_eq!(tokens.len(), holders, "each holder has a token of its own");
    say(&format!("{} holders of one lock, 3 nodes killed meanwhile", tokens.len()));
}

#[test]
fn a_holder_whose_node_is_killed_is_followed_when_its_lease_ends_and_is_fenced_off() {
    let Some(mut cluster) = Cluster::quorate("a holder whose node is killed is followed") else {
        return;
    };
    let leader = cluster.leader();
    let (its, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let clients = async |endpoints: Vec<String>, progress: Arc<Progress>| {
        let mut leases = Vec::new();
        for ttl in [SHORT_S, SHORT_S, LONG_S] {
            leases.push(grant(&endpoints, ttl).await);
        }
        let kept = [leases[0], leases[1]].map(|lease| kept_alive(endpoints.clone(), lease));
        // The holder and the first who waits hang on a node that is killed, and are not heard of again.
        let own = ended(locking(&endpoints[its], "n", leases[0])).await.expect("it is free");
        let first = Held::of(&endpoints, own).await.expect("its lease lives");
        assert!(first.write(&endpoints).await.is_some());
        let second = locking(&endpoints[its], "n", leases[1]);
        queued(&endpoints, "n/", 2).await;
        let third = locking(&endpoints[other], "n", leases[2]);
        queued(&endpoints, "n/", 3).await;
        kept.iter().for_each(JoinHandle::abort);
        progress.step();
        assert!(passes(&ended(second).await.expect_err("its node is gone")));
        let own = ended(third).await.expect("its turn, when both leases have ended");
        assert!(key(&endpoints, &first.key).await.is_none(), "two have it");
        let third = Held::of(&endpoints, own).await.expect("its lease lives");
        assert!(third.token > first.token);
        assert_eq!(first.write(&endpoints).await, None, "a stale holder was let in");
        assert!(third.write(&endpoints).await.is_some());
        queued(&endpoints, "n/", 1).await;
        // The one in between is too late, and holds nobody up.
        let late = ended(locking(&endpoints[other], "n", leases[1])).await;
        let late = late.expect_err("its lease has ended");
        assert_eq!(late.message(), "etcdserver: requested lease not found");
    };
    beside(&mut cluster, clients, |cluster, progress| {
        progress.reached(1);
        cluster.kill(its);
    });
}

#[test]
fn a_waiter_outlasts_its_leader_but_not_its_lease() {
    let Some(mut cluster) = Cluster::quorate("a waiter outlasts its leader") else { return };
    let leader = cluster.leader();
    let (its, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let clients = async |endpoints: Vec<String>, progress: Arc<Progress>| {
        let mut leases = Vec::new();
        for ttl in [LONG_S, SHORT_S, LONG_S] {
            leases.push(grant(&endpoints, ttl).await);
        }
        let kept = kept_alive(endpoints.clone(), leases[1]);
        let own = ended(locking(&endpoints[its], "n", leases[0])).await.expect("it is free");
        let first = Held::of(&endpoints, own).await.expect("its lease lives");
        let second = locking(&endpoints[its], "n", leases[1]);
        queued(&endpoints, "n/", 2).await;
        let third = locking(&endpoints[other], "n", leases[2]);
        queued(&endpoints, "n/", 3).await;
        kept.abort();
        progress.step();
        let refused = ended(second).await.expect_err("nobody keeps its lease alive");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::Unknown, "mutex: session is expired")
        );
        queued(&endpoints, "n/", 2).await;
        assert!(first.write(&endpoints).await.is_some(), "who holds it is not disturbed");
        assert!(!third.is_finished(), "two have it");
        revoke(&endpoints, leases[0]).await;
        let own = ended(third).await.expect("its turn");
        let third = Held::of(&endpoints, own).await.expect("its lease lives");
        assert!(third.token > first.token);
        assert_eq!(first.write(&endpoints).await, None, "a stale holder was let in");
    };
    beside(&mut cluster, clients, |cluster, progress| {
        progress.reached(1);
        cluster.kill(leader);
    });
}

/// Leads several times, each time with a value of its own, and proclaims another one.
async fn candidate(number: usize, turns: usize, endpoints: Vec<String>, progress: Arc<Progress>) {
    for turn in 0..turns {
        let lease = grant(&endpoints, LONG_S).await;
        let mut at = number + turn;
        let leader: LeaderKey = loop {
            let mut client = ElectionClient::new(patient(&endpoints[at % 3]));
            let value = format!("{number} leads, turn {turn}").into();
            let request = CampaignRequest { name: "e".into(), lease, value };
            match client.campaign(request).await {
                Ok(led) => break led.into_inner().leader.expect("its key"),
                Err(status) => assert!(passes(&status), "{status:?}"),
            }
            at += 1;
            tokio::time::sleep(PAUSE).await;
        };
        progress.step();
        let value = Bytes::from(format!("{number} speaks, turn {turn}"));
        let proclaim = ProclaimRequest { leader: Some(leader.clone()), value };
        let spoken = anywhere(&endpoints, async |client| {
            client.election.clone().proclaim(proclaim.clone()).await
        });
        spoken.await.expect("it leads");
        if turn % 2 == 0 {
            let resign = ResignRequest { leader: Some(leader) };
            let resigned = anywhere(&endpoints, async |client| {
                client.election.clone().resign(resign.clone()).await
            });
            resigned.await.expect("an answer");
        }
        revoke(&endpoints, lease).await;
    }
}

/// Whom an observer was told of, up to one who says that it is the last, or up to an error.
async fn observed(mut told: Streaming<LeaderResponse>) -> (Vec<(Bytes, i64)>, Result<(), Status>) {
    let mut all = Vec::new();
    loop {
        let kv = match told.message().await {
            Ok(leader) => leader.expect("no end").kv.expect("a leader"),
            Err(status) => return (all, Err(status)),
        };
        let is_last = kv.value == "last";
        all.push((kv.value, kv.mod_revision));
        if is_last {
            return (all, Ok(()));
        }
    }
}

/// All that has happened to the keys under `e/`, up to a put of `last`.
async fn events(endpoint: &str) -> Vec<Event> {
    let create = WatchCreateRequest {
        key: "e/".into(),
        range_end: "e0".into(),
        start_revision: 1,
        ..WatchCreateRequest::default()
    };
    let union = Some(RequestUnion::CreateRequest(create));
    let asks = futures::stream::iter([WatchRequest { request_union: union }]);
    let asks = futures::StreamExt::chain(asks, futures::stream::pending());
    let watched = Client::new(endpoint).watch.watch(asks).await.expect("a stream");
    let (mut told, mut all) = (watched.into_inner(), Vec::new());
    let is_last = |event: &Event| event.kv.as_ref().is_some_and(|kv| kv.value == "last");
    while !all.last().is_some_and(is_last) {
        all.extend(told.message().await.expect("no error").expect("no end").events);
    }
    all
}

/// Who led when, and said what, by what happened to the keys: the oldest one leads.
fn leaders(events: &[Event]) -> Vec<(Bytes, i64)> {
    let (mut keys, mut before, mut all) = (BTreeMap::new(), None, Vec::new());
    for event in events {
        let kv = event.kv.as_ref().expect("a pair");
        match event.r#type == EventType::Put as i32 {
            true => keys.insert(kv.key.clone(), kv.clone()),
            false => keys.remove(&kv.key),
        };
        let leader = keys.values().min_by_key(|kv| kv.create_revision);
        let now = leader.map(|leader| (leader.value.clone(), leader.mod_revision));
        if now != before {
            all.extend(now.clone());
        }
        before = now;
    }
    all
}

#[test]
fn observers_see_every_leader_whatever_node_is_killed() {
    const CANDIDATES: usize = 4;
    const TURNS: usize = 5;
    let Some(mut cluster) = Cluster::quorate("observers see every leader") else { return };
    let leader = cluster.leader();
    let clients = async |endpoints: Vec<String>, progress: Arc<Progress>| {
        // They begin with who leads: from then on they are to miss nobody.
        let begin = grant(&endpoints, LONG_S).await;
        let request = CampaignRequest { name: "e".into(), lease: begin, value: "first".into() };
        let mut client = ElectionClient::new(patient(&endpoints[0]));
        client.campaign(request).await.expect("nobody else is there");
        let mut observers = Vec::new();
        for endpoint in &endpoints {
            let mut client = ElectionClient::new(patient(endpoint));
            let told = client.observe(LeaderRequest { name: "e".into() }).await.expect("a stream");
            let mut told = told.into_inner();
            let first = told.message().await.expect("no error").expect("no end");
            assert_eq!(first.kv.expect("a leader").value, "first");
            observers.push(tokio::spawn(observed(told)));
        }
        let candidates: Vec<_> = (0..CANDIDATES)
            .map(|number| candidate(number, TURNS, endpoints.clone(), Arc::clone(&progress)))
            .map(spawn_local)
            .collect();
        revoke(&endpoints, begin).await;
        for candidate in candidates {
            ended(candidate).await;
        }
        let lease = grant(&endpoints, LONG_S).await;
        let request = CampaignRequest { name: "e".into(), lease, value: "last".into() };
        let last = anywhere(&endpoints, async |client| {
            client.election.clone().campaign(request.clone()).await
        });
        last.await.expect("nobody else is there");
        let mut seen = Vec::new();
        for observer in observers {
            seen.push(ended(observer).await);
        }
        (seen, events(&endpoints[(leader + 1) % 3]).await)
    };
    let (seen, events) = beside(&mut cluster, clients, |cluster, progress| {
        progress.reached(5);
        cluster.kill(leader);
        progress.reached(10);
        cluster.start(leader);
        cluster.wait_ready(leader);
    });
    let expected = leaders(&events);
    assert!(expected.len() > 2 * CANDIDATES * TURNS, "each has led and spoken: {expected:?}");
    for (number, (seen, end)) in seen.into_iter().enumerate() {
        let until = if end.is_ok() { expected.len() - 1 } else { seen.len() };
        assert_eq!(seen, expected[1..=until], "as seen from node {number}");
        if let Err(status) = end {
            assert!(number == leader && passes(&status), "{number}: {status:?}");
        }
    }
    say(&format!("{} leaders and values, all of them seen", expected.len()));
}
