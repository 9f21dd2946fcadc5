//! How much of a log is kept, as a decision without a disk.
//!
//! Entries are kept as long as somebody may want them: those that the durable state does not hold yet,
//! because a restart applies them again; a number of entries behind that, so that a replica that was away
//! for a moment is served from the log; and on a leader whatever a peer still needs that is only slow.
//! A peer that has fallen too far behind is not waited for: it gets a snapshot.

use quorate_types::LogIndex;

/// A peer that needs more than this many times the kept entries is too far behind to be waited for.
const BEHIND_MAX: u64 = 4;

/// The same for a peer that a snapshot is on its way to: were the entries behind that truncated meanwhile,
/// it would need another one, again and again.
const BEHIND_RECEIVING_MAX: u64 = 32;

/// A log is truncated when so large a part of the kept number has gathered, and not entry by entry.
const PART: u64 = 8;

/// Entries that one write forgets at most: others wait for it, so it stays a matter of a millisecond.
pub(crate) const STEP_ENTRIES_MAX: u64 = 4_096;

/// What is known of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// The entry before the first one.
    pub(crate) base: LogIndex,
    /// Applied, and durable in the state engine.
    pub(crate) durable: LogIndex,
    /// On a leader, the other replicas.
    pub(crate) peers: Vec<Held>,
}

/// What a leader knows of another replica's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    /// It holds everything up to here, or will once the snapshot is there that is on its way.
    pub(crate) through: LogIndex,
    /// A snapshot is on its way.
    pub(crate) receiving: bool,
}

/// Through which entry the log may be forgotten now, so that `kept` entries behind the durable state
/// stay; `None` when it is not worth a write yet.
pub(crate) fn through(extent: &Extent, kept: u64) -> Option<LogIndex> {
    let Extent { base, durable, peers } = extent;
    let wanted = durable.value().checked_sub(kept)?;
    let is_near = |held: &&Held| {
        let behind_max = if held.receiving { BEHIND_RECEIVING_MAX } else { BEHIND_MAX };
        durable.since(held.through) <= kept.saturating_mul(behind_max)
    };
    let needed = peers.iter().filter(is_near).map(|held| held.through.value()).min();
    let through = needed.map_or(wanted, |needed| needed.min(wanted));
    let gathered = through.checked_sub(base.value())?;
    (gathered >= gathered_min(kept)).then_some(LogIndex(through))
}

/// Fewer entries beyond those that are kept are not worth a write.
pub(crate) const fn gathered_min(kept: u64) -> u64 {
    if kept < PART { 1 } else { kept / PART }
}

/// The next step on the way from `base` to `through`.
pub(crate) fn step(base: LogIndex, through: LogIndex) -> LogIndex {
    LogIndex(through.value().min(base.value().saturating_add(STEP_ENTRIES_MAX)))
}

/// Whether a log of such an extent would be truncated if the applied state were durable: then it is worth
/// a flush.
pub(crate) fn is_held_by_memory(extent: &Extent, applied: LogIndex, kept: u64) -> bool {
    let flushed = Extent { durable: applied.max(extent.durable), ..extent.clone() };
    // A whole part more than needed, so that the engine has its time to flush by itself.
    through(extent, kept).is_none()
        && through(&flushed, kept)
            .is_some_and(|through| through.since(extent.base) >= gathered_min(kept) * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(base: u64, durable: u64, peers: &[u64]) -> Extent {
        let held = |&through: &u64| Held { through: LogIndex(through), receiving: false };
        let peers = peers.iter().map(held).collect();
        Extent { base: LogIndex(base), durable: LogIndex(durable), peers }
    }

    #[test]
    fn the_kept_entries_lie_behind_the_durable_state() {
        assert_eq!(through(&extent(1, 1_000, &[]), 800), Some(LogIndex(200)));
        assert_eq!(through(&extent(200, 1_000, &[]), 800), None, "nothing has gathered");
        assert_eq!(through(&extent(200, 1_099, &[]), 800), None, "less than a part");
        assert_eq!(through(&extent(200, 1_100, &[]), 800), Some(LogIndex(300)));
    }

    #[test]
    fn a_state_that_is_not_durable_yet_keeps_the_log() {
        assert_eq!(through(&extent(1, 1, &[]), 100), None);
        assert_eq!(through(&extent(1, 99, &[]), 100), None);
        assert_eq!(through(&extent(500, 300, &[]), 100), None, "of an older snapshot");
    }

    #[test]
    fn a_slow_peer_is_waited_for_and_one_too_far_behind_is_not() {
        assert_eq!(through(&extent(1, 1_000, &[990, 500]), 400), Some(LogIndex(500)));
        assert_eq!(through(&extent(1, 2_000, &[1_990, 450]), 400), Some(LogIndex(450)));
        assert_eq!(through(&extent(1, 2_000, &[1_990, 399]), 400), Some(LogIndex(1_600)));
        assert_eq!(through(&extent(450, 2_000, &[460]), 400), None, "it moves with the peer");
    }

    #[test]
    fn what_lies_behind_a_snapshot_on_its_way_is_kept_for_longer() {
        let receiving = |through| Held { through: LogIndex(through), receiving: true };
        let log = |peer| Extent { peers: vec![peer], ..extent(1, 20_000, &[]) };
        assert_eq!(through(&log(receiving(7_200)), 400), Some(LogIndex(7_200)));
        assert_eq!(through(&log(receiving(7_199)), 400), Some(LogIndex(19_600)));
    }

    #[test]
    fn one_kept_entry_is_a_setting_like_any_other() {
        assert_eq!(through(&extent(1, 3, &[]), 1), Some(LogIndex(2)));
        assert_eq!(through(&extent(2, 3, &[]), 1), None);
        assert_eq!(through(&extent(1, u64::MAX, &[]), u64::MAX), None);
    }

    #[test]
    fn a_long_way_is_made_in_steps() {
        let (mut base, through, mut steps) = (LogIndex(10), LogIndex(10_010), 0);
        while base < through {
            let next = step(base, through);
            assert!(next > base && next.since(base) <= STEP_ENTRIES_MAX);
            (base, steps) = (next, steps + 1);
        }
        assert_eq!((base, steps), (through, 3));
    }

    #[test]
    fn a_flush_is_worth_it_only_when_memory_alone_holds_the_log() {
        let applied = LogIndex(2_000);
        assert!(is_held_by_memory(&extent(1, 1, &[]), applied, 800));
        assert!(!is_held_by_memory(&extent(1, 2_000, &[]), applied, 800), "it is durable");
        assert!(!is_held_by_memory(&extent(1, 1, &[2]), applied, 800), "a peer holds it");
        assert!(!is_held_by_memory(&extent(1_100, 1_000, &[]), applied, 800), "too little");
    }
}
