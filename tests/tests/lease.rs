//! Leases under faults: one that is kept alive never ends early, whatever its leader does, and its keys go
//! together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, RangeRequest,
};
use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// The shortest that there is.
const TTL_S: i64 = 2;

/// One lease, and what its holder knows.
struct Holder {
    lease: LeaseClient<Channel>,
    id: i64,
    /// The lease must live so long, by what was acknowledged: from when that was asked for.
    until: Instant,
}

impl Holder {
    async fn new(endpoint: &str, id: i64, ttl: i64) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
        let mut lease = LeaseClient::new(endpoint.timeout(Duration::from_secs(15)).connect_lazy());
        let asked = Instant::now();
        let granted = lease.lease_grant(LeaseGrantRequest { id, ttl }).await.expect("a lease");
        assert_eq!(granted.into_inner().ttl, ttl);
        Self { lease, id, until: asked + Duration::from_secs(ttl as u64) }
    }

    /// Keeps the lease alive once. An answer that it does not exist is one too many while it must live.
    async fn keep_alive(&mut self) -> Result<(), Status> {
        let asked = Instant::now();
        let requests = futures::stream::iter([LeaseKeepAliveRequest { id: self.id }]);
        let mut answers = self.lease.lease_keep_alive(requests).await?.into_inner();
        let kept = answers.message().await?.expect("one answer for one request");
        if kept.ttl == 0 {
            let must_live = Instant::now() < self.until;
            assert!(!must_live, "lease {} ended {:?} early", self.id, self.until - Instant::now());
        } else {
            self.until = asked + Duration::from_secs(kept.ttl as u64);
        }
        Ok(())
    }
}

async fn put(client: &mut Client, key: String, lease: i64) {
    let put = PutRequest { key: key.into(), value: "v".into(), lease, ..PutRequest::default() };
    client.kv.put(put).await.expect("a put");
}

/// How many keys there are under `k/`, and the revision of the whole store.
async fn keys(client: &mut Client) -> Result<(i64, i64), Status> {
    let range = RangeRequest { key: "k/".into(), range_end: "k0".into(), ..Default::default() };
    let found = client.kv.range(range).await?.into_inner();
    Ok((found.count, found.header.expect("a header").revision))
}

/// Keeps a lease alive through node `through` until `end` is over; its key is there all the while.
/// Returns how many keep-alives were acknowledged.
async fn hold(holder: &mut Holder, client: &mut Client, end: Instant) -> usize {
    let mut acknowledged = 0;
    while Instant::now() < end {
        // A leader that is gone, or has just come: asked again.
        acknowledged += usize::from(holder.keep_alive().await.is_ok());
        let must_live = |now: Instant| now < holder.until;
        if let Ok((count, _)) = keys(client).await
            && must_live(Instant::now())
        {
            assert_eq!(count, 1, "the key went while its lease must live");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    acknowledged
}

/// The keys of `lease` are gone, all of them in one revision after `before`.
async fn await_end(client: &mut Client, before: i64) {
    loop {
        match keys(client).await {
            Ok((0, revision)) => return assert_eq!(revision, before + 1, "more than one revision"),
            Ok((count, revision)) => assert_eq!((count, revision), (1, before), "half of them"),
            // Nobody leads for a moment.
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A lease with a key is kept alive through another node than the leader's while `fault` happens to that
/// one, and for as long again as an election takes; then it is left alone, and ends.
fn outlives(test: &str, fault: impl FnOnce(&mut Cluster, usize) + Send) {
    let Some(mut cluster) = Cluster::quorate(test) else { return };
    let leader = cluster.leader();
    let through = cluster.endpoints()[(leader + 1) % 3].clone();
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|threads| {
        let held = threads.spawn(|| {
            runtime().block_on(async {
                let mut client = Client::new(&through);
                let mut holder = Holder::new(&through, 7, TTL_S).await;
                put(&mut client, "k/a".to_owned(), 7).await;
                begun.store(true, Ordering::Release);
                while !done.load(Ordering::Acquire) {
                    let end = Instant::now() + Duration::from_secs(1);
                    hold(&mut holder, &mut client, end).await;
                }
                let end = Instant::now() + Duration::from_secs(4);
                let acknowledged = hold(&mut holder, &mut client, end).await;
                assert!(acknowledged > 0, "no keep-alive was acknowledged after the fault");
                let (count, before) = keys(&mut client).await.expect("an answer");
                assert_eq!(count, 1);
                await_end(&mut client, before).await;
                assert!(Instant::now() >= holder.until, "it ended early");
            });
        });
        while !begun.load(Ordering::Acquire) && !held.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        fault(&mut cluster, leader);
        done.store(true, Ordering::Release);
        held.join().expect("the lease was held, and has ended");
    });
}

#[test]
fn a_lease_kept_alive_outlives_a_leader_that_is_stopped_for_longer_than_it_lives() {
    outlives("a lease outlives a stopped leader", |cluster, leader| {
        cluster.pause(leader, Duration::from_secs(7));
    });
}

#[test]
fn a_lease_kept_alive_outlives_its_leader() {
    outlives("a lease outlives its leader", Cluster::kill);
}

#[test]
fn a_lease_that_ends_takes_its_keys_along_in_one_revision() {
    let Some(cluster) = Cluster::quorate("a lease takes its keys along") else { return };
    runtime().block_on(async {
        let mut clients: Vec<_> = cluster.endpoints().iter().map(|at| Client::new(at)).collect();
        let [client, other, ..] = &mut clients[..] else { panic!("three nodes") };
        let mut holder = Holder::new(&cluster.endpoints()[0], 7, 60).await;
        for number in 0..100 {
            put(client, format!("k/{number}"), 7).await;
        }
        put(client, "k/99".to_owned(), 0).await;
        let asked = LeaseTimeToLiveRequest { id: 7, keys: true };
        let left = holder.lease.lease_time_to_live(asked).await.expect("an answer").into_inner();
        assert_eq!((left.granted_ttl, left.keys.len()), (60, 99));
        let (count, before) = keys(other).await.expect("an answer");
        assert_eq!(count, 100);
        holder.lease.lease_revoke(LeaseRevokeRequest { id: 7 }).await.expect("it is there");
        assert_eq!(keys(other).await.expect("an answer"), (1, before + 1));
    });
}

#[test]
fn a_lease_of_a_group_that_sleeps_ends_in_one_revision() {
    let args = ["--sleep-after", "1s"];
    let Some(cluster) = Cluster::quorate_with("a lease of a sleeping group ends", &args) else {
        return;
    };
    runtime().block_on(async {
        let mut client = Client::new(&cluster.endpoints()[0]);
        drop(Holder::new(&cluster.endpoints()[1], 8, 6).await);
        for number in 0..5 {
            put(&mut client, format!("k/{number}"), 8).await;
        }
        let (count, before) = keys(&mut client).await.expect("an answer");
        assert_eq!(count, 5);
        // A look at the metrics wakes no group.
        let sum = |name| (0..3).filter_map(|node| cluster.metric(node, name)).sum::<f64>();
        let mut slept = false;
        while sum("quorate_node_due_commands_total") == 0.0 {
            slept |= sum("quorate_raft_groups_asleep") == 6.0;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(slept, "all replicas of both groups were to sleep before");
        loop {
            match keys(&mut client).await.expect("an answer") {
                (0, revision) => break assert_eq!(revision, before + 1),
                found => assert_eq!(found, (5, before)),
            }
        }
    });
}
