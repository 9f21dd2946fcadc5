//! The plain pages: what an operator's browser, a probe or Prometheus asks, over HTTP/1.
//!
//! The client port also answers `POST /v3/...`, which [`json`](crate::json) has. Requests come over HTTP/1, and with
//! HTTP/2 to the client port as everything that is not gRPC.
//!
//! | page | client port | metrics port | answer |
//! |---|---|---|---|
//! | `/metrics` | yes | yes | Prometheus text |
//! | `/health` | yes | yes | etcd's JSON, see [`health_page`](crate::health_page) |
//! | `/version` | yes | no | etcd's JSON, and our own version |
//! | `/livez` | no | yes | 200 while the process can answer |
//! | `/readyz` | no | yes | 200 while the node can serve clients, else 503 |
//!
//! `?verbose` makes `/livez` and `/readyz` list their checks, as etcd's do from 3.5.11 on.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tonic::body::Body;

use crate::backend::Backend;
use crate::desk::{Desk, ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::health_page::health;
use crate::json::{self, InProcess, JsonGateway};

/// Renders the metrics of the process in Prometheus' text format.
pub type MetricsPage = Arc<dyn Fn() -> String + Send + Sync>;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
pub(crate) const JSON: &str = "application/json";

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
    json: JsonGateway<InProcess<B>>,
}

impl<B: Backend> Pages<B> {
    pub(crate) const fn new(
        desk: Arc<Desk<B>>,
        metrics_page: MetricsPage,
        json: JsonGateway<InProcess<B>>,
    ) -> Self {
        Self { desk, metrics_page, json }
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, port: Port, request: Request<Incoming>) -> Response<Body> {
        if port == Port::Client && json::is_call(request.uri().path()) {
            return self.json.answer(request).await;
        }
        self.page(port, &request).await.map(Body::new)
    }

    /// The page that a request is for; its body is not read.
    async fn page<T>(&self, port: Port, request: &Request<T>) -> Response<Full<Bytes>> {
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
            return only(Method::GET);
        }
        let query = Query(request.uri().query().unwrap_or_default());
        match request.uri().path() {
            "/metrics" => page(StatusCode::OK, "text/plain; version=0.0.4", (self.metrics_page)()),
            "/health" => health(&self.desk, query).await,
            "/version" => page(StatusCode::OK, JSON, version()),
            "/readyz" => probe("leaders_known", "not ready", query, self.desk.backend.is_ready()),
            _ => probe("process", "not alive", query, true),
        }
    }
}

/// The part of an address behind its question mark; names and values stand there as they are.
#[derive(Clone, Copy)]
pub(crate) struct Query<'q>(&'q str);

impl Query<'_> {
    fn has(self, name: &str) -> bool {
        self.0.split('&').any(|pair| pair.split('=').next() == Some(name))
    }

    pub(crate) fn is(self, name: &str, value: &str) -> bool {
        self.0.split('&').any(|pair| pair.split_once('=') == Some((name, value)))
    }
}

/// The answer to a probe of one check; it names the check, as etcd's does, if it is asked to be verbose.
fn probe(check: &str, failure: &str, query: Query<'_>, is_ok: bool) -> Response<Full<Bytes>> {
    let status = if is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = match (query.has("verbose"), is_ok) {
        (true, true) => format!("[+]{check} ok\nok\n"),
        (true, false) => format!("[-]{check} failed: {failure}\n"),
        (false, true) => "ok\n".to_owned(),
        (false, false) => format!("{failure}\n"),
    };
    page(status, TEXT, body)
}

/// The refusal of every method but one.
pub(crate) fn only(method: Method) -> Response<Full<Bytes>> {
    let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
    let allowed = match method {
        Method::POST => HeaderValue::from_static("POST"),
        _ => HeaderValue::from_static("GET"),
    };
    refusal.headers_mut().insert(header::ALLOW, allowed);
    refusal
}

fn version() -> String {
    format!(
        r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_CLUSTER_VERSION}","quorate":"{}"}}"#,
        env!("CARGO_PKG_VERSION")
    )
}

pub(crate) fn page(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
