//! The Cluster service: the members, as this node knows them, and how they change.

use std::sync::Arc;

use quorate_api::etcdserverpb::{
    self as pb, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, cluster_server,
};
use quorate_types::NodeId;
use tonic::{Request, Response, Status};

use crate::backend::{Backend, Member, MemberChange, MembersAnswer};
use crate::desk::Desk;
use crate::error::ApiError;

/// etcd's Cluster service over a backend.
pub(crate) struct ClusterService<B> {
    desk: Arc<Desk<B>>,
}

impl<B: Backend> ClusterService<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>) -> Self {
        Self { desk }
    }

    async fn change(&self, change: MemberChange) -> Result<Changed, Status> {
        let MembersAnswer { id, members, raft_term } =
            self.desk.backend.change_members(change).await?;
        // As with the list, etcd leaves the revision out.
        let header = Some(self.desk.header(0, raft_term));
        Ok(Changed { id, header, members: members.into_iter().map(member).collect() })
    }
}

/// What every answer to a change says.
struct Changed {
    id: NodeId,
    header: Option<pb::ResponseHeader>,
    members: Vec<pb::Member>,
}

#[tonic::async_trait]
impl<B: Backend> cluster_server::Cluster for ClusterService<B> {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let backend = &self.desk.backend;
        let (members, raft_term) = match request.into_inner().linearizable {
            true => backend.members_now().await?,
            false => (backend.members(), backend.node_status().raft_term),
        };
        Ok(Response::new(MemberListResponse {
            // etcd leaves the revision out of this one.
            header: Some(self.desk.header(0, raft_term)),
            members: members.into_iter().map(member).collect(),
        }))
    }

    /// A client that has the name too uses `quorate.v1`: etcd's members have theirs from themselves.
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let request = request.into_inner();
        let change = MemberChange::Add {
            name: String::new(),
            peer_address: peer_address(&request.peer_ur_ls)?,
            learner: request.is_learner,
        };
        let Changed { id, header, members } = self.change(change).await?;
        let member = members.iter().find(|member| member.id == id.value()).cloned();
        Ok(Response::new(MemberAddResponse { header, member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let change = MemberChange::Remove(NodeId(request.into_inner().id));
        let Changed { header, members, .. } = self.change(change).await?;
        Ok(Response::new(MemberRemoveResponse { header, members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        let peer_address = peer_address(&request.peer_ur_ls)?;
        let change = MemberChange::Move { id: NodeId(request.id), peer_address };
        let Changed { header, members, .. } = self.change(change).await?;
        Ok(Response::new(MemberUpdateResponse { header, members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let change = MemberChange::Promote(NodeId(request.into_inner().id));
        let Changed { header, members, .. } = self.change(change).await?;
        Ok(Response::new(MemberPromoteResponse { header, members }))
    }
}

/// The address in a peer URL, by etcd's rules: scheme, host, port, and nothing after them. Nodes speak
/// QUIC whatever the scheme says.
fn peer_address(urls: &[String]) -> Result<String, ApiError> {
    let url = match urls {
        [] => return Err(ApiError::BadPeerUrls),
        [url] => url.trim(),
        [_, ..] => return Err(ApiError::OnePeerUrl),
    };
    let address = url.split_once("://").and_then(|(scheme, address)| {
        matches!(scheme, "http" | "https" | "quic").then_some(address)
    });
    address.and_then(host_and_port).map(str::to_owned).ok_or(ApiError::BadPeerUrls)
}

/// `address` if it is a host and a port that can be dialed; addresses of IPv6 stand in brackets.
pub(crate) fn host_and_port(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    let inner = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').filter(|host| host.contains(':'))?,
        None => Some(host).filter(|host| !host.contains(':'))?,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    let dialable = port.parse::<u16>().is_ok_and(|port| port != 0);
    (!inner.is_empty() && inner.chars().all(plain) && dialable).then_some(address)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_url_is_a_scheme_a_host_and_a_port() {
        let parse = |urls: &[&str]| {
            peer_address(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>())
        };
        for good in ["http://10.0.0.1:2380", "https://db-1.example.org:1", "quic://[::1]:2380"] {
            let (_, address) = good.split_once("://").expect("it has a scheme");
            assert_eq!(parse(&[good]).as_deref(), Ok(address));
        }
        for bad in [
            "",
            "h:2380",
            "ftp://h:2380",
            "http://h",
            "http://:2380",
            "http://h:0",
            "http://h:x",
            "http://h:2380/",
            "http://h:70000",
            "http://::1:2380",
            "http://[h]:2380",
            "http://a b:2380",
            "unix://h:2380",
        ] {
            assert_eq!(parse(&[bad]), Err(ApiError::BadPeerUrls), "{bad}");
        }
        assert_eq!(parse(&[]), Err(ApiError::BadPeerUrls));
        assert_eq!(parse(&["http://h:1", "http://h:2"]), Err(ApiError::OnePeerUrl));
    }
}
