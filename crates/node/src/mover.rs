//! Moves the replicas of the groups that this node leads to where the placement map wants them.
//!
//! The life of a change: look at what is led here, and let [`plan::next_step`] say what comes next; ask
//! the group for it; look again when it is done. Whatever goes wrong (the leadership moves, another
//! change is under way) is seen at the next look. When a group has applied a membership that the map
//! does not know, its leader reports it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_placement::plan::{self, Step, View, Wanted};
use quorate_placement::{Answer, PlacementKind, PlacementMap, Refused};
use quorate_raft::{MembershipChange, NodeChange, ProgressState, Role};
use quorate_types::{GroupId, LogIndex, Membership, NodeId, Term};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::actor::{GroupReport, Input, ProposalReply, ProposalSlot};
use crate::engine::{FIRST, lock};
use crate::members::look;
use crate::router::{EngineError, Resident, Router};

/// How long the mover rests when nothing happens: learners catch up without telling anybody.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Every so many rounds the mover looks at groups that sleep too: there nothing happens by itself.
const ROUNDS_PER_SWEEP: u32 = 8;

/// A learner with a longer way to go would hold commits up once it votes.
const LAG_MAX: u64 = 1024;

/// How long a group may take for a step before the mover looks at others.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Moves replicas for ever.
pub(crate) async fn run(router: Arc<Router>) {
    let mut version = router.map_version.subscribe();
    // Groups that need no further look: idle ones must cost nothing.
    let mut settled: BTreeMap<GroupId, (u64, Term)> = BTreeMap::new();
    let (mut rounds, mut swept) = (0, None);
    loop {
        version.mark_unchanged();
        let map = router.map.load_full();
        let wanted = Wanted::of(&map);
        let residents = router.residents.load_full();
        let sweeps = rounds == 0 || swept != Some(map.version());
        rounds = (rounds + 1) % ROUNDS_PER_SWEEP;
        let groups: Vec<_> = if sweeps {
            swept = Some(map.version());
            settled.retain(|group, _| residents.contains_key(group));
            residents.keys().copied().collect()
        } else {
            lock(&router.wheel).awake().collect()
        };
        for group in &groups {
            let Some(resident) = residents.get(group) else { continue };
            let leadership = *resident.leadership.borrow();
            let life = (map.version(), leadership.term);
            if !leadership.serving || settled.get(group) == Some(&life) {
                continue;
            }
            match attend(&router, *group, resident, &map, &wanted).await {
                Ok(true) => drop(settled.insert(*group, life)),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%group, %error, "its replicas stay where they are for now");
                }
            }
        }
        // News or not: it looks again.
        drop(timeout(LOOK_INTERVAL, version.changed()).await);
    }
}

/// One step of one group, if there is one to make, and the report of what it has become. True when there
/// is nothing more to do for this map.
async fn attend(
    router: &Router,
    group: GroupId,
    resident: &Resident,
    map: &PlacementMap,
    wanted: &Wanted,
) -> Result<bool, EngineError> {
    // Groups that the map does not know are the embedder's own.
    let Some(placed) = map.group(group) else { return Ok(true) };
    let report = look(router, resident).await?;
    if report.leadership.role != Role::Leader {
        return Ok(false);
    }
    let applied = report.applied_membership.as_ref().map(places);
    let is_known = applied.as_ref().is_none_or(|applied| *applied == placed.replicas);
    if let Some(applied) = applied.filter(|_| !is_known) {
        tell(router, group, map.version(), &applied, report.applied).await?;
    }
    let caught_up = caught_up(&report);
    let view = View { leader: router.node, membership: &report.membership, caught_up: &caught_up };
    match plan::next_step(wanted, view) {
        Step::Done => Ok(is_known && report.applied_membership.is_some()),
        Step::Wait => Ok(false),
        Step::Transfer(heirs) => {
            if let Some(heir) = heir(&report, &heirs) {
                tracing::info!(%group, %heir, "this node leaves: the leadership goes on");
                router.tell(resident, Input::Transfer(heir))?;
            }
            Ok(false)
        }
        Step::Change(target) => {
            let change = MembershipChange::of(difference(&report.membership, &target));
            tracing::info!(%group, ?change, "the membership changes");
            ask(router, resident, change).await.map(|()| false)
        }
    }
}

/// A membership as the map has it: where replicas are, and not what the group does next by itself.
fn places(membership: &Membership) -> Membership {
    Membership { promote: BTreeSet::new(), auto_leave: false, ..membership.clone() }
}

/// What turns the members of `now` into those of `target`.
fn difference(now: &Membership, target: &Membership) -> Vec<NodeChange> {
    let voters = target.voters.difference(&now.voters).map(|node| NodeChange::Voter(*node));
    let learners = target.learners.difference(&now.learners);
    let learners = learners.map(|node| NodeChange::Learner { node: *node, promote: false });
    let (before, after) = (now.nodes(), target.nodes());
    let gone = before.difference(&after).map(|node| NodeChange::Remove(*node));
    voters.chain(learners).chain(gone).collect()
}

/// Asks a group to change, and waits until it has or has not.
async fn ask(
    router: &Router,
    resident: &Resident,
    change: MembershipChange,
) -> Result<(), EngineError> {
    let (sender, answered) = oneshot::channel();
    let slot = ProposalSlot {
        since: Instant::now(),
        reply: ProposalReply::Local(sender),
        _permit: router.permit(0)?,
    };
    router.tell(resident, Input::Change { change, slot })?;
    match timeout(STEP_TIMEOUT, answered).await {
        Ok(Ok(Ok(_))) => Ok(()),
        // Whatever it is, the next look shows what to do about it.
        Ok(Ok(Err(refusal))) => Err(EngineError::Read(refusal.to_string())),
        Ok(Err(_)) => Err(EngineError::Stopping),
        Err(_) => Err(EngineError::TimedOut),
    }
}

/// Tells group 1 where a group's replicas are.
async fn tell(
    router: &Router,
    group: GroupId,
    version: u64,
    applied: &Membership,
    at: LogIndex,
) -> Result<(), EngineError> {
    let command = PlacementKind::report(version, group, applied, at);
    let proposed = router.propose(GroupId::PLACEMENT, command).await?;
    match Answer::parse(&proposed.outcome) {
        // A map that has changed meanwhile wakes the mover, which tells it then.
        Ok(_) | Err(Refused::Conflict { .. }) => Ok(()),
        Err(error) => Err(EngineError::Read(error.to_string())),
    }
}

/// The learners that are fed without pause and have little to go.
pub(crate) fn caught_up(report: &GroupReport) -> BTreeSet<NodeId> {
    let near = |match_index: LogIndex| {
        match_index > FIRST.index && report.last.index.since(match_index) <= LAG_MAX
    };
    report
        .peers
        .iter()
        .filter(|(node, progress)| {
            report.membership.learners.contains(node)
                && progress.state == ProgressState::Replicate
                && near(progress.match_index)
        })
        .map(|(node, _)| *node)
        .collect()
}

/// Of `candidates`, the node that holds most of the leader's log.
pub(crate) fn heir(report: &GroupReport, candidates: &BTreeSet<NodeId>) -> Option<NodeId> {
    let of_candidates = report.peers.iter().filter(|(node, progress)| {
        candidates.contains(node) && progress.state == ProgressState::Replicate
    });
    of_candidates.max_by_key(|(_, progress)| progress.match_index).map(|(node, _)| *node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(voters: &[u64], learners: &[u64]) -> Membership {
        let learners = learners.iter().copied().map(NodeId).collect();
        Membership { learners, ..Membership::of_voters(voters.iter().copied().map(NodeId)) }
    }

    #[test]
    fn a_change_names_each_node_that_changes_once() {
        let table = [
            (membership(&[1, 2, 3], &[]), membership(&[1, 2, 3], &[4])),
            (membership(&[1, 2, 3], &[4]), membership(&[1, 2, 4], &[])),
            (membership(&[1, 2, 3], &[4, 5]), membership(&[1], &[])),
            (membership(&[1], &[2]), membership(&[2], &[3])),
        ];
        for (now, target) in table {
            let changes = difference(&now, &target);
            let mut next = now.clone();
            for change in &changes {
                let node = change.node();
                next.voters.remove(&node);
                next.learners.remove(&node);
                match change {
                    NodeChange::Voter(_) => drop(next.voters.insert(node)),
                    NodeChange::Learner { promote, .. } => {
                        assert!(!promote, "the plan says when");
                        next.learners.insert(node);
                    }
                    NodeChange::Remove(_) => {}
                }
            }
            assert_eq!(next, target);
            let named: BTreeSet<_> = changes.iter().map(|change| change.node()).collect();
            assert_eq!(named.len(), changes.len());
        }
        let same = membership(&[1, 2], &[3]);
        assert_eq!(difference(&same, &same), []);
    }
}
