//! Users by their certificates: who is known by one, and by what else not.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use quorate_api::etcdserverpb as pb;
use quorate_gateway::GatewayConfig;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use crate::auth::{Client, put, range, with_users};
use crate::support::{Door, within};
use crate::tls::Authority;

const EMPTY: &str = "etcdserver: user name is empty";
const DENIED: &str = "etcdserver: permission denied";

/// Connects by TLS with the certificate of a configuration.
#[derive(Clone)]
struct ByTls {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl ByTls {
    async fn connect(self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(self.config).connect(name, stream).await
    }

    async fn channel(self) -> Channel {
        let endpoint = Endpoint::from_static("http://localhost");
        endpoint.connect_with_connector(self).await.expect("the gateway lets it in")
    }
}

impl Service<Uri> for ByTls {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let by_tls = self.clone();
        Box::pin(async move { by_tls.connect().await.map(TokioIo::new) })
    }
}

/// A gateway of users and certificates, and tokens for some of the users.
struct Certified {
    door: Door,
    authority: Authority,
    wrong: String,
    root: String,
}

impl Certified {
    async fn open() -> Self {
        let authority = Authority::new();
        let tls = authority.server(Some(&authority.path("ca")));
        let door = Door::open_with_tls(GatewayConfig::default(), tls).await;
        // Made at a port without certificates: tokens of the same users are good at both.
        let plain = with_users().await;
        let client = Client::of(plain.channel().await);
        let (wrong, root) = (client.login("wrong").await, client.login("root").await);
        door.backend.take_users((*plain.backend.directory_now()).clone());
        for name in ["right", "stranger", ""] {
            authority.sign(&format!("{name}-client"), name, ExtendedKeyUsagePurpose::ClientAuth);
        }
        Self { door, authority, wrong, root }
    }

    fn tls(&self, name: &str, protocol: &[u8]) -> ByTls {
        let mut config = self.authority.client(Some(&format!("{name}-client")));
        config.alpn_protocols = vec![protocol.to_vec()];
        ByTls { address: self.door.address, config: Arc::new(config) }
    }

    async fn client(&self, name: &str) -> Client {
        Client::of(self.tls(name, b"h2").channel().await)
    }
}

fn said<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> String {
    answer.expect_err("it may not").message().to_owned()
}

#[tokio::test]
async fn a_certificate_makes_its_client_the_user_whom_it_names() {
    let certified = Certified::open().await;
    let right = certified.client("right").await;
    right.put(put(b"b")).await.expect("it may");
    assert_eq!(right.range(range(b"b", b"d")).await.expect("it may").count, 1);
    assert_eq!(said(right.put(put(b"x")).await), DENIED);
    assert_eq!(said(right.range(range(b"b", b"e")).await), DENIED);
    assert_eq!(said(right.auth_disable(pb::AuthDisableRequest {}).await), DENIED);
    assert_eq!(said(certified.client("stranger").await.put(put(b"b")).await), DENIED);
    assert_eq!(said(certified.client("").await.put(put(b"b")).await), EMPTY);
}

#[tokio::test]
async fn a_token_counts_for_more_than_the_certificate() {
    let certified = Certified::open().await;
    let right = certified.client("right").await;
    let wrong = right.with_token(&certified.wrong);
    assert_eq!(said(wrong.put(put(b"b")).await), DENIED);
    wrong.put(put(b"x")).await.expect("it may");
    let liar = right.with_token("no.token");
    assert_eq!(said(liar.put(put(b"b")).await), "etcdserver: invalid auth token");
    let root = right.with_token(&certified.root);
    root.auth_status(pb::AuthStatusRequest {}).await.expect("root may");
}

/// Posts by HTTP/1 over TLS: all of the answer.
async fn post(tls: ByTls, path: &str, token: &str, body: &str) -> String {
    let mut stream = tls.connect().await.expect("the gateway lets it in");
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("it reads the request");
    let mut answer = String::new();
    // Who hangs up without a farewell has answered all the same.
    drop(within("the gateway hangs up", stream.read_to_string(&mut answer)).await);
    answer
}

#[tokio::test]
async fn the_json_gateway_knows_nobody_by_a_certificate() {
    let certified = Certified::open().await;
    let (path, body) = ("/v3/kv/put", r#"{"key":"Yg=="}"#);
    let answer = post(certified.tls("right", b"http/1.1"), path, "", body).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(EMPTY), "{answer}");
    let token = format!("Authorization: {}\r\n", certified.root);
    let answer = post(certified.tls("right", b"http/1.1"), path, &token, body).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // On a connection that has calls of gRPC, where the same certificate names a user.
    let mut channel = certified.tls("right", b"h2").channel().await;
    let request = Request::post("http://localhost/v3/kv/put")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::new(Full::new(Bytes::from_static(body.as_bytes()))))
        .expect("a request");
    poll_fn(|context| channel.poll_ready(context)).await.expect("the connection is open");
    let answer = channel.call(request).await.expect("an answer");
    let answer = answer.into_body().collect().await.expect("an answer").to_bytes();
    assert!(String::from_utf8_lossy(&answer).contains(EMPTY), "{answer:?}");
    Client::of(channel).put(put(b"b")).await.expect("as gRPC it is known");
}
