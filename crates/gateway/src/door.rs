//! From a request of HTTP/2 to the service that answers it.
//!
//! The life of a call: its path names a method ([`Calls::begin`]); a client that requires a
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
use crate::auth::table::{COMPACT, RANGE_STREAM, Requirement, is_of_users, is_roots, requirement};
use crate::backend::Backend;
use crate::calls::{Call, Calls};
use crate::cluster::ClusterService;
use crate::desk::Desk;
use crate::election::ElectionService;
use crate::error::{self, ApiError};
use crate::health::HealthService;
use crate::kv::KvService;
use crate::lease::LeaseService;
use crate::lock::LockService;
use crate::maintenance::MaintenanceService;
use crate::ownership::Queues;
use crate::watch::WatchService;

/// Metadata by which a client says that it would rather be refused than served by a node that knows of
/// no leader.
pub(crate) const REQUIRE_LEADER: &str = "hasleader";

/// Everything that answers calls; shared by all connections.
pub(crate) struct Door<B> {
    desk: Arc<Desk<B>>,
    calls: Arc<Calls>,
    kv: KvServer<KvService<B>>,
    others: Routes,
}

impl<B: Backend> Door<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>, calls: Arc<Calls>, queues: Arc<Queues<B>>) -> Self {
        // Of all services alike: each of them falls back to its library's own limit otherwise.
        let bytes_max = desk.config.message_bytes_max();
        let hub = Arc::clone(&queues.hub);
        let kv = KvServer::new(KvService::new(Arc::clone(&desk)));
        let watch = WatchServer::new(WatchService::new(Arc::clone(&hub)));
        let cluster = ClusterServer::new(ClusterService::new(Arc::clone(&desk)));
        let maintenance = MaintenanceServer::new(MaintenanceService::new(Arc::clone(&desk)));
        let auth = AuthServer::new(AuthService::new(Arc::clone(&desk)));
        let lease = LeaseServer::new(LeaseService::new(Arc::clone(&hub)));
        let lock = LockServer::new(LockService::new(Arc::clone(&queues)));
        let election = ElectionServer::new(ElectionService::new(queues));
        let admin = AdminServer::new(AdminService::new(Arc::clone(&desk)));
        let health = HealthServer::new(HealthService::new(hub));
        let sound = "the descriptors that this build made are sound";
        let reflection_v1 = reflection().build_v1().expect(sound);
        let reflection_v1alpha = reflection().build_v1alpha().expect(sound);
        let kv = kv.max_decoding_message_size(bytes_max);
        let mut others = Routes::builder();
        others
            .add_service(watch.max_decoding_message_size(bytes_max))
            .add_service(cluster.max_decoding_message_size(bytes_max))
            .add_service(maintenance.max_decoding_message_size(bytes_max))
            .add_service(auth.max_decoding_message_size(bytes_max))
            .add_service(lease.max_decoding_message_size(bytes_max))
            .add_service(lock.max_decoding_message_size(bytes_max))
            .add_service(election.max_decoding_message_size(bytes_max))
            .add_service(admin.max_decoding_message_size(bytes_max))
            .add_service(health.max_decoding_message_size(bytes_max))
            .add_service(reflection_v1.max_decoding_message_size(bytes_max))
            .add_service(reflection_v1alpha.max_decoding_message_size(bytes_max));
        Self { desk, calls, kv, others: others.routes().prepare() }
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
        let call = self.calls.begin(path);
        if self.lacks_required_leader(&request) {
            let refusal = Status::from(ApiError::NoLeader);
            call.into_iter().for_each(|call| call.finish(refusal.code()));
            return Ok(refusal.into_http());
        }
        if is_kv && self.desk.backend.auth_is_off() && !names_token(request.headers()) {
            if path == RANGE_STREAM {
                request.extensions_mut().insert(peer.clone());
            }
            let (response, code) = in_etcd_words(self.kv.clone().call(request).await?);
            // Users may count by now: this node's replica is behind, and others refused.
            if code != Code::Ok || path == COMPACT {
                self.audit(path, None, &peer, &response);
            }
            return Ok(counted(call, response, code));
        }
        let identity = match self.admit(path, &mut request, peer.clone()).await {
            Ok(identity) => identity,
            Err((identity, refusal)) => {
                // Otherwise nobody could be asked.
                if audit::is_denial(refusal) {
                    let audit = &self.desk.guard.audit;
                    audit.denied(path, identity.as_ref(), &peer, refusal.text());
                }
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
        Ok(counted(call, response, code))
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

    /// Tells of what was refused, and of what changes users or is root's. Logins, watches, changes of alarms, and
    /// streams that are refused after their head tell of themselves.
    fn audit(&self, path: &str, who: Option<&Identity>, peer: &Peer, response: &Response<Body>) {
        let status = Status::from_header_map(response.headers());
        match status.filter(|status| status.code() != Code::Ok) {
            Some(status) if audit::tells_denial(&status) => {
                self.desk.guard.audit.denied(path, who, peer, status.message());
            }
            Some(status) if is_of_users(path) => audit::denied(path, who, peer, status.message()),
            None if is_of_users(path) || is_roots(path) => audit::allowed(path, who, peer),
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

fn counted(call: Option<Call>, response: Response<Body>, code: Code) -> Response<Body> {
    match call {
        Some(call) => call.answered(response, code),
        None => response,
    }
}

/// The response with the code that it carries. A call that fails before its first message carries the
/// status in its head.
fn in_etcd_words(response: Response<Body>) -> (Response<Body>, Code) {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return (response, Code::Ok);
    };
    let found = status.code();
    let status = error::in_etcd_words(status);
    let code = status.code();
    (if code == found { response } else { status.into_http() }, code)
}
