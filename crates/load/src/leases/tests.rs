//! Runs against a server in this process that keeps leases, or does not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_api::etcdserverpb::lease_server::{Lease, LeaseServer};
use quorate_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::{Report, measure};
use crate::args::{Leases, Target};
use crate::drive::runtime;

/// How the server misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Defect {
    None,
    /// The lease number 3 is gone when it is to be kept alive.
    Loses,
    /// It is not there at the end, and nobody has said so.
    Forgets,
    /// A stream ends with an error after so many answers.
    Breaks(usize),
    /// It grants no lease number 3.
    Refuses,
}

struct Server {
    defect: Defect,
    /// How many times each was kept alive.
    leases: Arc<Mutex<BTreeMap<i64, u32>>>,
}

#[tonic::async_trait]
impl Lease for Server {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let mut leases = self.leases.lock().expect("no panic");
        let id = leases.keys().last().map_or(1, |last| last + 1);
        if self.defect == Defect::Refuses && id == 3 {
            leases.insert(0, 0);
            leases.insert(1_000, 0);
            return Err(Status::resource_exhausted("no room"));
        }
        leases.insert(id, 0);
        let ttl = request.into_inner().ttl;
        Ok(Response::new(LeaseGrantResponse { id, ttl, ..LeaseGrantResponse::default() }))
    }

    type LeaseKeepAliveStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (defect, leases) = (self.defect, Arc::clone(&self.leases));
        let mut answered = 0;
        let answers = request.into_inner().map(move |request| {
            answered += 1;
            if matches!(defect, Defect::Breaks(after) if answered > after) {
                return Err(Status::unavailable("broken"));
            }
            let id = request?.id;
            let mut leases = leases.lock().expect("no panic");
            let kept = leases.get_mut(&id).expect("it was granted");
            *kept += 1;
            let ttl = if defect == Defect::Loses && id == 3 && *kept == 1 { 0 } else { 1 };
            Ok(LeaseKeepAliveResponse { header: None, id, ttl })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self.leases.lock().expect("no panic");
        let there = leases.keys().filter(|id| self.defect != Defect::Forgets || **id != 3);
        let leases = there.map(|id| LeaseStatus { id: *id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: None, leases }))
    }

    async fn lease_revoke(
        &self,
        _: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// 40 leases on 4 streams, each kept alive three times in a second.
fn run(defect: Defect) -> Report {
    runtime().expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = listener.local_addr().expect("bound").to_string();
        let server = LeaseServer::new(Server { defect, leases: Arc::default() });
        let serving = tonic::transport::Server::builder().add_service(server);
        let serving = tokio::spawn(serving.serve_with_incoming(TcpIncoming::from(listener)));
        let args = Leases {
            target: Target { endpoints: vec![endpoint], timeout: Duration::from_secs(10) },
            leases: 40,
            ttl: 1,
            clients: 4,
            streams: 4,
            connections: 0,
            duration: Duration::from_millis(1_500),
            pids: vec![std::process::id()],
            json: false,
        };
        let report = measure(&args).await.expect("it is measured");
        serving.abort();
        report
    })
}

#[test]
fn leases_that_are_kept_alive_are_counted_and_none_is_lost() {
    let report = run(Defect::None);
    assert!(report.is_clean() && report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!((report.granted, report.grants.answered, report.unanswered), (40, 40, 0));
    // Each was due three times at least; a machine that stalls sends them later, and counts them all the same.
    assert!(report.keep_alives.answered >= 40, "{}", report.keep_alives.answered);
}

#[test]
fn a_lease_that_is_gone_when_it_is_kept_alive_fails_the_run() {
    let report = run(Defect::Loses);
    assert_eq!((report.lost, report.missing, report.is_clean()), (1, 0, false));
}

#[test]
fn a_lease_that_is_missing_at_the_end_fails_the_run() {
    let report = run(Defect::Forgets);
    assert_eq!((report.lost, report.missing, report.is_clean()), (0, 1, false));
}

#[test]
fn a_lease_that_is_not_granted_fails_the_run() {
    let report = run(Defect::Refuses);
    assert_eq!((report.granted, report.lost, report.is_clean()), (39, 0, false));
    assert_eq!(report.errors["ResourceExhausted: no room"], 1);
}

#[test]
fn a_stream_that_breaks_is_opened_again_and_what_it_was_asked_is_asked_again() {
    let report = run(Defect::Breaks(5));
    assert_eq!((report.granted, report.lost, report.missing), (40, 0, 0));
    assert!(report.is_clean());
    assert!(report.errors["Unavailable: broken"] > 1, "{:?}", report.errors);
    assert!(report.keep_alives.answered > 20, "{}", report.keep_alives.answered);
}
