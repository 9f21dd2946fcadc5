//! A node of a script: a replica, its disk, and what is on the way to it and to the state machine.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use quorate_raft::{Config, Ready, Replica};
use quorate_types::{
    Body, Entry, EntryId, LogIndex, Message, Moment, NodeId, Payload, SnapshotMeta,
};

use crate::describe;
use crate::disk::{Content, Disk, Write};
use crate::error::ScriptError;
use crate::output::Output;

#[derive(Debug)]
pub(crate) struct Node {
    config: Config,
    /// With asynchronous storage writes a ready only starts its write and its apply; the script
    /// says when they are done. Without, they are done at once.
    is_async: bool,
    /// `None` while the node is down.
    replica: Option<Replica>,
    disk: Disk,
    applying: VecDeque<Vec<Entry>>,
    applied: LogIndex,
    /// The state machine: every command applied, with its index. What the first snapshot contains
    /// is at its index.
    content: Content,
    /// The contents of snapshots that were received.
    arrived: BTreeMap<EntryId, Content>,
    starts: u64,
    /// The node's own clock; it goes on while the node is down.
    now: Moment,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        snapshot: SnapshotMeta,
        content: Option<Bytes>,
        is_async: bool,
    ) -> Self {
        let applied = snapshot.last.index;
        let mut node = Self {
            config,
            is_async,
            replica: None,
            disk: Disk::new(snapshot),
            applying: VecDeque::new(),
            applied,
            content: content.map(|content| (applied, content)).into_iter().collect(),
            arrived: BTreeMap::new(),
            starts: 0,
            now: Moment::ZERO,
        };
        node.start();
        node
    }

    /// Starts the node from what its disk holds.
    pub(crate) fn start(&mut self) {
        self.starts += 1;
        let config = Config { seed: self.config.seed + 1000 * self.starts, ..self.config.clone() };
        self.replica = Some(Replica::new(config, self.disk.recover(self.applied)));
    }

    /// The node stops. Unsynced appends reach the disk, unacknowledged, or are lost.
    pub(crate) fn crash(&mut self, lose_unsynced: bool) {
        if lose_unsynced {
            self.disk.lose_unsynced();
        }
        while let Some(write) = self.disk.sync() {
            if let Write::Install(meta, content) = write {
                self.restore(&meta, content);
            }
        }
        self.applying.clear();
        self.replica = None;
    }

    /// The state machine forgets what it applied behind `applied`; an error when it was not that
    /// far, or the first snapshot was farther.
    pub(crate) fn lose_applied(&mut self, applied: LogIndex) -> Result<(), ()> {
        if applied < self.disk.base() || applied > self.applied {
            return Err(());
        }
        self.applied = applied;
        self.content.retain(|&(index, _)| index <= applied);
        Ok(())
    }

    pub(crate) fn id(&self) -> NodeId {
        self.config.node
    }

    pub(crate) fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    /// The replica, if the node is up.
    pub(crate) fn view(&self) -> Option<&Replica> {
        self.replica.as_ref()
    }

    pub(crate) fn replica(&mut self) -> Result<&mut Replica, ScriptError> {
        self.replica.as_mut().ok_or_else(|| ScriptError::Down(self.config.node.value()))
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.has_ready(self.now))
    }

    /// A tick of the node: its clock goes on by as much.
    pub(crate) fn tick(&mut self) -> Result<(), ScriptError> {
        self.advance(self.config.tick_us);
        self.replica()?.tick();
        Ok(())
    }

    /// The node's clock goes on, and no tick comes.
    pub(crate) fn advance(&mut self, us: u64) {
        self.now = self.now.plus_us(us);
    }

    pub(crate) fn has_append(&self) -> bool {
        self.is_up() && self.disk.has_unsynced()
    }

    pub(crate) fn has_apply(&self) -> bool {
        !self.applying.is_empty()
    }

    pub(crate) fn applied(&self) -> LogIndex {
        self.applied
    }

    pub(crate) fn content(&self) -> &[(LogIndex, Bytes)] {
        &self.content
    }

    /// The entries in the log, written and to be written.
    pub(crate) fn log(&self) -> Vec<Entry> {
        self.disk.written()
    }

    /// Takes a ready, says what is in it, and starts it. Returns the messages that leave.
    pub(crate) fn process_ready(
        &mut self,
        output: &mut Output,
    ) -> Result<Vec<Message>, ScriptError> {
        let now = self.now;
        let replica = self.replica()?;
        // As a driver does: every turn ends with one, if only to say what time it is.
        let ready = replica.take_ready(now);
        if ready.is_empty() {
            output.line("no ready");
            return Ok(Vec::new());
        }
        describe_ready(&ready, output);
        let Ready { append, mut messages, committed, fetch, install, snapshot_requests, .. } =
            ready;
        if let Some(append) = append {
            self.disk.write(Write::Append(append));
        }
        if let Some(meta) = install {
            // What was to be applied before is part of it.
            self.applying.clear();
            let content = self.arrived.get(&meta.last).cloned().unwrap_or_default();
            self.disk.write(Write::Install(meta, content));
        }
        for request in snapshot_requests {
            messages.push(self.snapshot_for(request.to)?);
        }
        for fetch in fetch {
            let entries = self.disk.read(&fetch);
            self.replica()?.fetched(fetch, entries);
        }
        if !committed.is_empty() {
            self.applying.push_back(committed);
        }
        if !self.is_async {
            while self.has_append() {
                messages.extend(self.sync()?);
            }
            while self.has_apply() {
                self.apply()?;
            }
        }
        Ok(messages)
    }

    /// Syncs the oldest append; returns what it releases.
    pub(crate) fn process_append(
        &mut self,
        output: &mut Output,
    ) -> Result<Vec<Message>, ScriptError> {
        if !self.has_append() {
            output.line("no append to perform");
            return Ok(Vec::new());
        }
        let released = self.sync()?;
        for message in &released {
            output.line(describe::message(message));
        }
        Ok(released)
    }

    /// Applies the oldest run of committed entries.
    pub(crate) fn process_apply(&mut self, output: &mut Output) -> Result<(), ScriptError> {
        if self.has_apply() {
            self.apply()?;
            output.line(format!("applied {}", self.applied));
        } else {
            output.line("no apply to perform");
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<Vec<Message>, ScriptError> {
        match self.disk.sync() {
            Some(Write::Append(append)) => {
                self.replica()?.persisted(append.ticket);
                Ok(append.release)
            }
            Some(Write::Install(meta, content)) => {
                self.restore(&meta, content);
                self.replica()?.installed(&meta);
                Ok(Vec::new())
            }
            None => Ok(Vec::new()),
        }
    }

    fn restore(&mut self, meta: &SnapshotMeta, content: Content) {
        self.applied = meta.last.index;
        self.content = content;
    }

    /// A snapshot of everything applied, for `to`.
    pub(crate) fn snapshot_for(&mut self, to: NodeId) -> Result<Message, ScriptError> {
        let (from, applied) = (self.config.node, self.applied);
        let replica = self.replica()?;
        let meta =
            replica.snapshot_meta(applied).ok_or_else(|| ScriptError::NoSnapshot(from.value()))?;
        let (group, term) = (replica.config().group, replica.term());
        Ok(Message { group, from, to, term, body: Body::Snapshot { meta } })
    }

    /// The content of a snapshot has arrived.
    pub(crate) fn receive(&mut self, last: EntryId, content: Content) {
        self.arrived.insert(last, content);
    }

    /// Gives up the log up to `index`; `None` when that is not applied.
    pub(crate) fn compact(&mut self, index: LogIndex) -> Result<Option<()>, ScriptError> {
        let applied = self.applied;
        let replica = self.replica()?;
        if index <= replica.base().index {
            return Ok(Some(()));
        }
        let Some(meta) = replica.snapshot_meta(index).filter(|_| index <= applied) else {
            return Ok(None);
        };
        replica.compact(index);
        self.disk.compact(meta);
        Ok(Some(()))
    }

    fn apply(&mut self) -> Result<(), ScriptError> {
        for entry in self.applying.pop_front().unwrap_or_default() {
            self.applied = entry.id.index;
            if let Payload::Command(command) = entry.payload {
                self.content.push((self.applied, command));
            }
        }
        let applied = self.applied;
        self.replica()?.applied(applied);
        Ok(())
    }
}

fn describe_ready(ready: &Ready, output: &mut Output) {
    let Ready {
        append,
        messages,
        committed,
        reads,
        refused_reads,
        fetch,
        install,
        snapshot_requests,
        membership,
        role,
    } = ready;
    if let Some(change) = role {
        output.line(describe::role_change(change));
    }
    if let Some(membership) = membership {
        output.line(format!("members {}", describe::membership(membership)));
    }
    if let Some(append) = append {
        output.line(describe::append(append));
        for message in &append.release {
            output.line(format!("  after: {}", describe::message(message)));
        }
    }
    for message in messages {
        output.line(describe::message(message));
    }
    if !committed.is_empty() {
        output.line(format!("committed {}", describe::entries(committed)));
    }
    if let Some(meta) = install {
        let members = describe::membership(&meta.membership);
        output.line(format!("install {} {members}", meta.last));
    }
    for request in snapshot_requests {
        output.line(format!("send snapshot to {}, at least {}", request.to, request.min_index));
    }
    for fetch in fetch {
        output.line(format!("fetch {}..={}", fetch.from, fetch.to));
    }
    for read in reads {
        output.line(describe::read(read));
    }
    for id in refused_reads {
        output.line(format!("read {} refused", id.0));
    }
}
