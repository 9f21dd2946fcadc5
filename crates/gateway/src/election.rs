//! The Election service: a leader is who owns the election's name.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use quorate_api::etcdserverpb::ResponseHeader;
use quorate_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse, election_server,
};
use quorate_types::KeyRange;
use quorate_types::kv::{
    DeleteRange, EventKind, KeyValue, Op, Put, Range, Txn, WatchEvent, compare::Target, op,
    outcome, query,
};
use tonic::{Request, Response, Status};

use crate::auth::caller::{Identity, identity, peer};
use crate::backend::Backend;
use crate::closing::until_closed;
use crate::door::REQUIRE_LEADER;
use crate::error::ApiError;
use crate::ownership::{
    Queues, Wish, compare, do_op, in_their_words, oldest, passes, persist, prefix,
};
use crate::translate;
use crate::watch::{Subscription, Told};

/// etcd's Election service over a backend.
pub(crate) struct ElectionService<B> {
    queues: Arc<Queues<B>>,
}

impl<B: Backend> ElectionService<B> {
    pub(crate) const fn new(queues: Arc<Queues<B>>) -> Self {
        Self { queues }
    }

    /// Does something to a leadership if it is still there; false if it is not.
    async fn while_leading(
        &self,
        leader: &LeaderKey,
        act: Op,
        by: Option<&Identity>,
    ) -> Result<(ResponseHeader, bool), Status> {
        if leader.key.is_empty() {
            return Err(ApiError::EmptyKey.into());
        }
        let compares = vec![compare(&leader.key, Target::CreateRevision(leader.rev))];
        let txn = Txn { compares, success: vec![act], failure: Vec::new() };
        let (header, outcome) = self.queues.carry_out(txn, by).await?;
        Ok((header, outcome.succeeded))
    }

    async fn speak(
        &self,
        leader: Option<LeaderKey>,
        value: Bytes,
        by: Option<&Identity>,
    ) -> Result<ProclaimResponse, Status> {
        let leader = leader.ok_or(ApiError::LeaderKeyMissing)?;
        let lease = self.queues.session(leader.lease, by).await?;
        let put = Put { key: leader.key.clone(), value, lease, ..Put::default() };
        match self.while_leading(&leader, do_op(op::Body::Put(put)), by).await? {
            (header, true) => Ok(ProclaimResponse { header: Some(header) }),
            (_, false) => Err(ApiError::ElectionNotLeader.into()),
        }
    }

    async fn give_up(
        &self,
        leader: Option<LeaderKey>,
        by: Option<&Identity>,
    ) -> Result<ResignResponse, Status> {
        let leader = leader.ok_or(ApiError::LeaderKeyMissing)?;
        let delete = DeleteRange { key: leader.key.clone(), ..DeleteRange::default() };
        // Of what is over already, nothing is left to give up.
        let (header, _) =
            self.while_leading(&leader, do_op(op::Body::DeleteRange(delete)), by).await?;
        Ok(ResignResponse { header: Some(header) })
    }
}

#[tonic::async_trait]
impl<B: Backend> election_server::Election for ElectionService<B> {
    type ObserveStream = BoxStream<'static, Result<LeaderResponse, Status>>;

    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let by = identity(&request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lost = ApiError::ElectionNotLeader;
        let wish = Wish { name: name.clone(), lease, value: Some(value), by, lost };
        let owned = self.queues.own(wish).await.map_err(in_their_words)?;
        let leader = LeaderKey { name, key: owned.key, rev: owned.created, lease: owned.lease };
        let header = Some(owned.entered);
        Ok(Response::new(CampaignResponse { header, leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let by = identity(&request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let spoken = self.speak(leader, value, by.as_ref()).await;
        spoken.map(Response::new).map_err(in_their_words)
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let by = identity(&request);
        let given_up = self.give_up(request.into_inner().leader, by.as_ref()).await;
        given_up.map(Response::new).map_err(in_their_words)
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let by = identity(&request);
        let prefix = prefix(&request.into_inner().name);
        let looked = look(&self.queues, &prefix, 0, by.as_ref()).await;
        match looked.map_err(in_their_words)? {
            (header, Some(leader)) => Ok(Response::new(response(header, leader))),
            (_, None) => Err(ApiError::ElectionNoLeader.into()),
        }
    }

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (by, peer) = (identity(&request), peer(&request));
        let required = request.metadata().get(REQUIRE_LEADER);
        let observer = Observer {
            queues: Arc::clone(&self.queues),
            by: by.clone(),
            requires_leader: required.is_some_and(|value| value == "true"),
            prefix: prefix(&request.get_ref().name),
            following: None,
        };
        let told = stream::try_unfold(observer, |mut observer| async {
            let told = observer.next().await.map_err(in_their_words)?;
            Ok(Some((told, observer)))
        });
        let audit = &self.queues.desk().guard.audit;
        let told = audit.of_stream("/v3electionpb.Election/Observe", (by, peer), told);
        // Also while nobody leads.
        Ok(Response::new(until_closed(told, self.queues.hub.closed())))
    }
}

fn response(header: ResponseHeader, leader: KeyValue) -> LeaderResponse {
    LeaderResponse { header: Some(header), kv: Some(translate::key_value(leader)) }
}

/// The leader as of a revision; as of now if that is 0.
async fn look<B: Backend>(
    queues: &Queues<B>,
    prefix: &Bytes,
    revision: i64,
    by: Option<&Identity>,
) -> Result<(ResponseHeader, Option<KeyValue>), Status> {
    let range = Range { revision, ..oldest(prefix) };
    match queues.desk().ask(query::Body::Range(range), by).await? {
        (mut header, outcome::Body::Range(found)) => {
            if revision > 0 {
                header.revision = revision;
            }
            Ok((header, found.kvs.into_iter().next()))
        }
        _ => Err(ApiError::UnexpectedOutcome.into()),
    }
}

/// What an event is to an observer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heard {
    /// The leader has a new value.
    Proclaimed,
    /// Another leads from there on, or nobody.
    Changed,
    /// Nothing: it is about one who waits.
    Nothing,
}

/// `leader` is the leader's key before the event.
fn heard(leader: Option<&Bytes>, event: &WatchEvent) -> Heard {
    let is_put = event.kind == EventKind::Put as i32;
    match leader {
        Some(leader) if *leader != event.kv.key => Heard::Nothing,
        Some(_) if is_put => Heard::Proclaimed,
        Some(_) => Heard::Changed,
        None if is_put => Heard::Changed,
        None => Heard::Nothing,
    }
}

/// One client's view of an election: follows the leader's key while there is one, else all keys, and looks
/// who leads as of the very revision at which that changes. So it misses no leader, however short.
struct Observer<B: Backend> {
    queues: Arc<Queues<B>>,
    by: Option<Identity>,
    requires_leader: bool,
    prefix: Bytes,
    following: Option<Following<B>>,
}

struct Following<B: Backend> {
    /// The leader's key.
    leader: Option<Bytes>,
    subscription: Subscription<B>,
    /// Told, and not looked at yet.
    events: VecDeque<WatchEvent>,
    raft_term: u64,
}

impl<B: Backend> Observer<B> {
    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        let mut look_at = self.following.is_none().then_some(0);
        loop {
            if let Some(revision) = look_at.take()
                && let Some(found) = self.follow(revision).await?
            {
                return Ok(found);
            }
            let event = self.event().await?;
            let following = self.following.as_mut().expect("it has looked");
            match heard(following.leader.as_ref(), &event) {
                Heard::Nothing => {}
                Heard::Changed => look_at = Some(event.revision()),
                Heard::Proclaimed => {
                    let (desk, range) = (self.queues.desk(), KeyRange::single(&event.kv.key));
                    desk.authorize_watch(self.by.as_ref(), &range).await?;
                    let mut header = desk.header(event.revision(), quorate_types::Term::ZERO);
                    header.raft_term = following.raft_term;
                    return Ok(response(header, event.kv));
                }
            }
        }
    }

    /// Looks who leads as of a revision, and follows what is to be followed from there on.
    async fn follow(&mut self, revision: i64) -> Result<Option<LeaderResponse>, Status> {
        let (queues, by) = (&self.queues, self.by.as_ref());
        let looked = async || look(queues, &self.prefix, revision, by).await;
        let (header, found) = persist(looked).await?;
        self.by = self.by.take().map(Identity::let_in);
        let leader = found.as_ref().map(|found| found.key.clone());
        let range = match &leader {
            Some(key) => KeyRange::single(key),
            None => KeyRange::prefix(&self.prefix),
        };
        let open = async || Subscription::open(&queues.hub, [range.clone()], header.revision).await;
        let subscription = persist(open).await?;
        let (events, raft_term) = (VecDeque::new(), header.raft_term);
        self.following = Some(Following { leader, subscription, events, raft_term });
        Ok(found.map(|found| response(header, found)))
    }

    async fn event(&mut self) -> Result<WatchEvent, Status> {
        let following = self.following.as_mut().expect("it has looked");
        loop {
            if let Some(event) = following.events.pop_front() {
                return Ok(event);
            }
            match following.subscription.next(self.requires_leader).await {
                Ok(Told::Events(events)) => following.events.extend(events),
                // Leaders may have been missed: the client is told so.
                Ok(Told::Compacted) => return Err(ApiError::Compacted.into()),
                Err(status) if passes(&status) && !self.requires_leader => {
                    tokio::time::sleep(crate::ownership::RETRY_PAUSE).await;
                }
                Err(status) => return Err(status),
            }
        }
    }
}
