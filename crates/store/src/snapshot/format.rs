//! The bytes of a snapshot.
//!
//! ```text
//! snapshot = "QSNAP" 0, version u8, { frame }      a header, any number of chunks, an end
//! frame    = kind u8, length u32 le, crc32c u32 le over kind, length and body, body
//! header   = protobuf: what the snapshot is of
//! chunk    = { key length varint, key, value length varint, value }    rows in ascending order
//! end      = protobuf: how many rows, and the crc32c of everything before
//! ```
//!
//! Each chunk has a checksum of its own, so that damage is found before its rows are used, and the end
//! has one over all, so that no chunk can be missing or stand in the wrong place.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_types::machine::StateError;
use quorate_types::{GroupId, KeyRange};

use crate::group_row::GroupRow;

/// What a snapshot begins with; the last byte is the version.
pub(super) const PREFACE: [u8; 7] = *b"QSNAP\0\x01";

/// Bytes of a frame before its body.
pub(super) const FRAME_BYTES: usize = 9;

/// A chunk that has reached this many bytes takes no further row.
pub(super) const CHUNK_BYTES_TARGET: usize = 256 << 10;

/// The largest chunk: one row alone may have this many bytes.
pub(super) const CHUNK_BYTES_MAX: usize = 64 << 20;

/// The largest header: what a machine keeps beside its rows is small.
pub(super) const HEADER_BYTES_MAX: usize = 16 << 20;

/// The largest end.
pub(super) const END_BYTES_MAX: usize = 1 << 10;

pub(super) const HEADER: u8 = 1;
pub(super) const CHUNK: u8 = 2;
pub(super) const END: u8 = 3;

/// What a snapshot is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotHeader {
    /// The group.
    pub group: GroupId,
    /// The keys that the group owns; `None` for a machine whose rows are in a space of its own.
    pub range: Option<KeyRange>,
    /// The group as of the last entry that the rows contain.
    pub row: GroupRow,
}

/// Why bytes are no snapshot, or not a whole one.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// They cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// They do not begin as a snapshot does.
    #[error("not a snapshot")]
    Preface,
    /// They were written by a later release.
    #[error("snapshot of version {0}")]
    Version(u8),
    /// They end too early.
    #[error("truncated")]
    Truncated,
    /// A checksum does not fit.
    #[error("the checksum of {0} does not fit")]
    Checksum(&'static str),
    /// A part is larger than any that we write.
    #[error("{what} of {bytes} bytes, at most {max} are taken")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// How large it is said to be.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
    /// A part is not of our form.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// A row that is not the group's, or not behind the one before.
    #[error("row {row} {why}")]
    Row {
        /// Its key, for people.
        row: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The engine failed.
    #[error(transparent)]
    State(#[from] StateError),
}

#[derive(Clone, PartialEq, Message)]
struct StoredHeader {
    #[prost(uint64, tag = "1")]
    group: u64,
    /// A whole group row, in its own format.
    #[prost(bytes = "bytes", tag = "2")]
    row: Bytes,
    #[prost(message, optional, tag = "3")]
    range: Option<StoredRange>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredRange {
    #[prost(bytes = "bytes", tag = "1")]
    start: Bytes,
    #[prost(bytes = "bytes", optional, tag = "2")]
    end: Option<Bytes>,
}

/// What the end says.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct End {
    #[prost(uint64, tag = "1")]
    pub(super) rows: u64,
    /// Of all bytes before the end's frame.
    #[prost(fixed32, tag = "2")]
    pub(super) checksum: u32,
}

impl SnapshotHeader {
    /// The header's bytes, which also announce a snapshot to whom it is sent.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let range = self.range.clone().map(|KeyRange { start, end }| StoredRange { start, end });
        let stored = StoredHeader { group: self.group.value(), row: self.row.encode(), range };
        stored.encode_to_vec().into()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are no header, or its membership is none that a group can have.
    pub fn decode(bytes: Bytes) -> Result<Self, SnapshotError> {
        let malformed = |_| SnapshotError::Malformed("header");
        let stored = StoredHeader::decode(bytes).map_err(malformed)?;
        let row = GroupRow::decode(stored.row)
            .map_err(|_| SnapshotError::Malformed("group row in the header"))?;
        if !row.membership.is_valid() {
            return Err(SnapshotError::Malformed("membership in the header"));
        }
        let range = stored.range.map(|StoredRange { start, end }| KeyRange { start, end });
        Ok(Self { group: GroupId(stored.group), range, row })
    }
}

impl End {
    pub(super) fn decode(bytes: Bytes) -> Result<Self, SnapshotError> {
        <Self as Message>::decode(bytes).map_err(|_| SnapshotError::Malformed("end"))
    }
}

/// Appends a frame.
pub(super) fn put_frame(buf: &mut BytesMut, kind: u8, body: &[u8]) {
    let head = head(kind, u32::try_from(body.len()).expect("a frame's body is bounded far below"));
    buf.put_slice(&head);
    buf.put_u32_le(checksum(&head, body));
    buf.put_slice(body);
}

/// The part of a frame's head that its checksum covers.
pub(super) fn head(kind: u8, length: u32) -> [u8; 5] {
    let mut head = [kind; 5];
    head[1..].copy_from_slice(&length.to_le_bytes());
    head
}

/// The checksum of a frame.
pub(super) fn checksum(head: &[u8; 5], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}
