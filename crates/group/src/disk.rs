//! What a node's disk allows its groups: how much room is left on it, whether it still syncs, and what
//! follows. Rules only; the host measures.
//!
//! ```text
//!  free space   > 2 reserves   > 1 reserve    > 1/2 reserve            below
//!  room         Ample          Enough         Short                    Exhausted
//!  writes       yes            as before      refused by leaders if    the node takes no entries, applies
//!                                             a quorum is not above    nothing and leads nothing
//! ```
//!
//! The engines below must never meet a full disk: what they would do then is to fail, and a failed log
//! ends the node. Deletes and compactions pass as long as they can: they are what makes room.

use std::collections::BTreeSet;

use quorate_types::{Membership, NodeId};

/// The reserve is a twentieth of the disk, but no less and no more than these: 256 MiB hold what memtables
/// and a compaction may still write, and of 2 GiB more is only waste.
const RESERVE_BYTES_MIN: u64 = 256 << 20;
const RESERVE_BYTES_MAX: u64 = 2 << 30;

/// Bytes that are kept free on a disk of `disk_bytes`.
#[must_use]
pub fn reserve_bytes(disk_bytes: u64) -> u64 {
    (disk_bytes / 20).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX)
}

/// How much room a node's disk has, the least first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Room {
    /// Not even half of the reserve.
    Exhausted,
    /// The reserve is touched.
    Short,
    /// The reserve is whole.
    Enough,
    /// Twice the reserve.
    Ample,
}

impl Room {
    /// The room that `free_bytes` are.
    #[must_use]
    pub const fn of(free_bytes: u64, reserve_bytes: u64) -> Self {
        if free_bytes > reserve_bytes.saturating_mul(2) {
            Self::Ample
        } else if free_bytes > reserve_bytes {
            Self::Enough
        } else if free_bytes > reserve_bytes / 2 {
            Self::Short
        } else {
            Self::Exhausted
        }
    }
}

/// Whether the leader of a group takes proposals that grow the state.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GrowthGate {
    refuses: bool,
}

impl GrowthGate {
    /// True when growth is to be refused now: while fewer than a quorum of the voters, of each half of a
    /// joint membership, are above the reserve; and once that was so, until a quorum has twice as much, so
    /// that writes do not start and stop with every file that is deleted.
    pub fn refuses(&mut self, membership: &Membership, room_of: impl Fn(NodeId) -> Room) -> bool {
        let wanted = if self.refuses { Room::Ample } else { Room::Enough };
        self.refuses = !is_quorum(membership, |node| room_of(node) >= wanted);
        self.refuses && !quorate_types::defect!(GrowthUnchecked)
    }
}

/// True when `counts` holds for a majority of the voters, and of both halves of a joint membership.
#[must_use]
pub fn is_quorum(membership: &Membership, counts: impl Fn(NodeId) -> bool) -> bool {
    let majority = |voters: &BTreeSet<NodeId>| {
        voters.iter().filter(|node| counts(**node)).count() > voters.len() / 2
    };
    majority(&membership.voters) && (!membership.is_joint() || majority(&membership.outgoing))
}

/// Whether a node's disk hangs, or is so slow that it might as well: a value that is asked again and again.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stall {
    /// Since when the disk has kept up again, while it counts as stalled; otherwise `None`.
    calm_since_us: Option<u64>,
    stalled: bool,
}

impl Stall {
    /// At `now_us` the oldest append that is not synced is `age_us` old (0: all are synced). True while
    /// the disk counts as stalled: from three quarters of an election timeout on, so that the rest of it
    /// is left to hand leaderships over; until for a whole timeout nothing was older than a quarter of it.
    pub fn note(&mut self, now_us: u64, age_us: u64, election_timeout_us: u64) -> bool {
        if age_us >= election_timeout_us / 4 * 3 {
            *self = Self { calm_since_us: None, stalled: true };
        } else if self.stalled && age_us < election_timeout_us / 4 {
            let since = *self.calm_since_us.get_or_insert(now_us);
            self.stalled = now_us.saturating_sub(since) < election_timeout_us;
        } else {
            self.calm_since_us = None;
        }
        self.stalled
    }
}

/// What a node can do for its groups.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Fitness {
    /// Everything.
    #[default]
    Fit,
    /// Its disk does not sync in time: it gives its leaderships away and does not campaign.
    Stalled,
    /// Its disk is all but full: beside that, it takes no entries and applies nothing. It votes and beats.
    Exhausted,
}

impl Fitness {
    /// What follows from both.
    #[must_use]
    pub const fn of(room: Room, stalled: bool) -> Self {
        match room {
            Room::Exhausted => Self::Exhausted,
            Room::Short | Room::Enough | Room::Ample if stalled => Self::Stalled,
            Room::Short | Room::Enough | Room::Ample => Self::Fit,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: u64 = 1_000_000;

    fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    #[test]
    fn the_reserve_is_a_twentieth_within_its_bounds() {
        for (disk, reserve) in [(64, 256), (20 << 10, 1 << 10), (1 << 20, 2 << 10)] {
            assert_eq!(reserve_bytes(disk * MIB), reserve * MIB);
        }
    }

    #[test]
    fn room_falls_as_space_does() {
        let rooms: Vec<_> = [201, 200, 101, 100, 51, 50, 0].map(|free| Room::of(free, 100)).into();
        use Room::{Ample, Enough, Exhausted, Short};
        assert_eq!(rooms, [Ample, Enough, Enough, Short, Short, Exhausted, Exhausted]);
        assert!(rooms.is_sorted_by(|more, less| more >= less));
    }

    #[test]
    fn growth_stops_below_the_reserve_and_resumes_above_twice_of_it() {
        let group = Membership::of_voters([1, 2, 3].map(NodeId));
        let mut gate = GrowthGate::default();
        let mut refuses =
            |rooms: [Room; 3]| gate.refuses(&group, |node| rooms[node.value() as usize - 1]);
        use Room::{Ample, Enough, Short};
        assert!(!refuses([Ample, Short, Ample]), "one of three may be short");
        assert!(!refuses([Enough, Short, Enough]));
        assert!(refuses([Enough, Short, Short]));
        assert!(refuses([Enough, Enough, Enough]), "not yet");
        assert!(!refuses([Enough, Ample, Ample]), "by itself");
        assert!(!refuses([Enough, Enough, Enough]), "and it lasts");
    }

    #[test]
    fn a_joint_membership_needs_room_in_both_halves() {
        let joint = Membership {
            outgoing: nodes([1, 2, 3]),
            ..Membership::of_voters([3, 4, 5].map(NodeId))
        };
        let refuses = |short: &[u64]| {
            let short = nodes(short.iter().copied());
            let room = |node| if short.contains(&node) { Room::Short } else { Room::Ample };
            GrowthGate::default().refuses(&joint, room)
        };
        assert!(!refuses(&[3]) && !refuses(&[1, 4]));
        assert!(refuses(&[1, 2]) && refuses(&[4, 5]) && refuses(&[3, 5]));
    }

    #[test]
    fn a_disk_that_hangs_counts_as_stalled_within_one_timeout_until_it_is_calm_again() {
        let mut stall = Stall::default();
        assert!(!stall.note(0, SECOND / 2, SECOND));
        assert!(stall.note(1, SECOND / 4 * 3, SECOND));
        assert!(stall.note(2, 0, SECOND), "one sync is no proof");
        assert!(stall.note(2 + SECOND / 2, SECOND / 2, SECOND), "it was slow again");
        assert!(stall.note(3 + SECOND, 0, SECOND));
        assert!(!stall.note(3 + 2 * SECOND, 0, SECOND), "calm for a whole timeout");
        assert!(!stall.note(4 + 2 * SECOND, SECOND / 2, SECOND), "as before");
    }

    #[test]
    fn a_full_disk_weighs_more_than_a_slow_one() {
        assert_eq!(Fitness::of(Room::Short, false), Fitness::Fit);
        assert_eq!(Fitness::of(Room::Ample, true), Fitness::Stalled);
        assert_eq!(Fitness::of(Room::Exhausted, true), Fitness::Exhausted);
    }

    fn room() -> impl Strategy<Value = Room> {
        (0u64..250).prop_map(|free| Room::of(free, 100))
    }

    proptest! {
        /// Whatever happened before: without a quorum above the reserve nothing grows, with a quorum above
        /// twice of it everything does.
        #[test]
        fn the_gate_keeps_to_its_two_bounds(
            voters in prop::collection::btree_set(1u64..8, 1..6),
            outgoing in prop::collection::btree_set(1u64..8, 0..6),
            steps in prop::collection::vec(prop::collection::vec(room(), 8), 1..20),
        ) {
            let group = Membership { outgoing: nodes(outgoing), ..Membership::of_voters(voters.into_iter().map(NodeId)) };
            let mut gate = GrowthGate::default();
            for rooms in steps {
                let rooms: BTreeMap<_, _> = (0..).map(NodeId).zip(rooms).collect();
                let refuses = gate.refuses(&group, |node| rooms[&node]);
                let holds = |wanted| is_quorum(&group, |node| rooms[&node] >= wanted);
                prop_assert!(refuses || holds(Room::Enough));
                prop_assert!(!refuses || !holds(Room::Ample));
            }
        }

        /// A disk whose appends are always younger than the bound never counts as stalled.
        #[test]
        fn a_disk_that_keeps_up_is_never_stalled(ages in prop::collection::vec(0..SECOND / 4 * 3, 1..50)) {
            let mut stall = Stall::default();
            for (now, age) in ages.into_iter().enumerate() {
                prop_assert!(!stall.note(now as u64 * 1_000, age, SECOND));
            }
        }
    }
}
