//! I2, I6 and I9: one history for each entry; what is committed stays, in order, and on a quorum's disks.

use std::collections::BTreeMap;

use bytes::BytesMut;
use quorate_raft::{Replica, Role};
use quorate_types::{
    Entry, EntryId, GroupId, LogIndex, Membership, NodeId, Payload, SnapshotMeta, Term, codec,
};

use super::durable::Platter;
use super::{Checked, Oracle};
use crate::node::FIRST;
use crate::trace::hash_of;

/// Every entry that was ever written anywhere, and what of it is committed.
#[derive(Debug, Default)]
pub(crate) struct LogOracle {
    /// By id: what it carries, and the entry before it.
    entries: BTreeMap<(LogIndex, Term), (u64, EntryId)>,
    /// Index FIRST + 1 and up: the entry, and the term of the replica that was first seen to commit it.
    committed: Vec<(EntryId, Term)>,
    /// How far each process was seen to commit and to apply.
    seen: BTreeMap<NodeId, Seen>,
    /// What was in force at each replica when it was last looked at.
    memberships: BTreeMap<NodeId, Membership>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    base: LogIndex,
    applied: LogIndex,
    commit: LogIndex,
    term: Term,
}

impl LogOracle {
    pub(crate) fn last_committed(&self) -> LogIndex {
        self.committed.last().map_or(FIRST.index, |(id, _)| id.index)
    }

    pub(crate) fn committed_at(&self, index: LogIndex) -> Option<EntryId> {
        let at = index.since(FIRST.index).checked_sub(1)? as usize;
        self.committed.get(at).map(|&(id, _)| id)
    }

    /// What is committed above `base`, and in which term that was first seen.
    pub(crate) fn committed_above(
        &self,
        base: LogIndex,
    ) -> impl Iterator<Item = (EntryId, Term)> + '_ {
        self.committed.iter().skip(base.since(FIRST.index) as usize).copied()
    }

    /// Entries that every log begins with.
    pub(crate) fn found(&mut self, term: Term, count: u64) {
        for offset in 1..=count {
            let id = EntryId::new(term, FIRST.index.plus(offset));
            self.committed.push((id, term));
        }
    }

    pub(crate) fn on_append(&mut self, before: EntryId, entries: &[Entry]) -> Checked {
        let mut before = before;
        for entry in entries {
            let now = (payload_hash(&entry.payload), before);
            let known = *self.entries.entry((entry.id.index, entry.id.term)).or_insert(now);
            Oracle::LogMatching.check(known == now, || {
                format!(
                    "{} after {before} carries {:x}, but after {} it carried {:x}",
                    entry.id, now.0, known.1, known.0
                )
            })?;
            before = entry.id;
        }
        Ok(())
    }

    /// A process of `node` starts; it may know less than the last one.
    pub(crate) fn on_started(&mut self, node: NodeId, replica: &Replica) {
        // A restart may know less than the last life: the commit index is saved lazily, a cut of the log may be lost.
        let now = Seen::of(replica);
        self.seen.insert(node, Seen { commit: now.base, applied: now.base, ..now });
    }

    /// A replica takes a snapshot: it must lie on what is committed.
    pub(crate) fn on_snapshot(&self, node: NodeId, meta: &SnapshotMeta) -> Checked {
        let committed = self.committed_at(meta.last.index);
        Oracle::Ordering.check(committed == Some(meta.last) || meta.last == FIRST, || {
            format!("node {node} installs {}, but {committed:?} is committed", meta.last)
        })
    }

    pub(crate) fn on_turn(
        &mut self,
        node: NodeId,
        replica: &Replica,
        platters: &BTreeMap<NodeId, Platter>,
    ) -> Checked {
        let now = Seen::of(replica);
        let in_force = replica.membership();
        let memberships = self.memberships.entry(node).or_insert_with(|| in_force.clone());
        let earlier = std::mem::replace(memberships, in_force.clone());
        let before = *self.seen.entry(node).or_insert(now);
        if now.commit == before.commit && now.applied == before.applied && now.term == before.term {
            return Ok(());
        }
        let ordered = now.base <= now.applied
            && now.applied <= now.commit
            && now.commit <= replica.last().index;
        let forward =
            now.applied >= before.applied && now.commit >= before.commit && now.term >= before.term;
        Oracle::Ordering.check(ordered && forward, || {
            format!("node {node}: {now:?}, last {}, after {before:?}", replica.last())
        })?;
        self.seen.insert(node, now);
        // What a leader commits it commits by an entry of its own term (thesis section 3.6.2): an older one that a
        // quorum holds may still be overwritten.
        let by_counting = replica.role() == Role::Leader
            && before.term == now.term
            && now.commit > before.commit
            && now.commit > self.last_committed();
        let own = replica.term_at(now.commit) == Some(now.term);
        Oracle::Durability.check(!by_counting || own, || {
            format!("node {node} leads term {} and commits {} by counting", now.term, now.commit)
        })?;
        let mut index = before.commit.max(now.base);
        while index < now.commit {
            index = index.next();
            let Some(term) = replica.term_at(index) else { continue };
            self.on_committed(node, replica, EntryId::new(term, index), &earlier, platters)?;
        }
        Ok(())
    }

    fn on_committed(
        &mut self,
        node: NodeId,
        replica: &Replica,
        id: EntryId,
        earlier: &Membership,
        platters: &BTreeMap<NodeId, Platter>,
    ) -> Checked {
        if let Some(known) = self.committed_at(id.index) {
            return Oracle::Durability.check(known == id, || {
                format!("node {node} commits {id}, where {known} is committed")
            });
        }
        Oracle::Ordering.check(id.index == self.last_committed().next(), || {
            format!("node {node} commits {id}, but {} is the last", self.last_committed())
        })?;
        let group = replica.config().group;
        let holds = |peer: &NodeId| held(platters, *peer, group, id);
        // In one turn an entry may be committed and another membership be proposed.
        let now = replica.membership();
        let enough = has_quorum(now, &holds) || has_quorum(earlier, &holds);
        Oracle::Durability.check(enough, || {
            let holders: Vec<_> = now.nodes().into_iter().filter(|peer| holds(peer)).collect();
            format!("node {node} commits {id}, but of {now:?} only {holders:?} hold it durably")
        })?;
        self.committed.push((id, replica.term()));
        Ok(())
    }
}

impl Seen {
    fn of(replica: &Replica) -> Self {
        Self {
            base: replica.base().index,
            applied: replica.applied_index(),
            commit: replica.commit(),
            term: replica.term(),
        }
    }
}

fn has_quorum(membership: &Membership, holds: &dyn Fn(&NodeId) -> bool) -> bool {
    [&membership.voters, &membership.outgoing].into_iter().all(|half| {
        let holders = half.iter().filter(|peer| holds(peer)).count();
        half.is_empty() || holders * 2 > half.len()
    })
}

fn held(platters: &BTreeMap<NodeId, Platter>, node: NodeId, group: GroupId, id: EntryId) -> bool {
    platters.get(&node).and_then(|platter| platter.log(group)).is_some_and(|log| log.holds(id))
}

fn payload_hash(payload: &Payload) -> u64 {
    match payload {
        Payload::Empty => 0,
        Payload::Command(command) => hash_of(command.as_ref()),
        Payload::Membership(membership) => {
            let mut bytes = BytesMut::new();
            codec::put_membership(&mut bytes, membership);
            hash_of(bytes.as_ref())
        }
    }
}
