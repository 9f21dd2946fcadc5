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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use quorate_api::etcdserverpb::PutRequest;

    use super::*;

    /// The rule as a slow twin: every write with the path of branches that leads to it.
    #[derive(Clone, Debug)]
    struct Write {
        put: Option<Bytes>,
        delete: Option<(Bytes, Bytes)>,
    }

    fn key() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(0u8..3, 1..3).prop_map(Bytes::from)
    }

    fn end() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(0u8..3, 0..3).prop_map(Bytes::from)
    }

    fn write() -> impl Strategy<Value = Write> {
        prop_oneof![
            key().prop_map(|key| Write { put: Some(key), delete: None }),
            (key(), end()).prop_map(|range| Write { put: None, delete: Some(range) }),
        ]
    }

    fn op(write: &Write) -> RequestOp {
        let request = match (write.put.clone(), write.delete.clone()) {
            (Some(key), _) => Request::RequestPut(PutRequest { key, ..PutRequest::default() }),
            (None, range) => {
                let (key, range_end) = range.unwrap_or_default();
                Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false })
            }
        };
        RequestOp { request: Some(request) }
    }

    fn deletes(write: &Write, key: &Bytes) -> bool {
        write.delete.as_ref().is_some_and(|(start, end)| match end.as_ref() {
            [] => start == key,
            [0] => false,
            _ => start <= key && key < end,
        })
    }

    /// Any put collides with any other put of its key and with any delete over it.
    fn collide(writes: &[Write]) -> bool {
        writes.iter().enumerate().any(|(at, write)| {
            write.put.as_ref().is_some_and(|key| {
                let others = writes.iter().enumerate().filter(|(other, _)| *other != at);
                others.clone().any(|(_, other)| other.put.as_ref() == Some(key))
                    || others.clone().any(|(_, other)| deletes(other, key))
            })
        })
    }

    proptest! {
        #[test]
        fn one_level_is_refused_if_and_only_if_two_writes_collide(
            writes in proptest::collection::vec(write(), 0..6),
        ) {
            let txn = TxnRequest { success: writes.iter().map(op).collect(), ..Default::default() };
            let expected = if collide(&writes) { Err(ApiError::DuplicateKey) } else { Ok(()) };
            prop_assert_eq!(check_writes(&txn), expected);
            // The other branch is checked in the same way, and apart from the first.
            let txn = TxnRequest { failure: txn.success.clone(), success: txn.success, ..Default::default() };
            prop_assert_eq!(check_writes(&txn), expected);
        }

        #[test]
        fn a_nested_list_collides_as_if_it_stood_in_front(
            inner in proptest::collection::vec(write(), 0..4),
            outer in proptest::collection::vec(write(), 0..4),
        ) {
            let nested = TxnRequest { success: inner.iter().map(op).collect(), ..Default::default() };
            let mut ops = vec![RequestOp { request: Some(Request::RequestTxn(nested)) }];
            ops.extend(outer.iter().map(op));
            let flat: Vec<_> = inner.into_iter().chain(outer).collect();
            let expected = if collide(&flat) { Err(ApiError::DuplicateKey) } else { Ok(()) };
            prop_assert_eq!(check_writes(&TxnRequest { success: ops, ..Default::default() }), expected);
        }
    }
}
