//! The batch under construction: writes held over a view, so that reads see both.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use quorate_types::machine::{Direction, RowScope, StateError, Visit};
use quorate_types::{GroupId, StateReader};

use super::scope::ScopedBatch;
use crate::group_row::GroupRow;
use crate::layout;

/// A batch over a view of an engine. Ordered, so that scans can merge the two and so that equal
/// commands make equal batches, byte for byte.
///
/// One overlay serves many groups: each writes through [`Overlay::scoped`], and what one of them wrote
/// can be taken back by [`Overlay::rollback`] without the others noticing.
pub struct Overlay<'e> {
    base: Box<dyn StateReader + Send + 'e>,
    /// What each written key holds now; `None` stands for a removal.
    writes: BTreeMap<Bytes, Option<Bytes>>,
    /// What `writes` held before each write, oldest first.
    undo: Vec<(Bytes, Option<Option<Bytes>>)>,
    size_bytes: usize,
}

/// A moment of an overlay, to return to. Of one overlay only, and not after an earlier one was
/// returned to.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Savepoint {
    undo_len: usize,
    size_bytes: usize,
}

/// A finished batch, in key order; `None` stands for a removal.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Rows(Vec<(Bytes, Option<Bytes>)>);

impl<'e> Overlay<'e> {
    /// An empty batch over `base`, a view of all rows.
    #[must_use]
    pub fn new(base: Box<dyn StateReader + Send + 'e>) -> Self {
        Self { base, writes: BTreeMap::new(), undo: Vec::new(), size_bytes: 0 }
    }

    /// What a machine of `scope` in `group` may read and write through.
    pub fn scoped(&mut self, scope: RowScope, group: GroupId) -> ScopedBatch<'_, 'e> {
        ScopedBatch::new(self, scope, group)
    }

    /// Sets the row of `group` itself.
    pub fn put_group_row(&mut self, group: GroupId, row: &GroupRow) {
        self.set(Bytes::copy_from_slice(&layout::group(group)), Some(row.encode()));
    }

    /// Removes the row of `group` itself.
    pub fn delete_group_row(&mut self, group: GroupId) {
        self.set(Bytes::copy_from_slice(&layout::group(group)), None);
    }

    /// The present moment, for [`Self::rollback`].
    pub fn savepoint(&self) -> Savepoint {
        Savepoint { undo_len: self.undo.len(), size_bytes: self.size_bytes }
    }

    /// Takes back everything written since `savepoint`.
    ///
    /// # Panics
    /// If the savepoint lies in a part that was taken back already.
    pub fn rollback(&mut self, savepoint: Savepoint) {
        assert!(
            savepoint.undo_len <= self.undo.len(),
            "savepoint at {} is beyond the batch's {} writes",
            savepoint.undo_len,
            self.undo.len()
        );
        for (key, before) in self.undo.drain(savepoint.undo_len..).rev() {
            match before {
                Some(value) => self.writes.insert(key, value),
                None => self.writes.remove(&key),
            };
        }
        self.size_bytes = savepoint.size_bytes;
    }

    /// Ends the construction and lets go of the view.
    #[must_use]
    pub fn into_rows(self) -> Rows {
        Rows(self.writes.into_iter().collect())
    }

    /// True when there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes of the keys and values written so far, for budgets; a row written twice counts twice.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Sets or removes a row of anyone's.
    pub(super) fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        self.size_bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        let before = self.writes.insert(key.clone(), value);
        self.undo.push((key, before));
    }
}

impl StateReader for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let written = self.writes.range::<[u8], _>(bounds);
        match direction {
            Direction::Forward => {
                let mut merge = Merge { written: written.peekable(), ahead: Ordering::Less, visit };
                let more = self.scan_base(start, end, direction, &mut |k, v| merge.base_row(k, v));
                more.map(|more| {
                    if more {
                        merge.rest()
                    }
                })
            }
            Direction::Backward => {
                let written = written.rev().peekable();
                let mut merge = Merge { written, ahead: Ordering::Greater, visit };
                let more = self.scan_base(start, end, direction, &mut |k, v| merge.base_row(k, v));
                more.map(|more| {
                    if more {
                        merge.rest()
                    }
                })
            }
        }
    }
}

impl Overlay<'_> {
    /// Scans the view; false when `visit` ended it.
    fn scan_base(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<bool, StateError> {
        let mut more = true;
        self.base.scan(start, end, direction, &mut |key, value| {
            let flow = visit(key, value);
            more = flow.is_continue();
            flow
        })?;
        Ok(more)
    }
}

impl std::fmt::Debug for Overlay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("writes", &self.writes.len()).finish_non_exhaustive()
    }
}

/// Two ordered runs of rows on their way into one: those of the view, pushed in, and those written.
struct Merge<'m, 'w, I: Iterator<Item = (&'w Bytes, &'w Option<Bytes>)>> {
    written: std::iter::Peekable<I>,
    /// How a written key compares with one of the view that comes later in the scan's direction.
    ahead: Ordering,
    visit: &'m mut Visit<'m>,
}

impl<'w, I: Iterator<Item = (&'w Bytes, &'w Option<Bytes>)>> Merge<'_, 'w, I> {
    /// Visits what was written before the view's next row, then that row unless it was overwritten.
    fn base_row(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        while let Some((written, change)) = self.written.peek() {
            let order = written.as_ref().cmp(key);
            if order != self.ahead && order != Ordering::Equal {
                break;
            }
            if let Some(value) = change {
                (self.visit)(written, value)?;
            }
            self.written.next();
            if order == Ordering::Equal {
                return ControlFlow::Continue(());
            }
        }
        (self.visit)(key, value)
    }

    /// Visits what was written beyond the view's last row.
    fn rest(&mut self) {
        for (key, change) in self.written.by_ref() {
            if let Some(value) = change
                && (self.visit)(key, value).is_break()
            {
                return;
            }
        }
    }
}

impl Rows {
    /// The rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, Option<&Bytes>)> {
        self.0.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// How many rows are set or removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for Rows {
    type Item = (Bytes, Option<Bytes>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A batch is also what a test may want to apply to an engine by hand.
impl FromIterator<(Bytes, Option<Bytes>)> for Rows {
    fn from_iter<I: IntoIterator<Item = (Bytes, Option<Bytes>)>>(rows: I) -> Self {
        Self(rows.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect())
    }
}
