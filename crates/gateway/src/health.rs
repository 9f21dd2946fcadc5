//! gRPC's health protocol: every service is as healthy as the node is ready.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use quorate_api::etcdserverpb::{
    auth_server::SERVICE_NAME as AUTH, cluster_server::SERVICE_NAME as CLUSTER,
    kv_server::SERVICE_NAME as KV, maintenance_server::SERVICE_NAME as MAINTENANCE,
};
use quorate_api::quorate::v1::admin_server::SERVICE_NAME as ADMIN;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

use crate::backend::Backend;
use crate::closing::until_closed;
use crate::desk::Desk;
use crate::watch::Hub;

/// How often a watcher's stream looks whether the answer has changed.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The names that may be asked for; the empty one stands for the whole server.
const SERVICES: [&str; 6] = ["", KV, CLUSTER, MAINTENANCE, AUTH, ADMIN];

/// gRPC's health service over a backend.
pub(crate) struct HealthService<B> {
    hub: Arc<Hub<B>>,
    desk: Arc<Desk<B>>,
}

impl<B: Backend> HealthService<B> {
    pub(crate) fn new(hub: Arc<Hub<B>>) -> Self {
        let desk = Arc::clone(&hub.desk);
        Self { hub, desk }
    }
}

#[tonic::async_trait]
impl<B: Backend> health_server::Health for HealthService<B> {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match serving(&self.desk, &request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (desk, service) = (Arc::clone(&self.desk), request.into_inner().service);
        let changes = stream::unfold(None, move |last| {
            let (desk, service) = (Arc::clone(&desk), service.clone());
            async move {
                let mut now = serving(&desk, &service);
                while last == Some(now) {
                    tokio::time::sleep(WATCH_INTERVAL).await;
                    now = serving(&desk, &service);
                }
                Some((Ok(response(now)), Some(now)))
            }
        });
        Ok(Response::new(until_closed(changes, self.hub.closed())))
    }
}

fn serving<B: Backend>(desk: &Desk<B>, service: &str) -> ServingStatus {
    match (SERVICES.contains(&service), desk.backend.is_ready()) {
        (false, _) => ServingStatus::ServiceUnknown,
        (true, true) => ServingStatus::Serving,
        (true, false) => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}
