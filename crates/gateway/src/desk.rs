//! What all services of one gateway share.

use std::sync::Arc;

use quorate_api::etcdserverpb::ResponseHeader;
use quorate_types::{ClusterId, NodeId, Term, kv};

use crate::backend::{Backend, BackendError, Consistency};
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
}

impl<B: Backend> Desk<B> {
    pub(crate) fn new(backend: Arc<B>, config: GatewayConfig) -> Self {
        let status = backend.node_status();
        Self { backend, config, cluster_id: status.cluster_id, member_id: status.member_id }
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
        let answer = self.backend.read(query, consistency).await?;
        Ok((answer.outcome.revision, answer.raft_term))
    }
}
