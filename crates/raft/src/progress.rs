//! How far a leader has brought one peer, and what is under way to it.

use std::collections::VecDeque;

use quorate_types::{LogIndex, Moment};

use crate::config::Config;

/// A leader's view of one peer, for status and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerProgress {
    /// The peer holds the leader's log up to here, durably.
    pub match_index: LogIndex,
    /// The first entry that will be sent next.
    pub next: LogIndex,
    /// Appends that are sent and not answered; always 0 while probing.
    pub inflight: usize,
    /// Their bytes.
    pub inflight_bytes: usize,
    /// How long a beat and its answer take, the shortest of late, in microseconds; `None` before the
    /// first.
    pub round_trip_us: Option<u64>,
    /// How entries are sent.
    pub state: ProgressState,
    /// It has answered within two heartbeats, or the leader has not led for longer. After the group slept, not
    /// before it has answered again: asleep, no time passes that it could be silent for.
    pub heard: bool,
}

/// How entries are sent to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProgressState {
    /// Where the logs meet is not known: one append at a time.
    Probe,
    /// As `Probe`, and the one append is under way: the next is sent when it, or a heartbeat, is
    /// answered.
    ProbePaused,
    /// The logs meet: appends are sent optimistically, as far as the window allows.
    Replicate,
    /// It needs entries that are gone: a snapshot is due or under way, and nothing else is sent.
    Snapshot,
}

impl ProgressState {
    /// A word for traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::ProbePaused => "probe-paused",
            Self::Replicate => "replicate",
            Self::Snapshot => "snapshot",
        }
    }
}

/// The leader's side of replication to one peer.
///
/// - `match_index < next`, and `match_index` never decreases.
/// - While replicating, every entry in `(match_index, next)` was sent; the window tells in which
///   messages.
#[derive(Debug)]
pub(crate) struct Progress {
    match_index: LogIndex,
    next: LogIndex,
    flow: Flow,
    /// The highest commit index that the peer was told.
    told_commit: LogIndex,
    /// When it was last told one in a message of its own, or by an append without entries.
    told_tick: u64,
    /// Something may have been lost: ask with an empty append.
    doubted: bool,
    /// When such a question was last asked; once a tick is enough.
    asked_tick: u64,
    /// When the peer was last heard, in ticks of the leadership.
    pub(crate) heard_tick: u64,
    /// The leader has slept, and not heard the peer since.
    silent_since_woken: bool,
    /// The highest round of beats that the peer answered.
    pub(crate) confirmed_round: u64,
    /// The round of beats that was answered last and not measured yet.
    pub(crate) answered_round: Option<u64>,
    round_trip_us: Option<u64>,
    /// Until when the leader may count on the silence that the peer promised.
    pub(crate) promised_until: Moment,
    /// The number of the [`LogFetch`](crate::LogFetch) that must be answered before more is sent.
    pub(crate) fetch: Option<u64>,
}

#[derive(Debug)]
enum Flow {
    /// While `paused_tick` is set, nothing is sent until a heartbeat is answered in a later tick.
    /// Read rounds may make many heartbeats in one tick, and a probe may carry a megabyte.
    Probe {
        paused_tick: Option<u64>,
    },
    Replicate(Window),
    /// `due_tick` is when the next one may be asked for; `None` while one is under way. With what is
    /// matched up to `base` it is not needed any more.
    Snapshot {
        due_tick: Option<u64>,
        base: LogIndex,
    },
}

/// Appends under way. Bounded by `inflight_appends_max` and `inflight_bytes_max`; when it is full
/// nothing is sent until an answer makes room, so a slow peer costs the leader a bounded amount of
/// memory.
#[derive(Debug, Default)]
struct Window {
    /// Oldest first.
    sent: VecDeque<Sent>,
    bytes: usize,
}

/// An append under way.
#[derive(Debug)]
struct Sent {
    last: LogIndex,
    bytes: usize,
    tick: u64,
}

impl Window {
    fn push(&mut self, sent: Sent) {
        self.bytes += sent.bytes;
        self.sent.push_back(sent);
    }

    fn free_to(&mut self, last: LogIndex) {
        while let Some(answered) = self.sent.pop_front_if(|sent| sent.last <= last) {
            self.bytes -= answered.bytes;
        }
    }

    /// True when something was sent in a tick before `now` and is not answered.
    fn is_overdue(&self, now: u64) -> bool {
        self.sent.front().is_some_and(|oldest| oldest.tick < now)
    }

    fn is_full(&self, config: &Config) -> bool {
        self.sent.len() >= config.inflight_appends_max || self.bytes >= config.inflight_bytes_max
    }
}

impl Progress {
    /// A peer about which nothing is known; `next` is a guess. It counts as heard `now`, so that one
    /// that was just added does not look as if it had been silent for ever.
    pub(crate) const fn new(next: LogIndex, now: u64) -> Self {
        Self {
            match_index: LogIndex::ZERO,
            next,
            flow: Flow::Probe { paused_tick: None },
            told_commit: LogIndex::ZERO,
            told_tick: 0,
            doubted: false,
            asked_tick: 0,
            heard_tick: now,
            silent_since_woken: false,
            confirmed_round: 0,
            answered_round: None,
            round_trip_us: None,
            promised_until: Moment::ZERO,
            fetch: None,
        }
    }

    /// The peer holds everything up to `last`. Returns true when that is news. An older answer
    /// changes nothing but the pace: the match index never goes back.
    pub(crate) fn on_accepted(&mut self, last: LogIndex) -> bool {
        let advanced = last > self.match_index;
        if advanced {
            self.match_index = last;
            self.next = self.next.max(last.next());
        }
        match &mut self.flow {
            Flow::Replicate(window) => window.free_to(last),
            // An old answer from before the probe began says nothing about it.
            Flow::Probe { .. } if last == self.match_index => {
                self.next = self.match_index.next();
                self.flow = Flow::Replicate(Window::default());
            }
            Flow::Probe { .. } => {}
            // However it got so far.
            Flow::Snapshot { base, .. } if self.match_index >= *base => {
                self.next = self.match_index.next();
                self.flow = Flow::Replicate(Window::default());
            }
            Flow::Snapshot { .. } => {}
        }
        advanced
    }

    /// True when a rejection of `refused` answers nothing that is still open.
    pub(crate) fn is_stale_rejection(&self, refused: LogIndex) -> bool {
        match self.flow {
            Flow::Replicate(_) => refused <= self.match_index || refused >= self.next,
            Flow::Probe { .. } => refused.plus(1) != self.next || refused <= self.match_index,
            Flow::Snapshot { .. } => true,
        }
    }

    /// The logs do not meet at `refused`; `meeting` is the last entry where they may, never below
    /// the base of the leader's log. Returns to probing just after it.
    pub(crate) fn on_rejected(
        &mut self,
        refused: LogIndex,
        meeting: LogIndex,
        base: LogIndex,
        now: u64,
    ) {
        let next = meeting.next().min(refused).max(self.match_index.max(base).next());
        // Without progress (the peer refuses even the base of this log, and needs a snapshot) the
        // heartbeat sets the pace.
        let paused_tick = (next == self.next).then_some(now);
        self.probe_from(next, paused_tick);
    }

    /// Something to this peer was lost: probes from the match index when it shows a sign of life.
    pub(crate) fn on_unreachable(&mut self, now: u64) {
        if matches!(self.flow, Flow::Replicate(_)) {
            self.probe_from(self.match_index.next(), Some(now));
        }
    }

    /// The entries that the peer needs are gone; a snapshot is due at once.
    pub(crate) fn need_snapshot(&mut self, base: LogIndex, now: u64) {
        if !self.is_waiting_for_snapshot() {
            self.flow = Flow::Snapshot { due_tick: Some(now), base };
            self.doubted = false;
            self.fetch = None;
        }
    }

    pub(crate) fn is_snapshot_due(&self, now: u64) -> bool {
        matches!(self.flow, Flow::Snapshot { due_tick: Some(due), .. } if due <= now)
    }

    pub(crate) const fn is_waiting_for_snapshot(&self) -> bool {
        matches!(self.flow, Flow::Snapshot { .. })
    }

    pub(crate) fn on_snapshot_requested(&mut self, base: LogIndex) {
        self.flow = Flow::Snapshot { due_tick: None, base };
    }

    /// The peer has received a snapshot up to `last`: probes behind it when it shows a sign of life.
    pub(crate) fn on_snapshot_sent(&mut self, last: LogIndex, now: u64) {
        if matches!(self.flow, Flow::Snapshot { .. }) {
            self.probe_from(self.match_index.max(last).next(), Some(now));
        }
    }

    /// It did not arrive; the next is not due before `due_tick`.
    pub(crate) fn on_snapshot_failed(&mut self, due_tick: u64) {
        if let Flow::Snapshot { due_tick: due, .. } = &mut self.flow {
            *due = Some(due_tick);
        }
    }

    /// Old entries could not be read back: tries again when the peer answers a heartbeat.
    pub(crate) fn on_fetch_failed(&mut self, now: u64) {
        self.probe_from(self.next, Some(now));
    }

    /// The peer answered a heartbeat: what was sent in an earlier tick has arrived, or is probably
    /// lost.
    pub(crate) fn on_heartbeat_answered(&mut self, now: u64) {
        match &mut self.flow {
            Flow::Probe { paused_tick } => {
                if paused_tick.is_some_and(|tick| tick < now)
                    && !quorate_types::defect!(ProbeNotRepeated)
                {
                    *paused_tick = None;
                }
            }
            Flow::Replicate(window) => {
                if window.is_overdue(now)
                    && self.asked_tick < now
                    && !quorate_types::defect!(LostAppendForgotten)
                {
                    self.doubted = true;
                    self.asked_tick = now;
                }
            }
            Flow::Snapshot { .. } => {}
        }
    }

    fn probe_from(&mut self, next: LogIndex, paused_tick: Option<u64>) {
        self.next = next;
        self.flow = Flow::Probe { paused_tick };
        self.doubted = false;
        self.fetch = None;
    }

    /// Bytes of entries in one append to this peer, at most.
    pub(crate) fn append_bytes_max(&self, config: &Config) -> usize {
        match self.flow {
            Flow::Probe { .. } => config.append_bytes_max.min(config.probe_bytes_max),
            Flow::Replicate(_) | Flow::Snapshot { .. } => config.append_bytes_max,
        }
    }

    /// True when entries may be sent now.
    pub(crate) fn has_room(&self, config: &Config) -> bool {
        self.fetch.is_none()
            && match &self.flow {
                Flow::Probe { paused_tick } => paused_tick.is_none(),
                Flow::Replicate(window) => !window.is_full(config),
                Flow::Snapshot { .. } => false,
            }
    }

    /// A beat and its answer took so long. The shortest time counts, and is forgotten slowly: a link
    /// that got longer is believed after some beats, a turn that came late is not.
    pub(crate) fn on_round_trip(&mut self, us: u64) {
        let forgotten = |shortest: u64| shortest + shortest / 8 + 1;
        self.round_trip_us = Some(self.round_trip_us.map_or(us, |old| us.min(forgotten(old))));
    }

    /// So many appends that are not full may be under way.
    fn partials_max(&self, config: &Config) -> usize {
        let far = self.round_trip_us.unwrap_or(0) / config.partial_interval_us;
        config.inflight_partial_max.max(usize::try_from(far).unwrap_or(usize::MAX))
    }

    /// True when only a full append should follow now: so many are under way, the newest since less
    /// than a tick, that what comes meanwhile had better fill the next one. Nagle's rule for TCP, with
    /// a window that grows with the round trip.
    pub(crate) fn prefers_full(&self, config: &Config, now: u64) -> bool {
        match &self.flow {
            Flow::Probe { .. } | Flow::Snapshot { .. } => false,
            Flow::Replicate(window) => {
                window.sent.len() >= self.partials_max(config)
                    && window.sent.back().is_some_and(|newest| newest.tick == now)
            }
        }
    }

    /// True when an append without entries is due, which has to be answered, to a peer that has been sent all
    /// that may be sent: an open probe, or a doubt.
    pub(crate) fn wants_question(&self) -> bool {
        self.fetch.is_none()
            && match self.flow {
                Flow::Probe { paused_tick } => paused_tick.is_none(),
                Flow::Replicate(_) => self.doubted,
                Flow::Snapshot { .. } => false,
            }
    }

    /// True when a peer that has been sent all that may be sent has not heard of a commit index that concerns
    /// some of it. Nobody answers that: an answer would say what the one to the append did, and cost as much.
    /// `is_quiet` says that no entry waits for its commit.
    pub(crate) fn wants_commit(
        &self,
        config: &Config,
        commit: LogIndex,
        is_quiet: bool,
        now: u64,
    ) -> bool {
        let may_tell =
            config.eager_commit || config.quiet_commit && is_quiet || self.told_tick < now;
        let is_open = self.fetch.is_none() && self.is_replicating();
        is_open && may_tell && self.untold_commit(commit)
    }

    /// A heartbeat leaves: gives what it may tell of `commit`, as far as the peer is known to hold it.
    pub(crate) fn on_beat(&mut self, commit: LogIndex) -> LogIndex {
        let told = commit.min(self.match_index);
        self.told_commit = self.told_commit.max(told);
        told
    }

    /// A message tells `commit` alone: gives what of it concerns entries that the peer has been sent.
    pub(crate) fn on_commit_sent(&mut self, commit: LogIndex, now: u64) -> LogIndex {
        let told = commit.min(LogIndex(self.next.value() - 1));
        self.told_commit = self.told_commit.max(told);
        self.told_tick = now;
        told
    }

    fn untold_commit(&self, commit: LogIndex) -> bool {
        commit.next().min(self.next) > self.told_commit.next()
    }

    /// An append of the entries up to `last`, `bytes` in size, leaves now and tells `commit`. For
    /// an append without entries, `last` is the one before [`next`](Self::next) and `bytes` is 0.
    pub(crate) fn on_sent(&mut self, last: LogIndex, bytes: usize, commit: LogIndex, now: u64) {
        self.told_commit = self.told_commit.max(commit.min(last));
        if bytes == 0 {
            self.told_tick = now;
        }
        self.doubted = false;
        match &mut self.flow {
            Flow::Probe { paused_tick } => *paused_tick = Some(now),
            Flow::Replicate(window) => {
                if last >= self.next {
                    window.push(Sent { last, bytes, tick: now });
                    self.next = last.next();
                }
            }
            Flow::Snapshot { .. } => {}
        }
    }

    pub(crate) const fn match_index(&self) -> LogIndex {
        self.match_index
    }

    pub(crate) const fn next(&self) -> LogIndex {
        self.next
    }

    pub(crate) const fn is_replicating(&self) -> bool {
        matches!(self.flow, Flow::Replicate(_))
    }

    /// The peer said something.
    pub(crate) const fn hear(&mut self, now: u64) {
        self.heard_tick = now;
        self.silent_since_woken = false;
    }

    /// The leader slept, and gives the peer as much time to answer as if it had just been heard.
    pub(crate) const fn give_time(&mut self, now: u64) {
        self.heard_tick = now;
        self.silent_since_woken = true;
    }

    /// The peer answered within two heartbeats, as far as a leader can know.
    pub(crate) fn is_heard(&self, now: u64, config: &Config) -> bool {
        let silent_ticks_max = u64::from(config.heartbeat_ticks.saturating_mul(2));
        !self.silent_since_woken && now - self.heard_tick <= silent_ticks_max
    }

    pub(crate) fn report(&self, heard: bool) -> PeerProgress {
        let (state, inflight, inflight_bytes) = match &self.flow {
            Flow::Probe { paused_tick: None } => (ProgressState::Probe, 0, 0),
            Flow::Probe { paused_tick: Some(_) } => (ProgressState::ProbePaused, 0, 0),
            Flow::Replicate(window) => (ProgressState::Replicate, window.sent.len(), window.bytes),
            Flow::Snapshot { .. } => (ProgressState::Snapshot, 0, 0),
        };
        let (match_index, next, round_trip_us) = (self.match_index, self.next, self.round_trip_us);
        PeerProgress { match_index, next, inflight, inflight_bytes, round_trip_us, state, heard }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quorate_types::{GroupId, NodeId};

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        Send { count: u64, bytes: usize },
        Accepted { last: u64 },
        Rejected { refused: u64, hint: u64 },
        Heartbeat,
        Unreachable,
        NeedSnapshot,
        SnapshotSent { last: u64 },
        SnapshotFailed,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1u64..5, 1usize..50).prop_map(|(count, bytes)| Event::Send { count, bytes }),
            (0u64..40).prop_map(|last| Event::Accepted { last }),
            (0u64..40, 0u64..40).prop_map(|(refused, hint)| Event::Rejected { refused, hint }),
            Just(Event::Heartbeat),
            Just(Event::Unreachable),
            Just(Event::NeedSnapshot),
            (0u64..40).prop_map(|last| Event::SnapshotSent { last }),
            Just(Event::SnapshotFailed),
        ]
    }

    #[test]
    fn the_window_for_partial_appends_grows_with_the_round_trip_and_shrinks_at_once() {
        let config = Config { inflight_partial_max: 1, ..Config::new(GroupId(1), NodeId(1)) };
        let mut progress = Progress::new(LogIndex(1), 0);
        assert_eq!(progress.partials_max(&config), 1);
        // A link of 0.3 ms, and turns that come late.
        for us in [300, 20_000, 20_000, 300, 9_000] {
            progress.on_round_trip(us);
            assert_eq!(progress.partials_max(&config), 1);
        }
        // It is now one of 140 ms: a few seconds of beats later that is believed.
        for _ in 0..60 {
            progress.on_round_trip(140_000);
        }
        assert_eq!(progress.partials_max(&config), 28);
        progress.on_round_trip(300);
        assert_eq!(progress.partials_max(&config), 1);
    }

    proptest! {
        #[test]
        fn answers_in_any_order_never_lower_the_match_nor_overfill_the_window(
            events in proptest::collection::vec(event(), 0..60),
        ) {
            let config = Config {
                inflight_appends_max: 3,
                inflight_bytes_max: 100,
                ..Config::new(GroupId(1), NodeId(1))
            };
            let mut progress = Progress::new(LogIndex(10), 0);
            for (now, event) in (0..).zip(events) {
                let before = progress.report(true);
                match event {
                    Event::Send { count, bytes } if progress.has_room(&config) => {
                        let last = progress.next().plus(count - 1);
                        progress.on_sent(last, bytes, LogIndex::ZERO, now);
                    }
                    Event::Send { .. } => {}
                    Event::Accepted { last } => {
                        let news = progress.on_accepted(LogIndex(last));
                        prop_assert_eq!(news, LogIndex(last) > before.match_index);
                    }
                    Event::Rejected { refused, hint } => {
                        let refused = LogIndex(refused);
                        if !progress.is_stale_rejection(refused) {
                            progress.on_rejected(refused, LogIndex(hint), LogIndex::ZERO, now);
                            prop_assert!(progress.next() <= before.next);
                        }
                    }
                    Event::Heartbeat => progress.on_heartbeat_answered(now),
                    Event::Unreachable => progress.on_unreachable(now),
                    Event::NeedSnapshot => progress.need_snapshot(LogIndex(20), now),
                    Event::SnapshotSent { last } => progress.on_snapshot_sent(LogIndex(last), now),
                    Event::SnapshotFailed => progress.on_snapshot_failed(now + 3),
                }
                let after = progress.report(true);
                prop_assert!(after.match_index >= before.match_index);
                prop_assert!(after.match_index < after.next);
                prop_assert!(after.inflight <= 3);
                prop_assert!(after.inflight_bytes < 100 + 50);
            }
        }
    }
}
