//! Snapshots read back, from wherever they come.

use std::io::{ErrorKind, Read};

use bytes::{Buf, Bytes};
use quorate_types::codec::take_bytes;

use super::format::{
    CHUNK, CHUNK_BYTES_MAX, END, END_BYTES_MAX, End, FRAME_BYTES, HEADER, HEADER_BYTES_MAX,
    PREFACE, SnapshotError, SnapshotHeader, checksum, head,
};
use super::rows::GroupRows;
use crate::engine::Span;

/// Memory reserved for a part before its bytes are there.
const RESERVED_BYTES_MAX: usize = 1 << 20;

/// Reads a snapshot, row by row, and believes nothing: any bytes give rows or an error. Only once
/// [`Self::next_row`] has given `None` was the snapshot whole.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    source: R,
    header: SnapshotHeader,
    rows: GroupRows,
    spans: Vec<Span>,
    /// What of the current chunk was not given out.
    chunk: Bytes,
    last: Option<Bytes>,
    count: u64,
    /// Of all bytes so far.
    checksum: u32,
    ended: bool,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads the header. `rows` says which rows a group has that was described so, or that it cannot be
    /// here.
    ///
    /// # Errors
    /// When the bytes do not begin as a snapshot does.
    pub fn open(
        mut source: R,
        rows: impl FnOnce(&SnapshotHeader) -> Result<GroupRows, SnapshotError>,
    ) -> Result<Self, SnapshotError> {
        let mut preface = [0; PREFACE.len()];
        source.read_exact(&mut preface).map_err(truncated)?;
        let (magic, version) = preface.split_at(PREFACE.len() - 1);
        if magic != &PREFACE[..PREFACE.len() - 1] {
            return Err(SnapshotError::Preface);
        }
        if version != &PREFACE[PREFACE.len() - 1..] {
            return Err(SnapshotError::Version(version[0]));
        }
        let mut read = crc32c::crc32c(&preface);
        let (kind, body) = take_frame(&mut source, &mut read)?;
        if kind != HEADER {
            return Err(SnapshotError::Malformed("first part: not a header"));
        }
        let header = SnapshotHeader::decode(body)?;
        let rows = rows(&header)?;
        let spans = rows.spans();
        let (chunk, last, count, ended) = (Bytes::new(), None, 0, false);
        Ok(Self { source, header, rows, spans, chunk, last, count, checksum: read, ended })
    }

    /// What the snapshot is of.
    pub const fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Which rows it may hold.
    pub const fn rows(&self) -> &GroupRows {
        &self.rows
    }

    /// The next row; `None` when the snapshot was whole and has ended.
    ///
    /// # Errors
    /// When it is damaged, truncated, or holds what is not the group's. It is of no use then.
    pub fn next_row(&mut self) -> Result<Option<(Bytes, Bytes)>, SnapshotError> {
        while self.chunk.is_empty() {
            if self.ended {
                return Ok(None);
            }
            self.next_frame()?;
        }
        let mut take =
            || take_bytes(&mut self.chunk).map_err(|_| SnapshotError::Malformed("chunk"));
        let (key, value) = (take()?, take()?);
        let wrong = |why| SnapshotError::Row { row: key.escape_ascii().to_string(), why };
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err(wrong("does not follow the one before"));
        }
        let inside = self.spans.iter().any(|span| span.start <= key && key < span.end);
        if !inside || !self.rows.contains(&key, &value).map_err(|_| wrong("is malformed"))? {
            return Err(wrong("is not the group's"));
        }
        self.last = Some(key.clone());
        self.count += 1;
        Ok(Some((key, value)))
    }

    /// Reads to the end: whether the snapshot is whole.
    ///
    /// # Errors
    /// As [`Self::next_row`].
    pub fn verify(mut self) -> Result<SnapshotHeader, SnapshotError> {
        while self.next_row()?.is_some() {}
        Ok(self.header)
    }

    fn next_frame(&mut self) -> Result<(), SnapshotError> {
        let before = self.checksum;
        let (kind, body) = take_frame(&mut self.source, &mut self.checksum)?;
        match kind {
            CHUNK if body.is_empty() => Err(SnapshotError::Malformed("chunk: empty")),
            CHUNK => {
                self.chunk = body;
                Ok(())
            }
            END => {
                let end = End::decode(body)?;
                if end.checksum != before {
                    return Err(SnapshotError::Checksum("the whole"));
                }
                if end.rows != self.count {
                    return Err(SnapshotError::Malformed("end: another number of rows"));
                }
                if self.source.read(&mut [0])? > 0 {
                    return Err(SnapshotError::Malformed("end: more behind it"));
                }
                self.ended = true;
                Ok(())
            }
            _ => Err(SnapshotError::Malformed("part of an unknown kind")),
        }
    }
}

/// The next frame's kind and body; `read` goes on over its bytes.
fn take_frame(source: &mut impl Read, read: &mut u32) -> Result<(u8, Bytes), SnapshotError> {
    let mut bytes = [0; FRAME_BYTES];
    source.read_exact(&mut bytes).map_err(truncated)?;
    *read = crc32c::crc32c_append(*read, &bytes);
    let mut fields = &bytes[..];
    let (kind, length, expected) = (fields.get_u8(), fields.get_u32_le(), fields.get_u32_le());
    let (what, max) = match kind {
        HEADER => ("header", HEADER_BYTES_MAX),
        CHUNK => ("chunk", CHUNK_BYTES_MAX),
        END => ("end", END_BYTES_MAX),
        _ => return Err(SnapshotError::Malformed("part of an unknown kind")),
    };
    if length as usize > max {
        return Err(SnapshotError::TooLarge { what, bytes: length as usize, max });
    }
    let mut body = Vec::with_capacity((length as usize).min(RESERVED_BYTES_MAX));
    source.by_ref().take(length.into()).read_to_end(&mut body)?;
    if body.len() < length as usize {
        return Err(SnapshotError::Truncated);
    }
    if checksum(&head(kind, length), &body) != expected {
        return Err(SnapshotError::Checksum(what));
    }
    *read = crc32c::crc32c_append(*read, &body);
    Ok((kind, body.into()))
}

fn truncated(error: std::io::Error) -> SnapshotError {
    if error.kind() == ErrorKind::UnexpectedEof {
        SnapshotError::Truncated
    } else {
        SnapshotError::Io(error)
    }
}
