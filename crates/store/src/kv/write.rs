//! Writes: etcd's `Put` and `DeleteRange`, alone or as operations of a transaction.

use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_types::kv::{
    DeleteRange, DeleteRangeOutcome, EventKind, KeyValue, KvError, Put, PutOutcome, WatchEvent,
};
use quorate_types::{KeyRange, StateBatch};

use super::meta::Meta;
use super::pairs::Pairs;
use super::read::{Found, Refusal, View};
use super::recent::Recent;
use super::record::{Change, Record, TOMBSTONE, damaged, encode_event};
use crate::layout::{self, Stamp};

/// The keyspace while one command changes it.
///
/// All writes of the command share one revision, and reads in between see them, at that revision, as
/// soon as there is one.
pub(crate) struct Writer<'b> {
    batch: &'b mut dyn StateBatch,
    recent: &'b mut Recent,
    pairs: &'b Pairs,
    /// The revision before the command.
    before: i64,
    /// The revision that its writes take.
    taken: i64,
    floor: i64,
    /// Writes so far; numbers the next one.
    writes: u32,
    /// What watchers are told of the writes.
    events: Vec<WatchEvent>,
}

impl<'b> Writer<'b> {
    /// A command that would take the revision `taken`, which is above that of `meta`.
    pub(crate) fn new(
        batch: &'b mut dyn StateBatch,
        recent: &'b mut Recent,
        pairs: &'b Pairs,
        meta: &Meta,
        taken: i64,
    ) -> Self {
        let before = meta.revision;
        assert!(before < taken, "revision {taken} does not follow {before}");
        let events = Vec::new();
        Self { batch, recent, pairs, before, taken, floor: meta.floor, writes: 0, events }
    }

    /// What watchers are told of the writes so far.
    pub(crate) fn into_events(self) -> Vec<WatchEvent> {
        self.events
    }

    /// The keyspace's revision as of now: the command's own once it has written.
    pub(crate) fn revision(&self) -> i64 {
        if self.writes == 0 { self.before } else { self.taken }
    }

    /// The keyspace as reads of the command see it.
    pub(crate) fn view(&self) -> View<'_> {
        View { rows: &*self.batch, revision: self.revision(), floor: self.floor, pairs: None }
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`KvError::KeyNotFound`] when value or lease of a missing key should be kept; nothing is written
    /// then.
    pub(crate) fn put(&mut self, put: &Put) -> Result<PutOutcome, Refusal> {
        let known = self.recent.record(&put.key);
        let view = self.view();
        let before = match known {
            Some(record) => Some(record),
            None => view.current(&put.key)?,
        };
        if before.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(KvError::KeyNotFound.into());
        }
        let mut prev_kv = None;
        let mut value = put.value.clone();
        if let Some(record) = before
            && (put.prev_kv || put.ignore_value)
        {
            let pair = view.pair(&Found { key: put.key.clone(), record })?;
            if put.ignore_value {
                value = pair.value.clone();
            }
            prev_kv = put.prev_kv.then_some(pair);
        }
        let modified = self.stamp();
        let record = Record {
            create: before.map_or(modified.revision, |record| record.create),
            modified,
            version: before.map_or(1, |record| record.version + 1),
            lease: match before {
                Some(record) if put.ignore_lease => record.lease,
                Some(_) | None => put.lease,
            },
        };
        self.attach(&put.key, before.map_or(0, |record| record.lease), record.lease);
        self.batch.put(&layout::current(&put.key), &record.encode_current());
        self.batch.put(&layout::history(&put.key, modified), &record.encode_history(&value));
        self.batch.put(
            &layout::event(modified),
            &encode_event(Change::Put, before.map(|record| record.modified), &put.key),
        );
        self.recent.note(&put.key, record);
        self.pairs.outdate(&put.key, self.taken);
        let Record { create: create_revision, version, lease, .. } = record;
        let key = put.key.clone();
        let mod_revision = self.taken;
        self.tell(
            EventKind::Put,
            KeyValue { key, create_revision, mod_revision, version, value, lease },
        );
        Ok(PutOutcome { prev_kv })
    }

    /// Deletes the keys of a range.
    pub(crate) fn delete_range(
        &mut self,
        delete: &DeleteRange,
    ) -> Result<DeleteRangeOutcome, Refusal> {
        let view = self.view();
        let mut found = Vec::new();
        if delete.range_end.is_empty() {
            if let Some(record) = view.current(&delete.key)? {
                found.push(Found { key: delete.key.clone(), record });
            }
        } else {
            let range = KeyRange::from_request(&delete.key, &delete.range_end);
            view.each_current(&range, &mut |key, record| {
                found.push(Found { key: Bytes::copy_from_slice(key), record });
                ControlFlow::Continue(())
            })?;
        }
        let mut prev_kvs = Vec::new();
        if delete.prev_kv {
            prev_kvs = found.iter().map(|found| view.pair(found)).collect::<Result<_, _>>()?;
        }
        for found in &found {
            self.remove(found);
        }
        Ok(DeleteRangeOutcome { deleted: found.len() as i64, prev_kvs })
    }

    /// Of a write that was just made; keys and values are shared, so this copies a few words.
    fn tell(&mut self, kind: EventKind, kv: KeyValue) {
        self.events.push(WatchEvent { kind: kind as i32, kv, prev_kv: None });
    }

    /// Deletes one key, which exists.
    fn remove(&mut self, found: &Found) {
        let Found { key, record } = found;
        let stamp = self.stamp();
        self.attach(key, record.lease, 0);
        self.batch.delete(&layout::current(key));
        self.recent.forget(key);
        self.pairs.outdate(key, self.taken);
        self.batch.put(&layout::history(key, stamp), &TOMBSTONE);
        self.batch
            .put(&layout::event(stamp), &encode_event(Change::Delete, Some(record.modified), key));
        self.tell(EventKind::Delete, deleted(key.clone(), self.taken));
    }

    /// Deletes keys, all of which exist. Returns how many.
    pub(crate) fn delete_keys(&mut self, keys: Vec<Bytes>) -> Result<i64, Refusal> {
        let view = self.view();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let record = view.current(&key)?.ok_or_else(|| {
                damaged(&layout::current(&key), &"attached to a lease, and not there")
            })?;
            found.push(Found { key, record });
        }
        found.iter().for_each(|found| self.remove(found));
        Ok(found.len() as i64)
    }

    /// `key` goes from one lease to another; 0 is none.
    fn attach(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if from != 0 {
            self.batch.delete(&layout::attached(from, key));
        }
        if to != 0 {
            self.batch.put(&layout::attached(to, key), &[]);
        }
    }

    /// The position of the next write.
    fn stamp(&mut self) -> Stamp {
        let stamp = Stamp { revision: self.taken, sub: self.writes };
        self.writes =
            self.writes.checked_add(1).expect("a command writes far fewer than 2^32 rows");
        stamp
    }
}

/// What watchers are told of a key that was deleted.
pub(crate) fn deleted(key: Bytes, mod_revision: i64) -> KeyValue {
    KeyValue { key, mod_revision, ..KeyValue::default() }
}
