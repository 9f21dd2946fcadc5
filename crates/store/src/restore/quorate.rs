//! A new beginning out of a snapshot of the keyspace.

use std::io::{Read, Write};

use quorate_types::{GroupId, KeyRange, Membership};

use super::{Contents, RestoreError, beginning, header};
use crate::kv::KvKind;
use crate::kv::meta::Meta;
use crate::layout::{self, ALARMS, CONDITIONS, SPACE_SYSTEM, TAG_CURRENT};
use crate::snapshot::{GroupRows, SnapshotError, SnapshotHeader, SnapshotReader, SnapshotWriter};

/// Rows about alarms, and about a downgrade: of the old cluster's nodes.
const USERS: [u8; 4] = [TAG_CURRENT, SPACE_SYSTEM, b'a', b'u'];
const ROLES: [u8; 4] = [TAG_CURRENT, SPACE_SYSTEM, b'a', b'r'];

/// Reads a backup to its end, and says what it holds.
///
/// # Errors
/// When it is not whole, or of something else than the keyspace.
pub fn check_backup<R: Read>(backup: R) -> Result<Contents, RestoreError> {
    let mut backup = open(backup)?;
    let meta = Meta::decode(&backup.header().row.meta)?;
    let mut contents = Contents { revision: meta.revision, ..Contents::default() };
    while let Some((row, _)) = backup.next_row()? {
        contents.count(&row);
    }
    Ok(contents)
}

pub(super) fn restore<R: Read, W: Write>(
    backup: R,
    bump: i64,
    voters: Membership,
    out: W,
) -> Result<Contents, RestoreError> {
    let mut backup = open(backup)?;
    let old = Meta::decode(&backup.header().row.meta)?;
    // Revisions that were drawn and not used were never seen, but they may not come again either.
    let last = old.revision.max(old.drawn);
    let meta =
        Meta { digest: old.digest, auth: old.auth, ..beginning(last, bump, Some(old.swept))? };
    let mut contents =
        Contents { revision: old.revision, begins_at: meta.revision, ..Contents::default() };
    let mut writer = SnapshotWriter::new(out, &header(&meta, voters))?;
    let (mut alarms, mut downgrades) = (0u64, 0u64);
    while let Some((row, value)) = backup.next_row()? {
        if row.starts_with(&CONDITIONS) {
            *if row.starts_with(&ALARMS) { &mut alarms } else { &mut downgrades } += 1;
            continue;
        }
        contents.count(&row);
        writer.put(&row, &value)?;
    }
    writer.finish()?;
    if alarms > 0 {
        contents.left_out.push(format!("{alarms} alarms: they were about the old nodes"));
    }
    if downgrades > 0 {
        contents.left_out.push("the note of a downgrade".to_owned());
    }
    Ok(contents)
}

fn open<R: Read>(backup: R) -> Result<SnapshotReader<R>, RestoreError> {
    let mut is_keyspace = true;
    let rows = |header: &SnapshotHeader| {
        let whole = header.range.as_ref().is_none_or(|range| *range == KeyRange::all());
        is_keyspace =
            header.group == GroupId::FIRST_DATA && header.row.kind == KvKind::NAME && whole;
        match is_keyspace {
            true => Ok(GroupRows::Keys(KeyRange::all())),
            false => Err(SnapshotError::Malformed("header: another group")),
        }
    };
    match SnapshotReader::open(backup, rows) {
        Ok(reader) => Ok(reader),
        Err(_) if !is_keyspace => Err(RestoreError::NotTheKeyspace),
        Err(error) => Err(error.into()),
    }
}

impl Contents {
    fn count(&mut self, row: &[u8]) {
        let count = if layout::key_of_current(row).is_some() {
            &mut self.keys
        } else if layout::id_of_lease(row).is_some() {
            &mut self.leases
        } else if row.starts_with(&USERS) {
            &mut self.users
        } else if row.starts_with(&ROLES) {
            &mut self.roles
        } else {
            return;
        };
        *count += 1;
    }
}
