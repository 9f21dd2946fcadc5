//! A gateway over a keyspace in memory, on a loopback port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusBuilder;
use quorate_api::etcdserverpb::cluster_client::ClusterClient;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_api::etcdserverpb::watch_client::WatchClient;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest};
use quorate_api::mvccpb::KeyValue;
use quorate_gateway::{AuthConfig, ClientTls, Gateway, GatewayConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::fake::FakeBackend;

/// How long anything may take, on however slow a machine. For broken gateways: nothing is to come this late.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What is waited for; a panic that names it where it does not come.
pub(crate) async fn within<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    let came = timeout(PATIENCE, awaited).await;
    came.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Looks until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let looks = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    within(what, looks).await;
}

/// What a stream tells next, or why it ends.
pub(crate) async fn heard<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    within("the next message of a stream", stream.message()).await
}

/// A running gateway.
pub(crate) struct Door {
    pub(crate) backend: Arc<FakeBackend>,
    pub(crate) address: SocketAddr,
    pub(crate) metrics_address: SocketAddr,
    /// Dropping this ends the gateway.
    pub(crate) shutdown: watch::Sender<()>,
    pub(crate) served: JoinHandle<()>,
}

impl Door {
    pub(crate) async fn open() -> Self {
        Self::open_with(GatewayConfig::default()).await
    }

    pub(crate) async fn open_with(config: GatewayConfig) -> Self {
        Self::open_at(config, "127.0.0.1:0", FakeBackend::new()).await
    }

    /// A gateway whose client port speaks TLS.
    pub(crate) async fn open_with_tls(config: GatewayConfig, tls: ClientTls) -> Self {
        let auth = AuthConfig::default();
        Self::open_whole(config, auth, "127.0.0.1:0", FakeBackend::new(), Some(tls)).await
    }

    pub(crate) async fn open_at(
        config: GatewayConfig,
        address: &str,
        backend: FakeBackend,
    ) -> Self {
        Self::open_whole(config, AuthConfig::default(), address, backend, None).await
    }

    /// A gateway with other tokens, or less room for passwords.
    pub(crate) async fn open_with_auth(auth: AuthConfig) -> Self {
        let config = GatewayConfig::default();
        Self::open_whole(config, auth, "127.0.0.1:0", FakeBackend::new(), None).await
    }

    async fn open_whole(
        config: GatewayConfig,
        auth: AuthConfig,
        address: &str,
        backend: FakeBackend,
        tls: Option<ClientTls>,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a loopback port");
        let metrics_listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound port");
        let metrics_address = metrics_listener.local_addr().expect("a bound port");
        backend.advertise(address);
        let backend = Arc::new(backend);
        let recorder = PrometheusBuilder::new().build_recorder();
        let page = recorder.handle();
        let page = Arc::new(move || page.render());
        let gateway = Gateway::with_auth(Arc::clone(&backend), config, auth, page, &recorder);
        let gateway = Arc::new(match tls {
            Some(tls) => gateway.with_tls(tls),
            None => gateway,
        });
        let (shutdown, mut end) = watch::channel(());
        let mut metrics_end = end.clone();
        let client_port = Arc::clone(&gateway);
        let served = tokio::spawn(async move {
            client_port.serve(listener, async move { drop(end.changed().await) }).await;
        });
        tokio::spawn(async move {
            let end = async move { drop(metrics_end.changed().await) };
            gateway.serve_metrics(metrics_listener, end).await;
        });
        Self { backend, address, metrics_address, shutdown, served }
    }

    /// A page of the client port: status and body.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        page(&self.address.to_string(), path).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        channel(&self.address.to_string()).await
    }

    pub(crate) async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await)
    }

    pub(crate) async fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel().await)
    }

    pub(crate) async fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel().await)
    }

    pub(crate) async fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel().await)
    }
}

/// Waits until the keys under a prefix that ends in `/` are as they should be: looks at them, and again whenever
/// one has changed. Asks as the user of a token, if there is one.
pub(crate) async fn keys_until(
    channel: &Channel,
    token: Option<&str>,
    prefix: &'static str,
    is_so: impl Fn(&[KeyValue]) -> bool,
) -> Vec<KeyValue> {
    let range_end = Bytes::from(prefix.replace('/', "0"));
    loop {
        let range = RangeRequest {
            key: prefix.into(),
            range_end: range_end.clone(),
            ..RangeRequest::default()
        };
        let mut kv = KvClient::new(channel.clone());
        let found = within("a range", kv.range(with_token(range, token))).await;
        let found = found.expect("keys").into_inner();
        if is_so(&found.kvs) {
            return found.kvs;
        }
        let create = WatchCreateRequest {
            key: prefix.into(),
            range_end: range_end.clone(),
            start_revision: found.header.expect("a header").revision + 1,
            ..WatchCreateRequest::default()
        };
        let union = Some(RequestUnion::CreateRequest(create));
        // It stays open while it is listened to.
        let asks = futures::stream::iter([WatchRequest { request_union: union }]);
        let asks = futures::StreamExt::chain(asks, futures::stream::pending());
        let mut client = WatchClient::new(channel.clone());
        let watched = within("a stream", client.watch(with_token(asks, token))).await;
        let mut told = watched.expect("a stream").into_inner();
        while heard(&mut told).await.expect("no error").expect("no end").events.is_empty() {}
    }
}

/// A request of the user of a token, or of nobody.
pub(crate) fn with_token<T>(request: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(request);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().expect("a token is text"));
    }
    request
}

/// A connection to `host:port`.
pub(crate) async fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    // A call has to be answered, or its stream begun, in that time.
    endpoint.timeout(PATIENCE).connect().await.expect("the server listens")
}

/// The page `path` of the server at `address`: status and body.
pub(crate) async fn page(address: &str, path: &str) -> (u16, String) {
    exchange(address, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await
}

/// Sends `request` as it is and reads to the end: the status code and the body.
pub(crate) async fn exchange(address: &str, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    stream.write_all(request).await.expect("it reads the request");
    let mut answer = Vec::new();
    let read = within("the end of an answer", stream.read_to_end(&mut answer)).await;
    read.expect("it answers and hangs up");
    let answer = String::from_utf8(answer).expect("a page is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status line").parse().expect("a status code");
    (status, body.to_owned())
}
