//! What a request must be before it may become a command: the checks of etcd's front door, in its order.
//!
//! A transaction has three limits. Two are etcd's: per level the larger of compares, success and failure
//! operations is counted, a nested transaction gets what its outer levels leave
//! ([`GatewayConfig::max_txn_ops`](crate::GatewayConfig)), and no key is written twice
//! ([`writes`](crate::writes)). The third is ours, because the first lets branches multiply: a cap on
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
