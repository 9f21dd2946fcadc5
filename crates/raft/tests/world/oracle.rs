//! What must always hold, watched from outside.

use std::collections::{BTreeMap, BTreeSet};

use quorate_raft::{ReadId, Replica, Role};
use quorate_types::{Body, Entry, EntryId, LogIndex, Message, NodeId, Payload, SnapshotMeta, Term};

use super::disk::Disk;

/// The history that the checks need; nothing in it is ever forgotten.
#[derive(Default)]
pub(crate) struct Oracle {
    leaders: BTreeMap<Term, NodeId>,
    /// Each entry ever handed to a disk, with what came before it.
    entries: BTreeMap<(LogIndex, Term), (Payload, EntryId)>,
    /// What is committed, and the term in which that was first seen.
    committed: BTreeMap<LogIndex, (EntryId, Term)>,
    /// The highest index known to be committed when each read was asked for.
    reads: BTreeMap<ReadId, LogIndex>,
    pub(crate) elections: usize,
    pub(crate) reads_served: usize,
    pub(crate) changes: usize,
    pub(crate) compactions: usize,
    pub(crate) installs: usize,
    /// Turns of sleeping leaders.
    pub(crate) asleep: usize,
    pub(crate) lease_reads: u64,
}

impl Oracle {
    pub(crate) fn highest_committed(&self) -> LogIndex {
        self.committed.last_key_value().map_or(LogIndex::ZERO, |(&index, _)| index)
    }

    /// Log Matching: an id names one entry with one history.
    pub(crate) fn on_append(&mut self, entries: &[Entry], before: EntryId) {
        let mut before = before;
        for entry in entries {
            let known = self
                .entries
                .entry((entry.id.index, entry.id.term))
                .or_insert_with(|| (entry.payload.clone(), before));
            assert_eq!(*known, (entry.payload.clone(), before), "log matching at {}", entry.id);
            before = entry.id;
        }
    }

    /// Election Safety and Leader Completeness, and what the leader believes of its peers.
    pub(crate) fn on_turn(
        &mut self,
        node: NodeId,
        replica: &Replica,
        disks: &BTreeMap<NodeId, Disk>,
    ) {
        if replica.role() == Role::Leader {
            self.asleep += usize::from(replica.is_asleep());
            let elections = &mut self.elections;
            let leader = *self.leaders.entry(replica.term()).or_insert_with(|| {
                *elections += 1;
                for (&index, &(id, term)) in &self.committed {
                    assert!(
                        // Its turn may come long after its election.
                        term >= replica.term()
                            || index < replica.base().index
                            || replica.term_at(index) == Some(id.term),
                        "leader completeness: {node} leads term {} without {id}",
                        replica.term()
                    );
                }
                node
            });
            assert_eq!(leader, node, "two leaders in term {}", replica.term());
            for (peer, disk) in disks {
                let Some(progress) = replica.progress(*peer) else { continue };
                if disk.hard_state().term <= replica.term()
                    && progress.match_index > replica.base().index
                    && progress.match_index >= disk.base()
                {
                    let held = disk.id_at(progress.match_index).map(|id| id.term);
                    assert_eq!(
                        held,
                        replica.term_at(progress.match_index),
                        "{node} believes that {peer} holds {}",
                        progress.match_index
                    );
                }
            }
        }
        self.on_commit(node, replica, disks);
    }

    /// What is committed is the same everywhere, for ever, and durable on a quorum of each half.
    fn on_commit(&mut self, node: NodeId, replica: &Replica, disks: &BTreeMap<NodeId, Disk>) {
        let commit = replica.commit();
        let known = self.highest_committed();
        let mut index = replica.applied_index().max(replica.base().index).min(known);
        while index < commit {
            index = index.next();
            let id = EntryId::new(replica.term_at(index).expect("within the log"), index);
            if let Some(&(before, _)) = self.committed.get(&index) {
                assert_eq!(before, id, "{node} commits {id} where {before} is committed");
                continue;
            }
            let holds = |half: &BTreeSet<NodeId>| {
                let count = half.iter().filter(|peer| disks[peer].id_at(index) == Some(id)).count();
                half.is_empty() || count * 2 > half.len()
            };
            // Another one may be in force since it was committed, but at most one further.
            let before = replica.membership_at(commit).expect("within the log");
            let agreed = [before, replica.membership()]
                .into_iter()
                .any(|membership| holds(&membership.voters) && holds(&membership.outgoing));
            assert!(
                agreed,
                "{node} commits {id}, which no quorum holds: {:?}",
                replica.membership()
            );
            self.committed.insert(index, (id, replica.term()));
        }
    }

    /// A snapshot contains what is committed, and nothing else.
    pub(crate) fn on_installed(&mut self, meta: &SnapshotMeta) {
        let committed = self.committed.get(&meta.last.index).map(|&(id, _)| id);
        assert_eq!(committed, Some(meta.last), "a snapshot of what is not committed");
        self.installs += 1;
    }

    /// State Machine Safety: what is applied is what is committed.
    pub(crate) fn on_applied(&self, node: NodeId, entries: &[Entry], disk: &Disk) {
        for entry in entries {
            let committed = self.committed.get(&entry.id.index).map(|&(id, _)| id);
            assert_eq!(committed, Some(entry.id), "{node} applies {}", entry.id);
            assert_eq!(disk.id_at(entry.id.index), Some(entry.id), "applied but not durable");
            let (payload, _) = &self.entries[&(entry.id.index, entry.id.term)];
            assert_eq!(*payload, entry.payload, "{node} applies another {}", entry.id);
        }
    }

    /// Persist before promise: `message` leaves a node with this disk.
    pub(crate) fn on_sent(&self, message: &Message, disk: &Disk) {
        let (durable, term) = (disk.hard_state(), message.term);
        let ballot = (durable.term, durable.vote);
        match &message.body {
            Body::VoteReply { granted: true } => assert!(
                durable.term > term || ballot == (term, Some(message.to)),
                "{message:?} with {durable:?}"
            ),
            Body::Vote { last, .. } => assert!(
                durable.term > term || ballot == (term, Some(message.from)) && disk.last() >= *last,
                "{message:?} with {durable:?} {}",
                disk.last()
            ),
            Body::AppendAccepted { last } => assert!(
                durable.term > term || durable.term == term && disk.last().index >= *last,
                "{message:?} with {durable:?} {}",
                disk.last()
            ),
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::VoteReply { granted: false }
            | Body::Append { .. }
            | Body::AppendRejected { .. }
            | Body::Commit { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::TimeoutNow
            | Body::Sleep { .. }
            | Body::Asleep { .. }
            | Body::Wake
            | Body::Snapshot { .. }
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Digest { .. } => {}
        }
    }

    /// A replica goes down.
    pub(crate) const fn on_end(&mut self, replica: &Replica) {
        self.lease_reads += replica.counters().lease_reads;
    }

    pub(crate) fn on_read_asked(&mut self, id: ReadId) {
        self.reads.insert(id, self.highest_committed());
    }

    /// A read sees whatever was committed anywhere before it was asked for.
    pub(crate) fn on_read_served(&mut self, id: ReadId, index: LogIndex) {
        let floor = self.reads.remove(&id).expect("a read is answered once");
        assert!(index >= floor, "stale read {id:?}: {index}, but {floor} was committed before");
        self.reads_served += 1;
    }

    pub(crate) fn on_read_refused(&mut self, id: ReadId) {
        self.reads.remove(&id).expect("a read is answered once");
    }
}
