//! Requests that must be refused, with etcd's own codes and texts.

use quorate_api::etcdserverpb::alarm_request::AlarmAction;
use quorate_api::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use quorate_tests::client::{self, Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::wait;
use tonic::{Code, Status};

use super::{SERVE_BOUND, assert_serves};

const EMPTY_KEY: &str = "etcdserver: key is not provided";

/// Bytes of a value above the request limit of 1.5 MiB, and below what the protocol takes.
const ABOVE_REQUEST_LIMIT: usize = 1_700_000;

/// Bytes of a value above what the protocol takes, 2 MiB.
const ABOVE_MESSAGE_LIMIT: usize = 3_000_000;

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

/// A quota that is soon reached, in bytes.
const QUOTA_BYTES: i64 = 8 << 20;

/// Bytes of a value of which a hundred and some fill the quota.
const QUOTA_STEP_BYTES: usize = 64 << 10;

/// One above the operations of a transaction.
const ABOVE_TXN_LIMIT: usize = 129;

#[test]
fn requests_are_refused_with_their_reason_and_change_nothing() {
    let Some(cluster) = Cluster::quorate("refused requests") else { return };
    let before = cluster.revision();
    runtime().block_on(async {
        let mut client = Client::new(&cluster.nodes[0].client);
        empty_keys(&mut client).await;
        too_large(&mut client).await;
        transactions(&mut client).await;
        revisions(&mut client, before).await;
        if cluster.is_quorate() {
            // This one would end the peer's process.
            let range = RangeRequest { sort_target: 99, ..range("a") };
            let refused = client.kv.range(range).await.map(drop);
            expect(refused, Code::InvalidArgument, "etcdserver: invalid sort option");
        }
        let inverted = RangeRequest { range_end: "a".into(), ..range("b") };
        let empty = client.kv.range(inverted).await.expect("no error").into_inner();
        assert_eq!((empty.kvs.len(), empty.count), (0, 0));
    });
    assert_eq!(cluster.revision(), before, "what is refused takes no revision");
    assert_serves(&cluster);
}

#[test]
fn above_its_quota_a_node_takes_what_frees_space_and_nothing_that_grows() {
    let quota = ["--quota-backend-bytes", &QUOTA_BYTES.to_string()];
    let cluster = Cluster::quorate_with("writes above the quota", &quota);
    let Some(cluster) = cluster else { return };
    let endpoint = &cluster.nodes[0].client;
    let refused = wait::until("a put is refused", SERVE_BOUND, || {
        put_filler(endpoint).err().ok_or_else(|| "there is room".to_owned())
    });
    expect(Err(refused), Code::ResourceExhausted, NO_SPACE);
    runtime().block_on(async {
        let mut client = Client::new(endpoint);
        let raised = alarms(&mut client).await;
        assert!(!raised.is_empty(), "an operator can see why");
        assert!(raised.iter().all(|alarm| alarm.alarm == AlarmType::Nospace as i32), "{raised:?}");

        let found = client.kv.range(range("filler")).await.expect("reads go on").into_inner();
        assert_eq!(found.kvs.len(), 1);
        let delete = DeleteRangeRequest { key: "filler".into(), ..DeleteRangeRequest::default() };
        let deleted = client.kv.delete_range(delete).await.expect("deletes go on").into_inner();
        assert_eq!(deleted.deleted, 1);
        let revision = deleted.header.expect("a header").revision;
        let compact = CompactionRequest { revision, physical: true };
        client.kv.compact(compact).await.expect("compactions go on");
    });
    make_room(&cluster);
    let endpoint = &cluster.nodes[0].client;
    // Room alone is not enough: somebody has to say that the cause is gone.
    expect(put_filler(endpoint), Code::ResourceExhausted, NO_SPACE);
    runtime().block_on(async {
        let mut client = Client::new(endpoint);
        for AlarmMember { member_id, alarm } in alarms(&mut client).await {
            let action = AlarmAction::Deactivate as i32;
            let disarm = AlarmRequest { action, member_id, alarm };
            client.maintenance.alarm(disarm).await.expect("it can be disarmed");
        }
        assert_eq!(alarms(&mut client).await, []);
    });
    put_filler(endpoint).expect("there is room");
    assert_serves(&cluster);
}

/// Has all nodes give back the room of what was deleted and compacted, which each removes in its own time.
fn make_room(cluster: &Cluster) {
    for node in &cluster.nodes {
        wait::until(&format!("{} has room again", node.name), SERVE_BOUND, || {
            runtime().block_on(async {
                let mut client = Client::new(&node.client);
                client.maintenance.defragment(DefragmentRequest {}).await.expect("it is done");
            });
            let size = client::status(&node.client).map_err(|status| status.to_string())?.db_size;
            if size < QUOTA_BYTES / 2 { Ok(()) } else { Err(format!("{size} bytes")) }
        });
    }
}

fn put_filler(endpoint: &str) -> Result<(), Status> {
    let put = PutRequest { key: "filler".into(), ..put("", QUOTA_STEP_BYTES) };
    runtime().block_on(async { Client::new(endpoint).kv.put(put).await }).map(drop)
}

/// The alarms that are raised.
async fn alarms(client: &mut Client) -> Vec<AlarmMember> {
    let get = AlarmRequest { action: AlarmAction::Get as i32, ..AlarmRequest::default() };
    client.maintenance.alarm(get).await.expect("alarms can be listed").into_inner().alarms
}

async fn empty_keys(client: &mut Client) {
    let refused = client.kv.put(put("", 1)).await.map(drop);
    expect(refused, Code::InvalidArgument, EMPTY_KEY);
    let refused = client.kv.range(range("")).await.map(drop);
    expect(refused, Code::InvalidArgument, EMPTY_KEY);
    let refused = client.kv.delete_range(DeleteRangeRequest::default()).await.map(drop);
    expect(refused, Code::InvalidArgument, EMPTY_KEY);
    let refused = client.kv.txn(txn(vec![put("", 1)])).await.map(drop);
    expect(refused, Code::InvalidArgument, EMPTY_KEY);
}

async fn too_large(client: &mut Client) {
    let refused = client.kv.put(put("large", ABOVE_REQUEST_LIMIT)).await.map(drop);
    expect(refused, Code::InvalidArgument, "etcdserver: request is too large");
    let refused = client.kv.txn(txn(vec![put("large", ABOVE_REQUEST_LIMIT)])).await.map(drop);
    expect(refused, Code::InvalidArgument, "etcdserver: request is too large");
    let refused = client.kv.put(put("large", ABOVE_MESSAGE_LIMIT)).await.map(drop);
    let status = refused.expect_err("above what the protocol takes");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

async fn transactions(client: &mut Client) {
    let many = (0..ABOVE_TXN_LIMIT).map(|number| put(&format!("k{number}"), 1)).collect();
    let refused = client.kv.txn(txn(many)).await.map(drop);
    expect(refused, Code::InvalidArgument, "etcdserver: too many operations in txn request");
    let twice = txn(vec![put("same", 1), put("same", 2)]);
    let refused = client.kv.txn(twice).await.map(drop);
    expect(refused, Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
}

async fn revisions(client: &mut Client, now: i64) {
    const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
    const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
    let at = |revision| RangeRequest { revision, ..range("a") };
    let compact = |revision| CompactionRequest { revision, physical: false };
    let refused = client.kv.range(at(now + 1)).await.map(drop);
    expect(refused, Code::OutOfRange, FUTURE);
    let refused = client.kv.compact(compact(now + 1)).await.map(drop);
    expect(refused, Code::OutOfRange, FUTURE);
    client.kv.compact(compact(now)).await.expect("the current revision can be compacted");
    let refused = client.kv.compact(compact(now)).await.map(drop);
    expect(refused, Code::OutOfRange, COMPACTED);
    // A fresh store is at revision 1, and 0 means now: nothing older than the compaction can be named.
    if now > 1 {
        let refused = client.kv.range(at(now - 1)).await.map(drop);
        expect(refused, Code::OutOfRange, COMPACTED);
    }
    client.kv.range(at(now)).await.expect("the compacted revision itself can be read");
}

fn expect(outcome: Result<(), Status>, code: Code, text: &str) {
    let status = outcome.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}

fn range(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

fn put(key: &str, value_size: usize) -> PutRequest {
    let value = vec![b'v'; value_size].into();
    PutRequest { key: key.to_owned().into(), value, ..PutRequest::default() }
}

fn txn(puts: Vec<PutRequest>) -> TxnRequest {
    let operation = |put| RequestOp { request: Some(request_op::Request::RequestPut(put)) };
    TxnRequest { success: puts.into_iter().map(operation).collect(), ..TxnRequest::default() }
}
