//! [`Router`]: from a request to the replica that can serve it.
//!
//! The life of a request: look up the group; if its leader is here, `tell` the group's actor; if it is
//! elsewhere, ask that node, once; if there is none, wait for one until the deadline. A request is sent
//! again only when it is certain that nothing was proposed, or when it changes nothing. For a group that
//! does not live here, or not any more, its other members are asked ([`crate::elsewhere`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use kameo::actor::ActorRef;
use prost::Message as _;
use quorate_group::{Fitness, HostError, Leadership, Proposed, Refusal, Wheel};
use quorate_placement::PlacementMap;
use quorate_raft::Role;
use quorate_transport::{NotSent, RequestError, Transport, Unknown};
use quorate_types::{Epoch, GroupId, NodeId, ReadError, Term};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{timeout, timeout_at};

use crate::actor::{
    Glance, GroupActor, GroupReport, Input, ProposalReply, ProposalSlot, ReadGrant, ReadReply,
    ReadSlot,
};
use crate::disks::{Disks, View};
use crate::distances::Distances;
use crate::engine::lock;
use crate::entry_cache::EntryCache;
use crate::feed::Feeds;
use crate::forward::{Answer, Empty, FORWARDED_BYTES_MAX, Reply, Request, reply};
use crate::metrics::NodeMetrics;
use crate::state::GroupState;

/// How long a request waits before it looks again when what it was told contradicts what it sees, as
/// between an election and the news of it.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long an answer may still come from a node that leads no more, unless nothing is heard of it: then
/// there will be none.
const DEPOSED_GRACE: Duration = Duration::from_millis(500);

/// Why a request to the engine failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EngineError {
    /// No such group lives on this node.
    #[error("group {0} does not live here")]
    UnknownGroup(GroupId),
    /// No kind of machine is registered under this name.
    #[error("no machine of kind {0} is registered")]
    UnknownKind(String),
    /// The node does not take the group in.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There was no leader until the deadline; nothing was proposed.
    #[error("no leader")]
    NoLeader,
    /// The deadline passed or a connection broke: a proposal may or may not be applied.
    #[error("timed out, outcome unknown")]
    TimedOut,
    /// No frame between nodes could carry the command, or the answer; nothing was proposed.
    #[error("{bytes} bytes are too large, at most {bytes_max} are carried between nodes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is carried.
        bytes_max: usize,
    },
    /// Too much waits already; nothing was proposed.
    #[error("too many proposals wait")]
    Overloaded,
    /// The disks of too many voters are nearly full; nothing was proposed. What grows nothing is taken.
    #[error("the disks of too many voters are nearly full")]
    NoSpace,
    /// The query has no answer.
    #[error("read failed: {0}")]
    Read(String),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

impl From<ReadError> for EngineError {
    fn from(error: ReadError) -> Self {
        Self::Read(error.to_string())
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// It sees everything that was acknowledged before it began, anywhere.
    Linearizable,
    /// It sees what this node's replica has applied.
    Serializable,
    /// As [`Self::Linearizable`], and it is answered by the leader itself:
    /// [`MachineKind::read_led`](quorate_types::MachineKind::read_led).
    Led,
}

/// The answer to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadAnswer {
    /// The machine's answer.
    pub answer: Bytes,
    /// The term of the replica that answered.
    pub term: Term,
}

/// Where a key lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The group that owns it.
    pub group: GroupId,
    /// The epoch of its shard.
    pub epoch: Epoch,
}

/// A group on this node, as everybody else on the node sees it.
pub(crate) struct Resident {
    pub(crate) actor: ActorRef<GroupActor>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) state: GroupState,
    pub(crate) caught_up: Arc<AtomicBool>,
    pub(crate) glance: Arc<Glance>,
    /// How the group is, while it sleeps: nobody needs to ask it then.
    pub(crate) resting: Arc<ArcSwapOption<GroupReport>>,
}

impl Resident {
    /// True while the group sleeps.
    pub(crate) fn is_asleep(&self) -> bool {
        self.resting.load().is_some()
    }
}

pub(crate) type Residents = BTreeMap<GroupId, Arc<Resident>>;

/// Routes requests; shared by every task of a node.
pub(crate) struct Router {
    pub(crate) node: NodeId,
    pub(crate) residents: ArcSwap<Residents>,
    /// Who of them is awake.
    pub(crate) wheel: Arc<Mutex<Wheel>>,
    pub(crate) map: ArcSwap<PlacementMap>,
    /// The version of `map`, for those who wait for another.
    pub(crate) map_version: watch::Sender<u64>,
    /// Empty before the transport is open, and again after it was closed.
    pub(crate) transport: ArcSwapOption<Transport>,
    /// Bytes of proposals that may still enter; what is over the bound is refused at once.
    pub(crate) proposal_bytes: Arc<Semaphore>,
    pub(crate) request_timeout: Duration,
    pub(crate) metrics: Arc<NodeMetrics>,
    pub(crate) stopping: AtomicBool,
    /// How the disks of this node and of the others are.
    pub(crate) disks: Arc<Disks>,
    /// How far the other nodes are.
    pub(crate) distances: Arc<Distances>,
    /// What the groups keep of their logs in memory.
    pub(crate) entries: Arc<EntryCache>,
    /// What the groups of this node did lately.
    pub(crate) feeds: Arc<Feeds>,
}

impl Router {
    /// Proposes `command` to `group`, wherever its leader is.
    pub(crate) async fn propose(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> Result<Proposed, EngineError> {
        if command.len() > FORWARDED_BYTES_MAX {
            return Err(EngineError::TooLarge {
                bytes: command.len(),
                bytes_max: FORWARDED_BYTES_MAX,
            });
        }
        let deadline = Instant::now() + self.request_timeout;
        let proposed = match self.resident(group) {
            Ok(resident) => self.propose_by(&resident, command.clone(), deadline).await,
            Err(error) => Err(error),
        };
        match proposed {
            // It is not here, or was taken away before anything was proposed.
            Err(EngineError::UnknownGroup(_)) => {
                self.propose_elsewhere(group, command, deadline).await
            }
            other => other,
        }
    }

    async fn propose_by(
        &self,
        resident: &Resident,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Proposed, EngineError> {
        let group = resident.state.group;
        loop {
            let leader = self.await_leader(resident, deadline).await?;
            let refusal = if leader == self.node {
                match self.propose_here(resident, command.clone(), deadline).await? {
                    Ok(proposed) => return Ok(proposed),
                    Err(refusal) => refusal,
                }
            } else {
                let request = Request::propose(group, command.clone());
                match self.ask_leader(resident, leader, request, deadline).await {
                    Ok(reply::Body::Answer(answer)) => return Ok(answer.into_proposed()),
                    Ok(other) => refusal_of(other)?,
                    Err(RequestError::NotSent(_)) => {
                        Refusal::NotLeader { leader: None, term: Term::ZERO }
                    }
                    Err(RequestError::Unknown(_)) => return Err(EngineError::TimedOut),
                }
            };
            match refusal {
                Refusal::NotLeader { .. } => self.look_again(resident, leader, deadline).await?,
                Refusal::Overloaded => return Err(EngineError::Overloaded),
                Refusal::NoSpace => return Err(EngineError::NoSpace),
                Refusal::Membership(error) => {
                    unreachable!("group {group}: a command was refused as a change: {error}")
                }
                Refusal::Unknown => return Err(EngineError::TimedOut),
            }
        }
    }

    /// Answers `query` from `group`.
    pub(crate) async fn read(
        &self,
        group: GroupId,
        query: Bytes,
        consistency: Consistency,
    ) -> Result<ReadAnswer, EngineError> {
        let deadline = Instant::now() + self.request_timeout;
        let read = match self.resident(group) {
            Ok(resident) => self.read_by(&resident, query.clone(), consistency, deadline).await,
            Err(error) => Err(error),
        };
        match read {
            Err(EngineError::UnknownGroup(_)) => {
                let led = consistency == Consistency::Led;
                self.read_elsewhere(group, query, led, deadline).await
            }
            other => other,
        }
    }

    async fn read_by(
        &self,
        resident: &Resident,
        query: Bytes,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<ReadAnswer, EngineError> {
        let group = resident.state.group;
        let led = consistency == Consistency::Led;
        // Right after a restart the state may be older than what this node has served before.
        if consistency == Consistency::Serializable && resident.caught_up.load(Ordering::Acquire) {
            let term = resident.leadership.borrow().term;
            return Ok(ReadAnswer { answer: resident.state.read_anywhere(query).await?, term });
        }
        loop {
            let leader = self.await_leader(resident, deadline).await?;
            // A replica that is far behind, or whose disk holds it up, would keep the caller waiting: the
            // leader is not.
            let keeps_up = || {
                let is_fit = self.disks.view().fitness == Fitness::Fit;
                is_fit && resident.caught_up.load(Ordering::Acquire)
            };
            if leader == self.node || !led && keeps_up() {
                if let Ok(ReadGrant { term, .. }) = self.read_here(resident, deadline).await? {
                    let answer = match led {
                        true => resident.state.read_led(&query, term),
                        false => resident.state.read_anywhere(query.clone()).await,
                    };
                    match answer {
                        Err(ReadError::NotNow) => {}
                        answer => return Ok(ReadAnswer { answer: answer?, term }),
                    }
                }
                // A read changes nothing: whatever went wrong, it may be tried again.
            } else {
                let request = Request::read(group, query.clone(), led);
                match self.ask_leader(resident, leader, request, deadline).await {
                    Ok(reply::Body::Answer(Answer { term, outcome, .. })) => {
                        return Ok(ReadAnswer { answer: outcome, term: Term(term) });
                    }
                    Ok(other) => drop(refusal_of(other)?),
                    Err(RequestError::NotSent(_) | RequestError::Unknown(_)) => {}
                }
            }
            self.look_again(resident, leader, deadline).await?;
        }
    }

    /// Waits until this node's replica may be read, or says why it may not.
    async fn read_here(
        &self,
        resident: &Resident,
        deadline: Instant,
    ) -> Result<Result<ReadGrant, Refusal>, EngineError> {
        let (sender, granted) = oneshot::channel();
        let slot = ReadSlot { reply: ReadReply::Local(sender) };
        self.tell(resident, Input::Read(slot))?;
        match timeout_at(deadline.into(), granted).await {
            Ok(Ok(result)) => Ok(result),
            // The group has panicked or left; a read changes nothing and is tried again.
            Ok(Err(_)) => Ok(Err(Refusal::Unknown)),
            Err(_) => Err(EngineError::TimedOut),
        }
    }

    /// The group that owns `key`.
    pub(crate) fn route(&self, key: &[u8]) -> Route {
        let map = self.map.load();
        let shard = map.shard_of(key);
        Route { group: shard.group, epoch: shard.epoch }
    }

    /// Counts a proposal's bytes against the node's bound.
    pub(crate) fn permit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, EngineError> {
        // An empty command still takes a slot and an entry.
        let bytes = u32::try_from(bytes.max(64)).map_err(|_| EngineError::Overloaded)?;
        Arc::clone(&self.proposal_bytes).try_acquire_many_owned(bytes).map_err(|_| {
            self.metrics.proposals_refused.increment(1);
            EngineError::Overloaded
        })
    }

    pub(crate) fn resident(&self, group: GroupId) -> Result<Arc<Resident>, EngineError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(EngineError::Stopping);
        }
        self.residents.load().get(&group).cloned().ok_or(EngineError::UnknownGroup(group))
    }

    /// Lets everybody on the node know of a group, which has begun with `disks` as they were.
    pub(crate) fn take_in(&self, group: GroupId, resident: Arc<Resident>, disks: &Arc<View>) {
        self.residents.rcu(|residents| {
            let mut residents = residents.as_ref().clone();
            residents.insert(group, Arc::clone(&resident));
            residents
        });
        // Whoever tells of a change first shows it, and then looks who is there: what is not seen here is
        // told.
        if self.disks.view() != *disks {
            // One that has stopped need not know.
            drop(self.tell(&resident, Input::Disks));
        }
    }

    pub(crate) fn tell(&self, resident: &Resident, input: Input) -> Result<(), EngineError> {
        // The mailbox is unbounded, so this fails only when the actor has stopped.
        resident.actor.tell(input).try_send().map_err(|_| self.has_left(resident))
    }

    /// Why a group's actor has stopped.
    fn has_left(&self, resident: &Resident) -> EngineError {
        match self.stopping.load(Ordering::Acquire) {
            true => EngineError::Stopping,
            false => EngineError::UnknownGroup(resident.state.group),
        }
    }

    /// Asks another node; every answer that is not understood counts as unknown.
    pub(crate) async fn ask(
        &self,
        node: NodeId,
        request: Bytes,
        deadline: Instant,
    ) -> Result<reply::Body, RequestError> {
        let Some(transport) = self.transport.load_full() else {
            return Err(RequestError::NotSent(NotSent::NotConnected));
        };
        let remaining = deadline.saturating_duration_since(Instant::now());
        let answer = transport.request(node, request, remaining).await?;
        let understood = Reply::decode(answer).ok().and_then(|reply| reply.body);
        Ok(understood.unwrap_or(reply::Body::Unknown(Empty {})))
    }

    /// Asks the node that is believed to lead, and gives up soon after another one is known to.
    async fn ask_leader(
        &self,
        resident: &Resident,
        leader: NodeId,
        request: Bytes,
        deadline: Instant,
    ) -> Result<reply::Body, RequestError> {
        // If the leader is there, it wakes its group for the request anyway; if it is not, or has lost the
        // group, nobody but the replica here would find out.
        if resident.is_asleep() {
            // One that has stopped has no leader here either.
            drop(self.tell(resident, Input::Wake));
        }
        let mut leadership = resident.leadership.clone();
        let deposed = async {
            let changed = leadership.wait_for(|now| now.leader.is_some_and(|now| now != leader));
            if changed.await.is_err() {
                // The group has left this node; what was asked may still be answered.
                std::future::pending::<()>().await;
            }
            // Either way nothing more is waited for.
            drop(timeout(DEPOSED_GRACE, self.until_gone(leader)).await);
        };
        tokio::select! {
            answer = self.ask(leader, request, deadline) => answer,
            () = deposed => Err(RequestError::Unknown(Unknown::ConnectionLost)),
        }
    }

    /// Waits until nothing is heard of `node` any more.
    pub(crate) async fn until_gone(&self, node: NodeId) {
        while !lock(&self.wheel).is_gone(node) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn propose_here(
        &self,
        resident: &Resident,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Result<Proposed, Refusal>, EngineError> {
        let (sender, answered) = oneshot::channel();
        let slot = ProposalSlot {
            since: Instant::now(),
            reply: ProposalReply::Local(sender),
            _permit: self.permit(command.len())?,
        };
        self.tell(resident, Input::Propose { command, slot })?;
        match timeout_at(deadline.into(), answered).await {
            Ok(Ok(result)) => Ok(result),
            // The actor went away with the proposal.
            Ok(Err(_)) | Err(_) => Err(EngineError::TimedOut),
        }
    }

    async fn await_leader(
        &self,
        resident: &Resident,
        deadline: Instant,
    ) -> Result<NodeId, EngineError> {
        if let Some(leader) = resident.leadership.borrow().leader {
            return Ok(leader);
        }
        let mut leadership = resident.leadership.clone();
        match timeout_at(deadline.into(), leadership.wait_for(|now| now.leader.is_some())).await {
            Ok(Ok(now)) => now.leader.ok_or(EngineError::NoLeader),
            Ok(Err(_)) => Err(self.has_left(resident)),
            Err(_) => Err(EngineError::NoLeader),
        }
    }

    /// `believed` did not lead: waits for other news, a little.
    async fn look_again(
        &self,
        resident: &Resident,
        believed: NodeId,
        deadline: Instant,
    ) -> Result<(), EngineError> {
        if Instant::now() >= deadline {
            return Err(EngineError::NoLeader);
        }
        let until = deadline.min(Instant::now() + LOOK_AGAIN);
        let mut leadership = resident.leadership.clone();
        let changed = leadership.wait_for(|now| {
            now.leader.is_some_and(|leader| {
                leader != believed || leader == self.node && now.role == Role::Leader
            })
        });
        // Either way the caller looks again.
        drop(timeout_at(until.into(), changed).await);
        Ok(())
    }
}

/// What another node's refusal means for the asker.
pub(crate) fn refusal_of(body: reply::Body) -> Result<Refusal, EngineError> {
    match body {
        reply::Body::NotLeader(other) => {
            Ok(Refusal::NotLeader { leader: other.leader(), term: Term(other.term) })
        }
        reply::Body::Overloaded(_) => Ok(Refusal::Overloaded),
        reply::Body::NoSpace(_) => Ok(Refusal::NoSpace),
        // A node that has just started may not have the group yet.
        reply::Body::UnknownGroup(_) => Ok(Refusal::NotLeader { leader: None, term: Term::ZERO }),
        reply::Body::Failed(reason) => Err(EngineError::Read(reason)),
        reply::Body::TooLarge(bytes) => {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            Err(EngineError::TooLarge { bytes, bytes_max: FORWARDED_BYTES_MAX })
        }
        reply::Body::Unknown(_)
        | reply::Body::Answer(_)
        | reply::Body::Founders(_)
        | reply::Body::Joined(_)
        | reply::Body::Refused(_)
        | reply::Body::Heard(_)
        | reply::Body::CaughtUp(_) => Ok(Refusal::Unknown),
    }
}
