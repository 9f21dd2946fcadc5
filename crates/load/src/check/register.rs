//! Is each key a linearizable register?
//!
//! The answers say in which order they took effect: a write at its revision, everything else as of the
//! header's, after the write of that revision. So no orders need to be searched as for registers without
//! revisions (Wing and Gong; Lowe): there is one, and it is [replayed](replay). It must agree with real time
//! (what was answered before another call was sent comes before it) and every answer must be what the
//! writes before it make it.
//!
//! Only writes without an answer leave a choice: whether they happened, and when. One whose value was seen
//! happened at the revision that was seen with it (clients expect only revisions that they have seen). One that nobody saw matters only where the state is
//! there and should not be, or the reverse, and is taken there and nowhere else: before any other answer it
//! makes no difference, or a wrong one. Of several the one that was sent first is taken; the others can still
//! do whatever it could have done. So this decides in linear time what a search decides (a test compares
//! them).

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Action, Call, Delivery, History, Pair, Record, Seen};
use super::shrink::shrink;
use super::verdict::{Kind, Verdict, Violation};

/// Looks at all calls on keys. Keys that were ever attached to a lease are left out: they change without a
/// call.
pub(crate) fn judge(history: &History, verdict: &mut Verdict) {
    revisions(history, verdict);
    let mut leased = BTreeSet::new();
    let mut keys: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, call) in history.calls() {
        call.action.keys().for_each(|key| keys.entry(key).or_default().push(at));
        let puts = call.action.puts().iter().filter(|write| write.lease != 0);
        leased.extend(puts.map(|write| write.key.as_str()));
    }
    for (key, positions) in keys.iter().filter(|(key, _)| !leased.contains(**key)) {
        let Err(_) = replay(history, key, positions, positions) else { continue };
        let shortest = shrink(positions, |kept| replay(history, key, positions, kept).is_err());
        let fault = replay(history, key, positions, &shortest).expect_err("it was shrunk so");
        let (kind, text) = name(history, key, positions, fault);
        verdict.push(Violation::new(kind, format!("{key}: {text}"), history, shortest));
    }
}

/// Over all keys: a call's revision is not below any that was known when it was sent, a write's is above,
/// and no two writes have the same.
fn revisions(history: &History, verdict: &mut Verdict) {
    let mut by_sent: Vec<(usize, &Call)> = history.calls().collect();
    by_sent.sort_by_key(|(_, call)| call.sent_us);
    let mut known: Vec<(u64, i64, usize)> = (history.records.iter().enumerate())
        .filter_map(|(at, record)| told(record).map(|(at_us, revision)| (at_us, revision, at)))
        .collect();
    known.sort_unstable();
    let mut known = known.into_iter().peekable();
    let mut highest: Option<(usize, i64)> = None;
    let mut writes: BTreeMap<i64, usize> = BTreeMap::new();
    for (at, call) in by_sent {
        while let Some((_, revision, before)) = known.next_if(|known| known.0 < call.sent_us) {
            if highest.is_none_or(|(_, highest)| highest < revision) {
                highest = Some((before, revision));
            }
        }
        let Some(answer) = &call.answer else { continue };
        let revision = answer.revision;
        if let Some((before, known)) = highest
            && (revision < known || answer.wrote && revision == known)
        {
            let text = format!("revision {revision} is answered, and {known} was known before");
            verdict.push(Violation::new(Kind::RevisionBackwards, text, history, [before, at]));
        }
        if answer.wrote
            && let Some(other) = writes.insert(revision, at)
        {
            let text = format!("two writes have revision {revision}");
            verdict.push(Violation::new(Kind::RevisionBackwards, text, history, [other, at]));
        }
    }
}

/// The revision that a record tells of, and when: what is told has happened.
fn told(record: &Record) -> Option<(u64, i64)> {
    match record {
        Record::Call(call) => call.answer.as_ref().map(|answer| (answer.at_us, answer.revision)),
        Record::Watch(watch) => {
            let revision = match &watch.what {
                Delivery::Created { revision, .. } | Delivery::Progress(revision) => {
                    Some(*revision)
                }
                Delivery::Events(events) => events.iter().map(|event| event.revision).max(),
                Delivery::Lost(_) | Delivery::Compacted(_) => None,
            };
            revision.map(|revision| (watch.at_us, revision))
        }
        _ => None,
    }
}

/// Why no order explains the answers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// By its revision this call comes before another one, which was answered before it was sent.
    Order { before: usize },
    /// The answer of this call is not what the writes before it make.
    Answer(usize),
}

/// A call that took effect, or must have.
struct Step<'a> {
    at: usize,
    call: &'a Call,
    /// Its place: the revision, and 1 for what only saw it.
    rank: (i64, u8),
    /// When it was answered.
    until_us: u64,
    /// False for a write without an answer, whose value was seen.
    answered: bool,
}

/// A key's state in the replay.
#[derive(Debug, Clone, Default)]
struct State {
    /// The pair, if it is there.
    pair: Option<Known>,
    /// The store's revision is at least this.
    revision: i64,
}

/// What is known of a pair.
#[derive(Debug, Clone)]
struct Known {
    value: String,
    /// Not known for a write without an answer that nobody saw.
    modified: Option<i64>,
    /// All of it, once an answer has shown it.
    shown: Option<Pair>,
}

/// What stands between a state and an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lacks {
    /// A delete.
    Delete,
    /// A put, of whatever value.
    Put,
    /// What no unseen write can bring.
    All,
}

/// Replays the calls of `history` at `positions` that concern `key`. Those that are not in `kept` are taken
/// for less than they are: reads for nothing, writes for writes without an answer. What fails then fails with
/// them too.
///
/// # Errors
/// The first answer that does not fit.
pub(super) fn replay(
    history: &History,
    key: &str,
    positions: &[usize],
    kept: &[usize],
) -> Result<(), Fault> {
    let kept: BTreeSet<usize> = kept.iter().copied().collect();
    let calls = || positions.iter().filter_map(|&at| Some((at, call_at(history, at)?)));
    // Where each write without an answer happened, if any answer tells.
    let mut told: BTreeMap<&str, i64> = BTreeMap::new();
    for (_, call) in calls() {
        let Some(answer) = &call.answer else { continue };
        if let Some(Seen::Pair(pair)) = &answer.seen {
            told.entry(&pair.value).or_insert(pair.modified);
        }
    }
    for (_, call) in calls() {
        if let (Some(answer), Some(value)) = (&call.answer, value_of(call, key))
            && answer.wrote
        {
            told.insert(value, answer.revision);
        }
    }
    let needed = needed(key, calls(), &kept, &told);
    let mut steps: Vec<Step<'_>> = Vec::new();
    let mut unseen: Vec<&Call> = Vec::new();
    for (at, call) in calls() {
        match &call.answer {
            Some(answer) if kept.contains(&at) => {
                let rank = (answer.revision, u8::from(!answer.wrote));
                steps.push(Step { at, call, rank, until_us: answer.at_us, answered: true });
            }
            Some(answer) if !answer.wrote => {}
            Some(_) | None => match value_of(call, key).and_then(|value| told.get(value)) {
                Some(modified) if needed.contains(modified) => {
                    let rank = (*modified, 0);
                    steps.push(Step { at, call, rank, until_us: u64::MAX, answered: false });
                }
                _ if !matches!(call.action, Action::Get(_)) => unseen.push(call),
                _ => {}
            },
        }
    }
    steps.sort_by_key(|step| (step.rank, step.call.sent_us));
    unseen.sort_by_key(|call| call.sent_us);
    // For each step, the earliest end of those from it on: what is taken before it was sent by then.
    let mut until_us = vec![u64::MAX; steps.len() + 1];
    for (number, step) in steps.iter().enumerate().rev() {
        until_us[number] = until_us[number + 1].min(step.until_us);
    }
    let mut state = State::default();
    let mut last_sent: Option<(u64, usize)> = None;
    for (number, step) in steps.iter().enumerate() {
        if last_sent.is_none_or(|(sent_us, _)| sent_us < step.call.sent_us) {
            last_sent = Some((step.call.sent_us, step.at));
        }
        if let Some((sent_us, before)) = last_sent
            && sent_us > step.until_us
        {
            return Err(Fault::Order { before });
        }
        if let Err(lacks) = state.take(step, key) {
            let fits = |call: &&Call| match (lacks, &call.action) {
                (Lacks::Delete, Action::Delete(_)) => true,
                (Lacks::Put, Action::Put(_)) => true,
                (Lacks::Put, Action::Cas { expect, .. }) => *expect == 0,
                _ => false,
            };
            let first = unseen.iter().position(fits).filter(|_| lacks != Lacks::All);
            let first = first.filter(|&at| unseen[at].sent_us <= until_us[number]);
            let Some(first) = first else { return Err(Fault::Answer(step.at)) };
            state.happened(unseen.remove(first), key);
            if state.take(step, key).is_err() {
                return Err(Fault::Answer(step.at));
            }
        }
    }
    Ok(())
}

/// The revisions of `key` that answers rest on: those that they show or had to meet, and those that these
/// writes had to meet in turn.
fn needed<'a>(
    key: &str,
    calls: impl Iterator<Item = (usize, &'a Call)>,
    kept: &BTreeSet<usize>,
    told: &BTreeMap<&str, i64>,
) -> BTreeSet<i64> {
    let mut needed = BTreeSet::new();
    let mut met: BTreeMap<i64, i64> = BTreeMap::new();
    for (at, call) in calls {
        let value = value_of(call, key);
        if let (Action::Cas { expect, .. }, Some(at)) =
            (&call.action, value.and_then(|v| told.get(v)))
        {
            met.insert(*at, *expect);
        }
        let Some(answer) = call.answer.as_ref().filter(|_| kept.contains(&at)) else { continue };
        if let Some(Seen::Pair(pair)) = &answer.seen {
            needed.insert(pair.modified);
        }
        if let (Action::Cas { expect, .. }, true) = (&call.action, answer.wrote) {
            needed.insert(*expect);
        }
    }
    let mut open: Vec<i64> = needed.iter().copied().collect();
    while let Some(revision) = open.pop() {
        if let Some(&expect) = met.get(&revision)
            && needed.insert(expect)
        {
            open.push(expect);
        }
    }
    needed
}

impl State {
    /// An unseen write takes effect.
    fn happened(&mut self, call: &Call, key: &str) {
        self.revision += 1;
        let value = value_of(call, key);
        self.pair =
            value.map(|value| Known { value: value.to_owned(), modified: None, shown: None });
    }

    /// A step takes effect; if it cannot, says why and changes nothing.
    fn take(&mut self, step: &Step<'_>, key: &str) -> Result<(), Lacks> {
        let (revision, reads) = step.rank;
        if revision < self.revision || reads == 0 && revision == self.revision {
            return Err(Lacks::All);
        }
        let mut pair = self.pair.clone();
        let answer = step.call.answer.as_ref().filter(|_| step.answered);
        if let Some(seen) = answer.and_then(|answer| answer.seen.as_ref()) {
            match (seen, &mut pair) {
                (Seen::Nothing, None) => {}
                (Seen::Nothing, Some(_)) => return Err(Lacks::Delete),
                (Seen::Pair(shown), Some(known)) if known.agrees(shown) => {
                    known.shown = Some(shown.clone());
                }
                (Seen::Pair(_), _) => return Err(Lacks::All),
            }
        }
        let modified = pair.as_ref().map_or(Some(0), |known| known.modified);
        let wrote = answer.is_none_or(|answer| answer.wrote);
        match (&step.call.action, wrote) {
            (Action::Get(_), true) | (Action::Put(_), false) => return Err(Lacks::All),
            (Action::Get(_), false) => {}
            (Action::Put(_), true) => {}
            (Action::Delete(_), true) if pair.is_none() => return Err(Lacks::Put),
            (Action::Delete(_), false) if pair.is_some() => return Err(Lacks::Delete),
            (Action::Delete(_), _) => {}
            (Action::Cas { expect, .. }, true) if modified != Some(*expect) => {
                return Err(if *expect == 0 { Lacks::Delete } else { Lacks::All });
            }
            (Action::Cas { expect, .. }, false) if modified == Some(*expect) => {
                return Err(Lacks::All);
            }
            (Action::Cas { .. }, _) => {}
        }
        if wrote {
            let known = |value: &str| Known {
                value: value.to_owned(),
                modified: Some(revision),
                shown: None,
            };
            pair = value_of(step.call, key).map(known);
        }
        *self = Self { pair, revision };
        Ok(())
    }
}

impl Known {
    fn agrees(&self, shown: &Pair) -> bool {
        self.value == shown.value
            && self.modified == Some(shown.modified)
            && shown.version >= 1
            && (shown.version == 1) == (shown.create == shown.modified)
            && shown.create <= shown.modified
            && self.shown.as_ref().is_none_or(|before| before == shown)
    }
}

/// The value that a call puts under `key`, if it puts one.
fn value_of<'a>(call: &'a Call, key: &str) -> Option<&'a str> {
    call.action.puts().iter().find(|write| write.key == key).map(|write| write.value.as_str())
}

fn call_at(history: &History, at: usize) -> Option<&Call> {
    match &history.records[at] {
        Record::Call(call) => Some(call),
        _ => None,
    }
}

/// What to call a fault.
fn name(history: &History, key: &str, positions: &[usize], fault: Fault) -> (Kind, String) {
    let calls = || positions.iter().filter_map(|&at| call_at(history, at));
    match fault {
        Fault::Order { before } => {
            let call = call_at(history, before).expect("a call");
            match &call.answer {
                None => (Kind::PhantomValue, "a value was read before it was written".to_owned()),
                Some(answer) if answer.wrote => {
                    let text = "which was known before it was sent";
                    (Kind::RevisionBackwards, format!("a write at {}, {text}", answer.revision))
                }
                Some(answer) => {
                    let text = "was sent after a later state was known";
                    (Kind::StaleRead, format!("a read as of revision {} {text}", answer.revision))
                }
            }
        }
        Fault::Answer(at) => {
            let call = call_at(history, at).expect("a call");
            let Some(answer) = &call.answer else {
                return (Kind::WrongAnswer, "a write that was seen cannot have happened".into());
            };
            let shown = match &answer.seen {
                Some(Seen::Pair(pair)) => pair.modified,
                Some(Seen::Nothing) => 0,
                None if matches!(call.action, Action::Delete(_)) && !answer.wrote => 0,
                None => {
                    return (Kind::WrongAnswer, "no order of the calls explains an answer".into());
                }
            };
            if let Some(Seen::Pair(pair)) = &answer.seen {
                let written = calls().find(|call| value_of(call, key) == Some(&pair.value));
                let at_its_revision = written.is_some_and(|call| {
                    call.answer.as_ref().is_none_or(|a| a.wrote && a.revision == pair.modified)
                });
                if !at_its_revision {
                    let text = format!("nobody wrote {:?} at {}", pair.value, pair.modified);
                    return (Kind::PhantomValue, text);
                }
            }
            // The last write that the answer should know of: has anybody ever seen it?
            let limit = if answer.wrote { answer.revision - 1 } else { answer.revision };
            let written = |call: &Call| {
                let wrote = call.answer.as_ref().filter(|answer| answer.wrote)?.revision;
                (wrote > shown && wrote <= limit).then_some(wrote)
            };
            let Some(last) = calls().filter_map(written).max() else {
                return (Kind::WrongAnswer, "no order of the calls explains an answer".into());
            };
            let shows = |call: &Call| match call.answer.as_ref().and_then(|a| a.seen.as_ref()) {
                Some(Seen::Pair(pair)) => pair.modified == last,
                Some(Seen::Nothing) | None => false,
            };
            let text = format!("as of revision {limit}, the write at {last} is not there");
            match calls().any(shows) {
                true => (Kind::StaleRead, text),
                false => (Kind::LostWrite, text),
            }
        }
    }
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
