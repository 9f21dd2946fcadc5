//! Requests of etcd's API into commands and queries, outcomes back into responses.
//!
//! Keys and values are [`bytes::Bytes`] on both sides and move; nothing is copied. What arrives here has
//! passed [`validate`](crate::validate).

use quorate_api::etcdserverpb::{
    self as pb, ResponseHeader, ResponseOp, compare::CompareTarget, compare::TargetUnion,
    request_op::Request, response_op::Response,
};
use quorate_api::mvccpb;
use quorate_types::kv::{self, compare::Target, outcome};

use crate::error::ApiError;

/// A range; a revision below 0 is the present one.
pub(crate) fn range(request: pb::RangeRequest) -> kv::Range {
    kv::Range {
        key: request.key,
        range_end: request.range_end,
        limit: request.limit.max(0),
        revision: request.revision.max(0),
        sort_order: request.sort_order,
        sort_target: request.sort_target,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
        page_bytes: 0,
    }
}

/// A put.
pub(crate) fn put(request: pb::PutRequest) -> kv::Put {
    kv::Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

/// A delete.
pub(crate) fn delete_range(request: pb::DeleteRangeRequest) -> kv::DeleteRange {
    kv::DeleteRange { key: request.key, range_end: request.range_end, prev_kv: request.prev_kv }
}

/// A transaction.
pub(crate) fn txn(request: pb::TxnRequest) -> kv::Txn {
    let ops = |ops: Vec<pb::RequestOp>| ops.into_iter().map(op).collect();
    kv::Txn {
        compares: request.compare.into_iter().map(compare).collect(),
        success: ops(request.success),
        failure: ops(request.failure),
    }
}

fn op(op: pb::RequestOp) -> kv::Op {
    let body = op.request.map(|request| match request {
        // As it is: only outside of transactions is a revision below 0 the present one.
        Request::RequestRange(request) => {
            let revision = request.revision;
            kv::op::Body::Range(kv::Range { revision, ..range(request) })
        }
        Request::RequestPut(request) => kv::op::Body::Put(put(request)),
        Request::RequestDeleteRange(request) => kv::op::Body::DeleteRange(delete_range(request)),
        Request::RequestTxn(request) => kv::op::Body::Txn(txn(request)),
    });
    kv::Op { body }
}

/// A compare. The target says which field counts; a field of another target counts as absent, and an
/// absent one as its zero value: so etcd reads them.
fn compare(compare: pb::Compare) -> kv::Compare {
    let target = match (compare.target(), compare.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(version))) => Target::Version(version),
        (CompareTarget::Version, _) => Target::Version(0),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(revision))) => {
            Target::CreateRevision(revision)
        }
        (CompareTarget::Create, _) => Target::CreateRevision(0),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(revision))) => {
            Target::ModRevision(revision)
        }
        (CompareTarget::Mod, _) => Target::ModRevision(0),
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => Target::Value(value),
        (CompareTarget::Value, _) => Target::Value(bytes::Bytes::new()),
        (CompareTarget::Lease, Some(TargetUnion::Lease(lease))) => Target::Lease(lease),
        (CompareTarget::Lease, _) => Target::Lease(0),
    };
    kv::Compare {
        key: compare.key,
        range_end: compare.range_end,
        result: compare.result,
        target: Some(target),
    }
}

/// A stored pair.
pub(crate) fn key_value(kv: kv::KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

fn key_values(kvs: Vec<kv::KeyValue>) -> Vec<mvccpb::KeyValue> {
    kvs.into_iter().map(key_value).collect()
}

/// The answer to a range.
pub(crate) fn range_response(
    header: ResponseHeader,
    outcome: kv::RangeOutcome,
) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: key_values(outcome.kvs),
        more: outcome.more,
        count: outcome.count,
    }
}

/// The answer to a put.
pub(crate) fn put_response(header: ResponseHeader, outcome: kv::PutOutcome) -> pb::PutResponse {
    pb::PutResponse { header: Some(header), prev_kv: outcome.prev_kv.map(key_value) }
}

/// The answer to a delete.
pub(crate) fn delete_range_response(
    header: ResponseHeader,
    outcome: kv::DeleteRangeOutcome,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: outcome.deleted,
        prev_kvs: key_values(outcome.prev_kvs),
    }
}

/// The answer to a transaction.
///
/// # Errors
/// [`ApiError::UnexpectedOutcome`] when an operation's outcome is none that an operation can have.
pub(crate) fn txn_response(
    header: ResponseHeader,
    outcome: kv::TxnOutcome,
) -> Result<pb::TxnResponse, ApiError> {
    let responses = outcome.responses.into_iter().map(response_op).collect::<Result<_, _>>()?;
    Ok(pb::TxnResponse { header: Some(header), succeeded: outcome.succeeded, responses })
}

/// The answer to one operation: its header names nothing but the revision that the operation saw or made.
fn response_op(outcome: kv::Outcome) -> Result<ResponseOp, ApiError> {
    let header = ResponseHeader { revision: outcome.revision, ..ResponseHeader::default() };
    let response = match outcome.body {
        Some(outcome::Body::Range(range)) => Response::ResponseRange(range_response(header, range)),
        Some(outcome::Body::Put(put)) => Response::ResponsePut(put_response(header, put)),
        Some(outcome::Body::DeleteRange(delete)) => {
            Response::ResponseDeleteRange(delete_range_response(header, delete))
        }
        // etcd leaves even the revision out of a nested transaction's own header.
        Some(outcome::Body::Txn(txn)) => {
            Response::ResponseTxn(txn_response(ResponseHeader::default(), txn)?)
        }
        Some(
            outcome::Body::Compact(_)
            | outcome::Body::Status(_)
            | outcome::Body::Events(_)
            | outcome::Body::Auth(_)
            | outcome::Body::Error(_)
            | outcome::Body::LeaseGrant(_)
            | outcome::Body::LeaseRevoke(_)
            | outcome::Body::LeaseTimeToLive(_)
            | outcome::Body::LeaseKeepAlive(_)
            | outcome::Body::Leases(_)
            | outcome::Body::LeaseKeys(_)
            | outcome::Body::Hash(_)
            | outcome::Body::Conditions(_),
        )
        | None => return Err(ApiError::UnexpectedOutcome),
    };
    Ok(ResponseOp { response: Some(response) })
}
