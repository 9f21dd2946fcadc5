//! The seam to the node: what it must answer, and what it is told.

use bytes::Bytes;
use quorate_types::{Message, NodeId};

use crate::hello::Hello;
use crate::reply::Replier;
use crate::snapshot::SnapshotOffer;

/// What the node does with its peers. Every method is called on the transport's runtime, must not
/// block, and should hand on rather than work.
pub trait Handler: Send + Sync + 'static {
    /// Our own words for a handshake with `target`.
    fn hello(&self, target: NodeId) -> Hello;

    /// Whether `peer` may be talked to: the node's policy (identity tables, sessions, rollback). The
    /// transport has checked already that the peer's certificate is of a trusted authority and
    /// carries the names of this Hello, that the cluster is ours, and that we are the node it means.
    /// Asked for connections in both directions, so the same session comes twice and may come again.
    ///
    /// A peer with the id zero has none yet: it can ask ([`Handler::on_request`]) and nothing else.
    ///
    /// # Errors
    /// The reason goes to the peer, which is a member's holder but perhaps not a member: no secrets.
    fn admit(&self, peer: &Hello) -> Result<(), Refusal>;

    /// Something happened between us and a peer.
    fn on_peer(&self, node: NodeId, event: PeerEvent);

    /// Messages of one frame, in the order in which `from` sent them on this lane. All of them name
    /// `from` as their sender and this node as their receiver.
    fn on_messages(&self, from: NodeId, messages: Vec<Message>);

    /// A request of `from`, in whose certificate stands `name`, to be answered within `deadline_ms`
    /// milliseconds: later answers are ignored.
    fn on_request(&self, from: NodeId, name: &str, body: Bytes, deadline_ms: u32, reply: Replier);

    /// A peer wants to send a snapshot; accept or refuse it in a task. A node that knows nothing of
    /// snapshots refuses them all.
    fn on_snapshot(&self, offer: SnapshotOffer) {
        drop(offer);
    }
}

/// Why the node does not talk to a peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not wanted, which may change.
    #[error("{0}")]
    Policy(String),
    /// It has left the cluster for good, and should stop.
    #[error("{0}")]
    Removed(String),
    /// Its data is a copy, older than what it had or in use by another process: it must stop.
    #[error("{0}")]
    Copy(String),
}

/// How much has come from a peer over a connection: as long as it grows, the peer's process is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// The session in the peer's [`Hello`].
    pub session: u64,
    /// Datagrams received since the connection stands.
    pub datagrams: u64,
}

/// What happened between us and a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerEvent {
    /// We can send to it.
    Up {
        /// What the peer said of itself.
        hello: Hello,
    },
    /// We can no longer send to it; what was underway may be lost. Always follows an `Up`.
    Down {
        /// For people.
        reason: String,
    },
    /// The peer, whose certificate is good, says that this node was removed from the cluster.
    Removed {
        /// For people.
        reason: String,
    },
    /// The peer, whose certificate is good, says that this node must not run with the data that it has.
    Copy {
        /// For people.
        reason: String,
    },
    /// One side refused the other. When the peer dialed us, the node is the one that it *claims* to
    /// be, and this is told at every attempt: nothing but alarms may follow from it. When we dialed
    /// the peer, it is told once until the reason changes or the connection comes up.
    Refused {
        /// For people.
        reason: String,
    },
}
