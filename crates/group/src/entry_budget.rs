//! [`EntryBudget`]: how the groups of a node share the memory for entries.

/// A group may always keep so many bytes: an append or two, so that a follower which lags by a round trip is
/// served from memory however many groups there are.
const GROUP_BYTES_MIN: usize = 64 << 10;

/// The budget of a node for entries that its groups keep in memory, so that followers which lag a little, and
/// the applier, need not read the log back.
///
/// As long as all of them together are within the budget, each may keep its full bound. Beyond that
/// everybody who is awake gets an equal part, until there is room again; who sleeps keeps nothing. So a
/// few busy groups have what they want, and thousands of them do not exhaust the node.
#[derive(Clone, Debug)]
pub struct EntryBudget {
    bytes_max: usize,
    group_bytes_max: usize,
    scarce: bool,
}

impl EntryBudget {
    /// A budget of `bytes_max` for all groups, of which one may keep `group_bytes_max`.
    #[must_use]
    pub const fn new(bytes_max: usize, group_bytes_max: usize) -> Self {
        Self { bytes_max, group_bytes_max, scarce: false }
    }

    /// What each of the `awake` groups may keep while all groups together keep `kept_bytes`. With more
    /// groups than the budget has parts of 64 KiB it is more than the budget: fewer than so many
    /// groups are busy at once, or the node has too little memory for them.
    pub fn divide(&mut self, kept_bytes: usize, awake: usize) -> usize {
        // Not at the same mark, or all would be cut and let loose again with every look.
        self.scarce = match self.scarce {
            true => kept_bytes > self.bytes_max / 4 * 3,
            false => kept_bytes > self.bytes_max,
        };
        if !self.scarce {
            return self.group_bytes_max;
        }
        (self.bytes_max / awake.max(1))
            .clamp(GROUP_BYTES_MIN, self.group_bytes_max.max(GROUP_BYTES_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn within_the_budget_every_group_keeps_what_it_likes() {
        let mut budget = EntryBudget::new(256 * MIB, 4 * MIB);
        assert_eq!(budget.divide(0, 0), 4 * MIB);
        assert_eq!(budget.divide(256 * MIB, 10_000), 4 * MIB);
    }

    #[test]
    fn beyond_it_those_that_are_awake_share_it_until_there_is_room_again() {
        let mut budget = EntryBudget::new(256 * MIB, 4 * MIB);
        assert_eq!(budget.divide(257 * MIB, 128), 2 * MIB);
        assert_eq!(budget.divide(256 * MIB, 128), 2 * MIB, "or they would be let loose at once");
        assert_eq!(budget.divide(200 * MIB, 256), MIB, "more have woken");
        assert_eq!(budget.divide(100 * MIB, 256), 4 * MIB);
    }

    #[test]
    fn nobody_gets_less_than_an_append_nor_more_than_its_bound() {
        let mut budget = EntryBudget::new(256 * MIB, 4 * MIB);
        assert_eq!(budget.divide(257 * MIB, 1_000_000), 64 << 10);
        assert_eq!(budget.divide(257 * MIB, 1), 4 * MIB);
    }

    /// Groups that always fill what they may keep, in turns, as actors do.
    #[test]
    fn greedy_groups_come_to_rest_within_the_budget() {
        let mut budget = EntryBudget::new(64 * MIB, 4 * MIB);
        let mut kept = vec![0_usize; 100];
        for _ in 0..100 {
            let share = budget.divide(kept.iter().sum(), kept.len());
            kept.iter_mut().for_each(|group| *group = share.min(*group + MIB / 2));
        }
        for _ in 0..20 {
            let share = budget.divide(kept.iter().sum(), kept.len());
            kept.iter_mut().for_each(|group| *group = share.min(*group + MIB / 2));
            assert!(kept.iter().sum::<usize>() <= 64 * MIB, "{kept:?}");
        }
    }
}
