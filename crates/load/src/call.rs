//! Unary gRPC calls on HTTP/2, with as little client as possible.
//!
//! The client shares the cores with the servers that it measures, so what a call costs here is taken
//! from them. Therefore calls go straight onto `h2` streams: the request is one ready-made buffer, the
//! answer's bytes are handed on undecoded, and no queue or task stands between a client and its stream.
//!
//! The life of a call: [`Caller::call`] takes the connection's live sender, or dials ([`Connection::dial`]);
//! sends headers and the framed request; reads the answer's data; and takes the outcome from the trailers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use http::{Request, StatusCode, Uri};
use prost::Message;
use tokio::net::TcpStream;
use tonic::Code;

use crate::socket::Socket;

mod duplex;

pub(crate) use duplex::Duplex;

/// How long a connection waits after a failed dial before it lets its callers know. Without it, clients of
/// a dead server would spin.
const DIAL_PAUSE: Duration = Duration::from_millis(20);

/// HTTP/2 receive windows, per stream and per connection: large enough that range answers never wait.
const WINDOW_BYTES: u32 = 8 << 20;

/// Bytes before every gRPC message: a compression flag and a big-endian length.
const PREFIX_BYTES: usize = 5;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The methods that are called here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// `KV.Put`.
    Put,
    /// `KV.Range`.
    Range,
    /// `KV.Txn`.
    Txn,
    /// `Lease.LeaseGrant`.
    LeaseGrant,
    /// `Lease.LeaseLeases`.
    LeaseLeases,
    /// `Watch.Watch`, a stream.
    Watch,
}

impl Method {
    const ALL: [Self; 6] =
        [Self::Put, Self::Range, Self::Txn, Self::LeaseGrant, Self::LeaseLeases, Self::Watch];

    fn path(self) -> &'static str {
        match self {
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::LeaseGrant => "/etcdserverpb.Lease/LeaseGrant",
            Self::LeaseLeases => "/etcdserverpb.Lease/LeaseLeases",
            Self::Watch => "/etcdserverpb.Watch/Watch",
        }
    }
}

/// A call that has no answer: the server's status, or the client's own trouble in the same words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// gRPC status code.
    pub(crate) code: Code,
    /// The server's text, or one that begins with `client: `.
    pub(crate) text: String,
}

impl Failure {
    /// The client's own trouble.
    pub(crate) fn client(code: Code, what: impl std::fmt::Display) -> Self {
        Self { code, text: format!("client: {what}") }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self { code: status.code(), text: status.message().to_owned() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.code, self.text)
    }
}

/// `message` as the body of a call.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let size = message.encoded_len();
    let mut body = BytesMut::with_capacity(PREFIX_BYTES + size);
    body.put_u8(0);
    body.put_u32(u32::try_from(size).expect("requests made here are far below 4 GiB"));
    message.encode(&mut body).expect("the buffer was made for this message");
    body.freeze()
}

/// One connection to one endpoint. It is dialed when first used, and again after it broke.
pub(crate) struct Connection {
    address: String,
    uris: [Uri; Method::ALL.len()],
    live: Mutex<Option<Live>>,
    dialing: tokio::sync::Mutex<LastDial>,
    request_bytes: usize,
}

/// A usable sender, and which dial it came from.
#[derive(Clone)]
struct Live {
    sender: SendRequest<Bytes>,
    dial: u64,
}

/// What became of the last dial.
#[derive(Default)]
struct LastDial {
    count: u64,
    failed: Option<(Instant, Failure)>,
}

impl Connection {
    /// A connection to `endpoint`, `host:port` or `http://host:port`; nothing is sent yet.
    ///
    /// # Errors
    /// When `endpoint` is not of that form.
    pub(crate) fn new(endpoint: &str) -> Result<Self, String> {
        let address = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/');
        let has_port =
            address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if !has_port || address.contains('/') {
            return Err(format!("endpoint {endpoint}: expected host:port or http://host:port"));
        }
        let mut uris = [const { None }; Method::ALL.len()];
        for method in Method::ALL {
            let uri = format!("http://{address}{}", method.path());
            uris[method as usize] =
                Some(uri.parse::<Uri>().map_err(|error| format!("endpoint {endpoint}: {error}"))?);
        }
        Ok(Self {
            address: address.to_owned(),
            uris: uris.map(|uri| uri.expect("every method was given one above")),
            live: Mutex::new(None),
            dialing: tokio::sync::Mutex::new(LastDial::default()),
            request_bytes: 0,
        })
    }

    /// The same for requests of about `request_bytes`; without, for small ones.
    pub(crate) fn carrying(self, request_bytes: usize) -> Self {
        Self { request_bytes, ..self }
    }

    /// The endpoint, as `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A sender that was alive when last seen; dials if there is none.
    async fn live(&self) -> Result<Live, Failure> {
        if let Some(live) = self.current() {
            return Ok(live);
        }
        let asked = Instant::now();
        let mut last = self.dialing.lock().await;
        if let Some(live) = self.current() {
            return Ok(live);
        }
        if let Some((when, failure)) = &last.failed
            && *when >= asked
        {
            return Err(failure.clone());
        }
        last.count += 1;
        match self.dial().await {
            Ok(sender) => {
                let live = Live { sender, dial: last.count };
                last.failed = None;
                *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(live.clone());
                Ok(live)
            }
            Err(failure) => {
                tokio::time::sleep(DIAL_PAUSE).await;
                last.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    fn current(&self) -> Option<Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn dial(&self) -> Result<SendRequest<Bytes>, Failure> {
        let broken = |error: &dyn std::fmt::Display| Failure::client(Code::Unavailable, error);
        let stream = TcpStream::connect(&self.address).await.map_err(|error| broken(&error))?;
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            .handshake::<_, Bytes>(Socket::new(stream, self.request_bytes))
            .await
            .map_err(|error| broken(&error))?;
        // The task ends with the connection; whoever uses a stream of it learns why it ended.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// Forgets the sender of dial number `dial`, so that the next call dials again.
    fn forget(&self, dial: u64) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.as_ref().is_some_and(|live| live.dial == dial) {
            *live = None;
        }
    }
}

/// One client of a connection: at most one call at a time.
pub(crate) struct Caller {
    connection: Arc<Connection>,
    live: Option<Live>,
    headers: HeaderMap,
    timeout: Duration,
}

impl Caller {
    /// A client of `connection` that gives a call up after `timeout`.
    pub(crate) fn new(connection: Arc<Connection>, timeout: Duration) -> Self {
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Self { connection, live: None, headers, timeout }
    }

    /// The endpoint that is called.
    pub(crate) fn address(&self) -> &str {
        self.connection.address()
    }

    /// Dials, unless the connection is already up.
    ///
    /// # Errors
    /// When the endpoint cannot be reached within the timeout.
    pub(crate) async fn connect(&mut self) -> Result<(), Failure> {
        match tokio::time::timeout(self.timeout, self.connection.live()).await {
            Ok(live) => live.map(|live| self.live = Some(live)),
            Err(_) => Err(Failure::client(Code::DeadlineExceeded, "not connected in time")),
        }
    }

    /// Sends `body` (see [`frame`]) to `method` and returns the answer's message, still encoded.
    ///
    /// # Errors
    /// The server's status, or what kept the client from it. Unless the text says otherwise, the request
    /// may have been run.
    pub(crate) async fn call(&mut self, method: Method, body: Bytes) -> Result<Bytes, Failure> {
        match tokio::time::timeout(self.timeout, self.exchange(method, body)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::client(Code::DeadlineExceeded, "no answer in time")),
        }
    }

    /// As [`call`](Self::call), with the answer decoded.
    ///
    /// # Errors
    /// As `call`; and an answer that is no such message is `Internal`.
    pub(crate) async fn ask<A: Message + Default>(
        &mut self,
        method: Method,
        request: &impl Message,
    ) -> Result<A, Failure> {
        let answer = self.call(method, frame(request)).await?;
        A::decode(answer).map_err(|error| Failure::client(Code::Internal, error))
    }

    async fn exchange(&mut self, method: Method, body: Bytes) -> Result<Bytes, Failure> {
        let live = match self.live.take() {
            Some(live) => live,
            None => self.connection.live().await?,
        };
        let dial = live.dial;
        let outcome = self.stream(live, method, body).await;
        outcome.map_err(|broken| match broken {
            Broken::Status(failure) => failure,
            Broken::Stream(error) => {
                // A reset of one stream leaves the connection whole; anything else ends it.
                if !error.is_reset() {
                    self.live = None;
                    self.connection.forget(dial);
                }
                Failure::client(Code::Unavailable, error)
            }
        })
    }

    /// The head of a request.
    fn head(&self, method: Method) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = self.connection.uris[method as usize].clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    async fn stream(&mut self, live: Live, method: Method, body: Bytes) -> Result<Bytes, Broken> {
        let Live { sender, dial } = live;
        let mut sender = sender.ready().await?;
        let (response, mut outgoing) = sender.send_request(self.head(method), false)?;
        self.live = Some(Live { sender, dial });
        outgoing.send_data(body, true)?;

        let mut incoming = body_of(response.await?)?;
        let mut message = Bytes::new();
        while let Some(chunk) = incoming.data().await {
            let chunk = chunk?;
            // Releasing cannot fail: these bytes were just received on this stream.
            let _ = incoming.flow_control().release_capacity(chunk.len());
            message = match message.is_empty() {
                true => chunk,
                false => [message, chunk].concat().into(),
            };
        }
        let trailers = incoming.trailers().await?;
        outcome(&trailers.unwrap_or_default())?;
        unframe(message).ok_or_else(|| {
            Broken::Status(Failure::client(Code::Internal, "the answer is not one gRPC message"))
        })
    }
}

/// What follows the head of an answer, unless that ends the call already.
fn body_of(response: http::Response<h2::RecvStream>) -> Result<h2::RecvStream, Broken> {
    if response.status() != StatusCode::OK {
        let text = format!("the server answered HTTP {}", response.status());
        return Err(Broken::Status(Failure::client(Code::Unknown, text)));
    }
    // An answer without data carries its status in the first headers.
    if response.headers().contains_key(&GRPC_STATUS) {
        outcome(response.headers())?;
    }
    Ok(response.into_body())
}

/// How a call ended without an answer.
enum Broken {
    Status(Failure),
    Stream(h2::Error),
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        Self::Stream(error)
    }
}

/// The status in `headers`: nothing if it is OK.
fn outcome(headers: &HeaderMap) -> Result<(), Broken> {
    let status = headers.get(&GRPC_STATUS).map(HeaderValue::as_bytes);
    if status == Some(b"0") {
        return Ok(());
    }
    let code = Code::from_bytes(status.unwrap_or_default());
    let text = headers.get(&GRPC_MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
    Err(Broken::Status(Failure { code, text: percent_decoded(text) }))
}

/// Undoes the percent-encoding of `grpc-message`; what is not encoded properly stays as it is.
fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = if escaped.is_some() { &tail[2..] } else { tail };
        bytes.push(escaped.unwrap_or(first));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The one message of an answer's data, if it is whole and not compressed.
fn unframe(mut data: Bytes) -> Option<Bytes> {
    if data.len() < PREFIX_BYTES || data.get_u8() != 0 {
        return None;
    }
    let size = data.get_u32() as usize;
    (data.len() == size).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let address = |text: &str| Connection::new(text).map(|c| c.address().to_owned());
        assert_eq!(address("http://127.0.0.1:2379/"), Ok("127.0.0.1:2379".to_owned()));
        assert_eq!(address("node-1:2379"), Ok("node-1:2379".to_owned()));
        assert!(address("127.0.0.1").is_err());
        assert!(address("https://127.0.0.1:1").is_err());
    }

    #[test]
    fn frames_are_prefixed_and_checked() {
        let framed = frame(&"x".to_owned());
        assert_eq!(&framed[..], [0, 0, 0, 0, 3, 0x0a, 1, b'x']);
        assert_eq!(unframe(framed.clone()), Some(framed.slice(5..)));
        assert_eq!(unframe(framed.slice(..7)), None, "cut short");
        assert_eq!(unframe(Bytes::from_static(&[1, 0, 0, 0, 0])), None, "compressed");
        assert_eq!(unframe(Bytes::new()), None);
    }

    #[test]
    fn messages_are_percent_decoded() {
        assert_eq!(percent_decoded(b"etcdserver:%20no leader"), "etcdserver: no leader");
        assert_eq!(percent_decoded(b"100% %zz %4"), "100% %zz %4");
    }

    #[test]
    fn a_missing_status_is_no_success() {
        assert!(outcome(&HeaderMap::new()).is_err());
    }
}
