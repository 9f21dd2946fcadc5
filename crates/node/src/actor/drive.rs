//! [`Drive`]: does what a turn of a group decided. Nothing here waits: the log, the network and the
//! applier take work by channel, and their completions come back as messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quorate_group::{
    Divergence, Effect, Generation, GrowthGate, Leadership, Refusal, Room, WrongState,
};
use quorate_raft::{LogFetch, SnapshotRequest};
use quorate_store::GroupRow;
use quorate_transport::Transport;
use quorate_types::{Body, GroupId, LogIndex, Membership, Message, NodeId, SnapshotMeta};
use quorate_wal::{Fetch, Task, Wal, Write};
use tokio::sync::{oneshot, watch};

use crate::actor::Input;
use crate::actor::herald::Herald;
use crate::actor::slot::{ProposalSlot, ReadGrant, ReadReply, ReadSlot};
use crate::apply::{Applier, ApplyTask, OpenMachine};
use crate::disks::View;
use crate::forward::Reply;
use crate::metrics::NodeMetrics;
use crate::router::Router;
use crate::snapshot::installation::Target;
use crate::snapshot::transfer::{Arrived, PlaceError, Snapshots};
use crate::snapshot::words::Intent;
use crate::state::GroupState;

/// Effects that could not even be begun.
#[derive(Debug, Default)]
pub(crate) struct Unbegun {
    /// The log's full queue refused them.
    pub(crate) fetches: Vec<LogFetch>,
    /// The snapshot that was to be installed is not here.
    pub(crate) install: bool,
    /// Nor is the one whose rows were to take the place of the state.
    pub(crate) rebuild: bool,
}

/// What a group's effects are carried out with.
pub(crate) struct Drive {
    group: GroupId,
    generation: Generation,
    wal: Arc<Wal>,
    transport: Transport,
    applier: Applier,
    router: Arc<Router>,
    state: GroupState,
    metrics: Arc<NodeMetrics>,
    herald: Herald,
    /// Appends that the log's full queue refused, oldest first: offered again at the next turn, before
    /// anything newer, so that a group's appends stay in order. Bounded by the group's uncommitted
    /// and in-flight bounds.
    refused: VecDeque<Task>,
    /// What the log is reading for the replica; the replica bounds how many.
    fetching: Vec<LogFetch>,
    snapshots: Arc<Snapshots>,
    /// What the group is, for its snapshots.
    target: Target,
    /// A snapshot that is here, until the replica wants it installed, or does not.
    arrived: Option<Arrived>,
    /// One that is to be installed once no append waits to be offered again.
    to_install: Option<Arrived>,
    /// A snapshot is being put in the place of log and state, or of the state alone.
    installing: bool,
    /// Its state is known to be wrong.
    distrusted: bool,
    /// What the log says of that, as far as it was handed to it.
    noted: Option<WrongState>,
}

impl Drive {
    #[expect(
        clippy::too_many_arguments,
        reason = "one place of use; each is a different part of the node"
    )]
    pub(crate) fn new(
        group: GroupId,
        generation: Generation,
        wal: Arc<Wal>,
        transport: Transport,
        applier: Applier,
        router: Arc<Router>,
        state: GroupState,
        metrics: Arc<NodeMetrics>,
        leadership: watch::Sender<Leadership>,
        snapshots: Arc<Snapshots>,
        target: Target,
        wrong_state: Option<WrongState>,
    ) -> Self {
        let herald = Herald::new(group, leadership, Arc::clone(&metrics));
        let refused = VecDeque::new();
        Self {
            group,
            generation,
            wal,
            transport,
            applier,
            router,
            state,
            metrics,
            herald,
            refused,
            fetching: Vec::new(),
            snapshots,
            target,
            arrived: None,
            to_install: None,
            installing: false,
            distrusted: false,
            noted: wrong_state,
        }
    }

    pub(crate) fn metrics(&self) -> Arc<NodeMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Carries out effects in their order. Returns what could not be begun: the replica should hear that
    /// it has failed.
    pub(crate) fn carry_out(
        &mut self,
        effects: Vec<Effect<ProposalSlot, ReadSlot>>,
        now: Instant,
    ) -> Unbegun {
        let mut unbegun = Unbegun::default();
        self.offer_refused();
        for effect in effects {
            match effect {
                Effect::Append { ticket, hard_state, entries } => {
                    let write = Write::Append { group: self.group, hard_state, entries };
                    self.append(Task { write, generation: self.generation.0, ticket: ticket.0 });
                }
                Effect::Send(messages) => self.send(messages),
                Effect::Apply(entries) => self.applier.apply(ApplyTask {
                    group: self.group,
                    generation: self.generation,
                    entries,
                }),
                Effect::Fetch(fetch) => unbegun.fetches.extend(self.fetch(fetch)),
                Effect::Install(meta) => unbegun.install |= !self.take_for_install(&meta),
                Effect::Rebuild(meta) => unbegun.rebuild |= !self.rebuild(&meta),
                Effect::Diverged(Divergence { own, peer, theirs }) => {
                    self.metrics.digest_mismatches.increment(1);
                    tracing::error!(
                        group = %self.group, %peer, at = %own.at, own = own.digest.0, theirs = theirs.0,
                        "replicas have applied the same entries and have written different rows"
                    );
                }
                Effect::Distrusted(is) => {
                    // What was exported of the wrong rows must reach nobody, then or later.
                    self.snapshots.exports.forget_all(self.group);
                    self.metrics.states_distrusted.increment(if is { 1.0 } else { -1.0 });
                    self.distrusted = is;
                    tracing::error!(
                        group = %self.group, distrusted = is,
                        "this replica's state is wrong: it is rebuilt from a snapshot of its leader"
                    );
                }
                Effect::SendSnapshot(request) => self.send_snapshot(request),
                Effect::Answer { slot, result } => {
                    if result.is_ok() {
                        let waited = now.saturating_duration_since(slot.since);
                        self.metrics.reply_seconds.record(waited);
                    }
                    slot.reply.send(result);
                }
                Effect::Grant { slot, term, index } => match slot.reply {
                    // A caller that has given up is no error.
                    ReadReply::Local(sender) => drop(sender.send(Ok(ReadGrant { term, index }))),
                    ReadReply::Remote { query, led, replier } => {
                        self.state.answer_remote(ReadGrant { term, index }, query, led, replier);
                    }
                },
                Effect::Deny { slot, refusal } => match slot.reply {
                    ReadReply::Local(sender) => drop(sender.send(Err(refusal))),
                    ReadReply::Remote { replier, .. } => {
                        replier.send(Reply::encoded(Reply::of_refusal(refusal)));
                    }
                },
                // Connections follow the placement map: a node is there before a group can name it.
                Effect::Membership(membership) => {
                    tracing::info!(group = %self.group, ?membership, "membership");
                }
                Effect::Leadership(leadership) => {
                    // Before any read of the new term is granted.
                    self.state.on_leadership(leadership);
                    self.herald.publish(leadership, now);
                }
            }
        }
        if self.refused.is_empty()
            && let Some(arrived) = self.to_install.take()
        {
            self.install(arrived);
        }
        unbegun
    }

    /// Writes down that the state is wrong, or that it is not any more: the next process is to know. It needs
    /// no answer. Whether the state is trusted is decided here, and the mark comes before all appends that
    /// follow; a crash before it is durable is one before it was known.
    pub(crate) fn note_wrong_state(&mut self, known: Option<WrongState>) {
        // While a snapshot is put in place the log's intent may be that one's, and must stay.
        if self.noted == known || self.installing || self.to_install.is_some() {
            return;
        }
        let intent = known.clone().map_or_else(Bytes::new, |known| Intent::Rebuild(known).bytes());
        let (nobody, _) = oneshot::channel();
        let generation = self.snapshots.completions.expect(nobody);
        let write = Write::Intend { group: self.group, intent };
        self.append(Task { write, generation, ticket: 0 });
        self.noted = known;
    }

    /// A snapshot is here; the replica is about to hear of it.
    pub(crate) fn arrived(&mut self, arrived: Arrived) {
        self.arrived = Some(arrived);
    }

    /// The replica does not want what is here.
    pub(crate) fn discard_arrived(&mut self) {
        self.arrived = None;
    }

    /// Forgets the beginning of the log, in order with the group's other writes.
    pub(crate) fn truncate(&mut self, through: LogIndex, done: oneshot::Sender<()>) {
        let write = Write::TruncatePrefix { group: self.group, through };
        let generation = self.snapshots.completions.expect(done);
        self.append(Task { write, generation, ticket: 0 });
    }

    /// False when there is nothing that stands for `meta`.
    fn take_for_install(&mut self, meta: &SnapshotMeta) -> bool {
        self.to_install = self.arrived.take().filter(|arrived| arrived.meta == *meta);
        self.to_install.is_some()
    }

    /// Puts a snapshot in the place of log and state, beside the actor. The log's writes come behind all
    /// appends that were submitted; none is waiting.
    fn install(&mut self, arrived: Arrived) {
        self.installing = true;
        let (group, generation) = (self.group, self.generation);
        let (router, target) = (Arc::clone(&self.router), self.target.clone());
        let installed = Arc::clone(&self.snapshots).install(arrived, target);
        let metrics = self.metrics();
        // Detached: it ends by itself, and what the end of the node cuts short the next start goes on with.
        drop(tokio::spawn(async move {
            let input = match installed.await {
                Ok(meta) => {
                    metrics.snapshots_installed.increment(1);
                    Input::Installed { generation, meta }
                }
                Err(error @ (PlaceError::Install(_) | PlaceError::Panicked)) => {
                    tracing::error!(%group, %error, "a snapshot cannot be installed");
                    Input::InstallFailed { generation }
                }
                Err(PlaceError::Stopping) => return,
            };
            tell(&router, group, input);
        }));
    }

    /// Puts the rows of a snapshot in the place of the state, beside the actor. False when there is
    /// nothing that stands for `meta`.
    fn rebuild(&mut self, meta: &SnapshotMeta) -> bool {
        let Some(arrived) = self.arrived.take().filter(|arrived| arrived.meta == *meta) else {
            return false;
        };
        self.installing = true;
        let (group, generation) = (self.group, self.generation);
        let (router, target) = (Arc::clone(&self.router), self.target.clone());
        let rebuilt = Arc::clone(&self.snapshots).rebuild(arrived, target);
        let metrics = self.metrics();
        // Detached, as an installation is; what the end of the node cuts short has changed nothing.
        drop(tokio::spawn(async move {
            let input = match rebuilt.await {
                Ok(meta) => {
                    metrics.states_rebuilt.increment(1);
                    Input::Rebuilt { generation, meta }
                }
                Err(error @ (PlaceError::Install(_) | PlaceError::Panicked)) => {
                    tracing::error!(%group, %error, "the state cannot be rebuilt");
                    Input::RebuildFailed { generation }
                }
                Err(PlaceError::Stopping) => return,
            };
            tell(&router, group, input);
        }));
        true
    }

    /// Sends a snapshot, beside the actor.
    fn send_snapshot(&self, request: SnapshotRequest) {
        let SnapshotRequest { to, min_index } = request;
        let (group, generation) = (self.group, self.generation);
        let (from, term) = (self.router.node, self.herald.term());
        let message = move |meta| Message { group, from, to, term, body: Body::Snapshot { meta } };
        let (router, transport) = (Arc::clone(&self.router), self.transport.clone());
        let (snapshots, target) = (Arc::clone(&self.snapshots), self.target.clone());
        // Detached: the transport ends it when it does not go on.
        drop(tokio::spawn(async move {
            let sent = snapshots.send(&transport, target, to, min_index, message).await;
            if let Err(error) = &sent {
                tracing::warn!(%group, peer = %to, %error, "a snapshot was not sent");
            }
            let last = sent.ok().map(|meta| meta.last.index);
            tell(&router, group, Input::SnapshotSent { generation, to, last });
        }));
    }

    /// The replica's own name for a fetch that the log has carried out.
    pub(crate) fn take_fetch(&mut self, done: &Fetch) -> Option<LogFetch> {
        let same = |fetch: &LogFetch| {
            (fetch.from, fetch.to, fetch.bytes_max) == (done.from, done.to, done.bytes_max)
        };
        let at = self.fetching.iter().position(same)?;
        Some(self.fetching.swap_remove(at))
    }

    /// An installation has ended, one way or the other.
    pub(crate) fn install_ended(&mut self) {
        self.installing = false;
    }

    /// The group's life has ended by a panic: what was not begun is dropped, as a crash would drop it, and
    /// nobody may take the group for a leader.
    pub(crate) fn end_life(&mut self) {
        for task in self.refused.drain(..) {
            self.snapshots.completions.forget(task.generation);
        }
        self.fetching.clear();
        (self.arrived, self.to_install) = (None, None);
        self.resign();
    }

    /// Asks the log for what it holds of the group once all appends of the last life are written. False
    /// when that cannot be asked now: while a snapshot is put in the place of log and state, which goes on
    /// whatever happens to the group, and while the log's queue is full.
    pub(crate) fn ask_log(&self, generation: Generation) -> bool {
        !self.installing && self.wal.reload(self.group, generation.0).is_ok()
    }

    /// Asks the applier for the group's row once everything of the last life is applied.
    pub(crate) fn ask_row(&self, generation: Generation) {
        let (router, group) = (Arc::clone(&self.router), self.group);
        let loaded = move |row: Option<GroupRow>| {
            tell(&router, group, Input::RowLoaded { generation, row: Box::new(row) });
        };
        self.applier.reload(group, Box::new(loaded));
    }

    /// What is carried out from now on is of this life; `leadership` is how it begins, and
    /// `wrong_state` what the log says of the state.
    pub(crate) fn begin_life(
        &mut self,
        life: Generation,
        machine: OpenMachine,
        leadership: Leadership,
        wrong_state: Option<WrongState>,
    ) {
        self.generation = life;
        self.noted = wrong_state;
        self.applier.open(machine);
        self.herald.publish(leadership, Instant::now());
    }

    /// True when `command` must be refused because disks are nearly full.
    pub(crate) fn refuses_growth(
        &self,
        gate: &mut GrowthGate,
        command: &Bytes,
        membership: &Membership,
    ) -> bool {
        let view = self.router.disks.view();
        if view.rooms.is_empty() {
            *gate = GrowthGate::default();
            return false;
        }
        let room_of = |node| view.rooms.get(&node).copied().unwrap_or(Room::Ample);
        let refuses = gate.refuses(membership, room_of) && self.state.grows(command);
        if refuses {
            self.metrics.proposals_refused_no_space.increment(1);
        }
        refuses
    }

    /// How the disks of the nodes are, as of the last look.
    pub(crate) fn disks(&self) -> Arc<View> {
        self.router.disks.view()
    }

    /// What the group does not know because it is not loaded.
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal::NotLeader { leader: None, term: self.herald.term() }
    }

    /// The group is gone from this node: nobody may take it for a leader or a replica any more.
    pub(crate) fn retire(&mut self) {
        self.applier.close(self.group);
        self.router.residents.rcu(|residents| {
            let mut residents = residents.as_ref().clone();
            residents.remove(&self.group);
            residents
        });
        self.resign();
        self.metrics.groups.decrement(1.0);
    }

    fn resign(&mut self) {
        if std::mem::take(&mut self.distrusted) {
            self.metrics.states_distrusted.decrement(1.0);
        }
        self.state.resign();
        self.herald.resign();
    }

    fn fetch(&mut self, fetch: LogFetch) -> Option<LogFetch> {
        let LogFetch { from, to, bytes_max, .. } = fetch;
        let (group, generation) = (self.group, self.generation.0);
        if self.wal.fetch(Fetch { group, generation, from, to, bytes_max }).is_err() {
            self.metrics.fetches_refused.increment(1);
            return Some(fetch);
        }
        self.fetching.push(fetch);
        None
    }

    fn append(&mut self, task: Task) {
        if !self.refused.is_empty() {
            self.refused.push_back(task);
        } else if let Err(refused) = self.wal.submit(task) {
            self.metrics.appends_refused.increment(1);
            self.refused.push_back(*refused.task);
        }
    }

    /// Whether appends wait to be offered to the log again.
    pub(crate) fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    fn offer_refused(&mut self) {
        while let Some(task) = self.refused.pop_front() {
            if let Err(refused) = self.wal.submit(task) {
                self.refused.push_front(*refused.task);
                return;
            }
        }
    }

    /// One call for each peer, so that all of a turn's messages to it share a frame.
    fn send(&self, messages: Vec<Message>) {
        let mut by_peer: Vec<(NodeId, Vec<Message>)> = Vec::new();
        for message in messages {
            match by_peer.iter_mut().find(|(peer, _)| *peer == message.to) {
                Some((_, messages)) => messages.push(message),
                None => by_peer.push((message.to, vec![message])),
            }
        }
        for (peer, messages) in by_peer {
            self.transport.send(peer, messages);
        }
    }
}

/// Tells a group how something ended; one that has left need not know.
fn tell(router: &Router, group: GroupId, input: Input) {
    if let Some(resident) = router.residents.load().get(&group) {
        drop(router.tell(resident, input));
    }
}
