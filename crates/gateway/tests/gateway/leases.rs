//! Leases: the same requests to a real etcd and to the gateway, and what the gateway does by itself.
//!
//! The time of leases stands still behind the gateway here: that they end, and never early, is shown by the
//! tests of the store and of processes.

use std::fmt::Debug;

use futures::StreamExt;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp,
    ResponseHeader, TxnRequest, request_op::Request,
};
use quorate_gateway::BackendError;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::peer::Etcd;
use crate::support::Door;

/// The clients of one server.
struct Server {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
}

impl Server {
    fn new(channel: Channel) -> Self {
        Self { kv: KvClient::new(channel.clone()), lease: LeaseClient::new(channel) }
    }

    async fn keep_alive(&mut self, ids: &[i64]) -> Result<Vec<(i64, i64)>, Status> {
        let ids = ids.to_vec();
        let requests =
            futures::stream::iter(ids.into_iter().map(|id| LeaseKeepAliveRequest { id }));
        let answers = self.lease.lease_keep_alive(requests).await?.into_inner();
        let answers: Vec<_> = answers.collect().await;
        answers.into_iter().map(|answer| answer.map(|kept| (kept.id, kept.ttl))).collect()
    }
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

fn put(key: &'static str, lease: i64) -> PutRequest {
    PutRequest { key: key.into(), value: "v".into(), lease, ..PutRequest::default() }
}

/// What one server says to everything that is asked here.
async fn session(server: &mut Server) -> Vec<String> {
    let Server { kv, lease } = &mut *server;
    let mut said = Vec::new();
    for (id, ttl) in [(7, 60), (7, 60), (8, 1), (9, 0), (10, -5), (-3, 30), (11, 9_000_000_000)] {
        let grant = LeaseGrantRequest { id, ttl };
        said.push(told(lease.lease_grant(grant).await, |r| &mut r.header));
    }
    // Before the shortest of them can end.
    for id in [8, 9, 10] {
        let revoked = lease.lease_revoke(LeaseRevokeRequest { id }).await;
        said.push(told(revoked, |r| &mut r.header));
    }
    let too_long = LeaseGrantRequest { id: 12, ttl: 9_000_000_001 };
    said.push(told(lease.lease_grant(too_long).await, |r| &mut r.header));
    for request in [
        put("a", 7),
        put("b", 7),
        put("c", 7),
        put("d", -3),
        put("x", 99),
        PutRequest { ignore_lease: true, ..put("b", 0) },
        PutRequest { ignore_lease: true, ..put("b", 7) },
        put("c", 0),
    ] {
        said.push(told(kv.put(request).await, |r| &mut r.header));
    }
    let lost = RequestOp { request: Some(Request::RequestPut(put("y", 99))) };
    let txn =
        TxnRequest { compare: Vec::<Compare>::new(), success: vec![lost], failure: Vec::new() };
    said.push(told(kv.txn(txn).await, |r| &mut r.header));
    for (id, keys) in
        [(7, true), (7, false), (11, true), (8, true), (99, true), (99, false), (0, false)]
    {
        let asked = lease.lease_time_to_live(LeaseTimeToLiveRequest { id, keys }).await;
        said.push(told(asked, |r| {
            r.keys.sort();
            // How long this took is not compared.
            r.ttl = r.ttl.min(0);
            &mut r.header
        }));
    }
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    said.push(told(kv.range(all.clone()).await, |r| &mut r.header));
    let gone = DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() };
    said.push(told(kv.delete_range(gone).await, |r| &mut r.header));
    for id in [7, 7, 8, -3, 0, 99] {
        let revoked = lease.lease_revoke(LeaseRevokeRequest { id }).await;
        said.push(told(revoked, |r| &mut r.header));
        said.push(told(kv.range(all.clone()).await, |r| &mut r.header));
    }
    said.push(told(lease.lease_leases(LeaseLeasesRequest {}).await, |r| {
        r.leases.sort_by_key(|lease| lease.id);
        &mut r.header
    }));
    said.push(format!("{:?}", server.keep_alive(&[11, 7, 99, 10, 11]).await));
    said
}

#[tokio::test]
async fn leases_are_those_of_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let theirs = session(&mut Server::new(etcd.channel())).await;
    let ours = session(&mut Server::new(door.channel().await)).await;
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "answer {at}");
    }
}

#[tokio::test]
async fn keep_alives_of_a_stream_are_answered_in_order() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    for id in 1..=50 {
        server.lease.lease_grant(LeaseGrantRequest { id, ttl: 60 }).await.expect("a lease");
    }
    let asked: Vec<i64> = (1..=1_000).map(|number| number % 60 + 1).collect();
    let ttl = |id: &i64| (*id, if *id <= 50 { 60 } else { 0 });
    let answers = server.keep_alive(&asked).await.expect("answers");
    assert_eq!(answers, asked.iter().map(ttl).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_id_that_is_not_chosen_is_drawn() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    let mut ids = Vec::new();
    for _ in 0..20 {
        let granted = server.lease.lease_grant(LeaseGrantRequest { id: 0, ttl: 60 }).await;
        ids.push(granted.expect("a lease").into_inner().id);
    }
    assert!(ids.iter().all(|id| (1..1 << 53).contains(id)), "{ids:?}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 20);
}

#[tokio::test]
async fn a_keep_alive_without_an_answer_ends_its_stream_with_the_reason() {
    let door = Door::open().await;
    let mut server = Server::new(door.channel().await);
    door.backend.fail_with(Some(BackendError::NoLeader));
    let status = server.keep_alive(&[1, 2]).await.expect_err("nobody leads");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
}
