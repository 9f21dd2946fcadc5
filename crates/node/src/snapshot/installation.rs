//! Putting a snapshot in place, step by step, so that a crash between any two of them does no harm.
//!
//! State and log are two engines, so no single write changes both. In order, each step durable before
//! the next one:
//!
//! 1. The log gets the *intent*. From here on the group is neither what it was nor what it will be, and
//!    a start does the rest again before the group does anything.
//! 2. The group's rows are replaced by the snapshot's, its own row among them, as one change.
//! 3. The log is reset to begin behind the snapshot, and the intent is cleared with it, in one write.
//!
//! Before the first step nothing has happened; after the second the old log no longer fits the state,
//! which is why the intent must be there. The file is needed until the third, and is removed after it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_group::Descriptor;
use quorate_store::{
    GroupRows, Install, SnapshotError, SnapshotHeader, SnapshotReader, StateEngine,
};
use quorate_types::machine::StateError;
use quorate_types::{GroupId, SnapshotMeta};
use quorate_wal::{LogError, LogStore, Write};

use super::files::Files;
use super::pace::{DiskPace, Paced};
use super::words::{Intent, WordsError};
use crate::engine::Kinds;

/// Bytes that are read of a file at a time.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;

/// Why a snapshot cannot be put in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The file is not there, or is no whole snapshot of the group.
    #[error("snapshot {file}: {error}")]
    Snapshot {
        /// Its name.
        file: String,
        /// What is wrong.
        error: SnapshotError,
    },
    /// The intent says nothing that we understand.
    #[error(transparent)]
    Intent(#[from] WordsError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state engine failed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Whose state a snapshot is to become.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) group: GroupId,
    pub(crate) descriptor: Descriptor,
    pub(crate) rows: GroupRows,
}

/// A snapshot that is to be put in place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Installation {
    group: GroupId,
    label: Bytes,
    file: String,
    meta: SnapshotMeta,
}

/// What is to be done, one after the other.
#[derive(Debug)]
pub(crate) enum Step {
    /// Write this into the log, and wait until it is durable.
    Log(Write),
    /// Replace the group's rows, and wait until that is durable.
    Replace,
}

impl Target {
    /// A group of this node's kinds.
    pub(crate) fn new(kinds: &Kinds, group: GroupId, descriptor: Descriptor) -> Option<Self> {
        let kind = kinds.get(&descriptor.kind)?;
        let rows = GroupRows::new(kind.scope(), group, descriptor.range.as_ref());
        Some(Self { group, descriptor, rows })
    }

    /// Reads the snapshot in `path`, which must be one of this group as it is described here, at a pace or as
    /// fast as it goes.
    pub(crate) fn read(
        &self,
        path: &Path,
        pace: Option<Arc<DiskPace>>,
    ) -> Result<SnapshotReader<BufReader<Paced<File>>>, SnapshotError> {
        let source = Paced::new(File::open(path)?, pace);
        let source = BufReader::with_capacity(BUFFER_BYTES, source);
        SnapshotReader::open(source, |header| self.check(header))
    }

    pub(crate) fn check(&self, header: &SnapshotHeader) -> Result<GroupRows, SnapshotError> {
        let Self { group, descriptor, rows } = self;
        if header.group != *group || header.row.kind != descriptor.kind {
            return Err(SnapshotError::Malformed("header: another group"));
        }
        // A group whose range has changed since must first learn that here.
        if header.range != descriptor.range {
            return Err(SnapshotError::Malformed("header: another range"));
        }
        Ok(rows.clone())
    }
}

impl Installation {
    /// Reads the snapshot `file` in `files` and writes its rows beside the engine. Nothing of the group
    /// is changed by it.
    ///
    /// # Errors
    /// When the file is not there, or is no whole snapshot of the group, or the engine fails.
    pub(crate) fn prepare(
        target: &Target,
        files: &Files,
        file: &str,
        engine: &dyn StateEngine,
    ) -> Result<(Self, Install), InstallError> {
        let staged = target
            .read(&files.path(file), files.pace())
            .and_then(|snapshot| Install::stage(snapshot, engine))
            .map_err(|error| InstallError::Snapshot { file: file.to_owned(), error })?;
        let row = &staged.header().row;
        let meta = SnapshotMeta { last: row.applied, membership: row.membership.clone() };
        let label = target.descriptor.encode();
        Ok((Self { group: target.group, label, file: file.to_owned(), meta }, staged))
    }

    /// What the snapshot stands for.
    pub(crate) const fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// All of it.
    pub(crate) fn steps(&self) -> [Step; 3] {
        let intent = Intent::Install(self.file.clone()).bytes();
        let intend = Write::Intend { group: self.group, intent };
        let [replace, reset] = self.steps_again();
        [Step::Log(intend), replace, reset]
    }

    /// What a start does when it finds the intent.
    pub(crate) fn steps_again(&self) -> [Step; 2] {
        let Self { group, label, meta, .. } = self.clone();
        [Step::Replace, Step::Log(Write::Create { group, label, snapshot: meta })]
    }
}

/// Does again what the intents in `log` say, and removes every other file.
///
/// # Errors
/// When a snapshot that an intent names is not whole: it was, so the disk has lost data.
pub(crate) fn redo_all(
    log: &mut impl LogStore,
    engine: &dyn StateEngine,
    files: &Files,
    kinds: &Kinds,
) -> Result<(), InstallError> {
    for (group, found) in log.recover()? {
        let Some(intent) = found.intent else { continue };
        let Intent::Install(file) = Intent::read(intent)? else { continue };
        let damaged = |what| InstallError::Snapshot {
            file: file.clone(),
            error: SnapshotError::Malformed(what),
        };
        let descriptor = Descriptor::decode(&found.label)
            .map_err(|_| damaged("descriptor of the group in the log"))?;
        let target = Target::new(kinds, group, descriptor)
            .ok_or_else(|| damaged("kind of the group in the log"))?;
        tracing::warn!(%group, file, "a snapshot was being installed: doing it again");
        redo(log, engine, files, &target, &file)?;
    }
    // No intent is left that names a file, so none is needed.
    let kept = BTreeSet::new();
    files.remove_all_but(&kept).map_err(|error: io::Error| InstallError::Snapshot {
        file: "directory".to_owned(),
        error: error.into(),
    })
}

fn redo(
    log: &mut impl LogStore,
    engine: &dyn StateEngine,
    files: &Files,
    target: &Target,
    file: &str,
) -> Result<(), InstallError> {
    let (installation, staged) = Installation::prepare(target, files, file, engine)?;
    let mut staged = Some(staged);
    for step in installation.steps_again() {
        carry_out(step, log, engine, &mut staged)?;
    }
    Ok(())
}

/// Does one step where log and state are at hand.
fn carry_out(
    step: Step,
    log: &mut impl LogStore,
    engine: &dyn StateEngine,
    staged: &mut Option<Install>,
) -> Result<(), InstallError> {
    match step {
        Step::Log(write) => log.write(&[write]).map(drop)?,
        Step::Replace => {
            staged.take().expect("rows are replaced once in an installation").run(engine)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "installation_tests.rs"]
mod tests;
