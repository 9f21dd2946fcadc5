//! From a request of HTTP/2 to the service that answers it.
//!
//! The life of a call: its path names a method ([`GatewayMetrics::begin`]); a client that requires a
//! leader is refused if there is none; KV calls go straight to their service, all others through a
//! router; what the transport refused is put into etcd's words ([`in_etcd_words`]); the code is counted.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use quorate_api::FILE_DESCRIPTORS;
use quorate_api::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
    lease_server::LeaseServer, maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use quorate_api::quorate::v1::admin_server::AdminServer;
use quorate_api::v3electionpb::election_server::ElectionServer;
use quorate_api::v3lockpb::lock_server::LockServer;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, Service, StdError};
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;

use crate::admin::AdminService;
use crate::auth::audit;
use crate::auth::caller::{Identity, Peer};
use crate::auth::guard::names_token;
use crate::auth::service::AuthService;
use crate::auth::table::{Requirement, requirement};
use crate::backend::Backend;
use crate::cluster::ClusterService;
use crate::desk::Desk;
use crate::election::ElectionService;
use crate::error::{ApiError, message_too_large};
use crate::health::HealthService;
use crate::kv::KvService;
use crate::lease::LeaseService;
use crate::lock::LockService;
use crate::maintenance::MaintenanceService;
use crate::metrics::GatewayMetrics;
use crate::ownership::Queues;
use crate::watch::WatchService;

/// Metadata by which a client says that it would rather be refused than served by a node that knows of
/// no leader.
pub(crate) const REQUIRE_LEADER: &str = "hasleader";

/// Everything that answers calls; shared by all connections.
pub(crate) struct Door<B> {
    desk: Arc<Desk<B>>,
    metrics: Arc<GatewayMetrics>,
    kv: KvServer<KvService<B>>,
    others: Routes,
}

impl<B: Backend> Door<B> {
    pub(crate) fn new(
        desk: Arc<Desk<B>>,
        metrics: Arc<GatewayMetrics>,
        queues: Arc<Queues<B>>,
    ) -> Self {
        let bytes_max = desk.config.message_bytes_max();
        let kv =
            KvServer::new(KvService::new(Arc::clone(&desk))).max_decoding_message_size(bytes_max);
        let hub = Arc::clone(&queues.hub);
        let lock = LockServer::new(LockService::new(Arc::clone(&queues)));
        let election = ElectionServer::new(ElectionService::new(queues));
        let mut others = Routes::builder();
        others
            .add_service(
                WatchServer::new(WatchService::new(Arc::clone(&hub)))
                    .max_decoding_message_size(bytes_max),
            )
            .add_service(ClusterServer::new(ClusterService::new(Arc::clone(&desk))))
            .add_service(MaintenanceServer::new(MaintenanceService::new(Arc::clone(&desk))))
            .add_service(AuthServer::new(AuthService::new(Arc::clone(&desk))))
            .add_service(LeaseServer::new(LeaseService::new(Arc::clone(&hub))))
            .add_service(lock.max_decoding_message_size(bytes_max))
            .add_service(election.max_decoding_message_size(bytes_max))
            .add_service(AdminServer::new(AdminService::new(Arc::clone(&desk))))
            .add_service(HealthServer::new(HealthService::new(Arc::clone(&hub))))
            .add_service(
                reflection().build_v1().expect("the descriptors that this build made are sound"),
            )
            .add_service(
                reflection()
                    .build_v1alpha()
                    .expect("the descriptors that this build made are sound"),
            );
        Self { desk, metrics, kv, others: others.routes().prepare() }
    }

    /// Answers one call.
    pub(crate) async fn answer<R>(
        &self,
        mut request: Request<R>,
        peer: Peer,
    ) -> Result<Response<Body>, Infallible>
    where
        R: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
    {
        let uri = request.uri().clone();
        let path = uri.path();
        let is_kv = path.starts_with("/etcdserverpb.KV/");
        let call = self.metrics.begin(path);
        if self.lacks_required_leader(&request) {
            let refusal = Status::from(ApiError::NoLeader);
            call.into_iter().for_each(|call| call.finish(refusal.code()));
            return Ok(refusal.into_http());
        }
        if is_kv && self.desk.backend.auth_is_off() && !names_token(request.headers()) {
            let (response, code) = in_etcd_words(self.kv.clone().call(request).await?);
            // Users may count by now: this node's replica is behind, and others refused.
            if code != Code::Ok {
                self.audit(path, None, &peer, &response);
            }
            call.into_iter().for_each(|call| call.finish(code));
            return Ok(response);
        }
        let identity = match self.admit(path, &mut request, peer.clone()).await {
            Ok(identity) => identity,
            Err((identity, refusal)) => {
                self.metrics.denied_total.increment(1);
                audit::denied(path, identity.as_ref(), &peer, refusal.text());
                let refusal = Status::from(refusal);
                call.into_iter().for_each(|call| call.finish(refusal.code()));
                return Ok(refusal.into_http());
            }
        };
        let response = match is_kv {
            true => self.kv.clone().call(request).await?,
            false => self.others.clone().call(request).await?,
        };
        let (response, code) = in_etcd_words(response);
        self.audit(path, identity.as_ref(), &peer, &response);
        call.into_iter().for_each(|call| call.finish(code));
        Ok(response)
    }

    /// Finds out who makes the call, for the service that answers it.
    async fn admit<R>(
        &self,
        path: &str,
        request: &mut Request<R>,
        peer: Peer,
    ) -> Result<Option<Identity>, (Option<Identity>, ApiError)> {
        let is_off = self.desk.backend.auth_is_off() && !names_token(request.headers());
        // Where no replica looks again, one is asked whether users count.
        let identity = match is_off && requirement(path) != Some(Requirement::Root) {
            true => None,
            false => self.desk.admit(path, request.headers(), &peer).await?,
        };
        request.extensions_mut().insert(peer);
        if let Some(identity) = &identity {
            request.extensions_mut().insert(identity.clone());
        }
        Ok(identity)
    }

    /// Tells of what was refused, and of what changes users or is root's. Logins tell of themselves.
    fn audit(&self, path: &str, who: Option<&Identity>, peer: &Peer, response: &Response<Body>) {
        let status = Status::from_header_map(response.headers());
        let denials = [ApiError::PermissionDenied, ApiError::UserEmpty, ApiError::AuthOldRevision];
        let of_users = path.starts_with("/etcdserverpb.Auth/") && !path.ends_with("/Authenticate");
        match status.filter(|status| status.code() != Code::Ok) {
            Some(status) if denials.iter().any(|denial| denial.text() == status.message()) => {
                self.metrics.denied_total.increment(1);
                audit::denied(path, who, peer, status.message());
            }
            Some(status) if of_users => audit::denied(path, who, peer, status.message()),
            None if of_users || requirement(path) == Some(Requirement::Root) => {
                audit::allowed(path, who, peer);
            }
            Some(_) | None => {}
        }
    }

    fn lacks_required_leader<R>(&self, request: &Request<R>) -> bool {
        request.headers().get(REQUIRE_LEADER).is_some_and(|value| value == "true")
            && self.desk.backend.node_status().leader.is_none()
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// The response with the code that it carries. A call that fails before its first message carries the
/// status in its head. The only `OutOfRange` that is not of our table is the message decoder's for a
/// message above its limit, where etcd's library says `ResourceExhausted`.
fn in_etcd_words(response: Response<Body>) -> (Response<Body>, Code) {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return (response, Code::Ok);
    };
    if status.code() != Code::OutOfRange || status.message().starts_with("etcdserver: ") {
        return (response, status.code());
    }
    let mut sizes = status.message().split(' ').filter_map(|word| word.parse().ok());
    let (found, limit) = (sizes.next().unwrap_or(0), sizes.next().unwrap_or(0));
    let refusal = message_too_large(found, limit);
    let code = refusal.code();
    (refusal.into_http(), code)
}
