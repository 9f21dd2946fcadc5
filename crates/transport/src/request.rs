//! Requests and replies: their frames, and how a request can fail.
//!
//! ```text
//! frame = version u8, { item }
//! item  = 1 u8, id v, deadline in ms v, length v, body     a request
//!       | 2 u8, id v, length v, body                       its reply
//!       | 3 u8, id v                                       refused before it ran
//!       | 4 u8, id v                                       dropped: it may have run
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_types::codec::{DecodeError, put_bytes, put_varint, take_bytes, take_varint};

use crate::frame::Frame;

/// The version of request frames that this build writes, and the only one it reads.
const VERSION: u8 = 1;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const BUSY: u8 = 3;
const DROPPED: u8 = 4;

/// What an item costs at most beside its body.
pub(crate) const ITEM_OVERHEAD_BYTES: usize = 32;

/// Why a request has no reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// It was not run, and will not be: it may safely be sent again, here or elsewhere.
    #[error("not sent: {0}")]
    NotSent(NotSent),
    /// It may have been run.
    #[error("outcome unknown: {0}")]
    Unknown(Unknown),
}

/// Why a request was not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotSent {
    /// No peer of that id.
    #[error("no such peer")]
    UnknownPeer,
    /// No connection to the peer at present.
    #[error("not connected")]
    NotConnected,
    /// Too many requests, or too many of their bytes, wait for this peer.
    #[error("too many requests")]
    QueueFull,
    /// Larger than a frame may be.
    #[error("too large")]
    TooLarge,
    /// The deadline passed while it waited to be sent.
    #[error("deadline elapsed")]
    DeadlineElapsed,
    /// The peer runs too many of our requests already.
    #[error("the peer is busy")]
    Busy,
}

/// Why the outcome of a request is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unknown {
    /// The connection was lost before the reply.
    #[error("connection lost")]
    ConnectionLost,
    /// The deadline passed before the reply.
    #[error("deadline elapsed")]
    DeadlineElapsed,
    /// The peer gave up the request without a reply.
    #[error("dropped by the peer")]
    Dropped,
}

/// One item of a request frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    Request { id: u64, deadline_ms: u32, body: Bytes },
    Reply { id: u64, body: Bytes },
    Busy { id: u64 },
    Dropped { id: u64 },
}

impl Item {
    /// Bytes that it takes in a frame, at most.
    pub(crate) fn cost_bytes(&self) -> usize {
        let body = match self {
            Self::Request { body, .. } | Self::Reply { body, .. } => body.len(),
            Self::Busy { .. } | Self::Dropped { .. } => 0,
        };
        body + ITEM_OVERHEAD_BYTES
    }
}

/// A frame of items that cost `bytes` together.
pub(crate) fn frame_of(items: &[Item], bytes: usize) -> Frame {
    let mut buf = Frame::begin(1 + bytes);
    put_items(&mut buf, items);
    Frame::finish(buf, items.len())
}

fn put_items(buf: &mut BytesMut, items: &[Item]) {
    buf.put_u8(VERSION);
    items.iter().for_each(|item| put_item(buf, item));
}

fn put_item(buf: &mut BytesMut, item: &Item) {
    match item {
        Item::Request { id, deadline_ms, body } => {
            buf.put_u8(REQUEST);
            put_varint(buf, *id);
            put_varint(buf, u64::from(*deadline_ms));
            put_bytes(buf, body);
        }
        Item::Reply { id, body } => {
            buf.put_u8(REPLY);
            put_varint(buf, *id);
            put_bytes(buf, body);
        }
        Item::Busy { id } => {
            buf.put_u8(BUSY);
            put_varint(buf, *id);
        }
        Item::Dropped { id } => {
            buf.put_u8(DROPPED);
            put_varint(buf, *id);
        }
    }
}

/// Reads a whole frame; bodies share its memory.
///
/// # Errors
/// When the bytes are not a frame of this version, or hold an item of an unknown kind.
pub(crate) fn take_items(mut buf: Bytes) -> Result<Vec<Item>, DecodeError> {
    let version = take_u8(&mut buf)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let mut items = Vec::new();
    while buf.has_remaining() {
        let kind = take_u8(&mut buf)?;
        let id = take_varint(&mut buf)?;
        items.push(match kind {
            REQUEST => {
                let deadline_ms = u32::try_from(take_varint(&mut buf)?)
                    .map_err(|_| DecodeError::Malformed("deadline"))?;
                Item::Request { id, deadline_ms, body: take_bytes(&mut buf)? }
            }
            REPLY => Item::Reply { id, body: take_bytes(&mut buf)? },
            BUSY => Item::Busy { id },
            DROPPED => Item::Dropped { id },
            _ => return Err(DecodeError::Malformed("kind of request item")),
        });
    }
    Ok(items)
}

fn take_u8(buf: &mut Bytes) -> Result<u8, DecodeError> {
    if buf.has_remaining() { Ok(buf.get_u8()) } else { Err(DecodeError::Truncated) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item() -> impl Strategy<Value = Item> {
        let body = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            (any::<u64>(), any::<u32>(), body())
                .prop_map(|(id, deadline_ms, body)| Item::Request { id, deadline_ms, body }),
            (any::<u64>(), body()).prop_map(|(id, body)| Item::Reply { id, body }),
            any::<u64>().prop_map(|id| Item::Busy { id }),
            any::<u64>().prop_map(|id| Item::Dropped { id }),
        ]
    }

    fn encode(items: &[Item]) -> BytesMut {
        let mut buf = BytesMut::new();
        put_items(&mut buf, items);
        buf
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_as_it_was_written(items in proptest::collection::vec(item(), 0..8)) {
            let buf = encode(&items);
            prop_assert!(buf.len() <= 1 + items.iter().map(Item::cost_bytes).sum::<usize>());
            prop_assert_eq!(take_items(buf.freeze()), Ok(items));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = take_items(bytes.into());
        }

        #[test]
        fn a_damaged_frame_never_panics(
            items in proptest::collection::vec(item(), 1..5),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let mut buf = encode(&items);
            let at = at.index(buf.len());
            buf[at] ^= 1u8 << bit;
            let _ = take_items(buf.freeze());
        }
    }
}
