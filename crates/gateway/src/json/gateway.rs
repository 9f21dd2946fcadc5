//! From a request of HTTP to a call, and back.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use metrics::Counter;
use prost_reflect::MessageDescriptor;
use quorate_api::codec::EncodedMessages;
use tokio::sync::{Semaphore, oneshot};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::intake::{Bounds, Intake, RequestBody};
use super::routes::{Route, Routes};
use super::words;
use crate::auth::Peer;
use crate::config::GatewayConfig;
use crate::door::REQUIRE_LEADER;
use crate::http::{JSON, TEXT, only, page};

/// Messages of more bytes are translated beside the runtime's threads, which must not wait.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// Large messages that are translated at a time: each takes many times its own size meanwhile.
const LARGE_TRANSLATIONS_MAX: usize = 2;

/// Metadata that carries a user's token.
const TOKEN: &str = "token";

/// What answers calls of gRPC.
pub(crate) trait Calls:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send
{
}

impl<S> Calls for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
{
}

/// Answers calls in JSON, through a service that answers them in gRPC.
pub(crate) struct JsonGateway<S> {
    service: S,
    routes: Routes,
    bounds: Bounds,
    large: Arc<Semaphore>,
    refused_total: Counter,
}

impl<S: Calls> JsonGateway<S> {
    /// A gateway into `service`; `refused_total` counts requests that never became a call.
    pub(crate) fn new(
        service: S,
        routes: Routes,
        config: GatewayConfig,
        refused_total: Counter,
    ) -> Self {
        let bounds = Bounds {
            // Base64 takes four bytes for three; what else a message says takes little.
            bytes_max: config.message_bytes_max().div_ceil(3).saturating_mul(4),
            silence_max: config.first_bytes_timeout,
            free: Arc::new(Semaphore::new(config.json_bytes_max.min(Semaphore::MAX_PERMITS))),
        };
        Self {
            service,
            routes,
            bounds,
            large: Arc::new(Semaphore::new(LARGE_TRANSLATIONS_MAX)),
            refused_total,
        }
    }

    /// Answers one request.
    pub(crate) async fn answer<R: RequestBody>(&self, request: Request<R>) -> Response<Body> {
        let Some(route) = self.routes.find(request.uri().path()) else {
            return page(StatusCode::NOT_FOUND, TEXT, "Not Found\n").map(Body::new);
        };
        if request.method() != Method::POST {
            return only(Method::POST).map(Body::new);
        }
        if request.headers().contains_key(header::ORIGIN) {
            // A browser sends it along with every POST of a page, wherever that page is from: an operator's browser
            // reaches ports that its pages should not. No page is served here that would call.
            self.refused_total.increment(1);
            let refusal = Status::permission_denied("calls from pages of a browser are refused");
            let (status, body) = words::refusal(&refusal);
            return page(status, JSON, body).map(Body::new);
        }
        let (head, body) = request.into_parts();
        let intake = Intake::new(body, self.bounds.clone());
        let answered =
            match (route.method.is_client_streaming(), route.method.is_server_streaming()) {
                (false, false) => self.unary(route, &head, intake).await,
                (false, true) => self.server_stream(route, &head, intake).await,
                (true, _) => self.both_streams(route, &head, intake).await,
            };
        answered.unwrap_or_else(|status| {
            let (status, body) = words::refusal(&status);
            page(status, JSON, body).map(Body::new)
        })
    }

    async fn unary<R: RequestBody>(
        &self,
        route: &Route,
        head: &Parts,
        intake: Intake<R>,
    ) -> Result<Response<Body>, Status> {
        let request = self.request(route, head, intake).await?;
        let answer = self.client().unary(request, route.path.clone(), EncodedMessages).await?;
        let (answer, output) = (answer.into_inner(), route.method.output());
        let text = self.translate(answer.len(), move || {
            let mut text = Vec::new();
            words::write(output, answer, &mut text).map(|()| text)
        });
        Ok(page(StatusCode::OK, JSON, text.await?).map(Body::new))
    }

    async fn server_stream<R: RequestBody>(
        &self,
        route: &Route,
        head: &Parts,
        intake: Intake<R>,
    ) -> Result<Response<Body>, Status> {
        let request = self.request(route, head, intake).await?;
        let path = route.path.clone();
        let answers = self.client().server_streaming(request, path, EncodedMessages).await?;
        Ok(lines(answers.into_inner(), None, route.method.output()))
    }

    async fn both_streams<R: RequestBody>(
        &self,
        route: &Route,
        head: &Parts,
        mut intake: Intake<R>,
    ) -> Result<Response<Body>, Status> {
        let input = route.method.input();
        let first = intake.first_object().await;
        let first = first
            .and_then(|text| text.map(|text| words::message(input.clone(), &text)).transpose());
        let first = self.note_refusal(first)?;
        let (tell, told) = oneshot::channel();
        let refused = self.refused_total.clone();
        let rest = requests(intake, input, route.is_held, tell, refused);
        let mut request = tonic::Request::new(stream::iter(first).chain(rest));
        *request.metadata_mut() = metadata(&head.headers);
        name_peer(head, request.extensions_mut());
        let path = route.path.clone();
        let answers = self.client().streaming(request, path, EncodedMessages).await?;
        Ok(lines(answers.into_inner(), Some(told), route.method.output()))
    }

    /// The request message of a body that has one.
    async fn request<R: RequestBody>(
        &self,
        route: &Route,
        head: &Parts,
        intake: Intake<R>,
    ) -> Result<tonic::Request<Bytes>, Status> {
        let input = route.method.input();
        let message = match intake.whole().await {
            Ok((text, held)) => {
                let message =
                    self.translate(text.len(), move || words::message(input, &text)).await;
                drop(held);
                message
            }
            Err(status) => Err(status),
        };
        let mut request = tonic::Request::new(self.note_refusal(message)?);
        *request.metadata_mut() = metadata(&head.headers);
        name_peer(head, request.extensions_mut());
        Ok(request)
    }

    fn note_refusal<T>(&self, result: Result<T, Status>) -> Result<T, Status> {
        if result.is_err() {
            self.refused_total.increment(1);
        }
        result
    }

    /// Runs a translation of a message of `bytes` bytes where it holds nobody up.
    async fn translate<T: Send + 'static>(
        &self,
        bytes: usize,
        translate: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        if bytes <= INLINE_BYTES_MAX {
            return translate();
        }
        let gone = |_| Status::unavailable("etcdserver: server stopped");
        let permit = Arc::clone(&self.large).acquire_owned().await.map_err(|_| gone(()))?;
        let translated = tokio::task::spawn_blocking(move || {
            let translated = translate();
            drop(permit);
            translated
        });
        translated.await.map_err(|_| gone(()))?
    }

    /// Answers are as large as they are for gRPC.
    fn client(&self) -> Grpc<S> {
        Grpc::new(self.service.clone()).max_decoding_message_size(usize::MAX)
    }
}

/// Who makes the call, for the audit log.
fn name_peer(head: &Parts, extensions: &mut tonic::Extensions) {
    if let Some(peer) = head.extensions.get::<Peer>() {
        extensions.insert(peer.clone());
    }
}

/// What of a request's head goes along with its call: the token, with or without the word "Bearer", and
/// whether a leader is required. A client's certificate does not: users of certificates speak gRPC, as
/// with etcd.
fn metadata(headers: &HeaderMap) -> MetadataMap {
    let mut kept = HeaderMap::new();
    let named =
        |name: &str| headers.get(name).or_else(|| headers.get(format!("grpc-metadata-{name}")));
    if let Some(value) = named(REQUIRE_LEADER) {
        kept.insert(REQUIRE_LEADER, value.clone());
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(bearer);
    if let Some(token) = authorization.or_else(|| named(TOKEN).cloned()) {
        kept.insert(TOKEN, token);
    }
    MetadataMap::from_headers(kept)
}

fn bearer(value: &HeaderValue) -> Option<HeaderValue> {
    const BEARER: &str = "bearer ";
    let text = value.to_str().ok()?.trim();
    let token = match text.get(..BEARER.len()) {
        Some(start) if start.eq_ignore_ascii_case(BEARER) => text[BEARER.len()..].trim(),
        _ => text,
    };
    HeaderValue::from_str(token).ok()
}

/// The messages of a streamed body from the second on. Where one cannot be read, the stream ends and
/// `tell` learns why.
fn requests<R: RequestBody>(
    intake: Intake<R>,
    input: MessageDescriptor,
    is_held: bool,
    tell: oneshot::Sender<Status>,
    refused: Counter,
) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(Some((intake, tell)), move |state| {
        let (input, refused) = (input.clone(), refused.clone());
        async move {
            let (mut intake, tell) = state?;
            let object = intake.object().await;
            let message =
                object.and_then(|text| text.map(|text| words::message(input, &text)).transpose());
            match message {
                Ok(Some(message)) => Some((message, Some((intake, tell)))),
                Ok(None) if is_held => std::future::pending().await,
                Ok(None) => None,
                Err(status) => {
                    refused.increment(1);
                    // Whoever has hung up wants to know nothing.
                    let _ = tell.send(status);
                    None
                }
            }
        }
    })
}

/// A stream's answers, a line each. `told` has the word why the requests ended, if they ended badly.
fn lines(
    answers: Streaming<Bytes>,
    told: Option<oneshot::Receiver<Status>>,
    output: MessageDescriptor,
) -> Response<Body> {
    let lines = stream::unfold(Some((answers, told)), move |state| {
        let output = output.clone();
        async move {
            let (mut answers, mut told) = state?;
            let answer = tokio::select! {
                status = refusal(&mut told) => Err(status),
                answer = answers.message() => answer,
            };
            // A stream may end because its requests did. Not asked otherwise: whoever has asked a closed channel
            // must not wait for it any more.
            let ended = matches!(answer, Ok(None));
            let why = told.as_mut().filter(|_| ended).and_then(|told| told.try_recv().ok());
            let answer = why.map_or(answer, Err);
            let line =
                answer.and_then(|answer| answer.map(|answer| line(output, answer)).transpose());
            match line {
                Ok(line) => Some((line?, Some((answers, told)))),
                Err(status) => Some((words::stream_refusal(&status), None)),
            }
        }
    });
    let frames = lines.map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(line))));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// Resolves when the requests have ended badly.
async fn refusal(told: &mut Option<oneshot::Receiver<Status>>) -> Status {
    if let Some(receiver) = told {
        if let Ok(status) = receiver.await {
            return status;
        }
        *told = None;
    }
    std::future::pending().await
}

fn line(output: MessageDescriptor, answer: Bytes) -> Result<Vec<u8>, Status> {
    let mut line = br#"{"result":"#.to_vec();
    words::write(output, answer, &mut line)?;
    line.extend_from_slice(b"}\n");
    Ok(line)
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
