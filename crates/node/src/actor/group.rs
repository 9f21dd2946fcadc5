//! [`GroupActor`]: the mailbox of one group.
//!
//! The life of a burst: [`GroupActor::next`] hands out what waits in the mailbox, message by message,
//! and each handler only notes its input in the [`Group`]. When the mailbox is empty, or a burst has
//! grown to [`TURN_INPUTS_MAX`], the turn ends: one append, one round of messages, one confirmation
//! for all reads. So batches form while earlier work is under way, and no timer is needed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use kameo::Actor;
use kameo::actor::{ActorRef, WeakActorRef};
use kameo::error::{ActorStopReason, Infallible};
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::message::{Context, Message};
use quorate_group::{Generation, Group, Leadership};
use quorate_raft::{MembershipChange, PeerProgress, Ticket};
use quorate_types::{Entry, EntryId, GroupId, LogIndex, Membership, NodeId, SnapshotMeta};
use quorate_wal::Fetch;
use tokio::sync::oneshot;

use crate::actor::drive::Drive;
use crate::actor::glance::Glance;
use crate::actor::rest::Rest;
use crate::actor::slot::{ProposalSlot, ReadSlot};
use crate::clock;
use crate::snapshot::transfer::Arrived;

/// Inputs that one turn takes at most, so that a busy group does not starve its neighbours on the same
/// runtime: at the cap the actor yields.
const TURN_INPUTS_MAX: usize = 1024;

/// What reaches a group.
pub(crate) enum Input {
    /// A client's command.
    Propose { command: Bytes, slot: ProposalSlot },
    /// A client's linearizable read.
    Read(ReadSlot),
    /// Messages of peers.
    Messages(Vec<quorate_types::Message>),
    /// The log has synced up to `ticket`.
    Persisted { generation: Generation, ticket: Ticket },
    /// The applier has applied up to `through`.
    Applied { generation: Generation, through: LogIndex, outcomes: Vec<(EntryId, Bytes)> },
    /// The log has read old entries, or failed to (then none).
    Fetched { generation: Generation, fetch: Fetch, entries: Vec<Entry> },
    /// A tick of the node's clock.
    Tick,
    /// Nodes are gone, which a sleeping group does not notice.
    NodesLost(BTreeSet<NodeId>),
    /// The group shall not sleep on.
    Wake,
    /// The group's machine panicked: it will never apply again in this life.
    MachineFailed { generation: Generation },
    /// A snapshot of a peer is here, with the leader's message that says so.
    Snapshot { message: quorate_types::Message, arrived: Box<Arrived> },
    /// A snapshot was sent to a peer, or not (then `None`).
    SnapshotSent { generation: Generation, to: NodeId, last: Option<LogIndex> },
    /// A snapshot is in the place of log and state.
    Installed { generation: Generation, meta: SnapshotMeta },
    /// A snapshot cannot be put there; log and state are as they were.
    InstallFailed { generation: Generation },
    /// Nobody needs the entries up to here any more; `done` fires when the log has forgotten them.
    Truncate { through: LogIndex, done: oneshot::Sender<()> },
    /// The transport lost a peer.
    Unreachable(NodeId),
    /// The leadership should go to this node, if it is here.
    Transfer(NodeId),
    /// The membership should change.
    Change { change: MembershipChange, slot: ProposalSlot },
    /// Somebody wants to know how the group is.
    Look(oneshot::Sender<GroupReport>),
}

/// How a replica is, for people and metrics.
#[derive(Clone, Debug)]
pub(crate) struct GroupReport {
    pub(crate) group: GroupId,
    pub(crate) leadership: Leadership,
    pub(crate) commit: LogIndex,
    pub(crate) applied: LogIndex,
    /// The entry before the first one of the log.
    pub(crate) base: EntryId,
    pub(crate) last: EntryId,
    pub(crate) asleep: bool,
    /// In force, committed or not.
    pub(crate) membership: Membership,
    /// As of what is applied.
    pub(crate) applied_membership: Option<Membership>,
    /// What a leader knows of its peers; empty elsewhere.
    pub(crate) peers: Vec<(NodeId, PeerProgress)>,
}

/// One group on one node.
pub(crate) struct GroupActor {
    group: Group<ProposalSlot, ReadSlot>,
    generation: Generation,
    drive: Drive,
    rest: Rest,
    glance: Arc<Glance>,
    /// Inputs since the last turn.
    inputs: usize,
    /// The machine is gone: a group that cannot apply must not lead, nor go on as if it could.
    failed: bool,
    /// Set once everything that was known committed at the last stop is applied again, and this replica
    /// has applied that it takes part: before that, its state may be older than what it has served, or
    /// than what a client has seen who was sent to a node that joins.
    caught_up: Arc<AtomicBool>,
    caught_up_at: LogIndex,
}

impl GroupActor {
    pub(crate) fn new(
        group: Group<ProposalSlot, ReadSlot>,
        generation: Generation,
        drive: Drive,
        rest: Rest,
        glance: Arc<Glance>,
        caught_up: Arc<AtomicBool>,
        caught_up_at: LogIndex,
    ) -> Self {
        let (inputs, failed) = (0, false);
        glance.renew(group.replica(), group.applied_index());
        let actor = Self {
            group,
            generation,
            drive,
            rest,
            glance,
            inputs,
            failed,
            caught_up,
            caught_up_at,
        };
        actor.note_applied();
        actor
    }

    fn end_turn(&mut self) {
        self.inputs = 0;
        let now = Instant::now();
        let metrics = self.drive.metrics();
        // After all inputs of the turn were handed in: a lease confirms its reads as of this moment.
        let effects = self.group.turn(clock::now(), &mut |slot: &ProposalSlot| {
            metrics.commit_seconds.record(now.saturating_duration_since(slot.since));
        });
        // Before anybody is answered: what was answered is never ahead of what is shown.
        self.glance.renew(self.group.replica(), self.group.applied_index());
        let refused = self.drive.carry_out(effects, now);
        for fetch in refused.fetches {
            self.group.fetched(fetch, Vec::new());
        }
        if refused.install {
            self.group.install_failed();
        }
        if self.group.replica().installing().is_none() {
            self.drive.discard_arrived();
        }
        match self.group.leadership().leader {
            Some(leader) if self.group.is_asleep() => {
                let report = self.report();
                self.rest.sleep(leader, report);
            }
            Some(_) | None => self.rest.wake(),
        }
    }

    /// Gives up a part of the log, unless things have changed since that was decided.
    fn truncate(&mut self, through: LogIndex, done: oneshot::Sender<()>) {
        let replica = self.group.replica();
        let is_done_with = through <= replica.applied_index() && through <= replica.durable();
        if is_done_with && replica.installing().is_none() {
            self.group.compact(through);
            self.drive.truncate(through, done);
        }
    }

    fn note_applied(&self) {
        let (applied, replica) = (self.group.applied_index(), self.group.replica());
        if applied < self.caught_up_at || self.caught_up.load(Ordering::Relaxed) {
            return;
        }
        let own = replica.config().node;
        let belongs = replica.membership_at(applied).is_some_and(|then| then.contains(own));
        self.caught_up.store(belongs, Ordering::Release);
    }

    fn report(&self) -> GroupReport {
        let replica = self.group.replica();
        let nodes = replica.membership().nodes();
        let progress = |node| replica.progress(node).map(|progress| (node, progress));
        GroupReport {
            group: self.group.id(),
            leadership: self.group.leadership(),
            commit: replica.commit(),
            applied: self.group.applied_index(),
            base: replica.base(),
            last: replica.last(),
            asleep: self.group.is_asleep(),
            membership: replica.membership().clone(),
            applied_membership: replica.membership_at(self.group.applied_index()).cloned(),
            peers: nodes.into_iter().filter_map(progress).collect(),
        }
    }
}

impl Actor for GroupActor {
    type Args = Self;
    type Error = Infallible;

    async fn on_start(args: Self, _: ActorRef<Self>) -> Result<Self, Infallible> {
        Ok(args)
    }

    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Infallible> {
        if self.inputs < TURN_INPUTS_MAX
            && let Ok(signal) = mailbox.try_recv()
        {
            return Ok(Some(signal));
        }
        if self.inputs > 0 {
            let full = self.inputs >= TURN_INPUTS_MAX;
            self.end_turn();
            if full {
                tokio::task::yield_now().await;
            }
        }
        if self.failed {
            return Ok(None);
        }
        Ok(mailbox.recv().await)
    }

    async fn on_stop(
        &mut self,
        _: WeakActorRef<Self>,
        reason: ActorStopReason,
    ) -> Result<(), Infallible> {
        if let ActorStopReason::Panicked(error) = &reason {
            tracing::error!(group = %self.group.id(), %error, "group stopped: broken invariant");
            self.drive.metrics().group_panics.increment(1);
        }
        self.caught_up.store(false, Ordering::Release);
        self.rest.end();
        let effects = self.group.abandon();
        drop(self.drive.carry_out(effects, Instant::now()));
        self.drive.retire();
        Ok(())
    }
}

impl Message<Input> for GroupActor {
    type Reply = ();

    async fn handle(&mut self, input: Input, _: &mut Context<Self, ()>) {
        self.inputs += 1;
        match input {
            Input::Propose { command, slot } => self.group.propose(command, slot),
            Input::Read(slot) => self.group.read(slot),
            Input::Messages(messages) => {
                for message in messages {
                    self.group.step(message);
                }
            }
            Input::Persisted { generation, ticket } if generation == self.generation => {
                self.group.persisted(ticket);
            }
            Input::Applied { generation, through, outcomes } if generation == self.generation => {
                self.group.applied(through, outcomes);
                self.note_applied();
            }
            Input::Fetched { generation, fetch, entries } if generation == self.generation => {
                if let Some(fetch) = self.drive.take_fetch(&fetch) {
                    self.group.fetched(fetch, entries);
                }
            }
            Input::Snapshot { message, arrived } => {
                self.drive.arrived(*arrived);
                self.group.step(message);
            }
            Input::SnapshotSent { generation, to, last } if generation == self.generation => {
                self.group.snapshot_sent(to, last);
            }
            Input::Installed { generation, meta } if generation == self.generation => {
                self.group.installed(&meta);
                self.note_applied();
            }
            Input::InstallFailed { generation } if generation == self.generation => {
                self.group.install_failed();
            }
            Input::MachineFailed { generation } if generation == self.generation => {
                self.failed = true
            }
            // Completions of an earlier life of the group.
            Input::Persisted { .. }
            | Input::Applied { .. }
            | Input::Fetched { .. }
            | Input::SnapshotSent { .. }
            | Input::Installed { .. }
            | Input::InstallFailed { .. }
            | Input::MachineFailed { .. } => {}
            Input::Tick => self.group.tick(),
            Input::NodesLost(lost) => self.group.nodes_lost(&lost),
            Input::Wake => self.group.wake(),
            Input::Truncate { through, done } => self.truncate(through, done),
            Input::Unreachable(peer) => self.group.unreachable(peer),
            Input::Transfer(to) => {
                if let Err(error) = self.group.transfer_leadership(to) {
                    tracing::debug!(group = %self.group.id(), %to, %error, "nothing to hand over");
                }
            }
            Input::Change { change, slot } => self.group.change_membership(change, slot),
            // The asker may have given up.
            Input::Look(sender) => drop(sender.send(self.report())),
        }
    }
}
