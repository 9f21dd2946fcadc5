//! The Maintenance service: where this node stands, and who leads.

use std::sync::Arc;

use futures::stream::Empty;
use quorate_api::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
    alarm_request::AlarmAction, maintenance_server,
};
use quorate_types::NodeId;
use tonic::{Request, Response, Status};

use crate::backend::{Backend, Consistency};
use crate::desk::{Desk, ETCD_VERSION};
use crate::error::{ApiError, unimplemented};

/// etcd's Maintenance service over a backend.
pub(crate) struct MaintenanceService<B> {
    desk: Arc<Desk<B>>,
}

impl<B: Backend> MaintenanceService<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>) -> Self {
        Self { desk }
    }

    /// The revision of the local replica; 0 when there is none, since a status must be had when little
    /// else works.
    async fn local_revision(&self) -> i64 {
        self.desk.revision(Consistency::Serializable).await.map_or(0, |(revision, _)| revision)
    }
}

#[tonic::async_trait]
impl<B: Backend> maintenance_server::Maintenance for MaintenanceService<B> {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let revision = self.local_revision().await;
        let status = self.desk.backend.node_status();
        let mut errors = status.errors;
        if status.leader.is_none() {
            errors.push(ApiError::NoLeader.text().to_owned());
        }
        Ok(Response::new(StatusResponse {
            header: Some(self.desk.header(revision, status.raft_term)),
            version: ETCD_VERSION.to_owned(),
            db_size: clamped(status.db_size_bytes),
            leader: status.leader.map_or(0, |leader| leader.value()),
            raft_index: status.raft_index.value(),
            raft_term: status.raft_term.value(),
            raft_applied_index: status.raft_applied.value(),
            errors,
            db_size_in_use: clamped(status.db_in_use_bytes),
            is_learner: status.is_learner,
        }))
    }

    /// `etcdctl endpoint health` asks this. There are no alarms to list: nothing raises one.
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        if request.into_inner().action != AlarmAction::Get as i32 {
            return Err(ApiError::AlarmsAreAutomatic.into());
        }
        let raft_term = self.desk.backend.node_status().raft_term;
        let header = self.desk.header(self.local_revision().await, raft_term);
        Ok(Response::new(AlarmResponse { header: Some(header), alarms: Vec::new() }))
    }

    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Err(unimplemented("Defragment"))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(unimplemented("Hash"))
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        Err(unimplemented("HashKV"))
    }

    type SnapshotStream = Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unimplemented("Snapshot"))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.desk.backend.move_leader(NodeId(request.into_inner().target_id)).await?;
        // etcd gives no header here.
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        _: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Err(unimplemented("Downgrade"))
    }
}

/// Bytes as etcd's signed number.
fn clamped(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
