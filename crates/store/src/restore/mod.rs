//! Backups as what a new cluster begins with.
//!
//! A backup is a snapshot of Quorate's or a database file of etcd's. Either becomes the snapshot that the initial
//! nodes of a new cluster put in the place of an empty keyspace: the same file gives the same bytes everywhere.
//! What stood in the keyspace last is there, with its revisions. What came before is not: the floor lies above all
//! of it, so that whoever watched the old cluster hears that it has missed something. And the revision goes on
//! above the old one by some more, since the old cluster may have given out revisions after the backup.
//!
//! - [`quorate`]: of a snapshot; leases, users and roles come along.
//! - [`etcd`]: of a file of etcd; the same come along.

mod etcd;
mod quorate;

use std::io::{Read, Write};

use quorate_types::machine::StateError;
use quorate_types::{EntryId, GroupId, KeyRange, LogIndex, Membership, Revision, Term};

use crate::bolt::{BoltError, ReadAt};
use crate::group_row::GroupRow;
use crate::kv::KvKind;
use crate::kv::meta::Meta;
use crate::layout::Stamp;
use crate::snapshot::{SnapshotError, SnapshotHeader};

pub use quorate::check_backup;

/// Where the log of a restored group begins. Not where an empty one does: a node that joins later begins there,
/// and must get the state and not only the log.
pub const RESTORED: EntryId = EntryId::new(Term(1), LogIndex(2));

/// What a backup holds, or what has become of it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Contents {
    /// The revision of the backup.
    pub revision: i64,
    /// The revision that the new cluster begins with; 0 of a backup that is only looked at.
    pub begins_at: i64,
    /// The keys.
    pub keys: u64,
    /// The leases.
    pub leases: u64,
    /// The users.
    pub users: u64,
    /// The roles.
    pub roles: u64,
    /// What the backup holds and the new cluster does not, one line each.
    pub left_out: Vec<String>,
}

/// Why a backup cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot that is read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The file of etcd.
    #[error(transparent)]
    Bolt(#[from] BoltError),
    /// It is of something else than the whole keyspace.
    #[error("it is not a backup of the keyspace")]
    NotTheKeyspace,
    /// What lies in a file of etcd is not what etcd writes.
    #[error("not what etcd writes: {0}")]
    Etcd(String),
    /// The revisions would leave what clients can hold.
    #[error("revision {revision} and {bump} more: revisions must be positive and stay below 2^53")]
    Revision {
        /// Of the backup.
        revision: i64,
        /// What was to be added.
        bump: i64,
    },
    /// A row or a number that the backup's own program would not have written.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Makes what a new cluster of these voters begins with from a snapshot of Quorate's.
///
/// # Errors
/// When it is damaged or of something else, or the revision would be too large.
pub fn from_quorate<R: Read, W: Write>(
    backup: R,
    bump: i64,
    voters: Membership,
    out: W,
) -> Result<Contents, RestoreError> {
    quorate::restore(backup, bump, voters, out)
}

/// The same from a file of etcd, of so many bytes without a checksum behind it.
///
/// # Errors
/// As [`from_quorate`].
pub fn from_etcd<W: Write>(
    backup: &dyn ReadAt,
    bytes: u64,
    bump: i64,
    voters: Membership,
    out: W,
) -> Result<Contents, RestoreError> {
    etcd::restore(backup, bytes, bump, voters, out)
}

/// The header of the new keyspace.
fn header(meta: &Meta, voters: Membership) -> SnapshotHeader {
    let kind = KvKind::NAME.to_owned();
    let row = GroupRow { applied: RESTORED, membership: voters, kind, meta: meta.encode() };
    SnapshotHeader { group: GroupId::FIRST_DATA, range: Some(KeyRange::all()), row }
}

/// The meta of a keyspace that goes on `bump` above `revision`, with everything before compacted and events
/// swept up to `swept`.
fn beginning(revision: i64, bump: i64, swept: Option<Stamp>) -> Result<Meta, RestoreError> {
    let too_large = RestoreError::Revision { revision, bump };
    let begins_at = revision.checked_add(bump);
    let begins_at =
        begins_at.filter(|at| revision > 0 && bump > 0 && *at < Revision::LIMIT.value());
    let begins_at = begins_at.ok_or(too_large)?;
    let fresh = Meta::decode(&[])?;
    let swept = swept.unwrap_or(Stamp { revision: begins_at, sub: 0 });
    Ok(Meta { revision: begins_at, floor: begins_at, swept, ..fresh })
}

#[cfg(test)]
mod tests;
