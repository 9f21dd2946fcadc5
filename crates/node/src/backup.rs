//! The keyspace of a node's own replica in a file, to be given to a client.
//!
//! One view of the state engine is written to a file in the directory of snapshots, under its rules for room
//! on the disk. The file has no name by the time anybody reads it, so it goes with its last reader, or with
//! the process.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

use quorate_store::etcd::{EtcdError, EtcdMember, keyspace_revision, write_etcd};
use quorate_store::{Export, GroupRow, GroupRows, ScopedView};
use quorate_types::GroupId;
use quorate_types::machine::{RowScope, StateError};

use crate::background;
use crate::engine::{Engine, Parts};
use crate::identity::random_u64;
use crate::snapshot::files::{EvenFile, Files};

/// The largest file in etcd's format: etcd's own advice for its largest database.
const ETCD_BYTES_MAX: u64 = 8 << 30;

/// What a backup is written as.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupForm {
    /// A group's snapshot, in Quorate's own format: everything, the system's rows too.
    Quorate,
    /// A database file of etcd, of at most 8 GiB, with these members.
    Etcd(Vec<EtcdMember>),
}

/// A backup, to be read from its beginning.
#[derive(Debug)]
pub struct BackupFile {
    /// The keyspace's revision.
    pub revision: i64,
    /// How long it is.
    pub bytes: u64,
    /// What it is.
    pub content: BackupContent,
}

/// The content of a backup, to be read once. Its file has no name in any directory, and goes with it.
#[derive(Debug)]
pub struct BackupContent {
    /// `None` once it goes.
    file: Option<File>,
    files: Files,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupFailure {
    /// Another one is being written.
    #[error("a backup is being written already")]
    Busy,
    /// This node has no replica of the group, or nothing was applied yet.
    #[error("this node has no state of {0}")]
    Nothing(GroupId),
    /// etcd's format would not hold it.
    #[error("larger than what is written in etcd's format")]
    TooLarge,
    /// The file.
    #[error("file of the backup: {0}")]
    Io(#[from] io::Error),
    /// The engine failed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<EtcdError> for BackupFailure {
    fn from(error: EtcdError) -> Self {
        match error {
            EtcdError::Io(error) => Self::Io(error),
            EtcdError::State(error) => Self::State(error),
            EtcdError::TooLarge(_) => Self::TooLarge,
        }
    }
}

impl Engine {
    /// Writes the state of `group`, a group of the keyspace, as this node's replica has it now. One at a
    /// time; it takes as long as the disk does, away from the runtime.
    ///
    /// # Errors
    /// See [`BackupFailure`]. Nothing is left behind then.
    pub async fn backup(
        &self,
        group: GroupId,
        form: BackupForm,
    ) -> Result<BackupFile, BackupFailure> {
        let turn = Arc::clone(&self.parts.backups).try_acquire_owned();
        let turn = turn.map_err(|_| BackupFailure::Busy)?;
        let (parts, wanted) = (Arc::clone(&self.parts), Arc::new(()));
        // Ends with this call: a client that has gone needs no backup, and the next one the turn.
        let is_wanted = Arc::downgrade(&wanted);
        let write = move || {
            let _turn = turn;
            parts.backup(group, form, is_wanted)
        };
        let written = background::run(write).await;
        drop(wanted);
        written.unwrap_or_else(|failed| Err(io::Error::from(failed).into()))
    }
}

impl Parts {
    fn backup(
        &self,
        group: GroupId,
        form: BackupForm,
        wanted: Weak<()>,
    ) -> Result<BackupFile, BackupFailure> {
        if self.router.resident(group).is_err() {
            return Err(BackupFailure::Nothing(group));
        }
        let view = self.state.view();
        let row = GroupRow::load(group, &*view)?.ok_or(BackupFailure::Nothing(group))?;
        let (path, file) = self.snapshots.files.outgoing(group, random_u64()?)?;
        // From here on it goes with those who have it open.
        fs::remove_file(&path)?;
        let mut out = Counted { file, bytes: 0, wanted };
        match form {
            BackupForm::Quorate => {
                let range = self.with_host(|host| {
                    let mut groups = host.groups();
                    groups.find(|(id, _)| *id == group).and_then(|(_, it)| it.range.clone())
                });
                let rows = GroupRows::new(RowScope::Keyspace, group, range.as_ref());
                let mut export =
                    Export::new(view, group, rows, range)?.ok_or(BackupFailure::Nothing(group))?;
                while let Some(piece) = export.next_piece()? {
                    out.write_all(&piece)?;
                }
            }
            BackupForm::Etcd(members) => {
                let rows = ScopedView::new(&*view, RowScope::Keyspace, group);
                let mut buffered = io::BufWriter::with_capacity(1 << 20, &mut out);
                let front = write_etcd(&row, &rows, &members, &mut buffered, ETCD_BYTES_MAX)?;
                drop(buffered);
                out.file.file().write_all_at(&front, 0)?;
            }
        }
        let mut file = out.file.into_file();
        file.seek(SeekFrom::Start(0))?;
        let content = BackupContent { file: Some(file), files: self.snapshots.files.clone() };
        Ok(BackupFile { revision: keyspace_revision(&row)?, bytes: out.bytes, content })
    }
}

impl Read for BackupContent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(0), |file| file.read(buf))
    }
}

impl Drop for BackupContent {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.files.drop_aside(file);
        }
    }
}

struct Counted {
    file: EvenFile,
    bytes: u64,
    /// Gone when nobody waits any more.
    wanted: Weak<()>,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.wanted.strong_count() == 0 {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        self.file.write(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
