//! What a command or query needs, found by looking at it alone.

use bytes::Bytes;

use crate::KeyRange;
use crate::kv::{Compare, DeleteRange, Op, Put, Range, Txn, command, op, query};

/// What somebody must be allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Needs {
    /// Nothing: it shows nothing that anybody keeps.
    Nothing,
    /// To be a user.
    User,
    /// To have the role root.
    Root,
    /// All of these ranges.
    Keys {
        /// To be read as a whole.
        read: Vec<KeyRange>,
        /// To be written as a whole.
        write: Vec<KeyRange>,
    },
    /// What the auth store itself says of the question: see `Directory::answer`.
    Itself,
}

impl Needs {
    /// What a command needs.
    #[must_use]
    pub fn of_command(body: &command::Body) -> Self {
        match body {
            command::Body::Put(put) => Self::collect(|keys| keys.put(put)),
            command::Body::DeleteRange(delete) => Self::collect(|keys| keys.delete(delete)),
            command::Body::Txn(txn) => Self::collect(|keys| keys.txn(txn)),
            // It takes history from everybody.
            command::Body::Compact(_)
            | command::Body::Auth(_)
            | command::Body::ChangeAlarm(_)
            | command::Body::ChangeDowngrade(_) => Self::Root,
            // Nobody asks for a revoke by expiry.
            command::Body::LeaseRevoke(revoke) if revoke.expired_in_term != 0 => Self::Nothing,
            command::Body::LeaseGrant(_) | command::Body::LeaseRevoke(_) => Self::User,
        }
    }

    /// The leases whose attached keys must all be the caller's to write, beside what it needs otherwise: who
    /// ends a lease deletes them, and who attaches another key to one shares its end with them.
    #[must_use]
    pub fn leases_of(body: &command::Body) -> Vec<i64> {
        fn of_txn(txn: &Txn, leases: &mut Vec<i64>) {
            for Op { body } in txn.success.iter().chain(&txn.failure) {
                match body {
                    Some(op::Body::Put(put)) => leases.push(put.lease),
                    Some(op::Body::Txn(txn)) => of_txn(txn, leases),
                    Some(op::Body::Range(_) | op::Body::DeleteRange(_)) | None => {}
                }
            }
        }
        let mut leases = Vec::new();
        match body {
            command::Body::Put(put) => leases.push(put.lease),
            command::Body::Txn(txn) => of_txn(txn, &mut leases),
            command::Body::LeaseRevoke(revoke) if revoke.expired_in_term == 0 => {
                leases.push(revoke.id);
            }
            command::Body::LeaseRevoke(_)
            | command::Body::LeaseGrant(_)
            | command::Body::DeleteRange(_)
            | command::Body::Compact(_)
            | command::Body::Auth(_)
            | command::Body::ChangeAlarm(_)
            | command::Body::ChangeDowngrade(_) => {}
        }
        leases.retain(|lease| *lease != 0);
        leases.sort_unstable();
        leases.dedup();
        leases
    }

    /// What a query needs.
    #[must_use]
    pub fn of_query(body: &query::Body) -> Self {
        match body {
            query::Body::Range(range) => Self::collect(|keys| keys.range(range)),
            query::Body::Txn(txn) => Self::collect(|keys| keys.txn(txn)),
            // The gateway asks for events, for watches that it has let in one by one.
            query::Body::Status(_) | query::Body::Events(_) => Self::Nothing,
            // Which keys are shown is looked at where they are known.
            query::Body::LeaseTimeToLive(_)
            | query::Body::LeaseKeepAlive(_)
            | query::Body::Leases(_)
            | query::Body::LeaseKeys(_)
            | query::Body::Conditions(_) => Self::User,
            query::Body::HashKv(_) | query::Body::HashAll(_) => Self::Root,
            query::Body::Auth(_) => Self::Itself,
        }
    }

    /// To read single keys.
    #[must_use]
    pub fn reads(keys: &[Bytes]) -> Self {
        Self::Keys { read: keys.iter().map(KeyRange::single).collect(), write: Vec::new() }
    }

    fn collect(look: impl FnOnce(&mut Keys)) -> Self {
        let mut keys = Keys::default();
        look(&mut keys);
        Self::Keys { read: keys.read, write: keys.write }
    }
}

#[derive(Default)]
struct Keys {
    read: Vec<KeyRange>,
    write: Vec<KeyRange>,
}

impl Keys {
    /// Compares tell as much as reads; and whichever branch runs, both must be allowed.
    fn txn(&mut self, txn: &Txn) {
        for Compare { key, range_end, .. } in &txn.compares {
            self.read.push(KeyRange::from_request(key, range_end));
        }
        for Op { body } in txn.success.iter().chain(&txn.failure) {
            match body {
                Some(op::Body::Range(range)) => self.range(range),
                Some(op::Body::Put(put)) => self.put(put),
                Some(op::Body::DeleteRange(delete)) => self.delete(delete),
                Some(op::Body::Txn(txn)) => self.txn(txn),
                // Refused for its form.
                None => {}
            }
        }
    }

    fn range(&mut self, Range { key, range_end, .. }: &Range) {
        self.read.push(KeyRange::from_request(key, range_end));
    }

    fn put(&mut self, put: &Put) {
        self.write.push(KeyRange::single(&put.key));
        if put.prev_kv {
            self.read.push(KeyRange::single(&put.key));
        }
    }

    fn delete(&mut self, delete: &DeleteRange) {
        let range: fn(&Bytes, &Bytes) -> KeyRange = KeyRange::from_request;
        self.write.push(range(&delete.key, &delete.range_end));
        if delete.prev_kv {
            self.read.push(range(&delete.key, &delete.range_end));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(0u8..3, 1..3).prop_map(Bytes::from)
    }

    fn op() -> impl Strategy<Value = op::Body> {
        let end = || proptest::option::of(key()).prop_map(Option::unwrap_or_default);
        let leaf = prop_oneof![
            (key(), end()).prop_map(|(key, range_end)| op::Body::Range(Range {
                key,
                range_end,
                ..Range::default()
            })),
            (key(), any::<bool>(), any::<i64>()).prop_map(|(key, prev_kv, lease)| op::Body::Put(
                Put { key, prev_kv, lease, ..Put::default() }
            )),
            (key(), end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| {
                op::Body::DeleteRange(DeleteRange { key, range_end, prev_kv })
            }),
        ];
        leaf.prop_recursive(8, 64, 3, |inner| {
            let ops = || proptest::collection::vec(inner.clone(), 0..3);
            (proptest::collection::vec(key(), 0..2), ops(), ops()).prop_map(
                |(compared, success, failure)| {
                    let op = |body| Op { body: Some(body) };
                    op::Body::Txn(Txn {
                        compares: compared
                            .into_iter()
                            .map(|key| Compare { key, ..Compare::default() })
                            .collect(),
                        success: success.into_iter().map(op).collect(),
                        failure: failure.into_iter().map(op).collect(),
                    })
                },
            )
        })
    }

    /// The ranges of one operation that is no transaction.
    fn of_leaf(body: &op::Body) -> Needs {
        match body {
            op::Body::Range(range) => Needs::of_query(&query::Body::Range(range.clone())),
            op::Body::Put(put) => Needs::of_command(&command::Body::Put(put.clone())),
            op::Body::DeleteRange(delete) => {
                Needs::of_command(&command::Body::DeleteRange(delete.clone()))
            }
            op::Body::Txn(_) => unreachable!("a leaf"),
        }
    }

    /// Adds all leaves of all branches, and all compares.
    fn flatten(body: &op::Body, read: &mut Vec<KeyRange>, write: &mut Vec<KeyRange>) {
        let op::Body::Txn(txn) = body else {
            let Needs::Keys { read: r, write: w } = of_leaf(body) else { unreachable!("keys") };
            read.extend(r);
            write.extend(w);
            return;
        };
        read.extend(txn.compares.iter().map(|compare| KeyRange::single(&compare.key)));
        for op in txn.success.iter().chain(&txn.failure) {
            flatten(op.body.as_ref().expect("made with one"), read, write);
        }
    }

    proptest! {
        #[test]
        fn a_transaction_needs_what_all_its_nested_operations_need(op in op()) {
            let (mut read, mut write) = (Vec::new(), Vec::new());
            flatten(&op, &mut read, &mut write);
            let txn = Txn { success: vec![Op { body: Some(op) }], ..Txn::default() };
            let as_command = Needs::of_command(&command::Body::Txn(txn.clone()));
            prop_assert_eq!(&as_command, &Needs::of_query(&query::Body::Txn(txn)));
            let Needs::Keys { read: found_read, write: found_write } = as_command else {
                unreachable!("keys")
            };
            prop_assert_eq!((found_read, found_write), (read, write));
        }
    }

    #[test]
    fn what_shows_old_pairs_needs_to_read_them() {
        let key = Bytes::from_static(b"a");
        let one = || vec![KeyRange::single(&key)];
        let put = Put { key: key.clone(), prev_kv: true, ..Put::default() };
        let delete = DeleteRange { key: key.clone(), prev_kv: true, ..DeleteRange::default() };
        for body in [command::Body::Put(put), command::Body::DeleteRange(delete)] {
            assert_eq!(Needs::of_command(&body), Needs::Keys { read: one(), write: one() });
        }
    }
}
