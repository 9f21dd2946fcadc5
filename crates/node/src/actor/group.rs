//! [`GroupActor`]: the mailbox of one group.
//!
//! The life of a burst: [`GroupActor::next`] hands out what waits in the mailbox, message by message,
//! and each handler only notes its input in the [`Group`]. When the mailbox is empty, or a burst has
//! grown to [`TURN_INPUTS_MAX`], the turn ends: one append, one round of messages, one confirmation
//! for all reads. So batches form while earlier work is under way, and no timer is needed.
//!
//! A panic in a handler or in a turn ends this *life* of the group, not the actor: its callers are
//! answered, and the actor refuses everything until the next life is loaded ([`super::reload`]).

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use kameo::Actor;
use kameo::actor::{ActorRef, WeakActorRef};
use kameo::error::{ActorStopReason, Infallible};
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::message::{Context, Message};
use quorate_group::{Effect, Generation, Group, GrowthGate, Leadership, Refusal, WrongState};
use quorate_raft::{MembershipChange, PeerProgress, Role, Ticket};
use quorate_store::GroupRow;
use quorate_types::{Entry, EntryId, GroupId, LogIndex, Membership, NodeId, SnapshotMeta};
use quorate_wal::{Fetch, RecoveredLog};
use tokio::sync::oneshot;

use crate::actor::drive::Drive;
use crate::actor::glance::Glance;
use crate::actor::reload::{Reload, Reloader};
use crate::actor::rest::Rest;
use crate::actor::slot::{ProposalSlot, ReadSlot};
use crate::apply::Applied;
use crate::clock;
use crate::entry_cache::CachePart;
use crate::life::Life;
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
    /// The applier has carried out a task.
    Applied { generation: Generation, applied: Applied },
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
    /// The log of the group as it is, for its next life; none if there is none.
    LogLoaded { generation: Generation, log: Option<Box<RecoveredLog>> },
    /// The group's own row as it is, for its next life.
    RowLoaded { generation: Generation, row: Box<Option<GroupRow>> },
    /// A snapshot of a peer is here, with the leader's message that says so.
    Snapshot { message: quorate_types::Message, arrived: Box<Arrived> },
    /// A snapshot was sent to a peer, or not (then `None`).
    SnapshotSent { generation: Generation, to: NodeId, last: Option<LogIndex> },
    /// A snapshot is in the place of log and state.
    Installed { generation: Generation, meta: SnapshotMeta },
    /// A snapshot cannot be put there; log and state are as they were.
    InstallFailed { generation: Generation },
    /// The rows of a snapshot are in the place of the state.
    Rebuilt { generation: Generation, meta: SnapshotMeta },
    /// They cannot be put there; the state is as it was.
    RebuildFailed { generation: Generation },
    /// Nobody needs the entries up to here any more; `done` fires when the log has forgotten them.
    Truncate { through: LogIndex, done: oneshot::Sender<()> },
    /// The disks are not as they were, or a leader still leads that should not.
    Disks,
    /// The transport lost a peer.
    Unreachable(NodeId),
    /// The leadership should go to this node, if it is here.
    Transfer(NodeId),
    /// This voter should lead whenever it can.
    Prefer(Option<NodeId>),
    /// The membership should change.
    Change { change: MembershipChange, slot: ProposalSlot },
    /// Somebody wants to know how the group is.
    Look(oneshot::Sender<GroupReport>),
    /// A broken invariant, in the handler or at the end of the turn.
    #[cfg(test)]
    Panic { in_turn: bool },
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
    growth: GrowthGate,
    rest: Rest,
    cache: CachePart,
    glance: Arc<Glance>,
    /// Inputs since the last turn.
    inputs: usize,
    reloader: Reloader,
    /// There when the group has panicked, and is not to be touched: the next life, as far as it is loaded.
    reload: Option<Reload>,
    /// The group is kept away from this node: it has panicked too often, or cannot be loaded.
    quarantined: bool,
    /// That the last life has left a wrong state behind.
    wrong_state: Option<WrongState>,
    /// Who should lead, over all lives.
    preferred_leader: Option<NodeId>,
    #[cfg(test)]
    panic_in_turn: bool,
    /// Set once everything that was known committed at the last stop is applied again, and this replica
    /// has applied that it takes part: before that, its state may be older than what it has served, or
    /// than what a client has seen who was sent to a node that joins.
    caught_up: Arc<AtomicBool>,
    caught_up_at: LogIndex,
}

impl GroupActor {
    #[expect(
        clippy::too_many_arguments,
        reason = "one place of use; each is a different part of the node"
    )]
    pub(crate) fn new(
        group: Group<ProposalSlot, ReadSlot>,
        generation: Generation,
        drive: Drive,
        rest: Rest,
        cache: CachePart,
        glance: Arc<Glance>,
        caught_up: Arc<AtomicBool>,
        caught_up_at: LogIndex,
        reloader: Reloader,
    ) -> Self {
        glance.renew(&group);
        let actor = Self {
            group,
            generation,
            drive,
            growth: GrowthGate::default(),
            rest,
            cache,
            glance,
            inputs: 0,
            reloader,
            reload: None,
            quarantined: false,
            wrong_state: None,
            preferred_leader: None,
            #[cfg(test)]
            panic_in_turn: false,
            caught_up,
            caught_up_at,
        };
        actor.note_applied();
        actor
    }

    /// Lets the group act; a panic ends its life.
    fn guard(&mut self, act: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| act(self))).is_err() {
            self.panicked();
        }
    }

    /// The group's life is over: nothing of it is used again but the list of those who wait, and the next
    /// one begins from what is durable.
    fn panicked(&mut self) {
        self.inputs = 0;
        self.caught_up.store(false, Ordering::Release);
        if self.is_loaded() {
            self.wrong_state = self.group.wrong_state();
        }
        // What is loading asks again with each tick, and looks at the disks when it is loaded.
        let _ = self.rest.wake();
        self.drive.metrics().group_panics.increment(1);
        self.drive.end_life();
        if self.is_loaded() {
            // Whoever is not found in what the panic has left is dropped with it: outcome unknown.
            let answer = |actor: &mut Self| {
                let effects = actor.group.abandon();
                drop(actor.drive.carry_out(effects, Instant::now()));
            };
            drop(catch_unwind(AssertUnwindSafe(|| answer(self))));
        }
        self.reload = self.reloader.begin(clock::now());
        match &mut self.reload {
            Some(reload) => reload.ask(&self.drive),
            None => self.quarantine(),
        }
    }

    fn quarantine(&mut self) {
        let group = self.reloader.group;
        tracing::error!(%group, "the group is kept away from this node until its next start");
        self.quarantined = true;
        self.drive.metrics().groups_quarantined.increment(1.0);
    }

    /// What reaches a group that is not loaded: callers are refused, peers go unheard as by a node that is
    /// down, completions are of a life that is over.
    fn take_unloaded(&mut self, input: Input) {
        let refusal = self.drive.refusal();
        let answer = match input {
            Input::Propose { slot, .. } | Input::Change { slot, .. } => {
                Some(Effect::Answer { slot, result: Err(refusal) })
            }
            Input::Read(slot) => Some(Effect::Deny { slot, refusal }),
            Input::Installed { .. }
            | Input::InstallFailed { .. }
            | Input::Rebuilt { .. }
            | Input::RebuildFailed { .. } => {
                self.drive.install_ended();
                None
            }
            Input::LogLoaded { generation, log } => {
                if let Some(reload) = &mut self.reload {
                    reload.log_loaded(generation, log);
                }
                None
            }
            Input::RowLoaded { generation, row } => {
                if let Some(reload) = &mut self.reload {
                    reload.row_loaded(generation, *row);
                }
                None
            }
            // Whoever waits for one of these hears that it is dropped.
            Input::Truncate { .. }
            | Input::Look(_)
            | Input::Snapshot { .. }
            | Input::Tick
            | Input::Messages(_)
            | Input::Persisted { .. }
            | Input::Applied { .. }
            | Input::Fetched { .. }
            | Input::MachineFailed { .. }
            | Input::SnapshotSent { .. }
            | Input::Disks
            | Input::NodesLost(_)
            | Input::Wake
            | Input::Unreachable(_)
            | Input::Transfer(_) => None,
            Input::Prefer(preferred) => {
                self.preferred_leader = preferred;
                None
            }
            #[cfg(test)]
            Input::Panic { .. } => None,
        };
        drop(self.drive.carry_out(answer.into_iter().collect(), Instant::now()));
        self.maybe_live_again();
    }

    /// False from a panic to the next life.
    fn is_loaded(&self) -> bool {
        self.reload.is_none() && !self.quarantined
    }

    fn maybe_live_again(&mut self) {
        let Some(reload) = self.reload.as_mut().filter(|_| !self.quarantined) else { return };
        reload.ask(&self.drive);
        match self.reloader.life(reload) {
            None => {}
            Some(Ok(Life { group, generation, machine, caught_up_at, wrong_state, .. })) => {
                tracing::warn!(group = %group.id(), %generation, "the group is loaded again");
                // What was known may have been dropped before it was written down.
                let known = self.wrong_state.take().or_else(|| wrong_state.clone());
                self.drive.begin_life(generation, machine, group.leadership(), wrong_state);
                (self.group, self.generation, self.caught_up_at) =
                    (group, generation, caught_up_at);
                self.group.prefer_leader(self.preferred_leader);
                if let Some(wrong) = known {
                    self.group.inherit(wrong);
                }
                self.reload = None;
                self.glance.renew(&self.group);
                self.note_applied();
            }
            Some(Err(error)) => {
                tracing::error!(group = %self.reloader.group, %error, "the group cannot be loaded again");
                self.quarantine();
            }
        }
    }

    fn end_turn(&mut self) {
        self.inputs = 0;
        if !self.is_loaded() {
            return;
        }
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.panic_in_turn), "as asked, in the turn");
        let now = Instant::now();
        let metrics = self.drive.metrics();
        // After all inputs of the turn were handed in: a lease confirms its reads as of this moment.
        let effects = self.group.turn(clock::now(), &mut |slot: &ProposalSlot| {
            metrics.commit_seconds.record(now.saturating_duration_since(slot.since));
        });
        // Before anybody is answered: what was answered is never ahead of what is shown.
        self.glance.renew(&self.group);
        self.drive.note_wrong_state(self.group.wrong_state());
        let refused = self.drive.carry_out(effects, now);
        for fetch in refused.fetches {
            self.group.fetched(fetch, Vec::new());
        }
        if refused.install {
            self.group.install_failed();
        }
        if refused.rebuild {
            self.group.rebuild_failed();
        }
        if !self.group.wants_content() {
            self.drive.discard_arrived();
        }
        if self.group.is_distrusted() {
            self.caught_up.store(false, Ordering::Release);
        }
        // One with a wrong state has something to do: it asks for another one. So has one whose appends the log
        // has refused: they are offered again with each turn.
        let is_done = !self.group.is_distrusted() && !self.drive.has_refused();
        match self.group.leadership().leader.filter(|_| self.group.is_asleep() && is_done) {
            Some(leader) => {
                self.cache.settle(&mut self.group, true);
                let report = self.report();
                self.rest.sleep(leader, report);
            }
            None => {
                self.cache.settle(&mut self.group, false);
                // What has changed up to here nobody has told it, and what changes from now on is told.
                if self.rest.wake() {
                    self.look_at_disks();
                }
            }
        }
    }

    /// As they are by now: whoever sleeps is not told of changes, and news may wait in the mailbox.
    fn look_at_disks(&mut self) {
        let disks = self.drive.disks();
        self.group.set_fitness(disks.fitness, &disks.unfit);
    }

    /// Gives up a part of the log, unless things have changed since that was decided.
    fn truncate(&mut self, through: LogIndex, done: oneshot::Sender<()>) {
        let replica = self.group.replica();
        let is_done_with = through <= replica.applied_index() && through <= replica.durable();
        if is_done_with && replica.installing().is_none() && !self.group.is_distrusted() {
            self.group.compact(through);
            self.drive.truncate(through, done);
        }
    }

    fn propose(&mut self, command: Bytes, slot: ProposalSlot) {
        let replica = self.group.replica();
        let leads = replica.role() == Role::Leader;
        let membership = replica.membership();
        if leads && self.drive.refuses_growth(&mut self.growth, &command, membership) {
            return slot.reply.send(Err(Refusal::NoSpace));
        }
        self.group.propose(command, slot);
    }

    fn note_applied(&self) {
        let (applied, replica) = (self.group.applied_index(), self.group.replica());
        if self.group.is_distrusted()
            || applied < self.caught_up_at
            || self.caught_up.load(Ordering::Relaxed)
        {
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
            self.guard(Self::end_turn);
            if full {
                tokio::task::yield_now().await;
            }
        }
        if self.quarantined {
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
            tracing::error!(group = %self.reloader.group, %error, "the actor of a group panicked");
        }
        self.caught_up.store(false, Ordering::Release);
        self.rest.end();
        if self.is_loaded() {
            let effects = self.group.abandon();
            drop(self.drive.carry_out(effects, Instant::now()));
        }
        self.drive.retire();
        Ok(())
    }
}

impl Message<Input> for GroupActor {
    type Reply = ();

    async fn handle(&mut self, input: Input, _: &mut Context<Self, ()>) {
        self.inputs += 1;
        match self.is_loaded() {
            true => self.guard(|actor| {
                if actor.rest.is_asleep() {
                    actor.look_at_disks();
                }
                actor.take(input);
            }),
            false => self.guard(|actor| actor.take_unloaded(input)),
        }
    }
}

impl GroupActor {
    fn take(&mut self, input: Input) {
        match input {
            Input::Propose { command, slot } => self.propose(command, slot),
            Input::Read(slot) => self.group.read(slot),
            Input::Messages(messages) => {
                for message in messages {
                    self.group.step(message);
                }
            }
            Input::Persisted { generation, ticket } if generation == self.generation => {
                self.group.persisted(ticket);
            }
            Input::Applied { generation, applied } if generation == self.generation => {
                let Applied { through, outcomes, checkpoints } = applied;
                self.group.applied(through, outcomes);
                for checkpoint in checkpoints {
                    self.group.checkpoint(checkpoint);
                }
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
                self.drive.install_ended();
                self.group.installed(&meta);
                self.note_applied();
            }
            Input::InstallFailed { generation } if generation == self.generation => {
                self.drive.install_ended();
                self.group.install_failed();
            }
            Input::Rebuilt { generation, meta } if generation == self.generation => {
                self.drive.install_ended();
                // What was committed by now may have been read here before.
                self.caught_up_at = self.group.replica().commit();
                self.group.rebuilt(&meta);
                self.note_applied();
            }
            Input::RebuildFailed { generation } if generation == self.generation => {
                self.drive.install_ended();
                self.group.rebuild_failed();
            }
            Input::MachineFailed { generation } if generation == self.generation => self.panicked(),
            // Completions of an earlier life of the group.
            Input::Persisted { .. }
            | Input::Applied { .. }
            | Input::Fetched { .. }
            | Input::SnapshotSent { .. }
            | Input::Installed { .. }
            | Input::InstallFailed { .. }
            | Input::LogLoaded { .. }
            | Input::RowLoaded { .. }
            | Input::Rebuilt { .. }
            | Input::RebuildFailed { .. }
            | Input::MachineFailed { .. } => {}
            #[cfg(test)]
            Input::Panic { in_turn: true } => self.panic_in_turn = true,
            #[cfg(test)]
            Input::Panic { in_turn: false } => panic!("as asked, in the handler"),
            Input::Tick => self.group.tick(),
            Input::NodesLost(lost) => self.group.nodes_lost(&lost),
            Input::Wake => self.group.wake(),
            Input::Truncate { through, done } => self.truncate(through, done),
            Input::Disks => self.look_at_disks(),
            Input::Unreachable(peer) => self.group.unreachable(peer),
            Input::Transfer(to) => {
                if let Err(error) = self.group.transfer_leadership(to) {
                    tracing::debug!(group = %self.group.id(), %to, %error, "nothing to hand over");
                }
            }
            Input::Prefer(preferred) => {
                self.preferred_leader = preferred;
                self.group.prefer_leader(preferred);
                // Asleep, a leader hands nothing over.
                self.group.wake();
            }
            Input::Change { change, slot } => self.group.change_membership(change, slot),
            // The asker may have given up.
            Input::Look(sender) => drop(sender.send(self.report())),
        }
    }
}
