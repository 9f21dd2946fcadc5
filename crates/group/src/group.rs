//! [`Group`]: one replica and everybody who waits on it.

use std::collections::{BTreeSet, VecDeque};
use std::mem;

use bytes::Bytes;
use quorate_raft::{
    Append, Config, LogFetch, LogState, MembershipChange, MembershipError, ProposeError, ReadId,
    Ready, Replica, Role, RoleChange, Ticket, TransferError,
};
use quorate_types::{
    Entry, EntryId, GroupId, LogIndex, Message, Moment, NodeId, Payload, SnapshotMeta, Term,
};

use self::distrust::Comparison;
pub use self::wrong_state::{WrongState, WrongStateError};
use crate::disk::Fitness;
use crate::effect::{Effect, Leadership, Proposed, Refusal};
use crate::pending::{Ended, Proposals, Reads};

mod distrust;
mod fitness;
mod wrong_state;

/// Who stands for election in the place of a lost leader waits for this part of the election timeout: the
/// other nodes find the loss at about the same time, and would refuse before.
const STAND_DELAY_PART: u32 = 4;

/// Settings of a group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The replica's own settings.
    pub raft: Config,
    /// After this many ticks a proposal that was not applied is answered [`Refusal::Unknown`], so that
    /// a group without a quorum does not keep its callers for ever. Callers may give up earlier.
    pub proposal_ticks_max: u64,
    /// After this many ticks a read that was not granted is denied: no leader was found, or the
    /// replica does not catch up. The caller may try elsewhere.
    pub read_ticks_max: u64,
}

/// A replica of a group, with its waiting callers.
///
/// Three kinds of methods: *inputs* note what has arrived and return nothing; [`Group::turn`] ends a
/// burst of inputs and gives out all effects; getters look. The order of calls is free, but effects of
/// one turn must be carried out in their order, and each completion reported once.
///
/// Invariants:
/// - `applied <= applying <= committed`: what is handed out for applying is committed and durable here.
/// - At most one [`Effect::Apply`] is outstanding.
/// - Every slot handed in comes back in exactly one effect.
/// - A release leaves only after its ticket was reported persisted.
#[derive(Debug)]
pub struct Group<P, R> {
    replica: Replica,
    proposal_ticks_max: u64,
    read_ticks_max: u64,
    tick: u64,
    /// Proposals of this turn, and those that wait for the leader's own no-op to be applied.
    gathered: Vec<(Bytes, P)>,
    /// Changes of the membership, of this turn.
    changes: Vec<(MembershipChange, P)>,
    /// Memberships handed out to be applied: they have an outcome without the machine.
    applying_changes: Vec<EntryId>,
    proposals: Proposals<P>,
    reads: Reads<R>,
    last_read: ReadId,
    /// Messages that wait for an append to become durable, oldest first.
    releases: VecDeque<(Ticket, Vec<Message>)>,
    /// Committed and durable, not yet handed out for applying.
    to_apply: Vec<Entry>,
    applying: bool,
    /// A snapshot to be installed, which waits for the outstanding apply.
    to_install: Option<SnapshotMeta>,
    applied: LogIndex,
    leadership: Leadership,
    fitness: Fitness,
    /// The tick since which the node is unfit.
    unfit_since: u64,
    comparison: Comparison,
    /// Ticks until this replica stands for election in the place of a lost leader.
    stands_in: Option<u32>,
    stand_delay_ticks: u32,
    effects: Vec<Effect<P, R>>,
}

impl<P, R> Group<P, R> {
    /// A group as its log and state were found.
    #[must_use]
    pub fn new(config: GroupConfig, log: LogState) -> Self {
        let applied = log.applied;
        let own = config.raft.node;
        let stand_delay_ticks = (config.raft.election_ticks_min / STAND_DELAY_PART).max(1);
        let mut replica = Replica::new(config.raft, log);
        if replica.membership().is_sole_voter(own) {
            // Nobody else could be leading: there is nothing to wait for.
            replica.campaign();
        }
        let leadership = Leadership {
            role: replica.role(),
            term: replica.term(),
            leader: replica.leader(),
            serving: false,
            cause: None,
        };
        Self {
            replica,
            proposal_ticks_max: config.proposal_ticks_max,
            read_ticks_max: config.read_ticks_max,
            tick: 0,
            gathered: Vec::new(),
            changes: Vec::new(),
            applying_changes: Vec::new(),
            proposals: Proposals::new(),
            reads: Reads::new(),
            last_read: ReadId(0),
            releases: VecDeque::new(),
            to_apply: Vec::new(),
            applying: false,
            to_install: None,
            applied,
            leadership,
            fitness: Fitness::Fit,
            unfit_since: 0,
            comparison: Comparison::default(),
            stands_in: None,
            stand_delay_ticks,
            effects: Vec::new(),
        }
    }

    /// Wants `command` replicated; the answer comes as [`Effect::Answer`].
    pub fn propose(&mut self, command: Bytes, slot: P) {
        self.gathered.push((command, slot));
    }

    /// Wants a linearizable read of this replica's own state, whoever leads; the answer comes as
    /// [`Effect::Grant`] or [`Effect::Deny`]. It is denied where no leader is known, when the
    /// leadership that it asked ends, and after [`GroupConfig::read_ticks_max`].
    pub fn read(&mut self, slot: R) {
        self.reads.gather(slot);
    }

    /// A message of a peer. It may say anything; nonsense is ignored by the replica.
    pub fn step(&mut self, message: Message) {
        if let Some(message) = self.compare(message) {
            self.replica.step(message);
        }
    }

    /// One tick of the node's clock.
    pub fn tick(&mut self) {
        self.tick += 1;
        self.replica.tick();
        self.tick_distrust();
        self.stand_if_due();
        let refusal = self.not_leader();
        for slot in self.proposals.expire(self.tick) {
            let unknown = if quorate_types::defect!(UnknownTakenForRefused) {
                refusal
            } else {
                Refusal::Unknown
            };
            self.effects.push(Effect::Answer { slot, result: Err(unknown) });
        }
        for slot in self.reads.expire(self.tick) {
            self.effects.push(Effect::Deny { slot, refusal });
        }
    }

    /// The appends up to `ticket` are durable.
    pub fn persisted(&mut self, ticket: Ticket) {
        self.replica.persisted(ticket);
        while self.releases.front().is_some_and(|(waiting, _)| *waiting <= ticket) {
            if let Some((_, messages)) = self.releases.pop_front() {
                self.effects.push(Effect::Send(messages));
            }
        }
    }

    /// The entries of the last [`Effect::Apply`] are applied, the last of them at `through`; `outcomes`
    /// holds one for each command, in log order, and none for no-ops and memberships.
    ///
    /// # Panics
    /// When no apply is outstanding.
    pub fn applied(&mut self, through: LogIndex, outcomes: Vec<(EntryId, Bytes)>) {
        assert!(
            self.applying && through >= self.applied,
            "group {} applied {through} after {}, applying: {}",
            self.id(),
            self.applied,
            self.applying,
        );
        self.applying = false;
        self.applied = through;
        self.replica.applied(through);
        let mut outcomes = outcomes;
        outcomes
            .extend(mem::take(&mut self.applying_changes).into_iter().map(|id| (id, Bytes::new())));
        outcomes.sort_by_key(|(id, _)| id.index);
        let refusal = self.not_leader();
        let effects = &mut self.effects;
        self.proposals.apply(outcomes, through, &mut |ended| {
            let (slot, result) = match ended {
                Ended::Applied(slot, id, outcome) => (slot, Ok(Proposed { id, outcome })),
                Ended::Displaced(slot) => (slot, Err(refusal)),
            };
            effects.push(Effect::Answer { slot, result });
        });
    }

    /// The answer to an [`Effect::Fetch`]; an empty one is asked again.
    pub fn fetched(&mut self, fetch: LogFetch, entries: Vec<Entry>) {
        self.replica.fetched(fetch, entries);
    }

    /// The transport lost `peer`: what was in flight to it may be gone.
    pub fn unreachable(&mut self, peer: NodeId) {
        self.replica.unreachable(peer);
    }

    /// The snapshot of `meta` is in the place of log and state, durably. Proposals that it may contain
    /// are answered [`Refusal::Unknown`].
    ///
    /// # Panics
    /// When that was not asked for.
    pub fn installed(&mut self, meta: &SnapshotMeta) {
        self.replica.installed(meta);
        self.applied = meta.last.index;
        self.end_distrust();
        for slot in self.proposals.take_through(meta.last.index) {
            self.effects.push(Effect::Answer { slot, result: Err(Refusal::Unknown) });
        }
    }

    /// The snapshot could not be installed; log and state are as they were.
    pub fn install_failed(&mut self) {
        self.replica.install_failed();
    }

    /// A snapshot that was asked for has arrived at `to` and contains everything up to `last`; `None`
    /// when it did not get there.
    pub fn snapshot_sent(&mut self, to: NodeId, last: Option<LogIndex>) {
        self.on_snapshot_sent(to);
        self.replica.snapshot_sent(to, last);
    }

    /// The host gives up the log up to `through`, all of which is applied.
    ///
    /// # Panics
    /// When not all of it is applied and durable.
    pub fn compact(&mut self, through: LogIndex) {
        self.replica.compact(through);
    }

    /// The group shall not sleep: its timers run again, and it waits for its leader for an election timeout.
    pub fn wake(&mut self) {
        self.replica.wake();
    }

    /// True while the group sleeps: nobody waits, and ticks do nothing, so that its host may leave them
    /// out until it hands in anything else. The host then watches over the group's nodes, and calls
    /// [`nodes_lost`](Self::nodes_lost) when one is gone.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.replica.is_asleep()
            && !self.is_distrusted()
            && self.proposals_waiting() == 0
            && self.reads_waiting() == 0
    }

    /// Nodes are gone, as far as the host can tell. An awake group notices by itself what that means; one
    /// that sleeps does something about it only where it must. Without its leader it wants another
    /// one: every replica stops counting on the old one, and the same one at all nodes, whoever
    /// that is, stands for election soon; the others wait for their timers, so that they do not compete.
    /// A leader that has lost its quorum wakes, and finds out. Nothing else is worth waking for: whoever
    /// comes back wakes the group itself.
    ///
    /// If the host is wrong, a leader may lose its group, and nothing else happens.
    pub fn nodes_lost(&mut self, lost: &BTreeSet<NodeId>) {
        let (replica, own) = (&self.replica, self.replica.config().node);
        if !replica.is_asleep() || quorate_types::defect!(SleepersForgotten) {
            return;
        }
        match replica.leader() {
            Some(leader) if leader == own => {
                if !replica.has_quorum_without(lost) {
                    self.replica.wake();
                }
            }
            Some(leader) if lost.contains(&leader) => {
                let voters = &replica.membership().voters;
                let left: Vec<_> = voters.difference(lost).collect();
                // By the group's number, so that the groups of a lost node are spread over the others.
                let stands = self.id().value() % left.len().max(1) as u64;
                if left.get(stands as usize).is_some_and(|heir| **heir == own) {
                    self.stands_in = Some(self.stand_delay_ticks);
                }
                self.replica.forget_leader();
            }
            Some(_) => {}
            None => self.replica.wake(),
        }
    }

    /// In the place of a lost leader, unless there is one again.
    fn stand_if_due(&mut self) {
        let Some(ticks) = self.stands_in else { return };
        if self.replica.leader().is_some() {
            self.stands_in = None;
        } else if ticks > 1 {
            self.stands_in = Some(ticks - 1);
        } else {
            self.stands_in = None;
            self.replica.campaign();
        }
    }

    /// How many bytes of entries the group may keep in memory from now on, beyond those that are not durable
    /// or not applied; see [`EntryBudget`](crate::EntryBudget).
    pub fn limit_cache(&mut self, bytes_max: usize) {
        self.replica.set_cached_bytes_max(bytes_max);
    }

    /// Stand for election now, as if the election timer had fired.
    pub fn campaign(&mut self) {
        self.replica.campaign();
    }

    /// Wants the membership changed; the answer comes as [`Effect::Answer`] when the change is applied,
    /// or at once when it cannot be made. A change through a joint membership is answered when the
    /// joint one is applied; the leader goes on by itself from there.
    pub fn change_membership(&mut self, change: MembershipChange, slot: P) {
        self.changes.push((change, slot));
    }

    /// Hands the leadership over to `to`; proposals wait until that has succeeded or failed, and are
    /// then refused or proposed. That it succeeded shows in [`Effect::Leadership`].
    ///
    /// # Errors
    /// When this replica does not lead, or `to` is no voter.
    pub fn transfer_leadership(&mut self, to: NodeId) -> Result<(), TransferError> {
        self.replica.transfer_leadership(to)
    }

    /// Changes who should lead; see [`Config::preferred_leader`].
    pub fn prefer_leader(&mut self, preferred: Option<NodeId>) {
        self.replica.prefer_leader(preferred);
    }

    /// Ends a turn: everything that follows from the inputs since the last one. `on_commit` is shown
    /// each waiting proposal once, when it is known committed.
    ///
    /// `now` must be read after the last input of the turn was handed in, from a monotonic clock that
    /// counts through suspends: a read that a lease confirms is confirmed as of `now`.
    pub fn turn(&mut self, now: Moment, on_commit: &mut dyn FnMut(&P)) -> Vec<Effect<P, R>> {
        self.register_reads();
        self.register_proposals();
        self.register_changes();
        let Ready {
            append,
            messages,
            committed,
            reads,
            refused_reads,
            fetch,
            install,
            snapshot_requests,
            membership,
            role,
        } = self.replica.take_ready(now);
        // Messages before the append: the leader's peers write while it writes itself.
        if !messages.is_empty() {
            self.effects.push(Effect::Send(messages));
        }
        if let Some(Append { ticket, hard_state, entries, release }) = append {
            if quorate_types::defect!(PromiseBeforeSync) {
                self.effects.push(Effect::Send(release));
            } else if !release.is_empty() {
                self.releases.push_back((ticket, release));
            }
            self.effects.push(Effect::Append { ticket, hard_state, entries });
        }
        self.effects.extend(fetch.into_iter().map(Effect::Fetch));
        self.proposals.commit(self.replica.commit(), on_commit);
        self.effects.extend(membership.map(Effect::Membership));
        for request in snapshot_requests {
            if self.is_distrusted() {
                // A wrong state must not get around: whoever leads next sends a right one.
                self.replica.snapshot_sent(request.to, None);
            } else {
                self.effects.push(Effect::SendSnapshot(request));
            }
        }
        self.to_apply.extend(committed);
        if install.is_some() {
            // The snapshot contains all of it.
            self.to_apply.clear();
            self.to_install = install;
        }
        if !self.applying {
            self.effects.extend(self.to_install.take().map(Effect::Install));
            self.begin_rebuild();
        }
        let may_apply = self.fitness != Fitness::Exhausted && !self.comparison.is_rebuilding();
        if !self.applying && !self.to_apply.is_empty() && may_apply {
            self.applying = true;
            let is_change = |entry: &&Entry| matches!(entry.payload, Payload::Membership(_));
            self.applying_changes = self.to_apply.iter().filter(is_change).map(|e| e.id).collect();
            self.effects.push(Effect::Apply(mem::take(&mut self.to_apply)));
        }
        for read in reads {
            self.reads.confirm(read.id, read.index);
        }
        self.update_leadership(role);
        let refusal = self.not_leader();
        for id in refused_reads {
            let denied = self.reads.refuse(id).into_iter();
            self.effects.extend(denied.map(|slot| Effect::Deny { slot, refusal }));
        }
        let (term, index) = (self.replica.term(), self.applied);
        for slot in self.reads.take_applied(index) {
            self.effects.push(Effect::Grant { slot, term, index });
        }
        mem::take(&mut self.effects)
    }

    /// Gives up: every waiting caller is answered, as when the group is destroyed or the node stops.
    pub fn abandon(&mut self) -> Vec<Effect<P, R>> {
        let refusal = self.not_leader();
        for (_, slot) in mem::take(&mut self.gathered) {
            self.effects.push(Effect::Answer { slot, result: Err(refusal) });
        }
        for (_, slot) in mem::take(&mut self.changes) {
            self.effects.push(Effect::Answer { slot, result: Err(refusal) });
        }
        for slot in self.proposals.expire(u64::MAX) {
            self.effects.push(Effect::Answer { slot, result: Err(Refusal::Unknown) });
        }
        for slot in self.reads.take_all() {
            self.effects.push(Effect::Deny { slot, refusal });
        }
        self.effects.retain(|effect| matches!(effect, Effect::Answer { .. } | Effect::Deny { .. }));
        mem::take(&mut self.effects)
    }

    /// The group's id.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.replica.config().group
    }

    /// The replica, to look at.
    #[must_use]
    pub const fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Who leads, as this replica sees it.
    #[must_use]
    pub const fn leadership(&self) -> Leadership {
        self.leadership
    }

    /// Everything up to here was applied.
    #[must_use]
    pub const fn applied_index(&self) -> LogIndex {
        self.applied
    }

    /// Proposals that wait: gathered, or in the log.
    #[must_use]
    pub fn proposals_waiting(&self) -> usize {
        self.gathered.len() + self.changes.len() + self.proposals.len()
    }

    /// Reads that wait for a round or for an apply.
    #[must_use]
    pub fn reads_waiting(&self) -> usize {
        self.reads.len()
    }

    /// One confirmation for all reads of this turn.
    fn register_reads(&mut self) {
        let slots = self.reads.take_gathered();
        if slots.is_empty() {
            return;
        }
        let id = ReadId(self.last_read.0 + 1);
        self.last_read = id;
        if !self.is_distrusted() && self.replica.read(id).is_ok() {
            self.reads.await_confirmation(id, self.tick + self.read_ticks_max, slots);
        } else {
            let refusal = self.not_leader();
            self.effects.extend(slots.into_iter().map(|slot| Effect::Deny { slot, refusal }));
        }
    }

    /// Hands the gathered proposals to the replica, once it may propose at all: a new leader proposes
    /// only after it has applied its own no-op, since what apply decides (revisions, leases) must not
    /// rest on a state that its predecessors' entries are still going to change.
    fn register_proposals(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        if self.replica.role() != Role::Leader || self.is_distrusted() {
            let refusal = self.not_leader();
            for (_, slot) in mem::take(&mut self.gathered) {
                self.effects.push(Effect::Answer { slot, result: Err(refusal) });
            }
            return;
        }
        // They wait for the end of a transfer too: it comes within an election timeout, and then it is
        // known who can propose them.
        if !self.is_serving() || self.replica.transferring_to().is_some() {
            return;
        }
        let (commands, slots): (Vec<_>, Vec<_>) = mem::take(&mut self.gathered).into_iter().unzip();
        match self.replica.propose(commands.clone()) {
            Ok(first) => self.await_apply(first, slots),
            // Together they are too many: each gets its own try, so that the quota is filled.
            Err(ProposeError::TooManyUncommitted) => {
                for (command, slot) in commands.into_iter().zip(slots) {
                    match self.replica.propose(vec![command]) {
                        Ok(id) => self.await_apply(id, vec![slot]),
                        Err(_) => self
                            .effects
                            .push(Effect::Answer { slot, result: Err(Refusal::Overloaded) }),
                    }
                }
            }
            Err(ProposeError::NotLeader { .. } | ProposeError::Transferring { .. }) => {
                let refusal = self.not_leader();
                for slot in slots {
                    self.effects.push(Effect::Answer { slot, result: Err(refusal) });
                }
            }
        }
    }

    fn register_changes(&mut self) {
        for (change, slot) in mem::take(&mut self.changes) {
            match self.replica.change_membership(&change) {
                Ok(id) => self.await_apply(id, vec![slot]),
                Err(error) => {
                    let refusal = match error {
                        MembershipError::NotLeader { .. } => self.not_leader(),
                        other => Refusal::Membership(other),
                    };
                    self.effects.push(Effect::Answer { slot, result: Err(refusal) });
                }
            }
        }
    }

    fn await_apply(&mut self, first: EntryId, slots: Vec<P>) {
        let deadline_tick = self.tick + self.proposal_ticks_max;
        let mut id = first;
        for slot in slots {
            for slot in self.proposals.push(id, deadline_tick, slot) {
                let refusal = Refusal::NotLeader { leader: None, term: first.term };
                self.effects.push(Effect::Answer { slot, result: Err(refusal) });
            }
            id.index = id.index.next();
        }
    }

    fn update_leadership(&mut self, change: Option<RoleChange>) {
        let cause = change.map(|change| change.cause).or(self.leadership.cause);
        let now = Leadership {
            role: self.replica.role(),
            term: self.replica.term(),
            leader: self.replica.leader(),
            serving: self.is_serving(),
            cause,
        };
        if now != self.leadership {
            self.leadership = now;
            self.effects.push(Effect::Leadership(now));
        }
    }

    /// True while this replica leads and has applied its own no-op.
    fn is_serving(&self) -> bool {
        !self.is_distrusted()
            && self.replica.first_in_term().is_some_and(|noop| self.applied >= noop)
    }

    fn not_leader(&self) -> Refusal {
        // A distrusted one leads nobody who asks.
        let is_useful = |leader: &NodeId| !self.is_distrusted() || *leader != self.own();
        let leader = self.replica.leader().filter(is_useful);
        Refusal::NotLeader { leader, term: self.term() }
    }

    fn term(&self) -> Term {
        self.replica.term()
    }
}
