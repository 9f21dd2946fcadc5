//! [`Transport`]: one UDP socket, one QUIC endpoint, and the peers behind it.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use metrics::Recorder;
use quinn::congestion::CubicConfig;
use quinn::udp::UdpSocketState;
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    Runtime, TokioRuntime, TransportConfig as QuicConfig, VarInt,
};
use quorate_types::{Message, NodeId};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::accept;
use crate::close::{self, Close};
use crate::config::{LANES_MAX, Limits, TransportConfig};
use crate::handler::{Handler, Pulse};
use crate::identity::{NameError, certificate_name};
use crate::link::Link;
use crate::metrics::Metrics;
use crate::peer::Peer;
use crate::request::{NotSent, RequestError};
use crate::shared::Shared;
use crate::snapshot::{self, SnapshotError, SnapshotSource};
use crate::tls::{self, TlsConfig, TlsError};
use crate::vital;

/// Bytes in flight before the first acknowledgement: two nodes of one cluster may begin bolder than
/// a browser, whose ten packets would cost nine round trips on the way to a long link's capacity.
const INITIAL_WINDOW_BYTES: u64 = 128 << 10;

/// The round trip that is assumed before one is measured; QUIC's third of a second makes a lost
/// first packet cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// A peer acknowledges every tenth packet, or after [`ACK_DELAY`], or at once when packets are out
/// of order. QUIC's default, every second one, costs a send per received pair.
const ACK_THRESHOLD: u32 = 10;

/// How long a peer may keep an acknowledgement back.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// How long a shutdown waits for the peers to hear of it.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a shutdown looks whether the port is free.
const RELEASE_INTERVAL: Duration = Duration::from_millis(1);

/// Streams that a peer may have open at once, each way; STREAMS_MAX bounds them over a life.
const OPEN_UNI_STREAMS_MAX: u32 = 2 + LANES_MAX as u32;
const OPEN_BIDI_STREAMS_MAX: u32 = 2;

/// Why a transport could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The certificates are not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A name that no certificate can carry.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A setting is out of its bounds.
    #[error("{0}")]
    Setting(String),
    /// The socket could not be opened.
    #[error("{address}: {source}")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The connections between this node and its peers: a handle, cheap to clone.
///
/// Commands ([`Transport::send`], [`Transport::request`], [`Transport::add_peer`]) may be given from
/// any thread; the work is done on the runtime that it was opened on. What comes in goes to the
/// [`Handler`]. It closes when the last handle is dropped, or by [`Transport::close`], which lets the
/// peers know.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// `None` once closed.
    endpoint: Mutex<Option<Endpoint>>,
    /// Every connection holds the socket too, and the port is taken until the last one lets go.
    socket: Weak<dyn AsyncUdpSocket>,
    runtime: tokio::runtime::Handle,
    local_addr: SocketAddr,
    segments_per_send: usize,
}

impl Transport {
    /// Opens the socket and begins to accept peers. Call it on the runtime that shall do the work.
    ///
    /// # Errors
    /// When the socket cannot be opened, or settings or certificates are unusable.
    pub async fn open(
        config: TransportConfig,
        handler: Arc<dyn Handler>,
        link: Arc<dyn Link>,
        recorder: &dyn Recorder,
    ) -> Result<Self, OpenError> {
        check(&config)?;
        let address = config.listen;
        let socket = |source| OpenError::Socket { address, source };
        let client_config = client_config(&config)?;
        let server_config = server_config(&config)?;
        let mut endpoint_config = EndpointConfig::default();
        endpoint_config
            .max_udp_payload_size(config.limits.mtu_max)
            .map_err(|error| OpenError::Setting(error.to_string()))?;

        let udp = bind(&config).map_err(socket)?;
        let runtime = Arc::new(TokioRuntime);
        let udp = runtime.wrap_udp_socket(udp).map_err(socket)?;
        let segments_per_send = udp.max_transmit_segments();
        let socket_held = Arc::downgrade(&udp);
        let endpoint =
            Endpoint::new_with_abstract_socket(endpoint_config, Some(server_config), udp, runtime)
                .map_err(socket)?;
        let local_addr = endpoint.local_addr().map_err(socket)?;

        let metrics = Arc::new(Metrics::new(recorder));
        metrics.segments_per_send.set(segments_per_send as f64);
        if segments_per_send > 1 {
            info!(%local_addr, segments_per_send, "listening to peers");
        } else {
            warn!(%local_addr, "listening to peers, without segment offload: sending costs more");
        }
        let shared = Arc::new(Shared::new(config, handler, link, metrics, client_config));
        vital::spawn("accept", accept::run(shared.clone(), endpoint.clone()));
        let runtime = tokio::runtime::Handle::current();
        let inner = Inner {
            shared,
            endpoint: Mutex::new(Some(endpoint)),
            socket: socket_held,
            runtime,
            local_addr,
            segments_per_send,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Shows `name` as a label of its own in the metrics per peer; to be called before its
    /// [`Transport::add_peer`]. Peers that were never labelled share the label `other`, and so do those
    /// beyond the first 64 names.
    pub fn label_peer(&self, name: &str, recorder: &dyn Recorder) {
        self.inner.shared.metrics.label_peer(name, recorder);
    }

    /// Dials a node from now on, at `address` (`host:port`, resolved anew at every attempt). Known
    /// with other words already, it is dialed anew; this node itself is passed over.
    ///
    /// # Errors
    /// When no certificate can carry the name.
    pub fn add_peer(&self, node: NodeId, name: &str, address: String) -> Result<(), NameError> {
        let shared = &self.inner.shared;
        let server_name = certificate_name(&shared.config.cluster_name, name)?;
        if node == shared.config.node {
            return Ok(());
        }
        if shared.peer(node).is_some_and(|known| known.name == name && known.address == address) {
            return Ok(());
        }
        let Some(endpoint) = self.inner.endpoint().clone() else { return Ok(()) };
        let peer = Arc::new(Peer::new(node, name.to_owned(), address, server_name, shared));
        if let Some(old) = shared.insert_peer(peer.clone()) {
            old.stop(&Close { code: close::SUPERSEDED, reason: "dialed anew".to_owned() });
        }
        let _runtime = self.inner.runtime.enter();
        peer.start(shared.clone(), endpoint);
        Ok(())
    }

    /// Stops dialing a node, and closes the connections with it in both directions. Whether it may
    /// come back is up to [`Handler::admit`].
    pub fn remove_peer(&self, node: NodeId) {
        let close = Close::policy("removed".to_owned());
        if let Some(peer) = self.inner.shared.remove_peer(node) {
            peer.stop(&close);
        }
        if let Some(connection) = self.inner.shared.incoming().remove(&node) {
            close.apply(&connection);
        }
    }

    /// Sends messages, each on the lane of its kind and group; those of one group arrive in order as
    /// far as they are of one kind. Never blocks and never fails: what cannot be sent (no connection,
    /// a full lane) is dropped and counted, and Raft sends again.
    pub fn send(&self, to: NodeId, messages: Vec<Message>) {
        match self.inner.shared.peer(to) {
            Some(peer) => peer.outbox.push(messages),
            None => {
                let dropped = &self.inner.shared.metrics.dropped.disconnected;
                dropped.increment(messages.len() as u64);
            }
        }
    }

    /// Sends a request and waits for the reply, `deadline` long at most; the peer is told what is
    /// left of it. Dropping the future gives the request up, though it may still run.
    ///
    /// # Errors
    /// [`RequestError::NotSent`] when it certainly does not run, else [`RequestError::Unknown`].
    pub async fn request(
        &self,
        to: NodeId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, RequestError> {
        let deadline = Instant::now() + deadline;
        let peer = self.inner.shared.peer(to);
        let peer = peer.ok_or(RequestError::NotSent(NotSent::UnknownPeer))?;
        let waiter = peer.outbox.request(body, deadline).map_err(RequestError::NotSent)?;
        waiter.wait(deadline).await
    }

    /// Sends a snapshot over a stream of its own, and waits until the peer has stored it; gives the
    /// number of bytes that were sent, which is smaller than the content when the peer had some of it.
    /// `header` is what the peer's node decides by. Dropping the future gives the snapshot up.
    ///
    /// # Errors
    /// When it is not known to be stored there. [`SnapshotError::BusyHere`] and
    /// [`SnapshotError::BusyThere`] say that nothing was sent.
    pub async fn send_snapshot<S: SnapshotSource>(
        &self,
        to: NodeId,
        header: Bytes,
        content: S,
    ) -> Result<u64, SnapshotError> {
        let shared = &self.inner.shared;
        let peer = shared.peer(to).ok_or(SnapshotError::NotConnected)?;
        snapshot::send(shared, &peer, header, content).await
    }

    /// Uses other certificates for every handshake from now on; connections that stand are kept.
    ///
    /// # Errors
    /// When they are unusable; the old ones stay in use then.
    pub fn reload_tls(&self, tls: &TlsConfig) -> Result<(), TlsError> {
        let shared = &self.inner.shared;
        let config = TransportConfig { tls: tls.clone(), ..shared.config.clone() };
        let server = server_config(&config)?;
        *shared.client_config() = client_config(&config)?;
        if let Some(endpoint) = &*self.inner.endpoint() {
            endpoint.set_server_config(Some(server));
        }
        Ok(())
    }

    /// Whether a connection to `node` stands; this node itself counts as connected.
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        let shared = &self.inner.shared;
        node == shared.config.node || shared.peer(node).is_some_and(|peer| peer.is_connected())
    }

    /// The peers that are dialed, with what has come from each so far, or `None` without a connection. A
    /// live peer's count grows at least once in each
    /// [`keep_alive_interval`](crate::Limits::keep_alive_interval), though nobody has anything to say.
    #[must_use]
    pub fn pulses(&self) -> BTreeMap<NodeId, Option<Pulse>> {
        self.inner.shared.pulses()
    }

    /// Where this node listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// Datagrams that one send call may carry; 1 when the kernel does not segment for us.
    #[must_use]
    pub fn segments_per_send(&self) -> usize {
        self.inner.segments_per_send
    }

    /// Requests that wait for a reply of `node`.
    #[must_use]
    pub fn pending_requests(&self, node: NodeId) -> usize {
        self.inner.shared.peer(node).map_or(0, |peer| peer.outbox.pending_requests())
    }

    /// Closes every connection, and waits shortly until the peers have heard of it and the port is
    /// free. Requests that wait fail.
    pub async fn close(self) {
        let Some(endpoint) = self.inner.shutdown() else { return };
        let farewell = async {
            endpoint.wait_idle().await;
            drop(endpoint);
            // The tasks of what was closed end by themselves, and tell nobody.
            while self.inner.socket.strong_count() > 0 {
                tokio::time::sleep(RELEASE_INTERVAL).await;
            }
        };
        // A peer that does not answer is not waited for.
        let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
    }
}

impl Inner {
    fn shutdown(&self) -> Option<Endpoint> {
        let endpoint = self.endpoint().take()?;
        let close = Close { code: close::SHUTDOWN, reason: "shutting down".to_owned() };
        for peer in self.shared.take_peers().values() {
            peer.stop(&close);
        }
        endpoint.close(VarInt::from_u32(close.code), close.reason.as_bytes());
        Some(endpoint)
    }

    fn endpoint(&self) -> MutexGuard<'_, Option<Endpoint>> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn check(config: &TransportConfig) -> Result<(), OpenError> {
    certificate_name(&config.cluster_name, &config.name)?;
    let limits = &config.limits;
    let settings = [
        ((1..=LANES_MAX).contains(&config.lanes), "lanes: 1 to 16"),
        ((1_200..=6_400).contains(&limits.mtu_max), "mtu_max: 1,200 to 6,400 bytes"),
        ((4_096..=1 << 30).contains(&limits.frame_bytes_max), "frame_bytes_max: 4 KiB to 1 GiB"),
        (
            limits.frame_bytes_target <= limits.frame_bytes_max,
            "frame_bytes_target: at most frame_bytes_max",
        ),
        (limits.lane_bytes_max >= limits.frame_bytes_max, "lane_bytes_max: a frame at least"),
        (limits.request_bytes_max >= limits.frame_bytes_max, "request_bytes_max: a frame at least"),
        (
            limits.keep_alive_interval < limits.idle_timeout,
            "keep_alive_interval: below idle_timeout",
        ),
        (limits.handshakes_max > 0, "handshakes_max: above 0"),
        (
            (1..=64).contains(&limits.snapshots_per_peer_max)
                && (limits.snapshots_per_peer_max..=1_024).contains(&limits.snapshots_max),
            "snapshots_per_peer_max: 1 to 64, and at most snapshots_max, which is at most 1,024",
        ),
        (
            limits.snapshot_bytes_per_second >= 1 << 20,
            "snapshot_bytes_per_second: at least 1 MiB/s",
        ),
    ];
    match settings.into_iter().find(|(holds, _)| !holds) {
        Some((_, text)) => Err(OpenError::Setting(text.to_owned())),
        None => Ok(()),
    }
}

fn bind(config: &TransportConfig) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(config.listen)?;
    let state = UdpSocketState::new((&socket).into())?;
    let bytes = config.limits.socket_buffer_bytes;
    // The kernel cuts them to its own bound, which is for the operator to raise.
    state.set_recv_buffer_size((&socket).into(), bytes)?;
    state.set_send_buffer_size((&socket).into(), bytes)?;
    Ok(socket)
}

fn server_config(config: &TransportConfig) -> Result<quinn::ServerConfig, TlsError> {
    let crypto = Arc::new(tls::server_config(&config.tls)?);
    let mut quic = quic_config(config);
    quic.max_concurrent_uni_streams(OPEN_UNI_STREAMS_MAX.into());
    quic.max_concurrent_bidi_streams((OPEN_BIDI_STREAMS_MAX + snapshot_streams(config)).into());
    let mut server = quinn::ServerConfig::with_crypto(crypto);
    server.transport_config(Arc::new(quic));
    // Attempts that wait to be taken are taken at once, so that few need memory.
    server.max_incoming(config.limits.handshakes_max);
    server.incoming_buffer_size(16 << 10);
    server.incoming_buffer_size_total(1 << 20);
    Ok(server)
}

fn client_config(config: &TransportConfig) -> Result<quinn::ClientConfig, TlsError> {
    let crypto = Arc::new(tls::client_config(&config.tls)?);
    let mut quic = quic_config(config);
    // One side is enough to keep a connection alive.
    quic.keep_alive_interval(Some(config.limits.keep_alive_interval));
    // The side that is dialed opens no streams.
    quic.max_concurrent_uni_streams(VarInt::from_u32(0));
    quic.max_concurrent_bidi_streams(VarInt::from_u32(0));
    let mut client = quinn::ClientConfig::new(crypto);
    client.transport_config(Arc::new(quic));
    Ok(client)
}

/// Streams for snapshots, with room for some that are ending or will be told that they are too many.
fn snapshot_streams(config: &TransportConfig) -> u32 {
    u32::try_from(2 * config.limits.snapshots_per_peer_max).unwrap_or(u32::MAX >> 1)
}

fn quic_config(config: &TransportConfig) -> QuicConfig {
    let Limits { stream_window_bytes, idle_timeout, mtu_max, .. } = config.limits;
    // A connection's windows hold those of its lanes (appends, requests, control), of its snapshots and
    // one more, so that votes and beats always find room, however full the other streams are.
    let streams = (config.lanes + config.limits.snapshots_per_peer_max) as u64 + 3;
    let windows = u64::from(stream_window_bytes) * streams;
    let mut quic = QuicConfig::default();
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW_BYTES);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_THRESHOLD.into()).max_ack_delay(Some(ACK_DELAY));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(mtu_max);
    quic.stream_receive_window(stream_window_bytes.into())
        .receive_window(VarInt::from_u64(windows).unwrap_or(VarInt::MAX))
        .send_window(windows)
        .send_fairness(false)
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(Arc::new(congestion))
        .ack_frequency_config(Some(acks))
        .mtu_discovery_config(Some(mtu))
        .max_idle_timeout(IdleTimeout::try_from(idle_timeout).ok())
        .datagram_receive_buffer_size(None);
    quic
}
