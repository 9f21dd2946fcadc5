//! Which keys a transaction writes, and that it writes none of them twice.
//!
//! etcd's rule, evaluated over what *could* run rather than what will: two puts of one key collide, and
//! so do a put and a delete whose range holds its key; two deletes do not. The two branches of a
//! transaction never run together, so they are checked apart, and only what they may write counts
//! together towards the level above.

use std::collections::{BTreeMap, BTreeSet};

use quorate_api::etcdserverpb::{DeleteRangeRequest, RequestOp, TxnRequest, request_op::Request};

use crate::error::ApiError;

/// Checks both branches of `txn`.
///
/// # Errors
/// [`ApiError::DuplicateKey`].
pub(crate) fn check_writes(txn: &TxnRequest) -> Result<(), ApiError> {
    Writes::of_branch(&txn.success)?;
    Writes::of_branch(&txn.failure)?;
    Ok(())
}

/// What a list of operations may write.
#[derive(Default)]
struct Writes<'t> {
    puts: BTreeSet<&'t [u8]>,
    deletes: RangeSet<'t>,
}

impl<'t> Writes<'t> {
    fn of_branch(ops: &'t [RequestOp]) -> Result<Self, ApiError> {
        let mut writes = Self::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                writes.deletes.insert_request(delete);
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                let then = Self::of_branch(&txn.success)?;
                let otherwise = Self::of_branch(&txn.failure)?;
                writes.add(then.either(otherwise))?;
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                writes.add_put(&put.key)?;
            }
        }
        Ok(writes)
    }

    /// What one of two branches may write, whichever it will be.
    fn either(mut self, mut other: Self) -> Self {
        self.puts.append(&mut other.puts);
        self.deletes.append(other.deletes);
        self
    }

    /// Adds what runs in addition.
    fn add(&mut self, other: Self) -> Result<(), ApiError> {
        other.puts.into_iter().try_for_each(|key| self.add_put(key))?;
        // etcd too holds a nested delete only against what is looked at later.
        self.deletes.append(other.deletes);
        Ok(())
    }

    fn add_put(&mut self, key: &'t [u8]) -> Result<(), ApiError> {
        if self.deletes.contains(key) || !self.puts.insert(key) {
            return Err(ApiError::DuplicateKey);
        }
        Ok(())
    }
}

/// A set of keys: single ones, and disjoint ranges from a first key to the key after the last.
#[derive(Default)]
struct RangeSet<'t> {
    keys: BTreeSet<&'t [u8]>,
    ranges: BTreeMap<&'t [u8], &'t [u8]>,
}

impl<'t> RangeSet<'t> {
    /// Adds what a delete names. A delete without an upper bound collides with nothing in etcd, and
    /// clients use that: "delete from here on, then put" replaces a keyspace in one revision.
    fn insert_request(&mut self, delete: &'t DeleteRangeRequest) {
        match (&*delete.key, &*delete.range_end) {
            (key, []) => {
                self.keys.insert(key);
            }
            (_, [0]) => {}
            (start, end) => self.insert(start, end),
        }
    }

    /// Adds a range, joined with those that it touches.
    fn insert(&mut self, mut start: &'t [u8], mut end: &'t [u8]) {
        if end <= start {
            return;
        }
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back()
            && other_end >= start
        {
            self.ranges.remove(other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
    }

    fn append(&mut self, mut other: Self) {
        self.keys.append(&mut other.keys);
        other.ranges.into_iter().for_each(|(start, end)| self.insert(start, end));
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.keys.contains(key)
            || self.ranges.range(..=key).next_back().is_some_and(|(_, end)| key < *end)
    }
}
