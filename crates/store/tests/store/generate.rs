//! Random commands and questions: few keys and small numbers, so that they meet.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_types::kv::compare::Target;
use quorate_types::kv::{
    Command, Compact, Compare, DeleteRange, LeaseGrant, LeaseRevoke, Op, Put, Range, Txn, command,
    op,
};

/// A key: prefixes of each other, with zero bytes and the largest byte.
pub(crate) fn key() -> impl Strategy<Value = Bytes> {
    const KEYS: [&[u8]; 10] =
        [b"a", b"a\0", b"a\0\0", b"a\x01", b"aa", b"b", b"b\xff", b"\0", b"\xff", b"\xff\xff"];
    prop::sample::select(&KEYS[..]).prop_map(Bytes::from_static)
}

/// A key, one half of the time one of two: so that one key gets a long history.
fn hot_key() -> impl Strategy<Value = Bytes> {
    prop_oneof![2 => key(), 1 => Just(Bytes::from_static(b"a")), 1 => Just(Bytes::from_static(b"a\0"))]
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => Just(Bytes::new()), 2 => Just(Bytes::from_static(b"\0")), 3 => key()]
}

/// Around the revisions that a short history has.
fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0i64), 1 => -3i64..0, 6 => 1i64..40]
}

fn bound() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0i64), 1 => -1i64..25]
}

pub(crate) fn range() -> impl Strategy<Value = Range> {
    let what = (key(), range_end(), prop_oneof![2 => Just(0i64), 1 => -1i64..6], revision());
    let how = (0i32..3, 0i32..5, prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    let bounds = (bound(), bound(), bound(), bound());
    let page_bytes = prop_oneof![6 => Just(0u64), 1 => 1u64..60];
    let all = (what, how, bounds, page_bytes);
    all.prop_map(|((key, range_end, limit, revision), how, bounds, page_bytes)| Range {
        key,
        range_end,
        limit,
        revision,
        sort_order: how.0,
        sort_target: how.1,
        keys_only: how.2,
        count_only: how.3,
        min_mod_revision: bounds.0,
        max_mod_revision: bounds.1,
        min_create_revision: bounds.2,
        max_create_revision: bounds.3,
        page_bytes,
    })
}

fn put() -> impl Strategy<Value = Put> {
    let value = vec(0u8..4, 0..3).prop_map(Bytes::from);
    let flags = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let lease = prop_oneof![8 => Just(0i64), 2 => Just(7i64), 1 => lease()];
    (hot_key(), value, lease, flags).prop_map(|(key, value, lease, flags)| Put {
        key,
        value,
        lease,
        prev_kv: flags.0,
        ignore_value: flags.1,
        ignore_lease: flags.2,
    })
}

/// One of few leases, one of them negative, as etcd allows; 0 is none.
pub(crate) fn lease() -> impl Strategy<Value = i64> {
    prop::sample::select(&[0i64, 7, 7, 8, -1, i64::MAX][..])
}

/// Well formed or not.
fn lease_grant() -> impl Strategy<Value = LeaseGrant> {
    let ttl_s = prop_oneof![8 => 1i64..10, 1 => -1i64..1, 1 => Just(9_000_000_001)];
    (lease(), ttl_s).prop_map(|(id, ttl_s)| LeaseGrant { id, ttl_s })
}

fn lease_revoke() -> impl Strategy<Value = LeaseRevoke> {
    (lease(), prop_oneof![2 => Just(0u64), 1 => 1u64..3])
        .prop_map(|(id, expired_in_term)| LeaseRevoke { id, expired_in_term })
}

fn delete_range() -> impl Strategy<Value = DeleteRange> {
    (hot_key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRange {
        key,
        range_end,
        prev_kv,
    })
}

fn compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (-1i64..4).prop_map(|version| Some(Target::Version(version))),
        (0i64..20).prop_map(|revision| Some(Target::CreateRevision(revision))),
        (0i64..20).prop_map(|revision| Some(Target::ModRevision(revision))),
        vec(0u8..4, 0..2).prop_map(|value| Some(Target::Value(value.into()))),
        lease().prop_map(|lease| Some(Target::Lease(lease))),
        Just(None),
    ];
    (hot_key(), range_end(), 0i32..5, target).prop_map(|(key, range_end, result, target)| Compare {
        key,
        range_end,
        result,
        target,
    })
}

/// A transaction, nested up to three deep.
fn txn() -> impl Strategy<Value = Txn> {
    let op = prop_oneof![
        3 => range().prop_map(op::Body::Range),
        4 => put().prop_map(op::Body::Put),
        2 => delete_range().prop_map(op::Body::DeleteRange),
    ];
    op.prop_recursive(3, 12, 3, |inner| txn_of(inner).prop_map(op::Body::Txn)).prop_flat_map(
        |body| {
            // A nested one stands alone half of the time, and among others otherwise.
            let more = prop_oneof![
                range().prop_map(op::Body::Range),
                put().prop_map(op::Body::Put),
                delete_range().prop_map(op::Body::DeleteRange),
            ];
            (vec(compare(), 0..3), vec(more, 0..3), any::<bool>()).prop_map(
                move |(compares, more, success)| {
                    let mut ops: Vec<_> = more.into_iter().map(wrap).collect();
                    ops.insert(ops.len() / 2, wrap(body.clone()));
                    let (success, failure) =
                        if success { (ops, Vec::new()) } else { (Vec::new(), ops) };
                    Txn { compares, success, failure }
                },
            )
        },
    )
}

fn txn_of(op: impl Strategy<Value = op::Body> + Clone) -> impl Strategy<Value = Txn> {
    (vec(compare(), 0..2), vec(op.clone(), 0..3), vec(op, 0..3)).prop_map(
        |(compares, success, failure)| Txn {
            compares,
            success: success.into_iter().map(wrap).collect(),
            failure: failure.into_iter().map(wrap).collect(),
        },
    )
}

fn wrap(body: op::Body) -> Op {
    Op { body: Some(body) }
}

/// A well-formed command.
pub(crate) fn command() -> impl Strategy<Value = Command> {
    let at = prop_oneof![20 => Just(0i64), 1 => 1i64..60];
    let body = prop_oneof![
        8 => put().prop_map(command::Body::Put),
        4 => delete_range().prop_map(command::Body::DeleteRange),
        8 => txn().prop_map(command::Body::Txn),
        2 => revision().prop_map(|revision| command::Body::Compact(Compact { revision })),
        3 => lease_grant().prop_map(command::Body::LeaseGrant),
        1 => lease_revoke().prop_map(command::Body::LeaseRevoke),
    ];
    (at, body).prop_map(|(at_revision, body)| Command {
        at_revision,
        body: Some(body),
        caller: None,
    })
}
