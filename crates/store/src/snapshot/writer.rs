//! A snapshot out of rows that do not lie in an engine.

use std::io::Write;

use bytes::{Bytes, BytesMut};
use prost::Message;
use quorate_types::codec::put_bytes;

use super::format::{
    CHUNK, CHUNK_BYTES_MAX, CHUNK_BYTES_TARGET, END, End, HEADER, PREFACE, SnapshotError,
    SnapshotHeader, put_frame,
};

/// Writes a snapshot row by row, in the form that [`SnapshotReader`](super::SnapshotReader) reads.
#[derive(Debug)]
pub struct SnapshotWriter<W> {
    out: W,
    chunk: BytesMut,
    last: Option<Bytes>,
    count: u64,
    checksum: u32,
}

impl<W: Write> SnapshotWriter<W> {
    /// Begins with the header.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(out: W, header: &SnapshotHeader) -> Result<Self, SnapshotError> {
        let (chunk, last, count, checksum) = (BytesMut::new(), None, 0, 0);
        let mut writer = Self { out, chunk, last, count, checksum };
        let mut piece = BytesMut::from(&PREFACE[..]);
        put_frame(&mut piece, HEADER, &header.encode());
        writer.write(&piece)?;
        Ok(writer)
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When it does not follow the one before, is larger than a snapshot can hold, or cannot be written.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        if self.last.as_ref().is_some_and(|last| last[..] >= *key) {
            let row = key.escape_ascii().to_string();
            return Err(SnapshotError::Row { row, why: "does not follow the one before" });
        }
        let bytes = key.len() + value.len() + 20;
        if bytes > CHUNK_BYTES_MAX {
            return Err(SnapshotError::TooLarge { what: "row", bytes, max: CHUNK_BYTES_MAX });
        }
        if !self.chunk.is_empty() && self.chunk.len() + bytes > CHUNK_BYTES_TARGET {
            self.end_chunk()?;
        }
        put_bytes(&mut self.chunk, key);
        put_bytes(&mut self.chunk, value);
        self.last = Some(Bytes::copy_from_slice(key));
        self.count += 1;
        Ok(())
    }

    /// Writes the end, and gives back what it wrote to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<W, SnapshotError> {
        self.end_chunk()?;
        let mut piece = BytesMut::new();
        let end = End { rows: self.count, checksum: self.checksum };
        put_frame(&mut piece, END, &end.encode_to_vec());
        self.write(&piece)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn end_chunk(&mut self) -> Result<(), SnapshotError> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.is_empty() {
            return Ok(());
        }
        let mut piece = BytesMut::new();
        put_frame(&mut piece, CHUNK, &chunk);
        self.write(&piece)
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), SnapshotError> {
        self.checksum = crc32c::crc32c_append(self.checksum, piece);
        Ok(self.out.write_all(piece)?)
    }
}
