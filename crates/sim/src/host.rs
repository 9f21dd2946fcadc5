//! What the host of a node does: gives groups their inputs and turns, carries out effects in their order, and
//! brings completions back. It keeps to the contract of the real host (`node::actor`, `node::apply`): nothing is
//! released before its sync, only durable entries are applied, one batch holds rows and applied index.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use quorate_group::{Effect, Generation};
use quorate_raft::{LogFetch, Role};
use quorate_store::{GroupRow, ScopedView, StateEngine};
use quorate_types::{EntryId, GroupId, LogIndex, Message, Moment, NodeId, Term, codec};
use quorate_wal::Write;

use crate::check::{Checked, Oracle, promise};
use crate::event::{Answer, Event};
use crate::net::Fate;
use crate::node::{Slot, Task};
use crate::trace::{Brief, What};
use crate::world::World;

/// Appends in one batch of the log, at most.
const BATCH_TASKS_MAX: usize = 64;

impl World {
    /// True while this very process of `node` runs.
    pub(crate) fn is_alive(&self, node: NodeId, life: u64) -> bool {
        let node = &self.nodes[node.value() as usize - 1];
        node.process.is_some() && node.life == life
    }

    pub(crate) fn on_frame(
        &mut self,
        from: NodeId,
        to: NodeId,
        session: u64,
        sent_us: u64,
        messages: Vec<Message>,
    ) -> Checked {
        let Some(process) = &mut self.node(to).process else {
            self.counts.lost += 1;
            return Ok(());
        };
        process.hearing.on_datagram(from, session);
        let mut groups = Vec::new();
        for message in messages {
            let (group, brief) = (message.group, Brief::of(&message));
            self.note(to, What::Received { from, sent_us, brief });
            if let Some(resident) = self.node(to).resident_mut(group) {
                resident.group.step(message);
                if !groups.contains(&group) {
                    groups.push(group);
                }
            }
        }
        groups.into_iter().try_for_each(|group| self.input(to, group))
    }

    pub(crate) fn on_unreachable(&mut self, node: NodeId, life: u64, peer: NodeId) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        for group in self.groups_of(node) {
            if let Some(resident) = self.node(node).resident_mut(group) {
                resident.group.unreachable(peer);
            }
            self.input(node, group)?;
        }
        Ok(())
    }

    pub(crate) fn on_turn_due(&mut self, node: NodeId, life: u64, group: GroupId) -> Checked {
        if self.is_alive(node, life) { self.end_turn(node, group) } else { Ok(()) }
    }

    /// What the clock of a node shows.
    pub(crate) fn moment(&self, node: NodeId) -> Moment {
        Moment(self.nodes[node.value() as usize - 1].clock.shown_us(self.now_us))
    }

    /// A group has an input: its turn ends at once, or when more have come.
    pub(crate) fn input(&mut self, node: NodeId, group: GroupId) -> Checked {
        let delay_us_max = self.plan.cluster.turn_delay_us_max;
        // Whatever reached a process while it stood still is in its mailbox when it goes on.
        let now_us = self.now_us;
        let has_burst = self.node(node).resumed_us == Some(now_us);
        if delay_us_max == 0 && !has_burst {
            return self.end_turn(node, group);
        }
        let life = self.node(node).life;
        let Some(resident) = self.node(node).resident_mut(group) else { return Ok(()) };
        if !std::mem::replace(&mut resident.turn_due, true) {
            let delay_us = if has_burst { 0 } else { self.random.u64(..=delay_us_max) };
            self.queue.push(now_us + delay_us, Event::Turn { node, life, group });
        }
        Ok(())
    }

    fn end_turn(&mut self, node: NodeId, group: GroupId) -> Checked {
        let before = self.checks.committed(group);
        let now = self.moment(node);
        let Some(resident) = self.nodes[node.value() as usize - 1].resident_mut(group) else {
            return Ok(());
        };
        resident.turn_due = false;
        let effects = resident.group.turn(now, &mut |_| {});
        let Some(resident) = self.nodes[node.value() as usize - 1].resident(group) else {
            return Ok(());
        };
        let replica = resident.group.replica();
        for effect in &effects {
            if let Effect::Apply(_) = effect {
                self.check_room(node, group, "entries are applied")?;
            }
            if let Effect::Append { entries, .. } = effect
                && let Some(first) = entries.first()
            {
                // Where nobody is better off, it leads on.
                if replica.role() != Role::Leader {
                    self.check_room(node, group, "entries are taken")?;
                }
                let index = first.id.index.previous().unwrap_or_default();
                let term = replica.term_at(index).unwrap_or_default();
                self.checks.on_append(group, EntryId::new(term, index), entries)?;
                self.checks.group(group).members.on_append(node, replica, entries)?;
            }
        }
        let (nodes, now_us) = (&self.nodes, self.now_us);
        let clocks = |of: NodeId| Moment(nodes[of.value() as usize - 1].clock.shown_us(now_us));
        self.checks.on_turn(node, replica, &clocks)?;
        let wins = |effect: &Effect<Slot, Slot>| match effect {
            Effect::Leadership(now) => now.role == Role::Leader && !now.serving,
            _ => false,
        };
        if effects.iter().any(wins)
            && let Some(planned) = self.crash_winner.take()
        {
            self.node(node).crash_after = Some(planned);
        }
        let after = self.checks.committed(group);
        if after > before {
            self.note(node, What::Committed { group, index: after });
        }
        self.rest(node, group);
        self.carry_out(node, group, effects)
    }

    /// A turn has ended: the wheel hears whether the group sleeps now.
    fn rest(&mut self, node: NodeId, group: GroupId) {
        let Some(process) = &mut self.node(node).process else { return };
        let Some(resident) = process.residents.get_mut(&group) else { return };
        let leader = resident.group.leadership().leader;
        let sleeps_under = leader.filter(|_| resident.group.is_asleep());
        if sleeps_under.is_some() == resident.rests {
            return;
        }
        resident.rests = sleeps_under.is_some();
        match sleeps_under {
            Some(leader) => process.hearing.wheel.on_asleep(group, leader),
            None => process.hearing.wheel.on_awake(group),
        }
    }

    pub(crate) fn carry_out(
        &mut self,
        node: NodeId,
        group: GroupId,
        effects: Vec<Effect<Slot, Slot>>,
    ) -> Checked {
        let life = self.node(node).life;
        let mut unfetched = Vec::new();
        for effect in effects {
            if self.crashes_here(node)? || !self.is_alive(node, life) {
                return Ok(());
            }
            match effect {
                Effect::Append { ticket, hard_state, entries } => {
                    let write = Write::Append { group, hard_state, entries };
                    let since_us = self.now_us;
                    let at = self.node(node);
                    let Some(process) = &mut at.process else { return Ok(()) };
                    let Some(resident) = process.residents.get(&group) else { return Ok(()) };
                    let generation = resident.generation;
                    let ticket = Some(ticket);
                    let task = Task { group, generation, ticket, write, since_us };
                    match process.residents.get_mut(&group).and_then(|r| r.held.as_mut()) {
                        Some(held) => held.push(task),
                        None => process.wal.waiting.push_back(task),
                    }
                    self.pump_log(node)?;
                }
                Effect::Send(messages) => self.send(node, messages)?,
                Effect::Apply(entries) => self.submit_apply(node, group, entries),
                Effect::Fetch(fetch) => {
                    let refused = self.plan.disk.fetch_refused_permille;
                    if refused > 0 && self.random.u32(..1000) < refused {
                        unfetched.push(fetch);
                    } else {
                        self.submit_fetch(node, group, fetch);
                    }
                }
                Effect::Answer { slot, result } => {
                    let answer = match result {
                        Ok(proposed) => {
                            Answer::Written { id: proposed.id, outcome: proposed.outcome }
                        }
                        Err(refusal) => Answer::Refused(refusal),
                    };
                    self.answer(node, slot, answer)?;
                }
                Effect::Grant { slot, term, index } => {
                    self.grant(node, group, slot, term, index)?
                }
                Effect::Deny { slot, refusal } => {
                    self.answer(node, slot, Answer::Refused(refusal))?;
                }
                // Here everybody can reach everybody.
                Effect::Membership(now) => self.note(node, What::members(group, &now)),
                Effect::SendSnapshot(request) => self.send_snapshot(node, group, request)?,
                Effect::Diverged(found) => self.on_diverged(node, group, &found)?,
                Effect::Distrusted(is) => self.on_distrusted(node, group, is)?,
                Effect::Rebuild(meta) => self.begin_rebuild(node, group, &meta)?,
                Effect::Install(meta) => self.begin_install(node, group, meta)?,
                Effect::Leadership(now) => {
                    self.tell_kind(node, group, now);
                    let what = What::Role {
                        group,
                        role: now.role,
                        term: now.term,
                        leader: now.leader,
                        serving: now.serving,
                    };
                    self.note(node, what);
                }
            }
        }
        if let Some(resident) = self.node(node).resident_mut(group) {
            for fetch in unfetched {
                resident.group.fetched(fetch, Vec::new());
            }
        }
        Ok(())
    }

    /// Messages leave: grouped by peer, as the real host does, so that a turn's messages share a frame.
    fn send(&mut self, node: NodeId, messages: Vec<Message>) -> Checked {
        let mut by_peer: BTreeMap<NodeId, Vec<Message>> = BTreeMap::new();
        for message in messages {
            if let Some(platter) = self.checks.platters.get(&node) {
                promise::on_sent(&message, platter)?;
            }
            by_peer.entry(message.to).or_default().push(message);
        }
        for (peer, messages) in by_peer {
            if self.net.is_unordered() {
                for message in messages {
                    self.transmit(node, peer, vec![message]);
                }
            } else {
                self.transmit(node, peer, messages);
            }
        }
        Ok(())
    }

    fn transmit(&mut self, from: NodeId, to: NodeId, messages: Vec<Message>) {
        let messages = if self.net.is_encoded() { recode(&messages) } else { messages };
        let (session, sent_us) = (self.node(from).life, self.now_us);
        match self.net.send(sent_us, from, to) {
            Fate::Lost { reported } => {
                self.counts.lost += messages.len() as u64;
                for message in &messages {
                    self.note(from, What::Lost { to, brief: Brief::of(message) });
                }
                if reported {
                    let at_us = sent_us + self.random.u64(1_000..100_000);
                    let unreachable = Event::Unreachable { node: from, life: session, peer: to };
                    self.queue.push(at_us, unreachable);
                }
            }
            Fate::Arrives { at_us, again_us } => {
                if let Some(again_us) = again_us {
                    let messages = messages.clone();
                    self.queue
                        .push(again_us, Event::Frame { from, to, session, sent_us, messages });
                }
                self.queue.push(at_us, Event::Frame { from, to, session, sent_us, messages });
            }
        }
    }

    /// Begins the next batch, if none is under way: everything that waits, written and not yet synced.
    pub(crate) fn pump_log(&mut self, node: NodeId) -> Checked {
        let now_us = self.now_us;
        let disk = &self.plan.disk;
        let mut sync_us = disk.sync_us + self.random.u64(..=disk.sync_jitter_us);
        if disk.tail_permille > 0 && self.random.u32(..1000) < disk.tail_permille {
            sync_us += disk.tail_us;
        }
        let at = &mut self.nodes[node.value() as usize - 1];
        let (life, slow_us) = (at.life, at.slow_sync_us);
        let Some(process) = &mut at.process else { return Ok(()) };
        let wal = &mut process.wal;
        if wal.busy || wal.waiting.is_empty() {
            return Ok(());
        }
        let count = wal.waiting.len().min(BATCH_TASKS_MAX);
        let mut batch = Vec::with_capacity(count);
        wal.syncing_since_us = wal.waiting.front().map(|task| task.since_us);
        for task in wal.waiting.drain(..count) {
            if let Some(ticket) = task.ticket {
                wal.syncing.insert((task.group, task.generation), ticket);
            }
            batch.push(task.write);
        }
        if at.full {
            return self.stop(node, "disk full", false);
        }
        if let Err(error) = wal.log.stage(&batch) {
            return Err(Oracle::Recovery.broken(format!("node {node} cannot write: {error}")));
        }
        wal.busy = true;
        self.platter(node).stage(&batch);
        self.queue.push(now_us + sync_us + slow_us, Event::Synced { node, life });
        Ok(())
    }

    pub(crate) fn on_synced(&mut self, node: NodeId, life: u64) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let until_us = self.node(node).trouble.hangs_until_us;
        if self.now_us < until_us {
            self.queue.push(until_us, Event::Synced { node, life });
            return Ok(());
        }
        let Some(process) = &mut self.node(node).process else { return Ok(()) };
        process.wal.busy = false;
        process.wal.syncing_since_us = None;
        let synced = process.wal.log.sync();
        let completed = std::mem::take(&mut process.wal.syncing);
        self.note(node, What::Synced(synced.is_ok()));
        if synced.is_err() {
            // The pages may be gone or not: that shows only when the power goes, too.
            let power = self.random.bool();
            return self.stop(node, "sync failed", power);
        }
        self.platter(node).sync_all(node)?;
        self.reload_groups(node)?;
        self.pump_log(node)?;
        for ((group, generation), ticket) in completed {
            if !self.is_alive(node, life) {
                return Ok(());
            }
            let resident = self.node(node).resident_mut(group);
            let Some(resident) = resident.filter(|r| r.generation == generation) else { continue };
            resident.group.persisted(ticket);
            self.input(node, group)?;
        }
        Ok(())
    }

    fn submit_fetch(&mut self, node: NodeId, group: GroupId, fetch: LogFetch) {
        let at_us = self.now_us + self.random.u64(50..2_000);
        let life = self.node(node).life;
        let Some(resident) = self.node(node).resident(group) else { return };
        let generation = resident.generation;
        self.queue.push(at_us, Event::Fetched { node, life, group, generation, fetch });
    }

    pub(crate) fn on_fetched(
        &mut self,
        node: NodeId,
        life: u64,
        group: GroupId,
        generation: Generation,
        fetch: LogFetch,
    ) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let Some(process) = &mut self.node(node).process else { return Ok(()) };
        let Some(resident) = process.residents.get_mut(&group) else { return Ok(()) };
        if resident.generation == generation {
            let read = process.wal.reader.read(group, fetch.from, fetch.to, fetch.bytes_max);
            resident.group.fetched(fetch, read.unwrap_or_default());
            self.input(node, group)?;
        }
        Ok(())
    }

    /// A read may look now: it does so here, beside running applies, and the answer goes to who asked.
    fn grant(
        &mut self,
        node: NodeId,
        group: GroupId,
        slot: Slot,
        term: Term,
        index: LogIndex,
    ) -> Checked {
        if let Some(request) = self.requests.get(&slot.request) {
            let floor = request.floor;
            Oracle::Linearizability.check(index >= floor, || {
                format!(
                    "node {node} grants read {} at {index}, but {floor} was committed before it \
                     was asked for",
                    slot.request
                )
            })?;
            let is_distrusted =
                self.node(node).resident(group).is_some_and(|r| r.group.is_distrusted());
            Oracle::StateMachineSafety.check(!is_distrusted, || {
                format!("node {node} grants a read of a state that it knows to be wrong")
            })?;
            if self.requests[&slot.request].ask.is_led() {
                self.grant_led(node, group, slot, term);
                return Ok(());
            }
            let query = self.requests[&slot.request].bytes.clone();
            let outcome = self.look_up(node, group, &query)?;
            self.answer(node, slot, Answer::Read { outcome })?;
        }
        Ok(())
    }

    /// What the state of a node answers to a query.
    pub(crate) fn look_up(
        &mut self,
        node: NodeId,
        group: GroupId,
        query: &Bytes,
    ) -> Result<Bytes, crate::check::Violation> {
        let broken = |error: String| Oracle::Assertion.broken(format!("node {node}: {error}"));
        let at = self.node(node);
        let Some(resident) = at.resident(group) else {
            return Err(broken(format!("no group {group} to read from")));
        };
        let view = at.state.view();
        let row = GroupRow::load(group, &*view).map_err(|error| broken(error.to_string()))?;
        let meta = row.map(|row| row.meta).unwrap_or_default();
        let scoped = ScopedView::new(&*view, resident.kind.scope(), group);
        resident.kind.read(group, query, &meta, &scoped).map_err(|error| broken(error.to_string()))
    }

    pub(crate) fn groups_of(&self, node: NodeId) -> Vec<GroupId> {
        let process = self.nodes[node.value() as usize - 1].process.as_ref();
        let groups = process.map(|process| process.host.groups().map(|(group, _)| group));
        groups.map(Iterator::collect).unwrap_or_default()
    }
}

/// As between processes: what cannot be encoded does not arrive.
fn recode(messages: &[Message]) -> Vec<Message> {
    let mut frame = BytesMut::new();
    codec::put_frame_header(&mut frame);
    for message in messages {
        codec::put_message(&mut frame, message);
    }
    let (read, unknown) = codec::take_frame(frame.freeze()).expect("our own frame");
    assert_eq!((read.as_slice(), unknown), (messages, 0), "a frame reads back as it was written");
    read
}
