//! One client connection: TLS where the port has it, which protocol it speaks, and serving it to its end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use http::{HeaderMap, Request, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::auth::Peer;
use crate::backend::Backend;
use crate::config::GatewayConfig;
use crate::door::Door;
use crate::gather::Gather;
use crate::http::{Pages, Port};
use crate::metrics::GatewayMetrics;
use crate::pings::Guarded;
use crate::prefixed::Prefixed;
use crate::tls::{ClientCertificate, ClientTls, Handshakes};

/// Bytes that a client may send ahead on one stream: most requests need no refill.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes that a client may send ahead on one connection: a link of 140 ms carries 30 MB/s so.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Calls that a client has taken back before they were looked at, at a time: one more ends its connection. They count
/// among no other limit, and to begin them costs the client nothing.
const RESETS_MAX: usize = 20;

/// Largest head of a call.
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Largest head of a page's request, and all that is buffered of one.
const PAGE_BUFFER_BYTES_MAX: usize = 16 * 1024;

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One accepted connection, before its first byte.
pub(crate) struct Connection<B> {
    pub(crate) port: Port,
    pub(crate) config: GatewayConfig,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) door: Arc<Door<B>>,
    pub(crate) pages: Arc<Pages<B>>,
    pub(crate) handshakes: Arc<Handshakes>,
    /// The port's certificates, if it has any.
    pub(crate) tls: Option<Arc<ClientTls>>,
    /// Its sender is dropped when shutdown begins.
    pub(crate) closing: watch::Receiver<()>,
}

impl<B: Backend> Connection<B> {
    /// Serves the connection to its end. Whatever goes wrong is the connection's own end, no more.
    pub(crate) async fn run(mut self, stream: TcpStream) {
        // Answers are small and waited for: without this, Nagle's algorithm holds them back. A socket
        // that refuses is dead already, which the first read tells.
        let _ = stream.set_nodelay(true);
        let peer = Peer::at(stream.peer_addr().ok());
        let Some(tls) = self.tls.take() else { return self.speak(stream, peer).await };
        if let Some(stream) = self.shake_hands(&tls, stream).await {
            let certificate = {
                let (_, session) = stream.get_ref();
                let shown = session.peer_certificates().and_then(<[_]>::first);
                shown.filter(|_| tls.is_identity()).and_then(ClientCertificate::from_der)
            };
            let peer = match certificate {
                Some(certificate) => peer.certified(&certificate.common_name),
                None => peer,
            };
            self.speak(stream, peer).await;
        }
    }

    /// Agrees on TLS. `None`: the client does not, not in time, or others need the room.
    async fn shake_hands(
        &mut self,
        tls: &ClientTls,
        stream: TcpStream,
    ) -> Option<TlsStream<TcpStream>> {
        let metrics = &self.metrics.tls;
        let mut handshake = self.handshakes.begin();
        let accept = TlsAcceptor::from(tls.config()).accept(stream);
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.config.handshake_timeout, accept) => shaken,
            () = handshake.is_cut() => return None,
            _ = self.closing.changed() => return None,
        };
        let shaken = shaken.map_err(io::Error::from).and_then(|shaken| shaken);
        match shaken {
            Ok(stream) => {
                metrics.handshakes_total.increment(1);
                Some(stream)
            }
            Err(error) => {
                metrics.handshakes_failed_total.increment(1);
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
        }
    }

    /// Serves what goes through `stream`.
    async fn speak<S>(mut self, mut stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let said = tokio::select! {
            said = tokio::time::timeout(self.config.first_bytes_timeout, sniff(&mut stream)) => said,
            _ = self.closing.changed() => return,
        };
        let Ok(Ok((protocol, first))) = said else {
            self.metrics.connections_mute_total.increment(1);
            return;
        };
        let io = Prefixed::new(first, stream);
        let ended = match (protocol, self.port) {
            (Protocol::Http2, Port::Client) => {
                let min_time = self.config.grpc_keepalive_min_time;
                let refused = self.metrics.connections_pinging_total.clone();
                let io = Guarded::new(Gather::new(io), PREFACE.len() as u64, min_time, refused);
                self.serve_calls(TokioIo::new(io), peer).await
            }
            // The pages are for HTTP/1; so this ends in the parser's own refusal.
            (Protocol::Http2 | Protocol::Other, _) => {
                self.serve_pages(TokioIo::new(io), peer.address()).await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn serve_calls(
        mut self,
        io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
        peer: Peer,
    ) -> Result<(), hyper::Error> {
        let (door, pages, port) = (self.door, self.pages, self.port);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let (door, pages, peer) = (Arc::clone(&door), Arc::clone(&pages), peer.clone());
            async move {
                if !is_grpc(request.headers()) {
                    request.extensions_mut().insert(Peer::at(peer.address()));
                    return Ok(pages.answer(port, request).await);
                }
                door.answer(request, peer).await
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(self.config.max_concurrent_streams)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX)
            .keep_alive_interval(self.config.grpc_keepalive_interval)
            .keep_alive_timeout(self.config.grpc_keepalive_timeout)
            .auto_date_header(false)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = &mut connection => return ended,
            _ = self.closing.changed() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }

    /// A client's certificate names nobody here, as with etcd: users of certificates speak gRPC.
    async fn serve_pages(
        mut self,
        io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
        address: Option<SocketAddr>,
    ) -> Result<(), hyper::Error> {
        let (pages, port) = (self.pages, self.port);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let pages = Arc::clone(&pages);
            request.extensions_mut().insert(Peer::at(address));
            async move { Ok::<_, Infallible>(pages.answer(port, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.first_bytes_timeout)
            .max_buf_size(PAGE_BUFFER_BYTES_MAX)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = &mut connection => return ended,
            _ = self.closing.changed() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// Whether a request of HTTP/2 is a call of gRPC; a browser's is not.
fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type
        .is_some_and(|content_type| content_type.as_bytes().starts_with(b"application/grpc"))
}

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    /// HTTP/2, and so gRPC.
    Http2,
    /// HTTP/1, or noise.
    Other,
}

/// Reads until it is clear what the client speaks, and returns what was read with it.
///
/// # Errors
/// When the client closes the connection before that.
async fn sniff(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Protocol, Vec<u8>)> {
    let mut first = Vec::with_capacity(PREFACE.len());
    while first.len() < PREFACE.len() {
        if !PREFACE.starts_with(&first) {
            return Ok((Protocol::Other, first));
        }
        let left = (PREFACE.len() - first.len()) as u64;
        if (&mut *stream).take(left).read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let protocol = if first == PREFACE { Protocol::Http2 } else { Protocol::Other };
    Ok((protocol, first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_protocol_is_known_by_its_first_bytes_however_they_are_cut() {
        let rows: [(&[&'static [u8]], Option<Protocol>); 6] = [
            (&[PREFACE], Some(Protocol::Http2)),
            (&[b"P", b"RI * HTTP/2.0\r\n", b"\r\nSM\r\n\r\n"], Some(Protocol::Http2)),
            (&[b"GET / HTTP/1.0\r\n\r\n"], Some(Protocol::Other)),
            (&[b"P", b"OST /health HTTP/1.1\r\n"], Some(Protocol::Other)),
            (&[b"\x16\x03\x01"], Some(Protocol::Other)),
            (&[b"PRI * HTTP"], None),
        ];
        for (parts, expected) in rows {
            let (a, b, c) = (parts[0], part(parts, 1), part(parts, 2));
            let mut script = a.chain(b).chain(c);
            let said = sniff(&mut script).await;
            assert_eq!(said.as_ref().ok().map(|(protocol, _)| *protocol), expected, "{parts:?}");
            if let Ok((_, first)) = said {
                assert!(parts.concat().starts_with(&first));
            }
        }
    }

    /// A part of a script; each is read apart from the others.
    fn part(parts: &[&'static [u8]], at: usize) -> &'static [u8] {
        parts.get(at).copied().unwrap_or_default()
    }
}
