//! What machines want because time has passed, as `node::ticker` and `node::actor` do it: kinds hear who leads, are
//! ticked by the clock of their node, and have their commands proposed to the group at hand; and the leader alone
//! answers what only it knows.

use std::sync::Arc;

use bytes::Bytes;
use quorate_group::{Leadership, Refusal};
use quorate_raft::Role;
use quorate_store::{GroupRow, ScopedView, StateEngine};
use quorate_types::{Due, GroupId, Led, MachineKind, NodeId, ReadError, Term, defect};

use crate::check::{Checked, Oracle};
use crate::event::{Answer, Event};
use crate::node::Slot;
use crate::world::World;

/// The request of a slot of which a machine has to hear. No client's has this number.
pub(crate) const DUE: u64 = u64::MAX - 1;

/// A granted read is looked up within this, by a task of its own.
const LOOKED_UP_US: u64 = 2_000;

impl World {
    /// The leadership of a group has changed: before any read of the new term is granted, its kind hears of it.
    pub(crate) fn tell_kind(&mut self, node: NodeId, group: GroupId, now: Leadership) {
        let leads = now.role == Role::Leader && now.serving;
        let Some(resident) = self.node(node).resident(group) else { return };
        resident.kind.on_leadership(group, leads.then_some(now.term));
        if leads {
            let now_us = self.now_us;
            self.checks.group(group).tenure.on_promoted(now_us);
        }
    }

    /// Asks the kinds of a node what is due.
    pub(crate) fn tick_kinds(&mut self, node: NodeId) {
        let (now, now_us) = (self.moment(node), self.now_us);
        let timeout_us =
            self.plan.cluster.tick_us * u64::from(self.plan.cluster.election_ticks_max);
        let at = self.node(node);
        let life = at.life;
        let Some(process) = &mut at.process else { return };
        let mut due = Vec::new();
        for resident in process.residents.values() {
            let kind = &resident.kind;
            due.extend(kind.tick(now).into_iter().map(|due| (Arc::clone(kind), due)));
        }
        for (kind, due) in due {
            // As when too much is proposed already.
            if self.random.u8(..16) == 0 {
                kind.not_proposed(&due);
                continue;
            }
            // It waits in the mailbox of its group; most of the time not for long.
            let wait_us = match self.random.u8(..8) {
                _ if self.healing.is_some() => 0,
                0 => self.random.u64(..2 * timeout_us),
                1 => self.random.u64(..10_000),
                _ => 0,
            };
            let Some(process) = &mut self.node(node).process else { return };
            process.last_due += 1;
            let number = process.last_due;
            process.dues.insert(number, (kind, due));
            self.queue.push(now_us + wait_us, Event::Due { node, life, number });
        }
    }

    pub(crate) fn on_due(&mut self, node: NodeId, life: u64, number: u32) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let Some(process) = &mut self.node(node).process else { return Ok(()) };
        let Some((kind, due)) = process.dues.get(&number) else { return Ok(()) };
        let (group, command) = (due.group, due.command.clone());
        Oracle::Tenure.check(!kind.grows(&command) || defect!(RoomMakersRefused), || {
            format!("what ends a lease takes room: {due:?}")
        })?;
        let Some(resident) = process.residents.get_mut(&group) else {
            self.due_answered(node, number, &Answer::NotSent);
            return Ok(());
        };
        let slot = Slot { request: DUE, attempt: number, gateway: node };
        resident.group.propose(command, slot);
        self.input(node, group)
    }

    /// What became of a command that a machine wanted: if it certainly was not proposed, it hears of that.
    pub(crate) fn on_due_answered(
        &mut self,
        node: NodeId,
        number: u32,
        answer: &Answer,
    ) -> Checked {
        let Some(process) = &self.node(node).process else { return Ok(()) };
        if let (Answer::Written { id, .. }, Some((_, due))) = (answer, process.dues.get(&number)) {
            let (group, command, id) = (due.group, due.command.clone(), *id);
            self.acknowledge(group, id, &command)?;
        }
        self.due_answered(node, number, answer);
        Ok(())
    }

    fn due_answered(&mut self, node: NodeId, number: u32, answer: &Answer) {
        let Some(process) = &mut self.node(node).process else { return };
        let due: Option<(Arc<dyn MachineKind>, Due)> = process.dues.remove(&number);
        let may_be_in_log = matches!(
            answer,
            Answer::Written { .. } | Answer::Read { .. } | Answer::Refused(Refusal::Unknown)
        );
        if let Some((kind, due)) = due.filter(|_| !may_be_in_log) {
            kind.not_proposed(&due);
        }
    }

    /// A read for the leader is granted in `term`; who waits for it looks a little later.
    pub(crate) fn grant_led(&mut self, node: NodeId, group: GroupId, slot: Slot, term: Term) {
        let life = self.node(node).life;
        let wait_us = if self.random.bool() { 0 } else { self.random.u64(..LOOKED_UP_US) };
        self.queue.push(self.now_us + wait_us, Event::Granted { node, life, group, slot, term });
    }

    pub(crate) fn on_granted(
        &mut self,
        node: NodeId,
        life: u64,
        group: GroupId,
        slot: Slot,
        term: Term,
    ) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let Some(request) = self.requests.get(&slot.request) else { return Ok(()) };
        let query = request.bytes.clone();
        let answer = self.read_led(node, group, &query, term)?;
        self.answer(node, slot, answer)
    }

    /// Answers as the leader of `term`.
    pub(crate) fn read_led(
        &mut self,
        node: NodeId,
        group: GroupId,
        query: &Bytes,
        term: Term,
    ) -> Result<Answer, crate::check::Violation> {
        let broken = |error: String| Oracle::Assertion.broken(format!("node {node}: {error}"));
        let led = Led { term, now: self.moment(node) };
        let at = self.node(node);
        let Some(resident) = at.resident(group) else { return Ok(Answer::NotSent) };
        let view = at.state.view();
        let row = GroupRow::load(group, &*view).map_err(|error| broken(error.to_string()))?;
        let meta = row.map(|row| row.meta).unwrap_or_default();
        let scoped = ScopedView::new(&*view, resident.kind.scope(), group);
        match resident.kind.read_led(group, query, led, &meta, &scoped) {
            Ok(outcome) => Ok(Answer::Read { outcome }),
            // The asker looks again, and asks again.
            Err(ReadError::NotNow) => {
                Ok(Answer::Refused(Refusal::NotLeader { leader: None, term }))
            }
            Err(error) => Err(broken(error.to_string())),
        }
    }
}
