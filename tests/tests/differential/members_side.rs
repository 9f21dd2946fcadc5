//! One side of the family of members: who has which part, calls, and what they come to without ids.

use std::time::Duration;

use quorate_api::etcdserverpb as pb;
use quorate_tests::client::Client;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status};

use super::harness::{BOUND, LOOK};

/// How long a change that was not dropped takes at most, by far: etcd's Raft drops one that follows another too soon,
/// and the server waits for it as long as its client does.
const RETRY: Duration = Duration::from_secs(3);

/// The client's patience for what etcd never answers.
pub(crate) const PATIENCE: Duration = Duration::from_millis(200);

/// What is said of a member that is none of the three.
pub(crate) const OTHER: &str = "other";

/// An id that no member has.
const UNKNOWN: u64 = 1234;

/// Where nobody is: ports that the system gives to nobody who asks for any.
const FIRST_PORT: u64 = 1;
pub(crate) const PORTS: u64 = 1_000;

/// A member, by its part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Who {
    /// 0 is the leader.
    Runs(usize),
    /// The one that was added, or a stranger.
    Added,
    /// The last one that was removed, or a stranger.
    Gone,
    Stranger,
}

/// How the one that was added was meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Added {
    Learner,
    Voter,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Url {
    Of(usize),
    Text(&'static str),
    /// One that nobody had before: etcd makes ids of them, and of the second.
    New(u64),
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    List,
    Add { urls: Vec<Url>, learner: bool },
    Remove(Who),
    Update(Who, Vec<Url>),
    Promote(Who),
    MoveLeader(Who),
    Status,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Members(i64, Vec<String>),
    Moved,
    Status { leads: bool, follows: bool, is_learner: bool, version: String },
    Refused(Code, String),
}

/// One side.
pub(crate) struct Side {
    /// By their parts.
    nodes: Vec<Client>,
    /// How long a client waits for what never comes.
    patience: Option<Duration>,
    ids: Vec<u64>,
    urls: Vec<String>,
    /// More than one only where the other side has refused one.
    pub(crate) added: Vec<u64>,
    gone: Option<u64>,
}

impl Side {
    pub(crate) async fn new(nodes: Vec<Client>, patience: Option<Duration>) -> Self {
        let mut side =
            Self { nodes, patience, ids: vec![], urls: vec![], added: vec![], gone: None };
        side.know_parts().await;
        // Nodes that have just been started are not well for etcd, which has several texts for that: it wants to have
        // seen them for five seconds.
        let began = Instant::now();
        loop {
            let urls = vec![Url::New(PORTS - 1)];
            match side.send(0, &Step::Add { urls, learner: true }).await {
                Answer::Members(..) => break,
                refused => {
                    let waits = side.patience.is_some() && began.elapsed() < BOUND;
                    assert!(waits, "a first member: {refused:?}");
                }
            }
            sleep(LOOK).await;
        }
        side.remove_added().await;
        side.gone = None;
        side
    }

    /// Waits until all agree who leads, and puts them in order.
    pub(crate) async fn know_parts(&mut self) {
        let began = Instant::now();
        loop {
            let mut all = Vec::new();
            for mut client in self.nodes.clone() {
                let status = client.maintenance.status(pb::StatusRequest::default()).await;
                let status = status.expect("it serves").into_inner();
                let id = status.header.as_ref().expect("every answer has a header").member_id;
                all.push((id, status.leader, client));
            }
            let leader = all[0].1;
            if leader != 0 && all.iter().all(|(_, other, _)| *other == leader) {
                all.sort_by_key(|(id, ..)| *id != leader);
                self.ids = all.iter().map(|(id, ..)| *id).collect();
                self.nodes = all.into_iter().map(|(.., client)| client).collect();
                break;
            }
            assert!(began.elapsed() < BOUND, "they do not agree who leads");
            sleep(LOOK).await;
        }
        let members = self.members().await;
        let url_of = |id: &u64| {
            let member = members.iter().find(|member| member.id == *id);
            member.expect("who runs is a member").peer_ur_ls[0].clone()
        };
        self.urls = self.ids.iter().map(url_of).collect();
    }

    async fn members(&mut self) -> Vec<pb::Member> {
        let request = pb::MemberListRequest { linearizable: true };
        let list = self.nodes[0].cluster.member_list(request).await;
        list.expect("a list").into_inner().members
    }

    /// Until the one that was added is gone.
    pub(crate) async fn remove_added(&mut self) {
        let began = Instant::now();
        while !self.added.is_empty() {
            let answer = self.send(0, &Step::Remove(Who::Added)).await;
            assert!(began.elapsed() < BOUND, "{answer:?}");
        }
    }

    fn id_of(&self, who: Who) -> u64 {
        match who {
            Who::Runs(part) => self.ids[part],
            Who::Added => self.added.first().copied().unwrap_or(UNKNOWN),
            Who::Gone => self.gone.unwrap_or(UNKNOWN),
            Who::Stranger => UNKNOWN,
        }
    }

    fn texts(&self, urls: &[Url]) -> Vec<String> {
        let text = |url: &Url| match url {
            Url::New(number) => format!("http://127.0.0.1:{}", FIRST_PORT + number % PORTS),
            Url::Of(part) => self.urls[*part].clone(),
            Url::Text(text) => (*text).to_owned(),
        };
        urls.iter().map(text).collect()
    }

    pub(crate) async fn send(&mut self, part: usize, step: &Step) -> Answer {
        let client = self.nodes[part].clone();
        let answer = match step.clone() {
            Step::List => {
                let list = pb::MemberListRequest { linearizable: true };
                let mut cluster = client.cluster;
                let list = cluster.member_list(list).await.map(tonic::Response::into_inner);
                list.map(|list| (list.header, list.members))
            }
            Step::Add { urls, learner } => {
                let (peer_ur_ls, is_learner) = (self.texts(&urls), learner);
                let request = pb::MemberAddRequest { peer_ur_ls, is_learner };
                let added =
                    patiently(async || client.cluster.clone().member_add(request.clone()).await);
                added.await.map(|added| {
                    self.added.extend(added.member.map(|member| member.id));
                    (added.header, added.members)
                })
            }
            Step::Remove(who) => {
                let id = self.id_of(who);
                let request = pb::MemberRemoveRequest { id };
                let removed =
                    patiently(async || client.cluster.clone().member_remove(request).await).await;
                if self.added.first() == Some(&id) && removed.is_ok() {
                    self.gone = Some(self.added.remove(0));
                }
                removed.map(|removed| (removed.header, removed.members))
            }
            Step::Update(who, urls) => {
                let request =
                    pb::MemberUpdateRequest { id: self.id_of(who), peer_ur_ls: self.texts(&urls) };
                let updated =
                    patiently(async || client.cluster.clone().member_update(request.clone()).await);
                updated.await.map(|updated| (updated.header, updated.members))
            }
            Step::Promote(who) => {
                let id = self.id_of(who);
                let is_known = self.ids.contains(&id) || self.added.contains(&id);
                let patience = self.patience.filter(|_| part != 0 && !is_known);
                let promoted = patiently(async || {
                    let mut request = Request::new(pb::MemberPromoteRequest { id });
                    if let Some(patience) = patience {
                        request.set_timeout(patience);
                    }
                    client.cluster.clone().member_promote(request).await
                });
                promoted.await.map(|promoted| (promoted.header, promoted.members))
            }
            Step::MoveLeader(who) => return self.move_leader(client, who).await,
            Step::Status => return self.status(client).await,
        };
        match answer {
            Ok((header, members)) => self.told(header, members),
            Err(status) => refused(status),
        }
    }

    async fn move_leader(&self, mut client: Client, who: Who) -> Answer {
        let request = pb::MoveLeaderRequest { target_id: self.id_of(who) };
        let moved = client.maintenance.move_leader(request).await;
        moved.map_or_else(refused, |_| Answer::Moved)
    }

    async fn status(&self, mut client: Client) -> Answer {
        match client.maintenance.status(pb::StatusRequest::default()).await {
            Ok(status) => {
                let pb::StatusResponse { header, leader, is_learner, version, .. } =
                    status.into_inner();
                let own = header.expect("every answer has a header").member_id;
                let leads = own == leader;
                Answer::Status { leads, follows: leader == self.ids[0], is_learner, version }
            }
            Err(status) => refused(status),
        }
    }

    /// What a client can see, without ids and what differs between clusters.
    fn told(&self, header: Option<pb::ResponseHeader>, members: Vec<pb::Member>) -> Answer {
        let name = |member: pb::Member| {
            let part = self.ids.iter().position(|id| *id == member.id);
            let own = part.is_some_and(|part| member.peer_ur_ls == [self.urls[part].clone()]);
            let urls = if own { vec!["its own".to_owned()] } else { member.peer_ur_ls };
            let (named, at) = (!member.name.is_empty(), member.client_ur_ls.len());
            let learner = member.is_learner;
            let part = part.map_or_else(|| OTHER.to_owned(), |part| part.to_string());
            format!("{part}: named {named}, at {urls:?}, {at} for clients, learner {learner}")
        };
        let mut members: Vec<_> = members.into_iter().map(name).collect();
        members.sort();
        Answer::Members(header.expect("every answer has a header").revision, members)
    }
}

/// Makes a call, and makes it again when nothing comes of it.
async fn patiently<T>(
    call: impl AsyncFn() -> Result<tonic::Response<T>, Status>,
) -> Result<T, Status> {
    let began = Instant::now();
    loop {
        if let Ok(answer) = timeout(RETRY, call()).await {
            return answer.map(tonic::Response::into_inner);
        }
        assert!(began.elapsed() < BOUND, "no change comes to its end");
    }
}

fn refused(status: Status) -> Answer {
    Answer::Refused(status.code(), status.message().to_owned())
}
