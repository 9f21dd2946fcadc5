//! The oracles: each watches the cluster from outside for one kind of promise, and says what was broken.
//!
//! They are incremental (what was checked once is not looked at again), remember what replicas may forget, and
//! look at durable state too: a crashed voter's disk still counts. The letters are those of the list of
//! invariants in `docs/testing.md`.

pub(crate) mod apply;
pub(crate) mod durable;
pub(crate) mod election;
pub mod history;
pub(crate) mod identity;
pub(crate) mod lease;
pub(crate) mod log;
pub(crate) mod members;
pub(crate) mod model;
pub(crate) mod placement;
pub(crate) mod promise;
pub(crate) mod resource;
pub(crate) mod revision;
pub(crate) mod tenure;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::fmt;

use quorate_raft::Replica;
use quorate_types::{Entry, EntryId, GroupId, LogIndex, Moment, NodeId, SnapshotMeta};

use apply::ApplyOracle;
use durable::Platter;
use election::ElectionOracle;
use identity::IdentityOracle;
use lease::LeaseOracle;
use log::LogOracle;
use members::MembersOracle;
use placement::PlacementOracle;
use resource::ResourceOracle;
use revision::RevisionOracle;
use tenure::TenureOracle;

/// What a check found: nothing, or the first broken promise.
pub(crate) type Checked = Result<(), Violation>;

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Who noticed.
    pub oracle: Oracle,
    /// What was seen, with ids, terms and indexes.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.oracle, self.what)
    }
}

/// The oracles, by what they watch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Oracle {
    /// I1: at most one leader in a term.
    ElectionSafety,
    /// I2: one id, one entry, one history.
    LogMatching,
    /// I3: of the membership there is one uncommitted change at most, and each can be decided only once.
    Members,
    /// I4: a leader has everything committed.
    LeaderCompleteness,
    /// I5: replicas that have applied the same have the same, and gave the same answers.
    StateMachineSafety,
    /// I6: base, applied, commit and last in order; none goes back.
    Ordering,
    /// I7: no promise before the sync that it rests on.
    PersistBeforePromise,
    /// I8: one vote in a term, and terms never go back, on disk too.
    SingleVote,
    /// I9: nothing acknowledged is lost, nothing committed changes, a quorum holds it.
    Durability,
    /// I10: per key, as if one copy (checked at the end), and no read below what was acknowledged.
    Linearizability,
    /// I11: while a leader holds a lease nobody else is elected.
    LeaseExclusivity,
    /// I13: watchers are told the history, whole and in order.
    Watch,
    /// I14: leases of keys end neither early nor never.
    Tenure,
    /// I15: revisions are dense, never go back, and name one state.
    Revisions,
    /// I18: versions of the placement map.
    Placement,
    /// I19: an id is never given away again, and keys have one owner on a node.
    Identity,
    /// I21: no proposal is applied twice, nor after it was refused.
    ExactlyOnce,
    /// I22: queues and budgets stay within bounds and come back.
    Resources,
    /// I23: after the faults everybody comes together and serves.
    Liveness,
    /// An assertion inside the code under test.
    Assertion,
    /// What a restart finds on a disk is what was synced.
    Recovery,
    /// Whoever has no room takes nothing, and whoever cannot sync does not lead.
    Disks,
}

impl fmt::Display for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ElectionSafety => "I1 election safety",
            Self::LogMatching => "I2 log matching",
            Self::Members => "I3 members",
            Self::LeaderCompleteness => "I4 leader completeness",
            Self::StateMachineSafety => "I5 state machine safety",
            Self::Ordering => "I6 ordering",
            Self::PersistBeforePromise => "I7 persist before promise",
            Self::SingleVote => "I8 single vote",
            Self::Durability => "I9 durability",
            Self::Linearizability => "I10 linearizability",
            Self::LeaseExclusivity => "I11 lease exclusivity",
            Self::Watch => "I13 watch",
            Self::Tenure => "I14 leases",
            Self::Revisions => "I15 revisions",
            Self::Placement => "I18 placement versions",
            Self::Identity => "I19 identity",
            Self::ExactlyOnce => "I21 exactly once",
            Self::Resources => "I22 resources",
            Self::Liveness => "I23 liveness",
            Self::Assertion => "assertion",
            Self::Recovery => "recovery",
            Self::Disks => "disks",
        })
    }
}

impl Oracle {
    pub(crate) fn broken(self, what: impl Into<String>) -> Violation {
        Violation { oracle: self, what: what.into() }
    }

    /// Broken unless `holds`.
    pub(crate) fn check(self, holds: bool, what: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { Err(self.broken(what())) }
    }
}

/// All oracles of a run.
#[derive(Debug)]
pub(crate) struct Checks {
    /// What is on each node's log disk.
    pub(crate) platters: BTreeMap<NodeId, Platter>,
    pub(crate) groups: BTreeMap<GroupId, GroupChecks>,
    pub(crate) revisions: RevisionOracle,
    pub(crate) placement: PlacementOracle,
    pub(crate) identity: IdentityOracle,
    pub(crate) resources: ResourceOracle,
    pub(crate) history: history::History,
}

/// The oracles of one group.
#[derive(Debug)]
pub(crate) struct GroupChecks {
    pub(crate) election: ElectionOracle,
    pub(crate) log: LogOracle,
    pub(crate) apply: ApplyOracle,
    pub(crate) lease: LeaseOracle,
    pub(crate) members: MembersOracle,
    pub(crate) tenure: TenureOracle,
}

impl Checks {
    pub(crate) fn new(groups: impl Iterator<Item = GroupId>) -> Self {
        Self {
            platters: BTreeMap::new(),
            groups: groups.map(|group| (group, GroupChecks::new(group))).collect(),
            revisions: RevisionOracle::default(),
            placement: PlacementOracle::default(),
            identity: IdentityOracle::default(),
            resources: ResourceOracle,
            history: history::History::default(),
        }
    }

    pub(crate) fn group(&mut self, group: GroupId) -> &mut GroupChecks {
        self.groups.get_mut(&group).expect("every group is watched from the start")
    }

    /// The last entry known to be committed.
    pub(crate) fn committed(&self, group: GroupId) -> LogIndex {
        self.groups[&group].log.last_committed()
    }

    /// A replica has ended a turn; `clocks` tells what each node's clock shows now.
    pub(crate) fn on_turn(
        &mut self,
        node: NodeId,
        replica: &Replica,
        clocks: &dyn Fn(NodeId) -> Moment,
    ) -> Checked {
        let group = replica.config().group;
        let Some(GroupChecks { election, log, lease, .. }) = self.groups.get_mut(&group) else {
            return Ok(());
        };
        lease.on_turn(node, replica, clocks)?;
        election.on_turn(node, replica, log)?;
        log.on_turn(node, replica, &self.platters)?;
        self.resources.on_turn(node, replica)
    }

    /// A replica takes a snapshot.
    pub(crate) fn on_snapshot(
        &mut self,
        group: GroupId,
        node: NodeId,
        meta: &SnapshotMeta,
    ) -> Checked {
        let GroupChecks { log, members, .. } = self.group(group);
        log.on_snapshot(node, meta)?;
        members.on_snapshot(node, meta, log)
    }

    /// Entries leave a replica for its disk; `before` precedes the first.
    pub(crate) fn on_append(
        &mut self,
        group: GroupId,
        before: EntryId,
        entries: &[Entry],
    ) -> Checked {
        self.group(group).log.on_append(before, entries)
    }
}

impl GroupChecks {
    fn new(group: GroupId) -> Self {
        Self {
            election: ElectionOracle::default(),
            log: LogOracle::default(),
            apply: ApplyOracle::new(group),
            lease: LeaseOracle::default(),
            members: MembersOracle::default(),
            tenure: TenureOracle::default(),
        }
    }
}
