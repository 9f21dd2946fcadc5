//! The Cluster service: the members, as this node knows them.

use std::sync::Arc;

use quorate_api::etcdserverpb::{
    self as pb, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, cluster_server,
};
use tonic::{Request, Response, Status};

use crate::backend::{Backend, Consistency, Member};
use crate::desk::Desk;
use crate::error::unimplemented;

/// etcd's Cluster service over a backend.
pub(crate) struct ClusterService<B> {
    desk: Arc<Desk<B>>,
}

impl<B: Backend> ClusterService<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>) -> Self {
        Self { desk }
    }
}

#[tonic::async_trait]
impl<B: Backend> cluster_server::Cluster for ClusterService<B> {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        // A read of the keyspace is confirmed by a quorum, so whoever gets this answer heard from a node
        // that was part of the cluster.
        let raft_term = match request.into_inner().linearizable {
            true => self.desk.revision(Consistency::Linearizable).await?.1,
            false => self.desk.backend.node_status().raft_term,
        };
        Ok(Response::new(MemberListResponse {
            // etcd leaves the revision out of this one.
            header: Some(self.desk.header(0, raft_term)),
            members: self.desk.backend.members().into_iter().map(member).collect(),
        }))
    }

    async fn member_add(
        &self,
        _: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        Err(unimplemented("MemberAdd"))
    }

    async fn member_remove(
        &self,
        _: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(unimplemented("MemberRemove"))
    }

    async fn member_update(
        &self,
        _: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unimplemented("MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(unimplemented("MemberPromote"))
    }
}

fn member(member: Member) -> pb::Member {
    pb::Member {
        id: member.id.value(),
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}
