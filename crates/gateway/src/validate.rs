//! What a request must be before it may become a command: the checks of etcd's front door, in its order.
//!
//! A transaction has three limits. Two are etcd's: per level the larger of compares, success and failure
//! operations is counted, a nested transaction gets what its outer levels leave
//! ([`GatewayConfig::max_txn_ops`](crate::GatewayConfig)), and no key is written twice
//! (`writes`). The third is ours, because the first lets branches multiply: a cap on
//! the total ([`TXN_OPS_TOTAL_MAX`]) and on the depth ([`TXN_DEPTH_MAX`]).

use quorate_api::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget},
    range_request::{SortOrder, SortTarget},
    request_op::Request,
};

use crate::error::ApiError;
use crate::writes::check_writes;

/// Compares and operations of one transaction, all levels and branches together. Every replica evaluates
/// a transaction at apply, and while it does, nothing else of the group is applied.
pub const TXN_OPS_TOTAL_MAX: usize = 10_000;

/// Levels of nested transactions. Decoders, ours and those of clients, stop at a depth of 100 messages,
/// and a level takes two; a command must never be accepted that the replicas cannot read.
pub const TXN_DEPTH_MAX: usize = 32;

/// Checks a range.
pub(crate) fn range(request: &RangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(ApiError::InvalidSort);
    }
    Ok(())
}

/// Checks a range that is to come in parts: those have the order of keys, and leave nothing out.
pub(crate) fn range_stream(request: &RangeRequest) -> Result<(), ApiError> {
    range(request)?;
    let order = SortOrder::try_from(request.sort_order).map_err(|_| ApiError::InvalidSort)?;
    let by_key = request.sort_target == SortTarget::Key as i32;
    // Without an order its target does not matter, as in etcd.
    if order != SortOrder::None && !(by_key && order == SortOrder::Ascend) {
        return Err(ApiError::StreamedSort);
    }
    let RangeRequest { min_mod_revision, max_mod_revision, .. } = request;
    let RangeRequest { min_create_revision, max_create_revision, .. } = request;
    let bounds = [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision];
    if bounds.iter().any(|bound| **bound != 0) {
        return Err(ApiError::StreamedFilters);
    }
    Ok(())
}

/// Checks a put.
pub(crate) fn put(request: &PutRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(ApiError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(ApiError::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete.
pub(crate) fn delete_range(request: &DeleteRangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() { Err(ApiError::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction with all that it holds.
pub(crate) fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), ApiError> {
    let mut budget = Budget { left_in_total: TXN_OPS_TOTAL_MAX };
    budget.check_level(request, ops_max, TXN_DEPTH_MAX)?;
    check_writes(request)
}

/// The walk over the levels of a transaction.
struct Budget {
    left_in_total: usize,
}

impl Budget {
    fn check_level(
        &mut self,
        txn: &TxnRequest,
        ops_max: usize,
        depth_max: usize,
    ) -> Result<(), ApiError> {
        let widest = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
        let left = ops_max.checked_sub(widest).ok_or(ApiError::TooManyOps)?;
        let count = txn.compare.len() + txn.success.len() + txn.failure.len();
        self.left_in_total = self.left_in_total.checked_sub(count).ok_or(ApiError::TooManyOps)?;
        let depth_left = depth_max.checked_sub(1).ok_or(ApiError::TooManyOps)?;
        txn.compare.iter().try_for_each(compare)?;
        let mut ops = txn.success.iter().chain(&txn.failure);
        ops.try_for_each(|op| self.check_op(op, left, depth_left))
    }

    fn check_op(
        &mut self,
        op: &RequestOp,
        ops_max: usize,
        depth_max: usize,
    ) -> Result<(), ApiError> {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request),
            Some(Request::RequestPut(request)) => put(request),
            Some(Request::RequestDeleteRange(request)) => delete_range(request),
            Some(Request::RequestTxn(request)) => self.check_level(request, ops_max, depth_max),
            // etcd's own answer to an operation that is none.
            None => Err(ApiError::KeyNotFound),
        }
    }
}

fn compare(compare: &Compare) -> Result<(), ApiError> {
    if compare.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if CompareTarget::try_from(compare.target).is_err()
        || CompareResult::try_from(compare.result).is_err()
    {
        return Err(ApiError::InvalidCompare);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const KEY: Bytes = Bytes::from_static(b"k");

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn get(key: Bytes) -> RequestOp {
        op(Request::RequestRange(RangeRequest { key, ..RangeRequest::default() }))
    }

    fn gets(count: usize) -> Vec<RequestOp> {
        (0..count).map(|_| get(KEY)).collect()
    }

    fn nested(success: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(then(success)))
    }

    fn then(success: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { success, ..TxnRequest::default() }
    }

    fn compare_of(key: Bytes, target: i32, result: i32) -> Compare {
        Compare { key, target, result, ..Compare::default() }
    }

    /// Both branches full at every level, down to `depth`.
    fn bushy(width: usize, depth: usize) -> TxnRequest {
        let branch = || match depth {
            0 => gets(width),
            _ => (0..width).map(|_| op(Request::RequestTxn(bushy(width, depth - 1)))).collect(),
        };
        TxnRequest { compare: Vec::new(), success: branch(), failure: branch() }
    }

    fn chain(levels: usize) -> TxnRequest {
        (1..levels).fold(then(gets(1)), |inner, _| then(vec![op(Request::RequestTxn(inner))]))
    }

    #[test]
    fn ranges() {
        let of = |key: &'static [u8], sort_order, sort_target| {
            let key = Bytes::from_static(key);
            range(&RangeRequest { key, sort_order, sort_target, ..RangeRequest::default() })
        };
        let rows = [
            ("plain", of(b"k", 0, 0), Ok(())),
            ("the last order and target that are known", of(b"k", 2, 4), Ok(())),
            ("no key", of(b"", 0, 0), Err(ApiError::EmptyKey)),
            ("an order from the future", of(b"k", 3, 0), Err(ApiError::InvalidSort)),
            ("a negative order", of(b"k", -1, 0), Err(ApiError::InvalidSort)),
            ("a target from the future", of(b"k", 0, 5), Err(ApiError::InvalidSort)),
            ("a negative target", of(b"k", 1, -1), Err(ApiError::InvalidSort)),
            ("no key comes first", of(b"", 9, 9), Err(ApiError::EmptyKey)),
        ];
        for (name, given, expected) in rows {
            assert_eq!(given, expected, "{name}");
        }
    }

    #[test]
    fn puts() {
        let of = |key: &'static [u8], value: &'static [u8], lease, ignore_value, ignore_lease| {
            let (key, value) = (Bytes::from_static(key), Bytes::from_static(value));
            put(&PutRequest { key, value, lease, ignore_value, ignore_lease, prev_kv: false })
        };
        let rows = [
            ("plain", of(b"k", b"v", 7, false, false), Ok(())),
            ("no value", of(b"k", b"", 0, false, false), Ok(())),
            ("both kept", of(b"k", b"", 0, true, true), Ok(())),
            ("a value and a kept lease", of(b"k", b"v", 0, false, true), Ok(())),
            ("no key", of(b"", b"v", 0, false, false), Err(ApiError::EmptyKey)),
            (
                "a value kept and given",
                of(b"k", b"v", 0, true, false),
                Err(ApiError::ValueProvided),
            ),
            ("a lease kept and given", of(b"k", b"", 7, false, true), Err(ApiError::LeaseProvided)),
            ("the value comes first", of(b"k", b"v", 7, true, true), Err(ApiError::ValueProvided)),
            ("no key comes before all", of(b"", b"v", 7, true, true), Err(ApiError::EmptyKey)),
        ];
        for (name, given, expected) in rows {
            assert_eq!(given, expected, "{name}");
        }
    }

    #[test]
    fn deletes_need_a_key() {
        let of = |key| delete_range(&DeleteRangeRequest { key, ..DeleteRangeRequest::default() });
        assert_eq!(of(KEY), Ok(()));
        assert_eq!(of(Bytes::new()), Err(ApiError::EmptyKey));
    }

    #[test]
    fn transactions() {
        let with = |compare| TxnRequest { compare: vec![compare], ..TxnRequest::default() };
        let beside = |count, inner: Vec<RequestOp>| {
            let mut ops = gets(count);
            ops.push(nested(inner));
            then(ops)
        };
        let rows = [
            ("empty", TxnRequest::default(), Ok(())),
            ("as many as may be", then(gets(128)), Ok(())),
            ("one too many", then(gets(129)), Err(ApiError::TooManyOps)),
            ("64 beside 64", beside(63, gets(64)), Ok(())),
            ("64 beside 65", beside(63, gets(65)), Err(ApiError::TooManyOps)),
            ("127 beside 2", beside(126, gets(2)), Err(ApiError::TooManyOps)),
            ("128 beside nothing", beside(127, Vec::new()), Ok(())),
            ("an operation that is none", then(vec![RequestOp::default()]), {
                Err(ApiError::KeyNotFound)
            }),
            ("an empty key nested", beside(1, vec![get(Bytes::new())]), Err(ApiError::EmptyKey)),
            ("a compare without a key", with(compare_of(Bytes::new(), 0, 0)), {
                Err(ApiError::EmptyKey)
            }),
            ("the last compare that is known", with(compare_of(KEY, 4, 3)), Ok(())),
            ("an unknown target", with(compare_of(KEY, 5, 0)), Err(ApiError::InvalidCompare)),
            ("an unknown result", with(compare_of(KEY, 0, -1)), Err(ApiError::InvalidCompare)),
            ("as deep as may be", chain(TXN_DEPTH_MAX), Ok(())),
            ("too deep", chain(TXN_DEPTH_MAX + 1), Err(ApiError::TooManyOps)),
            ("branches that multiply: 4 + 32 + 256 + 2048", bushy(4, 3), Ok(())),
            ("and again: 18,724", bushy(4, 4), Err(ApiError::TooManyOps)),
        ];
        for (name, request, expected) in rows {
            assert_eq!(txn(&request, 128), expected, "{name}");
        }
    }

    #[test]
    fn whatever_passes_can_be_read_again_by_replicas_and_clients() {
        use prost::Message;
        use quorate_types::kv;

        let deepest = chain(TXN_DEPTH_MAX);
        let request = TxnRequest::decode(Bytes::from(deepest.encode_to_vec()));
        let txn = crate::translate::txn(request.expect("a gateway reads the deepest request"));
        let command =
            kv::Command { body: Some(kv::command::Body::Txn(txn)), ..kv::Command::default() }
                .encode_to_vec();
        kv::Command::decode(Bytes::from(command)).expect("a replica reads the deepest command");
        let found = kv::outcome::Body::Range(kv::RangeOutcome {
            kvs: vec![kv::KeyValue::default()],
            more: false,
            count: 1,
        });
        let outcome = (0..TXN_DEPTH_MAX).fold(found, |inner, _| {
            let responses = vec![kv::Outcome { revision: 1, body: Some(inner) }];
            kv::outcome::Body::Txn(kv::TxnOutcome { succeeded: true, responses })
        });
        let outcome = kv::Outcome { revision: 1, body: Some(outcome) }.encode_to_vec();
        let outcome = kv::Outcome::decode(Bytes::from(outcome)).expect("and the deepest outcome");
        let Some(kv::outcome::Body::Txn(outcome)) = outcome.body else { panic!("a transaction") };
        let response = crate::translate::txn_response(Default::default(), outcome);
        let response = response.expect("a response").encode_to_vec();
        quorate_api::etcdserverpb::TxnResponse::decode(Bytes::from(response))
            .expect("a client reads the deepest response");
    }
}
