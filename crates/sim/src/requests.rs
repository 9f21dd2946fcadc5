//! The life of a request:
//!
//! 1. A client asks the node that it talks to, its *gateway* ([`World::ask`]).
//! 2. The gateway routes it to who leads the group, here or on another node, and looks again while it is told that
//!    nothing was proposed ([`World::on_route`]); the rules are those of `node::router`.
//! 3. The group's answer comes back, perhaps over the network ([`World::answer`], [`World::on_reply`]).
//! 4. The gateway tells the client ([`World::finish`]); the client notes it in the history
//!    ([`World::on_answered`]).
//!
//! What is lost on the way is found out by the deadline: then the outcome is not known.

use bytes::Bytes;
use prost::Message;
use quorate_group::Refusal;
use quorate_placement::{Answer as MapAnswer, PlacementMap};
use quorate_types::kv::{Outcome, outcome};
use quorate_types::{EntryId, GroupId, LogIndex, NodeId, defect};

use crate::check::revision::Freshness;
use crate::check::{Checked, Oracle};
use crate::client::{Ask, MapChange, MapUse};
use crate::dues::DUE;
use crate::event::{Answer, Event, Finished};
use crate::fault::node_of;
use crate::mover::MOVE;
use crate::net::Fate;
use crate::node::Slot;
use crate::plan::{PlannedRequest, RequestKind};
use crate::trace::What;
use crate::world::World;

use self::remember::value_in;

mod remember;

/// A gateway that knows no leader, or the wrong one, looks again after this.
const LOOK_AGAIN_US: u64 = 20_000;

/// A read that another node does not answer is asked again after this.
const READ_AGAIN_US: u64 = 500_000;

/// Requests with a client number from here on are made by the plan or by the end of a run.
pub(crate) const NOBODY: u32 = 1 << 16;

/// Those of operators; the number of the fault is added.
pub(crate) const OPERATORS: u32 = 1 << 20;

/// Those of the movers of nodes; the node is added.
pub(crate) const MOVERS: u32 = 1 << 24;

/// Those of nodes that wait for no answer.
pub(crate) const STEWARDS: u32 = 1 << 28;

/// A request under way.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) client: u32,
    pub(crate) ask: Ask,
    pub(crate) bytes: Bytes,
    pub(crate) gateway: NodeId,
    gateway_life: u64,
    from_us: u64,
    /// Counts how often it was routed; answers to earlier tries mean nothing.
    attempt: u32,
    /// It may be in a log already.
    perhaps_proposed: bool,
    /// The gateway is done with it.
    pub(crate) ended: bool,
    /// What was committed when it was asked for.
    pub(crate) floor: LogIndex,
    /// The highest version of the map that anybody had heard of then.
    map_floor: u64,
}

impl World {
    pub(crate) fn on_client(&mut self, client: u32) -> Checked {
        if self.healing.is_some() {
            return Ok(());
        }
        if self.now_us < self.rested_until_us {
            self.queue.push(self.rested_until_us, Event::Client { client });
            return Ok(());
        }
        let nodes = self.nodes.len() as u64;
        let at = &mut self.clients[client as usize];
        if at.busy {
            return Ok(());
        }
        if self.nodes[at.gateway.value() as usize - 1].process.is_none() {
            // Nobody listens there.
            at.move_on(nodes);
            self.plan_client(client);
            return Ok(());
        }
        at.busy = true;
        let last_value = &mut self.last_value;
        let map_use = match (self.plan.cluster.placement, self.plan.cluster.mover) {
            (_, true) => MapUse::Addresses,
            (true, false) => MapUse::Anything,
            (false, false) => MapUse::Nothing,
        };
        let ask = at.draw(&self.plan.workload, map_use, || {
            *last_value += 1;
            *last_value
        });
        let gateway = at.gateway;
        self.ask(client, gateway, ask)
    }

    pub(crate) fn on_planned(&mut self, number: usize) -> Checked {
        let planned = &self.plan.workload.requests[number];
        let Some(gateway) = node_of(&planned.node) else { return Ok(()) };
        let PlannedRequest { key, kind, .. } = *planned;
        let ask = match kind {
            RequestKind::Put => {
                self.last_value += 1;
                Ask::Put { key, value: self.last_value }
            }
            RequestKind::Read => Ask::Read { key, local: false },
        };
        self.ask(NOBODY + number as u32, gateway, ask)
    }

    /// A request reaches its gateway. Returns nothing; see the chapter for what follows.
    pub(crate) fn ask(&mut self, client: u32, gateway: NodeId, ask: Ask) -> Checked {
        self.last_request += 1;
        let id = self.last_request;
        self.last_value += 1;
        let map = match self.clients.get(client as usize) {
            Some(client) => client.map.as_ref(),
            None => self.atlas.latest.as_ref(),
        };
        let bytes = ask.encode(&self.plan.workload, gateway, map, self.last_value);
        self.note(gateway, What::Asked { client, request: id, kind: ask.kind() });
        if let Ask::Grant { id, ttl_s } = ask {
            let now_us = self.now_us;
            self.checks.group(ask.group()).tenure.on_asked(id, ttl_s, now_us);
        }
        if let Ask::ChangeMap { expected, change } = ask {
            self.atlas.on_asked(expected, change);
        }
        let life = self.node(gateway).life;
        self.checks.revisions.on_asked(id, (gateway, life));
        let request = Request {
            client,
            floor: self.checks.committed(ask.group()),
            map_floor: self.checks.placement.highest(),
            ask,
            bytes,
            gateway,
            gateway_life: life,
            from_us: self.now_us,
            attempt: 0,
            perhaps_proposed: false,
            ended: false,
        };
        self.requests.insert(id, request);
        let deadline_us = self.now_us + self.plan.workload.timeout_ms * 1000;
        self.queue.push(deadline_us, Event::Expire { request: id });
        if self.node(gateway).paused_until.is_some() {
            // It lies in a socket until its process goes on.
            self.queue.push(self.now_us, Event::Route { request: id, attempt: 0 });
            return Ok(());
        }
        self.on_route(id, 0)
    }

    pub(crate) fn on_route(&mut self, id: u64, attempt: u32) -> Checked {
        let Some(request) = self.requests.get_mut(&id) else { return Ok(()) };
        if request.ended || request.attempt != attempt {
            return Ok(());
        }
        request.attempt += 1;
        let (gateway, life) = (request.gateway, request.gateway_life);
        let slot = Slot { request: id, attempt: request.attempt, gateway };
        let (group, is_write) = (request.ask.group(), request.ask.is_write());
        let is_local = request.ask.is_local() && request.attempt == 1;
        if !self.is_alive(gateway, life) {
            return self.finish(id, Finished::Unknown);
        }
        let Some(resident) = self.nodes[gateway.value() as usize - 1].resident(group) else {
            // It is being loaded again, or kept away.
            self.route_again(id, LOOK_AGAIN_US);
            return Ok(());
        };
        let leader = resident.group.leadership().leader;
        let is_caught_up = resident.group.applied_index() >= resident.caught_up_at;
        let is_trusted = !resident.group.is_distrusted() && !self.is_spoiled(gateway, group);
        if is_local && is_caught_up && is_trusted {
            let query = self.requests[&id].bytes.clone();
            let outcome = self.look_up(gateway, group, &query)?;
            let process = self.node(gateway).process.as_ref();
            let answered = process.map_or(0, |process| process.answered_revision);
            // Never behind what this gateway has answered before: then the leader is asked.
            let fresh = |found: Outcome| found.revision >= answered || defect!(GatewayForgets);
            if Outcome::decode(outcome.clone()).is_ok_and(fresh) {
                return self.finish(id, Finished::Done { outcome });
            }
        }
        // A linearizable read may be made at any replica; the real router asks the leader's.
        let is_led = self.requests[&id].ask.is_led();
        let at_hand = !is_write
            && !is_led
            && leader.is_some()
            && self.random.u32(..1000) < self.plan.workload.at_hand_permille;
        match leader {
            _ if at_hand => return self.submit(gateway, slot),
            None => self.route_again(id, LOOK_AGAIN_US),
            Some(leader) if leader == gateway => return self.submit(leader, slot),
            Some(leader) => {
                match self.net.send(self.now_us, gateway, leader) {
                    Fate::Arrives { at_us, .. } => {
                        let attempt = slot.attempt;
                        self.queue.push(at_us, Event::Forward { request: id, attempt, to: leader });
                    }
                    Fate::Lost { .. } => self.counts.lost += 1,
                }
                if is_write {
                    self.request_mut(id, |request| request.perhaps_proposed = true);
                } else {
                    self.route_again(id, READ_AGAIN_US);
                }
            }
        }
        Ok(())
    }

    fn route_again(&mut self, id: u64, after_us: u64) {
        if let Some(request) = self.requests.get(&id) {
            let attempt = request.attempt;
            self.queue.push(self.now_us + after_us, Event::Route { request: id, attempt });
        }
    }

    fn request_mut(&mut self, id: u64, change: impl FnOnce(&mut Request)) {
        if let Some(request) = self.requests.get_mut(&id) {
            change(request);
        }
    }

    /// A request reaches the node that is believed to lead.
    pub(crate) fn on_forward(&mut self, id: u64, attempt: u32, to: NodeId) -> Checked {
        let Some(request) = self.requests.get(&id) else { return Ok(()) };
        let (gateway, group) = (request.gateway, request.ask.group());
        let slot = Slot { request: id, attempt, gateway };
        if self.node(to).resident(group).is_some() {
            self.submit(to, slot)
        } else {
            self.answer(to, slot, Answer::NotSent)
        }
    }

    /// A group gets a request.
    fn submit(&mut self, node: NodeId, slot: Slot) -> Checked {
        let Some(request) = self.requests.get_mut(&slot.request) else { return Ok(()) };
        let (group, bytes) = (request.ask.group(), request.bytes.clone());
        let (is_write, grows) = (request.ask.is_write(), request.ask.grows());
        request.perhaps_proposed = is_write;
        if is_write && self.plan.disk.watched && self.refuses_growth(node, group, &bytes, grows)? {
            return self.answer(node, slot, Answer::Refused(Refusal::NoSpace));
        }
        let is_led = self.requests[&slot.request].ask.is_led();
        let Some(resident) = self.node(node).resident_mut(group) else {
            return self.answer(node, slot, Answer::NotSent);
        };
        if is_led && defect!(KeepAliveUnconfirmed) {
            let term = resident.group.leadership().term;
            let answer = self.read_led(node, group, &bytes, term)?;
            return self.answer(node, slot, answer);
        }
        if is_write {
            resident.group.propose(bytes, slot);
        } else {
            resident.group.read(slot);
        }
        self.input(node, group)
    }

    /// `node` has an answer: it goes to the gateway, here or elsewhere.
    pub(crate) fn answer(&mut self, node: NodeId, slot: Slot, answer: Answer) -> Checked {
        let Slot { request, attempt, gateway } = slot;
        if request == MOVE {
            self.on_moved(node, attempt);
            return Ok(());
        }
        if request == DUE {
            return self.on_due_answered(node, attempt, &answer);
        }
        if let (Answer::Written { id, .. }, Some(asked)) = (&answer, self.requests.get(&request)) {
            let (group, bytes, id) = (asked.ask.group(), asked.bytes.clone(), *id);
            self.acknowledge(group, id, &bytes)?;
        }
        let answer = match self.requests.get(&request).map(|asked| asked.ask.group()) {
            Some(group) => self.unjudged(node, group, answer),
            None => answer,
        };
        if gateway == node {
            return self.on_reply(request, attempt, answer);
        }
        match self.net.send(self.now_us, node, gateway) {
            Fate::Arrives { at_us, .. } => {
                self.queue.push(at_us, Event::Reply { request, attempt, answer });
            }
            Fate::Lost { .. } => self.counts.lost += 1,
        }
        Ok(())
    }

    /// What is said to be done must be committed, and this very command.
    pub(crate) fn acknowledge(&mut self, group: GroupId, id: EntryId, command: &Bytes) -> Checked {
        let checks = self.checks.group(group);
        let committed = checks.log.committed_at(id.index);
        Oracle::Durability.check(committed == Some(id), || {
            format!("{id} is acknowledged, but {committed:?} is committed there")
        })?;
        checks.apply.on_acknowledged(id, command)
    }

    pub(crate) fn on_reply(&mut self, id: u64, attempt: u32, answer: Answer) -> Checked {
        let Some(request) = self.requests.get_mut(&id) else { return Ok(()) };
        if request.ended || request.attempt != attempt {
            return Ok(());
        }
        match answer {
            Answer::Written { outcome, .. } | Answer::Read { outcome } => {
                self.finish(id, Finished::Done { outcome })
            }
            Answer::Refused(Refusal::NotLeader { .. } | Refusal::Membership(_))
            | Answer::NotSent => {
                request.perhaps_proposed = false;
                self.route_again(id, LOOK_AGAIN_US);
                Ok(())
            }
            Answer::Refused(Refusal::Overloaded) => self.finish(id, Finished::Failed),
            Answer::Refused(Refusal::NoSpace) => self.finish(id, Finished::NoSpace),
            Answer::Refused(Refusal::Unknown) => self.finish(id, Finished::Unknown),
        }
    }

    pub(crate) fn on_expire(&mut self, id: u64) -> Checked {
        let Some(request) = self.requests.get(&id) else { return Ok(()) };
        if request.ended {
            return Ok(());
        }
        let unknown = request.perhaps_proposed;
        self.finish(id, if unknown { Finished::Unknown } else { Finished::Failed })
    }

    /// The gateway answers.
    pub(crate) fn finish(&mut self, id: u64, result: Finished) -> Checked {
        let Some(request) = self.requests.get_mut(&id) else { return Ok(()) };
        request.ended = true;
        let (client, group) = (request.client, request.ask.group());
        let is_write = request.ask.is_write();
        match &result {
            Finished::Done { outcome } => self.on_gateway_answer(id, &outcome.clone())?,
            Finished::Failed | Finished::NoSpace if is_write => {
                let bytes = request.bytes.clone();
                self.checks.group(group).apply.on_refused(&bytes)?;
            }
            Finished::Failed | Finished::NoSpace | Finished::Unknown => {}
        }
        let lost_permille = self.plan.workload.answers_lost_permille;
        let is_lost = client < NOBODY
            && self.healing.is_none()
            && lost_permille > 0
            && self.random.u32(..1000) < lost_permille;
        let (at_us, result) = if is_lost {
            (self.now_us + self.plan.workload.timeout_ms * 1000, Finished::Unknown)
        } else {
            (self.now_us + self.plan.workload.latency_us, result)
        };
        self.queue.push(at_us, Event::Answered { request: id, result });
        Ok(())
    }

    /// What a gateway lets out is right at its revision, and fresh enough.
    fn on_gateway_answer(&mut self, id: u64, outcome: &Bytes) -> Checked {
        let request = &self.requests[&id];
        let (node, life) = (request.gateway, request.gateway_life);
        match &request.ask {
            Ask::ReadMap => {
                let map = MapAnswer::map(outcome)
                    .map_err(|error| Oracle::Placement.broken(error.to_string()))?;
                let version = map.as_ref().map_or(0, PlacementMap::version);
                let floor = request.map_floor;
                self.checks.placement.on_read(id, floor, version)?;
                return map.map_or(Ok(()), |map| self.checks.identity.on_map(&map));
            }
            Ask::ChangeMap { expected, change } => {
                self.checks.placement.on_changed(id, *expected, outcome)?;
                let is_followed = self.plan.cluster.mover;
                return match (change, MapAnswer::parse(outcome)) {
                    (MapChange::Add { .. } | MapChange::Replace(_), Ok(changed)) => {
                        self.checks.identity.on_allotted(id, changed.node)
                    }
                    // Where groups follow, they have to let go of it first.
                    (MapChange::Remove(node), Ok(changed)) if !is_followed => {
                        self.checks.identity.on_removed(*node, changed.version);
                        Ok(())
                    }
                    _ => Ok(()),
                };
            }
            Ask::Report { expected, .. } => {
                return match MapAnswer::parse(outcome) {
                    // Older than what the map has: nothing was changed.
                    Ok(changed) if changed.version == *expected => Ok(()),
                    _ => self.checks.placement.on_changed(id, *expected, outcome),
                };
            }
            _ => {}
        }
        let answer = Outcome::decode(outcome.clone())
            .map_err(|error| Oracle::StateMachineSafety.broken(error.to_string()))?;
        if let Some(process) = &mut self.nodes[node.value() as usize - 1].process {
            process.answered_revision = process.answered_revision.max(answer.revision);
        }
        if let (Ask::KeepAlive { id: lease }, Some(outcome::Body::LeaseKeepAlive(kept))) =
            (&request.ask, &answer.body)
        {
            let tenure = &mut self.checks.group(GroupId::FIRST_DATA).tenure;
            tenure.on_kept(*lease, request.from_us, kept.ttl_s)?;
            self.counts.kept_alive += u64::from(kept.ttl_s > 0);
        }
        let checks = &mut self.checks;
        let model = checks.groups.get(&GroupId::FIRST_DATA).and_then(|group| group.apply.model());
        match (request.ask.range(), model) {
            (Some(range), Some(model)) => {
                let freshness = if request.ask.is_local() {
                    Freshness::Serializable
                } else {
                    Freshness::Linearizable
                };
                let gateway = (node, life);
                checks.revisions.on_read(id, gateway, freshness, &range, &answer, model)
            }
            _ => checks.revisions.on_written(id, (node, life), answer.revision),
        }
    }

    pub(crate) fn on_answered(&mut self, id: u64, result: Finished) -> Checked {
        let Some(request) = self.requests.remove(&id) else { return Ok(()) };
        self.checks.revisions.on_ended(id);
        let word = match &result {
            Finished::Done { .. } => "ok",
            Finished::Failed => "failed",
            Finished::NoSpace => "no space",
            Finished::Unknown => "unknown",
        };
        let value = match (&request.ask, &result) {
            (Ask::Put { value, .. }, _) => Some(*value),
            (Ask::Read { key, local: false }, Finished::Done { outcome }) => {
                value_in(Outcome::decode(outcome.clone()).ok().as_ref(), *key)
            }
            _ => None,
        };
        let what = What::Answered { client: request.client, request: id, result: word, value };
        self.note(request.gateway, what);
        match &result {
            Finished::Done { .. } => self.counts.answered += 1,
            Finished::Failed | Finished::NoSpace => self.counts.failed += 1,
            Finished::Unknown => self.counts.unknown += 1,
        }
        let outcome = match result {
            Finished::Done { outcome } => Some(outcome),
            Finished::Unknown => None,
            Finished::Failed | Finished::NoSpace => {
                self.served(&request, false);
                self.next_of(request.client, true);
                return self.on_own_answered(&request, id, None);
            }
        };
        self.on_own_answered(&request, id, outcome.as_ref())?;
        self.served(&request, outcome.is_some());
        self.remember(&request, outcome.as_ref());
        self.next_of(request.client, outcome.is_none());
        Ok(())
    }

    /// An answer to a request that is no client's.
    fn on_own_answered(&mut self, request: &Request, id: u64, outcome: Option<&Bytes>) -> Checked {
        match request.client {
            STEWARDS.. => {
                if let (Ask::ChangeMap { change, .. }, Some(outcome)) = (&request.ask, outcome) {
                    self.on_let_in(*change, outcome);
                }
                Ok(())
            }
            MOVERS.. => self.on_told(request.gateway, id),
            OPERATORS.. => self.on_operated((request.client - OPERATORS) as usize, outcome),
            _ => Ok(()),
        }
    }

    fn next_of(&mut self, client: u32, move_on: bool) {
        let nodes = self.nodes.len() as u64;
        if let Some(at) = self.clients.get_mut(client as usize) {
            at.busy = false;
            if move_on || at.random.u8(..8) == 0 {
                at.move_on(nodes);
            }
            self.plan_client(client);
        }
    }

    fn plan_client(&mut self, client: u32) {
        let think_us = self.plan.workload.think_us;
        let wait_us = 1 + self.clients[client as usize].random.u64(..=think_us * 2);
        self.queue.push(self.now_us + wait_us, Event::Client { client });
    }
}
