//! Where terms begin in the log, so that matching two logs needs no disk.

use quorate_types::{EntryId, LogIndex, Term};

/// The term of every entry of a log, kept as the first entry of each run of one term.
///
/// - `base` stands before the first entry; it is committed.
/// - Runs rise strictly in index and in term, and all lie in `(base.index, last.index]`.
/// - Memory is one id for each *term*, not for each entry.
#[derive(Clone, Debug)]
pub(crate) struct TermMap {
    base: EntryId,
    runs: Vec<EntryId>,
    last: EntryId,
}

impl TermMap {
    /// The map of a log that begins after `base`, whose runs begin at `firsts` and which ends at
    /// `last`.
    ///
    /// # Panics
    /// When these do not describe a log: the storage below handed back something it was never
    /// given.
    pub(crate) fn new(base: EntryId, firsts: &[EntryId], last: EntryId) -> Self {
        let mut map = Self { base, runs: Vec::with_capacity(firsts.len()), last: base };
        for &first in firsts {
            assert!(
                first.index > map.last.index && first.term >= map.last.term,
                "recovered term boundary {first} does not follow {} (base {base})",
                map.last,
            );
            assert!(
                map.last != base || first.index == base.index.next(),
                "recovered log begins at {first}, base is {base}"
            );
            map.push(first);
        }
        assert!(
            last.index >= map.last.index && last.term == map.last.term,
            "recovered log ends at {last}, its last run begins at {}",
            map.last,
        );
        assert!(
            last == base || !firsts.is_empty(),
            "recovered log has entries up to {last}, but no term boundary after base {base}"
        );
        map.last = last;
        map
    }

    /// Moves the end to `id`, the next entry of the log or a later one of the same run.
    fn push(&mut self, id: EntryId) {
        if id.term > self.last.term {
            self.runs.push(id);
        }
        self.last = id;
    }

    /// Adds the next entry.
    ///
    /// # Panics
    /// When `id` does not follow the last entry.
    pub(crate) fn append(&mut self, id: EntryId) {
        assert!(
            id.index == self.last.index.next() && id.term >= self.last.term,
            "entry {id} cannot follow {}",
            self.last
        );
        self.push(id);
    }

    /// Forgets the entries from `index` on.
    ///
    /// # Panics
    /// When that would forget the base.
    pub(crate) fn truncate(&mut self, index: LogIndex) {
        assert!(index > self.base.index, "cannot truncate at {index}, base is {}", self.base);
        if index > self.last.index {
            return;
        }
        let kept = self.runs.partition_point(|run| run.index < index);
        self.runs.truncate(kept);
        let term = self.runs.last().map_or(self.base.term, |run| run.term);
        let end = LogIndex(index.value() - 1);
        self.last = EntryId::new(term, end);
    }

    /// Moves the base up to `index`.
    ///
    /// # Panics
    /// When there is no such entry.
    pub(crate) fn compact(&mut self, index: LogIndex) {
        if index <= self.base.index {
            return;
        }
        let Some(term) = self.term_at(index) else {
            panic!("cannot compact through {index}, the log ends at {}", self.last)
        };
        self.base = EntryId::new(term, index);
        self.runs.retain(|run| run.index > index);
    }

    /// The entry before the first one.
    pub(crate) const fn base(&self) -> EntryId {
        self.base
    }

    /// The last entry; the base when there is none.
    pub(crate) const fn last(&self) -> EntryId {
        self.last
    }

    /// The term at `index`; `None` outside of the log. The base counts as inside.
    pub(crate) fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index < self.base.index || index > self.last.index {
            return None;
        }
        // Almost every question is about the tail.
        if let Some(run) = self.runs.last().filter(|run| run.index <= index) {
            return Some(run.term);
        }
        let before = self.runs.partition_point(|run| run.index <= index);
        Some(before.checked_sub(1).map_or(self.base.term, |at| self.runs[at].term))
    }

    /// The last entry at or below `bound.index` whose term is at most `bound.term`; the base when
    /// every entry there is newer. Two logs that differ at `bound` cannot agree on anything above
    /// it.
    pub(crate) fn last_not_after(&self, bound: EntryId) -> EntryId {
        if bound.term < self.base.term {
            return self.base;
        }
        let count =
            self.runs.partition_point(|run| run.index <= bound.index && run.term <= bound.term);
        let term = count.checked_sub(1).map_or(self.base.term, |at| self.runs[at].term);
        let run_end = match self.runs.get(count) {
            Some(next_run) => LogIndex(next_run.index.value() - 1),
            None => self.last.index,
        };
        let end = run_end.min(bound.index).max(self.base.index);
        EntryId::new(term, end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: EntryId = EntryId::new(Term(1), LogIndex(3));

    fn id(term: u64, index: u64) -> EntryId {
        EntryId::new(Term(term), LogIndex(index))
    }

    /// Terms of the entries after the base, and the map of the same log.
    fn log() -> impl Strategy<Value = (Vec<u64>, TermMap)> {
        proptest::collection::vec(0u64..3, 0..20).prop_map(|steps| {
            let mut map = TermMap::new(BASE, &[], BASE);
            let mut terms = Vec::new();
            for step in steps {
                let last = map.last();
                map.append(EntryId::new(Term(last.term.value() + step), last.index.next()));
                terms.push(map.last().term.value());
            }
            (terms, map)
        })
    }

    proptest! {
        #[test]
        fn terms_equal_those_of_a_plain_list((terms, map) in log(), cut in 0usize..25) {
            let mut map = map;
            let mut terms = terms;
            map.truncate(LogIndex(BASE.index.value() + 1 + cut as u64));
            terms.truncate(cut);
            let ids: Vec<_> = std::iter::once(BASE)
                .chain((4u64..).zip(&terms).map(|(index, &term)| id(term, index)))
                .collect();
            prop_assert_eq!(map.last(), *ids.last().expect("the base"));
            for index in 0..40 {
                let expected = ids.iter().find(|id| id.index.value() == index).map(|id| id.term);
                prop_assert_eq!(map.term_at(LogIndex(index)), expected);
            }
        }

        #[test]
        fn the_hint_is_the_last_entry_that_could_match(
            (terms, map) in log(),
            term in 0u64..40,
            at in 0u64..40,
        ) {
            let bound = id(term, at);
            let fits = (4u64..)
                .zip(&terms)
                .map(|(index, &term)| id(term, index))
                .filter(|id| id.index <= bound.index && id.term <= bound.term)
                .last();
            prop_assert_eq!(map.last_not_after(bound), fits.unwrap_or(BASE));
        }

        #[test]
        fn what_is_compacted_is_gone_and_the_rest_unchanged((_, map) in log(), through in 3u64..25) {
            let through = LogIndex(through).min(map.last().index);
            let mut compacted = map.clone();
            compacted.compact(through);
            prop_assert_eq!(compacted.base().index, through);
            prop_assert_eq!(compacted.last(), map.last());
            for index in 0..40 {
                let expected = map.term_at(LogIndex(index)).filter(|_| index >= through.value());
                prop_assert_eq!(compacted.term_at(LogIndex(index)), expected);
                let bound = EntryId::new(Term(index), map.last().index);
                let fits = map.last_not_after(bound);
                let expected = if fits.index < through { compacted.base() } else { fits };
                prop_assert_eq!(compacted.last_not_after(bound), expected);
            }
        }

        #[test]
        fn a_map_is_rebuilt_from_its_boundaries((terms, map) in log()) {
            let mut firsts = Vec::new();
            for (at, &term) in terms.iter().enumerate() {
                if at == 0 || terms[at - 1] != term {
                    firsts.push(id(term, 4 + at as u64));
                }
            }
            let rebuilt = TermMap::new(BASE, &firsts, map.last());
            for index in 0..40 {
                prop_assert_eq!(rebuilt.term_at(LogIndex(index)), map.term_at(LogIndex(index)));
            }
        }
    }
}
