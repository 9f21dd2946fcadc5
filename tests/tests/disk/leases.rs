//! Leases while who leads, or every node, cannot sync: none ends before its time, those that are kept alive live on,
//! and the others end at last, each with all its keys in one revision.
//!
//! A grant or a keep-alive that was acknowledged promises its time from when it was *asked for*, on the clients'
//! monotonic clock. Whoever knows sooner that the lease is gone, by a watch, a read or a keep-alive, knows of a
//! broken promise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, WatchCreateRequest,
    WatchRequest,
};
use quorate_api::mvccpb::event::EventType;
use quorate_tests::check::{Check, shown};
use quorate_tests::client::{Client, runtime_beside};
use quorate_tests::cluster::Cluster;
use quorate_tests::verify::{await_writes, say};
use quorate_tests::wait;
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::shim::Shim;
use super::syncs::assert_unfit;

/// For broken programs: far above what a slow machine needs.
const BOUND: Duration = Duration::from_secs(60);

/// Between two reads, and two tries of what nobody has answered.
const PAUSE: Duration = Duration::from_millis(50);

/// How long nothing is synced: several elections, and longer than most of the leases live.
const STALL: Duration = Duration::from_secs(8);

/// Times to live of leases that are kept alive, in seconds: one of each through every node. A stall is noticed and
/// another leader found well within them.
const KEPT_S: [i64; 2] = [5, 7];

/// Times to live of leases that nobody keeps alive: their time is over in the stall, and after it.
const LEFT_S: [i64; 5] = [2, 3, 4, 6, 9];

/// The time to live of leases that are kept alive once, too late, through each node: longer than the stall, so that a
/// promise that is wrongly made in it is seen broken after it.
const LATE_S: i64 = 12;

/// So long before that time is over the stall begins: whoever leads then ends them, cannot sync that, and does not
/// know yet that it will lead no more.
const LATE_LEFT: Duration = Duration::from_millis(500);

/// So long after what was promised they are kept alive: by then the leader, which counts from later on, ends them.
const LATE_BY: Duration = Duration::from_millis(300);

/// Keys of each lease.
const KEYS: usize = 3;

/// Keep-alives in a time to live, as etcd's own clients send them.
const PER_TTL: u32 = 3;

/// Acknowledged keep-alives that show that a lease lives on: more than one time to live.
const LIVES_ON: usize = 4;

/// A lease, as clients know it.
struct Lease {
    /// Somebody keeps it alive again and again.
    kept: bool,
    /// It was promised to live so long.
    until: Instant,
    /// Promises so far.
    acknowledged: usize,
    /// When somebody first knew that it was gone.
    gone: Option<Instant>,
    /// At which revision each key went, as each node told it.
    ended: BTreeMap<(usize, Bytes), i64>,
}

/// What clients know of all leases, and what must not be.
#[derive(Default)]
struct Ledger {
    leases: BTreeMap<i64, Lease>,
    broken: Vec<String>,
}

/// One for all clients of a test.
type Shared = Arc<Mutex<Ledger>>;

fn lock(ledger: &Shared) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// A grant that was asked for then was acknowledged.
    fn granted(&mut self, id: i64, ttl_s: i64, asked: Instant, kept: bool) {
        let until = asked + seconds(ttl_s);
        let lease = Lease { kept, until, acknowledged: 1, gone: None, ended: BTreeMap::new() };
        self.leases.insert(id, lease);
    }

    /// A keep-alive that was asked for then was answered. Whether the lease lives.
    fn answered(&mut self, id: i64, ttl_s: i64, asked: Instant) -> bool {
        if ttl_s <= 0 {
            self.gone(id, "a keep-alive");
            return false;
        }
        let lease = self.leases.get_mut(&id).expect("it was granted");
        lease.until = lease.until.max(asked + seconds(ttl_s));
        lease.acknowledged += 1;
        self.judge(id, "and it was kept alive all the same");
        true
    }

    /// Somebody knows now that a lease is gone.
    fn gone(&mut self, id: i64, by: &str) {
        let lease = self.leases.get_mut(&id).expect("it was granted");
        if lease.gone.is_none() {
            lease.gone = Some(Instant::now());
            self.judge(id, by);
        }
    }

    fn judge(&mut self, id: i64, by: &str) {
        let lease = &self.leases[&id];
        let Some(gone) = lease.gone else { return };
        if gone < lease.until {
            let early = lease.until - gone;
            self.broken.push(format!("lease {id} was gone {early:?} before its time: {by}"));
        } else if lease.kept {
            let late = gone - lease.until;
            let text = format!("lease {id} is lost, {late:?} after what was promised: {by}");
            self.broken.push(text);
        }
    }

    /// How many keys of a lease a read has shown: all or none.
    fn read(&mut self, id: i64, found: usize, by: &str) {
        match found {
            KEYS => {}
            0 => self.gone(id, by),
            some => self.broken.push(format!("lease {id}: {some} of {KEYS} keys: {by}")),
        }
    }

    /// The leases that `is_meant`, with what each has of `what`.
    fn of<T>(
        &self,
        is_meant: impl Fn(&Lease) -> bool,
        what: impl Fn(&Lease) -> T,
    ) -> BTreeMap<i64, T> {
        let meant = self.leases.iter().filter(|(_, lease)| is_meant(lease));
        meant.map(|(id, lease)| (*id, what(lease))).collect()
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.unsigned_abs())
}

fn key(lease: i64, number: usize) -> Bytes {
    format!("k/{lease}/{number}").into()
}

/// Whose key it is.
fn lease_of(key: &[u8]) -> i64 {
    let id = std::str::from_utf8(key).ok().and_then(|key| key.split('/').nth(1)?.parse().ok());
    id.expect("a key of this test")
}

/// Grants a lease through a node, and puts its keys.
async fn grant(
    endpoint: &str,
    id: i64,
    ttl: i64,
    kept: bool,
    ledger: &Shared,
) -> Result<(), Status> {
    let Client { mut lease, mut kv, .. } = Client::new(endpoint);
    let asked = Instant::now();
    let granted = lease.lease_grant(LeaseGrantRequest { id, ttl }).await?.into_inner();
    assert_eq!(granted.ttl, ttl);
    for number in 0..KEYS {
        let put = PutRequest { key: key(id, number), lease: id, ..PutRequest::default() };
        kv.put(put).await?;
    }
    // Whoever reads from now on has to find them.
    lock(ledger).granted(id, ttl, asked, kept);
    Ok(())
}

/// Keeps a lease alive, mostly through one node: three times in its time to live, or once when that is over.
async fn keep_alive(ledger: Shared, endpoints: Vec<String>, home: usize, id: i64, ttl: i64) {
    let clients: Vec<_> = endpoints.iter().map(|at| Client::new(at).lease).collect();
    let interval = seconds(ttl) / PER_TTL;
    let (kept, until) = {
        let ledger = lock(&ledger);
        (ledger.leases[&id].kept, ledger.leases[&id].until)
    };
    if !kept {
        sleep_until((until + LATE_BY).into()).await;
    }
    loop {
        let (asked, ttl_s) = ask(&clients, home, id, interval).await;
        if !lock(&ledger).answered(id, ttl_s, asked) {
            return;
        }
        sleep_until((asked + interval).into()).await;
        if !lock(&ledger).leases[&id].kept {
            return;
        }
    }
}

/// One keep-alive: through the node `home`, and through the others when there is no answer in time. When it was
/// asked for, and the time that was answered.
async fn ask(
    clients: &[LeaseClient<Channel>],
    home: usize,
    id: i64,
    time: Duration,
) -> (Instant, i64) {
    for client in clients.iter().cycle().skip(home) {
        let mut client = client.clone();
        let asked = Instant::now();
        let once = futures::stream::iter([LeaseKeepAliveRequest { id }]);
        let answer = async { client.lease_keep_alive(once).await?.into_inner().message().await };
        match timeout(time, answer).await {
            Ok(Ok(Some(answer))) => return (asked, answer.ttl),
            // Nobody leads, or that node does not hear of it.
            Ok(Ok(None) | Err(_)) => sleep(PAUSE).await,
            Err(_) => {}
        }
    }
    unreachable!("there are nodes")
}

/// Reads all keys through a node, again and again.
async fn read(ledger: Shared, number: usize, endpoint: String) {
    let mut kv = Client::new(&endpoint).kv;
    let by = format!("a read through node {number}");
    let range = RangeRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        keys_only: true,
        ..RangeRequest::default()
    };
    loop {
        let granted = lock(&ledger).of(|_| true, |_| ());
        if let Ok(answer) = kv.range(range.clone()).await {
            let mut found: BTreeMap<i64, usize> = BTreeMap::new();
            for pair in answer.into_inner().kvs {
                *found.entry(lease_of(&pair.key)).or_default() += 1;
            }
            for id in granted.into_keys() {
                let found = found.get(&id).copied().unwrap_or_default();
                lock(&ledger).read(id, found, &by);
            }
        }
        sleep(PAUSE).await;
    }
}

/// Watches all keys at a node, from a revision on, however often it has to begin again.
async fn watch(ledger: Shared, number: usize, endpoint: String, mut next: i64) {
    let by = format!("a watch at node {number}");
    loop {
        let create = RequestUnion::CreateRequest(WatchCreateRequest {
            key: "k/".into(),
            range_end: "k0".into(),
            start_revision: next,
            ..WatchCreateRequest::default()
        });
        let (requests, sent) = mpsc::channel(1);
        let request = WatchRequest { request_union: Some(create) };
        requests.send(request).await.expect("the receiver is here");
        if let Ok(told) = Client::new(&endpoint).watch.watch(ReceiverStream::new(sent)).await {
            let mut told = told.into_inner();
            while let Ok(Some(response)) = told.message().await
                && !response.canceled
            {
                for event in response.events {
                    let is_end = event.r#type() == EventType::Delete;
                    let pair = event.kv.expect("every event has a pair");
                    next = pair.mod_revision + 1;
                    if is_end {
                        let (id, mut ledger) = (lease_of(&pair.key), lock(&ledger));
                        ledger.gone(id, &by);
                        let lease = ledger.leases.get_mut(&id).expect("it was granted");
                        lease.ended.insert((number, pair.key), pair.mod_revision);
                    }
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// Waits for something that `probe` finds in the ledger, in which nothing may be broken.
fn await_ledger(what: &str, ledger: &Shared, probe: impl Fn(&Ledger) -> Result<(), String>) {
    wait::until(what, BOUND, || {
        let ledger = lock(ledger);
        assert!(ledger.broken.is_empty(), "{:#?}", ledger.broken);
        probe(&ledger)
    });
}

/// Waits until every node has told of the end of every key of the leases that nobody keeps alive.
fn await_ends(ledger: &Shared, nodes: usize) {
    await_ledger("those that nobody keeps alive end", ledger, |ledger| {
        let ended = ledger.of(|lease| !lease.kept, |lease| lease.ended.len());
        match ended.values().all(|told| *told == nodes * KEYS) {
            true => Ok(()),
            false => Err(format!("{ended:?}")),
        }
    });
    let ledger = lock(ledger);
    for (id, at) in ledger.of(|lease| !lease.kept, |lease| lease.ended.clone()) {
        let revisions: BTreeSet<i64> = at.values().copied().collect();
        assert_eq!(revisions.len(), 1, "the keys of lease {id} went one by one: {at:?}");
    }
}

/// Waits until every lease that is kept alive has been so a few times more.
fn await_kept(ledger: &Shared, times: usize) {
    let promises = |ledger: &Ledger| ledger.of(|lease| lease.kept, |lease| lease.acknowledged);
    let from = promises(&lock(ledger));
    await_ledger("all are kept alive", ledger, |ledger| {
        let now = promises(ledger);
        match now.iter().all(|(id, count)| *count >= from[id] + times) {
            true => Ok(()),
            false => Err(format!("{now:?}, from {from:?}")),
        }
    });
}

/// Leases live and end while the nodes `stalled` do as `rule` says with their syncs. `meanwhile` looks at that, and
/// says whether leases can be kept alive.
fn live_through(
    shim: &mut Shim,
    cluster: &Cluster,
    stalled: &[usize],
    rule: &str,
    meanwhile: impl FnOnce(&Cluster) -> bool,
) {
    let (ledger, clients) = (Shared::default(), runtime_beside());
    let (endpoints, from) = (cluster.endpoints(), cluster.revision() + 1);
    let nodes = endpoints.len();
    let granted = |at: usize, ttl: i64, kind: i64, kept| {
        let id = 100 * kind + 10 * at as i64 + ttl;
        let granted = grant(&endpoints[at % nodes], id, ttl, kept, &ledger);
        clients.block_on(granted).expect("a lease with keys");
        id
    };
    let tended = |at: usize, ttl: i64, kind: i64, kept| {
        let id = granted(at, ttl, kind, kept);
        clients.spawn(keep_alive(Arc::clone(&ledger), endpoints.clone(), at, id, ttl));
    };
    for (number, endpoint) in endpoints.iter().enumerate() {
        clients.spawn(watch(Arc::clone(&ledger), number, endpoint.clone(), from));
        clients.spawn(read(Arc::clone(&ledger), number, endpoint.clone()));
    }
    let begins = Instant::now() + seconds(LATE_S) - LATE_LEFT;
    for at in 0..nodes {
        tended(at, LATE_S, 1, false);
        KEPT_S.into_iter().for_each(|ttl| tended(at, ttl, 2, true));
    }
    // Older than they may become by their grant alone.
    await_kept(&ledger, LIVES_ON);
    // When the stall comes is a part of the fault.
    std::thread::sleep(begins.saturating_duration_since(Instant::now()));
    for (at, ttl) in LEFT_S.into_iter().enumerate() {
        granted(at, ttl, 3, false);
    }

    let began = Instant::now();
    let count = |ledger: &Ledger| ledger.leases.values().map(|lease| lease.acknowledged).sum();
    let before: usize = count(&lock(&ledger));
    for &number in stalled {
        shim.set(&cluster.nodes[number].name, rule);
    }
    for &number in stalled {
        assert_unfit(cluster, number, true);
    }
    if meanwhile(cluster) {
        await_kept(&ledger, 1);
    }
    // How long it lasts, too.
    std::thread::sleep(STALL.saturating_sub(began.elapsed()));
    let kept = count(&lock(&ledger)) - before;
    for &number in stalled {
        shim.set(&cluster.nodes[number].name, "none none 0");
    }
    let lasted = began.elapsed();

    await_kept(&ledger, LIVES_ON);
    await_ends(&ledger, nodes);
    lock(&ledger).leases.values_mut().for_each(|lease| lease.kept = false);
    await_ends(&ledger, nodes);
    let latest = lock(&ledger).of(|_| true, |lease| lease.gone.map(|gone| gone - lease.until));
    say(&format!(
        "{rule} at {} of {nodes} nodes for {lasted:.1?}: leases kept alive {kept} times meanwhile, none of {} ended \
         early, the last one {:.1?} late",
        stalled.len(),
        latest.len(),
        latest.values().flatten().max().expect("all have ended"),
    ));
}

#[test]
fn no_lease_ends_early_while_the_leader_cannot_sync() {
    let test = "no lease ends early while the leader cannot sync";
    let Some(mut shim) = Shim::build(test) else { return };
    let Some(cluster) = shim.cluster(test) else { return };
    for rule in ["sync hang 0", "sync delay 3000"] {
        let leader = cluster.leader();
        live_through(&mut shim, &cluster, &[leader], rule, |cluster| {
            wait::until("another leader, as all see it", BOUND, || match cluster.leader() {
                now if now != leader => Ok(()),
                _ => Err("it still leads".to_owned()),
            });
            true
        });
        assert_unfit(&cluster, leader, false);
    }
}

#[test]
fn no_lease_ends_early_while_no_node_can_sync() {
    let test = "no lease ends early while no node can sync";
    let Some(mut shim) = Shim::build(test) else { return };
    let Some(cluster) = shim.cluster(test) else { return };
    let leader = cluster.leader();
    // The leader last: nothing is committed that it cannot apply.
    let stalled = [(leader + 1) % 3, (leader + 2) % 3, leader];
    live_through(&mut shim, &cluster, &stalled, "sync hang 0", |_| false);
}

#[test]
fn the_contract_of_leases_and_locks_is_kept_while_leaders_cannot_sync() {
    let test = "the contract is kept while leaders cannot sync";
    let Some(mut shim) = Shim::build(test) else { return };
    let Some(cluster) = shim.cluster(test) else { return };
    let check = Check::start(&cluster, &["--round", "8s", "--rate", "300", "--ttl", "3"]);
    for rule in ["sync hang 0", "sync delay 3000"] {
        await_writes(&cluster);
        let leader = cluster.leader();
        shim.set(&cluster.nodes[leader].name, rule);
        assert_unfit(&cluster, leader, true);
        // The time is the fault, not a wait for something.
        std::thread::sleep(STALL / 2);
        shim.set(&cluster.nodes[leader].name, "none none 0");
        (0..3).for_each(|number| cluster.await_read(number));
    }
    await_writes(&cluster);
    say(&shown(&check.kept()));
}
