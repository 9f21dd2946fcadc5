//! The replica: its inputs, its output, its getters, and the changes of its role.

use bytes::Bytes;
use quorate_types::{Entry, EntryId, LogIndex, Moment, NodeId, SnapshotMeta, Term};

use crate::config::{Config, LogState};
use crate::error::{MembershipError, NotLeader, ProposeError, TransferError};
use crate::membership::MembershipChange;
use crate::read_index::Asker;
use crate::ready::{Cause, LogFetch, ReadId, Ready, Role, RoleChange, Ticket};
use crate::role::{Acting, Candidate, Follower, Leader, Transition};
use crate::state::State;

/// One replica of one group, as a value: no clock, thread, disk, socket or global randomness
/// inside.
///
/// Its methods are of four kinds:
///
/// - *Commands* of the group above: [`propose`](Self::propose), [`read`](Self::read),
///   [`campaign`](Self::campaign), [`transfer_leadership`](Self::transfer_leadership),
///   [`change_membership`](Self::change_membership), [`prefer_leader`](Self::prefer_leader), [`forget_leader`](Self::forget_leader),
///   [`set_fit`](Self::set_fit), [`step_down`](Self::step_down).
/// - *Inputs* from the world: [`step`](Self::step), [`tick`](Self::tick),
///   [`persisted`](Self::persisted), [`applied`](Self::applied), [`fetched`](Self::fetched),
///   [`unreachable`](Self::unreachable), [`wake`](Self::wake), [`snapshot_sent`](Self::snapshot_sent),
///   [`installed`](Self::installed), [`install_failed`](Self::install_failed),
///   [`compact`](Self::compact).
/// - *The output*: [`take_ready`](Self::take_ready), after any number of the above.
/// - *Getters*: everything else. They tell how things stand, also between inputs of one turn.
///
/// The same inputs give the same outputs, always. No message makes it panic. It panics when its
/// driver breaks the contract, or when an invariant of its own is broken, and then it must not be
/// used again.
#[derive(Debug)]
pub struct Replica {
    pub(crate) state: State,
    pub(crate) acting: Acting,
    /// What [`RoleChange`] said last.
    reported: (Role, Term, Option<NodeId>),
    /// Why the role is what it is.
    cause: Cause,
}

impl Replica {
    /// A replica that continues from `log`. It begins as a follower that knows no leader.
    ///
    /// # Panics
    /// When `config` contradicts itself, or `log` is not what a replica has written.
    #[must_use]
    pub fn new(config: Config, log: LogState) -> Self {
        let mut state = State::new(config, log);
        let follower = Follower::new(&mut state, None);
        Self {
            reported: (Role::Follower, state.term, None),
            acting: Acting::Follower(follower),
            cause: Cause::Asked,
            state,
        }
    }

    /// Appends `commands` to the log of the leader: all of them, in consecutive entries, or none.
    /// Returns the first one's id; for no commands, the id that the next entry would get.
    ///
    /// An entry with the returned term that is handed out as committed at its index is that
    /// command. Once the role change of a lost leadership is reported, it may or may not be
    /// committed later.
    ///
    /// # Errors
    /// When this replica does not lead, too many bytes wait to be committed, or the leadership is
    /// being handed over.
    pub fn propose(&mut self, commands: Vec<Bytes>) -> Result<EntryId, ProposeError> {
        self.wake();
        match &mut self.acting {
            Acting::Leader(leader) => leader.propose(&mut self.state, commands),
            Acting::Follower(_) | Acting::Candidate(_) => {
                Err(ProposeError::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Asks for the index that a linearizable read must wait for. The answer is in
    /// [`Ready::reads`], or in [`Ready::refused_reads`] if the leadership ends first. A leader
    /// confirms by its lease, else by one round of beats for all reads that wait; a follower asks
    /// its leader, once for all reads of a turn, and again when it hears nothing. Every replica, a
    /// learner too, can so serve linearizable reads from its own state.
    ///
    /// # Errors
    /// When this replica neither leads nor knows who does.
    pub fn read(&mut self, id: ReadId) -> Result<(), NotLeader> {
        self.wake();
        match &mut self.acting {
            Acting::Leader(leader) => {
                leader.read(Asker::Own(id));
                Ok(())
            }
            Acting::Follower(follower) => follower.read(id),
            Acting::Candidate(_) => Err(NotLeader { leader: None }),
        }
    }

    /// Campaigns as if the election timeout had passed. Does nothing at a leader, at a replica
    /// without a vote, and at one that has promised a leader to be silent.
    pub fn campaign(&mut self) {
        self.wake();
        let may = self.state.may_campaign() && !self.state.is_silent();
        if may && !matches!(self.acting, Acting::Leader(_)) {
            self.enter(Some(Transition::PreCampaign(Cause::Asked)));
        }
    }

    /// Changes who takes part. The entry whose id is returned carries the new membership, which is in
    /// force at once and for good when the entry is committed. A change through a joint membership
    /// takes two entries, of which the leader adds the second by itself unless told otherwise; so
    /// does it promote learners. A leader that loses its own vote leads on until that is committed,
    /// and then steps down.
    ///
    /// # Errors
    /// When this replica does not lead, the last change is not committed, or this one cannot be made.
    pub fn change_membership(
        &mut self,
        change: &MembershipChange,
    ) -> Result<EntryId, MembershipError> {
        self.wake();
        match &mut self.acting {
            Acting::Leader(leader) => leader.change_membership(&mut self.state, change),
            Acting::Follower(_) | Acting::Candidate(_) => {
                Err(MembershipError::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Hands the leadership over to `to`: brings it up to date, proposing nothing meanwhile, and tells
    /// it to campaign at once. Given up after an election timeout without a new leader. A transfer to
    /// somebody else ends the one under way; so does one to the leader itself.
    ///
    /// # Errors
    /// When this replica does not lead, or `to` is no voter.
    pub fn transfer_leadership(&mut self, to: NodeId) -> Result<(), TransferError> {
        self.wake();
        match &mut self.acting {
            Acting::Leader(leader) => leader.transfer_to(&self.state, to),
            Acting::Follower(_) | Acting::Candidate(_) => {
                Err(TransferError::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Changes who should lead, as [`Config::preferred_leader`] says.
    pub fn prefer_leader(&mut self, preferred: Option<NodeId>) {
        self.wake();
        self.state.config.preferred_leader = preferred;
    }

    /// As a follower, stops counting on its leader, so that it votes for others: the driver knows that
    /// the leader is gone. It does not break a promise of silence, and it follows again when it hears
    /// that leader. Waiting reads are refused.
    pub fn forget_leader(&mut self) {
        self.wake();
        if let Acting::Follower(follower) = &mut self.acting
            && follower.forget_leader(&mut self.state)
        {
            self.cause = Cause::LeaderForgotten;
        }
    }

    /// Whether this replica may stand for election, and whether it takes entries from a leader; it may and
    /// does at birth. A replica that may not lead follows as before, and votes; one that takes no entries
    /// drops appends, as one whose disk lags does, and still answers beats. It does not end a leadership,
    /// nor an election that is under way.
    pub fn set_fit(&mut self, may_lead: bool, takes_entries: bool) {
        (self.state.may_lead, self.state.takes_entries) = (may_lead, takes_entries);
    }

    /// Changes [`Config::cached_bytes_max`], so that the groups of a node can share what it has. Entries
    /// that are not durable or not applied stay in memory whatever is allowed.
    pub fn set_cached_bytes_max(&mut self, bytes_max: usize) {
        self.state.log.set_cached_bytes_max(bytes_max);
    }

    /// As leader, gives up: follows nobody in its own term, and beats no more, so that others elect. Waiting
    /// reads are refused; what was proposed may be committed later. Does nothing in other roles.
    pub fn step_down(&mut self) {
        if matches!(self.acting, Acting::Leader(_)) {
            self.follow(None, Cause::Unfit);
        }
    }

    /// Wakes a replica that [`is_asleep`](Self::is_asleep): its timers run again, and a leader beats at
    /// once. To be called when the group cannot go on as it is because nodes are gone; every command and
    /// every message does it too.
    pub fn wake(&mut self) {
        if !std::mem::take(&mut self.state.asleep) {
            return;
        }
        match &mut self.acting {
            Acting::Follower(follower) => follower.on_woken(),
            Acting::Candidate(_) => {}
            Acting::Leader(leader) => leader.on_woken(),
        }
    }

    /// One tick of time has passed. Does nothing while the replica [`is_asleep`](Self::is_asleep), so
    /// its driver may as well leave it out.
    pub fn tick(&mut self) {
        if self.state.asleep {
            return;
        }
        self.state.on_tick();
        let next = match &mut self.acting {
            Acting::Follower(follower) => follower.tick(&mut self.state),
            Acting::Candidate(candidate) => candidate.tick(),
            Acting::Leader(leader) => leader.tick(&mut self.state),
        };
        self.enter(next);
    }

    /// The append of `ticket` and all earlier ones are durable.
    ///
    /// # Panics
    /// When there was no such append.
    pub fn persisted(&mut self, ticket: Ticket) {
        if !self.state.on_persisted(ticket) {
            return;
        }
        let next = match &mut self.acting {
            Acting::Follower(_) => None,
            Acting::Candidate(candidate) => candidate.on_persisted(&self.state),
            Acting::Leader(leader) => {
                leader.on_persisted(&mut self.state);
                None
            }
        };
        self.enter(next);
    }

    /// The state machine has applied everything up to `index`. It may lag behind what was handed
    /// out; beyond [`APPLYING_BYTES_MAX`](crate::APPLYING_BYTES_MAX) nothing more is handed out.
    ///
    /// # Panics
    /// When `index` was never handed out.
    pub fn applied(&mut self, index: LogIndex) {
        self.state.log.set_applied(index);
    }

    /// The answer to `fetch`: a run of entries from `fetch.from` on. An empty or wrong run is
    /// dropped, and asked for again later: an answer must be given even if the read failed.
    pub fn fetched(&mut self, fetch: LogFetch, mut entries: Vec<Entry>) {
        if self.state.on_apply_fetched(&fetch, &mut entries) {
            return;
        }
        if let Acting::Leader(leader) = &mut self.acting {
            leader.on_fetched(&mut self.state, &fetch, entries);
        }
    }

    /// Something that was sent to `peer` was lost. Sending stops until it answers a heartbeat.
    pub fn unreachable(&mut self, peer: NodeId) {
        self.wake();
        if let Acting::Leader(leader) = &mut self.acting {
            leader.on_unreachable(peer);
        }
    }

    /// A snapshot that was asked for has arrived at `to` completely, and contains everything up to
    /// `last`; `None` when it did not get there. Must be reported for each request.
    pub fn snapshot_sent(&mut self, to: NodeId, last: Option<LogIndex>) {
        if let Acting::Leader(leader) = &mut self.acting {
            leader.on_snapshot_sent(&self.state, to, last);
        }
    }

    /// The state machine holds the snapshot of `meta`, and the log is empty behind it, durably. The
    /// hard state is as it was.
    ///
    /// # Panics
    /// When that was not asked for.
    pub fn installed(&mut self, meta: &SnapshotMeta) {
        self.state.on_installed(meta);
        if let Acting::Follower(follower) = &mut self.acting {
            follower.on_installed(&mut self.state, meta.last.index);
        }
    }

    /// The snapshot could not be installed, and log and state are as they were. It may come again; what
    /// was given out to be applied and is not reported as applied is given out again.
    pub fn install_failed(&mut self) {
        if self.state.installing.take().is_some() {
            self.state.log.rewind_applying();
        }
    }

    /// The state machine was put back, or forward, to what it is after `last`, an entry of this log; the
    /// log is as it was. What follows is given out to be applied again.
    ///
    /// # Panics
    /// When the log does not hold that entry, or it is not committed and durable.
    pub fn state_replaced(&mut self, last: EntryId) {
        assert!(
            self.state.log.holds(last)
                && last.index <= self.state.log.commit().min(self.state.log.durable())
                && self.state.installing.is_none(),
            "group {} node {}: the state cannot be that of {last} (commit {}, durable {}, log from {} to {})",
            self.state.config.group,
            self.state.config.node,
            self.state.log.commit(),
            self.state.log.durable(),
            self.state.log.terms().base(),
            self.state.log.last(),
        );
        self.state.replace_state(last.index);
    }

    /// The driver gives up the entries up to `through`; whoever still needs them gets a snapshot. Does
    /// nothing when they are gone already.
    ///
    /// # Panics
    /// When not all of them are applied and durable.
    pub fn compact(&mut self, through: LogIndex) {
        if through > self.state.log.terms().base().index {
            self.state.compact(through);
        }
    }

    /// Everything that is to be done since the last call. Costs as much as it gives out.
    ///
    /// `now` must be read *after* the last input of the turn was handed in: reads that are confirmed
    /// by a lease are confirmed as of `now`, so they must have begun before it. How long the turn
    /// then takes does not matter.
    #[must_use]
    pub fn take_ready(&mut self, now: Moment) -> Ready {
        if !quorate_types::defect!(LeaseComparedLate) {
            self.state.on_now(now);
        }
        let next = match &mut self.acting {
            Acting::Follower(follower) => {
                follower.pump(&mut self.state);
                None
            }
            Acting::Candidate(_) => None,
            Acting::Leader(leader) => leader.pump(&mut self.state),
        };
        self.enter(next);
        if quorate_types::defect!(LeaseComparedLate) {
            self.state.on_now(now);
        }
        self.state.collect_committed();
        let role = self.role_change();
        if let Some(change) = role {
            self.reported = (change.role, change.term, change.leader);
        }
        Ready {
            append: self.state.take_append(),
            messages: std::mem::take(&mut self.state.messages),
            committed: std::mem::take(&mut self.state.committed),
            reads: std::mem::take(&mut self.state.reads),
            refused_reads: std::mem::take(&mut self.state.refused_reads),
            fetch: std::mem::take(&mut self.state.fetches),
            install: self.state.take_install(),
            snapshot_requests: std::mem::take(&mut self.state.snapshot_requests),
            membership: std::mem::take(&mut self.state.membership_changed)
                .then(|| self.state.membership().clone()),
            role,
        }
    }

    /// True when [`take_ready`](Self::take_ready) would give something out at `now`.
    #[must_use]
    pub fn has_ready(&self, now: Moment) -> bool {
        let now = self.state.now.max(now);
        let State { messages, committed, reads, refused_reads, fetches, .. } = &self.state;
        !messages.is_empty()
            || !committed.is_empty()
            || !reads.is_empty()
            || !refused_reads.is_empty()
            || !fetches.is_empty()
            || self.state.wants_append()
            || self.state.wants_apply()
            || self.state.membership_changed
            || self.state.wants_install()
            || self.role_change().is_some()
            || match &self.acting {
                Acting::Follower(follower) => follower.wants_pump(),
                Acting::Candidate(_) => false,
                Acting::Leader(leader) => leader.wants_pump(&self.state, now),
            }
    }

    /// Changes the role, as often as one change leads to the next.
    pub(crate) fn enter(&mut self, next: Option<Transition>) {
        let mut next = next;
        while let Some(transition) = next {
            next = match transition {
                Transition::PreCampaign(cause) if !self.state.config.pre_vote => {
                    Some(Transition::Campaign { cause, transfer: false })
                }
                Transition::Follow { leader, cause } => {
                    self.follow(leader, cause);
                    None
                }
                Transition::PreCampaign(cause) => {
                    let (candidate, next) = Candidate::pre_campaign(&mut self.state);
                    self.act(Acting::Candidate(candidate), cause);
                    next
                }
                Transition::Campaign { cause, transfer } => {
                    let candidate = Candidate::campaign(&mut self.state, transfer);
                    self.act(Acting::Candidate(candidate), cause);
                    None
                }
                Transition::Lead => {
                    let leader = Leader::new(&mut self.state);
                    self.act(Acting::Leader(Box::new(leader)), Cause::Elected);
                    None
                }
            };
        }
    }

    /// Becomes a follower in the present term.
    pub(crate) fn follow(&mut self, leader: Option<NodeId>, cause: Cause) {
        let follower = Follower::new(&mut self.state, leader);
        self.act(Acting::Follower(follower), cause);
    }

    /// Learns of a higher term: whatever it was, it is a follower there.
    pub(crate) fn follow_in(&mut self, term: Term, from: NodeId) {
        if quorate_types::defect!(NewTermDropsTail) {
            let from = self.state.log.commit().next();
            self.state.overwrite([], from);
        }
        self.state.enter_term(term, None);
        self.follow(None, Cause::HigherTerm(from));
    }

    /// Why the role, or the known leader, is what it is now.
    pub(crate) fn note_cause(&mut self, cause: Cause) {
        self.cause = cause;
    }

    fn act(&mut self, acting: Acting, cause: Cause) {
        match &mut self.acting {
            Acting::Follower(follower) => follower.end(&mut self.state),
            Acting::Candidate(_) => {}
            Acting::Leader(leader) => leader.end(&mut self.state),
        }
        self.state.asleep = false;
        self.acting = acting;
        self.cause = cause;
    }

    fn role_change(&self) -> Option<RoleChange> {
        let (role, term, leader) = (self.role(), self.term(), self.leader());
        (self.reported != (role, term, leader)).then_some(RoleChange {
            role,
            term,
            leader,
            cause: self.cause,
        })
    }
}
