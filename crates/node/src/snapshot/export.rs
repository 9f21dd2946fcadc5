//! Groups' rows in files, on their way to other nodes.
//!
//! A file instead of a stream out of the engine: the view is held for as long as the node's own disk takes and
//! not a peer and the network, an interrupted transfer goes on with the same bytes, and several peers share one export.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_store::{Export, GroupRows, SnapshotHeader, StateEngine};
use quorate_transport::SnapshotSource;
use quorate_types::machine::StateError;
use quorate_types::{GroupId, KeyRange, LogIndex};

use super::files::Files;
use crate::engine::lock;
use crate::identity::random_u64;

/// An export that nobody used for this long is removed: after it, a peer that comes back begins anew.
const KEPT: Duration = Duration::from_secs(120);

/// Bytes that are read of a file at a time.
const READ_BYTES: usize = 256 << 10;

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// Nothing was applied yet.
    #[error("there is no state yet")]
    Nothing,
    /// The file.
    #[error("file of the snapshot: {0}")]
    Io(#[from] io::Error),
    /// The engine failed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A complete export. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Exported {
    files: Files,
    path: PathBuf,
    /// Names its bytes.
    pub(crate) export: u64,
    pub(crate) header: SnapshotHeader,
    pub(crate) total_bytes: u64,
}

/// The latest export of each group.
#[derive(Debug, Default)]
pub(crate) struct Exports {
    latest: Mutex<BTreeMap<GroupId, Kept>>,
    /// One export of a group at a time, since those who want it share it.
    turns: Mutex<BTreeMap<GroupId, Arc<Mutex<()>>>>,
}

#[derive(Debug)]
struct Kept {
    exported: Arc<Exported>,
    used: Instant,
}

impl Exports {
    /// An export of `group` that holds the entry at `through`: one that is here already, else a new one.
    /// Blocks for as long as it takes to write one.
    pub(crate) fn export(
        &self,
        engine: &dyn StateEngine,
        files: &Files,
        group: GroupId,
        rows: &GroupRows,
        range: Option<KeyRange>,
        through: LogIndex,
    ) -> Result<Arc<Exported>, ExportError> {
        let turn = Arc::clone(lock(&self.turns).entry(group).or_default());
        let _turn = lock(&turn);
        if let Some(kept) = lock(&self.latest).get_mut(&group)
            && kept.exported.header.row.applied.index >= through
        {
            kept.used = Instant::now();
            return Ok(Arc::clone(&kept.exported));
        }
        let exported = Arc::new(Exported::write(engine, files, group, rows, range)?);
        let kept = Kept { exported: Arc::clone(&exported), used: Instant::now() };
        let replaced = lock(&self.latest).insert(group, kept);
        drop(replaced);
        Ok(exported)
    }

    /// Forgets an export that has served; whoever still sends it keeps it.
    pub(crate) fn forget(&self, group: GroupId, export: u64) {
        let mut latest = lock(&self.latest);
        if latest.get(&group).is_some_and(|kept| kept.exported.export == export) {
            latest.remove(&group);
        }
    }

    /// Forgets whatever there is of `group`; transfers that are under way go on with theirs.
    pub(crate) fn forget_all(&self, group: GroupId) {
        lock(&self.latest).remove(&group);
    }

    /// Forgets what nobody used for a while.
    pub(crate) fn forget_unused(&self, now: Instant) {
        let unused = |kept: &Kept| now.saturating_duration_since(kept.used) >= KEPT;
        lock(&self.latest).retain(|_, kept| Arc::strong_count(&kept.exported) > 1 || !unused(kept));
        lock(&self.turns).retain(|_, turn| Arc::strong_count(turn) > 1);
    }
}

impl Exported {
    fn write(
        engine: &dyn StateEngine,
        files: &Files,
        group: GroupId,
        rows: &GroupRows,
        range: Option<KeyRange>,
    ) -> Result<Self, ExportError> {
        let mut export =
            Export::new(engine.view(), group, rows.clone(), range)?.ok_or(ExportError::Nothing)?;
        let number = random_u64()?;
        let (path, mut file) = files.outgoing(group, number)?;
        // Made before it is complete, so that a failure removes the file.
        let (files, header) = (files.clone(), export.header().clone());
        let mut exported = Self { files, path, export: number, header, total_bytes: 0 };
        while let Some(piece) = export.next_piece()? {
            file.write(&piece)?;
            exported.total_bytes += piece.len() as u64;
        }
        Ok(exported)
    }

    /// Opens it for one transfer.
    pub(crate) fn source(self: &Arc<Self>) -> io::Result<ExportSource> {
        let file = Arc::new(File::open(&self.path)?);
        Ok(ExportSource { file, exported: Arc::clone(self) })
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        self.files.remove_aside(&self.path);
    }
}

/// An export on its way to one peer.
#[derive(Debug)]
pub(crate) struct ExportSource {
    file: Arc<File>,
    exported: Arc<Exported>,
}

impl SnapshotSource for ExportSource {
    fn total_bytes(&self) -> u64 {
        self.exported.total_bytes
    }

    async fn read(&mut self, offset: u64) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        let left = usize::try_from(self.total_bytes() - offset).unwrap_or(usize::MAX);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; left.min(READ_BYTES)];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(Bytes::from(bytes))
        });
        read.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use quorate_store::{GroupRow, MemState, Overlay, SnapshotReader};
    use quorate_types::machine::RowScope;
    use quorate_types::{EntryId, Membership, NodeId, StateBatch, Term};

    use super::*;

    const GROUP: GroupId = GroupId(9);

    fn engine_at(applied: u64) -> MemState {
        let engine = MemState::new();
        let mut overlay = Overlay::new(engine.view());
        for row in 0..700u64 {
            overlay.scoped(RowScope::Group, GROUP).put(&row.to_be_bytes(), &[7; 1_000]);
        }
        let row = GroupRow {
            applied: EntryId::new(Term(1), LogIndex(applied)),
            membership: Membership::of_voters([NodeId(1)]),
            ..GroupRow::default()
        };
        overlay.put_group_row(GROUP, &row);
        engine.write(overlay.into_rows()).unwrap();
        engine
    }

    #[tokio::test]
    async fn what_a_source_reads_is_the_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let rows = GroupRows::Own(GROUP);
        let exports = Exports::default();
        let exported =
            exports.export(&engine_at(5), &files, GROUP, &rows, None, LogIndex(5)).unwrap();
        let mut source = exported.source().unwrap();
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < source.total_bytes() {
            bytes.extend_from_slice(&source.read(bytes.len() as u64).await.unwrap());
        }
        let header = SnapshotReader::open(&bytes[..], |_| Ok(rows)).unwrap().verify().unwrap();
        assert_eq!(header, exported.header);
    }

    #[test]
    fn an_export_is_shared_as_long_as_it_is_new_enough_and_goes_when_it_has_served() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let count = || std::fs::read_dir(directory.path().join("snapshots")).unwrap().count();
        let exports = Exports::default();
        let rows = GroupRows::Own(GROUP);
        let export = |engine: &MemState, through| {
            exports.export(engine, &files, GROUP, &rows, None, LogIndex(through)).unwrap()
        };
        let first = export(&engine_at(5), 3);
        assert_eq!(export(&engine_at(9), 5).export, first.export);
        let second = export(&engine_at(9), 6);
        assert_ne!(second.export, first.export);
        assert_eq!(count(), 2, "the first is still in use");
        drop(first);
        assert_eq!(count(), 1);
        exports.forget_unused(Instant::now() + KEPT);
        exports.forget(GROUP, 0);
        assert_eq!(export(&engine_at(9), 6).export, second.export, "it is in use");
        exports.forget(GROUP, second.export);
        drop(second);
        assert_eq!(count(), 0);
        drop(export(&engine_at(9), 6));
        assert_eq!(count(), 1);
        exports.forget_unused(Instant::now() + KEPT);
        assert_eq!(count(), 0);
    }

    #[test]
    fn a_group_without_a_state_has_no_export() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let rows = GroupRows::Own(GROUP);
        let exports = Exports::default();
        let none = exports.export(&MemState::new(), &files, GROUP, &rows, None, LogIndex(1));
        assert!(matches!(none, Err(ExportError::Nothing)));
    }
}
