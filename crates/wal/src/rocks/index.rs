//! What is live in the logs, in memory: no question about a log scans the engine, where removed records
//! may lie in the way.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use quorate_types::{Entry, EntryId, GroupId, HardState, LogIndex, Membership, SnapshotMeta};

use crate::log_store::{RecoveredLog, assert_append, memberships};

/// Every log of the node.
pub(super) type Index = BTreeMap<GroupId, GroupLog>;

/// One group's log without its entries.
///
/// Invariants:
/// - `records` ascend; the entries of one reach up to the next one's first index, those of the last one to
///   `last`. Only the first record may begin at or below the base, and then it reaches it.
/// - `runs` ascend in index and term; the first one begins right behind the base. No runs: `last` is the
///   base.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct GroupLog {
    label: Bytes,
    hard_state: HardState,
    /// `snapshot.last` is the base.
    snapshot: SnapshotMeta,
    /// The first index of each live record.
    records: VecDeque<LogIndex>,
    /// The first entry of each run of one term.
    runs: VecDeque<EntryId>,
    last: EntryId,
    /// The entries behind the base that are memberships: few, and rarely any.
    memberships: VecDeque<(LogIndex, Membership)>,
    intent: Option<Bytes>,
}

impl GroupLog {
    pub(super) fn new(label: Bytes, snapshot: SnapshotMeta, hard_state: HardState) -> Self {
        let (records, runs, last) = (VecDeque::new(), VecDeque::new(), snapshot.last);
        let (memberships, intent) = (VecDeque::new(), None);
        Self { label, hard_state, snapshot, records, runs, last, memberships, intent }
    }

    /// An empty one is none.
    pub(super) fn set_intent(&mut self, intent: Bytes) {
        self.intent = Some(intent).filter(|intent| !intent.is_empty());
    }

    pub(super) fn has_intent(&self) -> bool {
        self.intent.is_some()
    }

    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Forgets the entries from `first` on, which lies behind the base, and returns the records to remove:
    /// those that begin there or later. One that begins before and reaches beyond stays; the record that
    /// will be put at `first` cuts it.
    pub(super) fn cut(&mut self, first: LogIndex) -> VecDeque<LogIndex> {
        if first > self.last.index {
            return VecDeque::new();
        }
        self.last = self.id_at(LogIndex(first.value() - 1));
        self.runs.truncate(self.runs.partition_point(|run| run.index < first));
        while self.memberships.pop_back_if(|(index, _)| *index >= first).is_some() {}
        self.records.split_off(self.records.partition_point(|record| *record < first))
    }

    /// Adds the record that begins at `first`, with those of its entries that lie behind the base: they
    /// follow the last entry.
    pub(super) fn push(&mut self, first: LogIndex, entries: impl IntoIterator<Item = EntryId>) {
        self.records.push_back(first);
        for id in entries {
            debug_assert!(id.index == self.last.index.next(), "{id} after {}", self.last);
            if self.runs.back().is_none_or(|run| run.term != id.term) {
                self.runs.push_back(id);
            }
            self.last = id;
        }
    }

    /// Notes the memberships among entries that were pushed; those up to the base are none of the log's.
    pub(super) fn note_memberships(&mut self, entries: &[Entry]) {
        let base = self.base().index;
        self.memberships.extend(memberships(entries).filter(|(index, _)| *index > base));
    }

    /// Moves the base forward to `through` and returns the records to remove: those without an entry left.
    pub(super) fn truncate_prefix(&mut self, through: LogIndex) -> Vec<LogIndex> {
        let base = self.id_at(through);
        let passed = self.runs.partition_point(|run| run.index <= through);
        if let Some(inside) = passed.checked_sub(1) {
            self.runs.drain(..inside);
            let next = through.next();
            // The run that holds the base goes on behind it, unless the next one begins there.
            if next > self.last.index || self.runs.get(1).is_some_and(|run| run.index == next) {
                self.runs.pop_front();
            } else {
                self.runs[0].index = next;
            }
        }
        self.snapshot.last = base;
        while let Some((_, membership)) =
            self.memberships.pop_front_if(|(index, _)| *index <= through)
        {
            self.snapshot.membership = membership;
        }
        let mut removed = Vec::new();
        while self.first_record_last().is_some_and(|last| last <= through) {
            removed.extend(self.records.pop_front());
        }
        removed
    }

    /// Panics unless `entries` may be appended; gives the id of the entry before them.
    pub(super) fn check_append(&self, group: GroupId, entries: &[Entry]) -> EntryId {
        assert_append(group, self.base(), self.last, |index| self.id_at(index), entries)
    }

    pub(super) fn label(&self) -> &Bytes {
        &self.label
    }

    pub(super) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(super) fn snapshot(&self) -> &SnapshotMeta {
        &self.snapshot
    }

    /// The entry before the first one.
    pub(super) fn base(&self) -> EntryId {
        self.snapshot.last
    }

    pub(super) fn last(&self) -> EntryId {
        self.last
    }

    /// The first index of each live record, ascending.
    pub(super) fn records(&self) -> impl Iterator<Item = LogIndex> {
        self.records.iter().copied()
    }

    /// The id of an entry between the base and the last one, both included.
    pub(super) fn id_at(&self, index: LogIndex) -> EntryId {
        assert!(
            self.base().index <= index && index <= self.last.index,
            "index {index} is not between {} and {}",
            self.base(),
            self.last
        );
        let run = self.runs.partition_point(|run| run.index <= index).checked_sub(1);
        let term = run.map_or(self.snapshot.last.term, |run| self.runs[run].term);
        EntryId::new(term, index)
    }

    pub(super) fn recovered(&self) -> RecoveredLog {
        RecoveredLog {
            label: self.label.clone(),
            hard_state: self.hard_state,
            snapshot: self.snapshot.clone(),
            memberships: self.memberships.iter().cloned().collect(),
            terms: self.runs.iter().copied().collect(),
            last: self.last,
            intent: self.intent.clone(),
        }
    }

    /// The last entry of the first record that is still its own.
    fn first_record_last(&self) -> Option<LogIndex> {
        match (self.records.front(), self.records.get(1)) {
            (Some(_), Some(second)) => Some(LogIndex(second.value() - 1)),
            (Some(_), None) => Some(self.last.index),
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::Term;

    use super::*;

    fn id(term: u64, index: u64) -> EntryId {
        EntryId::new(Term(term), LogIndex(index))
    }

    fn log(base: EntryId) -> GroupLog {
        let snapshot = SnapshotMeta { last: base, ..SnapshotMeta::default() };
        GroupLog::new(Bytes::new(), snapshot, HardState::default())
    }

    fn indexes(indexes: impl IntoIterator<Item = u64>) -> Vec<LogIndex> {
        indexes.into_iter().map(LogIndex).collect()
    }

    #[test]
    fn a_cut_inside_a_record_leaves_it_and_removes_the_later_ones() {
        let mut log = log(id(1, 1));
        log.push(LogIndex(2), [id(1, 2), id(1, 3), id(2, 4)]);
        log.push(LogIndex(5), [id(2, 5)]);
        assert_eq!(Vec::from(log.cut(LogIndex(3))), indexes([5]));
        assert_eq!(log.last(), id(1, 2));
        log.push(LogIndex(3), [id(3, 3)]);
        assert_eq!(log.records().collect::<Vec<_>>(), indexes([2, 3]));
        assert_eq!(log.recovered().terms, [id(1, 2), id(3, 3)]);
        assert_eq!(log.id_at(LogIndex(2)), id(1, 2));
        assert_eq!(log.id_at(LogIndex(1)), id(1, 1));
    }

    #[test]
    fn a_truncation_keeps_the_record_that_it_ends_in() {
        let mut log = log(id(1, 1));
        log.push(LogIndex(2), [id(1, 2), id(1, 3)]);
        log.push(LogIndex(4), [id(1, 4), id(2, 5), id(2, 6)]);
        assert_eq!(log.truncate_prefix(LogIndex(4)), indexes([2]));
        assert_eq!((log.base(), log.last()), (id(1, 4), id(2, 6)));
        assert_eq!(log.recovered().terms, [id(2, 5)]);
        assert_eq!(log.truncate_prefix(LogIndex(5)), indexes([]));
        assert_eq!(log.recovered().terms, [id(2, 6)]);
        assert_eq!(log.truncate_prefix(LogIndex(6)), indexes([4]));
        assert_eq!((log.base(), log.last()), (id(2, 6), id(2, 6)));
        assert_eq!(log.recovered().terms, []);
        log.push(LogIndex(7), [id(2, 7)]);
        assert_eq!(log.recovered().terms, [id(2, 7)]);
    }

    #[test]
    fn a_record_that_was_cut_goes_with_the_truncation_that_passes_the_cut() {
        let mut log = log(id(1, 1));
        log.push(LogIndex(2), [id(1, 2), id(1, 3), id(1, 4)]);
        log.cut(LogIndex(4));
        log.push(LogIndex(4), [id(2, 4), id(2, 5)]);
        assert_eq!(log.truncate_prefix(LogIndex(2)), indexes([]));
        assert_eq!(log.truncate_prefix(LogIndex(3)), indexes([2]));
        assert_eq!(log.records().collect::<Vec<_>>(), indexes([4]));
    }
}
