//! Reads: what the keyspace held at a revision, and etcd's `Range` over it.

use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_types::kv::{KeyValue, KvError, Range, RangeOutcome, SortOrder, SortTarget};
use quorate_types::machine::{Direction, StateError};
use quorate_types::{KeyRange, StateReader};

use super::pairs::Pairs;
use super::record::{Record, damaged};
use crate::layout::{self, Stamp};

/// Rows of one key's history that a scan steps over before it seeks instead: a step is far cheaper than
/// a seek, but a key may have any number of rows.
const STEPS_MAX: u32 = 16;

/// Why something was not done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// For a reason that is the same on every replica.
    Kv(KvError),
    /// The engine failed.
    State(StateError),
}

impl From<KvError> for Refusal {
    fn from(error: KvError) -> Self {
        Self::Kv(error)
    }
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

/// A key without its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) key: Bytes,
    pub(crate) record: Record,
}

/// The keyspace as it may be read: its rows, its revision, and its floor.
#[derive(Clone, Copy)]
pub(crate) struct View<'r> {
    pub(crate) rows: &'r dyn StateReader,
    pub(crate) revision: i64,
    pub(crate) floor: i64,
    /// What others have read lately; only for views of what is written, not of a batch under way.
    pub(crate) pairs: Option<&'r Pairs>,
}

impl View<'_> {
    /// What is known of `key` now.
    pub(crate) fn current(&self, key: &[u8]) -> Result<Option<Record>, StateError> {
        let row = layout::current(key);
        let value = self.rows.get(&row)?;
        value.map(|value| Record::decode_current(&row, &value)).transpose()
    }

    /// The value that the put at `modified` gave to `key`; it must be there.
    pub(crate) fn value(&self, key: &[u8], modified: Stamp) -> Result<Bytes, StateError> {
        let row = layout::history(key, modified);
        let bytes = self.rows.get(&row)?.ok_or_else(|| damaged(&row, &"a value is missing"))?;
        match Record::decode_history(&row, modified, &bytes)? {
            Some((_, value_at)) => Ok(bytes.slice(value_at..)),
            None => Err(damaged(&row, &"a tombstone where a put should be")),
        }
    }

    /// The pair with its value.
    pub(crate) fn pair(&self, found: &Found) -> Result<KeyValue, StateError> {
        let value = self.value(&found.key, found.record.modified)?;
        Ok(pair(found, value))
    }

    /// The newest pair of `key`, with its record.
    fn newest(&self, key: &[u8]) -> Result<Option<(Record, Bytes)>, StateError> {
        if let Some(known) = self.pairs.and_then(|pairs| pairs.pair(key, self.revision)) {
            return Ok(Some(known));
        }
        let Some(record) = self.current(key)? else { return Ok(None) };
        let value = self.value(key, record.modified)?;
        if let Some(pairs) = self.pairs {
            pairs.keep(key, record, &value, self.revision);
        }
        Ok(Some((record, value)))
    }

    /// Visits the keys that exist now, in order.
    pub(crate) fn each_current(
        &self,
        range: &KeyRange,
        visit: &mut dyn FnMut(&[u8], Record) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let (start, end) = layout::current_range(range);
        let mut result = Ok(());
        self.rows.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
            let record = Record::decode_current(row, value);
            match (layout::key_of_current(row), record) {
                (Some(key), Ok(record)) => return visit(key, record),
                (None, _) => result = Err(damaged(row, &"not a key")),
                (_, Err(error)) => result = Err(error),
            }
            ControlFlow::Break(())
        })?;
        result
    }

    /// What was known of `key` at `revision`.
    pub(crate) fn one_at(&self, revision: i64, key: &[u8]) -> Result<Option<Record>, StateError> {
        if revision == self.revision {
            return self.current(key);
        }
        let start = layout::history(key, Stamp::last_of(revision));
        let end = layout::history_end(key);
        let mut result = Ok(None);
        self.rows.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
            result = layout::parse_history(row)
                .ok_or_else(|| damaged(row, &"not a revision of a key"))
                .and_then(|(_, stamp)| Record::decode_history(row, stamp, value));
            ControlFlow::Break(())
        })?;
        Ok(result?.map(|(record, _)| record))
    }

    /// Visits the keys that existed at `revision`, in order.
    pub(crate) fn each_at(
        &self,
        revision: i64,
        range: &KeyRange,
        visit: &mut dyn FnMut(&[u8], Record) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        if revision == self.revision {
            return self.each_current(range, visit);
        }
        let (mut start, end) = layout::history_range(range);
        loop {
            match self.stretch_at(revision, &start, &end, visit)? {
                Some(next) => start = next,
                None => return Ok(()),
            }
        }
    }

    /// Visits the keys that existed at `revision` from `start` on, until one has too many rows to step
    /// over; gives the row from where to go on.
    fn stretch_at(
        &self,
        revision: i64,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], Record) -> ControlFlow<()>,
    ) -> Result<Option<Vec<u8>>, StateError> {
        let (mut key, mut answered, mut steps) = (None, false, 0);
        let mut result = Ok(None);
        self.rows.scan(start, Some(end), Direction::Forward, &mut |row, value| {
            let Some((row_key, stamp)) = layout::parse_history(row) else {
                result = Err(damaged(row, &"not a revision of a key"));
                return ControlFlow::Break(());
            };
            if key.as_ref() != Some(&row_key) {
                (key, answered, steps) = (Some(row_key.clone()), false, 0);
            }
            if !answered && stamp.revision <= revision {
                answered = true;
                match Record::decode_history(row, stamp, value) {
                    Ok(Some((record, _))) => return visit(&row_key, record),
                    Ok(None) => return ControlFlow::Continue(()),
                    Err(error) => {
                        result = Err(error);
                        return ControlFlow::Break(());
                    }
                }
            }
            steps += 1;
            if steps < STEPS_MAX {
                return ControlFlow::Continue(());
            }
            result = Ok(Some(if answered {
                layout::history_end(&row_key)
            } else {
                layout::history(&row_key, Stamp::last_of(revision))
            }));
            ControlFlow::Break(())
        })?;
        result
    }

    /// etcd's `Range`. Its rules on what is counted, cut and left out:
    ///
    /// - `count` is of all keys in the range at that revision, whatever the limit and the filters say.
    /// - Without an order and without filters, the first `limit` keys are taken *before* they are
    ///   sorted: a target alone, without an order, sorts those (and one more, the one that told that
    ///   there are more).
    /// - Otherwise all keys are taken, filtered, sorted, and then cut to the limit.
    /// - Ties keep the order of keys. etcd's order of ties is whatever its unstable sort makes of them.
    pub(crate) fn range(&self, request: &Range) -> Result<RangeOutcome, Refusal> {
        if request.page_bytes > 0 {
            return self.page(request);
        }
        let sort = Sort::of(request)?;
        let revision = self.readable(request.revision)?;
        let single = request.range_end.is_empty();
        if single && revision == self.revision && !request.keys_only && !request.count_only {
            return self.single(request);
        }
        let range = KeyRange::from_request(&request.key, &request.range_end);
        let in_key_order = sort.is_none() || request.sort_order == SortOrder::None as i32;
        let fetch_max = match request.limit {
            1.. if in_key_order && !is_filtered(request) => {
                usize::try_from(request.limit).map_or(usize::MAX, |limit| limit.saturating_add(1))
            }
            _ => usize::MAX,
        };
        let mut count = 0;
        let mut found = Vec::new();
        if single {
            if let Some(record) = self.one_at(revision, &request.key)? {
                found.push(Found { key: request.key.clone(), record });
            }
            count = found.len() as i64;
        } else if !range.is_empty() {
            self.each_at(revision, &range, &mut |key, record| {
                count += 1;
                if !request.count_only && found.len() < fetch_max {
                    found.push(Found { key: Bytes::copy_from_slice(key), record });
                }
                ControlFlow::Continue(())
            })?;
        }
        if request.count_only {
            return Ok(RangeOutcome { kvs: Vec::new(), more: false, count });
        }
        found.retain(|found| passes(request, &found.record));
        let limit = match request.limit {
            1.. => usize::try_from(request.limit).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        let more = found.len() > limit;
        let kvs = match sort {
            Some(Sort { target: SortTarget::Value, descending }) => {
                // The one order that needs values even if they are not asked for.
                let mut kvs = self.pairs(&found)?;
                sort_by(&mut kvs, descending, |kv| &kv.value);
                kvs.truncate(limit);
                if request.keys_only {
                    kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
                }
                kvs
            }
            other => {
                if let Some(sort) = other {
                    sort.apply(&mut found);
                }
                found.truncate(limit);
                if request.keys_only {
                    found.iter().map(|found| pair(found, Bytes::new())).collect()
                } else {
                    self.pairs(&found)?
                }
            }
        };
        Ok(RangeOutcome { kvs, more, count })
    }

    /// The same for the newest pair of one key: nothing to sort or to cut.
    fn single(&self, request: &Range) -> Result<RangeOutcome, Refusal> {
        let newest = self.newest(&request.key)?;
        let count = i64::from(newest.is_some());
        let kvs = newest
            .filter(|(record, _)| passes(request, record))
            .map(|(record, value)| pair(&Found { key: request.key.clone(), record }, value));
        Ok(RangeOutcome { kvs: kvs.into_iter().collect(), more: false, count })
    }

    /// The revision to read at when `asked` is asked for.
    pub(super) fn readable(&self, asked: i64) -> Result<i64, KvError> {
        let revision = if asked <= 0 { self.revision } else { asked };
        if revision > self.revision {
            Err(KvError::FutureRevision)
        } else if revision < self.floor {
            Err(KvError::Compacted)
        } else {
            Ok(revision)
        }
    }

    fn pairs(&self, found: &[Found]) -> Result<Vec<KeyValue>, StateError> {
        found.iter().map(|found| self.pair(found)).collect()
    }
}

/// A known order.
pub(crate) struct Sort {
    target: SortTarget,
    descending: bool,
}

impl Sort {
    /// The order that `request` asks for; `None` for the order of keys. A target without an order means
    /// ascending.
    ///
    /// # Errors
    /// [`KvError::InvalidSort`] for an order or a target that does not exist.
    pub(crate) fn of(request: &Range) -> Result<Option<Self>, KvError> {
        let order = SortOrder::try_from(request.sort_order).map_err(|_| KvError::InvalidSort)?;
        let target = SortTarget::try_from(request.sort_target).map_err(|_| KvError::InvalidSort)?;
        let descending = order == SortOrder::Descend;
        Ok((descending || target != SortTarget::Key).then_some(Self { target, descending }))
    }

    fn apply(&self, found: &mut [Found]) {
        match self.target {
            SortTarget::Key => sort_by(found, self.descending, |found| &found.key),
            SortTarget::Version => sort_by(found, self.descending, |found| &found.record.version),
            SortTarget::Create => sort_by(found, self.descending, |found| &found.record.create),
            SortTarget::Mod => {
                sort_by(found, self.descending, |found| &found.record.modified.revision);
            }
            SortTarget::Value => unreachable!("values are sorted with their pairs"),
        }
    }
}

/// Sorts stably either way: keys that tie stay in the order of keys.
fn sort_by<T, K: Ord>(items: &mut [T], descending: bool, by: impl Fn(&T) -> &K) {
    if descending {
        items.sort_by(|a, b| by(b).cmp(by(a)));
    } else {
        items.sort_by(|a, b| by(a).cmp(by(b)));
    }
}

fn is_filtered(request: &Range) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes(request: &Range, record: &Record) -> bool {
    let within =
        |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(record.modified.revision, request.min_mod_revision, request.max_mod_revision)
        && within(record.create, request.min_create_revision, request.max_create_revision)
}

/// The pair as clients see it.
pub(crate) fn pair(found: &Found, value: Bytes) -> KeyValue {
    KeyValue {
        key: found.key.clone(),
        create_revision: found.record.create,
        mod_revision: found.record.modified.revision,
        version: found.record.version,
        value,
        lease: found.record.lease,
    }
}
