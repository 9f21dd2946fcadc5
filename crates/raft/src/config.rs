//! What a replica is told at birth: who it is, its timers in ticks, and its bounds in bytes.

use quorate_types::{EntryId, GroupId, HardState, LogIndex, Membership, NodeId, SnapshotMeta};

/// Settings of one replica. [`Config::new`] has the defaults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// For so many ticks after it heard a leader a replica refuses votes, and a leader that did not
    /// hear a quorum for so long steps down. Default 10. Lower: faster failover, more false alarms.
    pub election_ticks_min: u32,
    /// A replica campaigns when it heard no leader for a random time from `election_ticks_min` to
    /// this. Default 20. Higher: fewer split votes, slower failover; without a difference nothing
    /// is random, and two candidates may collide for ever.
    pub election_ticks_max: u32,
    /// Ticks between two heartbeats of a leader; well below `election_ticks_min`. Default 1.
    pub heartbeat_ticks: u32,
    /// Entries in one append message, in bytes; one entry always fits. Default 1 MiB. Higher: fewer
    /// messages while a follower catches up, longer waits for what queues behind one.
    pub append_bytes_max: usize,
    /// The same for an append to a peer whose log is not known to meet this one, if that is less. Default 64 KiB: the
    /// peer may refuse it, or drop it while it puts a snapshot in place, and then it is sent again after every
    /// heartbeat. Higher: fewer messages for a peer that was away for a moment.
    pub probe_bytes_max: usize,
    /// Unanswered append messages per peer. Default 256.
    pub inflight_appends_max: usize,
    /// With so many unanswered appends, a further one leaves at once only if it is full
    /// (`append_bytes_max`); what is smaller waits for an answer, or for the next tick. Default 256:
    /// never waits. 1 is best where a round trip is short: what comes meanwhile fills the next
    /// append, and one message, one sync and one answer serve many proposals. Over a long link more may
    /// be under way, see `partial_interval_us`; the tick bounds what waiting adds to latency.
    pub inflight_partial_max: usize,
    /// Over a long link one partial append may be under way for each so many microseconds of the round
    /// trip, if that is more than `inflight_partial_max`. Default 5,000: with 140 ms that is 28 appends,
    /// and one of a steady stream leaves every 5 ms; below 10 ms it changes nothing. The round trip is
    /// that of beats, which wait for no disk, and the shortest of late, so that a busy peer does not
    /// look far away.
    pub partial_interval_us: u64,
    /// Tell peers every new commit index, in a message of its own when there is nothing else to send. Default
    /// true. Without it such a message leaves once a tick at most, and peers learn the rest by the next
    /// append: half the messages of a busy group, and followers that apply up to a tick later when it falls
    /// silent.
    pub eager_commit: bool,
    /// Without `eager_commit`, tell peers a new commit index at once all the same when no entry waits for its
    /// commit: no append that is sure to come would tell it. Default false. With it, whoever watches a follower of
    /// a group with pauses hears of each write as it is committed, and not up to a tick later; a group without
    /// pauses sends no more than before.
    pub quiet_commit: bool,
    /// Bytes of entries in unanswered appends per peer; must cover rate x round trip. Default 16
    /// MiB.
    pub inflight_bytes_max: usize,
    /// Bytes of own proposals that are not committed yet; further ones are refused. One proposal is
    /// always accepted when there is none. Default 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Bytes of entries kept in memory although they are durable and applied, for followers that
    /// lag a little; what is older is read back by [`LogFetch`](crate::LogFetch). Default 4 MiB.
    pub cached_bytes_max: usize,
    /// Seeds the randomized timeouts; replicas of one group must differ.
    pub seed: u64,
    /// Ask for pre-votes before an election (thesis section 9.6). Default true. Without them a replica that
    /// was cut off raises its term again and again, and its return deposes the leader.
    pub pre_vote: bool,
    /// A leader that did not hear a quorum for `election_ticks_min` steps down, and who hears a leader
    /// refuses its vote to others (thesis sections 6.2 and 4.2.3). Default true. Without it a leader that was
    /// cut off goes on to believe that it leads, and whoever asks for votes in a higher term is heard. There
    /// are no leases then.
    pub check_quorum: bool,
    /// How long a tick is, in microseconds; ticks may come late, and a burst of late ones does no
    /// harm. Default 100,000.
    pub tick_us: u64,
    /// Promise leaders silence, and read without a message while enough promises run. Default true; needs
    /// `check_quorum`.
    /// Whoever switches it off, or shortens [`Config::promise_us`], must keep the replica down for one
    /// old promise before it starts again: it may owe that to a leader.
    pub lease: bool,
    /// How much the clocks of two nodes may differ in rate, in thousandths: leases are shorter than
    /// promises by so much. Default 10. A crystal is off by less than 0.1, and a disciplined clock
    /// slews by at most 0.5, so two differ by 1.2 at most; the rest is margin, and costs one per cent
    /// of a lease that is renewed by every heartbeat.
    pub clock_drift_permille_max: u32,
    /// Who should lead, if it can: a leader that is someone else hands over when this voter is alive
    /// and has caught up, not before it has led for `election_ticks_max`, and more seldom after each
    /// attempt that fails. An attempt that fails costs the lease for the rest of the term. Default
    /// nobody.
    pub preferred_leader: Option<NodeId>,
    /// A leader that had nothing to do for so many ticks lets its group fall asleep, see
    /// [`is_asleep`](crate::Replica::is_asleep). Default 0: never. Whoever switches it on must
    /// [`wake`](crate::Replica::wake) the groups of a node that is gone: asleep, nobody notices.
    pub quiesce_ticks: u32,
    /// Added to the first [`Moment`](quorate_types::Moment) of this life, it tells this life's read
    /// requests from those of earlier lives. The clock alone does that until the machine restarts;
    /// draw this at random at each start to be certain then too. Default 0.
    pub life: u64,
}

impl Config {
    /// The defaults, for ticks of 100 ms; the seed is made from `group` and `node`.
    #[must_use]
    pub const fn new(group: GroupId, node: NodeId) -> Self {
        Self {
            group,
            node,
            election_ticks_min: 10,
            election_ticks_max: 20,
            heartbeat_ticks: 1,
            append_bytes_max: 1 << 20,
            probe_bytes_max: 64 << 10,
            inflight_appends_max: 256,
            inflight_partial_max: 256,
            partial_interval_us: 5_000,
            eager_commit: true,
            quiet_commit: false,
            inflight_bytes_max: 16 << 20,
            uncommitted_bytes_max: 64 << 20,
            cached_bytes_max: 4 << 20,
            seed: group.value().rotate_left(32) ^ node.value(),
            pre_vote: true,
            check_quorum: true,
            tick_us: 100_000,
            lease: true,
            clock_drift_permille_max: 10,
            preferred_leader: None,
            quiesce_ticks: 0,
            life: 0,
        }
    }

    /// The silence that a follower promises whenever it hears its leader, in microseconds: the
    /// shortest election timeout, less the tick that may come right after the leader was heard.
    #[must_use]
    pub fn promise_us(&self) -> u64 {
        u64::from(self.election_ticks_min.saturating_sub(1)).saturating_mul(self.tick_us)
    }

    /// # Panics
    /// When the settings contradict each other.
    pub(crate) fn assert_valid(&self) {
        assert!(self.heartbeat_ticks > 0, "heartbeat_ticks must be positive");
        assert!(
            self.election_ticks_min > self.heartbeat_ticks,
            "election_ticks_min {} must exceed heartbeat_ticks {}",
            self.election_ticks_min,
            self.heartbeat_ticks
        );
        assert!(
            self.election_ticks_max >= self.election_ticks_min,
            "election_ticks_max {} is below election_ticks_min {}",
            self.election_ticks_max,
            self.election_ticks_min
        );
        assert!(self.tick_us > 0, "tick_us must be positive");
        assert!(
            self.check_quorum || !self.lease,
            "lease needs check_quorum: who promises silence counts on a leader that steps down"
        );
        assert!(
            self.clock_drift_permille_max < 1000,
            "clock_drift_permille_max {} leaves nothing of a lease",
            self.clock_drift_permille_max
        );
        assert!(self.inflight_appends_max > 0, "inflight_appends_max must be positive");
        assert!(self.inflight_partial_max > 0, "inflight_partial_max must be positive");
        assert!(self.partial_interval_us > 0, "partial_interval_us must be positive");
        assert!(self.inflight_bytes_max > 0, "inflight_bytes_max must be positive");
    }
}

/// What a replica starts from: no entries, only where they are. Old ones are asked for by
/// [`LogFetch`](crate::LogFetch).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LogState {
    /// Term, vote and the lower bound of the commit index, as last synced.
    pub hard_state: HardState,
    /// The base of the log and the membership in force there. The default, an empty log without a
    /// membership, is that of a replica that knows nothing yet: it votes when it is asked, never
    /// campaigns, and learns the rest from a leader.
    pub snapshot: SnapshotMeta,
    /// The first entry of each run of one term after `snapshot.last`.
    pub terms: Vec<EntryId>,
    /// The entries after `snapshot.last` that are [`Membership`]s, in order: an uncommitted one is in
    /// force too, and what it changed must be known if it is overwritten.
    pub memberships: Vec<(LogIndex, Membership)>,
    /// The last entry; `snapshot.last` when the log is empty.
    pub last: EntryId,
    /// What the state machine has applied; `snapshot.last.index <= applied <= last.index`.
    pub applied: LogIndex,
}

impl LogState {
    /// The state of a new group: an empty log on top of its first snapshot, and nothing promised
    /// yet.
    #[must_use]
    pub fn of_snapshot(snapshot: SnapshotMeta) -> Self {
        let last = snapshot.last;
        Self {
            hard_state: HardState::default(),
            applied: last.index,
            terms: Vec::new(),
            memberships: Vec::new(),
            last,
            snapshot,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "lease needs check_quorum")]
    fn a_lease_without_check_quorum_is_refused() {
        Config { check_quorum: false, ..Config::new(GroupId(2), NodeId(1)) }.assert_valid();
    }

    #[test]
    fn neither_pre_votes_nor_check_quorum_are_needed() {
        let config = Config::new(GroupId(2), NodeId(1));
        assert!(config.pre_vote && config.check_quorum && config.lease, "the defaults");
        Config { pre_vote: false, check_quorum: false, lease: false, ..config }.assert_valid();
    }
}
