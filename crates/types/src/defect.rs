//! Known defects, to be switched on one at a time: the simulator's oracles are judged by whether they find them.
//!
//! Without the feature `defects` there is nothing here but [`defect!`](crate::defect!), which is `false`. The
//! feature belongs to the simulator alone; no program that serves has it.

/// True when the named defect is switched on in this thread; always false without the feature `defects`.
#[cfg(feature = "defects")]
#[macro_export]
macro_rules! defect {
    ($name:ident) => {
        $crate::defect::is_active($crate::defect::Defect::$name)
    };
}

/// True when the named defect is switched on in this thread; always false without the feature `defects`.
#[cfg(not(feature = "defects"))]
#[macro_export]
macro_rules! defect {
    ($name:ident) => {
        false
    };
}

#[cfg(feature = "defects")]
pub use catalogue::{Defect, activate, is_active};

#[cfg(feature = "defects")]
mod catalogue {
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Defect>> = const { Cell::new(None) };
    }

    /// Switches one defect on in this thread, or all off.
    pub fn activate(defect: Option<Defect>) {
        ACTIVE.set(defect);
    }

    /// True when `defect` is switched on in this thread.
    #[must_use]
    pub fn is_active(defect: Defect) -> bool {
        ACTIVE.get() == Some(defect)
    }

    macro_rules! defects {
        ($($(#[doc = $what:literal])* $name:ident = $source:literal,)*) => {
            /// A defect: what some store once had, or what is easily got wrong.
            #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
            pub enum Defect {
                $($(#[doc = $what])* $name,)*
            }

            impl Defect {
                /// All of them.
                pub const ALL: &[Self] = &[$(Self::$name),*];

                /// Where it comes from: a report of another store, or "own".
                #[must_use]
                pub const fn source(self) -> &'static str {
                    match self {
                        $(Self::$name => $source,)*
                    }
                }

                /// What is wrong.
                #[must_use]
                pub fn what(self) -> &'static str {
                    match self {
                        $(Self::$name => concat!($($what),*).trim_start(),)*
                    }
                }
            }
        };
    }

    defects! {
        /// A leader commits an entry of an older term because a quorum holds it.
        CommitOlderTerm = "logcabin#44",
        /// A read round has the number of the one before, so that old answers confirm it.
        ReadRoundReused = "etcd#20418",
        /// A follower's read request has the number of the one before.
        ReadRequestReused = "etcd-io/raft#397",
        /// A pre-vote of a lower term gets no answer.
        LowTermPreVoteUnanswered = "etcd#8243",
        /// A pre-candidate still believes in its old leader and refuses everybody else.
        PreCandidateKeepsLeader = "raft-rs#84",
        /// Whoever does not know that it votes refuses its vote.
        LearnerRefusesVote = "raft-rs#57",
        /// The membership is changed while the change before is not committed.
        ChangeWhilePending = "redpanda#17675",
        /// A joint membership is left before it is committed.
        JointLeftAtOnce = "camunda#60086",
        /// A snapshot is installed over a log that has all of it and more.
        OldSnapshotInstalled = "camunda#6092",
        /// The quorum's match index is taken from a list that is not in order.
        QuorumOutOfOrder = "openraft#1802",
        /// A log that is read back has entries again that were overwritten.
        OverwrittenEntriesReturn = "etcd#22442",
        /// The vote is not saved.
        VoteNotSaved = "tikv#3572",
        /// A replica that knows nothing of its group yet does not save its vote.
        NewbornVoteNotSaved = "tikv#8381",
        /// A candidate whose log is behind gets the vote.
        VoteForOlderLog = "NuRaft#185",
        /// Who hears of a higher term drops what it has acknowledged and not seen committed.
        NewTermDropsTail = "CCF#5674",
        /// The completion of a write counts for what has overwritten its entries since.
        OverwrittenWriteCounts = "openraft cecb5de8",
        /// The lease is compared with the time of an earlier turn.
        LeaseComparedLate = "tikv#964",
        /// A lease is as long as the promise, as if all clocks ran alike.
        DriftIgnored = "tikv#1127",
        /// A failed sync is tried again, and succeeds without the pages of the first.
        FailedSyncRetried = "cockroach#37216",
        /// A log whose last, never acknowledged batch is torn is refused.
        TornTailRefused = "fedimint#8614",
        /// A file has its name before the directory is synced: a power cut takes the name.
        NameNotSynced = "etcd#6368",
        /// Rows and applied index are written one after the other.
        AppliedIndexApart = "etcd#13766",
        /// A damaged record is taken for the torn end of the log.
        DamageTakenForTail = "NATS 2.12.1",
        /// A proposal that may have been proposed is given back as if it certainly was not.
        UnknownTakenForRefused = "cockroach#39064",
        /// A snapshot names the membership in force now, not that where it ends.
        SnapshotOfLatestMembership = "matrixone#24966",
        /// A serializable read may be older than what its gateway has answered.
        GatewayForgets = "tidb#43583",
        /// A revoke of an expired lease counts in any term.
        StaleRevokeApplied = "etcd#15247",
        /// The leader counts what it has not synced itself.
        OwnLogCountsUnsynced = "own",
        /// An acknowledgement leaves before the sync that it rests on.
        PromiseBeforeSync = "own",
        /// A candidate asks for votes before its own is durable.
        OwnVoteUnsynced = "own",
        /// A follower commits what it is told of, whether or not its log is known to be its leader's so far.
        CommitUnverified = "own",
        /// A read is granted before its index is applied.
        ReadBeforeApplied = "own",
        /// A new leader confirms reads before it knows what is committed.
        ReadBeforeOwnCommit = "own",
        /// A new leader changes the membership before it has committed in its own term.
        ChangeBeforeOwnCommit = "own",
        /// Of a joint membership the incoming half commits alone.
        OneHalfCommits = "own",
        /// A second candidate of a term gets a vote too.
        SecondVoteGranted = "own",
        /// An append drops whatever follows it, even what it agrees with.
        AppendDropsTail = "own",
        /// An append is taken when the entry before it has the right index and another term.
        AppendIgnoresTerm = "own",
        /// The bytes of committed proposals are never given back.
        QuotaKept = "own",
        /// A probe that was lost is never repeated.
        ProbeNotRepeated = "own",
        /// An append that was lost is never asked about.
        LostAppendForgotten = "own",
        /// A read-back that failed is never tried again.
        FailedFetchForgotten = "own",
        /// A caller is answered by whatever was applied at its index.
        AnsweredByIndex = "own",
        /// A replica that restarts does not keep the promise of its earlier life.
        SilenceForgotten = "own",
        /// A lease lasts as long as the longest promise.
        LeaseOfLongestPromise = "own",
        /// A leader that has told a successor to campaign goes on to read by its lease.
        LeaseAfterFarewell = "own",
        /// A silent replica votes all the same.
        SilenceBroken = "own",
        /// A leader believes the hint of a rejection to be what its peer holds.
        HintTakenForMatch = "own",
        /// A swap that does not apply takes a revision.
        FailedSwapTakesRevision = "own",
        /// A sweep removes what the floor still shows.
        SweepTooFar = "own",
        /// A restart applies its last entry again.
        AppliedTwice = "own",
        /// A file has its name before its content is synced: a power cut leaves it empty.
        ContentNotSynced = "own",
        /// The word that a node is gone wakes no group that sleeps.
        SleepersForgotten = "own",
        /// A learner that knows no leader asks nobody.
        LearnerAsksNobody = "own",
        /// A leader takes what grows the state though too few disks have room.
        GrowthUnchecked = "own",
        /// While too few disks have room, a leader refuses compactions and deletes too, so that nobody can make any.
        RoomMakersRefused = "own",
        /// A node whose disk is all but full goes on to take entries.
        FullDiskTakesEntries = "own",
        /// A leader leads on though its disk hangs.
        HungDiskLeads = "own",
        /// A replica whose state differs from those of a majority goes on with it.
        DigestsIgnored = "own",
        /// Completions for a life of a group that has panicked reach the next one.
        GenerationKept = "own",
        /// A node that is added gets the id of one that is gone.
        IdReused = "own",
        /// That a node is gone is not written down.
        TombstoneLost = "own",
        /// A node takes in a group whose keys another group on it owns.
        OverlapAdmitted = "own",
        /// A learner gets its vote before it has caught up.
        VoteForLaggard = "own",
        /// A group that has followed one map is not looked at for the next one.
        NewMapUnseen = "own",
        /// A group takes no step before the map has been told of the last one.
        UntoldGroupStays = "own",
        /// A leader that leads again goes on with the deadlines of its earlier term.
        DeadlinesResumed = "own",
        /// A leader acknowledges keep-alives without asking whether it still leads.
        KeepAliveUnconfirmed = "own",
        /// A lease is renewed while its revoke is under way.
        RenewedWhileRevoked = "own",
        /// A revoke that was not proposed is never proposed again.
        ExpiryNotRepeated = "own",
        /// A revoke leaves the last key of its lease.
        RevokeLeavesKey = "own",
        /// A machine that is opened anew says that nothing happened before.
        FeedBeginsAtZero = "own",
        /// A read of events ends within a revision.
        EventsSplitRevision = "own",
        /// Whoever was let in when it proposed may do what it wants, whatever it may when that is applied.
        RightsUnchecked = "etcd#14571",
        /// A role or user that is deleted stays in its row, and is back when the rows are read again.
        DeletedUserKept = "own",
    }
}
