//! The outgoing connection to one peer: dial, greet, send, and begin again when it ends.
//!
//! Every node dials every peer and sends on its own connection; what comes in on it are only the
//! replies to its requests. So each connection has exactly one owner: there is no choice to make when
//! two nodes dial each other at once, nothing to agree on when one of them reconnects, and a node that
//! its peers cannot name yet (it joins, or has moved) can talk to them all the same. The price is
//! that acknowledgements seldom share packets with data; the peers are asked to send few.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use quorate_types::NodeId;
use tokio::net::lookup_host;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::close::{self, Close, Ending, ending};
use crate::frame::{Frame, FrameError, FrameReader, StreamKind};
use crate::handler::{PeerEvent, Pulse};
use crate::hello::{HELLO_BYTES_MAX, Hello};
use crate::metrics::{LaneKind, PeerMetrics};
use crate::outbox::Outbox;
use crate::request::take_items;
use crate::shared::{Shared, certificate_of};
use crate::vital;
use crate::writer::{Route, Writer};

/// QUIC sends streams of higher priority first.
const CONTROL_PRIORITY: i32 = 2;
const DATA_PRIORITY: i32 = 1;

/// How long an attempt is left alone though the peer has dialed us.
const PATIENCE: Duration = Duration::from_millis(250);

pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) address: String,
    /// The name of its certificate.
    server_name: String,
    pub(crate) outbox: Arc<Outbox>,
    /// Places for snapshots to this peer.
    pub(crate) snapshots: Semaphore,
    metrics: PeerMetrics,
    /// Ends the wait before the next attempt.
    retry: Notify,
    /// The live connection and the peer's session on it.
    session: Mutex<Option<(Connection, u64)>>,
    task: Mutex<Option<AbortHandle>>,
}

/// A connection whose handshake is done.
struct Session {
    connection: Connection,
    hello: Hello,
    streams: Vec<(SendStream, LaneKind)>,
    replies: RecvStream,
}

impl Peer {
    pub(crate) fn new(
        node: NodeId,
        name: String,
        address: String,
        server_name: String,
        shared: &Shared,
    ) -> Self {
        let config = &shared.config;
        let outbox = Outbox::new(config.lanes, config.limits.clone(), shared.metrics.clone());
        Self {
            node,
            metrics: shared.metrics.peer(&name),
            name,
            address,
            server_name,
            outbox: Arc::new(outbox),
            snapshots: Semaphore::new(config.limits.snapshots_per_peer_max),
            retry: Notify::new(),
            session: Mutex::default(),
            task: Mutex::default(),
        }
    }

    /// Begins to dial, and never stops by itself.
    pub(crate) fn start(self: &Arc<Self>, shared: Arc<Shared>, endpoint: Endpoint) {
        let task = vital::spawn("peer", self.clone().run(shared, endpoint));
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }

    /// Stops dialing and closes the connection; everything that waits fails.
    pub(crate) fn stop(&self, close: &Close) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        self.end(close);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.session().is_some()
    }

    /// Ends the session, if there is one.
    fn end(&self, close: &Close) {
        if let Some((connection, _)) = self.session().take() {
            close.apply(&connection);
            self.metrics.connected.decrement(1.0);
        }
        self.outbox.disconnect();
    }

    /// The peer has dialed us and was let in, with `session`: it lives. A connection of ours to an
    /// earlier process of it is dead, whether or not QUIC has noticed.
    pub(crate) fn on_incoming(&self, session: u64) {
        if let Some((connection, known)) = &*self.session() {
            if *known == session {
                return;
            }
            let reason = "the peer has restarted".to_owned();
            Close { code: close::SUPERSEDED, reason }.apply(connection);
        }
        self.retry.notify_one();
    }

    async fn run(self: Arc<Self>, shared: Arc<Shared>, endpoint: Endpoint) {
        let limits = &shared.config.limits;
        let mut backoff =
            Backoff::new(limits.reconnect_delay_min, limits.reconnect_delay_max, seed());
        let mut refusal = None;
        let mut was_up = false;
        let mut attempt = 0;
        loop {
            let result = tokio::select! {
                result = self.connect(&shared, &endpoint, attempt) => result,
                () = self.called() => {
                    let reason = "the peer dialed us meanwhile".to_owned();
                    self.retry.notify_one();
                    Err(Ending::Lost(reason))
                }
            };
            match result {
                Ok(session) => {
                    if std::mem::replace(&mut was_up, true) {
                        self.metrics.reconnects.increment(1);
                    }
                    refusal = None;
                    let began = Instant::now();
                    let reason = self.drive(&shared, session).await;
                    // A peer that lets us in and throws us out again is not dialed ever faster.
                    if began.elapsed() > limits.reconnect_delay_max {
                        backoff.reset();
                    }
                    info!(peer = %self.name, reason, "connection lost");
                    shared.handler.on_peer(self.node, PeerEvent::Down { reason });
                }
                Err(Ending::Lost(reason)) => debug!(peer = %self.name, reason, "cannot connect"),
                Err(ending) => {
                    let event: fn(String) -> PeerEvent = match &ending {
                        Ending::Removed(_) => |reason| PeerEvent::Removed { reason },
                        Ending::Copy(_) => |reason| PeerEvent::Copy { reason },
                        Ending::Refused(_) | Ending::Lost(_) => {
                            |reason| PeerEvent::Refused { reason }
                        }
                    };
                    let reason = ending.reason();
                    if refusal.as_ref() != Some(&reason) {
                        warn!(peer = %self.name, reason, "connection refused");
                        refusal = Some(reason.clone());
                        shared.handler.on_peer(self.node, event(reason));
                    }
                }
            }
            attempt += 1;
            tokio::select! {
                () = sleep(backoff.next()) => {}
                () = self.retry.notified() => {}
            }
        }
    }

    /// Resolves when an attempt has had time, and the peer dials us: it has been away, and an
    /// attempt from before it returned could be seconds from sending again.
    async fn called(&self) {
        sleep(PATIENCE).await;
        self.retry.notified().await;
    }

    async fn connect(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        attempt: usize,
    ) -> Result<Session, Ending> {
        let handshake = async {
            let connection = self.dial(shared, endpoint, attempt).await?;
            match self.greet(shared, &connection).await {
                Ok(session) => Ok(session),
                Err(GreetError::Ours(close)) => {
                    close.apply(&connection);
                    Err(Ending::Refused(format!("refused by us: {}", close.reason)))
                }
                Err(GreetError::Theirs(error)) => Err(match connection.close_reason() {
                    Some(reason) => ending(&reason),
                    None => Ending::Lost(error),
                }),
            }
        };
        match timeout(shared.config.limits.handshake_timeout, handshake).await {
            Ok(result) => result,
            // Dropping what it was doing closes the connection.
            Err(_) => Err(Ending::Lost("the handshake took too long".to_owned())),
        }
    }

    async fn dial(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        attempt: usize,
    ) -> Result<Connection, Ending> {
        let lost = |error: String| Ending::Lost(error);
        let local = endpoint.local_addr().map_err(|error| lost(error.to_string()))?;
        let found = lookup_host(&self.address).await;
        let found = found.map_err(|error| lost(format!("{}: {error}", self.address)))?;
        // A socket of IPv4 reaches nothing else; attempts go round the rest.
        let mut found: Vec<_> = found.filter(|to| to.is_ipv4() || local.is_ipv6()).collect();
        if found.is_empty() {
            return Err(lost(format!("{}: no usable address", self.address)));
        }
        let address = found.swap_remove(attempt % found.len());
        let config = shared.client_config().clone();
        let connecting = endpoint.connect_with(config, address, &self.server_name);
        let connecting = connecting.map_err(|error| lost(error.to_string()))?;
        connecting.await.map_err(|error| ending(&error))
    }

    /// Exchanges Hellos and opens the lanes.
    async fn greet(&self, shared: &Shared, connection: &Connection) -> Result<Session, GreetError> {
        let (mut send, recv) = connection.open_bi().await.map_err(theirs)?;
        let ours = shared.handler.hello(self.node);
        write_hello(&mut send, Some(StreamKind::Hello), &ours).await.map_err(theirs)?;
        let frame = FrameReader::new(recv).next(HELLO_BYTES_MAX).await;
        let frame = frame.map_err(|error| match error {
            FrameError::Read(error) => theirs(error),
            FrameError::TooLarge { .. }
            | FrameError::Malformed(_)
            | FrameError::UnknownStream(_)
            | FrameError::Ended => GreetError::Ours(error.close()),
        })?;
        let hello = Hello::decode(frame)
            .map_err(|error| GreetError::Ours(Close::malformed(error.to_string())))?;
        self.check(shared, connection, &hello).map_err(GreetError::Ours)?;

        let mut streams = Vec::with_capacity(2 + shared.config.lanes);
        let control = open(connection, StreamKind::Control, 0, CONTROL_PRIORITY).await?;
        streams.push((control, LaneKind::Control));
        let (mut requests, replies) = connection.open_bi().await.map_err(theirs)?;
        requests.set_priority(DATA_PRIORITY).map_err(theirs)?;
        requests.write_all(&StreamKind::Request.preface(0)).await.map_err(theirs)?;
        streams.push((requests, LaneKind::Request));
        for lane in 0..shared.config.lanes {
            let lane = u8::try_from(lane).unwrap_or(u8::MAX);
            let stream = open(connection, StreamKind::Append, lane, DATA_PRIORITY).await?;
            streams.push((stream, LaneKind::Append));
        }
        Ok(Session { connection: connection.clone(), hello, streams, replies })
    }

    /// Whether the node that answered is the one that was dialed, and is let in.
    fn check(&self, shared: &Shared, connection: &Connection, hello: &Hello) -> Result<(), Close> {
        let config = &shared.config;
        let certificate = certificate_of(connection);
        hello.check(certificate.as_ref(), &config.cluster_name, config.node)?;
        // Without an id of its own, a node knows its peers by name alone.
        let meant = hello.node == self.node || config.node == NodeId::ZERO;
        if !meant || hello.node_name != self.name {
            let (dialed, name) = (self.node, &self.name);
            let reason = format!(
                "node {dialed} {name:?} was dialed, node {} {:?} answered",
                hello.node, hello.node_name
            );
            return Err(Close::target(reason));
        }
        shared.handler.admit(hello).map_err(Close::refusal)
    }

    /// Sends until the connection ends; says why it did.
    async fn drive(&self, shared: &Arc<Shared>, session: Session) -> String {
        let Session { connection, hello, streams, replies } = session;
        let _live = Live(self);
        info!(peer = %self.name, address = %connection.remote_address(), "connected");
        self.outbox.connect();
        *self.session() = Some((connection.clone(), hello.session));
        self.metrics.connected.increment(1.0);
        shared.handler.on_peer(self.node, PeerEvent::Up { hello });

        // Ends with the connection.
        let outbox = self.outbox.clone();
        let reading = read_replies(shared.clone(), connection.clone(), outbox, replies);
        vital::spawn("replies", reading);
        let route = Route {
            link: shared.link.clone(),
            from: shared.config.node,
            to: self.node,
            held_bytes_max: shared.config.limits.lane_bytes_max,
        };
        let writer = Writer::new(streams, self.outbox.clone(), route, shared.metrics.clone())
            .observe_rtt(connection.clone(), self.metrics.rtt_us.clone());
        tokio::select! {
            error = connection.closed() => ending(&error).reason(),
            // A peer that stops one of our streams does not speak our protocol.
            error = writer.run() => match connection.close_reason() {
                Some(reason) => ending(&reason).reason(),
                None => {
                    let close = Close::malformed(error.to_string());
                    close.apply(&connection);
                    close.reason
                }
            },
        }
    }

    /// What has come from the peer over the connection that we send over, if there is one. An idle peer
    /// answers our keep-alives.
    pub(crate) fn pulse(&self) -> Option<Pulse> {
        self.session().as_ref().map(|(connection, session)| Pulse {
            session: *session,
            datagrams: connection.stats().udp_rx.datagrams,
        })
    }

    /// The connection that we send over, if there is one.
    pub(crate) fn connection(&self) -> Option<Connection> {
        self.session().as_ref().map(|(connection, _)| connection.clone())
    }

    fn session(&self) -> MutexGuard<'_, Option<(Connection, u64)>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a peer's session however its task ends.
struct Live<'a>(&'a Peer);

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.0.end(&Close { code: close::SHUTDOWN, reason: "the session has ended".to_owned() });
    }
}

/// Whose fault it is that greeting failed.
enum GreetError {
    /// We do not want the peer.
    Ours(Close),
    /// The connection failed; it knows why.
    Theirs(String),
}

fn theirs(error: impl std::fmt::Display) -> GreetError {
    GreetError::Theirs(error.to_string())
}

async fn open(
    connection: &Connection,
    kind: StreamKind,
    index: u8,
    priority: i32,
) -> Result<SendStream, GreetError> {
    let mut stream = connection.open_uni().await.map_err(theirs)?;
    stream.set_priority(priority).map_err(theirs)?;
    stream.write_all(&kind.preface(index)).await.map_err(theirs)?;
    Ok(stream)
}

/// Writes a Hello, and with it the preface of its stream if it is the dialer's.
pub(crate) async fn write_hello(
    stream: &mut SendStream,
    preface: Option<StreamKind>,
    hello: &Hello,
) -> Result<(), quinn::WriteError> {
    if let Some(kind) = preface {
        stream.write_all(&kind.preface(0)).await?;
    }
    let body = hello.encode();
    let mut buf = Frame::begin(body.len());
    buf.extend_from_slice(&body);
    stream.write_chunk(Frame::finish(buf, 0).bytes).await
}

/// A seed for jitter, different for every task: the standard library's own entropy.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Hands replies to their waiters until the stream fails, and the connection with it.
async fn read_replies(
    shared: Arc<Shared>,
    connection: Connection,
    outbox: Arc<Outbox>,
    stream: RecvStream,
) {
    let received = &shared.metrics.lane(LaneKind::Reply).received;
    let mut frames = FrameReader::new(stream);
    let error = loop {
        let frame = match frames.next(shared.config.limits.frame_bytes_max).await {
            Ok(frame) => frame,
            Err(error) => break error,
        };
        let bytes = frame.len();
        match take_items(frame) {
            Ok(items) => {
                received.count(bytes, items.len());
                outbox.on_replies(items);
            }
            Err(error) => break error.into(),
        }
    };
    error.close().apply(&connection);
}
