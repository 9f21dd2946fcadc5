//! What a replica has in every role: its term and vote, its log, and what the turn gives out.

use quorate_types::{
    Body, Entry, EntryId, HardState, LogIndex, Membership, Message, Moment, NodeId, Payload,
    ReadContext, SnapshotMeta, Term,
};

use crate::config::{Config, LogState};
use crate::lease::Silence;
use crate::log::{Applicable, Log};
use crate::membership::MembershipLog;
use crate::persist::Persist;
use crate::ready::{Append, LogFetch, ReadId, ReadReady, SnapshotRequest, Ticket};
use crate::term_map::TermMap;

/// Terms above this are not believed: no cluster gets there by elections, and the next one must
/// exist.
pub(crate) const TERM_MAX: Term = Term(1 << 62);

/// Nor are snapshots that contain more entries than this.
pub(crate) const INDEX_MAX: LogIndex = LogIndex(1 << 62);

/// A follower whose disk lags refuses appends while so many times `inflight_bytes_max` are not
/// synced. One leader's window is a quarter of it; only several leaders in a row, or one without a
/// window, can fill it. What is refused is sent again.
const UNSYNCED_WINDOWS_MAX: usize = 4;

/// What happened to a replica since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// From nodes that are no members, to someone else, or saying what no correct peer says.
    pub ignored_messages: u64,
    /// Appends and snapshots that were not taken because too much is not synced yet, because there is no
    /// room for them, or because a snapshot is being installed.
    pub overloaded_appends: u64,
    /// Requests for votes that went unheard because the leader is alive.
    pub unheard_votes: u64,
    /// Reads, and requests of followers, that a leader confirmed by its lease, without a message.
    pub lease_reads: u64,
    /// Those that it confirmed by a round of beats.
    pub round_reads: u64,
}

/// The state that all roles share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) memberships: MembershipLog,
    /// The membership in force is another one than the last turn gave out.
    pub(crate) membership_changed: bool,
    pub(crate) term: Term,
    pub(crate) vote: Option<NodeId>,
    pub(crate) log: Log,
    pub(crate) persist: Persist,
    pub(crate) counters: Counters,
    pub(crate) messages: Vec<Message>,
    pub(crate) reads: Vec<ReadReady>,
    pub(crate) refused_reads: Vec<ReadId>,
    pub(crate) committed: Vec<Entry>,
    pub(crate) fetches: Vec<LogFetch>,
    pub(crate) snapshot_requests: Vec<SnapshotRequest>,
    /// Nothing is to be done anywhere: no timer runs.
    pub(crate) asleep: bool,
    /// The driver lets this replica stand for election.
    pub(crate) may_lead: bool,
    /// The driver has room for entries.
    pub(crate) takes_entries: bool,
    /// The snapshot that takes the place of the log. While there is one this replica follows, applies
    /// nothing and takes no entries.
    pub(crate) installing: Option<SnapshotMeta>,
    /// It was not given out yet.
    install_due: bool,
    /// The latest moment handed in.
    pub(crate) now: Moment,
    pub(crate) silence: Silence,
    /// Set by the first moment.
    life: Option<u64>,
    last_read_request: u64,
    /// The read-back of committed entries that is under way.
    apply_fetch: Option<LogFetch>,
    /// The last such read-back was of no use: waits for a tick before it is asked again.
    apply_fetch_failed: bool,
    last_fetch: u64,
    random: fastrand::Rng,
}

impl State {
    pub(crate) fn new(config: Config, recovered: LogState) -> Self {
        config.assert_valid();
        let LogState { hard_state, snapshot, terms, memberships, last, applied } = recovered;
        let SnapshotMeta { last: base, membership } = snapshot;
        let who = format!("group {} node {}", config.group, config.node);
        assert!(
            hard_state.term >= last.term || last == base,
            "{who}: recovered term {} is older than the last entry {last}",
            hard_state.term
        );
        assert!(
            hard_state.commit <= last.index,
            "{who}: recovered commit {} is beyond the last entry {last}",
            hard_state.commit
        );
        assert!(
            base.index <= applied && applied <= last.index,
            "{who}: applied {applied} is not within the log from {base} to {last}"
        );
        // The commit index is saved lazily; what was applied was committed.
        let commit = hard_state.commit.max(applied);
        let again = quorate_types::defect!(AppliedTwice) && applied > base.index;
        let applied = if again { LogIndex(applied.value() - 1) } else { applied };
        let terms = TermMap::new(base, &terms, last);
        assert!(
            memberships.iter().all(|&(index, _)| base.index < index && index <= last.index),
            "{who}: recovered memberships {memberships:?} are not within the log from {base} to {last}"
        );
        // Where nobody else could lead since the base, nobody can have been promised anything.
        let is_alone = membership.is_sole_voter(config.node) && memberships.is_empty();
        let memberships = MembershipLog::new(membership, memberships);
        // Who has a term may have heard a leader in it, and made a promise.
        let may_have_promised = config.lease && hard_state.term > Term::ZERO && !is_alone;
        Self {
            memberships,
            membership_changed: false,
            term: hard_state.term,
            vote: hard_state.vote,
            log: Log::new(terms, commit, applied, config.cached_bytes_max),
            persist: Persist::new(hard_state),
            counters: Counters::default(),
            messages: Vec::new(),
            reads: Vec::new(),
            refused_reads: Vec::new(),
            committed: Vec::new(),
            fetches: Vec::new(),
            snapshot_requests: Vec::new(),
            asleep: false,
            may_lead: true,
            takes_entries: true,
            installing: None,
            install_due: false,
            now: Moment::ZERO,
            silence: Silence::new(may_have_promised && !quorate_types::defect!(SilenceForgotten)),
            life: None,
            last_read_request: 0,
            apply_fetch: None,
            apply_fetch_failed: false,
            last_fetch: 0,
            random: fastrand::Rng::with_seed(config.seed),
            config,
        }
    }

    /// Moves to a higher term, in which nobody has this replica's vote yet.
    pub(crate) fn enter_term(&mut self, term: Term, vote: Option<NodeId>) {
        assert!(
            term > self.term,
            "group {} node {}: term {} cannot follow {}",
            self.config.group,
            self.config.node,
            term,
            self.term
        );
        self.term = term;
        self.vote = vote;
        self.persist.forget_promises();
    }

    /// Ticks until the next campaign, drawn anew each time so that two candidates seldom collide
    /// twice.
    pub(crate) fn draw_timeout(&mut self) -> u32 {
        self.random.u32(self.config.election_ticks_min..=self.config.election_ticks_max)
    }

    /// The membership in force: that of the last such entry in the log, committed or not (thesis
    /// section 4.1).
    pub(crate) fn membership(&self) -> &Membership {
        self.memberships.current()
    }

    /// True when this replica's vote counts.
    pub(crate) fn is_voter(&self) -> bool {
        self.membership().is_voter(self.config.node)
    }

    /// True when this replica may stand for election. One that lost its vote may while that is not
    /// committed as far as it knows: if only those who left hold the newest entries, nobody else can
    /// be elected (thesis section 4.2.2). It does not count itself.
    pub(crate) fn may_campaign(&self) -> bool {
        let is_open = || self.memberships.index().is_some_and(|index| index > self.log.commit());
        let was_voter = |before: &Membership| before.is_voter(self.config.node);
        // Nor may one whose log is about to be replaced: it must not lead with either.
        if self.installing.is_some() || !self.may_lead {
            return false;
        }
        self.is_voter() || is_open() && self.memberships.previous().is_some_and(was_voter)
    }

    /// The other nodes of the membership, in order.
    pub(crate) fn peers(&self) -> impl Iterator<Item = NodeId> + use<> {
        let node = self.config.node;
        self.membership().nodes().into_iter().filter(move |&peer| peer != node)
    }

    /// True when a vote for a candidate whose log ends at `last` can elect no one who lacks a
    /// committed entry (thesis section 3.6.1).
    pub(crate) fn is_up_to_date(&self, last: EntryId) -> bool {
        if quorate_types::defect!(LearnerRefusesVote) && !self.is_voter() {
            return false;
        }
        last >= self.log.last() || quorate_types::defect!(VoteForOlderLog)
    }

    pub(crate) fn message(&self, to: NodeId, term: Term, body: Body) -> Message {
        Message { group: self.config.group, from: self.config.node, to, term, body }
    }

    /// Sends what promises nothing.
    pub(crate) fn send(&mut self, to: NodeId, body: Body) {
        let message = self.message(to, self.term, body);
        self.messages.push(message);
    }

    /// Sends a promise that rests on term and vote as they are now, and on the log up to `covers`.
    pub(crate) fn send_durably(&mut self, to: NodeId, covers: LogIndex, body: Body) {
        let message = self.message(to, self.term, body);
        let ready = self.persist.hold(
            message,
            (self.term, self.vote),
            covers,
            self.log.pending(),
            self.log.durable(),
        );
        self.messages.extend(ready);
    }

    /// A turn takes place at `now`. Moments of one clock do not go back; if they do, time stands.
    pub(crate) fn on_now(&mut self, now: Moment) {
        self.now = self.now.max(now);
        let life = self.config.life.wrapping_add(now.value_us());
        self.life.get_or_insert(life);
        self.silence.stamp(self.now, self.config.promise_us());
    }

    /// True while this replica owes a leader its silence.
    pub(crate) fn is_silent(&self) -> bool {
        self.silence.holds(self.now) && !quorate_types::defect!(SilenceBroken)
    }

    /// What an answer to a beat may promise, in microseconds. Nothing before the term is durable: a
    /// restart must find that it may have promised something, and to leaders of no later term.
    pub(crate) fn promise(&mut self) -> u64 {
        let (durable_term, _) = self.persist.durable_ballot();
        if !self.config.lease || durable_term != self.term {
            return 0;
        }
        self.silence.promise();
        self.config.promise_us()
    }

    /// A context that was never used before, in this life or an earlier one.
    pub(crate) fn next_read_context(&mut self) -> ReadContext {
        if self.last_read_request == 0 || !quorate_types::defect!(ReadRequestReused) {
            self.last_read_request += 1;
        }
        ReadContext { life: self.read_life(), number: self.last_read_request }
    }

    /// True when `context` is one of this life.
    pub(crate) fn is_own_context(&self, context: ReadContext) -> bool {
        context.life == self.read_life() && context.number <= self.last_read_request
    }

    fn read_life(&self) -> u64 {
        self.life.unwrap_or(self.config.life)
    }

    /// Replaces the log from the first of `entries` on.
    pub(crate) fn overwrite(&mut self, entries: impl IntoIterator<Item = Entry>, from: LogIndex) {
        self.log.truncate(from);
        self.persist.on_truncated(LogIndex(from.value() - 1));
        self.membership_changed |= self.memberships.index().is_some_and(|index| index >= from);
        self.memberships.truncate(from);
        self.extend(entries);
    }

    /// Adds entries that follow the last one; a membership among them is in force at once.
    pub(crate) fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let Self { log, memberships, membership_changed, .. } = self;
        log.extend(entries.into_iter().inspect(|entry| {
            if let Payload::Membership(membership) = &entry.payload {
                memberships.push(entry.id.index, (**membership).clone());
                *membership_changed = true;
            }
        }));
    }

    /// A snapshot shall take the place of the log.
    pub(crate) fn install(&mut self, meta: SnapshotMeta) {
        self.installing = Some(meta);
        self.install_due = true;
        // It contains what is being read back or was read back in this turn; if the install fails,
        // that is handed out again.
        self.apply_fetch = None;
        self.committed.clear();
    }

    pub(crate) const fn wants_install(&self) -> bool {
        self.install_due
    }

    pub(crate) fn take_install(&mut self) -> Option<SnapshotMeta> {
        self.installing.clone().filter(|_| std::mem::take(&mut self.install_due))
    }

    /// The snapshot is in the place of the log, durably.
    ///
    /// # Panics
    /// When that was not asked for: the driver mixed up replicas.
    pub(crate) fn on_installed(&mut self, meta: &SnapshotMeta) {
        assert!(
            self.installing.as_ref() == Some(meta) && !self.install_due,
            "group {} node {}: told that {meta:?} is installed, asked for {:?}",
            self.config.group,
            self.config.node,
            self.installing
        );
        self.installing = None;
        self.log.reset(meta.last);
        // What is still under way for the old log proves nothing about the new one.
        self.persist.on_truncated(meta.last.index);
        self.memberships = MembershipLog::new(meta.membership.clone(), Vec::new());
        self.membership_changed = true;
    }

    /// The state machine has applied exactly the entries up to `index` now.
    pub(crate) fn replace_state(&mut self, index: LogIndex) {
        self.log.replace_applied(index);
        self.apply_fetch = None;
        self.committed.clear();
    }

    /// The log begins after `index` now.
    pub(crate) fn compact(&mut self, index: LogIndex) {
        self.log.compact(index);
        self.memberships.compact(index);
    }

    /// True when the disk lags so far behind that nothing more may be taken from a leader, or has no room.
    pub(crate) fn is_overloaded(&self) -> bool {
        if !self.takes_entries {
            return true;
        }
        let unsynced = self.persist.outstanding_bytes() + self.log.pending_bytes();
        unsynced > self.config.inflight_bytes_max.saturating_mul(UNSYNCED_WINDOWS_MAX)
    }

    /// Asks for entries from `from` to `to`, of so many bytes at most; returns the number of the request.
    pub(crate) fn fetch(&mut self, from: LogIndex, to: LogIndex, bytes_max: usize) -> u64 {
        self.last_fetch += 1;
        let number = self.last_fetch;
        self.fetches.push(LogFetch { number, from, to, bytes_max });
        number
    }

    /// True when `entries` are a prefix of what `fetch` asked for, and still what the log holds.
    pub(crate) fn is_answer(&self, fetch: &LogFetch, entries: &[Entry]) -> bool {
        let mut expected = fetch.from;
        !entries.is_empty()
            && entries.iter().all(|entry| {
                let fits =
                    entry.id.index == expected && expected <= fetch.to && self.log.holds(entry.id);
                expected = expected.plus(1);
                fits
            })
    }

    /// The answer to a read-back of committed entries; false when `fetch` is not one.
    pub(crate) fn on_apply_fetched(&mut self, fetch: &LogFetch, entries: &mut Vec<Entry>) -> bool {
        if self.apply_fetch.as_ref().is_none_or(|asked| asked.number != fetch.number) {
            return false;
        }
        let Some(asked) = self.apply_fetch.take() else { return false };
        if self.is_answer(&asked, entries) {
            self.log.on_applying(entries);
            self.committed.append(entries);
        } else {
            self.apply_fetch_failed = true;
        }
        true
    }

    pub(crate) fn on_tick(&mut self) {
        self.apply_fetch_failed &= quorate_types::defect!(FailedFetchForgotten);
    }

    /// A ticket's write is durable. True when that was news.
    pub(crate) fn on_persisted(&mut self, ticket: Ticket) -> bool {
        let Some(completed) = self.persist.complete(ticket) else { return false };
        self.log.set_durable(completed.last);
        self.messages.extend(completed.promises);
        true
    }

    pub(crate) fn wants_append(&self) -> bool {
        self.log.has_pending() || self.persist.wants_append((self.term, self.vote))
    }

    pub(crate) fn take_append(&mut self) -> Option<Append> {
        if !self.wants_append() {
            return None;
        }
        let (entries, bytes) = self.log.take_pending();
        let hard_state = HardState { term: self.term, vote: self.vote, commit: self.log.commit() };
        let (ticket, hard_state, release) =
            self.persist.begin(hard_state, self.log.last().index, bytes);
        let knows_nothing = self.membership().voters.is_empty();
        let forgets = [
            quorate_types::defect!(VoteNotSaved),
            knows_nothing && quorate_types::defect!(NewbornVoteNotSaved),
        ]
        .contains(&true);
        let vote = |new: HardState| if forgets { None } else { new.vote };
        let hard_state = hard_state.map(|new| HardState { vote: vote(new), ..new });
        Some(Append { ticket, hard_state, entries, release })
    }

    /// Moves what can be applied to `committed`, or asks for it.
    pub(crate) fn collect_committed(&mut self) {
        // One bounded run after another; a read-back under way comes first.
        while self.apply_fetch.is_none() && self.installing.is_none() {
            match self.log.applicable() {
                Applicable::Nothing => return,
                Applicable::Cached => {
                    let mut run = self.log.take_applicable();
                    self.committed.append(&mut run);
                }
                Applicable::OnDisk { .. } if self.apply_fetch_failed => return,
                Applicable::OnDisk { from, to } => {
                    self.fetch(from, to, self.config.append_bytes_max);
                    self.apply_fetch = self.fetches.last().cloned();
                }
            }
        }
    }

    /// True when [`collect_committed`](Self::collect_committed) would give something out.
    pub(crate) fn wants_apply(&self) -> bool {
        self.apply_fetch.is_none()
            && self.installing.is_none()
            && match self.log.applicable() {
                Applicable::Nothing => false,
                Applicable::Cached => true,
                Applicable::OnDisk { .. } => !self.apply_fetch_failed,
            }
    }
}
