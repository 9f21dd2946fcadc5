//! A node of a script: a replica, its disk, and what is on the way to it and to the state machine.

use std::collections::VecDeque;

use bytes::Bytes;
use quorate_raft::{Config, Ready, Replica};
use quorate_types::{Entry, LogIndex, Message, Moment, NodeId, Payload, SnapshotMeta};

use crate::describe;
use crate::disk::Disk;
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
    content: Vec<(LogIndex, Bytes)>,
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
        while self.disk.sync().is_some() {}
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
        let Ready { append, mut messages, committed, fetch, .. } = ready;
        if let Some(append) = append {
            self.disk.write(append);
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
        let Some(append) = self.disk.sync() else { return Ok(Vec::new()) };
        self.replica()?.persisted(append.ticket);
        Ok(append.release)
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
    let Ready { append, messages, committed, reads, refused_reads, fetch, membership, role } =
        ready;
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
