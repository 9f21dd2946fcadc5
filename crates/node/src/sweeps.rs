//! Which group removes what nobody can read any more, and when: a value.
//!
//! What a compaction allows to remove is removed in small steps, and all groups of a node have their steps in turn.
//! There are two claims to a step, so that space follows every compaction, and none of them is felt:
//!
//! - **By time**, at a steady rate, whether anything is applied or not. Removed in one go, the history of half a
//!   minute would be one burst of marks to the engine, and what the engine makes of it competes with the log's syncs.
//! - **By what was applied**: each entry is worth more rows than it can leave behind as a rule, so that no load is
//!   too high for the sweeps. They take a small share of its time, and as many turns as it has.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use quorate_types::GroupId;

/// Rows that one step removes at most: a millisecond or two, in which nothing is applied.
pub(crate) const STEP_ROWS_MAX: usize = 512;

/// Rows in a second. The history of half a minute at 1,000 overwrites a second takes some seconds.
const ROWS_PER_SECOND: u64 = 20_000;

/// Rows that an applied entry is worth. One overwrite leaves two behind.
const ROWS_PER_ENTRY: usize = 4;

/// What a step costs that finds nothing, in rows: it has looked.
const LOOK_ROWS: usize = 16;

/// How much of the past may be made up for, so that a pause is not followed by a burst.
const BURST: Duration = Duration::from_millis(50);

/// What there is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// A step of this group.
    Now(GroupId),
    /// Nothing before this moment, unless entries are applied.
    At(Instant),
    /// Nothing at all.
    Never,
}

/// The groups that may have something to remove.
#[derive(Debug, Default)]
pub(crate) struct Sweeps {
    /// In the order of their turns; each once.
    waiting: VecDeque<GroupId>,
    known: BTreeSet<GroupId>,
    /// Rows that were earned by entries.
    earned_rows: usize,
    /// When the steady rate allows another step; `None`: it was not used yet.
    free_at: Option<Instant>,
}

impl Sweeps {
    /// `group` may have something to remove.
    pub(crate) fn add(&mut self, group: GroupId) {
        if self.known.insert(group) {
            self.waiting.push_back(group);
        }
    }

    /// `group` has nothing to remove, or is not here any more.
    pub(crate) fn remove(&mut self, group: GroupId) {
        if self.known.remove(&group) {
            self.waiting.retain(|waiting| *waiting != group);
        }
    }

    /// So many entries were applied since the last time.
    pub(crate) fn earn(&mut self, entries: usize) {
        let rows = entries.saturating_mul(ROWS_PER_ENTRY);
        // What was not needed is not saved up.
        self.earned_rows = self.earned_rows.min(STEP_ROWS_MAX).saturating_add(rows);
    }

    /// What is to be done at `now`.
    pub(crate) fn turn(&self, now: Instant) -> Turn {
        let Some(&group) = self.waiting.front() else { return Turn::Never };
        match self.free_at.filter(|_| !self.has_earned()) {
            Some(free_at) if free_at > now => Turn::At(free_at),
            Some(_) | None => Turn::Now(group),
        }
    }

    /// The group whose turn it was has removed `rows` rows at `now`, and has more or not.
    pub(crate) fn took(&mut self, now: Instant, rows: usize, more: bool) {
        let Some(group) = self.waiting.pop_front() else { return };
        match more {
            true => self.waiting.push_back(group),
            false => drop(self.known.remove(&group)),
        }
        let rows = rows.max(LOOK_ROWS);
        if self.has_earned() {
            self.earned_rows = self.earned_rows.saturating_sub(rows);
            return;
        }
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.free_at.map_or(now, |free_at| free_at.max(earliest));
        let nanos = rows as u64 * 1_000_000_000 / ROWS_PER_SECOND;
        self.free_at = Some(from + Duration::from_nanos(nanos));
    }

    const fn has_earned(&self) -> bool {
        self.earned_rows >= STEP_ROWS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweeps(groups: impl IntoIterator<Item = u64>) -> Sweeps {
        let mut sweeps = Sweeps::default();
        groups.into_iter().for_each(|group| sweeps.add(GroupId(group)));
        sweeps
    }

    /// Rows that are removed from `from` on for `time`, while steps are taken whenever they are due, and
    /// `entries` are applied each millisecond.
    fn rows_in(sweeps: &mut Sweeps, from: Instant, time: Duration, entries: usize) -> usize {
        let (mut now, mut rows) = (from, 0);
        while now < from + time {
            sweeps.earn(entries);
            while let Turn::Now(_) = sweeps.turn(now) {
                sweeps.took(now, STEP_ROWS_MAX, true);
                rows += STEP_ROWS_MAX;
            }
            now += Duration::from_millis(1);
        }
        rows
    }

    #[test]
    fn groups_have_their_steps_in_turn_whatever_their_numbers() {
        let (mut sweeps, now) = (sweeps([7, 3, 9, 3]), Instant::now());
        let mut turns = Vec::new();
        for step in 0..7 {
            sweeps.earn(STEP_ROWS_MAX);
            let Turn::Now(group) = sweeps.turn(now) else { panic!("a step was earned") };
            turns.push(group.value());
            // 3 has nothing left at its second turn, and is applied to again in the end.
            sweeps.took(now, 1, step != 4);
            if step == 5 {
                sweeps.add(GroupId(3));
            }
        }
        assert_eq!(turns, [7, 3, 9, 7, 3, 9, 7]);
        sweeps.remove(GroupId(9));
        assert_eq!(sweeps.turn(now + BURST), Turn::Now(GroupId(3)));
    }

    #[test]
    fn what_a_compaction_leaves_is_removed_at_a_rate_and_not_in_a_burst() {
        let (mut sweeps, now) = (sweeps([1]), Instant::now());
        let second = Duration::from_secs(1);
        let rows = rows_in(&mut sweeps, now, second, 0);
        let a_second = ROWS_PER_SECOND as usize..=ROWS_PER_SECOND as usize + 2 * STEP_ROWS_MAX;
        assert!(a_second.contains(&rows), "{rows}");
        let Turn::At(next) = sweeps.turn(now + second) else { panic!("it may go on at once") };
        assert!(next < now + second + Duration::from_millis(50));
        // Nor after a minute without.
        let rows = rows_in(&mut sweeps, now + 60 * second, Duration::from_millis(100), 0);
        assert!(rows <= 3_000 + 2 * STEP_ROWS_MAX, "{rows}");
    }

    #[test]
    fn no_load_is_so_high_that_the_sweeps_fall_behind_it() {
        let (mut sweeps, now) = (sweeps([1, 2]), Instant::now());
        let rows = rows_in(&mut sweeps, now, Duration::from_secs(1), 100);
        assert!(rows > 2 * 100_000, "two rows for each of the entries, and {rows} were removed");
    }

    #[test]
    fn what_was_applied_while_there_was_nothing_to_remove_does_not_count() {
        let (mut sweeps, now) = (Sweeps::default(), Instant::now());
        assert_eq!(rows_in(&mut sweeps, now, Duration::from_secs(1), 1_000), 0);
        assert_eq!(sweeps.turn(now), Turn::Never);
        sweeps.add(GroupId(1));
        let rows = rows_in(&mut sweeps, now, Duration::from_millis(1), 0);
        assert!(rows <= 10 * STEP_ROWS_MAX, "{rows}");
    }

    #[test]
    fn a_look_that_finds_nothing_costs_little_and_not_nothing() {
        let (mut sweeps, now) = (sweeps([1]), Instant::now());
        sweeps.took(now, 0, true);
        let Turn::At(next) = sweeps.turn(now) else { panic!("it has looked just now") };
        assert!(next - now < Duration::from_millis(1));
    }
}
