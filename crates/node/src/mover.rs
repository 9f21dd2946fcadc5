//! Moves the replicas of the groups that this node leads to where the placement map wants them.
//!
//! The life of a change: look at what is led here, and let [`follow::next_action`] say what comes next; ask
//! the group for it; tell group 1 if the group has applied a membership that the map does not know; look again.
//! Whatever goes wrong (the leadership moves, another change is under way) is seen at the next look.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_placement::follow::{self, Action, Difference, LAG_MAX, Led, Peer, Rounds};
use quorate_placement::plan::Wanted;
use quorate_placement::{Answer, PlacementKind, PlacementMap, Refused};
use quorate_raft::{MembershipChange, NodeChange, PeerProgress, ProgressState, Role};
use quorate_types::{GroupId, LogIndex, Membership, NodeId};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::actor::{GroupReport, Input, ProposalReply, ProposalSlot};
use crate::engine::lock;
use crate::members::look;
use crate::router::{EngineError, Resident, Router};

/// How long the mover rests when nothing happens: learners catch up without telling anybody.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a group may take for a step before the mover looks at others.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Moves replicas for ever.
pub(crate) async fn run(router: Arc<Router>) {
    let mut version = router.map_version.subscribe();
    let mut rounds = Rounds::default();
    loop {
        version.mark_unchanged();
        let map = router.map.load_full();
        let residents = router.residents.load_full();
        let awake: Vec<_> = lock(&router.wheel).awake().collect();
        for group in rounds.next(map.version(), residents.keys().copied(), awake.into_iter()) {
            let Some(resident) = residents.get(&group) else { continue };
            let leadership = *resident.leadership.borrow();
            let term = leadership.term;
            if !leadership.serving || rounds.is_settled(group, map.version(), term) {
                continue;
            }
            match attend(&router, group, resident, &map).await {
                Ok(true) => rounds.settle(group, map.version(), term),
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

/// One step of one group, if there is one to make, and the report of what it was found to be. True when there
/// is nothing more to do for this map.
async fn attend(
    router: &Router,
    group: GroupId,
    resident: &Resident,
    map: &PlacementMap,
) -> Result<bool, EngineError> {
    // Groups that the map does not know are the embedder's own.
    let Some(placed) = map.group(group) else { return Ok(true) };
    let report = look(router, resident).await?;
    if report.leadership.role != Role::Leader {
        return Ok(false);
    }
    let step = take_step(router, resident, &Wanted::of(map, group), &report).await;
    // Told last: group 1 may refuse to hear of a node that it has forgotten, or be out of reach of a node that it
    // has let go. Only the step leads out of either.
    if let Some(applied) = follow::untold(placed, report.applied_membership.as_ref()) {
        tell(router, group, map.version(), &applied, report.applied).await?;
        return Ok(false);
    }
    let applied = report.applied_membership.as_ref();
    let is_told = follow::is_told(placed, applied, &report.membership);
    step.map(|is_done| is_done && is_told)
}

/// True when there is none to take.
async fn take_step(
    router: &Router,
    resident: &Resident,
    wanted: &Wanted,
    report: &GroupReport,
) -> Result<bool, EngineError> {
    let group = report.group;
    match follow::next_action(wanted, &led(report, &peers(report))) {
        Action::Rest => Ok(true),
        Action::Wait => Ok(false),
        Action::Transfer(heir) => {
            tracing::info!(%group, %heir, "this node leaves: the leadership goes on");
            router.tell(resident, Input::Transfer(heir))?;
            Ok(false)
        }
        Action::Change(difference) => {
            let change = change_of(difference);
            tracing::info!(%group, ?change, "the membership changes");
            ask(router, resident, change).await.map(|()| false)
        }
    }
}

fn led<'l>(report: &'l GroupReport, peers: &'l [Peer]) -> Led<'l> {
    Led {
        // Whoever reports peers leads.
        leader: report.leadership.leader.unwrap_or_default(),
        membership: &report.membership,
        last: report.last.index,
        peers,
        lag_max: LAG_MAX,
    }
}

fn peers(report: &GroupReport) -> Vec<Peer> {
    let peer = |(node, progress): &(NodeId, PeerProgress)| Peer {
        node: *node,
        streams: progress.state == ProgressState::Replicate,
        heard: progress.heard,
        match_index: progress.match_index,
    };
    report.peers.iter().map(peer).collect()
}

fn change_of(difference: Difference) -> MembershipChange {
    let Difference { voters, learners, removed } = difference;
    let voters = voters.into_iter().map(NodeChange::Voter);
    let learners = learners.into_iter();
    let learners = learners.map(|node| NodeChange::Learner { node, promote: false });
    let removed = removed.into_iter().map(NodeChange::Remove);
    MembershipChange::of(voters.chain(learners).chain(removed))
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

/// The learners that have caught up, as the leader that reports sees it.
pub(crate) fn caught_up(report: &GroupReport) -> BTreeSet<NodeId> {
    follow::caught_up(&led(report, &peers(report)))
}

/// Of `candidates`, the node that holds most of the leader's log.
pub(crate) fn heir(report: &GroupReport, candidates: &BTreeSet<NodeId>) -> Option<NodeId> {
    follow::heir(&peers(report), candidates)
}
