//! Bugs that consensus stores have had, and which defect puts each back. What concerns code that does not exist here yet
//! says so, and gets its defect together with that code.

use Kept::{By, NoCode};
use quorate_types::defect::Defect as D;

/// A bug of another store.
#[derive(Clone, Copy, Debug)]
pub struct Exhibit {
    /// Its number, for people to talk of it.
    pub number: &'static str,
    /// Where it was reported.
    pub reports: &'static str,
    /// What happened.
    pub what: &'static str,
    /// How it is kept here.
    pub kept: Kept,
}

/// How a bug is kept.
#[derive(Clone, Copy, Debug)]
pub enum Kept {
    /// These defects put it back.
    By(&'static [D]),
    /// What it would concern does not exist yet.
    NoCode(&'static str),
}

const fn exhibit(
    number: &'static str,
    reports: &'static str,
    what: &'static str,
    kept: Kept,
) -> Exhibit {
    Exhibit { number, reports, what, kept }
}

/// All of them.
pub const MUSEUM: &[Exhibit] = &[
    exhibit(
        "B1",
        "logcabin#44",
        "an entry of an older term is committed by counting, and overwritten",
        By(&[D::CommitOlderTerm]),
    ),
    exhibit(
        "B3",
        "etcd#20418, etcd-io/raft#397, antfly#599",
        "answers to the first try of a read confirm the second one, on a deposed leader",
        By(&[D::ReadRoundReused, D::ReadRequestReused]),
    ),
    exhibit(
        "B5",
        "etcd#8243",
        "pre-votes of a low term are ignored both ways: no leader for ever",
        By(&[D::LowTermPreVoteUnanswered]),
    ),
    exhibit(
        "B7",
        "raft-rs#84, etcd#8334",
        "a pre-candidate that remembers its leader refuses the only one that can be elected",
        By(&[D::PreCandidateKeepsLeader]),
    ),
    exhibit(
        "B9",
        "raft-rs#57, etcd#10998",
        "a voter that thinks it is a learner does not vote: no quorum is left",
        By(&[D::LearnerRefusesVote]),
    ),
    exhibit(
        "B11",
        "redpanda#17675",
        "two learners are promoted, the second while the first promotion is not committed",
        By(&[D::ChangeWhilePending]),
    ),
    exhibit(
        "B13",
        "camunda#60086",
        "a recovered joint membership is left before it is committed",
        By(&[D::JointLeftAtOnce]),
    ),
    exhibit(
        "B15",
        "openraft#1802",
        "the list of match indexes is out of order: a commit without a quorum",
        By(&[D::QuorumOutOfOrder]),
    ),
    exhibit(
        "B17",
        "camunda#6092, etcd#1763",
        "an old snapshot cuts off a log that has more",
        By(&[D::OldSnapshotInstalled]),
    ),
    exhibit(
        "B19",
        "etcd#22442",
        "a log that is replayed has entries again that were overwritten",
        By(&[D::OverwrittenEntriesReturn]),
    ),
    exhibit(
        "B21",
        "tikv#3572, tikv#8381, tikv#9579",
        "a replica that knows nothing yet does not save its vote: two leaders in a term",
        By(&[D::VoteNotSaved, D::NewbornVoteNotSaved]),
    ),
    exhibit(
        "B23",
        "NuRaft#185",
        "a candidate whose log is behind is elected: what was committed is rolled back",
        By(&[D::VoteForOlderLog]),
    ),
    exhibit(
        "B25",
        "CCF#5674",
        "a leader that steps down drops what others counted as committed",
        By(&[D::NewTermDropsTail]),
    ),
    exhibit(
        "B27",
        "openraft cecb5de8, openraft 2af491fb",
        "an acknowledgement from before a log was overwritten counts for what replaced it",
        By(&[D::OverwrittenWriteCounts]),
    ),
    exhibit(
        "B29",
        "tikv#964, tikv#1127",
        "a lease is checked, time passes, and then it is used; clocks that run apart",
        By(&[D::LeaseComparedLate, D::DriftIgnored]),
    ),
    exhibit(
        "B31",
        "cockroach#37216",
        "a sync fails and the next one succeeds: what the first covered is gone",
        By(&[D::FailedSyncRetried]),
    ),
    exhibit(
        "B33",
        "fedimint#8614, etcd#14098, etcd#6378",
        "a log whose torn end was never acknowledged is refused at every start",
        By(&[D::TornTailRefused]),
    ),
    exhibit(
        "B35",
        "etcd#6368",
        "a file is renamed and its directory not synced: a power cut takes it",
        By(&[D::NameNotSynced]),
    ),
    exhibit(
        "B37",
        "etcd#13766, etcd#14685, etcd#17780",
        "rows and applied index are written apart: a replica diverges",
        By(&[D::AppliedIndexApart]),
    ),
    exhibit(
        "B39",
        "NATS 2.12.1",
        "a damaged record is taken for the end of the log, and that log wins",
        By(&[D::DamageTakenForTail]),
    ),
    exhibit(
        "B41",
        "tikv#6460",
        "a merge is prepared twice, and a slow peer skips logs",
        NoCode("groups do not merge"),
    ),
    exhibit(
        "B43",
        "tikv#14699, tikv#4125",
        "a read during a split or merge is answered without a look at the epoch",
        NoCode("there is one shard, whose epoch never changes"),
    ),
    exhibit(
        "B45",
        "cockroach#21146, cockroach#40470, cockroach#73462",
        "a split meets the tombstone of its right side, or a snapshot skips the split",
        NoCode("groups do not split"),
    ),
    exhibit(
        "B47",
        "tikv#18570",
        "a replica is taken away while it reads: rows are missing",
        NoCode("no replica is taken away from a node that goes on"),
    ),
    exhibit(
        "B49",
        "cockroach#39064, cockroach#35261",
        "a command that may have been proposed is proposed again, and both apply",
        By(&[D::UnknownTakenForRefused]),
    ),
    exhibit(
        "B51",
        "matrixone#24966",
        "a snapshot carries a membership that is not that of its index",
        By(&[D::SnapshotOfLatestMembership]),
    ),
    exhibit(
        "B53",
        "Jepsen: Dgraph 1.1.1",
        "a shard that moves loses acknowledged writes",
        NoCode("shards do not move"),
    ),
    exhibit(
        "B55",
        "etcd#15247, etcd#12528, etcd#16822",
        "a deposed leader revokes leases of keys that the new one has renewed",
        By(&[D::StaleRevokeApplied]),
    ),
    exhibit(
        "B57",
        "etcd#15271, etcd#15220, etcd#17529",
        "a watch goes back in time, or drops events",
        NoCode("streams and the hub of a gateway are no part of the simulator"),
    ),
    exhibit(
        "B59",
        "etcd#14571",
        "an apply looks at what is not replicated: members diverge",
        By(&[D::RightsUnchecked]),
    ),
    exhibit(
        "B61",
        "tidb#43583",
        "a follower reads ahead of the leader, and then the leader goes back",
        By(&[D::GatewayForgets]),
    ),
    exhibit(
        "B63",
        "redpanda#6019",
        "a coordinator that is elected again forgets who takes part in a transaction",
        NoCode("a transaction is of one shard"),
    ),
];
