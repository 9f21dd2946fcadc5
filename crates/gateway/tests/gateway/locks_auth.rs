//! Locks and elections while users count: who may take them, beside a real etcd too, and what becomes of a place
//! whose owner loses the right to it.
//!
//! The users are those of [`set_up`]; everything is about the name `b`, whose keys `right` may read and write,
//! `write` only write, `split` only read, and `wrong` neither.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use quorate_api::etcdserverpb as pb;
use quorate_api::v3electionpb::election_client::ElectionClient;
use quorate_api::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use quorate_api::v3lockpb::lock_client::LockClient;
use quorate_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::auth::{Client, set_up, with_users};
use crate::peer::Etcd;
use crate::support::{Door, keys_until, with_token};

/// How long anything may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The users in the order in which they try; nobody and a liar come first.
const USERS: [&str; 7] = ["", "liar", "right", "write", "split", "wrong", "root"];

/// The services, as one user.
#[derive(Clone)]
struct Queuer {
    channel: Channel,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
    token: Option<String>,
}

impl Queuer {
    fn new(channel: &Channel, token: Option<String>) -> Self {
        let (lock, election) =
            (LockClient::new(channel.clone()), ElectionClient::new(channel.clone()));
        Self { channel: channel.clone(), lock, election, token }
    }

    async fn user(channel: &Channel, user: &str) -> Self {
        let token = match user {
            "" => None,
            "liar" => Some("no.token".to_owned()),
            user => Some(Client::of(channel.clone()).login(user).await),
        };
        Self::new(channel, token)
    }

    fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    async fn lock(&mut self, name: &'static str, lease: i64) -> Result<LockResponse, Status> {
        let request = with_token(LockRequest { name: name.into(), lease }, self.token.as_deref());
        self.lock.lock(request).await.map(Response::into_inner)
    }

    fn locking(&self, name: &'static str, lease: i64) -> JoinHandle<Result<LockResponse, Status>> {
        let mut queuer = self.clone();
        tokio::spawn(async move { queuer.lock(name, lease).await })
    }

    async fn unlock(&mut self, key: Bytes) -> Result<(), Status> {
        let request = with_token(UnlockRequest { key }, self.token.as_deref());
        self.lock.unlock(request).await.map(drop)
    }

    async fn campaign(&mut self, name: &'static str) -> Result<LeaderKey, Status> {
        let request = CampaignRequest { name: name.into(), value: "v".into(), lease: 0 };
        let led = self.election.campaign(with_token(request, self.token.as_deref())).await?;
        Ok(led.into_inner().leader.expect("its key"))
    }

    async fn proclaim(&mut self, leader: &LeaderKey) -> Result<(), Status> {
        // A lease of its own would be made for it.
        let request = ProclaimRequest { leader: Some(leader.clone()), value: "w".into() };
        self.election.proclaim(with_token(request, self.token.as_deref())).await.map(drop)
    }

    async fn resign(&mut self, leader: &LeaderKey) -> Result<(), Status> {
        let request = ResignRequest { leader: Some(leader.clone()) };
        self.election.resign(with_token(request, self.token.as_deref())).await.map(drop)
    }

    async fn leader(&mut self, name: &'static str) -> Result<(), Status> {
        let request = LeaderRequest { name: name.into() };
        self.election.leader(with_token(request, self.token.as_deref())).await.map(drop)
    }

    /// The first that an observer is told.
    async fn observe(&mut self, name: &'static str) -> Result<LeaderResponse, Status> {
        let request = with_token(LeaderRequest { name: name.into() }, self.token.as_deref());
        let mut told = self.election.observe(request).await?.into_inner();
        let first = timeout(PATIENCE, told.message()).await.expect("in time")?;
        first.ok_or_else(|| Status::ok("the stream ends without a word"))
    }

    /// Waits until there are so many keys under `b/`.
    async fn until(&self, count: usize) {
        let reached = keys_until(&self.channel, self.token(), "b/", |keys| keys.len() == count);
        timeout(PATIENCE, reached).await.expect("so many keys");
    }
}

fn told<T: Debug>(what: &str, user: &str, answer: &Result<T, Status>) -> String {
    match answer {
        Ok(_) => format!("{user:?} {what}: ok"),
        Err(status) => {
            format!("{user:?} {what}: {:?} {}", status.code(), status.message())
        }
    }
}

/// What every user is told of every call, when nothing else keeps it from its end.
async fn session(channel: &Channel) -> Vec<String> {
    let mut root = Queuer::user(channel, "root").await;
    let mut said = Vec::new();
    for user in USERS {
        let mut queuer = Queuer::user(channel, user).await;
        let locked = queuer.lock("b", 0).await;
        said.push(told("locks", user, &locked));
        let held = match locked {
            Ok(locked) => locked.key,
            Err(_) => root.lock("b", 0).await.expect("root may").key,
        };
        let unlocked = queuer.unlock(held.clone()).await;
        said.push(told("unlocks", user, &unlocked));
        root.unlock(held).await.expect("root may");

        let led = queuer.campaign("b").await;
        said.push(told("campaigns", user, &led));
        let leader = match led {
            Ok(leader) => leader,
            Err(_) => root.campaign("b").await.expect("root may"),
        };
        said.push(told("asks who leads", user, &queuer.leader("b").await));
        said.push(told("observes", user, &queuer.observe("b").await));
        said.push(told("proclaims", user, &queuer.proclaim(&leader).await));
        said.push(told("resigns", user, &queuer.resign(&leader).await));
        root.resign(&leader).await.expect("root may");
        // No place is left by any of it.
        root.until(0).await;
    }
    said
}

#[tokio::test]
async fn locks_and_elections_are_open_to_whom_etcd_opens_them() {
    let Some(etcd) = Etcd::start().await else { return };
    set_up(&Client::of(etcd.channel())).await;
    let door = with_users().await;
    // Who is refused for who it is gets the code that has clients do the right thing everywhere else; in etcd it is lost
    // on the way through a client of its own.
    let codes = [
        ("etcdserver: invalid auth token", "Unauthenticated"),
        ("etcdserver: permission denied", "PermissionDenied"),
    ];
    let with_code = |said: String| {
        let lost = codes.iter().find(|(text, _)| said.ends_with(&format!("Unknown {text}")));
        lost.map_or_else(|| said.clone(), |(_, code)| said.replace("Unknown", code))
    };
    let theirs = session(&etcd.channel()).await.into_iter().map(with_code).collect::<Vec<_>>();
    let ours = session(&door.channel().await).await;
    assert_eq!(ours.len(), theirs.len());
    // etcd ends the stream of an observer whom it refuses without saying so.
    let silent = |said: &str| said.ends_with("observes: Ok the stream ends without a word");
    let pairs = ours.iter().zip(&theirs);
    let differ: Vec<_> = pairs
        .filter(|(ours, theirs)| ours != theirs && (ours.ends_with(": ok") || !silent(theirs)))
        .collect();
    assert!(differ.is_empty(), "ours and theirs: {differ:#?}");
}

#[tokio::test]
async fn only_who_may_read_and_write_its_keys_takes_a_lock_or_leads() {
    let door = with_users().await;
    for line in session(&door.channel().await).await {
        let (user, call) = line.split_once(' ').expect("a user and what it did");
        let may_read = [r#""right""#, r#""split""#, r#""root""#].contains(&user);
        let may_write = [r#""right""#, r#""write""#, r#""root""#].contains(&user);
        let (call, answer) = call.split_once(": ").expect("a call and its answer");
        let expected = match call {
            "locks" | "campaigns" => may_read && may_write,
            "unlocks" => may_write,
            "asks who leads" | "observes" => may_read,
            // They look at the create revision first.
            "proclaims" | "resigns" => may_read && may_write,
            call => panic!("{call} is not expected"),
        };
        assert_eq!(answer == "ok", expected, "{line}");
    }
}

#[tokio::test]
async fn a_lease_with_keys_of_others_takes_no_lock() {
    let door = with_users().await;
    let channel = door.channel().await;
    let root = Client::of(channel.clone()).to_be("root").await;
    root.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 600 }).await.expect("a lease");
    let put = pb::PutRequest { key: "x".into(), lease: 7, ..pb::PutRequest::default() };
    root.put(put).await.expect("root may");
    let mut right = Queuer::user(&channel, "right").await;
    let status = right.lock("b", 7).await.expect_err("it would end with keys that are not its own");
    assert_eq!(status.message(), "etcdserver: permission denied");
    Queuer::user(&channel, "root").await.until(0).await;
}

/// A gateway with users where root has the lock, and `right` waits for it.
async fn waiting() -> (Door, Client, Queuer, Bytes, JoinHandle<Result<LockResponse, Status>>) {
    let door = with_users().await;
    let channel = door.channel().await;
    let client = Client::of(channel.clone()).to_be("root").await;
    client.lease_grant(pb::LeaseGrantRequest { id: 2, ttl: 600 }).await.expect("a lease");
    let mut root = Queuer::user(&channel, "root").await;
    let held = root.lock("b", 0).await.expect("root may").key;
    let waits = Queuer::user(&channel, "right").await.locking("b", 2);
    root.until(2).await;
    (door, client, root, held, waits)
}

async fn done<T>(call: JoinHandle<T>) -> T {
    timeout(PATIENCE, call).await.expect("it ends").expect("no panic")
}

#[tokio::test]
async fn a_waiter_whose_right_is_taken_is_refused_at_its_turn_and_leaves_no_key_behind() {
    let (_door, client, mut root, held, waits) = waiting().await;
    let revoke = pb::AuthUserRevokeRoleRequest { name: "right".into(), role: "r".into() };
    client.user_revoke_role(revoke).await.expect("it has the role");
    root.unlock(held).await.expect("root may");
    let status = done(waits).await.expect_err("it may not any more");
    let said = (status.code(), status.message());
    assert_eq!(said, (Code::PermissionDenied, "etcdserver: permission denied"));
    // It could not delete the key itself.
    root.until(0).await;
}

#[tokio::test]
async fn a_waiter_whose_user_is_deleted_leaves_no_key_behind_when_it_hangs_up() {
    let (_door, client, root, _held, waits) = waiting().await;
    let delete = pb::AuthUserDeleteRequest { name: "right".into() };
    client.user_delete(delete).await.expect("it is there");
    waits.abort();
    root.until(1).await;
}

#[tokio::test]
async fn a_waiter_keeps_its_place_when_users_and_roles_change_that_are_not_its_own() {
    let (_door, client, mut root, held, waits) = waiting().await;
    client.role_add(pb::AuthRoleAddRequest { name: "other".into() }).await.expect("a new role");
    root.unlock(held).await.expect("root may");
    let locked = done(waits).await.expect("the lock");
    assert_eq!(locked.key, "b/2");
}

#[tokio::test]
async fn who_waits_unnamed_is_refused_once_users_count_and_leaves_no_key_behind() {
    let door = Door::open().await;
    let channel = door.channel().await;
    let mut nobody = Queuer::user(&channel, "").await;
    let held = nobody.lock("b", 0).await.expect("users do not count").key;
    let waits = nobody.locking("b", 0);
    nobody.until(2).await;
    set_up(&Client::of(channel.clone())).await;
    let mut root = Queuer::user(&channel, "root").await;
    root.unlock(held).await.expect("root may");
    let status = done(waits).await.expect_err("nobody knows who it is");
    let said = (status.code(), status.message());
    assert_eq!(said, (Code::Unknown, "etcdserver: user name is empty"));
    root.until(0).await;
}
