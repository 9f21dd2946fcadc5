//! Which queries look at a few keys at most, so that they are answered right where they are asked.

use quorate_types::kv::{Op, Txn, op, query};

/// True for a query that looks at a few single keys, or at none.
pub(super) fn looks_at_few(query: Option<&query::Body>) -> bool {
    match query {
        Some(query::Body::Range(range)) => range.range_end.is_empty(),
        Some(query::Body::Txn(txn)) => names_single_keys(txn),
        Some(
            query::Body::Events(_)
            | query::Body::Leases(_)
            | query::Body::LeaseKeys(_)
            | query::Body::HashKv(_)
            | query::Body::HashAll(_),
        ) => false,
        // All are answered, or refused, without looking at a key.
        Some(
            query::Body::Status(_)
            | query::Body::Conditions(_)
            | query::Body::Auth(_)
            | query::Body::LeaseTimeToLive(_)
            | query::Body::LeaseKeepAlive(_),
        )
        | None => true,
    }
}

/// True for a transaction of a few single keys; one that nests others is not looked into.
fn names_single_keys(txn: &Txn) -> bool {
    const KEYS_MAX: usize = 16;
    let ops = || txn.success.iter().chain(&txn.failure);
    let is_single = |op: &Op| match &op.body {
        Some(op::Body::Range(range)) => range.range_end.is_empty(),
        Some(op::Body::Put(_)) | None => true,
        Some(op::Body::DeleteRange(_) | op::Body::Txn(_)) => false,
    };
    txn.compares.len() + ops().count() <= KEYS_MAX
        && txn.compares.iter().all(|compare| compare.range_end.is_empty())
        && ops().all(is_single)
}

#[cfg(test)]
mod tests {
    use quorate_types::kv::{Compare, Range, Status};

    use super::*;

    fn is_point(body: query::Body) -> bool {
        looks_at_few(Some(&body))
    }

    #[test]
    fn only_queries_that_look_at_a_few_keys_stay_on_the_thread_that_serves_everybody() {
        let single = Range { key: "a".into(), ..Range::default() };
        let range = Range { range_end: "b".into(), ..single.clone() };
        let op = |range: &Range| Op { body: Some(op::Body::Range(range.clone())) };
        let txn = |ops: Vec<Op>| Txn { success: ops, ..Txn::default() };
        assert!(is_point(query::Body::Range(single.clone())));
        assert!(!is_point(query::Body::Range(range.clone())));
        assert!(is_point(query::Body::Txn(txn(vec![op(&single)]))));
        assert!(!is_point(query::Body::Txn(txn(vec![op(&single), op(&range)]))));
        assert!(!is_point(query::Body::Txn(txn(vec![op(&single); 100]))));
        let compare = Compare { range_end: "b".into(), ..Compare::default() };
        assert!(!is_point(query::Body::Txn(Txn { compares: vec![compare], ..Txn::default() })));
        assert!(is_point(query::Body::Status(Status {})));
    }
}
