//! A group's rows out of an engine.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use prost::Message;
use quorate_types::codec::put_bytes;
use quorate_types::machine::{Direction, StateError};
use quorate_types::{GroupId, KeyRange, StateReader};

use super::format::{
    CHUNK, CHUNK_BYTES_MAX, CHUNK_BYTES_TARGET, END, End, FRAME_BYTES, HEADER, PREFACE,
    SnapshotHeader, put_frame,
};
use super::rows::GroupRows;
use crate::engine::Span;
use crate::group_row::GroupRow;

/// A snapshot of one group on its way out, from one view. It holds the view, and so the rows that have
/// been overwritten since, until it is dropped.
pub struct Export<'v> {
    view: Box<dyn StateReader + Send + 'v>,
    header: SnapshotHeader,
    rows: GroupRows,
    /// What is still to be read; the first one begins behind the last row that was given out.
    spans: VecDeque<Span>,
    state: Next,
    count: u64,
    checksum: u32,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Header,
    Rows,
    End,
    Nothing,
}

impl<'v> Export<'v> {
    /// Begins a snapshot of `group` as `view` has it; `None` when nothing was ever applied for it.
    /// `range` are the keys of a group of the keyspace.
    ///
    /// # Errors
    /// When the engine fails or the group's row is damaged.
    pub fn new(
        view: Box<dyn StateReader + Send + 'v>,
        group: GroupId,
        rows: GroupRows,
        range: Option<KeyRange>,
    ) -> Result<Option<Self>, StateError> {
        let Some(row) = GroupRow::load(group, &*view)? else { return Ok(None) };
        let header = SnapshotHeader { group, range, row };
        let spans = rows.spans().into();
        let (count, checksum) = (0, 0);
        Ok(Some(Self { view, header, rows, spans, state: Next::Header, count, checksum }))
    }

    /// What the snapshot is of.
    #[must_use]
    pub const fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The next piece, of about 256 KiB or one row; `None` behind the last one.
    ///
    /// # Errors
    /// When the engine fails, or a row is larger than a snapshot can hold.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, StateError> {
        let mut piece = BytesMut::new();
        match self.state {
            Next::Header => {
                piece.extend_from_slice(&PREFACE);
                put_frame(&mut piece, HEADER, &self.header.encode());
                self.state = Next::Rows;
            }
            Next::Rows => {
                let chunk = self.chunk()?;
                if chunk.is_empty() {
                    self.state = Next::End;
                    return self.next_piece();
                }
                piece.reserve(FRAME_BYTES + chunk.len());
                put_frame(&mut piece, CHUNK, &chunk);
            }
            Next::End => {
                let end = End { rows: self.count, checksum: self.checksum };
                put_frame(&mut piece, END, &end.encode_to_vec());
                self.state = Next::Nothing;
            }
            Next::Nothing => return Ok(None),
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &piece);
        Ok(Some(piece.freeze()))
    }

    /// The next rows; none at the end.
    fn chunk(&mut self) -> Result<BytesMut, StateError> {
        let mut chunk = BytesMut::new();
        while let Some(span) = self.spans.front_mut() {
            let (rows, count, mut result) = (&self.rows, &mut self.count, Ok(()));
            let mut last: Option<Bytes> = None;
            self.view.scan(
                &span.start,
                Some(&span.end),
                Direction::Forward,
                &mut |key, value| {
                    if chunk.len() >= CHUNK_BYTES_TARGET {
                        return ControlFlow::Break(());
                    }
                    last = Some(Bytes::copy_from_slice(key));
                    match take(rows, &mut chunk, key, value) {
                        Ok(taken) => *count += u64::from(taken),
                        Err(error) => result = Err(error),
                    }
                    if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                },
            )?;
            result?;
            if chunk.len() < CHUNK_BYTES_TARGET {
                self.spans.pop_front();
                continue;
            }
            if let Some(last) = last {
                // The smallest key behind it.
                span.start = [&last[..], &[0]].concat().into();
            }
            break;
        }
        Ok(chunk)
    }
}

/// Adds a row to `chunk` if it is the group's.
fn take(
    rows: &GroupRows,
    chunk: &mut BytesMut,
    key: &[u8],
    value: &[u8],
) -> Result<bool, StateError> {
    if !rows.contains(key, value)? {
        return Ok(false);
    }
    put_bytes(chunk, key);
    put_bytes(chunk, value);
    if chunk.len() > CHUNK_BYTES_MAX {
        let bytes = chunk.len();
        return Err(StateError(format!("a row makes a chunk of {bytes} bytes: too many")));
    }
    Ok(true)
}

impl std::fmt::Debug for Export<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("header", &self.header).finish_non_exhaustive()
    }
}
