//! What all services of one gateway share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use quorate_api::etcdserverpb::ResponseHeader;
use quorate_types::auth::{Caller, Needs};
use quorate_types::kv::KvError;
use quorate_types::kv_maintenance::{Alarm, Conditions};
use quorate_types::{ClusterId, NodeId, Term, kv};

use crate::auth::caller::Identity;
use crate::auth::guard::{Guard, is_old};
use crate::backend::{Answer, Backend, BackendError, Consistency};
use crate::config::GatewayConfig;

/// The version of etcd whose API and behaviour this build follows: clients parse it to learn what they
/// may ask for.
pub const ETCD_VERSION: &str = "3.5.1";

/// The oldest version of etcd's cluster protocol that the API belongs to.
pub(crate) const ETCD_CLUSTER_VERSION: &str = "3.5.0";

/// The backend, the identity that stands in every header, and the limits.
pub(crate) struct Desk<B> {
    pub(crate) backend: Arc<B>,
    pub(crate) config: GatewayConfig,
    pub(crate) guard: Guard,
    cluster_id: ClusterId,
    member_id: NodeId,
    /// The highest revision of the keyspace that this gateway has answered with: it never answers with
    /// one from before, so no client of it sees time run backwards.
    answered: AtomicI64,
}

impl<B: Backend> Desk<B> {
    pub(crate) fn new(backend: Arc<B>, config: GatewayConfig, guard: Guard) -> Self {
        let status = backend.node_status();
        let (cluster_id, member_id) = (status.cluster_id, status.member_id);
        Self { backend, config, guard, cluster_id, member_id, answered: AtomicI64::new(0) }
    }

    /// Proposes a command for whoever asks, if they may; the replicas decide again.
    pub(crate) async fn propose(
        &self,
        mut command: kv::Command,
        by: Option<&Identity>,
    ) -> Result<Answer, BackendError> {
        let answer = if self.backend.auth_is_off() && by.is_none() {
            self.backend.propose(command).await?
        } else {
            let needs = command.body.as_ref().map_or(Needs::Nothing, Needs::of_command);
            let by = match self.permit(by, &needs).await {
                Ok(by) => by,
                Err(error) => return Ok(refused(error)),
            };
            command.caller = by.as_ref().map(|by| by.caller.clone());
            let answer = self.backend.propose(command.clone()).await?;
            // Nothing has been done then, so it may be asked for again.
            match is_old(&answer.outcome) {
                true => match self.renew(by.as_ref()).await {
                    Some(by) => {
                        command.caller = Some(by.caller);
                        self.backend.propose(command).await?
                    }
                    None => answer,
                },
                false => answer,
            }
        };
        self.answered.fetch_max(answer.outcome.revision, Ordering::AcqRel);
        Ok(answer)
    }

    /// Asks a question. A serializable answer comes from the local replica unless that has not caught
    /// up with what was answered before: then from the leader. So a revision is called a future one
    /// only if nobody here has seen it.
    pub(crate) async fn read(
        &self,
        mut query: kv::Query,
        consistency: Consistency,
        by: Option<&Identity>,
    ) -> Result<Answer, BackendError> {
        if self.backend.auth_is_off() && by.is_none() {
            return self.look(query, consistency).await;
        }
        let needs = query.body.as_ref().map_or(Needs::Nothing, Needs::of_query);
        let by = match self.permit(by, &needs).await {
            Ok(by) => by,
            Err(error) => return Ok(refused(error)),
        };
        query.caller = by.as_ref().map(|by| by.caller.clone());
        let answer = self.look(query.clone(), consistency).await?;
        if is_old(&answer.outcome)
            && let Some(by) = self.renew(by.as_ref()).await
        {
            query.caller = Some(by.caller);
            return self.look(query, consistency).await;
        }
        Ok(answer)
    }

    async fn look(
        &self,
        query: kv::Query,
        consistency: Consistency,
    ) -> Result<Answer, BackendError> {
        let answered = self.answered.load(Ordering::Acquire);
        let answer = match consistency {
            Consistency::Linearizable => self.backend.read(query, consistency).await?,
            Consistency::Serializable => {
                let local = self.backend.read(query.clone(), consistency).await?;
                if local.outcome.revision < answered {
                    self.backend.read(query, Consistency::Linearizable).await?
                } else {
                    local
                }
            }
        };
        self.answered.fetch_max(answer.outcome.revision, Ordering::AcqRel);
        Ok(answer)
    }

    /// The highest revision that this gateway has answered with.
    pub(crate) fn answered(&self) -> i64 {
        self.answered.load(Ordering::Acquire)
    }

    /// The head of a response.
    pub(crate) fn header(&self, revision: i64, raft_term: Term) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id.value(),
            member_id: self.member_id.value(),
            revision,
            raft_term: raft_term.value(),
        }
    }

    /// The revision of the keyspace and the term that it was read in.
    pub(crate) async fn revision(
        &self,
        consistency: Consistency,
    ) -> Result<(i64, Term), BackendError> {
        let body = Some(kv::query::Body::Status(kv::Status {}));
        let query = kv::Query { body, caller: None };
        let answered = self.answered.load(Ordering::Acquire);
        let answer = self.backend.read(query, consistency).await?;
        // What was answered before is there, whatever the local replica knows.
        Ok((answer.outcome.revision.max(answered), answer.raft_term))
    }

    /// The alarms that are raised: what everybody may know, whoever asks.
    pub(crate) async fn alarms(
        &self,
        consistency: Consistency,
    ) -> Result<Vec<Alarm>, BackendError> {
        let body = Some(kv::query::Body::Conditions(Conditions {}));
        let query = kv::Query { body, caller: Some(Caller::system()) };
        match self.backend.read(query, consistency).await?.outcome.body {
            Some(kv::outcome::Body::Conditions(found)) => Ok(found.alarms),
            _ => Err(BackendError::Corrupt),
        }
    }
}

/// What a replica would have said, without asking one.
const fn refused(error: KvError) -> Answer {
    let body = Some(kv::outcome::Body::Error(error as i32));
    Answer { outcome: kv::Outcome { revision: 0, body }, raft_term: Term::ZERO }
}
