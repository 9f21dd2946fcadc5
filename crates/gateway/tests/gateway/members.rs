//! How members change: every refusal, beside a real etcd where there is one.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_api::etcdserverpb::cluster_client::ClusterClient;
use quorate_api::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_api::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest, ResponseHeader,
};
use quorate_api::quorate::v1::admin_client::AdminClient;
use quorate_api::quorate::v1::{AddMemberRequest, ReplaceMemberRequest};
use quorate_gateway::BackendError;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::peer::Etcd;
use crate::support::{Door, within};

/// Makes a call, and makes it again when nothing comes of it: etcd's Raft drops a change that follows
/// another too soon, and the server waits for it as long as its client does.
async fn patiently<T, C>(call: impl Fn() -> C) -> Result<T, Status>
where
    C: Future<Output = Result<T, Status>>,
{
    let answered = async {
        loop {
            if let Ok(answer) = timeout(RETRY, call()).await {
                return answer;
            }
        }
    };
    within("something comes of the call", answered).await
}

/// How long a change that was not dropped takes at most, by far.
const RETRY: Duration = Duration::from_secs(3);

/// A cluster of one member, and what its members are called in what is written down.
struct Side {
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    names: BTreeMap<u64, &'static str>,
    first: Member,
}

impl Side {
    async fn new(channel: Channel) -> Self {
        let mut cluster = ClusterClient::new(channel.clone());
        let list = cluster.member_list(MemberListRequest::default()).await.expect("a list");
        let [first] = list.into_inner().members.try_into().expect("one member");
        let names = BTreeMap::from([(first.id, "first")]);
        Self { cluster, maintenance: MaintenanceClient::new(channel), names, first }
    }

    async fn add(&mut self, urls: &[&str], is_learner: bool) -> String {
        let peer_ur_ls = urls.iter().map(|url| (*url).to_owned()).collect();
        let request = MemberAddRequest { peer_ur_ls, is_learner };
        let cluster = &self.cluster;
        let added = patiently(|| {
            let (mut cluster, request) = (cluster.clone(), request.clone());
            async move { cluster.member_add(request).await }
        })
        .await;
        if let Ok(added) = &added {
            let member = added.get_ref().member.as_ref().expect("the new member");
            self.names.insert(member.id, "added");
        }
        self.told(added, |r| (r.header, r.members))
    }

    async fn promote(&mut self, id: u64) -> String {
        let cluster = &self.cluster;
        let answer = patiently(|| {
            let mut cluster = cluster.clone();
            async move { cluster.member_promote(MemberPromoteRequest { id }).await }
        })
        .await;
        self.told(answer, |r| (r.header, r.members))
    }

    async fn remove(&mut self, id: u64) -> String {
        let cluster = &self.cluster;
        let answer = patiently(|| {
            let mut cluster = cluster.clone();
            async move { cluster.member_remove(MemberRemoveRequest { id }).await }
        })
        .await;
        self.told(answer, |r| (r.header, r.members))
    }

    async fn update(&mut self, id: u64, url: &str) -> String {
        let request = MemberUpdateRequest { id, peer_ur_ls: vec![url.to_owned()] };
        let cluster = &self.cluster;
        let answer = patiently(|| {
            let (mut cluster, request) = (cluster.clone(), request.clone());
            async move { cluster.member_update(request).await }
        })
        .await;
        self.told(answer, |r| (r.header, r.members))
    }

    async fn move_leader(&mut self, target_id: u64) -> String {
        match self.maintenance.move_leader(MoveLeaderRequest { target_id }).await {
            Ok(answer) => format!("{:?}", answer.into_inner()),
            Err(status) => format!("{:?} {:?}", status.code(), status.message()),
        }
    }

    /// What a client can see, without who answered, ids, and the first member's URLs.
    fn told<T>(
        &self,
        answer: Result<Response<T>, Status>,
        parts: impl FnOnce(T) -> (Option<ResponseHeader>, Vec<Member>),
    ) -> String {
        let (header, mut members) = match answer {
            Ok(answer) => parts(answer.into_inner()),
            Err(status) => return format!("{:?} {:?}", status.code(), status.message()),
        };
        let header = header.expect("every answer has a header");
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
        members.sort_by_key(|member| member.id != self.first.id);
        let member = |member: &Member| {
            let known = member.peer_ur_ls == self.first.peer_ur_ls;
            let urls =
                if known { "its own".to_owned() } else { format!("{:?}", member.peer_ur_ls) };
            let Member { name, is_learner, .. } = member;
            format!("{} {name:?} {urls} learner={is_learner}", self.names[&member.id])
        };
        let members: Vec<_> = members.iter().map(member).collect();
        format!("revision={} {members:?}", header.revision)
    }

    fn id_of(&self, name: &str) -> u64 {
        *self.names.iter().find(|(_, known)| **known == name).expect("a known member").0
    }

    /// Every change that one started member allows, and every refusal.
    async fn script(&mut self) -> Vec<String> {
        let own = self.first.peer_ur_ls[0].clone();
        let first = self.first.id;
        let mut seen = vec![
            self.add(&[], false).await,
            self.add(&["nonsense"], false).await,
            self.add(&["http://10.9.8.7"], true).await,
            self.add(&["http://10.9.8.7:2380/path"], true).await,
            self.add(&["ftp://10.9.8.7:2380"], true).await,
            self.add(&[&own], true).await,
            self.add(&["http://10.9.8.7:2380"], true).await,
            self.add(&["http://10.9.8.8:2380"], true).await,
        ];
        let added = self.id_of("added");
        seen.extend([
            self.promote(added).await,
            self.promote(first).await,
            self.promote(1234).await,
            self.update(1234, "http://10.9.8.9:2380").await,
            self.update(added, &own).await,
            // Not the learner: etcd 3.5.1 makes a voter of it by that.
            self.update(first, &own).await,
            self.move_leader(added).await,
            self.move_leader(1234).await,
            self.move_leader(first).await,
            self.remove(1234).await,
            self.remove(first).await,
            self.remove(added).await,
            self.remove(added).await,
            self.promote(added).await,
        ]);
        seen
    }
}

#[tokio::test]
async fn members_change_as_they_do_with_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let theirs = Side::new(etcd.channel()).await.script().await;
    let ours = Side::new(door.channel().await).await.script().await;
    for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        // etcd documents a code for this one and sends another.
        let theirs = match theirs.contains("not enough started members") {
            true => theirs.replace("Unknown", "FailedPrecondition"),
            false => theirs.clone(),
        };
        assert_eq!(*ours, theirs, "step {step}");
    }
}

#[tokio::test]
async fn a_learner_cannot_take_the_leadership_over() {
    let door = Door::open().await;
    let mut side = Side::new(door.channel().await).await;
    side.add(&["http://10.9.8.7:2380"], true).await;
    let moved = side.update(side.id_of("added"), "http://10.9.8.9:2380").await;
    assert!(moved.contains("[\\\"http://10.9.8.9:2380\\\"] learner=true"), "{moved}");
    let refused = "FailedPrecondition \"etcdserver: bad leader transferee\"";
    assert_eq!(side.move_leader(side.id_of("added")).await, refused);
    door.backend.lose_leader();
    let refused = "FailedPrecondition \"etcdserver: not leader\"";
    assert_eq!(side.move_leader(side.first.id).await, refused);
}

#[tokio::test]
async fn refusals_have_etcds_words_without_an_etcd_too() {
    let door = Door::open().await;
    let seen = Side::new(door.channel().await).await.script().await;
    let refused = |step: usize, code: Code, text: &str| {
        assert_eq!(seen[step], format!("{code:?} {text:?}"), "step {step}");
    };
    for step in 0..5 {
        refused(step, Code::InvalidArgument, "etcdserver: given member URLs are invalid");
    }
    refused(5, Code::FailedPrecondition, "etcdserver: Peer URLs already exists");
    refused(7, Code::FailedPrecondition, "etcdserver: too many learner members in cluster");
    let not_ready = "etcdserver: can only promote a learner member which is in sync with leader";
    refused(8, Code::FailedPrecondition, not_ready);
    refused(9, Code::FailedPrecondition, "etcdserver: can only promote a learner member");
    refused(10, Code::NotFound, "etcdserver: member not found");
    for step in 14..16 {
        refused(step, Code::FailedPrecondition, "etcdserver: bad leader transferee");
    }
    let too_few = "etcdserver: re-configuration failed due to not enough started members";
    refused(18, Code::FailedPrecondition, too_few);
}

#[tokio::test]
async fn members_are_added_by_name_and_replaced_by_the_admin_service() {
    let door = Door::open().await;
    let mut admin = AdminClient::new(door.channel().await);
    let add = |name: &str, peer_address: &str| AddMemberRequest {
        name: name.to_owned(),
        peer_address: peer_address.to_owned(),
        learner: false,
    };
    let refusals = [
        (add("", "h2:2380"), "quorate: a member's name has 1 to 64 bytes"),
        (add(&"n".repeat(65), "h2:2380"), "quorate: a member's name has 1 to 64 bytes"),
        (add("n2", "h2"), "etcdserver: given member URLs are invalid"),
        (add("n2", ""), "etcdserver: given member URLs are invalid"),
    ];
    for (request, text) in refusals {
        let status = admin.add_member(request).await.expect_err(text);
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    let added = admin.add_member(add("n2", "h2:2380")).await.expect("added").into_inner();
    let node = added.node.expect("the new node");
    assert_eq!((node.name.as_str(), node.learner, added.nodes.len()), ("n2", true, 2));
    let replace = |id, at: &str| ReplaceMemberRequest { id, peer_address: at.to_owned() };
    let status = admin.replace_member(replace(99, "h3:2380")).await.expect_err("unknown");
    assert_eq!(status.message(), "etcdserver: member not found");
    let status = admin.replace_member(replace(node.id, "h3")).await.expect_err("no port");
    assert_eq!(status.message(), "etcdserver: given member URLs are invalid");
    let replaced = admin.replace_member(replace(node.id, "h3:2380")).await.expect("replaced");
    let new = replaced.into_inner().node.expect("the new node");
    assert_eq!((new.name.as_str(), new.id != node.id), ("n2", true));
}

#[tokio::test]
async fn a_change_without_an_answer_says_why() {
    let door = Door::open().await;
    let mut side = Side::new(door.channel().await).await;
    door.backend.fail_with(Some(BackendError::TimedOut));
    let answer = side.remove(side.first.id).await;
    assert_eq!(answer, "Unavailable \"etcdserver: request timed out\"");
}
