//! What the keyspace comes to, as one number: etcd's `HashKV` and `Hash`.
//!
//! `HashKV` is etcd's own to the bit, for the same history: CRC-32C over the name of etcd's bucket, and then
//! over each revision and its pair as etcd encodes them, in the order of revisions. What was written up to
//! the last compaction counts only as far as it stands at the revision that is asked for; so it does not
//! matter how far a replica has swept.

use std::ops::ControlFlow;

use quorate_types::KeyRange;
use quorate_types::kv::KvError;
use quorate_types::kv_maintenance::HashOutcome;
use quorate_types::machine::{Direction, StateError};

use super::history::{Part, each_write};
use super::read::{Refusal, View};
use crate::layout::{SPACE_SYSTEM, SPACE_USER, TAG_CURRENT, TAG_HISTORY};

/// What etcd's hash begins with.
const BUCKET: &[u8] = b"key";

/// The hash of the history up to `revision`; 0 for all of it. Below 0 there is none, as with etcd.
///
/// # Errors
/// [`KvError::FutureRevision`], and [`KvError::Compacted`] up to the last compaction's revision, as etcd's.
pub(crate) fn hash_kv(view: &View<'_>, revision: i64) -> Result<HashOutcome, Refusal> {
    if revision > view.revision {
        return Err(KvError::FutureRevision.into());
    }
    if revision > 0 && revision <= view.floor {
        return Err(KvError::Compacted.into());
    }
    if revision < 0 {
        // Nothing was written by then.
        let hash = crc32c::crc32c(BUCKET);
        return Ok(HashOutcome { hash, compact_revision: view.floor, hash_revision: revision });
    }
    let revision = if revision == 0 { view.revision } else { revision };
    let mut is_empty = true;
    view.each_at(revision, &KeyRange::all(), &mut |_, _| {
        is_empty = false;
        ControlFlow::Break(())
    })?;
    // etcd leaves nothing out when no key exists then: what its last compaction has left counts.
    let standing_at = if is_empty { view.floor } else { revision };
    let part = Part { revision, standing_at, deletes_at_floor: false };
    let mut hash = crc32c::crc32c(BUCKET);
    each_write(view, part, &mut |written| {
        hash = crc32c::crc32c_append(hash, &written.etcd_key());
        hash = crc32c::crc32c_append(hash, &written.etcd_value());
        Ok::<_, StateError>(())
    })?;
    Ok(HashOutcome { hash, compact_revision: view.floor, hash_revision: revision })
}

/// The hash of the whole history and of the system's rows.
pub(crate) fn hash_all(view: &View<'_>) -> Result<HashOutcome, Refusal> {
    let mut outcome = hash_kv(view, 0)?;
    for tag in [TAG_CURRENT, TAG_HISTORY] {
        let (start, end) = ([tag, SPACE_SYSTEM], [tag, SPACE_USER]);
        view.rows.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
            for bytes in [row, value] {
                outcome.hash = crc32c::crc32c_append(outcome.hash, bytes);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(outcome)
}
