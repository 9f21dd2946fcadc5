//! Messages, requests and their answers between nodes, over QUIC.
//!
//! # The life of a message
//!
//! 1. [`Transport::send`] puts it on its lane's queue: votes and beats on the control lane, the rest
//!    on one of a few append lanes, by group. A full lane drops it; Raft sends again.
//! 2. The peer's writer wakes up, makes *one* frame of all that waits on a lane, and gives it to the
//!    lane's stream. What comes meanwhile becomes the next frame: batches form without timers.
//! 3. QUIC encrypts and sends; the control stream goes first.
//! 4. At the other side the stream's reader cuts out the frame, decodes it, drops what does not
//!    name its peer as the sender, and calls [`Handler::on_messages`] once.
//!
//! A snapshot has a stream of its own ([`snapshot`]): [`Transport::send_snapshot`] announces it, the
//! other side's node takes it or not ([`Handler::on_snapshot`]), and pulls its content.
//!
//! # Who is who
//!
//! Every node dials every peer and sends on its own connection; replies to its requests are all that
//! comes back on it. TLS proves that the other side has a certificate of the cluster's
//! authority; the names in it ([`identity`]) must be those of its [`Hello`], and the Hello must be
//! meant for us; then the node itself decides ([`Handler::admit`]). All that happens on both sides
//! before the first message.
//!
//! # What is absent
//!
//! The transport does not know what a group does with a message, nor which nodes are members. It
//! never waits for the node, and never keeps a message for a peer that is away.

mod accept;
mod backoff;
mod close;
mod config;
mod endpoint;
mod frame;
mod handler;
mod hello;
pub mod identity;
pub mod link;
mod metrics;
mod outbox;
mod peer;
mod reply;
mod request;
mod shared;
pub mod snapshot;
pub mod tls;
pub mod vital;
mod writer;

#[cfg(test)]
mod tests;

pub use config::{LANES, LANES_MAX, Limits, TransportConfig};
pub use endpoint::{OpenError, Transport};
pub use handler::{Handler, PeerEvent, Pulse, Refusal};
pub use hello::Hello;
pub use identity::NameError;
pub use link::{Distant, Fate, Link, Shape, Shaped, Straight};
pub use reply::Replier;
pub use request::{NotSent, RequestError, Unknown};
pub use snapshot::{
    Pace, SnapshotError, SnapshotOffer, SnapshotReceiver, SnapshotSource, Unfinished,
};
pub use tls::TlsConfig;
