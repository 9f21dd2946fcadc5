//! Tests over real QUIC on the loopback interface: nodes with all that belongs to them, and bare
//! peers that misbehave. Tests wait for events; [`PATIENCE`] only ends those that would hang.

mod exchange;
mod figures;
mod hostile;
mod identity;
mod relay;
mod requests;
mod shaped;
mod snapshots;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use quorate_types::{Body, Entry, EntryId, GroupId, Incarnation, LogIndex, Message, NodeId};
use quorate_types::{Payload, Term};
use tokio::sync::mpsc;

use crate::frame::{FrameReader, StreamKind};
use crate::hello::HELLO_BYTES_MAX;
use crate::peer::write_hello;
use crate::tls::{self, Ca, TlsConfig, make_ca};
use crate::{
    Handler, Hello, Limits, Link, PeerEvent, Refusal, Replier, RequestError, SnapshotOffer,
    Straight, Transport, TransportConfig,
};

const PATIENCE: Duration = Duration::from_secs(60);

const CLUSTER: &str = "test";

/// What a node was told.
#[derive(Debug)]
enum Event {
    Peer(NodeId, PeerEvent),
    Messages(NodeId, Vec<Message>),
    Request(Bytes, u32, Replier),
    Snapshot(SnapshotOffer),
}

/// A node without a node: it records what it is told.
struct Probe {
    words: Hello,
    refuse: Mutex<Option<Refusal>>,
    events: mpsc::UnboundedSender<Event>,
}

impl Handler for Probe {
    fn hello(&self, target: NodeId) -> Hello {
        Hello { target, ..self.words.clone() }
    }

    fn admit(&self, _peer: &Hello) -> Result<(), Refusal> {
        self.refuse.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn on_peer(&self, node: NodeId, event: PeerEvent) {
        let _ = self.events.send(Event::Peer(node, event));
    }

    fn on_messages(&self, from: NodeId, messages: Vec<Message>) {
        let _ = self.events.send(Event::Messages(from, messages));
    }

    fn on_request(
        &self,
        _from: NodeId,
        _name: &str,
        body: Bytes,
        deadline_ms: u32,
        reply: Replier,
    ) {
        let _ = self.events.send(Event::Request(body, deadline_ms, reply));
    }

    fn on_snapshot(&self, offer: SnapshotOffer) {
        let _ = self.events.send(Event::Snapshot(offer));
    }
}

/// A node under test.
struct Node {
    id: NodeId,
    transport: Transport,
    probe: Arc<Probe>,
    events: mpsc::UnboundedReceiver<Event>,
    figures: Figures,
}

/// How a node under test is opened.
struct Recipe {
    config: TransportConfig,
    words: Hello,
    link: Arc<dyn Link>,
}

fn name_of(id: u64) -> String {
    format!("n{id}")
}

fn words(id: u64) -> Hello {
    Hello {
        cluster_name: CLUSTER.into(),
        cluster_digest: [1; 32],
        node: NodeId(id),
        node_name: name_of(id),
        incarnation: Incarnation(id),
        session: 1,
        started: true,
        synced_batches: 0,
        target: NodeId(0),
    }
}

fn tls_of(ca: &Ca, cluster: &str, name: &str) -> TlsConfig {
    let issued = ca.issue(cluster, name, &[]).unwrap();
    TlsConfig {
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
        ca_pem: ca.cert_pem().to_owned(),
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

impl Recipe {
    fn new(ca: &Ca, id: u64) -> Self {
        let config = TransportConfig {
            listen: loopback(),
            node: NodeId(id),
            name: name_of(id),
            cluster_name: CLUSTER.into(),
            tls: tls_of(ca, CLUSTER, &name_of(id)),
            lanes: crate::LANES,
            limits: Limits::default(),
        };
        Self { config, words: words(id), link: Arc::new(Straight) }
    }

    async fn open(self) -> Node {
        let (sender, events) = mpsc::unbounded_channel();
        let id = self.config.node;
        let probe = Arc::new(Probe { words: self.words, refuse: Mutex::default(), events: sender });
        let figures = Figures::default();
        let transport = Transport::open(self.config, probe.clone(), self.link, &figures);
        Node { id, transport: transport.await.unwrap(), probe, events, figures }
    }
}

impl Node {
    async fn open(ca: &Ca, id: u64) -> Self {
        Recipe::new(ca, id).open().await
    }

    fn dial(&self, other: &Self) {
        self.dial_at(other.id.value(), other.transport.local_addr());
    }

    fn dial_at(&self, id: u64, address: SocketAddr) {
        self.transport.add_peer(NodeId(id), &name_of(id), address.to_string()).unwrap();
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.expect("no event").expect("the node is open")
    }

    /// Waits until something comes out of `pick`; other events are dropped.
    async fn wait<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(self.event().await) {
                return found;
            }
        }
    }

    async fn up(&mut self, peer: u64) -> Hello {
        self.wait(|event| match event {
            Event::Peer(node, PeerEvent::Up { hello }) if node == NodeId(peer) => Some(hello),
            _ => None,
        })
        .await
    }

    async fn down(&mut self, peer: u64) -> String {
        self.wait(|event| match event {
            Event::Peer(node, PeerEvent::Down { reason }) if node == NodeId(peer) => Some(reason),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self, peer: u64) -> String {
        self.wait(|event| match event {
            Event::Peer(node, PeerEvent::Refused { reason }) if node == NodeId(peer) => {
                Some(reason)
            }
            _ => None,
        })
        .await
    }

    async fn removed(&mut self, peer: u64) -> String {
        self.wait(|event| match event {
            Event::Peer(node, PeerEvent::Removed { reason }) if node == NodeId(peer) => {
                Some(reason)
            }
            _ => None,
        })
        .await
    }

    async fn copy(&mut self, peer: u64) -> String {
        self.wait(|event| match event {
            Event::Peer(node, PeerEvent::Copy { reason }) if node == NodeId(peer) => Some(reason),
            _ => None,
        })
        .await
    }

    async fn messages(&mut self) -> (NodeId, Vec<Message>) {
        self.wait(|event| match event {
            Event::Messages(from, messages) => Some((from, messages)),
            _ => None,
        })
        .await
    }

    /// The next `count` messages, whatever frames they come in.
    async fn collect(&mut self, count: usize) -> Vec<Message> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.messages().await.1);
        }
        assert_eq!(all.len(), count);
        all
    }

    async fn request(&mut self) -> (Bytes, u32, Replier) {
        self.wait(|event| match event {
            Event::Request(body, deadline_ms, reply) => Some((body, deadline_ms, reply)),
            _ => None,
        })
        .await
    }

    async fn offer(&mut self) -> SnapshotOffer {
        self.wait(|event| match event {
            Event::Snapshot(offer) => Some(offer),
            _ => None,
        })
        .await
    }
}

/// Two nodes that are connected both ways.
async fn pair(ca: &Ca) -> (Node, Node) {
    let (mut one, mut two) = (Node::open(ca, 1).await, Node::open(ca, 2).await);
    one.dial(&two);
    two.dial(&one);
    one.up(2).await;
    two.up(1).await;
    (one, two)
}

fn beat(from: u64, to: u64, round: u64) -> Message {
    Message {
        group: GroupId(1),
        from: NodeId(from),
        to: NodeId(to),
        term: Term(1),
        body: Body::Heartbeat { commit: LogIndex(0), round },
    }
}

/// An append of one entry of `bytes` bytes at `index`.
fn append(from: u64, to: u64, group: u64, index: u64, bytes: usize) -> Message {
    let id = EntryId::new(Term(1), LogIndex(index));
    let prev = EntryId::new(Term(1), LogIndex(index - 1));
    let payload = Payload::Command(Bytes::from(vec![index as u8; bytes]));
    Message {
        group: GroupId(group),
        from: NodeId(from),
        to: NodeId(to),
        term: Term(1),
        body: Body::Append { prev, entries: vec![Entry { id, payload }], commit: LogIndex(0) },
    }
}

fn index_of(message: &Message) -> u64 {
    match &message.body {
        Body::Append { prev, .. } => prev.index.value() + 1,
        body => panic!("not an append: {body:?}"),
    }
}

fn round_of(message: &Message) -> Option<u64> {
    match &message.body {
        Body::Heartbeat { round, .. } => Some(*round),
        _ => None,
    }
}

/// A peer made of bare QUIC, which does only what a test tells it to.
struct Bare {
    endpoint: quinn::Endpoint,
    words: Hello,
}

impl Bare {
    fn new(tls: &TlsConfig, id: u64) -> Self {
        Self::with_window(tls, id, 1 << 20)
    }

    /// One that takes at most `window` unread bytes per stream.
    fn with_window(tls: &TlsConfig, id: u64, window: u32) -> Self {
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(window.into());
        let transport = Arc::new(transport);
        let crypto = Arc::new(tls::server_config(tls).unwrap());
        let mut server = quinn::ServerConfig::with_crypto(crypto);
        server.transport_config(transport.clone());
        let mut endpoint = quinn::Endpoint::server(server, loopback()).unwrap();
        let crypto = Arc::new(tls::client_config(tls).unwrap());
        let mut client = quinn::ClientConfig::new(crypto);
        client.transport_config(transport);
        endpoint.set_default_client_config(client);
        Self { endpoint, words: words(id) }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    /// TLS alone.
    async fn dial(&self, node: &Node) -> Result<quinn::Connection, quinn::ConnectionError> {
        let name = crate::identity::certificate_name(CLUSTER, &name_of(node.id.value())).unwrap();
        self.endpoint.connect(node.transport.local_addr(), &name).unwrap().await
    }

    /// TLS and Hellos.
    async fn greet(&self, node: &Node) -> Result<quinn::Connection, quinn::ConnectionError> {
        let connection = self.dial(node).await?;
        let (mut send, recv) = connection.open_bi().await?;
        let ours = Hello { target: node.id, ..self.words.clone() };
        let _ = write_hello(&mut send, Some(StreamKind::Hello), &ours).await;
        match FrameReader::new(recv).next(HELLO_BYTES_MAX).await {
            Ok(hello) => {
                assert_eq!(Hello::decode(hello).unwrap().node, node.id);
                Ok(connection)
            }
            Err(_) => Err(closed(&connection).await),
        }
    }

    /// Lets a node in that dials.
    async fn accept(&self, target: NodeId) -> quinn::Connection {
        let incoming = tokio::time::timeout(PATIENCE, self.endpoint.accept()).await;
        let connection = incoming.expect("nobody dials").unwrap().await.unwrap();
        let (mut send, recv) = connection.accept_bi().await.unwrap();
        let mut frames = FrameReader::new(recv);
        frames.preface().await.unwrap();
        Hello::decode(frames.next(HELLO_BYTES_MAX).await.unwrap()).unwrap();
        let ours = Hello { target, ..self.words.clone() };
        write_hello(&mut send, None, &ours).await.unwrap();
        connection
    }
}

async fn closed(connection: &quinn::Connection) -> quinn::ConnectionError {
    tokio::time::timeout(PATIENCE, connection.closed()).await.expect("still open")
}

/// The application code and the reason of a close.
fn code_of(error: &quinn::ConnectionError) -> (u64, String) {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
        }
        error => panic!("not closed by the application: {error}"),
    }
}

/// A recorder that can be read.
#[derive(Clone, Default)]
struct Figures {
    values: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
}

impl Figures {
    /// The counter of this name and these labels, as `name{label}`.
    fn counter(&self, key: &str) -> u64 {
        let values = self.values.lock().unwrap();
        values.get(key).unwrap_or_else(|| panic!("no counter {key}")).load(Ordering::Relaxed)
    }

    fn knows(&self, key: &str) -> bool {
        self.values.lock().unwrap().contains_key(key)
    }

    fn gauge(&self, key: &str) -> f64 {
        f64::from_bits(self.counter(key))
    }

    fn slot(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> = key.labels().map(metrics::Label::value).collect();
        let name = if labels.is_empty() {
            key.name().to_owned()
        } else {
            format!("{}{{{}}}", key.name(), labels.join(","))
        };
        self.values.lock().unwrap().entry(name).or_default().clone()
    }
}

impl Recorder for Figures {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.slot(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.slot(key))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

fn authority() -> Ca {
    make_ca(CLUSTER).unwrap()
}
