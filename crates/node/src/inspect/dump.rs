//! The entries of one group's log, one after the other.

use std::path::Path;

use quorate_group::Descriptor;
use quorate_types::{EntryId, GroupId, LogIndex};
use quorate_wal::LogError;
use quorate_wal::rocks::RocksLogView;

use super::{InspectError, Unused, describe};

/// One entry, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DumpedEntry {
    /// Term and index.
    pub id: EntryId,
    /// `no-op`, `command` or `membership`.
    pub kind: &'static str,
    /// The size of its payload.
    pub bytes: usize,
    /// What it does, without values; empty for commands of kinds that only an embedder knows.
    pub what: String,
}

/// So much is read at a time.
const READ_BYTES: usize = 4 << 20;

/// Calls `each` with the entries of `group` from `from` to `to`, both included, as far as the log has them.
/// `diary` is a directory for what RocksDB has to say.
///
/// # Errors
/// When the directory is in use or none of a node's, the log is damaged, or has no such group.
pub fn dump(
    data_dir: &Path,
    group: GroupId,
    from: LogIndex,
    to: LogIndex,
    diary: &Path,
    each: &mut dyn FnMut(DumpedEntry),
) -> Result<(), InspectError> {
    let unused = Unused::new(data_dir)?;
    let view = RocksLogView::open(&unused.log(), diary)?;
    if let Some(error) = view.damaged().get(&group) {
        return Err(error.clone().into());
    }
    let log = view.logs().remove(&group).ok_or(LogError::UnknownGroup(group))?;
    let machine = Descriptor::decode(&log.label).map(|descriptor| descriptor.kind);
    let machine = machine.unwrap_or_default();
    let reader = view.reader();
    let mut next = from.max(log.snapshot.last.index.next());
    loop {
        let entries = reader.read(group, next, to.min(log.last.index), READ_BYTES)?;
        let Some(last) = entries.last() else { return Ok(()) };
        next = last.id.index.next();
        for entry in &entries {
            each(DumpedEntry {
                id: entry.id,
                kind: describe::kind(&entry.payload),
                bytes: entry.payload.len(),
                what: describe::what(&machine, &entry.payload),
            });
        }
    }
}
