//! What of the node's rows one machine may see and touch.
//!
//! A machine of [`RowScope::Group`] names its rows as it likes; they are kept under a prefix of its
//! group. One of [`RowScope::Keyspace`] names rows of the node's one space of keys by their full names,
//! and those only: anything else is a broken invariant of that machine, and panics.

use std::fmt;

use bytes::Bytes;
use quorate_types::machine::{Direction, RowScope, StateError, Visit};
use quorate_types::{GroupId, StateBatch, StateReader};

use super::overlay::Overlay;
use crate::layout;

/// The rows of the keyspace: `KEYSPACE_START <= row < KEYSPACE_END`, where nobody else has any.
const KEYSPACE_START: [u8; 1] = [layout::TAG_CURRENT];
const KEYSPACE_END: [u8; 1] = [layout::TAG_HISTORY + 1];

/// What one machine sees of a view of everything: for `MachineKind::open` and `MachineKind::read`.
pub struct ScopedView<'r> {
    rows: &'r dyn StateReader,
    space: Space,
}

/// What one machine sees of, and writes to, the batch under construction.
pub struct ScopedBatch<'o, 'e> {
    overlay: &'o mut Overlay<'e>,
    space: Space,
}

impl<'r> ScopedView<'r> {
    /// What a machine of `scope` in `group` sees of `rows`.
    #[must_use]
    pub fn new(rows: &'r dyn StateReader, scope: RowScope, group: GroupId) -> Self {
        Self { rows, space: Space::new(scope, group) }
    }
}

impl<'o, 'e> ScopedBatch<'o, 'e> {
    pub(super) fn new(overlay: &'o mut Overlay<'e>, scope: RowScope, group: GroupId) -> Self {
        Self { overlay, space: Space::new(scope, group) }
    }
}

impl StateReader for ScopedView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.space.get(self.rows, key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        self.space.scan(self.rows, start, end, direction, visit)
    }
}

impl StateReader for ScopedBatch<'_, '_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.space.get(self.overlay, key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        self.space.scan(self.overlay, start, end, direction, visit)
    }
}

impl StateBatch for ScopedBatch<'_, '_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.overlay.set(self.space.row(key), Some(Bytes::copy_from_slice(value)));
    }

    fn delete(&mut self, key: &[u8]) {
        self.overlay.set(self.space.row(key), None);
    }
}

impl fmt::Debug for ScopedView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedView").field("space", &self.space).finish_non_exhaustive()
    }
}

impl fmt::Debug for ScopedBatch<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedBatch").field("space", &self.space).finish_non_exhaustive()
    }
}

/// A scope, resolved for one group.
#[derive(Clone, Copy, Debug)]
enum Space {
    Own([u8; 9]),
    Keyspace,
}

impl Space {
    fn new(scope: RowScope, group: GroupId) -> Self {
        match scope {
            RowScope::Group => Self::Own(layout::own_prefix(group)),
            RowScope::Keyspace => Self::Keyspace,
        }
    }

    /// The full name of the machine's row `key`.
    fn row(&self, key: &[u8]) -> Bytes {
        match self {
            Self::Own(prefix) => [prefix, key].concat().into(),
            Self::Keyspace => {
                check(key);
                Bytes::copy_from_slice(key)
            }
        }
    }

    fn get(&self, rows: &dyn StateReader, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        match self {
            Self::Own(_) => rows.get(&self.row(key)),
            Self::Keyspace => {
                check(key);
                rows.get(key)
            }
        }
    }

    fn scan(
        &self,
        rows: &dyn StateReader,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        match self {
            Self::Own(prefix) => {
                let end = end.map_or_else(|| layout::after(prefix), |end| self.row(end));
                rows.scan(&self.row(start), Some(&end), direction, &mut |key, value| {
                    visit(&key[prefix.len()..], value)
                })
            }
            Self::Keyspace => {
                let end = end.map_or(&KEYSPACE_END[..], |end| end.min(&KEYSPACE_END));
                rows.scan(start.max(&KEYSPACE_START), Some(end), direction, visit)
            }
        }
    }
}

/// # Panics
/// When a machine of the keyspace names a row that is not the keyspace's.
fn check(key: &[u8]) {
    let known = [layout::TAG_CURRENT, layout::TAG_EVENT, layout::TAG_HISTORY];
    assert!(
        key.first().is_some_and(|tag| known.contains(tag)),
        "a machine of the keyspace named a row with tag {:?}, which is not one of its own",
        key.first()
    );
}
