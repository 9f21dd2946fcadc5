//! What all services of one gateway share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use quorate_api::etcdserverpb::ResponseHeader;
use quorate_types::{ClusterId, NodeId, Term, kv};

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
    cluster_id: ClusterId,
    member_id: NodeId,
    /// The highest revision of the keyspace that this gateway has answered with: it never answers with
    /// one from before, so no client of it sees time run backwards.
    answered: AtomicI64,
}

impl<B: Backend> Desk<B> {
    pub(crate) fn new(backend: Arc<B>, config: GatewayConfig) -> Self {
        let status = backend.node_status();
        let (cluster_id, member_id) = (status.cluster_id, status.member_id);
        Self { backend, config, cluster_id, member_id, answered: AtomicI64::new(0) }
    }

    /// Proposes a command.
    pub(crate) async fn propose(&self, command: kv::Command) -> Result<Answer, BackendError> {
        let answer = self.backend.propose(command).await?;
        self.answered.fetch_max(answer.outcome.revision, Ordering::AcqRel);
        Ok(answer)
    }

    /// Asks a question. A serializable answer comes from the local replica unless that has not caught
    /// up with what was answered before: then from the leader. So a revision is called a future one
    /// only if nobody here has seen it.
    pub(crate) async fn read(
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
        let query = kv::Query { body: Some(kv::query::Body::Status(kv::Status {})) };
        let answered = self.answered.load(Ordering::Acquire);
        let answer = self.backend.read(query, consistency).await?;
        // What was answered before is there, whatever the local replica knows.
        Ok((answer.outcome.revision.max(answered), answer.raft_term))
    }
}
