//! Snapshots: one large content to one peer, over a QUIC stream of its own.
//!
//! ```text
//! sender                                             receiver
//! kind 5, index 0, announcement (header, size)  -->
//!                                               <--  accepted from an offset | busy | refused
//! the content from there, bare bytes, end       -->
//!                                               <--  stored | failed
//! ```
//!
//! What a snapshot holds, and whether it is whole, is for the node to know: here it is a header and so
//! many bytes. The receiver says where to begin, so that one that was interrupted need not begin anew.
//! It pulls the content, and QUIC's flow control holds the sender back meanwhile.
//!
//! A snapshot must not be noticed by anything else: its stream has the lowest priority, all snapshots of
//! a node share one rate limit, and there are a few at a time, per node and per peer; one more is refused
//! as busy, on either side, before anything was sent. A sender that hangs or drips gives its place up,
//! since the receiver waits for no byte longer than [`patience`] allows, and so the other way round.
//! A snapshot that fails leaves the connection alone; only bytes that are none of this protocol close it.

mod offer;
mod pace;
mod patience;
mod send;
mod wire;

pub(crate) use offer::{Receiving, attend};
pub use offer::{SnapshotOffer, SnapshotReceiver, Unfinished};
pub use pace::Pace;
pub(crate) use send::{Sending, send};
pub use send::{SnapshotError, SnapshotSource};
pub use wire::SNAPSHOT_HEADER_BYTES_MAX;
