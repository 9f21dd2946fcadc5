//! What the transport delivers: peers, their messages and their requests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use prost::Message as _;
use quorate_placement::PlacementMap;
use quorate_transport::{Handler, Hello, PeerEvent, Refusal, Replier, SnapshotOffer};
use quorate_types::{Body, EntryId, GroupId, Incarnation, Message, NodeId};
use tokio::sync::{mpsc, watch};

use crate::actor::{Input, ProposalReply, ProposalSlot, ReadReply, ReadSlot};
use crate::admission::{Admission, OTHER_BEGINNING};
use crate::clock;
use crate::engine::{Parts, lock};
use crate::feed::answer_follower;
use crate::forward::{Beat, Empty, JoinRequest, Nodes, Reply, Request, reply, request};
use crate::identity::Identity;
use crate::router::Router;
use crate::snapshot::arrival;
use crate::witness::Witness;
use crate::{join, members, mover};

/// A node's side of the transport.
pub(crate) struct Network {
    router: Arc<Router>,
    identity: Identity,
    session: u64,
    admission: Mutex<Admission>,
    witness: Mutex<Witness>,
    /// Batches that the log had synced when it was opened.
    synced_batches: u64,
    /// Why this node must stop, once it is known.
    expelled: watch::Sender<Option<Expelled>>,
    /// Nodes that join are let in one at a time: each costs a change of the map.
    joining: Arc<tokio::sync::Semaphore>,
    started: AtomicBool,
    /// Set once groups may be made here.
    parts: OnceLock<Weak<Parts>>,
    /// News for whoever starts the node: at most one for each peer event until the start.
    gathering: mpsc::UnboundedSender<Heard>,
}

/// Why the others do not let a node take part any more: it has to stop.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Expelled {
    /// It was removed from the cluster.
    #[error("{0}")]
    Removed(String),
    /// Its data directory is a copy: older than what the node had, or in use by another process.
    #[error("{0}")]
    Copy(String),
}

/// What a gathering node waits for.
pub(crate) enum Heard {
    /// Every founder was heard.
    All(BTreeMap<NodeId, Incarnation>),
    /// A peer has started already: ask for its table.
    Started,
    /// Another initial node begins with something else, or says that this one does.
    Differs(String),
}

impl Network {
    pub(crate) fn new(
        router: Arc<Router>,
        identity: Identity,
        session: u64,
        admission: Admission,
        witness: Witness,
        synced_batches: u64,
        gathering: mpsc::UnboundedSender<Heard>,
    ) -> Self {
        let started = AtomicBool::new(identity.has_started());
        let (admission, parts) = (Mutex::new(admission), OnceLock::new());
        let (witness, expelled) = (Mutex::new(witness), watch::Sender::new(None));
        let joining = Arc::new(tokio::sync::Semaphore::new(1));
        Self {
            router,
            identity,
            session,
            admission,
            witness,
            synced_batches,
            expelled,
            joining,
            started,
            parts,
            gathering,
        }
    }

    /// From now on this map says who is a member.
    pub(crate) fn learn(&self, map: &PlacementMap) {
        self.with_admission(|admission| admission.learn(map));
        if map.gone(self.identity.node).is_some() {
            let reason = "this node has been removed from the cluster".to_owned();
            self.note_expelled(Expelled::Removed(reason));
        }
    }

    /// Why this node must stop, as soon as it is known.
    pub(crate) fn expelled(&self) -> watch::Receiver<Option<Expelled>> {
        self.expelled.subscribe()
    }

    fn note_expelled(&self, why: Expelled) {
        self.expelled.send_if_modified(|expelled| {
            let news = expelled.is_none();
            expelled.get_or_insert(why);
            news
        });
    }

    /// Who begins with a backup does not wait for nodes that begin with something else: one of them is wrong.
    fn note_refused(&self, reason: &str) {
        let waits = self.identity.restored.is_some() && !self.started.load(Ordering::Acquire);
        if waits && reason.ends_with(OTHER_BEGINNING) {
            drop(self.gathering.send(Heard::Differs(reason.to_owned())));
        }
    }

    fn hear_beat(&self, from: NodeId, beat: &Beat) {
        let Beat { session, synced_batches, .. } = *beat;
        self.with_witness(|witness| witness.hear(from, session, synced_batches, now_ms()));
        self.router.disks.hear(from, beat);
    }

    /// What is to be remembered over restarts goes to the log, as soon as there is one.
    fn with_witness<T>(&self, act: impl FnOnce(&mut Witness) -> T) -> T {
        let mut witness = lock(&self.witness);
        let result = act(&mut witness);
        // Under the lock: of two notes the later one must come last.
        if let Some(parts) = self.parts.get().and_then(Weak::upgrade)
            && let Some(words) = witness.take_news()
        {
            parts.wal.note(words);
        }
        result
    }

    /// How many batches are durable in this node's log; never more than a restart would find.
    fn synced_batches(&self) -> u64 {
        let parts = self.parts.get().and_then(Weak::upgrade);
        parts.map_or(self.synced_batches, |parts| parts.wal.synced_batches())
    }

    /// From now on the founders are fixed.
    pub(crate) fn start(&self, founders: BTreeMap<NodeId, Incarnation>) {
        self.with_admission(|admission| admission.start(founders));
        self.started.store(true, Ordering::Release);
    }

    /// From now on snapshots are taken in; before, they are refused.
    pub(crate) fn take_snapshots(&self, parts: &Arc<Parts>) {
        // The node's parts hold the transport, and that holds this.
        drop(self.parts.set(Arc::downgrade(parts)));
    }

    /// True if a started peer's table names this very node.
    pub(crate) fn adopt(&self, table: &BTreeMap<NodeId, Incarnation>) -> bool {
        self.with_admission(|admission| admission.adopt(table))
    }

    fn with_admission<T>(&self, act: impl FnOnce(&mut Admission) -> T) -> T {
        act(&mut self.admission.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn propose(&self, group: GroupId, command: Bytes, replier: Replier) {
        let Ok(resident) = self.router.resident(group) else {
            return replier.send(Reply::encoded(reply::Body::UnknownGroup(Empty {})));
        };
        let Ok(permit) = self.router.permit(command.len()) else {
            return replier.send(Reply::encoded(reply::Body::Overloaded(Empty {})));
        };
        let slot = ProposalSlot {
            since: std::time::Instant::now(),
            reply: ProposalReply::Remote(replier),
            _permit: permit,
        };
        // If the actor has stopped, dropping the slot answers the other node with an error.
        drop(self.router.tell(&resident, Input::Propose { command, slot }));
    }

    fn read(&self, group: GroupId, query: Bytes, led: bool, replier: Replier) {
        match self.router.resident(group) {
            Ok(resident) => {
                let slot = ReadSlot { reply: ReadReply::Remote { query, led, replier } };
                drop(self.router.tell(&resident, Input::Read(slot)));
            }
            // It does not live here, or not for long: the asker looks elsewhere.
            Err(_) => replier.send(Reply::encoded(reply::Body::UnknownGroup(Empty {}))),
        }
    }

    /// A node without the group says what a replica says that knows nothing: it lacks everything. That
    /// promises nothing, and brings a leader that counts on this node to send a snapshot, with which the
    /// group begins here. A group that has stopped here, or is fenced, says nothing.
    fn answer_for_nobody(&self, from: NodeId, messages: Vec<Message>) {
        self.router.metrics.messages_unrouted.increment(messages.len() as u64);
        let Some(parts) = self.parts.get().and_then(Weak::upgrade) else { return };
        let lacks = |message: Message| match message.body {
            Body::Append { prev, .. } => {
                let body = Body::AppendRejected { refused: prev.index, hint: EntryId::ZERO };
                Some(Message { from: self.identity.node, to: from, body, ..message })
            }
            _ => None,
        };
        let is_unknown = |message: &Message| parts.with_host(|host| host.is_unknown(message.group));
        let answers: Vec<_> = messages.into_iter().filter(is_unknown).filter_map(lacks).collect();
        if !answers.is_empty() {
            parts.transport.send(from, answers);
        }
    }

    fn founders(&self, replier: Replier) {
        let table = self.with_admission(|admission| admission.table().cloned());
        // An empty table says that this node has not started either.
        replier.send(Reply::of_founders(&table.unwrap_or_default()));
    }

    /// Lets a node in that was added.
    fn let_in(&self, name: &str, request: JoinRequest, replier: Replier) {
        let Ok(permit) = Arc::clone(&self.joining).try_acquire_owned() else {
            let reason = "another node is joining";
            return replier.send(Reply::encoded(reply::Body::Failed(reason.to_owned())));
        };
        // As group 1 has it: a node that joins needs to know whom the cluster began with.
        let founders = self.with_admission(|admission| admission.table().cloned());
        let identity = Identity { founders: founders.unwrap_or_default(), ..self.identity.clone() };
        let (router, name) = (Arc::clone(&self.router), name.to_owned());
        tokio::spawn(async move {
            replier.send(join::answer(&router, &identity, &name, request).await);
            drop(permit);
        });
    }

    /// Which learners of a group that this node leads have caught up.
    fn caught_up(&self, group: GroupId, replier: Replier) {
        let router = Arc::clone(&self.router);
        tokio::spawn(async move {
            let unknown = Reply::encoded(reply::Body::UnknownGroup(Empty {}));
            let Ok(resident) = router.resident(group) else { return replier.send(unknown) };
            let Ok(report) = members::look(&router, &resident).await else {
                return replier.send(unknown);
            };
            let nodes = mover::caught_up(&report).into_iter().map(NodeId::value).collect();
            replier.send(Reply::encoded(reply::Body::CaughtUp(Nodes { nodes })));
        });
    }
}

impl Handler for Network {
    fn hello(&self, target: NodeId) -> Hello {
        Hello {
            cluster_name: self.identity.cluster_name.clone(),
            cluster_digest: self.identity.cluster_digest,
            node: self.identity.node,
            node_name: self.identity.node_name.clone(),
            incarnation: self.identity.incarnation,
            session: self.session,
            started: self.started.load(Ordering::Acquire),
            synced_batches: self.synced_batches(),
            target,
        }
    }

    fn admit(&self, peer: &Hello) -> Result<(), Refusal> {
        let judged = self.with_admission(|admission| admission.judge(peer));
        judged.inspect_err(|refusal| self.note_refused(&refusal.to_string()))?;
        self.with_witness(|witness| witness.admit(peer, now_ms()))
    }

    fn on_peer(&self, node: NodeId, event: PeerEvent) {
        match event {
            PeerEvent::Up { hello } => {
                tracing::info!(peer = %hello.node_name, started = hello.started, "peer is up");
                if let Some(table) = self.with_admission(|admission| admission.hear(&hello)) {
                    // Nobody gathers any more: then nobody needs the news.
                    drop(self.gathering.send(Heard::All(table)));
                }
                if hello.started && !self.started.load(Ordering::Acquire) {
                    drop(self.gathering.send(Heard::Started));
                }
            }
            PeerEvent::Down { reason } => {
                tracing::warn!(peer = %node, reason, "peer is down");
                // Nothing is in flight to one that sleeps; whether it must wake, the ticker finds.
                let residents = self.router.residents.load();
                for resident in residents.values().filter(|resident| !resident.is_asleep()) {
                    drop(self.router.tell(resident, Input::Unreachable(node)));
                }
            }
            PeerEvent::Removed { reason } => {
                tracing::error!(peer = %node, reason, "this node has been removed");
                self.note_expelled(Expelled::Removed(reason));
            }
            PeerEvent::Copy { reason } => {
                tracing::error!(peer = %node, reason, "this node must not run with its data");
                self.note_expelled(Expelled::Copy(reason));
            }
            PeerEvent::Refused { reason } => {
                tracing::error!(peer = %node, reason, "peer refused");
                self.note_refused(&reason);
            }
        }
    }

    fn on_messages(&self, from: NodeId, messages: Vec<Message>) {
        let residents = self.router.residents.load();
        let mut messages = messages.into_iter().peekable();
        // A frame holds runs of messages for one group: each run is one delivery.
        while let Some(first) = messages.next() {
            let group = first.group;
            let mut run = vec![first];
            while let Some(next) = messages.next_if(|next| next.group == group) {
                run.push(next);
            }
            // Nobody speaks for anybody else, and a snapshot comes with its content or not at all.
            run.retain(|message| {
                let is_snapshot = matches!(message.body, Body::Snapshot { .. });
                message.from == from && message.to == self.identity.node && !is_snapshot
            });
            match residents.get(&group) {
                Some(resident) => drop(self.router.tell(resident, Input::Messages(run))),
                None => self.answer_for_nobody(from, run),
            }
        }
    }

    fn on_snapshot(&self, offer: SnapshotOffer) {
        if let Some(parts) = self.parts.get().and_then(Weak::upgrade) {
            // Detached: the transport ends it when its sender does not go on.
            drop(tokio::spawn(arrival::take(parts, offer)));
        }
    }

    fn on_request(&self, from: NodeId, name: &str, body: Bytes, _: u32, replier: Replier) {
        let request = match Request::decode(body) {
            Ok(request) => request,
            Err(error) => {
                return replier.send(Reply::encoded(reply::Body::Failed(error.to_string())));
            }
        };
        let group = GroupId(request.group);
        match request.body {
            // Who has no id can do nothing else, and who has one has no need of it.
            Some(request::Body::Join(join)) if from == NodeId::ZERO => {
                self.let_in(name, join, replier);
            }
            _ if from == NodeId::ZERO => {
                let reason = "a node without an id can only ask to join";
                replier.send(Reply::encoded(reply::Body::Failed(reason.into())));
            }
            Some(request::Body::CaughtUp(Empty {})) => self.caught_up(group, replier),
            Some(request::Body::Beat(beat)) => {
                self.hear_beat(from, &beat);
                replier.send(Reply::encoded(reply::Body::Heard(Empty {})));
            }
            Some(request::Body::Propose(command)) => self.propose(group, command, replier),
            Some(request::Body::Follow(follow)) => {
                let router = Arc::clone(&self.router);
                drop(tokio::spawn(answer_follower(router, group, follow, replier)));
            }
            Some(request::Body::Read(query)) => self.read(group, query, false, replier),
            Some(request::Body::ReadLed(query)) => self.read(group, query, true, replier),
            Some(request::Body::Founders(Empty {})) => self.founders(replier),
            Some(request::Body::Join(_)) | None => {
                let reason = "a request of a kind that this version does not know";
                replier.send(Reply::encoded(reply::Body::Failed(reason.into())));
            }
        }
    }
}

/// Milliseconds of the node's own clock.
fn now_ms() -> u64 {
    clock::now().value_us() / 1_000
}
