//! Callers that wait: proposals for their entry to be applied, reads for an index to be applied.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use bytes::Bytes;
use quorate_raft::ReadId;
use quorate_types::{EntryId, LogIndex};

/// Proposals that are in the log, in log order.
///
/// Invariants:
/// - Indexes strictly increase from front to back.
/// - A proposal leaves exactly once: applied, displaced, or expired.
#[derive(Debug)]
pub(crate) struct Proposals<P> {
    waiting: VecDeque<Waiting<P>>,
    /// Everything at or below this index was reported committed.
    committed: LogIndex,
}

#[derive(Debug)]
struct Waiting<P> {
    id: EntryId,
    deadline_tick: u64,
    slot: P,
}

/// How a wait for a proposal ended.
#[derive(Debug)]
pub(crate) enum Ended<P> {
    /// Its own entry was applied.
    Applied(P, EntryId, Bytes),
    /// Another entry stands at its index: it will never be applied.
    Displaced(P),
}

impl<P> Proposals<P> {
    pub(crate) const fn new() -> Self {
        Self { waiting: VecDeque::new(), committed: LogIndex::ZERO }
    }

    /// Waits for `id`.
    ///
    /// A proposal at or above `id.index` that still waits was cut off the log: this replica led, lost
    /// an unsynced tail to another leader, and leads again. Its slot is given back.
    pub(crate) fn push(&mut self, id: EntryId, deadline_tick: u64, slot: P) -> Vec<P> {
        let mut displaced = Vec::new();
        while self.waiting.back().is_some_and(|last| last.id.index >= id.index) {
            displaced.extend(self.waiting.pop_back().map(|last| last.slot));
        }
        self.waiting.push_back(Waiting { id, deadline_tick, slot });
        displaced
    }

    /// Calls `observe` once for each waiting proposal that is now known committed.
    pub(crate) fn commit(&mut self, through: LogIndex, observe: &mut dyn FnMut(&P)) {
        if through <= self.committed {
            return;
        }
        let from = self.waiting.partition_point(|waiting| waiting.id.index <= self.committed);
        let to = self.waiting.partition_point(|waiting| waiting.id.index <= through);
        self.waiting.range(from..to).for_each(|waiting| observe(&waiting.slot));
        self.committed = through;
    }

    /// Ends the waits at or below `through`, given the outcomes of the commands just applied, in order.
    pub(crate) fn apply(
        &mut self,
        outcomes: Vec<(EntryId, Bytes)>,
        through: LogIndex,
        ended: &mut dyn FnMut(Ended<P>),
    ) {
        let mut outcomes = outcomes.into_iter().peekable();
        while self.waiting.front().is_some_and(|first| first.id.index <= through) {
            let Some(Waiting { id, slot, .. }) = self.waiting.pop_front() else { return };
            while outcomes.next_if(|(applied, _)| applied.index < id.index).is_some() {}
            match outcomes.next_if(|(applied, _)| *applied == id) {
                Some((_, outcome)) => ended(Ended::Applied(slot, id, outcome)),
                None => ended(Ended::Displaced(slot)),
            }
        }
    }

    /// Takes out the proposals at or below `through`: what became of them cannot be known any more.
    pub(crate) fn take_through(&mut self, through: LogIndex) -> Vec<P> {
        let count = self.waiting.partition_point(|waiting| waiting.id.index <= through);
        self.waiting.drain(..count).map(|waiting| waiting.slot).collect()
    }

    /// Takes out the proposals whose deadline lies before `tick`. Deadlines increase with the index,
    /// so only the front needs a look.
    pub(crate) fn expire(&mut self, tick: u64) -> Vec<P> {
        let mut expired = Vec::new();
        while self.waiting.front().is_some_and(|first| first.deadline_tick < tick) {
            expired.extend(self.waiting.pop_front().map(|first| first.slot));
        }
        expired
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// Reads on their way: gathered in this turn, waiting for a confirmation round, waiting for an apply.
#[derive(Debug)]
pub(crate) struct Reads<R> {
    gathered: Vec<R>,
    unconfirmed: BTreeMap<ReadId, Asked<R>>,
    unapplied: BTreeMap<(LogIndex, ReadId), Asked<R>>,
}

/// The reads of one turn.
#[derive(Debug)]
struct Asked<R> {
    deadline_tick: u64,
    slots: Vec<R>,
}

impl<R> Reads<R> {
    pub(crate) const fn new() -> Self {
        Self { gathered: Vec::new(), unconfirmed: BTreeMap::new(), unapplied: BTreeMap::new() }
    }

    pub(crate) fn gather(&mut self, slot: R) {
        self.gathered.push(slot);
    }

    /// Everything gathered in this turn: it will share one confirmation.
    pub(crate) fn take_gathered(&mut self) -> Vec<R> {
        mem::take(&mut self.gathered)
    }

    pub(crate) fn await_confirmation(&mut self, id: ReadId, deadline_tick: u64, slots: Vec<R>) {
        self.unconfirmed.insert(id, Asked { deadline_tick, slots });
    }

    /// The round of `id` succeeded with `index`: its reads wait until that is applied.
    pub(crate) fn confirm(&mut self, id: ReadId, index: LogIndex) {
        if let Some(asked) = self.unconfirmed.remove(&id) {
            self.unapplied.insert((index, id), asked);
        }
    }

    /// The round of `id` will never succeed.
    pub(crate) fn refuse(&mut self, id: ReadId) -> Vec<R> {
        self.unconfirmed.remove(&id).map(|asked| asked.slots).unwrap_or_default()
    }

    /// Takes out the reads whose deadline lies before `tick`, whatever they wait for.
    pub(crate) fn expire(&mut self, tick: u64) -> Vec<R> {
        let is_overdue = |asked: &mut Asked<R>| asked.deadline_tick < tick;
        let unconfirmed = self.unconfirmed.extract_if(.., |_, asked| is_overdue(asked));
        let unapplied = self.unapplied.extract_if(.., |_, asked| is_overdue(asked));
        let overdue = unconfirmed.map(|(_, asked)| asked).chain(unapplied.map(|(_, asked)| asked));
        overdue.flat_map(|asked| asked.slots).collect()
    }

    /// The confirmed reads whose index is applied, oldest first.
    pub(crate) fn take_applied(&mut self, applied: LogIndex) -> Vec<R> {
        let later = self.unapplied.split_off(&(applied.next(), ReadId(0)));
        let served = mem::replace(&mut self.unapplied, later).into_values();
        served.flat_map(|asked| asked.slots).collect()
    }

    /// Every waiting read, whatever it waits for.
    pub(crate) fn take_all(&mut self) -> Vec<R> {
        let mut all = mem::take(&mut self.gathered);
        all.extend(mem::take(&mut self.unconfirmed).into_values().flat_map(|asked| asked.slots));
        all.extend(mem::take(&mut self.unapplied).into_values().flat_map(|asked| asked.slots));
        all
    }

    pub(crate) fn len(&self) -> usize {
        let asked = self.unconfirmed.values().chain(self.unapplied.values());
        self.gathered.len() + asked.map(|asked| asked.slots.len()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::Term;

    use super::*;

    fn id(term: u64, index: u64) -> EntryId {
        EntryId::new(Term(term), LogIndex(index))
    }

    fn outcome(term: u64, index: u64) -> (EntryId, Bytes) {
        (id(term, index), Bytes::from(format!("{index}@{term}")))
    }

    /// Applies `outcomes` and names what ended.
    fn apply(
        proposals: &mut Proposals<char>,
        outcomes: Vec<(EntryId, Bytes)>,
        through: u64,
    ) -> String {
        let mut ended = String::new();
        proposals.apply(outcomes, LogIndex(through), &mut |end| match end {
            Ended::Applied(slot, ..) => ended.push(slot.to_ascii_uppercase()),
            Ended::Displaced(slot) => ended.push(slot),
        });
        ended
    }

    #[test]
    fn a_proposal_is_answered_by_its_own_entry_only() {
        let mut proposals = Proposals::new();
        for (index, slot) in [(5, 'a'), (6, 'b'), (8, 'c')] {
            assert!(proposals.push(id(2, index), 0, slot).is_empty());
        }
        // Index 6 was overwritten by a leader of term 3; index 7 is a no-op without an outcome.
        assert_eq!(apply(&mut proposals, vec![outcome(2, 5), outcome(3, 6)], 7), "Ab");
        assert_eq!(apply(&mut proposals, vec![outcome(2, 8), outcome(2, 9)], 9), "C");
        assert_eq!(proposals.len(), 0);
    }

    #[test]
    fn a_proposal_whose_index_is_taken_again_by_this_replica_is_given_back() {
        let mut proposals = Proposals::new();
        proposals.push(id(2, 5), 0, 'a');
        proposals.push(id(2, 6), 0, 'b');
        assert_eq!(proposals.push(id(4, 6), 0, 'c'), ['b']);
        assert_eq!(apply(&mut proposals, vec![outcome(2, 5), outcome(4, 6)], 6), "AC");
    }

    #[test]
    fn each_proposal_is_observed_as_committed_once() {
        let mut proposals = Proposals::new();
        for index in 1..=4 {
            proposals.push(id(1, index), 0, index);
        }
        let mut seen = Vec::new();
        for through in [2, 1, 2, 4] {
            proposals.commit(LogIndex(through), &mut |slot| seen.push(*slot));
        }
        assert_eq!(seen, [1, 2, 3, 4]);
    }

    #[test]
    fn expiry_takes_the_overdue_only() {
        let mut proposals = Proposals::new();
        proposals.push(id(1, 1), 10, 'a');
        proposals.push(id(1, 2), 11, 'b');
        assert!(proposals.expire(10).is_empty());
        assert_eq!(proposals.expire(11), ['a']);
    }

    #[test]
    fn a_read_waits_for_its_round_and_then_for_its_index() {
        let mut reads = Reads::new();
        reads.gather('a');
        reads.gather('b');
        let gathered = reads.take_gathered();
        reads.await_confirmation(ReadId(1), 10, gathered);
        reads.gather('c');
        let gathered = reads.take_gathered();
        reads.await_confirmation(ReadId(2), 10, gathered);
        assert!(reads.take_applied(LogIndex(9)).is_empty());
        reads.confirm(ReadId(1), LogIndex(10));
        assert!(reads.take_applied(LogIndex(9)).is_empty());
        assert_eq!(reads.take_applied(LogIndex(10)), ['a', 'b']);
        assert_eq!(reads.refuse(ReadId(2)), ['c']);
        assert_eq!(reads.len(), 0);
    }

    #[test]
    fn a_read_expires_whatever_it_waits_for() {
        let mut reads = Reads::new();
        for (number, slot) in [(1, 'a'), (2, 'b'), (3, 'c')] {
            reads.await_confirmation(ReadId(number), number, vec![slot]);
        }
        reads.confirm(ReadId(1), LogIndex(10));
        assert!(reads.expire(1).is_empty());
        assert_eq!(reads.expire(3), ['b', 'a']);
        reads.confirm(ReadId(2), LogIndex(1));
        assert_eq!((reads.take_applied(LogIndex(10)), reads.len()), (vec![], 1));
    }
}
