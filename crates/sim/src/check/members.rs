//! I3: a membership is changed one step at a time, and two that follow each other can never decide apart.

use std::collections::BTreeMap;

use quorate_raft::{Replica, Role};
use quorate_types::{Entry, EntryId, LogIndex, Membership, NodeId, Payload, SnapshotMeta, Term};

use super::log::LogOracle;
use super::{Checked, Oracle};

/// Every membership that was ever in a log.
#[derive(Debug, Default)]
pub(crate) struct MembersOracle {
    /// What the group was founded with.
    first: Membership,
    known: BTreeMap<(LogIndex, Term), Membership>,
}

impl MembersOracle {
    pub(crate) fn found(&mut self, membership: &Membership) {
        self.first = membership.clone();
    }

    /// I6: a replica takes a snapshot: it must name the membership that was in force where it ends.
    pub(crate) fn on_snapshot(
        &self,
        node: NodeId,
        meta: &SnapshotMeta,
        log: &LogOracle,
    ) -> Checked {
        let behind = (meta.last.index.next(), Term::ZERO);
        let committed = self.known.range(..behind).rev().find(|&(&(index, term), _)| {
            log.committed_at(index) == Some(EntryId::new(term, index))
        });
        let expected = committed.map_or(&self.first, |(_, membership)| membership);
        Oracle::Ordering.check(meta.membership == *expected, || {
            format!(
                "node {node} installs {} with {:?}, where {expected:?} was in force",
                meta.last, meta.membership
            )
        })
    }

    /// Entries leave a replica for its disk.
    pub(crate) fn on_append(
        &mut self,
        node: NodeId,
        replica: &Replica,
        entries: &[Entry],
    ) -> Checked {
        for entry in entries {
            let Payload::Membership(membership) = &entry.payload else { continue };
            let own = replica.role() == Role::Leader && entry.id.term == replica.term();
            let key = (entry.id.index, entry.id.term);
            let is_new = self.known.insert(key, (**membership).clone()).is_none();
            if own && is_new {
                self.on_proposed(node, replica, entry, membership)?;
            }
        }
        Ok(())
    }

    fn on_proposed(
        &self,
        node: NodeId,
        replica: &Replica,
        entry: &Entry,
        membership: &Membership,
    ) -> Checked {
        let id = entry.id;
        Oracle::Members.check(membership.is_valid(), || {
            format!("node {node} proposes {id}: {membership:?}")
        })?;
        let commit = replica.commit();
        let knows = replica.first_in_term().is_some_and(|first| commit >= first);
        Oracle::Members.check(knows, || {
            format!(
                "node {node} proposes {membership:?} as {id} before it has committed in its term"
            )
        })?;
        let before = self
            .known
            .range(..(id.index, Term::ZERO))
            .rev()
            .find(|((index, term), _)| replica.term_at(*index) == Some(*term));
        let Some((&(index, _), before)) = before else { return Ok(()) };
        Oracle::Members.check(index <= commit, || {
            format!(
                "node {node} proposes {membership:?} as {id}, but that at {index} is uncommitted"
            )
        })?;
        let moved = before.voters.symmetric_difference(&membership.voters).count();
        let fits = if before.is_joint() {
            // It is left for what it was entered for.
            !membership.is_joint() && moved == 0
        } else if membership.is_joint() {
            membership.outgoing == before.voters
        } else {
            moved <= 1
        };
        Oracle::Members
            .check(fits, || format!("node {node} proposes {membership:?} as {id} after {before:?}"))
    }
}
