//! The KV service.
//!
//! The life of a request: it is checked ([`validate`]), turned into a command or query
//! ([`translate`]), sized ([`KvService::propose`]) and handed to the backend; what comes back is an
//! outcome, which becomes a response under a header of this node ([`Desk::header`]).

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use quorate_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse, kv_server,
    request_op::Request as OpRequest,
};
use quorate_types::kv::{self, KvError, command, outcome, query};
use tonic::{Request, Response, Status};

use crate::auth::caller::{Identity, identity, peer};
use crate::auth::table::RANGE_STREAM;
use crate::backend::{Answer, Backend, Consistency};
use crate::desk::Desk;
use crate::error::ApiError;
use crate::pages::{Pages, Parts};
use crate::{translate, validate};

/// How often a physical compaction looks how far the sweep has come.
const SWEEP_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// etcd's KV service over a backend.
pub(crate) struct KvService<B> {
    pub(crate) desk: Arc<Desk<B>>,
}

impl<B> Clone for KvService<B> {
    fn clone(&self) -> Self {
        Self { desk: Arc::clone(&self.desk) }
    }
}

impl<B: Backend> KvService<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>) -> Self {
        Self { desk }
    }

    /// Proposes a command, if it is small enough for the log.
    async fn propose(&self, body: command::Body, by: Option<Identity>) -> Result<Outcome, Status> {
        let command = kv::Command { body: Some(body), ..kv::Command::default() };
        if command.encoded_len() > self.desk.config.max_request_bytes {
            return Err(ApiError::RequestTooLarge.into());
        }
        self.open(self.desk.propose(command, by.as_ref()).await?)
    }

    pub(crate) async fn read(
        &self,
        body: query::Body,
        consistency: Consistency,
        by: Option<&Identity>,
    ) -> Result<Outcome, Status> {
        let query = kv::Query { body: Some(body), caller: None };
        self.open(self.desk.read(query, consistency, by).await?)
    }

    /// Whether nothing that a compaction at `revision` has made invisible is left here.
    async fn is_swept(&self, revision: i64) -> Result<bool, Status> {
        let query = kv::Query { body: Some(query::Body::Status(kv::Status {})), caller: None };
        // The local replica's own, even if that is behind others.
        let answer = self.desk.backend.read(query, Consistency::Serializable).await?;
        match answer.outcome.body {
            Some(outcome::Body::Status(now)) => Ok(now.swept_revision >= revision),
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    /// Takes an answer apart; a refusal of the state machine becomes an error.
    fn open(&self, answer: Answer) -> Result<Outcome, Status> {
        let header = self.desk.header(answer.outcome.revision, answer.raft_term);
        match answer.outcome.body {
            Some(outcome::Body::Error(error)) => {
                Err(ApiError::from(KvError::try_from(error).unwrap_or(KvError::Malformed)).into())
            }
            Some(body) => Ok((header, body)),
            None => Err(ApiError::UnexpectedOutcome.into()),
        }
    }
}

/// The header of the response, and what it is about.
pub(crate) type Outcome = (ResponseHeader, outcome::Body);

#[tonic::async_trait]
impl<B: Backend> kv_server::Kv for KvService<B> {
    type RangeStreamStream = Parts;

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let (by, request) = (identity(&request), request.into_inner());
        validate::range(&request)?;
        let consistency = consistency(request.serializable);
        match self
            .read(query::Body::Range(translate::range(request)), consistency, by.as_ref())
            .await?
        {
            (header, outcome::Body::Range(range)) => {
                Ok(Response::new(translate::range_response(header, range)))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    /// A range that cannot be read at all is refused before anything is streamed.
    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Parts>, Status> {
        let (by, peer, request) = (identity(&request), peer(&request), request.into_inner());
        validate::range_stream(&request)?;
        let parts = Pages::new(self.clone(), by.clone(), request).into_parts().await?;
        Ok(Response::new(self.desk.guard.audit.of_stream(RANGE_STREAM, (by, peer), parts)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let (by, request) = (identity(&request), request.into_inner());
        validate::put(&request)?;
        match self.propose(command::Body::Put(translate::put(request)), by).await? {
            (header, outcome::Body::Put(put)) => {
                Ok(Response::new(translate::put_response(header, put)))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let (by, request) = (identity(&request), request.into_inner());
        validate::delete_range(&request)?;
        match self.propose(command::Body::DeleteRange(translate::delete_range(request)), by).await?
        {
            (header, outcome::Body::DeleteRange(delete)) => {
                Ok(Response::new(translate::delete_range_response(header, delete)))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let (by, request) = (identity(&request), request.into_inner());
        validate::txn(&request, self.desk.config.max_txn_ops)?;
        let read = read_consistency(&request);
        let txn = translate::txn(request);
        let outcome = match read {
            Some(consistency) => self.read(query::Body::Txn(txn), consistency, by.as_ref()).await?,
            None => self.propose(command::Body::Txn(txn), by).await?,
        };
        match outcome {
            (header, outcome::Body::Txn(txn)) => {
                Ok(Response::new(translate::txn_response(header, txn)?))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    /// A physical one is answered once this node's sweep has passed its revision. No caller can hurry the
    /// sweep, and it waits for as long as the caller does.
    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let by = identity(&request);
        let CompactionRequest { revision, physical } = request.into_inner();
        match self.propose(command::Body::Compact(kv::Compact { revision }), by).await? {
            (header, outcome::Body::Compact(_)) => {
                while physical && !self.is_swept(revision).await? {
                    tokio::time::sleep(SWEEP_LOOK_INTERVAL).await;
                }
                Ok(Response::new(CompactionResponse { header: Some(header) }))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }
}

pub(crate) const fn consistency(serializable: bool) -> Consistency {
    match serializable {
        true => Consistency::Serializable,
        false => Consistency::Linearizable,
    }
}

/// How to run a transaction of nothing but ranges; `None` when it must go through the log. It is
/// serializable only if it has ranges and all of them ask for it: bare compares promise what is promised
/// by default. Nested transactions go through the log, as etcd's do.
fn read_consistency(txn: &TxnRequest) -> Option<Consistency> {
    let (mut ranges, mut serializable) = (0usize, true);
    for op in txn.success.iter().chain(&txn.failure) {
        let Some(OpRequest::RequestRange(range)) = &op.request else { return None };
        ranges += 1;
        serializable &= range.serializable;
    }
    Some(consistency(serializable && ranges > 0))
}
