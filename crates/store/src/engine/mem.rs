//! The memory twin of the engine: it keeps the promises of the [chapter](super) and no more, loses on
//! demand what it may lose, and fails on demand.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_types::StateReader;
use quorate_types::machine::{Direction, StateError, Visit};

use super::overlay::Rows;
use super::shared::{Latest, SharedView};
use super::traits::{RowSource, Span, Staged, StateEngine};

/// Rows in memory. Clones share them, so that a "restarted" node opens what the old one left.
#[derive(Clone, Debug, Default)]
pub struct MemState {
    shared: Arc<Mutex<Shared>>,
    latest: Arc<Latest>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What views see. Shared with them, and copied by the first write while one is held.
    live: Arc<BTreeMap<Bytes, Bytes>>,
    /// What a crash leaves at least.
    durable: BTreeMap<Bytes, Bytes>,
    /// Batches in `live` that are not in `durable`, oldest first.
    unflushed: VecDeque<Rows>,
    failing: bool,
}

impl MemState {
    /// No rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many batches a crash could lose.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.lock().unflushed.len()
    }

    /// Loses all batches that were not flushed but the oldest `kept` of them, which the engine is taken
    /// to have made durable in the background.
    pub fn crash(&self, kept: usize) {
        let mut shared = self.lock();
        let kept = kept.min(shared.unflushed.len());
        for rows in shared.unflushed.drain(..).take(kept).collect::<Vec<_>>() {
            set(&mut shared.durable, rows);
        }
        shared.live = Arc::new(shared.durable.clone());
        drop(shared);
        self.latest.outdate();
    }

    /// From now on every call fails (or no longer, with `false`), and views taken now fail too.
    pub fn fail(&self, failing: bool) {
        self.lock().failing = failing;
        self.latest.outdate();
    }

    /// All rows that views see, for comparing engines.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<Bytes, Bytes> {
        (*self.lock().live).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // No code under the lock can panic half way through a change.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateEngine for MemState {
    fn view(&self) -> Box<dyn StateReader + Send + '_> {
        let shared = self.lock();
        Box::new(MemView { rows: shared.live.clone(), failing: shared.failing })
    }

    fn shared_view(&self) -> Arc<SharedView> {
        self.latest.share(|| {
            let shared = self.lock();
            Box::new(MemView { rows: shared.live.clone(), failing: shared.failing })
        })
    }

    fn write(&self, rows: Rows) -> Result<(), StateError> {
        let mut shared = self.lock();
        check(shared.failing)?;
        set(Arc::make_mut(&mut shared.live), rows.clone());
        shared.unflushed.push_back(rows);
        drop(shared);
        self.latest.outdate();
        Ok(())
    }

    fn flush(&self) -> Result<(), StateError> {
        let shared = &mut *self.lock();
        check(shared.failing)?;
        for rows in shared.unflushed.drain(..) {
            set(&mut shared.durable, rows);
        }
        Ok(())
    }

    fn compact(&self, _: &dyn Fn() -> bool) -> Result<(), StateError> {
        // Nothing that was removed takes space here.
        self.flush()
    }

    fn stage(
        &self,
        spans: &[Span],
        rows: &mut RowSource<'_>,
    ) -> Result<Box<dyn Staged>, StateError> {
        check(self.lock().failing)?;
        let mut staged = BTreeMap::new();
        while let Some((key, value)) = rows()? {
            assert!(
                staged.last_key_value().is_none_or(|(last, _)| *last < key),
                "staged rows descend at {key:?}"
            );
            staged.insert(key, value);
        }
        Ok(Box::new(MemStaged { state: self.clone(), spans: spans.to_vec(), rows: staged }))
    }

    fn durable(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let shared = self.lock();
        check(shared.failing)?;
        Ok(shared.durable.get(key).cloned())
    }

    fn size_bytes(&self) -> u64 {
        self.lock().live.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

struct MemStaged {
    state: MemState,
    spans: Vec<Span>,
    rows: BTreeMap<Bytes, Bytes>,
}

impl Staged for MemStaged {
    fn ingest(self: Box<Self>) -> Result<(), StateError> {
        self.state.flush()?;
        let Self { state, spans, rows } = *self;
        let mut shared = state.lock();
        let mut live = (*shared.live).clone();
        live.retain(|key, _| !spans.iter().any(|span| span.start <= key && key < &span.end));
        live.extend(rows);
        shared.durable.clone_from(&live);
        shared.live = Arc::new(live);
        drop(shared);
        state.latest.outdate();
        Ok(())
    }
}

struct MemView {
    rows: Arc<BTreeMap<Bytes, Bytes>>,
    failing: bool,
}

impl StateReader for MemView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        check(self.failing)?;
        Ok(self.rows.get(key).cloned())
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        check(self.failing)?;
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let mut rows = self.rows.range::<[u8], _>(bounds);
        let next = |(key, value): (&Bytes, &Bytes)| visit(key, value);
        // A scan that its visitor ended is as good as one that ran out.
        let (ControlFlow::Continue(()) | ControlFlow::Break(())) = match direction {
            Direction::Forward => rows.try_for_each(next),
            Direction::Backward => rows.rev().try_for_each(next),
        };
        Ok(())
    }
}

fn set(target: &mut BTreeMap<Bytes, Bytes>, rows: Rows) {
    for (key, value) in rows {
        match value {
            Some(value) => target.insert(key, value),
            None => target.remove(&key),
        };
    }
}

fn check(failing: bool) -> Result<(), StateError> {
    if failing { Err(StateError("made to fail".into())) } else { Ok(()) }
}
