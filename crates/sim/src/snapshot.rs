//! Snapshots: made at a leader, sent beside the messages, put in the place of state and log; and the log that is cut
//! because of them.
//!
//! 1. A leader asks for one ([`World::send_snapshot`]): the rows of the group as they are, and what they stand for.
//! 2. It arrives as a whole, lies on the receiver's disk under its name ([`publish`]), and is told to the replica, in the leader's name.
//! 3. The replica wants it ([`World::begin_install`]): from here on a start that finds it does it again. First the
//!    rows, made durable; then the log begins anew behind it ([`World::on_install`]). Appends that come meanwhile wait
//!    behind that.

use bytes::Bytes;
use quorate_group::Generation;
use quorate_raft::SnapshotRequest;
use quorate_store::{GroupRow, Overlay, Rows, ScopedView, StateEngine, layout};
use quorate_types::machine::{Direction, RowScope};
use quorate_types::{
    Body, GroupId, LogIndex, Message, NodeId, SnapshotMeta, StateBatch, StateReader,
};
use quorate_wal::directory::publish;
use quorate_wal::{LogStore, Write};

use crate::check::{Checked, Oracle, Violation};
use crate::event::Event;
use crate::feed::Ring;
use crate::net::Fate;
use crate::node::{Node, Task};
use crate::trace::What;
use crate::world::World;

/// A snapshot that was lost is missed after this.
const LOST_US: u64 = 300_000;

/// A snapshot of a group.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) meta: SnapshotMeta,
    row: GroupRow,
    /// By the names that the machine gives them.
    rows: Vec<(Bytes, Bytes)>,
}

impl World {
    /// A leader wants a snapshot sent to a peer.
    pub(crate) fn send_snapshot(
        &mut self,
        node: NodeId,
        group: GroupId,
        request: SnapshotRequest,
    ) -> Checked {
        let at = &self.nodes[node.value() as usize - 1];
        let life = at.life;
        let Some(resident) = at.resident(group) else { return Ok(()) };
        let generation = resident.generation;
        let (replica, to) = (resident.group.replica(), request.to);
        Oracle::StateMachineSafety.check(!resident.group.is_distrusted(), || {
            format!("node {node} sends a snapshot of a state that it knows to be wrong")
        })?;
        let meta = replica.snapshot_meta(resident.applied.index);
        // A wrong state that nobody knows of yet does not get around: more than one would be too many.
        let Some(meta) = meta.filter(|_| !self.is_spoiled(node, group)) else {
            let (at_us, last) = (self.now_us + LOST_US, None);
            self.queue.push(at_us, Event::SnapshotSent { node, life, group, generation, to, last });
            return Ok(());
        };
        let view = at.state.view();
        let row = GroupRow::load(group, &*view).map_err(broken)?.unwrap_or_default();
        let scoped = ScopedView::new(&*view, resident.kind.scope(), group);
        let rows = rows_of(&scoped, resident.kind.scope())?;
        let body = Body::Snapshot { meta: meta.clone() };
        let message = Message { group, from: node, to, term: replica.term(), body };
        let snapshot = Box::new(Snapshot { meta, row, rows });
        let sent_us = self.now_us;
        match self.net.send(sent_us, node, to) {
            Fate::Arrives { at_us, .. } => {
                let took_us = self.random.u64(1_000..100_000);
                let at_us = at_us + took_us;
                self.queue
                    .push(at_us, Event::Snapshot { life, generation, sent_us, message, snapshot });
            }
            Fate::Lost { .. } => {
                let last = None;
                self.queue.push(
                    sent_us + LOST_US,
                    Event::SnapshotSent { node, life, group, generation, to, last },
                );
            }
        }
        Ok(())
    }

    pub(crate) fn on_snapshot(
        &mut self,
        life: u64,
        generation: Generation,
        sent_us: u64,
        message: Message,
        snapshot: Box<Snapshot>,
    ) -> Checked {
        let Message { group, from, to, .. } = message;
        let at = self.node(to);
        let arrived = at.process.is_some();
        let last = arrived.then_some(snapshot.meta.last.index);
        if arrived && at.installing.is_none() {
            let name = file_name(group);
            let part = format!("{name}.part");
            at.files.write(&part, file_content(&snapshot.meta));
            publish(&mut at.files, &part, &name).map_err(broken)?;
            at.received.insert(group, *snapshot);
        }
        let at_us = self.now_us + 1_000;
        self.queue
            .push(at_us, Event::SnapshotSent { node: from, life, group, generation, to, last });
        if arrived { self.on_frame(from, to, life, sent_us, vec![message]) } else { Ok(()) }
    }

    pub(crate) fn on_snapshot_sent(
        &mut self,
        node: NodeId,
        life: u64,
        group: GroupId,
        generation: Generation,
        to: NodeId,
        last: Option<LogIndex>,
    ) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let resident = self.node(node).resident_mut(group);
        if let Some(resident) = resident.filter(|r| r.generation == generation) {
            resident.group.snapshot_sent(to, last);
        }
        self.input(node, group)
    }

    /// A replica wants the snapshot that was announced to it.
    pub(crate) fn begin_install(
        &mut self,
        node: NodeId,
        group: GroupId,
        meta: SnapshotMeta,
    ) -> Checked {
        self.checks.on_snapshot(group, node, &meta)?;
        let at_us = self.now_us + self.plan.disk.sync_us + 1;
        let at = self.node(node);
        let life = at.life;
        // Another one may have come since; or another group is at it: then it is asked for again.
        let found = at.received.remove(&group).filter(|found| found.meta == meta);
        let is_free = at.installing.is_none();
        let Some(resident) = at.resident_mut(group) else { return Ok(()) };
        match found {
            Some(snapshot) if is_free => {
                resident.held = Some(Vec::new());
                at.installing = Some((group, snapshot));
                self.queue.push(at_us, Event::Install { node, life, rows_written: false });
                self.crashes_installing(node, 0).map(drop)
            }
            Some(_) | None => {
                resident.group.install_failed();
                self.input(node, group)
            }
        }
    }

    pub(crate) fn on_install(&mut self, node: NodeId, life: u64, rows_written: bool) -> Checked {
        if !self.is_alive(node, life) {
            return Ok(());
        }
        let at_us = self.now_us + self.plan.disk.sync_us + 500;
        let at = &mut self.nodes[node.value() as usize - 1];
        let Some((group, snapshot)) = at.installing.clone() else { return Ok(()) };
        if !rows_written {
            // The machine of the old rows must not write beside the new ones.
            if let Some(resident) = at.resident_mut(group) {
                resident.sweeping = false;
            }
            replace_rows(at, group, &snapshot)?;
            if group == GroupId::FIRST_DATA {
                at.spoil.at = None;
            }
            // Nor may what it remembers be read beside them: it goes with its rows, as on a node.
            reopen(at, group, &snapshot)?;
            self.queue.push(at_us, Event::Install { node, life, rows_written: true });
            return self.crashes_installing(node, 1).map(drop);
        }
        let label = at.label_of(group);
        let Some(process) = &mut at.process else { return Ok(()) };
        if process.wal.busy || process.wal.waiting.iter().any(|task| task.group == group) {
            // Its earlier appends come first.
            self.queue.push(at_us, Event::Install { node, life, rows_written: true });
            return Ok(());
        }
        let create = [Write::Create { group, label, snapshot: snapshot.meta.clone() }];
        if process.wal.log.write(&create).is_err() {
            self.platter(node).stage(&create);
            return self.stop(node, "sync failed", true);
        }
        self.platter(node).stage(&create);
        self.platter(node).sync_all(node)?;
        if self.crashes_installing(node, 2)? {
            return Ok(());
        }
        self.finish_install(node, group, &snapshot)
    }

    fn finish_install(&mut self, node: NodeId, group: GroupId, snapshot: &Snapshot) -> Checked {
        self.checks.group(group).apply.on_started(node, snapshot.meta.last.index);
        self.note(node, What::Installed { group, last: snapshot.meta.last.index });
        let at = self.node(node);
        at.installing = None;
        at.files.remove(&file_name(group));
        let Some(process) = &mut at.process else { return Ok(()) };
        let Some(resident) = process.residents.get_mut(&group) else { return Ok(()) };
        resident.applied = snapshot.meta.last;
        resident.membership = snapshot.meta.membership.clone();
        resident.sweeping = true;
        let held: Vec<Task> = resident.held.take().unwrap_or_default();
        process.wal.waiting.extend(held);
        resident.group.installed(&snapshot.meta);
        self.pump_log(node)?;
        self.input(node, group)
    }

    /// A start that finds an install begun does it again, before anything else.
    pub(crate) fn install_again(&mut self, node: NodeId) -> Checked {
        let at = &mut self.nodes[node.value() as usize - 1];
        let Some((group, snapshot)) = at.installing.take() else { return Ok(()) };
        if at.damaged {
            return Ok(());
        }
        let file = at.files.read(&file_name(group));
        Oracle::Recovery.check(file == Some(file_content(&snapshot.meta)), || {
            format!("node {node}: the snapshot that is being installed is not there, or not whole")
        })?;
        replace_rows(at, group, &snapshot)?;
        if group == GroupId::FIRST_DATA {
            at.spoil.at = None;
        }
        let label = at.label_of(group);
        let create = [Write::Create { group, label, snapshot: snapshot.meta.clone() }];
        let written = at.disk.open().write(&create);
        written.map_err(|error| Oracle::Recovery.broken(error.to_string()))?;
        self.node(node).files.remove(&file_name(group));
        self.platter(node).stage(&create);
        self.platter(node).sync_all(node)
    }

    /// Cuts the logs of a node: up to what its state has made durable, less a tail for those who lag a little.
    pub(crate) fn cut_logs(&mut self, node: NodeId) -> Checked {
        for group in self.groups_of(node) {
            let keep = self.random.u64(..=self.plan.cluster.log_tail);
            let since_us = self.now_us;
            let at = &mut self.nodes[node.value() as usize - 1];
            let row = at.state.durable(&layout::group(group)).map_err(broken)?;
            let Some(row) = row else { continue };
            let durable = GroupRow::decode(row).map_err(broken)?.applied.index;
            let Some(process) = &mut at.process else { return Ok(()) };
            let Some(resident) = process.residents.get_mut(&group) else { continue };
            let replica = resident.group.replica();
            let end = durable.min(replica.applied_index()).min(replica.durable());
            let through = LogIndex(end.value().saturating_sub(keep));
            let is_needed = resident.held.is_some() || resident.group.is_distrusted();
            if through <= replica.base().index || is_needed {
                continue;
            }
            resident.group.compact(through);
            let write = Write::TruncatePrefix { group, through };
            let generation = resident.generation;
            let ticket = None;
            process.wal.waiting.push_back(Task { group, generation, ticket, write, since_us });
            self.pump_log(node)?;
            self.input(node, group)?;
        }
        Ok(())
    }
}

/// The file of a group's snapshot that was received.
fn file_name(group: GroupId) -> String {
    format!("in-{group}")
}

/// Stands for what is in it: enough to tell a whole file from one that is not.
fn file_content(meta: &SnapshotMeta) -> Bytes {
    Bytes::from(format!("{} {:?}", meta.last, meta.membership))
}

fn broken(error: impl ToString) -> Violation {
    Oracle::Assertion.broken(error.to_string())
}

/// Opens the machine of `group` anew, from the rows of `snapshot`.
pub(crate) fn reopen(at: &mut Node, group: GroupId, snapshot: &Snapshot) -> Checked {
    let Some(process) = &mut at.process else { return Ok(()) };
    let Some(resident) = process.residents.get_mut(&group) else { return Ok(()) };
    let view = at.state.view();
    let scoped = ScopedView::new(&*view, resident.kind.scope(), group);
    let opened = resident.kind.open(group, &snapshot.row.meta, &scoped);
    resident.machine = opened.map_err(broken)?;
    resident.ring = Ring::default();
    resident.machine.take_feed().into_iter().for_each(|feed| resident.ring.publish(feed));
    Ok(())
}

/// All rows of a machine, by its own names.
fn rows_of(rows: &dyn StateReader, scope: RowScope) -> Result<Vec<(Bytes, Bytes)>, Violation> {
    let mut found = Vec::new();
    let (start, end) = bounds(scope);
    rows.scan(start, end, Direction::Forward, &mut |key, value| {
        found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        std::ops::ControlFlow::Continue(())
    })
    .map_err(broken)?;
    Ok(found)
}

/// Where a machine's own names begin and end.
const fn bounds(scope: RowScope) -> (&'static [u8], Option<&'static [u8]>) {
    match scope {
        RowScope::Group => (&[], None),
        RowScope::Keyspace => (&[layout::TAG_CURRENT], Some(&[layout::TAG_HISTORY + 1])),
    }
}

/// Puts the rows of a snapshot in the place of those of the group, durably.
pub(crate) fn replace_rows(node: &Node, group: GroupId, snapshot: &Snapshot) -> Checked {
    let scope = node.scope_of(group);
    let rows: Rows = {
        let mut overlay = Overlay::new(node.state.view());
        let mut batch = overlay.scoped(scope, group);
        for (key, _) in rows_of(&batch, scope)? {
            batch.delete(&key);
        }
        for (key, value) in &snapshot.rows {
            batch.put(key, value);
        }
        overlay.put_group_row(group, &snapshot.row);
        overlay.into_rows()
    };
    node.state.write(rows).map_err(broken)?;
    node.state.flush().map_err(broken)
}
