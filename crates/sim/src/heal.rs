//! The end of every run: no more faults, and everybody has to come together and serve. A group that is safe but
//! stands still has failed.
//!
//! 1. *Heal*: the network is whole, processes run, disks are fast and have room. Whoever lost its log stays away.
//! 2. *Converge*: each group has one leader that all follow, and all logs and states end at the same entry.
//! 3. *Serve*: a write and a read through every node succeed.
//! 4. *Compare*: logs and rows are the same everywhere, nothing waits, and the history of the clients is one that
//!    a single copy could have given.
//!
//! Converging may take as long as it makes progress: a window of one small append over a long link is slow, and
//! right.

use std::collections::{BTreeSet, VecDeque};

use quorate_raft::{MembershipChange, Role};
use quorate_store::{StateEngine, layout};
use quorate_types::{GroupId, LogIndex, NodeId, Term};

use crate::check::history::Judgement;
use crate::check::{Checked, Oracle};
use crate::client::Ask;
use crate::event::Event;
use crate::fault::node_of;
use crate::node::Resident;
use crate::requests::{NOBODY, OPERATORS, Request};
use crate::trace::What;
use crate::world::World;

/// Time between two looks.
const LOOK_US: u64 = 100_000;

/// Longest election timeouts without progress after which a run has wedged.
const STALLED_TIMEOUTS_MAX: u64 = 40;

/// Groups that are still not where the map wants them after so long go round in circles: what they write looks like
/// progress.
const FOLLOWED_US_MAX: u64 = 600_000_000;

/// How often a request is asked for in quiet before it counts as not served.
const TRIES_MAX: u32 = 10;

/// Steps of the judge of histories for each key.
const JUDGE_STEPS_MAX: u64 = 200_000;

/// How far the end of a run has come.
#[derive(Debug)]
pub(crate) struct Healing {
    stage: Stage,
    /// The furthest that all replicas together have come, and when they last came further.
    progress: u64,
    moved_us: u64,
    since_us: u64,
    settling_since_us: u64,
    /// What is still to be served: one request at a time, each so often as a patient client would ask.
    to_serve: VecDeque<(NodeId, Ask)>,
    tries: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Converging,
    Serving,
    Settling,
}

impl World {
    /// Ends all faults.
    pub(crate) fn heal(&mut self) -> Checked {
        self.note(None, What::Healed);
        for undo in std::mem::take(&mut self.undo).into_values() {
            self.take_back(undo)?;
        }
        self.net.heal();
        self.crash_winner = None;
        self.crash_installer = None;
        let absent: Vec<_> = self.plan.absent.iter().filter_map(|name| node_of(name)).collect();
        for node in absent {
            if self.may_lose(node) {
                self.node(node).lost = true;
                self.stop(node, "stays away", true)?;
            }
        }
        let is_quarantined = |process: &crate::node::Process| !process.quarantined.is_empty();
        let nodes = self.nodes.iter().filter(|at| at.process.as_ref().is_some_and(is_quarantined));
        for node in nodes.map(|at| at.id).collect::<Vec<_>>() {
            self.stop(node, "started anew, to have all of its groups", false)?;
        }
        let now_us = self.now_us;
        for node in &mut self.nodes {
            node.crash_after = None;
            node.slow_sync_us = 0;
            node.full = false;
            node.spoil.is_planned = false;
            if let Some(process) = &mut node.process {
                process.residents.values_mut().for_each(|r| r.machine_panics = false);
            }
            if node.paused_until.is_some() {
                node.paused_until = Some(now_us);
                self.queue.push(now_us, Event::Resume { node: node.id });
            }
            if node.process.is_none() && !node.lost {
                self.queue.push(now_us + 1, Event::Start { node: node.id, life: node.life });
            }
        }
        self.plan.disk.fetch_refused_permille = 0;
        self.plan.disk.tail_permille = 0;
        self.healing = Some(Healing {
            stage: Stage::Converging,
            progress: 0,
            moved_us: now_us,
            since_us: now_us,
            settling_since_us: now_us,
            to_serve: VecDeque::new(),
            tries: 0,
        });
        self.queue.push(now_us + LOOK_US, Event::Look);
        Ok(())
    }

    pub(crate) fn on_look(&mut self) -> Checked {
        self.leave_joint()?;
        let progress = self.progress();
        let (now_us, cluster) = (self.now_us, &self.plan.cluster);
        let timeout_us = cluster.tick_us * u64::from(cluster.election_ticks_max);
        let Some(healing) = &mut self.healing else { return Ok(()) };
        if progress > healing.progress {
            healing.progress = progress;
            healing.moved_us = now_us;
        }
        let goes_round = self.plan.cluster.mover && now_us - healing.since_us > FOLLOWED_US_MAX;
        let stalled = now_us - healing.moved_us > timeout_us * STALLED_TIMEOUTS_MAX || goes_round;
        let stage = healing.stage;
        match stage {
            Stage::Converging if self.requests.is_empty() && self.nudge_spoiled()? => {}
            Stage::Converging if self.has_converged() => {
                self.note(None, What::Converged);
                self.serve()?;
            }
            Stage::Serving if self.requests.is_empty() => self.serve_next()?,
            Stage::Settling if !self.leases_ended(now_us)? => {}
            Stage::Settling if self.has_converged() && !self.has_waiting() => {
                self.done = true;
                return self.compare();
            }
            Stage::Converging | Stage::Serving | Stage::Settling => {}
        }
        // Leases end when their time is over, and that has a bound of its own.
        let stalled = stalled && (stage != Stage::Settling || self.leases_ended(now_us)?);
        Oracle::Liveness.check(!stalled, || {
            format!(
                "no progress while {stage:?} since {} ms: {}",
                (now_us - 1) / 1000,
                self.describe()
            )
        })?;
        // Looks are whole ticks apart. Who asks again at the same moment of each meets what the leader does at
        // each, such as the end of a lease where there is room for one proposal at a time: all tries are spread
        // over them.
        let has_failed = self.healing.as_ref().is_some_and(|healing| healing.tries > 1);
        let later_us = if has_failed { LOOK_US / u64::from(TRIES_MAX - 1) } else { 0 };
        self.queue.push(now_us + LOOK_US + later_us, Event::Look);
        Ok(())
    }

    /// True when no lease is left; each has to end, since nobody keeps any alive.
    fn leases_ended(&self, now_us: u64) -> Result<bool, crate::check::Violation> {
        let quiet_us = self.healing.as_ref().map_or(now_us, |healing| healing.settling_since_us);
        let cluster = &self.plan.cluster;
        let timeout_us = cluster.tick_us * u64::from(cluster.election_ticks_max);
        let mut groups = self.checks.groups.values();
        groups.try_fold(true, |all, group| {
            Ok(group.tenure.all_ended(quiet_us, now_us, timeout_us)? && all)
        })
    }

    /// A request of the last stage has ended.
    pub(crate) fn served(&mut self, request: &Request, success: bool) {
        if let Some(healing) = &mut self.healing
            && (NOBODY..OPERATORS).contains(&request.client)
            && healing.stage == Stage::Serving
            && success
        {
            healing.to_serve.pop_front();
            healing.tries = 0;
        }
    }

    fn serve_next(&mut self) -> Checked {
        let Some(healing) = &mut self.healing else { return Ok(()) };
        let Some((gateway, mut ask)) = healing.to_serve.front().cloned() else {
            healing.stage = Stage::Settling;
            healing.settling_since_us = self.now_us;
            return Ok(());
        };
        // It may be starting again, after a failure that was still on its way.
        if self.nodes[gateway.value() as usize - 1].process.is_none() {
            return Ok(());
        }
        // A write that is tried again is another write.
        if let Ask::Put { value, .. } = &mut ask {
            self.last_value += 1;
            *value = self.last_value;
        }
        healing.tries += 1;
        Oracle::Liveness.check(healing.tries <= TRIES_MAX, || {
            format!("in quiet, a {} through node {gateway} is never served", ask.kind())
        })?;
        self.ask(NOBODY, gateway, ask)
    }

    fn serve(&mut self) -> Checked {
        let mut asks: VecDeque<(NodeId, Ask)> = VecDeque::new();
        for node in self.present_in(GroupId::FIRST_DATA) {
            let key = node.value() as u32 % self.plan.workload.keys;
            asks.push_back((node, Ask::Put { key, value: 0 }));
            asks.push_back((node, Ask::Read { key, local: false }));
            asks.push_back((node, Ask::Range { local: true }));
        }
        if self.plan.cluster.placement {
            let members = self.present_in(GroupId::PLACEMENT).into_iter();
            asks.extend(members.map(|node| (node, Ask::ReadMap)));
        }
        let now_us = self.now_us;
        if let Some(healing) = &mut self.healing {
            healing.stage = Stage::Serving;
            healing.moved_us = now_us;
            healing.to_serve = asks;
        }
        self.serve_next()
    }

    /// The members of a group that can take part, as its latest leader sees it.
    fn present_in(&self, group: GroupId) -> Vec<NodeId> {
        let replicas = self.nodes.iter().filter_map(|node| node.resident(group));
        let leaders = replicas.filter(|resident| resident.group.leadership().role == Role::Leader);
        let latest = leaders.max_by_key(|resident| resident.group.leadership().term);
        let members = latest.map(|leader| leader.group.replica().membership().nodes());
        let is_lost = |node: &NodeId| self.nodes[node.value() as usize - 1].lost;
        members.unwrap_or_default().into_iter().filter(|node| !is_lost(node)).collect()
    }

    /// Ends changes of the membership that nobody would end by itself.
    fn leave_joint(&mut self) -> Checked {
        let groups: Vec<_> = self.checks.groups.keys().copied().collect();
        for group in groups {
            for at in 0..self.nodes.len() {
                let Some(resident) = self.nodes[at].resident(group) else { continue };
                let membership = resident.group.replica().membership();
                let leads = resident.group.leadership().serving;
                if leads && membership.is_joint() && !membership.auto_leave {
                    let node = self.nodes[at].id;
                    self.change_member(node, group, MembershipChange::leave())?;
                }
            }
        }
        Ok(())
    }

    /// True while some caller waits. A proposal that lost its place may have to wait for its deadline, which is
    /// within the time after which a run counts as stalled.
    fn has_waiting(&self) -> bool {
        let residents = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let mut residents = residents.flat_map(|process| process.residents.values());
        residents.any(|resident| {
            resident.group.proposals_waiting() > 0 || resident.group.reads_waiting() > 0
        })
    }

    fn progress(&self) -> u64 {
        let residents = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let residents = residents.flat_map(|process| process.residents.values());
        let of = |resident: &Resident| {
            let replica = resident.group.replica();
            replica.durable().value() + replica.commit().value() + replica.applied_index().value()
        };
        // A request that was answered is progress too.
        residents.map(of).sum::<u64>() + self.counts.answered
    }

    fn has_converged(&self) -> bool {
        self.requests.is_empty()
            && self.follows_map()
            && self.checks.groups.keys().all(|&group| {
                let present = self.present_in(group);
                let mut ends: BTreeSet<(LogIndex, Option<NodeId>, Term)> = BTreeSet::new();
                let mut serving = 0;
                for &node in &present {
                    let at = &self.nodes[node.value() as usize - 1];
                    let Some(process) = &at.process else { return false };
                    let Some(resident) = process.residents.get(&group) else { return false };
                    let (replica, leads) = (resident.group.replica(), resident.group.leadership());
                    let last = replica.last().index;
                    if !process.to_apply.is_empty()
                        || process.wal.busy
                        || replica.applied_index() < last
                        || replica.durable() < last
                        || replica.membership().is_joint()
                        || !replica.membership().promote.is_empty() && !self.awaits_lost(resident)
                    {
                        return false;
                    }
                    serving += u32::from(leads.serving && leads.role == Role::Leader);
                    ends.insert((last, leads.leader, replica.term()));
                }
                ends.len() == 1 && serving == 1
            })
    }

    /// True when a learner is to be promoted that will never catch up.
    fn awaits_lost(&self, resident: &Resident) -> bool {
        let promote = &resident.group.replica().membership().promote;
        promote.iter().any(|node| self.nodes[node.value() as usize - 1].lost)
    }

    fn compare(&mut self) -> Checked {
        let groups: Vec<_> = self.checks.groups.keys().copied().collect();
        for group in groups {
            let present = self.present_in(group);
            for &node in &present {
                if let Some(resident) = self.nodes[node.value() as usize - 1].resident(group) {
                    self.checks.resources.on_quiet(node, resident)?;
                }
            }
            if group == GroupId::FIRST_DATA {
                self.watch_to_the_end(&present)?;
            }
            self.compare_rows(group, &present)?;
        }
        let judged = self.checks.history.check(JUDGE_STEPS_MAX)?;
        self.counts.undecided += u64::from(judged == Judgement::Undecided);
        Ok(())
    }

    /// Sweeps go at their own pace on each node; when all are through, all rows of a group must be the same.
    fn compare_rows(&mut self, group: GroupId, present: &[NodeId]) -> Checked {
        let mut first = None;
        for &node in present {
            self.sweep_all(node)?;
            let mut rows = self.node(node).state.rows();
            rows.retain(|row, _| belongs_to(row, group));
            match &first {
                None => first = Some((node, rows)),
                Some((other, expected)) => {
                    let differing = expected
                        .iter()
                        .find(|(key, value)| rows.get(*key) != Some(*value))
                        .map(|(key, _)| key)
                        .or_else(|| rows.keys().find(|key| !expected.contains_key(*key)));
                    Oracle::StateMachineSafety.check(differing.is_none(), || {
                        format!(
                            "group {group}: nodes {other} and {node} differ in row {differing:?}"
                        )
                    })?;
                }
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let mut text = Vec::new();
        for node in &self.nodes {
            let Some(process) = &node.process else {
                text.push(format!("node {} is down", node.id));
                continue;
            };
            let wall_ms = node.clock.wall_us(self.now_us) / 1000;
            text.push(format!("node {} runs, wall clock {wall_ms} ms", node.id));
            for (&group, resident) in &process.residents {
                let replica = resident.group.replica();
                text.push(format!(
                    "node {} g{group} {} t{} leader {:?} last {} durable {} commit {} applied {}",
                    node.id,
                    replica.role().name(),
                    replica.term(),
                    replica.leader(),
                    replica.last(),
                    replica.durable(),
                    replica.commit(),
                    replica.applied_index(),
                ));
            }
        }
        let waiting = self.requests.len();
        format!("{waiting} requests wait; {}{}", text.join("; "), self.describe_map())
    }

    fn sweep_all(&mut self, node: NodeId) -> Checked {
        for group in self.groups_of(node) {
            while self.sweep_once(node, group)? {}
        }
        self.node(node).state.flush().map_err(|error| Oracle::Assertion.broken(error.to_string()))
    }

    /// One sweep; true while there is more.
    fn sweep_once(
        &mut self,
        node: NodeId,
        group: GroupId,
    ) -> Result<bool, crate::check::Violation> {
        let at = self.node(node);
        let Some(process) = &mut at.process else { return Ok(false) };
        let Some(resident) = process.residents.get_mut(&group) else { return Ok(false) };
        let (rows, more) = {
            let mut overlay = quorate_store::Overlay::new(at.state.view());
            crate::applier::sweep(resident, group, &mut overlay)?;
            (overlay.into_rows(), resident.sweeping)
        };
        at.state.write(rows).map_err(|error| Oracle::Assertion.broken(error.to_string()))?;
        Ok(more)
    }
}

/// True for the rows of a group: its own row, and those of its machine.
fn belongs_to(row: &[u8], group: GroupId) -> bool {
    match row.first() {
        Some(&layout::TAG_GROUP) => *row == layout::group(group),
        Some(&layout::TAG_OWN) => row.starts_with(&layout::own_prefix(group)),
        Some(_) | None => group == GroupId::FIRST_DATA,
    }
}
