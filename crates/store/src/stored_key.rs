//! By which key a command or a query finds its group.
//!
//! Shards are ranges of *stored* keys (see [`layout`](crate::layout)), so what the system keeps is routed as clients'
//! keys are: a lease by its record; users and roles by where theirs begin, since each change of them writes their
//! common revision too. A request that touches several keys is routed by
//! the first of them; whoever serves it has to hold the others too.

use quorate_types::kv;

use crate::layout::{self, ALARMS, AUTH, CONDITIONS, DOWNGRADE, SPACE_USER};

/// The stored key of a client's key.
#[must_use]
pub fn of_client(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 1);
    stored.push(SPACE_USER);
    stored.extend_from_slice(key);
    stored
}

/// The stored key that routes a command.
#[must_use]
pub fn of_command(command: &kv::Command) -> Vec<u8> {
    use kv::command::Body;
    match &command.body {
        Some(Body::Put(put)) => of_client(&put.key),
        Some(Body::DeleteRange(delete)) => of_client(&delete.key),
        Some(Body::Txn(txn)) => of_client(txn_key(txn)),
        Some(Body::LeaseGrant(grant)) => of_lease(grant.id),
        Some(Body::LeaseRevoke(revoke)) => of_lease(revoke.id),
        Some(Body::Auth(_)) => of_row(&AUTH),
        Some(Body::ChangeAlarm(_)) => of_row(&ALARMS),
        Some(Body::ChangeDowngrade(_)) => of_row(&DOWNGRADE),
        // History is the clients'.
        Some(Body::Compact(_)) | None => of_client(&[]),
    }
}

/// As [`of_command`], of a query.
#[must_use]
pub fn of_query(query: &kv::Query) -> Vec<u8> {
    use kv::query::Body;
    match &query.body {
        Some(Body::Range(range)) => of_client(&range.key),
        Some(Body::Txn(txn)) => of_client(txn_key(txn)),
        Some(Body::Events(events)) => of_client(&events.key),
        Some(Body::LeaseTimeToLive(asked)) => of_lease(asked.id),
        Some(Body::LeaseKeepAlive(asked)) => of_lease(asked.id),
        Some(Body::LeaseKeys(asked)) => of_lease(asked.id),
        Some(Body::Leases(_)) => of_row(&layout::leases().0),
        Some(Body::Auth(_)) => of_row(&AUTH),
        Some(Body::Conditions(_)) => of_row(&CONDITIONS),
        Some(Body::HashKv(_) | Body::HashAll(_) | Body::Status(_)) | None => of_client(&[]),
    }
}

fn of_lease(id: i64) -> Vec<u8> {
    of_row(&layout::lease(id))
}

/// A row of what exists now has its tag before the stored key.
fn of_row(row: &[u8]) -> Vec<u8> {
    row[1..].to_vec()
}

fn txn_key(txn: &kv::Txn) -> &[u8] {
    use kv::op::Body;
    if let Some(compare) = txn.compares.first() {
        return &compare.key;
    }
    let ops = txn.success.iter().chain(&txn.failure);
    ops.filter_map(|op| op.body.as_ref()).next().map_or(&[], |body| match body {
        Body::Range(range) => &range.key,
        Body::Put(put) => &put.key,
        Body::DeleteRange(delete) => &delete.key,
        Body::Txn(txn) => txn_key(txn),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put(key: &'static [u8]) -> kv::Put {
        kv::Put { key: Bytes::from_static(key), ..kv::Put::default() }
    }

    fn command(body: kv::command::Body) -> Vec<u8> {
        of_command(&kv::Command { body: Some(body), ..kv::Command::default() })
    }

    fn query(body: kv::query::Body) -> Vec<u8> {
        of_query(&kv::Query { body: Some(body), caller: None })
    }

    fn txn_of(op: kv::op::Body) -> kv::Txn {
        kv::Txn { failure: vec![kv::Op { body: Some(op) }], ..kv::Txn::default() }
    }

    #[test]
    fn clients_are_routed_by_a_key_that_they_touch() {
        assert_eq!(command(kv::command::Body::Put(put(b"a"))), b"\x02a");
        let nested = txn_of(kv::op::Body::Txn(txn_of(kv::op::Body::Put(put(b"b")))));
        assert_eq!(command(kv::command::Body::Txn(nested.clone())), b"\x02b");
        let compare = kv::Compare { key: Bytes::from_static(b"c"), ..kv::Compare::default() };
        let guarded = kv::Txn { compares: vec![compare], ..nested };
        assert_eq!(query(kv::query::Body::Txn(guarded)), b"\x02c");
        assert_eq!(of_command(&kv::Command::default()), b"\x02");
    }

    #[test]
    fn a_lease_is_routed_by_its_own_record_and_lies_before_all_clients_keys() {
        let grant = kv::LeaseGrant { id: 7, ttl_s: 60 };
        let granted = command(kv::command::Body::LeaseGrant(grant));
        assert_eq!(granted, b"\x01lr\0\0\0\0\0\0\0\x07");
        let asked = kv::LeaseKeepAlive { id: 7 };
        assert_eq!(query(kv::query::Body::LeaseKeepAlive(asked)), granted);
        let other = kv::LeaseKeepAlive { id: 8 };
        assert_ne!(query(kv::query::Body::LeaseKeepAlive(other)), granted);
        let all = query(kv::query::Body::Leases(kv::Leases::default()));
        assert!(all < granted && granted < of_client(&[]));
    }
}
