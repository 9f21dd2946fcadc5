//! The `quorate.v1` Admin service: the many groups under one keyspace, which etcd's API has no words for.

use std::sync::Arc;

use quorate_api::quorate::v1::{
    AddMemberRequest, BackupRequest, BackupResponse, Cluster, ClusterNode, Group, MemberResponse,
    Node, Peer, ReplaceMemberRequest, Role, StatusRequest, StatusResponse, admin_server,
};
use quorate_types::NodeId;
use tonic::{Request, Response, Status};

use crate::backend::{self, Backend, BackupForm, GroupStatus, Member, MemberChange};
use crate::blobs::{Blob, Blobs};
use crate::cluster::host_and_port;
use crate::desk::Desk;
use crate::error::ApiError;

/// What a certificate can carry.
const NAME_BYTES_MAX: usize = 64;

/// Our own service over a backend.
pub(crate) struct AdminService<B> {
    desk: Arc<Desk<B>>,
}

impl<B: Backend> AdminService<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>) -> Self {
        Self { desk }
    }

    async fn change(&self, change: MemberChange) -> Result<Response<MemberResponse>, Status> {
        let answer = self.desk.backend.change_members(change).await?;
        let nodes: Vec<_> = answer.members.into_iter().map(node).collect();
        let node = nodes.iter().find(|node| node.id == answer.id.value()).cloned();
        Ok(Response::new(MemberResponse { node, nodes }))
    }
}

#[tonic::async_trait]
impl<B: Backend> admin_server::Admin for AdminService<B> {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let backend = &self.desk.backend;
        let status = backend.node_status();
        Ok(Response::new(StatusResponse {
            node: Some(Node {
                id: status.member_id.value(),
                name: status.member_name,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ready: backend.is_ready(),
                db_size_bytes: status.db_size_bytes,
                errors: status.errors,
            }),
            cluster: Some(Cluster {
                id: status.cluster_id.value(),
                nodes: backend.members().into_iter().map(node).collect(),
            }),
            groups: backend.groups().await.into_iter().map(group).collect(),
        }))
    }

    async fn add_member(
        &self,
        request: Request<AddMemberRequest>,
    ) -> Result<Response<MemberResponse>, Status> {
        let AddMemberRequest { name, peer_address, learner } = request.into_inner();
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
            return Err(ApiError::BadMemberName.into());
        }
        if host_and_port(&peer_address).is_none() {
            return Err(ApiError::BadPeerUrls.into());
        }
        self.change(MemberChange::Add { name, peer_address, learner }).await
    }

    async fn replace_member(
        &self,
        request: Request<ReplaceMemberRequest>,
    ) -> Result<Response<MemberResponse>, Status> {
        let ReplaceMemberRequest { id, peer_address } = request.into_inner();
        if !peer_address.is_empty() && host_and_port(&peer_address).is_none() {
            return Err(ApiError::BadPeerUrls.into());
        }
        self.change(MemberChange::Replace { id: NodeId(id), peer_address }).await
    }

    type BackupStream = Blobs<BackupResponse>;

    async fn backup(
        &self,
        _: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let backup = self.desk.backend.backup(BackupForm::Quorate).await?;
        let revision = backup.revision;
        let message = move |Blob { bytes, remaining_bytes }| BackupResponse {
            blob: bytes,
            remaining_bytes,
            revision,
        };
        Ok(Response::new(Blobs::new(backup, message)))
    }
}

fn node(member: Member) -> ClusterNode {
    ClusterNode {
        id: member.id.value(),
        name: member.name,
        peer_addresses: member.peer_urls,
        client_addresses: member.client_urls,
        learner: member.is_learner,
    }
}

fn group(group: GroupStatus) -> Group {
    let peer = |peer: backend::PeerLag| Peer {
        node: peer.node.value(),
        match_index: peer.match_index.value(),
        lag: peer.lag,
    };
    Group {
        id: group.group.value(),
        kind: group.kind,
        role: role(group.role) as i32,
        leader: group.leader.map_or(0, |leader| leader.value()),
        term: group.term.value(),
        commit: group.commit.value(),
        applied: group.applied.value(),
        last: group.last.value(),
        peers: group.peers.into_iter().map(peer).collect(),
        asleep: group.asleep,
    }
}

const fn role(role: backend::Role) -> Role {
    match role {
        backend::Role::Follower => Role::Follower,
        backend::Role::Candidate => Role::Candidate,
        backend::Role::Leader => Role::Leader,
        backend::Role::Learner => Role::Learner,
    }
}
