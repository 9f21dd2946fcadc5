//! The Lease service.
//!
//! Grants and revokes are commands like a put. Keep-alives and questions for the time left go to whoever
//! leads, since nobody else keeps deadlines; the backend finds it.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{BoxStream, StreamExt};
use quorate_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, ResponseHeader, lease_server,
};
use quorate_types::Revision;
use quorate_types::kv::{self, KvError, command, outcome, query};
use tonic::{Request, Response, Status, Streaming};

use crate::auth::caller::{Identity, identity, peer};
use crate::backend::{Answer, Backend, Consistency};
use crate::closing::until_closed;
use crate::desk::Desk;
use crate::error::{ApiError, in_etcd_words};
use crate::watch::Hub;

/// Keep-alives of one stream that are under way at a time; the client's next ones wait in its stream.
const KEEP_ALIVES_MAX: usize = 256;

/// How often an id is drawn until one is free. With ten million leases one draw in 10^9 meets another.
const DRAWS_MAX: usize = 4;

/// etcd's Lease service over a backend.
pub(crate) struct LeaseService<B> {
    hub: Arc<Hub<B>>,
    desk: Arc<Desk<B>>,
    ids: LeaseIds,
}

/// Draws ids of leases: nobody can guess the next one, and it is below 2^53, since many clients keep
/// numbers in doubles.
#[derive(Default)]
pub(crate) struct LeaseIds {
    key: RandomState,
    drawn: AtomicU64,
}

impl LeaseIds {
    pub(crate) fn draw(&self) -> i64 {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let limit = Revision::LIMIT.value();
        // Positive, since the limit is.
        let id = (self.key.hash_one(number) >> 1) as i64 % limit;
        id.max(1)
    }
}

/// The header of the response, and what it is about.
type Outcome = (ResponseHeader, outcome::Body);

impl<B: Backend> Desk<B> {
    /// Proposes a command and takes the answer apart; a refusal of the state machine becomes an error.
    pub(crate) async fn carry_out(
        &self,
        body: command::Body,
        by: Option<&Identity>,
    ) -> Result<Outcome, Status> {
        let command = kv::Command { body: Some(body), ..kv::Command::default() };
        self.open(self.propose(command, by).await?)
    }

    /// Asks a question, as of now.
    pub(crate) async fn ask(
        &self,
        body: query::Body,
        by: Option<&Identity>,
    ) -> Result<Outcome, Status> {
        let query = kv::Query { body: Some(body), caller: None };
        self.open(self.read(query, Consistency::Linearizable, by).await?)
    }

    fn open(&self, answer: Answer) -> Result<Outcome, Status> {
        let header = self.header(answer.outcome.revision, answer.raft_term);
        match answer.outcome.body {
            Some(outcome::Body::Error(error)) => {
                Err(ApiError::from(KvError::try_from(error).unwrap_or(KvError::Malformed)).into())
            }
            Some(body) => Ok((header, body)),
            None => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    /// Ends a lease.
    pub(crate) async fn revoke_lease(
        &self,
        id: i64,
        by: Option<&Identity>,
    ) -> Result<ResponseHeader, Status> {
        let revoke = kv::LeaseRevoke { id, expired_in_term: 0 };
        match self.carry_out(command::Body::LeaseRevoke(revoke), by).await? {
            (header, outcome::Body::LeaseRevoke(_)) => Ok(header),
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    async fn keep_alive(
        &self,
        id: i64,
        by: Option<&Identity>,
    ) -> Result<LeaseKeepAliveResponse, Status> {
        match self.ask(query::Body::LeaseKeepAlive(kv::LeaseKeepAlive { id }), by).await? {
            (header, outcome::Body::LeaseKeepAlive(kept)) => {
                Ok(LeaseKeepAliveResponse { header: Some(header), id, ttl: kept.ttl_s })
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }
}

impl<B: Backend> LeaseService<B> {
    pub(crate) fn new(hub: Arc<Hub<B>>) -> Self {
        let desk = Arc::clone(&hub.desk);
        Self { hub, desk, ids: LeaseIds::default() }
    }

    async fn grant(
        &self,
        id: i64,
        ttl_s: i64,
        by: Option<&Identity>,
    ) -> Result<LeaseGrantResponse, Status> {
        let grant = kv::LeaseGrant { id, ttl_s: ttl_s.max(self.desk.config.lease_ttl_min_s) };
        match self.desk.carry_out(command::Body::LeaseGrant(grant), by).await? {
            (header, outcome::Body::LeaseGrant(granted)) => Ok(LeaseGrantResponse {
                header: Some(header),
                id: granted.id,
                ttl: granted.ttl_s,
                error: String::new(),
            }),
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }
}

#[tonic::async_trait]
impl<B: Backend> lease_server::Lease for LeaseService<B> {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let by = identity(&request);
        let LeaseGrantRequest { ttl, id } = request.into_inner();
        if id != 0 {
            return self.grant(id, ttl, by.as_ref()).await.map(Response::new);
        }
        let mut granted = self.grant(self.ids.draw(), ttl, by.as_ref()).await;
        for _ in 1..DRAWS_MAX {
            match &granted {
                Err(status) if status.message() == ApiError::LeaseExists.text() => {
                    granted = self.grant(self.ids.draw(), ttl, by.as_ref()).await;
                }
                _ => break,
            }
        }
        granted.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let by = identity(&request);
        let header = self.desk.revoke_lease(request.into_inner().id, by.as_ref()).await?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(header) }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

    /// Many at a time, answered in order. The stream ends with the first one that has no answer, as etcd's
    /// does, and when the gateway goes down: clients open another one.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (desk, by) = (Arc::clone(&self.desk), identity(&request));
        let caller = (by.clone(), peer(&request));
        let requests = request.into_inner().take_until(self.hub.closed());
        let answers = requests.map(move |request| {
            let (desk, by) = (Arc::clone(&desk), by.clone());
            async move { desk.keep_alive(request.map_err(in_etcd_words)?.id, by.as_ref()).await }
        });
        let answers = answers.buffered(KEEP_ALIVES_MAX);
        let path = "/etcdserverpb.Lease/LeaseKeepAlive";
        let answers = self.desk.guard.audit.of_stream(path, caller, answers);
        Ok(Response::new(until_closed(answers, self.hub.closed())))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let by = identity(&request);
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let asked = query::Body::LeaseTimeToLive(kv::LeaseTimeToLive { id });
        let answer = self.desk.ask(asked, by.as_ref()).await?;
        let (mut header, outcome::Body::LeaseTimeToLive(left)) = answer else {
            return Err(ApiError::UnexpectedOutcome.into());
        };
        let mut response = LeaseTimeToLiveResponse {
            header: None,
            id,
            ttl: left.ttl_s,
            granted_ttl: left.granted_ttl_s,
            keys: Vec::new(),
        };
        if keys && left.ttl_s >= 0 {
            match self.desk.ask(query::Body::LeaseKeys(kv::LeaseKeys { id }), by.as_ref()).await? {
                (later, outcome::Body::LeaseKeys(attached)) => {
                    header = later;
                    response.keys = attached.keys;
                    if !attached.exists {
                        // It has ended between the two questions.
                        (response.ttl, response.granted_ttl) = (-1, 0);
                    }
                }
                _ => return Err(ApiError::UnexpectedOutcome.into()),
            }
        }
        response.header = Some(header);
        Ok(Response::new(response))
    }

    /// In ascending order of their ids, and as of now; etcd's come by the time that they have left, as the
    /// answering member believes.
    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        match self.desk.ask(query::Body::Leases(kv::Leases {}), identity(&request).as_ref()).await?
        {
            (header, outcome::Body::Leases(leases)) => Ok(Response::new(LeaseLeasesResponse {
                header: Some(header),
                leases: leases.ids.into_iter().map(|id| LeaseStatus { id }).collect(),
            })),
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn drawn_ids_are_positive_and_fit_into_a_double() {
        let ids = LeaseIds::default();
        let drawn: BTreeSet<_> = (0..10_000).map(|_| ids.draw()).collect();
        assert_eq!(drawn.len(), 10_000);
        assert!(drawn.iter().all(|id| (1..1 << 53).contains(id)));
    }
}
