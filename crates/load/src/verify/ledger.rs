//! What is known while the workload runs, and whether each answer agrees with it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_api::etcdserverpb::{PutResponse, RangeResponse};

use super::record::{Acknowledged, KeyRecord, Record, VERSION};
use crate::call::Failure;
use crate::tally::Tally;

/// Contradictions that are kept with their text; beyond, they are only counted.
const CONTRADICTIONS_MAX: usize = 100;

/// What the answers so far have shown. Every check compares an answer with the [`Known`] of the moment
/// when its request was sent: what became known while it was under way may be newer or older.
pub(crate) struct Ledger {
    keys: Vec<KeyState>,
    /// The highest revision in any answer.
    revision: i64,
    /// When the last write was acknowledged; at first, when the workload began.
    last_acknowledged: Instant,
    /// The longest time without an acknowledged write.
    pub(crate) longest_pause: Duration,
    /// Faults that were announced.
    pub(crate) marks: Vec<Mark>,
    /// Reads that were answered.
    pub(crate) reads: u64,
    /// Answers that contradict what was known.
    pub(crate) contradictions: Contradictions,
    /// Latencies of writes and of reads, and errors.
    pub(crate) tally: Tally,
}

/// Number of the writes in the tally.
pub(crate) const WRITE: usize = 0;
/// Number of the reads in the tally.
pub(crate) const READ: usize = 1;

/// One key and its writer.
struct KeyState {
    record: KeyRecord,
    /// The number of the last write that was sent.
    sent: u64,
    /// The highest modification revision that any answer has shown for this key.
    revision: i64,
}

/// A fault that was announced, and what followed.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    /// The line that announced it.
    pub(crate) name: String,
    /// When, milliseconds since 1970.
    pub(crate) unix_ms: u64,
    at: Instant,
    /// The longest time without an acknowledged write that ended after it, up to the next mark.
    pub(crate) pause: Duration,
    /// Whether any write was acknowledged after it.
    pub(crate) resumed: bool,
}

/// Texts of contradictions, bounded.
#[derive(Debug, Default)]
pub(crate) struct Contradictions {
    /// The first ones.
    pub(crate) texts: Vec<String>,
    /// All.
    pub(crate) count: u64,
}

impl Contradictions {
    /// Adds one.
    pub(crate) fn push(&mut self, text: String) {
        self.count += 1;
        if self.texts.len() < CONTRADICTIONS_MAX {
            self.texts.push(text);
        }
    }
}

/// What was known about a key when a request was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The highest revision in any answer.
    revision: i64,
    /// The highest modification revision that any answer has shown for the key.
    key_revision: i64,
    sent_at: Instant,
}

impl Ledger {
    /// Nothing known about `keys`.
    pub(crate) fn new(keys: impl IntoIterator<Item = String>, now: Instant) -> Self {
        let state = |key| KeyState { record: KeyRecord::new(key), sent: 0, revision: 0 };
        Self {
            keys: keys.into_iter().map(state).collect(),
            revision: 0,
            last_acknowledged: now,
            longest_pause: Duration::ZERO,
            marks: Vec::new(),
            reads: 0,
            contradictions: Contradictions::default(),
            tally: Tally::new(2),
        }
    }

    /// The key number `key`.
    pub(crate) fn key(&self, key: usize) -> &str {
        &self.keys[key].record.key
    }

    /// What is known now, for a request that is about to be sent.
    pub(crate) fn known(&self, key: usize, now: Instant) -> Known {
        Known { revision: self.revision, key_revision: self.keys[key].revision, sent_at: now }
    }

    /// The number of the next write to `key`, which its writer is about to send.
    pub(crate) fn next_write(&mut self, key: usize) -> u64 {
        self.keys[key].sent += 1;
        self.keys[key].sent
    }

    /// The last write that was sent to `key` is acknowledged.
    pub(crate) fn acknowledged(
        &mut self,
        key: usize,
        known: Known,
        answer: &PutResponse,
        now: Instant,
    ) {
        self.tally.answered(WRITE, now - known.sent_at);
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let state = &mut self.keys[key];
        let (name, number) = (&state.record.key, state.sent);
        // At most one revision is taken by a put, so the floor of the whole store binds it too.
        if revision <= known.revision.max(known.key_revision) {
            let before = known.revision.max(known.key_revision);
            self.contradictions.push(format!(
                "{name}: write {number} was given revision {revision}, and {before} was known before"
            ));
        }
        match state.record.acknowledged.last() {
            // The record's order is what its searches rest on. The contradiction is already noted.
            Some(last) if last.revision >= revision => {}
            Some(_) | None => state.record.acknowledged.push(Acknowledged { number, revision }),
        }
        state.revision = state.revision.max(revision);
        self.revision = self.revision.max(revision);
        self.pause_ended(now);
        self.last_acknowledged = now;
    }

    /// The last write that was sent to `key` has no answer: it may have happened, or may still.
    pub(crate) fn unknown(&mut self, key: usize, failure: &Failure) {
        self.tally.failed(failure);
        let state = &mut self.keys[key];
        state.record.unknown.push(state.sent);
    }

    /// A linearizable read of `key` was answered.
    pub(crate) fn read(&mut self, key: usize, known: Known, answer: &RangeResponse, now: Instant) {
        self.tally.answered(READ, now - known.sent_at);
        self.reads += 1;
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let state = &mut self.keys[key];
        let name = &state.record.key;
        if revision < known.revision {
            let before = known.revision;
            self.contradictions.push(format!(
                "{name}: a read's header says revision {revision}, and {before} was known before"
            ));
        }
        self.revision = self.revision.max(revision);
        let Some(pair) = answer.kvs.first() else {
            if known.key_revision > 0 {
                let before = known.key_revision;
                self.contradictions.push(format!(
                    "{name}: a read found nothing, and revision {before} was known before"
                ));
            }
            return;
        };
        if pair.mod_revision < known.key_revision {
            let (found, before) = (pair.mod_revision, known.key_revision);
            self.contradictions.push(format!(
                "{name}: a read went back to revision {found}, and {before} was known before"
            ));
        }
        let in_flight = Some(state.sent);
        if let Some(text) = state.record.objection(&pair.value, pair.mod_revision, in_flight) {
            self.contradictions.push(text);
        }
        state.revision = state.revision.max(pair.mod_revision);
    }

    /// A read had no answer.
    pub(crate) fn read_failed(&mut self, failure: &Failure) {
        self.tally.failed(failure);
    }

    /// A fault is announced.
    pub(crate) fn mark(&mut self, name: String, now: Instant) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        self.marks.push(Mark { name, unix_ms, at: now, pause: Duration::ZERO, resumed: false });
    }

    /// The workload ends: a pause that goes on counts up to now.
    pub(crate) fn end(&mut self, now: Instant) {
        let resumed: Vec<bool> = self.marks.iter().map(|mark| mark.resumed).collect();
        self.pause_ended(now);
        for (mark, resumed) in self.marks.iter_mut().zip(resumed) {
            mark.resumed = resumed;
        }
    }

    /// The pause since the last acknowledgement ends: it belongs to every mark within it, else to the last
    /// one before it.
    fn pause_ended(&mut self, now: Instant) {
        let pause = now - self.last_acknowledged;
        self.longest_pause = self.longest_pause.max(pause);
        let before = self.marks.partition_point(|mark| mark.at <= self.last_acknowledged);
        let first = before.min(self.marks.len().saturating_sub(1));
        for mark in &mut self.marks[first..] {
            mark.pause = mark.pause.max(pause);
            mark.resumed = true;
        }
    }

    /// How many writes were acknowledged, and how many have no answer.
    pub(crate) fn writes(&self) -> (u64, u64) {
        let sum = |count: &dyn Fn(&KeyRecord) -> usize| {
            self.keys.iter().map(|state| count(&state.record) as u64).sum()
        };
        (sum(&|record| record.acknowledged.len()), sum(&|record| record.unknown.len()))
    }

    /// Errors by kind.
    pub(crate) fn errors(&self) -> &BTreeMap<String, u64> {
        &self.tally.errors
    }

    /// All writes, for the file and the check.
    pub(crate) fn into_record(self) -> Record {
        let keys = self.keys.into_iter().map(|state| state.record).collect();
        Record { version: VERSION, keys }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::value;
    use super::*;
    use quorate_api::etcdserverpb::ResponseHeader;
    use quorate_api::mvccpb::KeyValue;

    struct Bench {
        ledger: Ledger,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self { ledger: Ledger::new(["a".to_owned(), "b".to_owned()], now), now }
        }

        fn at(&self, ms: u64) -> Instant {
            self.now + Duration::from_millis(ms)
        }

        fn put(&mut self, key: usize, revision: i64, ms: u64) {
            let known = self.ledger.known(key, self.at(ms));
            self.ledger.next_write(key);
            let answer = PutResponse { header: header(revision), prev_kv: None };
            self.ledger.acknowledged(key, known, &answer, self.at(ms));
        }

        fn read(
            &mut self,
            key: usize,
            known: Known,
            number: u64,
            mod_revision: i64,
            header_at: i64,
        ) {
            let pair =
                KeyValue { value: value(number, 0).into(), mod_revision, ..KeyValue::default() };
            let answer =
                RangeResponse { header: header(header_at), kvs: vec![pair], more: false, count: 1 };
            self.ledger.read(key, known, &answer, self.now);
        }

        fn contradictions(&self) -> u64 {
            self.ledger.contradictions.count
        }
    }

    fn header(revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision, ..ResponseHeader::default() })
    }

    #[test]
    fn a_read_must_not_be_older_than_what_was_known_when_it_was_sent() {
        let mut bench = Bench::new();
        bench.put(0, 5, 1);
        let early = bench.ledger.known(0, bench.now);
        bench.put(0, 7, 2);
        bench.read(0, early, 1, 5, 6);
        assert_eq!(bench.contradictions(), 0, "the second put was under way with the read");
        let late = bench.ledger.known(0, bench.now);
        bench.read(0, late, 1, 5, 7);
        assert_eq!(bench.contradictions(), 1);
        bench.read(0, late, 2, 7, 6);
        assert_eq!(bench.contradictions(), 2, "the header went backwards");
    }

    #[test]
    fn a_read_that_finds_nothing_contradicts_a_write() {
        let mut bench = Bench::new();
        let known = bench.ledger.known(0, bench.now);
        let nothing = RangeResponse { header: header(9), ..RangeResponse::default() };
        bench.ledger.read(0, known, &nothing, bench.now);
        assert_eq!(bench.contradictions(), 0);
        bench.put(0, 10, 1);
        let known = bench.ledger.known(0, bench.now);
        let nothing = RangeResponse { header: header(10), ..RangeResponse::default() };
        bench.ledger.read(0, known, &nothing, bench.now);
        assert_eq!(bench.contradictions(), 1);
    }

    #[test]
    fn a_put_is_above_all_that_was_known() {
        let mut bench = Bench::new();
        bench.put(0, 5, 1);
        bench.put(1, 5, 2);
        assert_eq!(bench.contradictions(), 1, "two puts share no revision");
    }

    #[test]
    fn what_a_read_shows_is_known_from_then_on() {
        let mut bench = Bench::new();
        bench.ledger.next_write(0);
        let timeout = Failure { code: tonic::Code::DeadlineExceeded, text: String::new() };
        bench.ledger.unknown(0, &timeout);
        bench.ledger.next_write(0);
        let known = bench.ledger.known(0, bench.now);
        bench.read(0, known, 1, 4, 4);
        assert_eq!(bench.contradictions(), 0, "the unanswered write happened");
        let known = bench.ledger.known(0, bench.now);
        let nothing = RangeResponse { header: header(4), ..RangeResponse::default() };
        bench.ledger.read(0, known, &nothing, bench.now);
        assert_eq!(bench.contradictions(), 1, "and cannot be undone");
        assert_eq!(bench.ledger.writes(), (0, 1));
    }

    #[test]
    fn pauses_belong_to_the_marks_before_and_within_them() {
        let mut bench = Bench::new();
        bench.put(0, 2, 10);
        bench.ledger.mark("kill n1".to_owned(), bench.at(20));
        bench.put(0, 3, 510);
        bench.put(0, 4, 520);
        bench.ledger.mark("kill n2".to_owned(), bench.at(530));
        bench.ledger.mark("kill n3".to_owned(), bench.at(540));
        bench.put(0, 5, 1_520);
        bench.ledger.mark("kill n4".to_owned(), bench.at(1_530));
        bench.ledger.end(bench.at(3_520));
        let pauses: Vec<u128> =
            bench.ledger.marks.iter().map(|mark| mark.pause.as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 1_000, 2_000]);
        let resumed: Vec<bool> = bench.ledger.marks.iter().map(|mark| mark.resumed).collect();
        assert_eq!(resumed, [true, true, true, false]);
        assert_eq!(bench.ledger.longest_pause, Duration::from_secs(2));
    }
}
