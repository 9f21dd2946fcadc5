//! I8, and what lies on a log's disk: a slow twin of it, kept from outside.
//!
//! The twin takes part in nothing. It says what a quorum holds even while its nodes are down, and what a
//! restart must find.

use std::collections::{BTreeMap, VecDeque};

use quorate_types::{Entry, EntryId, GroupId, HardState, LogIndex, NodeId};
use quorate_wal::{RecoveredLog, Write};

use super::{Checked, Oracle};

/// The disk of one node's logs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Platter {
    logs: BTreeMap<GroupId, PlatterLog>,
    /// Written, not synced.
    staged: VecDeque<Vec<Write>>,
}

/// One group's log on a disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlatterLog {
    pub(crate) hard_state: HardState,
    base: EntryId,
    /// Follow the base without a gap.
    entries: Vec<EntryId>,
}

impl PlatterLog {
    pub(crate) fn last(&self) -> EntryId {
        self.entries.last().copied().unwrap_or(self.base)
    }

    /// True when this very entry is there, or was there before it was truncated as part of a snapshot.
    pub(crate) fn holds(&self, id: EntryId) -> bool {
        if id.index <= self.base.index {
            return true;
        }
        let at = id.index.since(self.base.index) as usize - 1;
        self.entries.get(at) == Some(&id)
    }

    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let kept = first.id.index.since(self.base.index) as usize - 1;
        self.entries.truncate(kept);
        self.entries.extend(entries.iter().map(|entry| entry.id));
    }

    fn term_starts(&self) -> Vec<EntryId> {
        let mut starts: Vec<EntryId> = Vec::new();
        for &id in &self.entries {
            if starts.last().is_none_or(|run| run.term != id.term) {
                starts.push(id);
            }
        }
        starts
    }
}

impl Platter {
    pub(crate) fn log(&self, group: GroupId) -> Option<&PlatterLog> {
        self.logs.get(&group)
    }

    /// What a node is founded with.
    pub(crate) fn found(&mut self, recovered: &BTreeMap<GroupId, RecoveredLog>) {
        for (&group, log) in recovered {
            let mut entries = Vec::new();
            let mut runs = log.terms.iter().peekable();
            while let Some(&run) = runs.next() {
                let behind = log.last.index.next();
                let end = runs.peek().map_or(behind, |next| next.index).value();
                let indexes = run.index.value()..end;
                entries.extend(indexes.map(|index| EntryId::new(run.term, LogIndex(index))));
            }
            let base = log.snapshot.last;
            self.logs.insert(group, PlatterLog { hard_state: log.hard_state, base, entries });
        }
    }

    pub(crate) fn stage(&mut self, batch: &[Write]) {
        self.staged.push_back(batch.to_vec());
    }

    /// The oldest `batches` staged batches are durable.
    pub(crate) fn sync(&mut self, node: NodeId, batches: usize) -> Checked {
        for batch in self.staged.drain(..batches.min(self.staged.len())).collect::<Vec<_>>() {
            for write in batch {
                self.write(node, write)?;
            }
        }
        Ok(())
    }

    /// All staged batches are durable.
    pub(crate) fn sync_all(&mut self, node: NodeId) -> Checked {
        self.sync(node, usize::MAX)
    }

    /// The power went: `survived` batches had reached the disk all the same.
    pub(crate) fn crash(&mut self, node: NodeId, survived: usize) -> Checked {
        self.sync(node, survived)?;
        self.staged.clear();
        Ok(())
    }

    /// A process has recovered this.
    pub(crate) fn on_recovered(
        &self,
        node: NodeId,
        recovered: &BTreeMap<GroupId, RecoveredLog>,
    ) -> Checked {
        let groups = self.logs.keys().eq(recovered.keys());
        Oracle::Recovery
            .check(groups, || format!("node {node}: found logs of {:?}", recovered.keys()))?;
        recovered.iter().try_for_each(|(&group, found)| self.on_found(node, group, found))
    }

    /// The log of a group is read.
    pub(crate) fn on_found(&self, node: NodeId, group: GroupId, found: &RecoveredLog) -> Checked {
        let Some(log) = self.logs.get(&group) else { return Ok(()) };
        let same = found.hard_state == log.hard_state
            && found.last == log.last()
            && found.snapshot.last == log.base
            && found.terms == log.term_starts();
        Oracle::Recovery.check(same, || {
            format!(
                "node {node}, group {group}: found {:?} and entries {}..{}, but {:?} and {}..{} were \
                 synced",
                found.hard_state,
                found.snapshot.last,
                found.last,
                log.hard_state,
                log.base,
                log.last(),
            )
        })
    }

    fn write(&mut self, node: NodeId, write: Write) -> Checked {
        match write {
            Write::Create { group, snapshot, .. } => {
                let log = self.logs.entry(group).or_default();
                log.base = snapshot.last;
                log.entries.clear();
            }
            Write::Append { group, hard_state, entries } => {
                let log = self.logs.entry(group).or_default();
                if let Some(new) = hard_state {
                    let old = log.hard_state;
                    let same_vote = old.vote.is_none() || old.vote == new.vote;
                    let holds = new.term > old.term || new.term == old.term && same_vote;
                    Oracle::SingleVote.check(holds, || {
                        format!("node {node}, group {group}: {new:?} is written over {old:?}")
                    })?;
                    log.hard_state = new;
                }
                log.append(&entries);
            }
            Write::TruncatePrefix { group, through } => {
                let Some(log) = self.logs.get_mut(&group) else { return Ok(()) };
                let count = through.since(log.base.index) as usize;
                if let Some(&base) = count.checked_sub(1).and_then(|at| log.entries.get(at)) {
                    log.base = base;
                    log.entries.drain(..count);
                }
            }
            // Changes nothing that is watched here: the log begins anew with the `Create` that follows.
            Write::Intend { .. } => {}
            Write::Destroy { group } => {
                self.logs.remove(&group);
            }
        }
        Ok(())
    }
}
