//! What the transport counts: handles made once, from the recorder that the node was opened with.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use metrics::{Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder, Unit};

const METADATA: Metadata<'static> =
    Metadata::new("quorate_transport", Level::INFO, Some("quorate_transport"));

/// The kinds of lanes, as metrics tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LaneKind {
    Control,
    Append,
    Request,
    Reply,
}

/// Frames, messages (or requests, or replies) and bytes one way over lanes of one kind.
pub(crate) struct Traffic {
    pub(crate) frames: Counter,
    pub(crate) messages: Counter,
    pub(crate) bytes: Counter,
}

/// What is counted per kind of lane.
pub(crate) struct LaneMetrics {
    pub(crate) sent: Traffic,
    pub(crate) received: Traffic,
    pub(crate) queued_bytes: Gauge,
}

/// Messages that were not delivered, by reason.
pub(crate) struct Dropped {
    /// No connection to the peer.
    pub(crate) disconnected: Counter,
    /// The lane was over its byte bound.
    pub(crate) full: Counter,
    /// Larger than a frame may be.
    pub(crate) oversized: Counter,
    /// The link did not deliver them.
    pub(crate) link: Counter,
    /// Received under another node's name, or for another node.
    pub(crate) misaddressed: Counter,
    /// Received, of a kind that this build does not know.
    pub(crate) unknown: Counter,
}

/// Handshakes that came to nothing, by reason.
pub(crate) struct Refused {
    pub(crate) tls: Counter,
    pub(crate) identity: Counter,
    pub(crate) cluster: Counter,
    pub(crate) target: Counter,
    pub(crate) policy: Counter,
    pub(crate) malformed: Counter,
    pub(crate) timeout: Counter,
    /// Ignored: too many at a time.
    pub(crate) flood: Counter,
}

/// Snapshots, both ways.
pub(crate) struct SnapshotMetrics {
    pub(crate) sent: SnapshotTraffic,
    pub(crate) received: SnapshotTraffic,
}

/// Snapshots one way.
#[derive(Clone)]
pub(crate) struct SnapshotTraffic {
    pub(crate) bytes: Counter,
    active: Gauge,
    done: Counter,
    busy: Counter,
    refused: Counter,
    failed: Counter,
}

/// What became of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Done,
    Busy,
    Refused,
    Failed,
}

/// A snapshot that is under way: counted as failed unless it ends otherwise.
pub(crate) struct Under {
    traffic: SnapshotTraffic,
    outcome: Outcome,
}

/// What is shown per peer.
#[derive(Clone)]
pub(crate) struct PeerMetrics {
    pub(crate) rtt_us: Gauge,
    pub(crate) connected: Gauge,
    pub(crate) reconnects: Counter,
}

pub(crate) struct Metrics {
    control: LaneMetrics,
    append: LaneMetrics,
    request: LaneMetrics,
    reply: LaneMetrics,
    pub(crate) dropped: Dropped,
    pub(crate) refused: Refused,
    pub(crate) segments_per_send: Gauge,
    pub(crate) snapshots: SnapshotMetrics,
    /// By peer name; a peer that was never labelled is shown as [`OTHER`].
    peers: Mutex<BTreeMap<String, PeerMetrics>>,
    other: PeerMetrics,
}

/// Peers with a label of their own, over the life of a process: labels stay, and peers may come and go.
const LABELS_MAX: usize = 64;

/// The label of peers without one of their own.
const OTHER: &str = "other";

impl Metrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        describe(recorder);
        let lane = |lane| LaneMetrics {
            sent: traffic(recorder, "sent", lane),
            received: traffic(recorder, "received", lane),
            queued_bytes: gauge(recorder, "quorate_transport_queued_bytes", &[("lane", lane)]),
        };
        let dropped = |reason| {
            counter(recorder, "quorate_transport_dropped_messages_total", &[("reason", reason)])
        };
        let refused = |reason| {
            counter(recorder, "quorate_transport_refused_handshakes_total", &[("reason", reason)])
        };
        Self {
            control: lane("control"),
            append: lane("append"),
            request: lane("request"),
            reply: lane("reply"),
            dropped: Dropped {
                disconnected: dropped("disconnected"),
                full: dropped("full"),
                oversized: dropped("oversized"),
                link: dropped("link"),
                misaddressed: dropped("misaddressed"),
                unknown: dropped("unknown"),
            },
            refused: Refused {
                tls: refused("tls"),
                identity: refused("identity"),
                cluster: refused("cluster"),
                target: refused("target"),
                policy: refused("policy"),
                malformed: refused("malformed"),
                timeout: refused("timeout"),
                flood: refused("flood"),
            },
            segments_per_send: gauge(recorder, "quorate_transport_segments_per_send", &[]),
            snapshots: SnapshotMetrics {
                sent: SnapshotTraffic::new(recorder, "sent"),
                received: SnapshotTraffic::new(recorder, "received"),
            },
            peers: Mutex::new(BTreeMap::new()),
            other: PeerMetrics::new(recorder, OTHER),
        }
    }

    pub(crate) fn lane(&self, kind: LaneKind) -> &LaneMetrics {
        match kind {
            LaneKind::Control => &self.control,
            LaneKind::Append => &self.append,
            LaneKind::Request => &self.request,
            LaneKind::Reply => &self.reply,
        }
    }

    /// Gives a peer a label of its own, unless there are too many.
    pub(crate) fn label_peer(&self, name: &str, recorder: &dyn Recorder) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= LABELS_MAX {
            return;
        }
        peers.entry(name.to_owned()).or_insert_with(|| PeerMetrics::new(recorder, name));
    }

    pub(crate) fn peer(&self, name: &str) -> PeerMetrics {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(name).unwrap_or(&self.other).clone()
    }
}

impl LaneMetrics {
    pub(crate) fn queue_grew(&self, bytes: usize) {
        self.queued_bytes.increment(bytes as f64);
    }

    pub(crate) fn queue_shrank(&self, bytes: usize) {
        self.queued_bytes.decrement(bytes as f64);
    }
}

impl Traffic {
    pub(crate) fn count(&self, bytes: usize, messages: usize) {
        self.frames.increment(1);
        self.messages.increment(messages as u64);
        self.bytes.increment(bytes as u64);
    }
}

impl SnapshotTraffic {
    fn new(recorder: &dyn Recorder, direction: &str) -> Self {
        let way = ("direction", direction);
        let ended = |outcome| {
            let labels = [way, ("outcome", outcome)];
            counter(recorder, "quorate_transport_snapshots_total", &labels)
        };
        Self {
            bytes: counter(recorder, "quorate_transport_snapshot_bytes_total", &[way]),
            active: gauge(recorder, "quorate_transport_active_snapshots", &[way]),
            done: ended("done"),
            busy: ended("busy"),
            refused: ended("refused"),
            failed: ended("failed"),
        }
    }

    pub(crate) fn begin(&self) -> Under {
        self.active.increment(1.0);
        Under { traffic: self.clone(), outcome: Outcome::Failed }
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.done.increment(1),
            Outcome::Busy => self.busy.increment(1),
            Outcome::Refused => self.refused.increment(1),
            Outcome::Failed => self.failed.increment(1),
        }
    }
}

impl Under {
    pub(crate) fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.traffic.active.decrement(1.0);
        self.traffic.count(self.outcome);
    }
}

impl PeerMetrics {
    fn new(recorder: &dyn Recorder, peer: &str) -> Self {
        let labels = [("peer", peer)];
        Self {
            rtt_us: gauge(recorder, "quorate_transport_rtt_us", &labels),
            connected: gauge(recorder, "quorate_transport_connected_peers", &labels),
            reconnects: counter(recorder, "quorate_transport_reconnects_total", &labels),
        }
    }
}

fn traffic(recorder: &dyn Recorder, direction: &str, lane: &str) -> Traffic {
    let make = |what: &str| {
        counter(recorder, &format!("quorate_transport_{direction}_{what}_total"), &[("lane", lane)])
    };
    Traffic { frames: make("frames"), messages: make("messages"), bytes: make("bytes") }
}

fn counter(recorder: &dyn Recorder, name: &str, labels: &[(&str, &str)]) -> Counter {
    recorder.register_counter(&key(name, labels), &METADATA)
}

fn gauge(recorder: &dyn Recorder, name: &str, labels: &[(&str, &str)]) -> Gauge {
    recorder.register_gauge(&key(name, labels), &METADATA)
}

fn key(name: &str, labels: &[(&str, &str)]) -> Key {
    let labels =
        labels.iter().map(|(name, value)| Label::new((*name).to_owned(), (*value).to_owned()));
    Key::from_parts(name.to_owned(), labels.collect::<Vec<_>>())
}

fn describe(recorder: &dyn Recorder) {
    let counters = [
        ("sent_frames", Unit::Count, "Frames sent to peers."),
        ("sent_messages", Unit::Count, "Messages, requests and replies sent to peers."),
        ("sent_bytes", Unit::Bytes, "Bytes of frames sent to peers, before encryption."),
        ("received_frames", Unit::Count, "Frames received from peers."),
        ("received_messages", Unit::Count, "Messages, requests and replies received from peers."),
        ("received_bytes", Unit::Bytes, "Bytes of frames received from peers, decrypted."),
        ("dropped_messages", Unit::Count, "Messages that were not delivered, by reason."),
        ("refused_handshakes", Unit::Count, "Handshakes of peers that came to nothing, by reason."),
        ("reconnects", Unit::Count, "Connections to a peer after its first."),
        ("snapshots", Unit::Count, "Snapshots that have ended, by direction and outcome."),
        ("snapshot_bytes", Unit::Bytes, "Bytes of snapshots, by direction."),
    ];
    for (name, unit, text) in counters {
        let name = KeyName::from(format!("quorate_transport_{name}_total"));
        recorder.describe_counter(name, Some(unit), text.into());
    }
    let gauges = [
        ("queued_bytes", Unit::Bytes, "Bytes that wait to be sent, over all peers."),
        ("rtt_us", Unit::Microseconds, "Smoothed round trip time to a peer."),
        ("connected_peers", Unit::Count, "Peers that we can send to."),
        ("active_snapshots", Unit::Count, "Snapshots that are under way, by direction."),
        ("segments_per_send", Unit::Count, "Datagrams per send call; 1 means no segment offload."),
    ];
    for (name, unit, text) in gauges {
        let name = KeyName::from(format!("quorate_transport_{name}"));
        recorder.describe_gauge(name, Some(unit), text.into());
    }
}
