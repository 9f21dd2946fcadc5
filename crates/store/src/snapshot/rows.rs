//! Which rows are a group's.

use bytes::Bytes;
use quorate_types::machine::{RowScope, StateError};
use quorate_types::{GroupId, KeyRange};

use crate::engine::Span;
use crate::kv::record::decode_event;
use crate::{layout, stored_key};

/// The rows of one group: all that its machine may have written, and none of another's. The group's own
/// row is not among them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupRows {
    /// A space of the group's own.
    Own(GroupId),
    /// The keys of a range of stored keys: clients' keys and the system's alike.
    Keys(KeyRange),
}

impl GroupRows {
    /// The rows of a machine of `scope`; without a range, one of the keyspace has all keys.
    #[must_use]
    pub fn new(scope: RowScope, group: GroupId, range: Option<&KeyRange>) -> Self {
        match scope {
            RowScope::Group => Self::Own(group),
            RowScope::Keyspace => Self::Keys(range.cloned().unwrap_or_else(KeyRange::all)),
        }
    }

    /// Where all of them lie, in ascending order. Events are kept by revision and not by key, so those of
    /// other ranges lie between them unless these are all keys: see [`Self::contains`].
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        match self {
            Self::Own(group) => {
                let prefix = layout::own_prefix(*group);
                vec![Span { start: Bytes::copy_from_slice(&prefix), end: layout::after(&prefix) }]
            }
            Self::Keys(range) if range.is_empty() => Vec::new(),
            Self::Keys(range) => {
                let [current, history] = layout::stored_ranges(range);
                let events = (vec![layout::TAG_EVENT], vec![layout::TAG_EVENT + 1]);
                let spans = [current, events, history].into_iter();
                spans.map(|(start, end)| Span { start: start.into(), end: end.into() }).collect()
            }
        }
    }

    /// The spans in which every row is the group's: all of them, unless the events of other ranges lie
    /// between its own.
    #[must_use]
    pub fn own_spans(&self) -> Vec<Span> {
        let mut spans = self.spans();
        if self.shares_events() {
            spans.retain(|span| span.start[..] != [layout::TAG_EVENT]);
        }
        spans
    }

    /// True when events of other ranges may lie between those of these rows.
    #[must_use]
    pub fn shares_events(&self) -> bool {
        matches!(self, Self::Keys(range) if *range != KeyRange::all())
    }

    /// Whether a row that lies in one of the spans is the group's.
    ///
    /// # Errors
    /// When the row is one of events and not of any form that we write.
    pub fn contains(&self, row: &[u8], value: &[u8]) -> Result<bool, StateError> {
        match self {
            Self::Keys(range)
                if row.first() == Some(&layout::TAG_EVENT) && self.shares_events() =>
            {
                Ok(range.contains(&stored_key::of_client(&decode_event(row, value)?.key)))
            }
            Self::Own(_) | Self::Keys(_) => Ok(true),
        }
    }
}
