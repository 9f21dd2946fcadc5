//! One view for all who read between two writes.
//!
//! A view of its own costs each read about as much as the row that it looks for: a lock that writes
//! contend for, and the group's row, which is the same for all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_types::machine::StateError;
use quorate_types::{GroupId, StateReader};

use crate::group_row::GroupRow;

/// A consistent view of all rows, with the groups' own rows read once.
pub struct SharedView {
    rows: Box<dyn StateReader + Send + Sync>,
    groups: Mutex<BTreeMap<GroupId, Arc<GroupRow>>>,
}

impl SharedView {
    /// Shares `rows`.
    #[must_use]
    pub fn new(rows: Box<dyn StateReader + Send + Sync>) -> Self {
        Self { rows, groups: Mutex::default() }
    }

    /// All rows.
    #[must_use]
    pub fn rows(&self) -> &dyn StateReader {
        &*self.rows
    }

    /// The row of `group`; an empty one when it has none.
    ///
    /// # Errors
    /// When the engine fails or the row is damaged.
    pub fn group_row(&self, group: GroupId) -> Result<Arc<GroupRow>, StateError> {
        if let Some(row) = lock(&self.groups).get(&group) {
            return Ok(Arc::clone(row));
        }
        // Two readers may both read it, once; the lock is not held over the disk.
        let row = Arc::new(GroupRow::load(group, self.rows())?.unwrap_or_default());
        Ok(Arc::clone(lock(&self.groups).entry(group).or_insert(row)))
    }
}

impl fmt::Debug for SharedView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedView").finish_non_exhaustive()
    }
}

/// The view that an engine shares until its next write. Kept by engines; nothing is made for writes that
/// nobody reads between.
#[derive(Debug, Default)]
pub(super) struct Latest(Mutex<Option<Arc<SharedView>>>);

impl Latest {
    /// The view that is shared now, else the one that `make` makes. It is made under the lock: a view from
    /// before a write that has returned cannot be put here after [`Self::outdate`].
    pub(super) fn share(
        &self,
        make: impl FnOnce() -> Box<dyn StateReader + Send + Sync>,
    ) -> Arc<SharedView> {
        let mut latest = lock(&self.0);
        Arc::clone(latest.get_or_insert_with(|| Arc::new(SharedView::new(make()))))
    }

    /// A write is done: who asks from now on sees it. Call it after the write, before it is told of.
    pub(super) fn outdate(&self) {
        let outdated = lock(&self.0).take();
        // Letting go of a view may take the engine's own lock: not under ours.
        drop(outdated);
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under the locks can panic half way through a change.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
