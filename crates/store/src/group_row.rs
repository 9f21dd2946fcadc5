//! What a group keeps beside its machine's rows, in the same batch as those.

use bytes::Bytes;
use prost::Message;
use quorate_types::machine::StateError;
use quorate_types::{EntryId, GroupId, LogIndex, Membership, NodeId, StateReader, Term};
use std::ops::ControlFlow;

use crate::layout;
use quorate_types::machine::Direction;

/// The format of group rows that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// A group as of its last applied entry. Written in one batch with everything that the entry did, so
/// that a restart knows exactly where the log must be taken up again.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct GroupRow {
    /// The last entry that the rows contain.
    pub applied: EntryId,
    /// The membership in force at `applied`.
    pub membership: Membership,
    /// The name of the machine's kind; see `MachineKind::name`.
    pub kind: String,
    /// The machine's `meta` as of `applied`.
    pub meta: Bytes,
}

impl GroupRow {
    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let nodes = |nodes: &std::collections::BTreeSet<NodeId>| {
            nodes.iter().map(|node| node.value()).collect()
        };
        let stored = Stored {
            format: FORMAT,
            applied_term: self.applied.term.value(),
            applied_index: self.applied.index.value(),
            voters: nodes(&self.membership.voters),
            outgoing: nodes(&self.membership.outgoing),
            learners: nodes(&self.membership.learners),
            promote: nodes(&self.membership.promote),
            auto_leave: self.membership.auto_leave,
            kind: self.kind.clone(),
            meta: self.meta.clone(),
        };
        stored.encode_to_vec().into()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are damaged, or of a format from the future.
    pub fn decode(bytes: Bytes) -> Result<Self, StateError> {
        let stored = Stored::decode(bytes)
            .map_err(|error| StateError(format!("damaged group row: {error}")))?;
        if stored.format == 0 || stored.format > FORMAT {
            return Err(StateError(format!("group row of format {}", stored.format)));
        }
        let nodes = |nodes: Vec<u64>| nodes.into_iter().map(NodeId).collect();
        Ok(Self {
            applied: EntryId::new(Term(stored.applied_term), LogIndex(stored.applied_index)),
            membership: Membership {
                voters: nodes(stored.voters),
                outgoing: nodes(stored.outgoing),
                learners: nodes(stored.learners),
                promote: nodes(stored.promote),
                auto_leave: stored.auto_leave,
            },
            kind: stored.kind,
            meta: stored.meta,
        })
    }

    /// The row of `group` in a view of everything; `None` when the group has none.
    ///
    /// # Errors
    /// When the engine fails or the row is damaged.
    pub fn load(group: GroupId, rows: &dyn StateReader) -> Result<Option<Self>, StateError> {
        rows.get(&layout::group(group))?.map(Self::decode).transpose()
    }

    /// All groups that a view of everything holds, by id: what a restart begins with.
    ///
    /// # Errors
    /// When the engine fails or a row is damaged.
    pub fn load_all(rows: &dyn StateReader) -> Result<Vec<(GroupId, Self)>, StateError> {
        let (mut found, mut result) = (Vec::new(), Ok(()));
        let end = [layout::TAG_GROUP + 1];
        rows.scan(&[layout::TAG_GROUP], Some(&end), Direction::Forward, &mut |key, value| {
            let group = key[1..].try_into().map(|id| GroupId(u64::from_be_bytes(id)));
            let group = group.map_err(|_| StateError(format!("damaged group row key {key:?}")));
            let row = Self::decode(Bytes::copy_from_slice(value));
            match group.and_then(|group| Ok((group, row?))) {
                Ok(pair) => found.push(pair),
                Err(error) => result = Err(error),
            }
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result.map(|()| found)
    }
}

/// The stored form.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    applied_term: u64,
    #[prost(uint64, tag = "3")]
    applied_index: u64,
    #[prost(uint64, repeated, tag = "4")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "6")]
    learners: Vec<u64>,
    #[prost(string, tag = "7")]
    kind: String,
    #[prost(bytes = "bytes", tag = "8")]
    meta: Bytes,
    #[prost(uint64, repeated, tag = "9")]
    promote: Vec<u64>,
    #[prost(bool, tag = "10")]
    auto_leave: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{MemState, Overlay, StateEngine};

    fn row(applied: u64) -> GroupRow {
        GroupRow {
            applied: EntryId::new(Term(3), LogIndex(applied)),
            membership: Membership {
                voters: [NodeId(1), NodeId(u64::MAX)].into(),
                outgoing: [NodeId(2)].into(),
                learners: [NodeId(9)].into(),
                promote: [NodeId(9)].into(),
                auto_leave: true,
            },
            kind: "kv".into(),
            meta: Bytes::from_static(b"meta"),
        }
    }

    #[test]
    fn a_row_reads_back_as_it_was_written() {
        assert_eq!(GroupRow::decode(row(7).encode()), Ok(row(7)));
    }

    #[test]
    fn damage_and_formats_from_the_future_are_errors() {
        assert!(GroupRow::decode(Bytes::from_static(b"\xff\xff")).is_err());
        assert!(GroupRow::decode(Bytes::new()).is_err());
        let future = Stored { format: FORMAT + 1, ..Stored::default() };
        assert!(GroupRow::decode(future.encode_to_vec().into()).is_err());
    }

    #[test]
    fn all_groups_are_found_by_id() {
        let engine = MemState::new();
        let mut overlay = Overlay::new(engine.view());
        for group in [300, 2, 1] {
            overlay.put_group_row(GroupId(group), &row(group));
        }
        engine.write(overlay.into_rows()).unwrap();
        let found = GroupRow::load_all(&*engine.view()).unwrap();
        assert_eq!(found, [1, 2, 300].map(|group| (GroupId(group), row(group))));
        assert_eq!(GroupRow::load(GroupId(2), &*engine.view()), Ok(Some(row(2))));
        assert_eq!(GroupRow::load(GroupId(3), &*engine.view()), Ok(None));
    }
}
