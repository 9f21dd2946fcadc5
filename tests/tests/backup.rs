//! Backups of running clusters, and clusters that begin with one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use quorate_api::etcdserverpb::auth_client::AuthClient;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::watch_client::WatchClient;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    AuthRoleAddRequest, AuthUserAddRequest, AuthUserListRequest, DeleteRangeRequest,
    LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RangeResponse,
    WatchCreateRequest, WatchRequest,
};
use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::{programs, wait};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// What is added to revisions.
const BUMP: i64 = 1_000_000_000;

const LEASE: i64 = 0x1e45e;
const TTL_S: i64 = 6_000;

/// How long anything may take here.
const BOUND: Duration = Duration::from_secs(60);

fn channel(endpoint: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
    endpoint.timeout(Duration::from_secs(15)).connect_lazy()
}

/// All keys, at `revision` if it is not 0.
async fn all(endpoint: &str, revision: i64, serializable: bool) -> Result<RangeResponse, Status> {
    let (key, range_end) = (vec![0].into(), vec![0].into());
    let request =
        RangeRequest { key, range_end, revision, serializable, ..RangeRequest::default() };
    Client::new(endpoint).kv.range(request).await.map(tonic::Response::into_inner)
}

async fn put(endpoint: &str, key: String, lease: i64) -> Result<i64, Status> {
    let value = format!("value of {key}").into();
    let request = PutRequest { key: key.into(), value, lease, ..PutRequest::default() };
    let answer = Client::new(endpoint).kv.put(request).await?.into_inner();
    Ok(answer.header.expect("a header").revision)
}

/// Keys that were overwritten and deleted, and one with a lease.
async fn write_some(endpoint: &str) {
    for number in 0..100 {
        put(endpoint, format!("k/{:02}", number % 40), 0).await.expect("a put");
    }
    let (key, range_end) = ("k/10".into(), "k/15".into());
    let delete = DeleteRangeRequest { key, range_end, ..DeleteRangeRequest::default() };
    Client::new(endpoint).kv.delete_range(delete).await.expect("a delete");
    put(endpoint, "k/12".into(), 0).await.expect("a put of what was deleted");
    let grant = LeaseGrantRequest { id: LEASE, ttl: TTL_S };
    LeaseClient::new(channel(endpoint)).lease_grant(grant).await.expect("a lease");
    put(endpoint, "leased".into(), LEASE).await.expect("a put with a lease");
}

async fn expect_lease(endpoint: &str) {
    let ask = LeaseTimeToLiveRequest { id: LEASE, keys: true };
    let mut client = LeaseClient::new(channel(endpoint));
    let lease = client.lease_time_to_live(ask).await.expect("an answer").into_inner();
    assert_eq!((lease.granted_ttl, lease.keys), (TTL_S, vec!["leased".into()]));
    assert!(lease.ttl > TTL_S - 600, "its time begins anew: {}", lease.ttl);
}

/// Whoever watched the old cluster is told that there is a gap.
async fn expect_compacted(endpoint: &str, revision: i64, begins_at: i64) {
    let refused = all(endpoint, revision, false).await.expect_err("its revision is compacted");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    let create =
        WatchCreateRequest { key: "k".into(), start_revision: revision, ..Default::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::StreamExt::chain(
        futures::stream::iter([request]),
        futures::stream::pending::<WatchRequest>(),
    );
    let mut client = WatchClient::new(channel(endpoint));
    let mut answers = client.watch(requests).await.expect("a stream").into_inner();
    loop {
        let answer = answers.message().await.expect("an answer").expect("an end of the watch");
        assert!(answer.events.is_empty(), "{answer:?}");
        if answer.canceled {
            return assert_eq!(answer.compact_revision, begins_at);
        }
    }
}

/// The number behind `word` in what a command said.
fn number(said: &str, word: &str) -> i64 {
    let rest = said.split(word).nth(1).unwrap_or_else(|| panic!("no {word:?} in {said}"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number after {word:?} in {said}"))
}

/// Restores `from` into every node, and starts them.
fn begin(cluster: &mut Cluster, from: &Path) {
    for number in 0..cluster.nodes.len() {
        let (code, said) = cluster.restore(number, from, &[]);
        assert_eq!(code, Some(0), "{said}");
    }
    cluster.start_all();
}

/// Waits until node `number` itself has these keys, at `begins_at` or later.
fn expect_keys(cluster: &Cluster, number: usize, expected: &RangeResponse, begins_at: i64) {
    let node = &cluster.nodes[number];
    let found = wait::until(&format!("{} has caught up", node.name), BOUND, || {
        let found = runtime().block_on(all(&node.client, 0, true));
        let found = found.map_err(|status| status.to_string())?;
        let revision = found.header.as_ref().map_or(0, |header| header.revision);
        if revision >= begins_at { Ok(found) } else { Err(format!("revision {revision}")) }
    });
    // What was written since lies above.
    let last = expected.header.as_ref().map_or(0, |header| header.revision);
    let old: Vec<_> = found.kvs.into_iter().filter(|pair| pair.mod_revision <= last).collect();
    assert_eq!(old.len(), expected.kvs.len(), "{}", node.name);
    assert!(old == expected.kvs, "{} has other pairs", node.name);
}

fn cluster_id(answer: &RangeResponse) -> u64 {
    answer.header.as_ref().expect("a header").cluster_id
}

#[test]
fn a_backup_under_load_becomes_clusters_of_three_and_of_one() {
    let mut old = Cluster::prepare_sized(3);
    old.start_all();
    let endpoint = old.nodes[1].client.clone();
    let file = old.dir().join("backup");
    runtime().block_on(async {
        write_some(&endpoint).await;
        let mut auth = AuthClient::new(channel(&endpoint));
        let role = AuthRoleAddRequest { name: "r".into() };
        auth.role_add(role).await.expect("a role");
        let user = AuthUserAddRequest {
            name: "u".into(),
            password: "secret".into(),
            ..AuthUserAddRequest::default()
        };
        auth.user_add(user).await.expect("a user");
    });

    let (acknowledged, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let before = std::thread::scope(|scope| {
        scope.spawn(|| {
            runtime().block_on(async {
                let mut client = Client::new(&endpoint);
                while !stop.load(Ordering::Acquire) {
                    let number = acknowledged.load(Ordering::Relaxed);
                    let request = PutRequest {
                        key: format!("load/{number:06}").into(),
                        value: vec![7; 500].into(),
                        ..PutRequest::default()
                    };
                    client.kv.put(request).await.expect("a put");
                    acknowledged.store(number + 1, Ordering::Release);
                }
            });
        });
        wait::until("writes", BOUND, || match acknowledged.load(Ordering::Acquire) {
            few @ ..50 => Err(few.to_string()),
            _ => Ok(()),
        });
        let before = acknowledged.load(Ordering::Acquire);
        let backed_up = old.backup(1, &file, &[]);
        stop.store(true, Ordering::Release);
        assert_eq!(backed_up.0, Some(0), "{}", backed_up.1);
        (before, number(&backed_up.1, "revision"))
    });
    let (acknowledged, revision) = before;
    let expected = runtime().block_on(all(&endpoint, revision, false)).expect("the old cluster");
    let loaded = expected.kvs.iter().filter(|pair| pair.key.starts_with(b"load/")).count();
    assert!(loaded >= acknowledged, "{loaded} of {acknowledged} acknowledged writes");

    // What is there is not overwritten, unless that is asked for.
    let bytes = fs::read(&file).expect("the backup");
    let (code, said) = old.backup(0, &file, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--force"), "{said}");
    assert!(bytes == fs::read(&file).expect("the backup"), "it was overwritten");
    let other = old.dir().join("other");
    fs::write(&other, "something else").expect("a file");
    let (code, said) = old.backup(0, &other, &["--force"]);
    assert_eq!(code, Some(0), "{said}");
    (0..3).for_each(|number| old.kill(number));

    let begins_at = revision + BUMP;
    let mut three = Cluster::prepare_sized(3);
    begin(&mut three, &file);
    for number in 0..3 {
        expect_keys(&three, number, &expected, begins_at);
    }
    let at = three.nodes[0].client.clone();
    runtime().block_on(async {
        expect_lease(&at).await;
        expect_compacted(&at, revision, begins_at).await;
        let mut auth = AuthClient::new(channel(&at));
        let users = auth.user_list(AuthUserListRequest {}).await.expect("users");
        assert_eq!(users.into_inner().users, ["u"]);
        let now = all(&at, 0, false).await.expect("a read");
        assert_ne!(cluster_id(&now), cluster_id(&expected), "it is another cluster");
        let next = put(&at, "new".into(), 0).await.expect("a put");
        assert!(next > begins_at, "{next}");
    });

    // One that joins gets the state, and not only the log; and all know after a restart what they began with.
    let fourth = three.further_node("n4");
    let peer = three.nodes[fourth].peer.clone();
    let (code, said) = three.member(0, &["add", "n4", "--peer", &peer]);
    assert_eq!(code, Some(0), "{said}");
    three.start(fourth);
    three.wait_ready(fourth);
    three.await_vote(0, "n4");
    expect_keys(&three, fourth, &expected, begins_at + 1);
    for number in [0, fourth] {
        three.kill(number);
        three.start(number);
        three.wait_ready(number);
        expect_keys(&three, number, &expected, begins_at + 1);
    }
    drop(three);

    let mut one = Cluster::prepare_sized(1);
    begin(&mut one, &file);
    expect_keys(&one, 0, &expected, begins_at);
    one.kill(0);
    one.start_all();
    expect_keys(&one, 0, &expected, begins_at);
}

#[test]
fn what_does_not_fit_together_does_not_begin() {
    let mut old = Cluster::prepare_sized(1);
    old.start_all();
    let endpoint = old.nodes[0].client.clone();
    let file = |name: &str| old.dir().join(name);
    for name in ["one", "two"] {
        runtime().block_on(put(&endpoint, name.into(), 0)).expect("a put");
        let (code, said) = old.backup(0, &file(name), &[]);
        assert_eq!(code, Some(0), "{said}");
    }
    let refused = |cluster: &Cluster, from: &Path, args: &[&str], why: &str| {
        let (code, said) = cluster.restore(0, from, args);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused(&old, &file("one"), &[], "is not empty");

    let mut new = Cluster::prepare_sized(3);
    let mut damaged = fs::read(file("one")).expect("a backup");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(file("damaged"), &damaged).expect("a file");
    refused(&new, &file("damaged"), &[], "does not fit");
    damaged.truncate(middle);
    fs::write(file("short"), &damaged).expect("a file");
    refused(&new, &file("short"), &[], "truncated");
    fs::write(file("other"), "something else").expect("a file");
    refused(&new, &file("other"), &[], "neither a backup");
    refused(&new, &file("one"), &["--bump-revision", "9007199254740992"], "below 2^53");

    // What was left there begins nothing, until it is restored again.
    new.start(0);
    let (code, log) = new.wait_end(0);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("was not finished"), "{log}");

    for (number, name) in ["one", "one", "two"].into_iter().enumerate() {
        let (code, said) = new.restore(number, &file(name), &[]);
        assert_eq!(code, Some(0), "{said}");
        new.start(number);
    }
    let (code, log) = new.wait_end(2);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("do not begin with the same"), "{log}");
    new.kill(0);
    new.kill(1);
    fs::remove_dir_all(&new.nodes[2].data).expect("its directory can be deleted");
    let (code, said) = new.restore(2, &file("one"), &[]);
    assert_eq!(code, Some(0), "{said}");
    new.start_all();
    let now = runtime().block_on(all(&new.nodes[2].client, 0, false)).expect("a read");
    assert_eq!(now.count, 1, "{:?}", now.kvs);
}

#[test]
fn a_snapshot_of_etcd_becomes_a_cluster() {
    let test = "a snapshot of etcd becomes a cluster";
    let Some(programs) = programs::etcd(test) else { return };
    let peer = Cluster::etcd(programs.clone());
    let endpoint = peer.nodes[0].client.clone();
    runtime().block_on(write_some(&endpoint));
    let expected = runtime().block_on(all(&endpoint, 0, false)).expect("a read");
    let file = peer.dir().join("snapshot.db");
    let mut save = Command::new(programs.program("etcdctl"));
    save.env("ETCDCTL_API", "3").args(["--endpoints", &endpoint, "snapshot", "save"]).arg(&file);
    let saved = save.output().expect("etcdctl runs");
    assert!(saved.status.success(), "{saved:?}");

    let mut new = Cluster::prepare_sized(1);
    let mut damaged = fs::read(&file).expect("a snapshot");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let other = peer.dir().join("damaged.db");
    fs::write(&other, &damaged).expect("a file");
    let (code, said) = new.restore(0, &other, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("checksum"), "{said}");

    begin(&mut new, &file);
    let begins_at = expected.header.as_ref().expect("a header").revision + BUMP;
    expect_keys(&new, 0, &expected, begins_at);
    let at = new.nodes[0].client.clone();
    runtime().block_on(async {
        expect_lease(&at).await;
        let next = put(&at, "new".into(), 0).await.expect("a put");
        assert_eq!(next, begins_at + 1);
    });
}
