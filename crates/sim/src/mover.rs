//! The mover of a node: it brings the groups that the node leads to where the placement map wants them, as
//! `node::mover` does, by the same decisions ([`quorate_placement::follow`]); and what of `node::steward` that needs:
//! the map that a node knows, the first one, and who joins.
//!
//! 1. Now and then, by the node's own clock, a round begins: the map as the node knows it, and the groups to look at
//!    ([`World::on_mover`]).
//! 2. What comes next is asked of a group, and the round waits until that is done, refused, or takes too long
//!    ([`World::on_moved`]).
//! 3. A group that the map does not know as it was found is reported to group 1, and the round waits for the answer
//!    ([`World::on_told`]).

use std::collections::VecDeque;

use quorate_placement::follow::{self, Action, Difference, LAG_MAX, Led, Peer, Rounds};
use quorate_placement::plan::Wanted;
use quorate_placement::{Answer as MapAnswer, PlacementMap};
use quorate_raft::{MembershipChange, NodeChange, ProgressState, Role};
use quorate_types::{GroupId, LogIndex, Membership, NodeId, Term, defect};

use bytes::Bytes;

use crate::check::{Checked, Oracle};
use crate::client::{Ask, MapChange};
use crate::event::Event;
use crate::node::Slot;
use crate::requests::{MOVERS, STEWARDS};
use crate::world::World;

/// The rest between two rounds.
const LOOK_US: u64 = 250_000;

/// How long a group may take for a step.
const STEP_US: u64 = 2_000_000;

/// The request of a slot that a mover waits for. No client's has this number.
pub(crate) const MOVE: u64 = u64::MAX;

/// The mover of a process.
#[derive(Default)]
pub(crate) struct Mover {
    rounds: Rounds,
    /// The map of the round under way, and the groups that it still looks at.
    map: Option<PlacementMap>,
    left: VecDeque<GroupId>,
    doing: Doing,
    /// Counts what it did, so that what comes too late means nothing.
    step: u32,
}

#[derive(Default)]
enum Doing {
    #[default]
    Rest,
    /// Waits for a change of the membership; then group 1 is told of what the group was before.
    Change(Option<Ask>),
    /// Waits for the answer of group 1 to a report.
    Tell { request: u64 },
}

/// What a look at a group has shown.
struct Seen {
    group: GroupId,
    term: Term,
    membership: Membership,
    last: LogIndex,
    peers: Vec<Peer>,
    /// The map has its replicas as they are.
    is_known: bool,
}

impl World {
    /// A process begins to look after its groups.
    pub(crate) fn begin_moving(&mut self, node: NodeId) {
        if self.plan.cluster.mover {
            self.rest_mover(node, LOOK_US);
        }
    }

    pub(crate) fn on_mover(&mut self, node: NodeId, life: u64, step: u32) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let Some(mover) = self.mover(node) else { return Ok(()) };
        if mover.step != step {
            return Ok(());
        }
        match std::mem::take(&mut mover.doing) {
            Doing::Rest => self.begin_round(node)?,
            Doing::Change(report) => self.tell(node, report)?,
            Doing::Tell { .. } => {}
        }
        self.go_on(node)
    }

    /// Group 1 has answered a report, or nobody has: the next look shows what to do about it.
    pub(crate) fn on_told(&mut self, node: NodeId, id: u64) -> Checked {
        let Some(mover) = self.mover(node) else { return Ok(()) };
        match &mover.doing {
            Doing::Tell { request } if *request == id => mover.doing = Doing::Rest,
            _ => return Ok(()),
        }
        self.go_on(node)
    }

    /// A group has changed, or has not.
    pub(crate) fn on_moved(&mut self, node: NodeId, step: u32) {
        let life = self.node(node).life;
        if self.mover(node).is_some_and(|mover| mover.step == step) {
            self.queue.push(self.now_us, Event::Mover { node, life, step });
        }
    }

    fn mover(&mut self, node: NodeId) -> Option<&mut Mover> {
        self.node(node).process.as_mut().map(|process| &mut process.mover)
    }

    fn rest_mover(&mut self, node: NodeId, for_us: u64) {
        let at_us = self.now_us + self.node(node).clock.true_span_us(for_us);
        let life = self.node(node).life;
        let Some(mover) = self.mover(node) else { return };
        mover.step += 1;
        let step = mover.step;
        self.queue.push(at_us, Event::Mover { node, life, step });
    }

    fn begin_round(&mut self, node: NodeId) -> Checked {
        self.learn_map(node)?;
        self.be_steward(node)?;
        let Some(map) = self.node(node).map.clone() else { return Ok(()) };
        let Some(process) = &mut self.node(node).process else { return Ok(()) };
        let all = process.residents.keys().copied();
        let awake = process.hearing.wheel.awake();
        process.mover.left = process.mover.rounds.next(map.version(), all, awake).into();
        process.mover.map = Some(map);
        Ok(())
    }

    /// Looks at one group after another, until one has to be waited for.
    fn go_on(&mut self, node: NodeId) -> Checked {
        let life = self.node(node).life;
        while let Some(mover) = self.mover(node).filter(|mover| matches!(mover.doing, Doing::Rest))
        {
            let Some(group) = mover.left.pop_front() else {
                self.rest_mover(node, LOOK_US);
                return Ok(());
            };
            self.attend(node, group)?;
            if !self.is_alive(node, life) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn attend(&mut self, node: NodeId, group: GroupId) -> Checked {
        let Some(process) = &mut self.node(node).process else { return Ok(()) };
        let (mover, resident) = (&mut process.mover, process.residents.get(&group));
        let (Some(map), Some(resident)) = (&mover.map, resident) else { return Ok(()) };
        let (leadership, version) = (resident.group.leadership(), map.version());
        let is_settled = mover.rounds.is_settled(group, version, leadership.term);
        if !leadership.serving || leadership.role != Role::Leader || is_settled {
            return Ok(());
        }
        let Some(placed) = map.group(group) else {
            mover.rounds.settle(group, version, leadership.term);
            return Ok(());
        };
        let replica = resident.group.replica();
        let peer = |node| {
            let progress = replica.progress(node)?;
            let streams = progress.state == ProgressState::Replicate;
            let (heard, match_index) = (progress.heard, progress.match_index);
            Some(Peer { node, streams, heard, match_index })
        };
        let at = resident.group.applied_index();
        let applied = replica.membership_at(at);
        let untold = follow::untold(placed, applied);
        let seen = Seen {
            group,
            term: leadership.term,
            membership: replica.membership().clone(),
            last: replica.last().index,
            peers: replica.membership().nodes().into_iter().filter_map(peer).collect(),
            is_known: follow::is_told(placed, applied, replica.membership()),
        };
        let report = untold.map(|replicas| Ask::Report { expected: version, group, replicas, at });
        if !(defect!(UntoldGroupStays) && report.is_some()) {
            self.take_step(node, &seen)?;
        }
        let Some(mover) = self.mover(node) else { return Ok(()) };
        match &mut mover.doing {
            Doing::Change(then) => {
                *then = report;
                Ok(())
            }
            Doing::Rest | Doing::Tell { .. } => self.tell(node, report),
        }
    }

    fn tell(&mut self, node: NodeId, report: Option<Ask>) -> Checked {
        let request = self.last_request + 1;
        let (Some(report), Some(mover)) = (report, self.mover(node)) else { return Ok(()) };
        mover.doing = Doing::Tell { request };
        self.ask(MOVERS + node.value() as u32, node, report)
    }

    /// The next step of a group, by what was seen of it.
    fn take_step(&mut self, node: NodeId, seen: &Seen) -> Checked {
        let lag_max = self.plan.cluster.mover_lag_max.min(LAG_MAX);
        let Some(mover) = self.mover(node) else { return Ok(()) };
        let Some(map) = &mover.map else { return Ok(()) };
        let led = Led {
            leader: node,
            membership: &seen.membership,
            last: seen.last,
            peers: &seen.peers,
            lag_max,
        };
        match follow::next_action(&Wanted::of(map, seen.group), &led) {
            Action::Rest => {
                if seen.is_known {
                    mover.rounds.settle(seen.group, map.version(), seen.term);
                }
                Ok(())
            }
            Action::Wait => Ok(()),
            Action::Transfer(heir) => {
                if let Some(resident) = self.node(node).resident_mut(seen.group) {
                    // It may have lost the leadership since.
                    let _ = resident.group.transfer_leadership(heir);
                }
                self.input(node, seen.group)
            }
            Action::Change(difference) => self.move_replicas(node, seen, difference),
        }
    }

    fn move_replicas(&mut self, node: NodeId, seen: &Seen, difference: Difference) -> Checked {
        self.check_voters(seen, &difference)?;
        self.counts.moved += 1;
        self.rest_mover(node, STEP_US);
        let Some(mover) = self.mover(node) else { return Ok(()) };
        mover.doing = Doing::Change(None);
        let slot = Slot { request: MOVE, attempt: mover.step, gateway: node };
        let Difference { voters, learners, removed } = difference;
        let voters = voters.into_iter().map(NodeChange::Voter);
        let learners = learners.into_iter();
        let learners = learners.map(|node| NodeChange::Learner { node, promote: false });
        let removed = removed.into_iter().map(NodeChange::Remove);
        let change = MembershipChange::of(voters.chain(learners).chain(removed));
        match self.node(node).resident_mut(seen.group) {
            Some(resident) => resident.group.change_membership(change, slot),
            None => self.on_moved(node, slot.attempt),
        }
        self.input(node, seen.group)
    }

    /// Whoever is to get a vote holds the log already, in truth and not only as its leader believes.
    fn check_voters(&self, seen: &Seen, difference: &Difference) -> Checked {
        for &voter in &difference.voters {
            let at = &self.nodes[voter.value() as usize - 1];
            let Some(resident) = at.resident(seen.group) else { continue };
            let replica = resident.group.replica();
            // What a deposed leader sent may be overwritten since.
            if replica.term() != seen.term {
                continue;
            }
            let behind = seen.last.since(replica.durable());
            Oracle::Members.check(behind <= self.plan.cluster.mover_lag_max, || {
                format!(
                    "node {voter} is to vote in group {}, and lacks {behind} entries up to {}",
                    seen.group, seen.last
                )
            })?;
        }
        Ok(())
    }

    /// The map as the node's own replica has it, if that is news; it is kept beside the log.
    fn learn_map(&mut self, node: NodeId) -> Checked {
        let group = GroupId::PLACEMENT;
        let Some(resident) = self.nodes[node.value() as usize - 1].resident(group) else {
            return Ok(());
        };
        if resident.group.applied_index() < resident.caught_up_at || resident.group.is_distrusted()
        {
            return Ok(());
        }
        let Some(map) = self.map_of(node)? else { return Ok(()) };
        let at = self.node(node);
        if at.map.as_ref().is_none_or(|known| known.version() < map.version()) {
            at.map = Some(map);
        }
        Ok(())
    }

    /// Whoever is let in is told the map, too.
    pub(crate) fn on_let_in(&mut self, change: MapChange, outcome: &Bytes) {
        if let (MapChange::Join(node), Ok(_)) = (change, MapAnswer::parse(outcome)) {
            let map = self.atlas.latest.clone();
            self.node(node).map = map;
        }
    }

    /// Founders make the first map; who was added asks to be let in.
    fn be_steward(&mut self, node: NodeId) -> Checked {
        let founders = self.plan.cluster.voters;
        let client = STEWARDS + node.value() as u32;
        if self.node(node).map.is_none() && node.value() <= founders {
            let change = MapChange::Found { founders };
            return self.ask(client, node, Ask::ChangeMap { expected: 0, change });
        }
        let Some(map) = &self.atlas.latest else { return Ok(()) };
        if !self.atlas.awaits(node) {
            return Ok(());
        }
        let (expected, change) = (map.version(), MapChange::Join(node));
        let running = self.nodes.iter().filter(|at| at.process.is_some() && at.id != node);
        let running: Vec<_> = running.map(|at| at.id).collect();
        if running.is_empty() {
            return Ok(());
        }
        let gateway = running[self.random.usize(..running.len())];
        self.ask(client, gateway, Ask::ChangeMap { expected, change })
    }
}
