//! Who belongs to the cluster: changes of the placement map on behalf of operators, and leaderships.
//!
//! The life of a removal: group 1 notes that the node is to leave; the leader of each group moves its
//! replicas ([`crate::mover`]) and reports; with the last report the node is gone from the map, and the
//! caller is answered. A promotion is answered when every group has a vote for the node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_placement::{
    Answer, Changed, MemberRefusal, PlacementKind, PlacementMap, Refused, Standing,
};
use quorate_raft::Role;
use quorate_types::{GroupId, NodeId};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::actor::Input;
use crate::engine::Engine;
use crate::forward::{Request, reply};
use crate::mover;
use crate::net::Expelled;
use crate::router::{Consistency, EngineError, Resident, Router};

/// How often a change that groups still follow is looked at, if no news comes before.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A change of who belongs to the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// Add a node. It may be without a name: then it joins by its address.
    Add {
        /// Its name.
        name: String,
        /// Where other nodes will reach it, `host:port`.
        peer_address: String,
        /// A voter or a learner.
        standing: Standing,
    },
    /// Give a learner a vote.
    Promote(NodeId),
    /// Let a node leave.
    Remove(NodeId),
    /// Reach a node elsewhere.
    Move {
        /// The node.
        id: NodeId,
        /// Where other nodes will reach it, `host:port`.
        peer_address: String,
    },
    /// Add a node of the same name in the place of another.
    Replace {
        /// The node that lost its data.
        id: NodeId,
        /// Where other nodes will reach the new one, `host:port`; empty: where they reach the old one.
        peer_address: String,
    },
}

/// Why a change of members or leaderships did not happen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// The map cannot change so.
    #[error(transparent)]
    Refused(#[from] MemberRefusal),
    /// Some group's leader does not see that the learner has caught up.
    #[error("the learner has not caught up")]
    LearnerNotReady,
    /// Too few of the other voters can be reached.
    #[error("too few of the other voters can be reached")]
    Unhealthy,
    /// It has no vote in some group, or is no member.
    #[error("the leadership cannot go to that node")]
    BadTransferee,
    /// This node leads nothing.
    #[error("this node does not lead")]
    NotLeader,
    /// There is no answer; after [`EngineError::TimedOut`] the change may be under way.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Changes the placement map by the command that `build` makes for the map in force, anew when another
/// change was quicker. Returns what has changed, and a map that has the change.
///
/// # Errors
/// When the change is refused, or there is no answer in time.
pub(crate) async fn change_map(
    router: &Router,
    build: impl Fn(&PlacementMap) -> Bytes,
) -> Result<(Changed, PlacementMap), ChangeError> {
    let deadline = Instant::now() + router.request_timeout;
    loop {
        let command = build(&read_map(router).await?);
        let proposed = router.propose(GroupId::PLACEMENT, command).await?;
        match Answer::parse(&proposed.outcome) {
            Ok(changed) => return Ok((changed, read_map(router).await?)),
            Err(Refused::Conflict { .. }) if Instant::now() < deadline => {}
            Err(Refused::Conflict { .. }) => return Err(EngineError::Overloaded.into()),
            Err(Refused::Member(refusal)) => return Err(refusal.into()),
            Err(error @ (Refused::Rejected { .. } | Refused::Unreadable(_))) => {
                return Err(EngineError::Read(error.to_string()).into());
            }
        }
    }
}

/// The map as of now.
pub(crate) async fn read_map(router: &Router) -> Result<PlacementMap, EngineError> {
    let query = PlacementKind::whole_map();
    let read = router.read(GroupId::PLACEMENT, query, Consistency::Linearizable).await?;
    let map = Answer::map(&read.answer).map_err(|error| EngineError::Read(error.to_string()))?;
    // The first leader has not made one yet.
    map.ok_or(EngineError::NoLeader)
}

impl Engine {
    /// The placement map as of now: every change that was acknowledged before is there.
    ///
    /// # Errors
    /// When group 1 has no leader that could confirm it.
    pub async fn map_now(&self) -> Result<PlacementMap, EngineError> {
        read_map(&self.parts.router).await
    }

    /// Changes who belongs to the cluster. Returns the node that it was about, and the map afterwards.
    ///
    /// # Errors
    /// When it must not be, or there is no answer in time: then it may be under way, and the same
    /// request again waits on.
    pub async fn change_members(
        &self,
        change: MemberChange,
    ) -> Result<(NodeId, PlacementMap), ChangeError> {
        let router = &*self.parts.router;
        match change {
            MemberChange::Add { name, peer_address, standing } => {
                let add = |map: &PlacementMap| {
                    PlacementKind::add_node(map.version(), &name, &peer_address, standing)
                };
                changed(change_map(router, add).await)
            }
            MemberChange::Promote(id) => {
                self.check_caught_up(id).await?;
                let promote = |map: &PlacementMap| PlacementKind::promote_node(map.version(), id);
                change_map(router, promote).await?;
                self.wait_for(|map| map.node(id).is_none() || map.votes(id))
                    .await
                    .map(|map| (id, map))
            }
            MemberChange::Remove(id) => {
                self.check_can_miss(id).await?;
                let remove = |map: &PlacementMap| PlacementKind::remove_node(map.version(), id);
                change_map(router, remove).await?;
                self.wait_for(|map| map.node(id).is_none()).await.map(|map| (id, map))
            }
            MemberChange::Move { id, peer_address } => {
                let known = read_map(router).await?;
                let Some(node) = known.node(id) else {
                    return Err(MemberRefusal::NotFound.into());
                };
                let moved = quorate_placement::Node { peer_address, ..node.clone() };
                let update = |map: &PlacementMap| PlacementKind::update_node(map.version(), &moved);
                changed(change_map(router, update).await)
            }
            MemberChange::Replace { id, peer_address } => {
                let replace = |map: &PlacementMap| {
                    PlacementKind::replace_node(map.version(), id, &peer_address)
                };
                changed(change_map(router, replace).await)
            }
        }
    }

    /// Hands every group that this node leads to `to`, and waits until all have a new leader.
    ///
    /// # Errors
    /// When this node does not lead `group`, `to` does not vote, or it has not taken over in time.
    pub async fn move_leader(&self, group: GroupId, to: NodeId) -> Result<(), ChangeError> {
        let router = &*self.parts.router;
        let leads = |resident: &Resident| resident.leadership.borrow().role == Role::Leader;
        if !leads(&*router.resident(group)?) {
            return Err(ChangeError::NotLeader);
        }
        let residents = router.residents.load_full();
        let led: Vec<_> = residents.values().filter(|resident| leads(resident)).cloned().collect();
        if to == self.node() {
            return Ok(());
        }
        let mut can_follow = true;
        for resident in &led {
            let report = look(router, resident).await?;
            can_follow &= report.membership.voters.contains(&to);
        }
        if !can_follow {
            return Err(ChangeError::BadTransferee);
        }
        for resident in &led {
            router.tell(resident, Input::Transfer(to))?;
        }
        let deadline = tokio::time::Instant::now() + router.request_timeout;
        for resident in led {
            let mut leadership = resident.leadership.clone();
            let taken = leadership.wait_for(|now| now.leader == Some(to));
            match tokio::time::timeout_at(deadline, taken).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(EngineError::Stopping.into()),
                Err(_) => return Err(EngineError::TimedOut.into()),
            }
        }
        Ok(())
    }

    /// Resolves, with the reason, when the cluster does not let this node take part any more: it should stop.
    pub async fn expelled(&self) -> Expelled {
        let mut expelled = self.parts.network.expelled();
        let why = expelled.wait_for(Option::is_some).await;
        match why.ok().and_then(|why| why.clone()) {
            Some(why) => why,
            // The network lives as long as the engine.
            None => std::future::pending().await,
        }
    }

    /// etcd's rule for promotions: every group's leader must see that the learner keeps up.
    async fn check_caught_up(&self, id: NodeId) -> Result<(), ChangeError> {
        let router = &*self.parts.router;
        let map = read_map(router).await?;
        let node = map.node(id).filter(|node| node.standing != Standing::Leaving);
        let Some(node) = node else { return Err(MemberRefusal::NotFound.into()) };
        if node.standing == Standing::Voter && map.votes(id) {
            return Err(MemberRefusal::NotLearner.into());
        }
        for group in map.groups() {
            let votes = group.replicas.voters.contains(&id);
            if !votes && !caught_up(router, group.id).await?.contains(&id) {
                return Err(ChangeError::LearnerNotReady);
            }
        }
        Ok(())
    }

    /// etcd's rule for removals: who is not there can go; else the voters that stay and can be reached
    /// from here must be a majority.
    async fn check_can_miss(&self, id: NodeId) -> Result<(), ChangeError> {
        let parts = &self.parts;
        let map = read_map(&parts.router).await?;
        let votes = map.node(id).is_some_and(|node| node.standing == Standing::Voter);
        if !votes || !parts.transport.is_connected(id) {
            return Ok(());
        }
        let others = map.standing(Standing::Voter).filter(|node| node.id != id);
        let count = others.clone().count();
        let there = others.filter(|node| parts.transport.is_connected(node.id)).count();
        // The last one is the machine's to refuse.
        match count == 0 || there > count / 2 {
            true => Ok(()),
            false => Err(ChangeError::Unhealthy),
        }
    }

    /// Waits until the map is as wanted.
    async fn wait_for(
        &self,
        wanted: impl Fn(&PlacementMap) -> bool,
    ) -> Result<PlacementMap, ChangeError> {
        let router = &*self.parts.router;
        let expelled = self.parts.network.expelled();
        let mut version = router.map_version.subscribe();
        let deadline = Instant::now() + router.request_timeout;
        loop {
            version.mark_unchanged();
            match read_map(router).await {
                Ok(map) if wanted(&map) => return Ok(map),
                Ok(_) => {}
                // Nobody tells this node any more.
                Err(_) if expelled.borrow().is_some() => {
                    return Ok(router.map.load().as_ref().clone());
                }
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= deadline {
                return Err(EngineError::TimedOut.into());
            }
            // News or not, the caller looks again.
            drop(timeout(LOOK_AGAIN, version.changed()).await);
        }
    }
}

fn changed(
    result: Result<(Changed, PlacementMap), ChangeError>,
) -> Result<(NodeId, PlacementMap), ChangeError> {
    result.map(|(changed, map)| (changed.node, map))
}

/// The learners of `group` that have caught up, as its leader sees it.
async fn caught_up(router: &Router, group: GroupId) -> Result<BTreeSet<NodeId>, ChangeError> {
    let resident = router.resident(group)?;
    let leader = resident.leadership.borrow().leader.ok_or(EngineError::NoLeader)?;
    if leader == router.node {
        return Ok(mover::caught_up(&look(router, &resident).await?));
    }
    let deadline = Instant::now() + router.request_timeout;
    match router.ask(leader, Request::caught_up(group), deadline).await {
        Ok(reply::Body::CaughtUp(nodes)) => Ok(nodes.nodes.into_iter().map(NodeId).collect()),
        Ok(_) | Err(_) => Err(EngineError::NoLeader.into()),
    }
}

/// How a replica of this node is.
pub(crate) async fn look(
    router: &Router,
    resident: &Resident,
) -> Result<crate::actor::GroupReport, EngineError> {
    let (sender, report) = oneshot::channel();
    router.tell(resident, Input::Look(sender))?;
    report.await.map_err(|_| EngineError::Stopping)
}

/// Hands all leaderships of this node to whoever is next, before it stops. Gives up after `at_most`: then
/// the others elect.
pub(crate) async fn hand_over(router: &Router, at_most: Duration) {
    let residents = router.residents.load_full();
    let mut leaving = BTreeMap::new();
    for (group, resident) in residents.iter() {
        if resident.leadership.borrow().role != Role::Leader {
            continue;
        }
        let Ok(report) = look(router, resident).await else { continue };
        if let Some(heir) = mover::heir(&report, &report.membership.voters)
            && router.tell(resident, Input::Transfer(heir)).is_ok()
        {
            leaving.insert(*group, Arc::clone(resident));
        }
    }
    let count = leaving.len();
    let all = async {
        for resident in leaving.into_values() {
            let mut leadership = resident.leadership.clone();
            // A group that has stopped leads nothing.
            drop(leadership.wait_for(|now| now.role != Role::Leader).await);
        }
    };
    if count > 0 && timeout(at_most, all).await.is_err() {
        tracing::warn!(groups = count, "not all leaderships could be handed over");
    }
}
