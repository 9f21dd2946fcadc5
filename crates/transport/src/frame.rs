//! Frames: what a lane carries, and reading them from a stream without trusting the peer.
//!
//! ```text
//! stream = kind u8, index u8, { length u32 le, frame }
//! ```
//!
//! The frame of a control or append lane is [`quorate_types::codec`]'s, of a Hello stream one
//! [`crate::hello`], of a request lane [`crate::request`]'s. A snapshot's stream has its announcement as a
//! frame, and then bare bytes ([`crate::snapshot`]).

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, VarInt};
use quorate_types::codec::DecodeError;

use crate::close::{Close, MALFORMED, TOO_LARGE};

/// Bytes of a frame's length.
pub(crate) const HEADER_BYTES: usize = 4;

/// Memory reserved for a frame before its bytes are there: a peer that only announces holds no more.
const RESERVED_BYTES_MAX: usize = 256 << 10;

/// What a stream is for, as its first byte says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StreamKind {
    /// Bidirectional, the first on a connection: one Hello each way.
    Hello,
    /// Votes and beats.
    Control,
    /// Appends and their answers; the index is the lane's number.
    Append,
    /// Bidirectional: requests one way, replies the other.
    Request,
    /// Bidirectional: one snapshot, and what the receiver says to it.
    Snapshot,
}

impl StreamKind {
    /// The first bytes of a stream of this kind.
    pub(crate) const fn preface(self, index: u8) -> [u8; 2] {
        let kind = match self {
            Self::Hello => 1,
            Self::Control => 2,
            Self::Append => 3,
            Self::Request => 4,
            Self::Snapshot => 5,
        };
        [kind, index]
    }

    pub(crate) const fn of(preface: [u8; 2]) -> Option<Self> {
        match preface[0] {
            1 => Some(Self::Hello),
            2 => Some(Self::Control),
            3 => Some(Self::Append),
            4 => Some(Self::Request),
            5 => Some(Self::Snapshot),
            _ => None,
        }
    }
}

/// A frame with its length in front, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    /// Messages, requests or replies in it.
    pub(crate) messages: usize,
}

impl Frame {
    /// A buffer with room for the length and about `capacity` bytes.
    pub(crate) fn begin(capacity: usize) -> BytesMut {
        let mut buf = BytesMut::with_capacity(HEADER_BYTES + capacity);
        buf.put_u32_le(0);
        buf
    }

    /// Closes what [`Frame::begin`] began.
    pub(crate) fn finish(mut buf: BytesMut, messages: usize) -> Self {
        let length = u32::try_from(buf.len() - HEADER_BYTES).expect("frame_bytes_max is a u32");
        buf[..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
        Self { bytes: buf.freeze(), messages }
    }
}

/// Why a stream gives no further frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("frame of {bytes} bytes, at most {max} are taken")]
    TooLarge { bytes: usize, max: usize },
    #[error("malformed frame: {0}")]
    Malformed(#[from] DecodeError),
    #[error("stream of an unknown kind {0}")]
    UnknownStream(u8),
    #[error("the stream ended")]
    Ended,
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl FrameError {
    /// How to close the connection over which this came.
    pub(crate) fn close(&self) -> Close {
        let code = match self {
            Self::TooLarge { .. } => TOO_LARGE,
            Self::Malformed(_) | Self::UnknownStream(_) | Self::Ended | Self::Read(_) => MALFORMED,
        };
        Close { code, reason: self.to_string() }
    }
}

/// Cuts a stream into frames.
///
/// Each frame is copied into memory of its own: entries share their frame's memory for as long as
/// they live, and should not keep a kernel buffer of 64 KiB alive with it.
pub(crate) struct FrameReader {
    stream: RecvStream,
    /// Received and not yet taken.
    chunk: Bytes,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, chunk: Bytes::new() }
    }

    /// Reads the two bytes that say what the stream is for.
    pub(crate) async fn preface(&mut self) -> Result<[u8; 2], FrameError> {
        let mut preface = [0; 2];
        if self.fill(&mut preface).await? { Ok(preface) } else { Err(FrameError::Ended) }
    }

    /// The next frame, without its length, of at most `bytes_max` bytes.
    ///
    /// Streams last as long as their connection, so that a stream's orderly end is an error too.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> Result<Bytes, FrameError> {
        let mut header = [0; HEADER_BYTES];
        if !self.fill(&mut header).await? {
            return Err(FrameError::Ended);
        }
        let length = u32::from_le_bytes(header) as usize;
        if length > bytes_max {
            return Err(FrameError::TooLarge { bytes: length, max: bytes_max });
        }
        let mut frame = BytesMut::with_capacity(length.min(RESERVED_BYTES_MAX));
        while frame.len() < length {
            if self.chunk.is_empty() && !self.receive().await? {
                return Err(FrameError::Ended);
            }
            let taken = self.chunk.len().min(length - frame.len());
            frame.extend_from_slice(&self.chunk.split_to(taken));
        }
        Ok(frame.freeze())
    }

    /// Whatever comes next, however it was cut; `None` when the stream has ended in order.
    pub(crate) async fn next_piece(&mut self) -> Result<Option<Bytes>, FrameError> {
        if self.chunk.is_empty() && !self.receive().await? {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.chunk)))
    }

    /// Asks the peer to send no more.
    pub(crate) fn stop(&mut self, code: VarInt) {
        // Nothing is left to stop on a stream that has ended.
        drop(self.stream.stop(code));
    }

    /// Fills `target`; false when the stream ends before.
    async fn fill(&mut self, target: &mut [u8]) -> Result<bool, FrameError> {
        let mut filled = 0;
        while filled < target.len() {
            if self.chunk.is_empty() && !self.receive().await? {
                return Ok(false);
            }
            let taken = self.chunk.len().min(target.len() - filled);
            target[filled..filled + taken].copy_from_slice(&self.chunk.split_to(taken));
            filled += taken;
        }
        Ok(true)
    }

    async fn receive(&mut self) -> Result<bool, FrameError> {
        let Some(chunk) = self.stream.read_chunk(usize::MAX, true).await? else {
            return Ok(false);
        };
        self.chunk = chunk.bytes;
        Ok(true)
    }
}
