//! Locks and elections: the same calls to a real etcd and to the gateway, and what the gateway promises by
//! itself.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, RangeRequest, ResponseHeader,
};
use quorate_api::mvccpb::KeyValue;
use quorate_api::v3electionpb::election_client::ElectionClient;
use quorate_api::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use quorate_api::v3lockpb::lock_client::LockClient;
use quorate_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use quorate_gateway::{BackendError, GatewayConfig};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::peer::Etcd;
use crate::support::{Door, keys_until};

/// How long anything may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The clients of one server.
#[derive(Clone)]
struct Server {
    channel: Channel,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
}

impl Server {
    fn new(channel: Channel) -> Self {
        Self {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel.clone()),
            channel,
        }
    }

    async fn grant(&mut self, ids: impl IntoIterator<Item = i64>) {
        for id in ids {
            self.lease.lease_grant(LeaseGrantRequest { id, ttl: 600 }).await.expect("a lease");
        }
    }

    async fn revoke(&mut self, id: i64) {
        self.lease.lease_revoke(LeaseRevokeRequest { id }).await.expect("the lease exists");
    }

    async fn keys(&mut self, prefix: &'static str) -> Vec<KeyValue> {
        let range_end = Bytes::from(prefix.replace('/', "0"));
        let range = RangeRequest { key: prefix.into(), range_end, ..RangeRequest::default() };
        self.kv.range(range).await.expect("keys").into_inner().kvs
    }

    /// Waits until there are so many keys under a prefix.
    async fn until(&self, prefix: &'static str, count: usize) {
        let reached = keys_until(&self.channel, None, prefix, |keys| keys.len() == count);
        timeout(PATIENCE, reached).await.expect("so many keys");
    }

    /// A call of Lock that is under way.
    fn locking(&self, name: &'static str, lease: i64) -> JoinHandle<Result<LockResponse, Status>> {
        let mut lock = self.lock.clone();
        tokio::spawn(async move {
            let locked = lock.lock(LockRequest { name: name.into(), lease }).await;
            locked.map(Response::into_inner)
        })
    }

    async fn unlock(&mut self, key: &'static str) {
        self.lock.unlock(UnlockRequest { key: key.into() }).await.expect("an answer");
    }

    async fn observe(&mut self, name: &'static str) -> Streaming<LeaderResponse> {
        let observed = self.election.observe(LeaderRequest { name: name.into() }).await;
        observed.expect("a stream").into_inner()
    }
}

async fn done<T>(call: JoinHandle<T>) -> T {
    timeout(PATIENCE, call).await.expect("it ends").expect("it does not panic")
}

/// An answer without who gave it.
fn told<T: Debug>(
    answer: Result<Response<T>, Status>,
    header: impl FnOnce(&mut T) -> &mut Option<ResponseHeader>,
) -> String {
    match answer {
        Ok(response) => {
            let mut response = response.into_inner();
            let header = header(&mut response).as_mut().expect("every response has a header");
            assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
            *header = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
            format!("{response:?}")
        }
        Err(status) => format!("{:?} {:?}", status.code(), status.message()),
    }
}

/// An answer of Lock as etcd gives it: without the token, which is not of etcd's.
fn locked(mut answer: Result<Response<LockResponse>, Status>) -> String {
    if let Ok(response) = &mut answer {
        response.get_mut().fencing_token = 0;
    }
    told(answer, |r| &mut r.header)
}

fn lock(name: &'static str, lease: i64) -> LockRequest {
    LockRequest { name: name.into(), lease }
}

fn campaign(name: &'static str, lease: i64, value: &'static str) -> CampaignRequest {
    CampaignRequest { name: name.into(), lease, value: value.into() }
}

fn leadership(key: &'static str, rev: i64, lease: i64) -> Option<LeaderKey> {
    Some(LeaderKey { name: "e".into(), key: key.into(), rev, lease })
}

/// What one server says to everything that is asked here.
async fn session(server: &mut Server) -> Vec<String> {
    let mut said = Vec::new();
    server.grant([10, 11, 12, 13]).await;
    for request in [lock("n", 10), lock("n", 99), lock("n", -5), lock("", 10), lock("m/x", 11)] {
        said.push(locked(server.lock.lock(request).await));
    }
    // Whose lease ends while it waits is told when the one before it goes, at the latest.
    let waiter = server.locking("n", 12);
    server.until("n/", 2).await;
    server.revoke(12).await;
    server.unlock("n/a").await;
    said.push(locked(done(waiter).await.map(Response::new)));
    for key in ["nope", ""] {
        let unlocked = server.lock.unlock(UnlockRequest { key: key.into() }).await;
        said.push(told(unlocked, |r| &mut r.header));
    }
    // Who waits gets the header of the look that found the turn.
    said.push(locked(server.lock.lock(lock("n", 10)).await));
    let waiter = server.locking("n", 11);
    server.until("n/", 2).await;
    server.unlock("n/a").await;
    said.push(locked(done(waiter).await.map(Response::new)));

    let nobody = LeaderRequest { name: "e".into() };
    let election = &mut server.election;
    said.push(told(election.leader(nobody.clone()).await, |r| &mut r.header));
    for request in [campaign("e", 13, "v1"), campaign("e", 99, "v1")] {
        said.push(told(election.campaign(request).await, |r| &mut r.header));
    }
    said.push(told(election.leader(nobody.clone()).await, |r| &mut r.header));
    let led = election.leader(nobody.clone()).await.expect("a leader").into_inner();
    let rev = led.kv.expect("its key").create_revision;
    for (leader, value) in [
        (None, "v2"),
        (leadership("e/d", rev, 13), "v2"),
        (leadership("e/d", rev - 1, 13), "v3"),
        (leadership("e/d", rev, 99), "v3"),
        (leadership("e/d", rev - 1, 99), "v3"),
        (leadership("", rev, 13), "v3"),
        (leadership("e/nope", 0, 13), "v4"),
    ] {
        let value = Bytes::from(value);
        let proclaimed = election.proclaim(ProclaimRequest { leader, value }).await;
        said.push(told(proclaimed, |r| &mut r.header));
    }
    said.push(told(election.leader(nobody.clone()).await, |r| &mut r.header));
    for leader in [
        None,
        leadership("", rev, 13),
        leadership("e/d", rev - 1, 13),
        leadership("e/d", rev, 13),
        leadership("e/d", rev, 13),
    ] {
        said.push(told(election.resign(ResignRequest { leader }).await, |r| &mut r.header));
    }
    said.push(format!("{:?}", server.keys("e/").await));
    said
}

#[tokio::test]
async fn locks_and_elections_are_those_of_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let theirs = session(&mut Server::new(etcd.channel())).await;
    let ours = session(&mut Server::new(door.channel().await)).await;
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "answer {at}");
    }
}

#[tokio::test]
async fn waiters_are_granted_in_the_order_in_which_they_came() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant(1..=8).await;
    let mut waiters = Vec::new();
    for lease in 1..=8 {
        waiters.push(server.locking("n", lease));
        server.until("n/", waiters.len()).await;
    }
    let mut tokens = Vec::new();
    for waiter in waiters {
        let locked = done(waiter).await.expect("the lock");
        let keys = server.keys("n/").await;
        let own = keys.iter().find(|kv| kv.key == locked.key).expect("the key of a lock exists");
        assert!(
            keys.iter().all(|kv| kv.create_revision >= own.create_revision),
            "it is the oldest"
        );
        assert_eq!(locked.fencing_token, own.create_revision);
        tokens.push(locked.fencing_token);
        server.lock.unlock(UnlockRequest { key: locked.key }).await.expect("an answer");
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[tokio::test]
async fn the_token_is_the_create_revision_also_for_who_waited_and_who_asks_again() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant(1..=2).await;
    let first = done(server.locking("n", 1)).await.expect("the lock");
    let waiter = server.locking("n", 2);
    server.until("n/", 2).await;
    server.unlock("n/1").await;
    let second = done(waiter).await.expect("the lock");
    let own = &server.keys("n/").await[0];
    assert_eq!((&own.key, own.create_revision), (&second.key, second.fencing_token));
    assert!(second.fencing_token > first.fencing_token);
    // The look that found the lock free saw the end of the one before, which came later than the place.
    assert!(second.header.expect("a header").revision > second.fencing_token);
    // The holder that asks again writes its key anew, and keeps its token.
    let again = done(server.locking("n", 2)).await.expect("the lock");
    assert_eq!((again.key, again.fencing_token), (second.key, second.fencing_token));
    assert_eq!(server.keys("n/").await[0].version, 2);
}

#[tokio::test]
async fn a_waiter_whose_lease_ends_is_refused_at_once_and_holds_nobody_up() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant(1..=3).await;
    done(server.locking("n", 1)).await.expect("the lock");
    let second = server.locking("n", 2);
    server.until("n/", 2).await;
    let third = server.locking("n", 3);
    server.until("n/", 3).await;
    server.revoke(2).await;
    let status = done(second).await.expect_err("its lease has ended");
    assert_eq!((status.code(), status.message()), (Code::Unknown, "mutex: session is expired"));
    server.unlock("n/1").await;
    done(third).await.expect("the lock");
}

#[tokio::test]
async fn whoever_stops_waiting_leaves_no_key_behind() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant(1..=3).await;
    done(server.locking("n", 1)).await.expect("the lock");
    let second = server.locking("n", 2);
    server.until("n/", 2).await;
    let third = server.locking("n", 3);
    server.until("n/", 3).await;
    second.abort();
    server.until("n/", 2).await;
    server.unlock("n/1").await;
    assert_eq!(done(third).await.expect("the lock").key, "n/3");

    let mut election = server.election.clone();
    let waits = tokio::spawn(async move { election.campaign(campaign("n", 2, "v")).await });
    server.until("n/", 2).await;
    waits.abort();
    server.until("n/", 1).await;
    assert_eq!(server.keys("n/").await[0].key, "n/3", "whoever holds it keeps it");
}

#[tokio::test]
async fn a_call_that_takes_a_place_over_is_not_undone_by_the_one_before() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant(1..=2).await;
    done(server.locking("n", 1)).await.expect("the lock");
    let first = server.locking("n", 2);
    server.until("n/", 2).await;
    let again = server.locking("n", 2);
    let taken_over = keys_until(&server.channel, None, "n/", |keys| keys[1].version == 2);
    timeout(PATIENCE, taken_over).await.expect("the second call writes the key");
    let mut proposed = door.backend.proposed();
    first.abort();
    // The first call's end is proposed, and does nothing.
    timeout(PATIENCE, proposed.changed()).await.expect("in time").expect("a proposal");
    assert_eq!(server.keys("n/").await.len(), 2);
    server.unlock("n/1").await;
    assert_eq!(done(again).await.expect("the lock").key, "n/2");
}

/// A metric of a gateway without labels.
async fn metric(door: &Door, name: &str) -> String {
    let (_, page) = door.page("/metrics").await;
    let row = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    row.expect("it is there").to_owned()
}

#[tokio::test]
async fn places_that_are_taken_back_are_counted_and_so_are_those_that_cannot_be() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant(1..=3).await;
    done(server.locking("n", 1)).await.expect("the lock");
    let second = server.locking("n", 2);
    server.until("n/", 2).await;
    let third = server.locking("n", 3);
    server.until("n/", 3).await;
    // Nobody leads: it is tried again until somebody does.
    door.backend.fail_with(Some(BackendError::NoLeader));
    let mut refused = door.backend.refused();
    third.abort();
    timeout(PATIENCE, refused.changed()).await.expect("in time").expect("a try");
    assert_eq!(metric(&door, "quorate_gateway_undos_count").await, "1");
    door.backend.fail_with(None);
    server.until("n/", 2).await;
    // The cluster is damaged: it is not.
    door.backend.fail_with(Some(BackendError::Corrupt));
    let mut refused = door.backend.refused();
    second.abort();
    timeout(PATIENCE, refused.changed()).await.expect("in time").expect("a try");
    door.backend.fail_with(None);
    assert_eq!(server.keys("n/").await.len(), 2, "it stays until its lease ends");
    assert_eq!(metric(&door, "quorate_gateway_undos_failed_total").await, "1");
    assert_eq!(metric(&door, "quorate_gateway_undos_count").await, "0");
    assert_eq!(metric(&door, "quorate_gateway_undos_refused_total").await, "0");
}

#[tokio::test]
async fn a_waiter_outlasts_an_election_of_the_servers() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant(1..=2).await;
    done(server.locking("n", 1)).await.expect("the lock");
    let waiter = server.locking("n", 2);
    server.until("n/", 2).await;
    door.backend.fail_with(Some(BackendError::NoLeader));
    let status = server.lock.lock(lock("other", 1)).await.expect_err("nobody leads");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    door.backend.fail_with(None);
    server.unlock("n/1").await;
    done(waiter).await.expect("the lock");
}

/// Whom an observer is told of: value, and revision.
async fn next(observed: &mut Streaming<LeaderResponse>) -> (Bytes, i64) {
    let told = timeout(PATIENCE, observed.message()).await.expect("in time");
    let told = told.expect("no error").expect("no end");
    let kv = told.kv.expect("a leader");
    assert!(told.header.expect("a header").revision >= kv.mod_revision);
    (kv.value, kv.mod_revision)
}

#[tokio::test]
async fn observers_see_every_leader_and_every_value_in_order() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant(1..=3).await;
    let led = server.election.campaign(campaign("e", 3, "start")).await.expect("elected");
    let mut early = server.observe("e").await;
    assert_eq!(next(&mut early).await.0, "start");
    let resign = ResignRequest { leader: led.into_inner().leader };
    server.election.resign(resign).await.expect("an answer");
    let mut expected = Vec::new();
    let value = |turn: i64, word: &str| Bytes::from(format!("{turn}{word}"));
    // Leaders that come and go faster than anybody looks, some of whom have waited, some of whom have not.
    for turn in 0..60 {
        let (lease, next) = (turn % 3 + 1, (turn + 1) % 3 + 1);
        let request = CampaignRequest { name: "e".into(), lease, value: value(turn, "campaigns") };
        let led = server.election.campaign(request).await.expect("elected").into_inner();
        expected.push(value(turn, "campaigns"));
        let leader = led.leader.expect("its key");
        for word in ["a", "b"] {
            let proclaim =
                ProclaimRequest { leader: Some(leader.clone()), value: value(turn, word) };
            server.election.proclaim(proclaim).await.expect("it leads");
            expected.push(value(turn, word));
        }
        if turn % 2 == 0 {
            let mut election = server.election.clone();
            let waiting = value(turn, "waited");
            let request = CampaignRequest { name: "e".into(), lease: next, value: waiting.clone() };
            let waiter = tokio::spawn(async move { election.campaign(request).await });
            server.until("e/", 2).await;
            let resign = ResignRequest { leader: Some(leader) };
            server.election.resign(resign).await.expect("an answer");
            expected.push(waiting);
            let led = done(waiter).await.expect("elected").into_inner();
            let resign = ResignRequest { leader: led.leader };
            server.election.resign(resign).await.expect("an answer");
        } else {
            server.revoke(lease).await;
            server.grant([lease]).await;
        }
    }
    let mut last = 0;
    for value in expected {
        let (seen, revision) = next(&mut early).await;
        assert_eq!(seen, value);
        last = last.max(revision);
    }
    let led = server.election.campaign(campaign("e", 1, "now")).await.expect("elected");
    let rev = led.into_inner().leader.expect("its key").rev;
    assert_eq!(next(&mut early).await, (Bytes::from("now"), rev));
    let mut late = server.observe("e").await;
    assert_eq!(next(&mut late).await, (Bytes::from("now"), rev), "who leads already comes first");
}

#[tokio::test]
async fn a_campaign_again_changes_the_value_and_keeps_the_age() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant([1]).await;
    let first = server.election.campaign(campaign("e", 1, "v1")).await.expect("elected");
    let second = server.election.campaign(campaign("e", 1, "v2")).await.expect("elected");
    assert_eq!(first.into_inner().leader, second.into_inner().leader);
    let keys = server.keys("e/").await;
    assert_eq!((keys[0].value.as_ref(), keys[0].version), (b"v2".as_ref(), 2));
    let gone = DeleteRangeRequest { key: "e/1".into(), ..DeleteRangeRequest::default() };
    server.kv.delete_range(gone).await.expect("an answer");
    let status = server.election.leader(LeaderRequest { name: "e".into() }).await;
    assert_eq!(status.expect_err("nobody leads").message(), "election: no leader");
}

#[tokio::test]
async fn a_lock_of_a_lease_that_leads_the_name_leaves_the_leaders_value() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    server.grant([1]).await;
    let elected = server.election.campaign(campaign("n", 1, "v")).await.expect("elected");
    let locked = server.lock.lock(lock("n", 1)).await.expect("the lock").into_inner();
    let leader = elected.into_inner().leader.expect("a key");
    assert_eq!((locked.key, locked.fencing_token), (leader.key, leader.rev));
    let asked = server.election.leader(LeaderRequest { name: "n".into() }).await;
    assert_eq!(asked.expect("it leads").into_inner().kv.expect("its key").value, "v");
}

#[tokio::test]
async fn a_call_without_a_lease_gets_one() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    let locked = server.lock.lock(lock("n", 0)).await.expect("the lock").into_inner();
    let keys = server.keys("n/").await;
    assert!(keys[0].lease != 0);
    assert_eq!(locked.key, format!("n/{:x}", keys[0].lease));
}

#[tokio::test]
async fn whoever_waits_at_a_node_that_is_cut_off_is_told_so() {
    let election_timeout = Duration::from_millis(20);
    let config = GatewayConfig { election_timeout, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let mut server = Server::new(door.channel().await);
    server.grant([1, 2]).await;
    server.lock.lock(lock("n", 1)).await.expect("the lock");
    let waiter = server.locking("n", 2);
    let mut observed = server.observe("e").await;
    server.until("n/", 2).await;
    door.backend.cut_off(true);
    let refused = done(waiter).await.expect_err("nobody can say when it is free");
    let ended = timeout(PATIENCE, observed.message()).await.expect("in time");
    for status in [refused, ended.expect_err("nobody can say who leads")] {
        let said = (status.code(), status.message());
        assert_eq!(said, (Code::Unavailable, "etcdserver: unhealthy cluster"));
    }
}
