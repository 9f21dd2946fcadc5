//! The plain pages: what an operator's browser, a probe or Prometheus asks, over HTTP/1.
//!
//! | page | client port | metrics port | answer |
//! |---|---|---|---|
//! | `/metrics` | yes | yes | Prometheus text |
//! | `/health` | yes | yes | etcd's JSON; 503 unless a linearizable read works |
//! | `/version` | yes | no | etcd's JSON, and our own version |
//! | `/livez` | no | yes | 200 while the process can answer |
//! | `/readyz` | no | yes | 200 while the node can serve clients, else 503 |

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;

use crate::backend::{Backend, Consistency};
use crate::desk::{Desk, ETCD_CLUSTER_VERSION, ETCD_VERSION};

/// Renders the metrics of the process in Prometheus' text format.
pub type MetricsPage = Arc<dyn Fn() -> String + Send + Sync>;

/// How long `/health` waits for its read: shorter than the timeouts of probes, so that they see why.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Which port a request came in by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Port {
    /// The port that speaks gRPC.
    Client,
    /// The port of probes and scrapers.
    Metrics,
}

/// The pages of one gateway.
pub(crate) struct Pages<B> {
    desk: Arc<Desk<B>>,
    metrics_page: MetricsPage,
}

impl<B: Backend> Pages<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>, metrics_page: MetricsPage) -> Self {
        Self { desk, metrics_page }
    }

    /// Answers one request; its body is not read.
    pub(crate) async fn answer<T>(
        &self,
        port: Port,
        request: &Request<T>,
    ) -> Response<Full<Bytes>> {
        let served_here = match request.uri().path() {
            "/metrics" | "/health" => true,
            "/version" => port == Port::Client,
            "/livez" | "/readyz" => port == Port::Metrics,
            _ => false,
        };
        if !served_here {
            return page(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return refusal;
        }
        match request.uri().path() {
            "/metrics" => page(StatusCode::OK, "text/plain; version=0.0.4", (self.metrics_page)()),
            "/health" => self.health().await,
            "/version" => page(StatusCode::OK, JSON, version()),
            "/readyz" if !self.desk.backend.is_ready() => {
                page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n")
            }
            _ => page(StatusCode::OK, TEXT, "ok\n"),
        }
    }

    /// etcd's health check: a leader is known and a linearizable read comes back.
    async fn health(&self) -> Response<Full<Bytes>> {
        if self.desk.backend.node_status().leader.is_none() {
            return unhealthy("RAFT NO LEADER");
        }
        let read = self.desk.revision(Consistency::Linearizable);
        match tokio::time::timeout(HEALTH_TIMEOUT, read).await {
            Ok(Ok(_)) => page(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#),
            Ok(Err(error)) => unhealthy(&format!("RANGE ERROR:{error}")),
            Err(_) => unhealthy("RANGE ERROR:timed out"),
        }
    }
}

/// `reason` holds nothing that JSON would have to escape.
fn unhealthy(reason: &str) -> Response<Full<Bytes>> {
    let body = format!(r#"{{"health":"false","reason":"{reason}"}}"#);
    page(StatusCode::SERVICE_UNAVAILABLE, TEXT, body)
}

fn version() -> String {
    format!(
        r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_CLUSTER_VERSION}","quorate":"{}"}}"#,
        env!("CARGO_PKG_VERSION")
    )
}

fn page(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
