//! From a request of HTTP/2 to the service that answers it.
//!
//! The life of a call: its path names a method ([`GatewayMetrics::begin`]); a client that requires a
//! leader is refused if there is none; KV calls go straight to their service, all others through a
//! router; what the transport refused is put into etcd's words ([`in_etcd_words`]); the code is counted.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use quorate_api::FILE_DESCRIPTORS;
use quorate_api::etcdserverpb::{
    cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer,
};
use quorate_api::quorate::v1::admin_server::AdminServer;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;

use crate::admin::AdminService;
use crate::backend::Backend;
use crate::cluster::ClusterService;
use crate::desk::Desk;
use crate::error::{ApiError, message_too_large};
use crate::health::HealthService;
use crate::kv::KvService;
use crate::lease::LeaseService;
use crate::maintenance::MaintenanceService;
use crate::metrics::GatewayMetrics;

/// Metadata by which a client says that it would rather be refused than served by a node that knows of
/// no leader.
const REQUIRE_LEADER: &str = "hasleader";

/// Everything that answers calls; shared by all connections.
pub(crate) struct Door<B> {
    desk: Arc<Desk<B>>,
    metrics: Arc<GatewayMetrics>,
    kv: KvServer<KvService<B>>,
    others: Routes,
}

impl<B: Backend> Door<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>, metrics: Arc<GatewayMetrics>) -> Self {
        let bytes_max = desk.config.message_bytes_max();
        let kv =
            KvServer::new(KvService::new(Arc::clone(&desk))).max_decoding_message_size(bytes_max);
        let mut others = Routes::builder();
        others
            .add_service(ClusterServer::new(ClusterService::new(Arc::clone(&desk))))
            .add_service(MaintenanceServer::new(MaintenanceService::new(Arc::clone(&desk))))
            .add_service(LeaseServer::new(LeaseService::new(Arc::clone(&desk))))
            .add_service(AdminServer::new(AdminService::new(Arc::clone(&desk))))
            .add_service(HealthServer::new(HealthService::new(Arc::clone(&desk))))
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
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path();
        let is_kv = path.starts_with("/etcdserverpb.KV/");
        let call = self.metrics.begin(path);
        if self.lacks_required_leader(&request) {
            let refusal = Status::from(ApiError::NoLeader);
            call.into_iter().for_each(|call| call.finish(refusal.code()));
            return Ok(refusal.into_http());
        }
        let response = match is_kv {
            true => self.kv.clone().call(request).await?,
            false => self.others.clone().call(request).await?,
        };
        let (response, code) = in_etcd_words(response);
        call.into_iter().for_each(|call| call.finish(code));
        Ok(response)
    }

    fn lacks_required_leader(&self, request: &Request<Incoming>) -> bool {
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
