//! A snapshot into an engine.

use std::io::Read;
use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_types::machine::{Direction, StateError};

use super::format::{SnapshotError, SnapshotHeader};
use super::reader::SnapshotReader;
use super::rows::GroupRows;
use crate::engine::{Rows, Span, Staged, StateEngine};
use crate::layout;

/// Rows that one batch removes at most.
const REMOVED_ROWS_MAX: usize = 4096;

/// A whole snapshot beside an engine, ready to take the place of what the group has there.
pub struct Install {
    header: SnapshotHeader,
    rows: GroupRows,
    staged: Box<dyn Staged>,
}

impl Install {
    /// Reads `snapshot` to its end and writes its rows, and the group's own, beside `engine`. It may take
    /// long, and holds up nobody.
    ///
    /// # Errors
    /// When the snapshot is not whole, or the engine fails. Nothing is changed then.
    pub fn stage<R: Read>(
        mut snapshot: SnapshotReader<R>,
        engine: &dyn StateEngine,
    ) -> Result<Self, SnapshotError> {
        let (header, rows) = (snapshot.header().clone(), snapshot.rows().clone());
        let own = Bytes::copy_from_slice(&layout::group(header.group));
        let mut spans = rows.own_spans();
        spans.push(Span { start: own.clone(), end: [&own[..], &[0]].concat().into() });
        spans.sort_by(|one, other| one.start.cmp(&other.start));

        let mut own = Some((own, header.row.encode()));
        let mut next: Option<(Bytes, Bytes)> = None;
        let mut failed = None;
        let staged = engine.stage(&spans, &mut || {
            if next.is_none() {
                next = snapshot.next_row().map_err(|error| {
                    let text = error.to_string();
                    failed = Some(error);
                    StateError(text)
                })?;
            }
            let own_first =
                own.as_ref().is_some_and(|(own, _)| next.as_ref().is_none_or(|(key, _)| own < key));
            Ok(if own_first { own.take() } else { next.take() })
        });
        match (staged, failed) {
            (Ok(staged), None) => Ok(Self { header, rows, staged }),
            (Ok(_), Some(error)) | (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// What is to be installed.
    #[must_use]
    pub const fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Replaces the group's rows, its own included, and makes that durable. The group must not apply
    /// meanwhile. May be done again after a crash, with the snapshot staged anew.
    ///
    /// # Errors
    /// When the engine fails; the caller must stop using it.
    pub fn run(self, engine: &dyn StateEngine) -> Result<(), StateError> {
        if self.rows.shares_events() {
            remove_events(&self.rows, engine)?;
        }
        self.staged.ingest()?;
        engine.flush()
    }
}

/// Removes a range's events from between those of other ranges. Nobody misses them before the rest is
/// replaced: what reads events is told anew where to begin by then.
fn remove_events(rows: &GroupRows, engine: &dyn StateEngine) -> Result<(), StateError> {
    let mut start = Bytes::from_static(&[layout::TAG_EVENT]);
    let end = [layout::TAG_EVENT + 1];
    loop {
        let (mut doomed, mut result) = (Vec::new(), Ok(()));
        engine.view().scan(&start, Some(&end), Direction::Forward, &mut |key, value| {
            match rows.contains(key, value) {
                Ok(true) => doomed.push((Bytes::copy_from_slice(key), None)),
                Ok(false) => {}
                Err(error) => result = Err(error),
            }
            if result.is_ok() && doomed.len() < REMOVED_ROWS_MAX {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        result?;
        let Some((last, _)) = doomed.last() else { return Ok(()) };
        start = [&last[..], &[0]].concat().into();
        engine.write(Rows::from_iter(doomed))?;
    }
}

impl std::fmt::Debug for Install {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Install").field("header", &self.header).finish_non_exhaustive()
    }
}
