//! What a node writes into its logs and finds there again, and the seam to where they are kept.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_types::{
    Entry, EntryId, GroupId, HardState, LogIndex, Membership, Payload, SnapshotMeta,
};

use crate::error::LogError;

/// One change to one group's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Begins the log of a group, right behind `snapshot.last`.
    ///
    /// An existing log is reset: its entries, label and snapshot are replaced, and its intent is carried
    /// out. Its hard state stays, because a replica that forgot its vote could vote twice in one term; a
    /// [`Write::Destroy`] before it forgets that too.
    Create {
        /// The group.
        group: GroupId,
        /// The host's words about the group, such as its kind; opaque here.
        label: Bytes,
        /// What the log continues from.
        snapshot: SnapshotMeta,
    },
    /// Adds entries, saves a hard state, or both.
    Append {
        /// The group, which must exist.
        group: GroupId,
        /// Saved if it differs from the last one.
        hard_state: Option<HardState>,
        /// Consecutive, behind the snapshot and without a gap after the log's last entry. The first one
        /// overwrites its own index and everything beyond.
        entries: Vec<Entry>,
    },
    /// Forgets the entries up to `through`, which must exist: they are part of a durable snapshot.
    /// Nothing happens if they are gone already, or the group is. Its cost follows the number of appends
    /// that it forgets, and other groups wait for it: truncate in steps.
    TruncatePrefix {
        /// The group.
        group: GroupId,
        /// The last index to forget.
        through: LogIndex,
    },
    /// Notes that a snapshot is about to replace the state of the group, which must exist. The state is
    /// half changed from now on until the [`Write::Create`] that resets the log behind the snapshot: a
    /// start that finds an intent has to carry it out again before the group does anything. A second
    /// intent replaces the first, and an empty one withdraws it.
    Intend {
        /// The group.
        group: GroupId,
        /// The host's words about what is to be done, such as where the snapshot is; opaque here.
        intent: Bytes,
    },
    /// Forgets the group, its hard state and intent too. Nothing happens if there is no such group. Its cost follows
    /// the number of appends that the log still holds.
    Destroy {
        /// The group.
        group: GroupId,
    },
}

impl Write {
    /// What a write costs beside its entries, in memory and on disk; an estimate for budgets.
    pub const OVERHEAD_BYTES: usize = 64;

    /// Whose log is changed.
    #[must_use]
    pub fn group(&self) -> GroupId {
        match self {
            Self::Create { group, .. }
            | Self::Append { group, .. }
            | Self::TruncatePrefix { group, .. }
            | Self::Intend { group, .. }
            | Self::Destroy { group } => *group,
        }
    }

    /// The entries that it brings.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        match self {
            Self::Append { entries, .. } => entries,
            Self::Create { .. }
            | Self::TruncatePrefix { .. }
            | Self::Intend { .. }
            | Self::Destroy { .. } => &[],
        }
    }

    /// What this write counts against byte budgets.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        let variable = match self {
            Self::Create { label, .. } => label.len(),
            Self::Intend { intent, .. } => intent.len(),
            Self::Append { entries, .. } => entries.iter().map(Entry::cost_bytes).sum(),
            Self::TruncatePrefix { .. } | Self::Destroy { .. } => 0,
        };
        variable + Self::OVERHEAD_BYTES
    }
}

/// What a log holds, without the entries themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredLog {
    /// The host's words, from [`Write::Create`].
    pub label: Bytes,
    /// The last hard state; the default one if none was saved.
    pub hard_state: HardState,
    /// The base of the log: `last` is the snapshot's last entry, moved forward by truncations, and the
    /// membership is the one in force there.
    pub snapshot: SnapshotMeta,
    /// The entries after the base that are memberships, in order.
    pub memberships: Vec<(LogIndex, Membership)>,
    /// The first entry of each run of one term, after `snapshot.last`.
    pub terms: Vec<EntryId>,
    /// The last entry; `snapshot.last` if there is none.
    pub last: EntryId,
    /// The intent that was not carried out, from [`Write::Intend`].
    pub intent: Option<Bytes>,
}

/// What a batch came to on disk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Written {
    /// Bytes handed to the engine, keys and framing included.
    pub bytes: u64,
}

/// Where the logs of all groups of a node are kept.
///
/// After the first error of [`write`](Self::write) a store accepts no further write.
///
/// # Panics
/// `write` panics on what no correct host submits, with ids, terms and indexes: an append or an intent for
/// a group that does not exist, an append with a gap, at or below the log's base, or whose terms decrease; a truncation beyond
/// the last entry.
pub trait LogStore: Send + 'static {
    /// Writes all of `batch` in order; it is durable when this returns. After a crash all of it is there
    /// or none of it.
    ///
    /// # Errors
    /// [`LogError::Engine`] when the write or the sync failed: whether the batch survives is not known.
    /// [`LogError::Poisoned`] ever after.
    fn write(&mut self, batch: &[Write]) -> Result<Written, LogError>;

    /// Makes it known, durably, that the last batch was synced: after it there is something that was
    /// written later. Until then, a last batch that cannot be read any more looks as if the power had gone
    /// while it was written. Changes nothing else, and costs a sync: it is for when nothing else is to be
    /// written.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn seal(&mut self) -> Result<(), LogError>;

    /// Keeps `words` of the host with the next batch or seal, in the place of those before: they are as durable
    /// as that, and cost no sync of their own. Opaque here.
    fn note(&mut self, words: Bytes);

    /// The words that a restart would find.
    fn noted(&self) -> Bytes;

    /// Every log as it is now, but for those that are damaged.
    ///
    /// # Errors
    /// When the engine fails, or finds damage that may concern every log.
    fn recover(&mut self) -> Result<BTreeMap<GroupId, RecoveredLog>, LogError>;

    /// One log as it is now, for a group that is loaded again; `None` if there is none.
    fn log(&self, group: GroupId) -> Option<RecoveredLog>;

    /// How many batches this store has ever made durable, over all restarts. A node whose directory was
    /// rolled back to an older copy betrays itself by a smaller number.
    fn synced_batches(&self) -> u64;

    /// Bytes that were written again since the store was opened, to reorganise what is there: beside what
    /// [`Written`] counts, that is what goes to the disk.
    fn rewritten_bytes(&self) -> u64;

    /// A reader for another thread.
    fn reader(&self) -> Box<dyn LogReader>;
}

/// Reads entries back, beside running writes.
pub trait LogReader: Send {
    /// The entries from `from` to `to`, both included, as far as they are durable: at least one if there
    /// is one at `from`, and no more than `bytes_max` of [`Entry::cost_bytes`] beyond that. Empty when the
    /// log ends before `from`.
    ///
    /// A batch that is being written meanwhile is seen as a whole or not at all.
    ///
    /// # Errors
    /// [`LogError::Compacted`] for entries that were truncated, [`LogError::UnknownGroup`], or what the
    /// engine finds.
    fn read(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError>;
}

/// The memberships among `entries`.
pub(crate) fn memberships<'e>(
    entries: impl IntoIterator<Item = &'e Entry>,
) -> impl Iterator<Item = (LogIndex, Membership)> {
    entries.into_iter().filter_map(|entry| match &entry.payload {
        Payload::Membership(membership) => Some((entry.id.index, (**membership).clone())),
        Payload::Empty | Payload::Command(_) => None,
    })
}

/// Panics unless `entries` may be appended to the log of `group` that reaches from `base` to `last`;
/// `term_before` is the term of the entry before the first one.
pub(crate) fn assert_append(
    group: GroupId,
    base: EntryId,
    last: EntryId,
    term_before: impl FnOnce(LogIndex) -> EntryId,
    entries: &[Entry],
) -> EntryId {
    let first = entries.first().expect("an append of no entries has nothing to check").id;
    assert!(
        first.index > base.index,
        "group {group}: append at {first} would overwrite the base {base}"
    );
    assert!(
        first.index <= last.index.next(),
        "group {group}: append at {first} leaves a gap after {last}"
    );
    let mut before = term_before(LogIndex(first.index.value() - 1));
    let previous = before;
    for entry in entries {
        assert!(
            entry.id.index == before.index.next() && entry.id.term >= before.term,
            "group {group}: entry {} cannot follow {before}",
            entry.id
        );
        before = entry.id;
    }
    previous
}

/// Panics if a truncation of `group` through `through` reaches beyond `last`.
pub(crate) fn assert_truncation(group: GroupId, through: LogIndex, last: EntryId) {
    assert!(
        through <= last.index,
        "group {group}: truncation through {through} reaches beyond the last entry {last}"
    );
}
