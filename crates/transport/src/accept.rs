//! Incoming connections: how strangers are kept cheap, and how a peer's frames reach the node.
//!
//! 1. [`run`] takes an attempt, or ignores it when too many are underway, or makes the address prove
//!    itself first. 2. [`greet`] finishes TLS, reads the peer's Hello, checks it, asks the node, and
//!    answers. 3. [`serve`] takes the streams that the peer opens; each has a task that reads frames
//!    and hands them on. Whatever is malformed closes that connection, and no other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use quorate_types::NodeId;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::close::{self, Close, Ending, ending};
use crate::config::LANES_MAX;
use crate::frame::{FrameError, FrameReader, StreamKind};
use crate::handler::PeerEvent;
use crate::hello::{HELLO_BYTES_MAX, Hello};
use crate::metrics::LaneKind;
use crate::peer::write_hello;
use crate::reply::ReplyQueue;
use crate::request::{Item, take_items};
use crate::shared::{Shared, certificate_of};
use crate::snapshot::{self, Receiving};
use crate::vital;
use crate::writer::{Route, Writer};

/// Streams that a peer may open over the life of a connection, but for those of snapshots: ours live as
/// long as their connection, so more of them are a flood.
const STREAMS_MAX: usize = 2 * (1 + LANES_MAX);

/// Refusals are written to the log this often at most.
const WARN_INTERVAL: Duration = Duration::from_secs(1);

/// A handshake that came to nothing before anybody was let in.
enum GreetError {
    /// The peer (as far as it said who it is) is not wanted.
    Refused(Option<NodeId>, Close),
    /// TLS or the connection failed.
    Failed(Ending),
}

/// Takes attempts until the endpoint is closed.
pub(crate) async fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    let handshakes = Arc::new(Handshakes::default());
    while let Some(incoming) = endpoint.accept().await {
        let limits = &shared.config.limits;
        let address = incoming.remote_address().ip();
        let (total, of_address) = handshakes.counts(address);
        if total >= limits.handshakes_max
            || of_address >= (limits.handshakes_max / 4).max(1)
            || endpoint.open_connections() >= limits.connections_max
        {
            shared.metrics.refused.flood.increment(1);
            incoming.ignore();
        } else if total >= limits.handshakes_max / 4 && incoming.may_retry() {
            // An address that cannot hear us costs no cryptography.
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
        } else {
            let permit = handshakes.clone().enter(address);
            vital::spawn("connection", attend(shared.clone(), incoming, permit));
        }
    }
}

/// One connection, from its first packet to its end.
async fn attend(shared: Arc<Shared>, incoming: Incoming, permit: Permit) {
    let address = incoming.remote_address();
    let limits = &shared.config.limits;
    let greeting = timeout(limits.handshake_timeout, greet(&shared, incoming)).await;
    let handshakes = permit.handshakes.clone();
    drop(permit);
    let refused = &shared.metrics.refused;
    match greeting {
        Ok(Ok((connection, hello))) => {
            info!(peer = %hello.node_name, %address, "peer connected");
            serve(&shared, connection, hello).await;
        }
        Ok(Err(GreetError::Refused(node, close))) => {
            let reason = format!("refused by us: {}", close.reason);
            if handshakes.may_warn() {
                warn!(%address, claimed = ?node, reason, "peer refused");
            }
            match close.code {
                close::IDENTITY => refused.identity.increment(1),
                close::CLUSTER => refused.cluster.increment(1),
                close::TARGET => refused.target.increment(1),
                close::POLICY | close::REMOVED | close::COPY => refused.policy.increment(1),
                _ => refused.malformed.increment(1),
            }
            if let Some(node) = node {
                shared.handler.on_peer(node, PeerEvent::Refused { reason });
            }
        }
        Ok(Err(GreetError::Failed(
            Ending::Refused(reason) | Ending::Removed(reason) | Ending::Copy(reason),
        ))) => {
            if handshakes.may_warn() {
                warn!(%address, reason, "handshake refused");
            }
            refused.tls.increment(1);
        }
        Ok(Err(GreetError::Failed(Ending::Lost(reason)))) => {
            debug!(%address, reason, "handshake failed");
        }
        Err(_) => {
            debug!(%address, "handshake timed out");
            refused.timeout.increment(1);
        }
    }
}

/// TLS and Hellos.
async fn greet(shared: &Shared, incoming: Incoming) -> Result<(Connection, Hello), GreetError> {
    let failed = |error: &quinn::ConnectionError| GreetError::Failed(ending(error));
    let connecting = incoming.accept().map_err(|error| failed(&error))?;
    let connection = connecting.await.map_err(|error| failed(&error))?;
    let mut guard = CloseOnDrop(Some(connection.clone()));
    let (mut send, recv) = connection.accept_bi().await.map_err(|error| failed(&error))?;
    let result = match read_hello(shared, &connection, recv).await {
        Ok(hello) => {
            let ours = shared.handler.hello(hello.node);
            match write_hello(&mut send, None, &ours).await {
                // Nothing follows on this stream; its end need not be waited for.
                Ok(()) => send.finish().map(|()| hello).map_err(|error| lost(&connection, &error)),
                Err(error) => Err(lost(&connection, &error)),
            }
        }
        Err(error) => Err(error),
    };
    guard.0 = None;
    if let Err(GreetError::Refused(_, close)) = &result {
        close.apply(&connection);
    }
    let hello = result?;
    Ok((connection, hello))
}

async fn read_hello(
    shared: &Shared,
    connection: &Connection,
    recv: RecvStream,
) -> Result<Hello, GreetError> {
    let mut frames = FrameReader::new(recv);
    let failed = |error: FrameError| match error {
        FrameError::Read(error) => lost(connection, &error),
        error => GreetError::Refused(None, error.close()),
    };
    let preface = frames.preface().await.map_err(failed)?;
    if StreamKind::of(preface) != Some(StreamKind::Hello) {
        return Err(GreetError::Refused(None, Close::malformed("a hello comes first")));
    }
    let frame = frames.next(HELLO_BYTES_MAX).await.map_err(failed)?;
    let hello = Hello::decode(frame)
        .map_err(|error| GreetError::Refused(None, Close::malformed(error.to_string())))?;
    let refused = |close| GreetError::Refused(Some(hello.node), close);
    let certificate = certificate_of(connection);
    let config = &shared.config;
    hello.check(certificate.as_ref(), &config.cluster_name, config.node).map_err(refused)?;
    shared.handler.admit(&hello).map_err(|refusal| refused(Close::refusal(refusal)))?;
    Ok(hello)
}

fn lost(connection: &Connection, error: &dyn std::fmt::Display) -> GreetError {
    GreetError::Failed(match connection.close_reason() {
        Some(reason) => ending(&reason),
        None => Ending::Lost(error.to_string()),
    })
}

/// Takes the peer's streams until the connection ends.
async fn serve(shared: &Arc<Shared>, connection: Connection, hello: Hello) {
    let node = hello.node;
    // Nodes without an id are many, and nobody is removed by none.
    let named = node != NodeId::ZERO;
    let replaced = named.then(|| shared.incoming().insert(node, connection.clone())).flatten();
    if let Some(old) = replaced {
        let reason = "a newer connection has taken over".to_owned();
        Close { code: close::SUPERSEDED, reason }.apply(&old);
    }
    if let Some(peer) = shared.peer(node) {
        peer.on_incoming(hello.session);
    }
    let replies = ReplyQueue::new(shared.config.limits.clone(), shared.metrics.clone());
    let replies = Arc::new(replies);
    let receiving = Arc::new(Receiving::new(shared.config.limits.snapshots_per_peer_max));
    let streams = Arc::new(AtomicUsize::new(0));
    let error = loop {
        let opened = tokio::select! {
            opened = connection.accept_uni() => opened.map(|recv| (None, recv)),
            opened = connection.accept_bi() => opened.map(|(send, recv)| (Some(send), recv)),
        };
        let (send, recv) = match opened {
            Ok(opened) => opened,
            Err(error) => break error,
        };
        if streams.fetch_add(1, Ordering::Relaxed) >= STREAMS_MAX {
            Close::malformed("too many streams").apply(&connection);
            continue;
        }
        let stream = Stream {
            shared: shared.clone(),
            node,
            name: hello.node_name.clone(),
            connection: connection.clone(),
            receiving: receiving.clone(),
            streams: streams.clone(),
        };
        vital::spawn("stream", stream.run(send, recv, replies.clone()));
    };
    replies.close();
    let mut incoming = shared.incoming();
    if incoming.get(&node).is_some_and(|live| live.stable_id() == connection.stable_id()) {
        incoming.remove(&node);
    }
    drop(incoming);
    match ending(&error) {
        Ending::Refused(reason) => shared.handler.on_peer(node, PeerEvent::Refused { reason }),
        Ending::Removed(reason) => shared.handler.on_peer(node, PeerEvent::Removed { reason }),
        Ending::Copy(reason) => shared.handler.on_peer(node, PeerEvent::Copy { reason }),
        Ending::Lost(reason) => info!(peer = %hello.node_name, reason, "peer disconnected"),
    }
}

/// One stream of a peer that was let in.
struct Stream {
    shared: Arc<Shared>,
    node: NodeId,
    name: String,
    connection: Connection,
    receiving: Arc<Receiving>,
    /// Streams of the connection so far, but for those of snapshots.
    streams: Arc<AtomicUsize>,
}

impl Stream {
    /// Reads until the stream fails; a stream that fails by itself takes its connection with it. Only
    /// those of snapshots come and go, and have bounds of their own.
    async fn run(self, send: Option<SendStream>, recv: RecvStream, replies: Arc<ReplyQueue>) {
        let mut frames = FrameReader::new(recv);
        let error = match frames.preface().await {
            Err(error) => error,
            Ok(preface) => match (StreamKind::of(preface), send) {
                (Some(StreamKind::Control), None) => {
                    self.shared.deliver(self.node, LaneKind::Control, frames).await
                }
                (Some(StreamKind::Append), None) => {
                    self.shared.deliver(self.node, LaneKind::Append, frames).await
                }
                (Some(StreamKind::Request), Some(send)) if replies.claim() => {
                    let writer = vital::spawn("reply", self.reply(send, replies.clone()));
                    let error = self.requests(frames, &replies).await;
                    writer.abort();
                    error
                }
                // A node without an id asks, and offers nothing.
                (Some(StreamKind::Snapshot), Some(send)) if self.node != NodeId::ZERO => {
                    self.streams.fetch_sub(1, Ordering::Relaxed);
                    let Self { shared, node, connection, receiving, .. } = self;
                    return snapshot::attend(shared, node, connection, receiving, send, frames)
                        .await;
                }
                _ => FrameError::UnknownStream(preface[0]),
            },
        };
        error.close().apply(&self.connection);
    }

    /// Sends replies until the stream fails.
    fn reply(
        &self,
        stream: SendStream,
        replies: Arc<ReplyQueue>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let route = Route {
            link: self.shared.link.clone(),
            from: self.shared.config.node,
            to: self.node,
            held_bytes_max: self.shared.config.limits.request_bytes_max,
        };
        let streams = vec![(stream, LaneKind::Reply)];
        let writer = Writer::new(streams, replies, route, self.shared.metrics.clone());
        let connection = self.connection.clone();
        async move {
            let error = writer.run().await;
            Close::malformed(error.to_string()).apply(&connection);
        }
    }

    /// Hands requests to the node.
    async fn requests(&self, mut frames: FrameReader, replies: &Arc<ReplyQueue>) -> FrameError {
        let received = &self.shared.metrics.lane(LaneKind::Request).received;
        loop {
            let frame = match frames.next(self.shared.config.limits.frame_bytes_max).await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            let bytes = frame.len();
            let items = match take_items(frame) {
                Ok(items) => items,
                Err(error) => return error.into(),
            };
            received.count(bytes, items.len());
            consume_budget().await;
            for item in items {
                match item {
                    Item::Request { id, deadline_ms, body } => {
                        if let Some(reply) = replies.accept(id) {
                            let handler = &self.shared.handler;
                            handler.on_request(self.node, &self.name, body, deadline_ms, reply);
                        }
                    }
                    // Replies to nothing: only a peer that errs sends them here.
                    Item::Reply { .. } | Item::Busy { .. } | Item::Dropped { .. } => {}
                }
            }
        }
    }
}

/// Closes a connection whose handshake was given up half-way.
struct CloseOnDrop(Option<Connection>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            let reason = "the handshake took too long".to_owned();
            Close { code: close::TIMEOUT, reason }.apply(connection);
        }
    }
}

/// The handshakes that are underway, by address.
#[derive(Default)]
struct Handshakes {
    running: Mutex<BTreeMap<IpAddr, usize>>,
    /// When a refusal was last written to the log.
    warned: Mutex<Option<Instant>>,
}

/// A place among the handshakes, given back when dropped.
struct Permit {
    handshakes: Arc<Handshakes>,
    address: IpAddr,
}

impl Handshakes {
    /// How many run, in total and from `address`.
    fn counts(&self, address: IpAddr) -> (usize, usize) {
        let running = self.running();
        (running.values().sum(), running.get(&address).copied().unwrap_or_default())
    }

    fn enter(self: Arc<Self>, address: IpAddr) -> Permit {
        *self.running().entry(address).or_default() += 1;
        Permit { handshakes: self, address }
    }

    /// Whether a refusal may be written to the log now: strangers must not fill it. All of them are
    /// counted.
    fn may_warn(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_some_and(|at| at.elapsed() < WARN_INTERVAL) {
            return false;
        }
        *warned = Some(Instant::now());
        true
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut running = self.handshakes.running();
        if let Some(count) = running.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.address);
            }
        }
    }
}
