//! Does every watcher see every change in its scope, once, in order, and each revision whole?
//!
//! What has changed is known from the calls that were answered, and from the watchers together: what one was
//! told of, all have to be told of. A watcher has come as far as the last revision of which it was given an
//! event, or up to which it was promised that everything is delivered; a header beside events promises nothing.
//! What a resumed watch delivers continues what the broken one did.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Action, Call, Delivery, Event, History, Pair, Record, Watcher};
use super::verdict::{Kind, Verdict, Violation};

/// Looks at all watchers.
pub(crate) fn judge(history: &History, verdict: &mut Verdict) {
    let truth = Truth::of(history);
    truth.phantoms(history, verdict);
    let mut tracks: BTreeMap<u32, Track<'_>> = BTreeMap::new();
    for (at, record) in history.records.iter().enumerate() {
        match record {
            Record::Watcher(watcher) => {
                tracks.insert(watcher.watcher, Track::new(watcher, at));
            }
            Record::Watch(watch) => {
                if let Some(track) = tracks.get_mut(&watch.watcher) {
                    track.deliver(at, &watch.what, history, verdict);
                }
            }
            _ => {}
        }
    }
    let settled = history.records.iter().enumerate().rev().find_map(|(at, record)| match record {
        Record::Settled(revision) => Some((at, *revision)),
        _ => None,
    });
    for track in tracks.values() {
        track.compare(&truth, history, verdict);
        track.previous(&truth, history, verdict);
        if let Some((at, revision)) = settled
            && track.reached() < revision
        {
            let text = format!(
                "watcher {} came to revision {} of {revision}",
                track.watcher.watcher,
                track.reached()
            );
            let shown = [Some(track.at), track.last.map(|(_, at)| at), Some(at)];
            let shown = shown.into_iter().flatten();
            verdict.push(Violation::new(Kind::StalledWatch, text, history, shown));
        }
    }
}

/// What has changed, as far as anybody knows.
#[derive(Default)]
struct Truth<'a> {
    /// By revision and key: where it is recorded, first of all in a call.
    changes: BTreeMap<i64, BTreeMap<&'a str, Change<'a>>>,
    /// Each key's changes in order.
    keys: BTreeMap<&'a str, BTreeSet<i64>>,
    /// Every put that was sent, by its value.
    puts: BTreeMap<&'a str, (usize, &'a str)>,
    /// Deletes without an answer, by key.
    deletes: BTreeMap<&'a str, u64>,
    /// Keys that a lease may delete.
    leased: BTreeSet<&'a str>,
}

/// A change of a key.
#[derive(Clone, Copy)]
struct Change<'a> {
    /// Where it is recorded.
    at: usize,
    /// The value that was put; nothing for a delete.
    value: Option<&'a str>,
    /// A call that was answered made it.
    acknowledged: bool,
}

impl<'a> Truth<'a> {
    fn of(history: &'a History) -> Self {
        let mut truth = Self::default();
        for (at, call) in history.calls() {
            truth.call(at, call);
        }
        for (at, record) in history.records.iter().enumerate() {
            let Record::Watch(watch) = record else { continue };
            let Delivery::Events(events) = &watch.what else { continue };
            for event in events {
                let value = event.put.as_ref().map(|pair| pair.value.as_str());
                let change = Change { at, value, acknowledged: false };
                let here = truth.changes.entry(event.revision).or_default();
                here.entry(&event.key).or_insert(change);
                truth.keys.entry(&event.key).or_default().insert(event.revision);
            }
        }
        truth
    }

    fn call(&mut self, at: usize, call: &'a Call) {
        for write in call.action.puts() {
            self.puts.insert(&write.value, (at, &write.key));
            if write.lease != 0 {
                self.leased.insert(&write.key);
            }
        }
        match (&call.answer, &call.action) {
            (None, Action::Delete(key)) => *self.deletes.entry(key).or_default() += 1,
            (Some(answer), _) if answer.wrote => {
                let here = self.changes.entry(answer.revision).or_default();
                for key in call.action.keys() {
                    let value = call.action.puts().iter().find(|write| write.key == key);
                    let value = value.map(|write| write.value.as_str());
                    here.insert(key, Change { at, value, acknowledged: true });
                    self.keys.entry(key).or_default().insert(answer.revision);
                }
            }
            _ => {}
        }
    }

    /// Events that no call explains.
    fn phantoms(&self, history: &History, verdict: &mut Verdict) {
        let mut where_put: BTreeMap<&str, (i64, usize)> = BTreeMap::new();
        let mut deletes = self.deletes.clone();
        for (revision, key, change) in self.changes.iter().flat_map(|(revision, keys)| {
            keys.iter().map(|(key, change)| (*revision, *key, *change))
        }) {
            let Some(value) = change.value else {
                // One delete without an answer explains one event.
                let unanswered = deletes.get_mut(key).filter(|left| **left > 0);
                let explained = change.acknowledged
                    || self.leased.contains(key)
                    || unanswered.map(|left| *left -= 1).is_some();
                if !explained {
                    let text = format!("{key} was deleted at {revision}, by nobody");
                    verdict.push(Violation::new(Kind::PhantomEvent, text, history, [change.at]));
                }
                continue;
            };
            let Some(&(put_at, put_key)) = self.puts.get(value) else {
                let text = format!("{key} = {value:?} at {revision}, which nobody put");
                verdict.push(Violation::new(Kind::PhantomEvent, text, history, [change.at]));
                continue;
            };
            // The put may have been refused, acknowledged at another revision, or seen at one already.
            let elsewhere = match &history.records[put_at] {
                Record::Call(call) => call
                    .answer
                    .as_ref()
                    .is_some_and(|answer| !answer.wrote || answer.revision != revision),
                _ => false,
            };
            let before = where_put.insert(value, (revision, change.at));
            if elsewhere || put_key != key || before.is_some_and(|(first, _)| first != revision) {
                let text = format!("{key} = {value:?} at {revision}, where nobody put it");
                let also = before.map(|(_, at)| at);
                let shown = [Some(put_at), Some(change.at), also].into_iter().flatten();
                verdict.push(Violation::new(Kind::PhantomEvent, text, history, shown));
            }
        }
        self.contradictions(history, verdict);
    }

    /// Events that say otherwise of a change than the call that made it, or another event.
    fn contradictions(&self, history: &History, verdict: &mut Verdict) {
        for (at, event) in events(history) {
            let change = self.changes[&event.revision][event.key.as_str()];
            let value = event.put.as_ref().map(|pair| pair.value.as_str());
            let odd = event.put.as_ref().is_some_and(|pair| pair.modified != event.revision);
            if value != change.value || odd {
                let text = format!("{} at {} is told in two ways", event.key, event.revision);
                verdict.push(Violation::new(Kind::PhantomEvent, text, history, [change.at, at]));
            }
        }
    }
}

/// Every event of every watcher, and where it is recorded.
fn events(history: &History) -> impl Iterator<Item = (usize, &Event)> {
    history.records.iter().enumerate().flat_map(|(at, record)| {
        let events = match record {
            Record::Watch(watch) => match &watch.what {
                Delivery::Events(events) => events.as_slice(),
                _ => &[],
            },
            _ => &[],
        };
        events.iter().map(move |event| (at, event))
    })
}

/// One watcher's way through the history.
struct Track<'a> {
    watcher: &'a Watcher,
    at: usize,
    /// Everything from this revision on is due; nothing before the first watch was made.
    from: Option<i64>,
    /// The highest revision that was delivered, and where.
    last: Option<(i64, usize)>,
    /// The highest revision up to which everything was promised to be delivered, and where.
    promise: Option<(i64, usize)>,
    /// What was delivered: for each revision, the keys and where.
    delivered: BTreeMap<i64, BTreeMap<&'a str, usize>>,
    /// Revisions that need not have been delivered: history was gone.
    excused: Vec<(i64, i64)>,
}

impl<'a> Track<'a> {
    fn new(watcher: &'a Watcher, at: usize) -> Self {
        Self {
            watcher,
            at,
            from: None,
            last: None,
            promise: None,
            delivered: BTreeMap::new(),
            excused: Vec::new(),
        }
    }

    /// How far it has come.
    fn reached(&self) -> i64 {
        let highest = |of: Option<(i64, usize)>| of.map_or(0, |(revision, _)| revision);
        highest(self.last).max(highest(self.promise))
    }

    fn deliver(&mut self, at: usize, what: &'a Delivery, history: &History, verdict: &mut Verdict) {
        match what {
            Delivery::Created { start, revision } => {
                let start = if *start == 0 { revision + 1 } else { *start };
                self.from.get_or_insert(start);
            }
            Delivery::Events(events) => {
                let before = self.last;
                for event in events {
                    self.event(at, event, before, history, verdict);
                }
            }
            Delivery::Progress(revision) => {
                if self.promise.is_none_or(|(promise, _)| promise < *revision) {
                    self.promise = Some((*revision, at));
                }
            }
            Delivery::Compacted(revision) => {
                self.excused.push((self.reached() + 1, revision - 1));
            }
            Delivery::Lost(_) => {}
        }
    }

    /// One event; `before` is how far the responses before its own had come.
    fn event(
        &mut self,
        at: usize,
        event: &'a Event,
        before: Option<(i64, usize)>,
        history: &History,
        verdict: &mut Verdict,
    ) {
        let (revision, number) = (event.revision, self.watcher.watcher);
        let here = self.delivered.entry(revision).or_default();
        let again = here.insert(&event.key, at);
        let of = format!("watcher {number}: {} at {revision}", event.key);
        let mut push = |kind, text: String, with: Option<usize>| {
            let shown = [Some(at), with].into_iter().flatten();
            verdict.push(Violation::new(kind, format!("{of} {text}"), history, shown));
        };
        if let Some(first) = again {
            push(Kind::DuplicateEvent, "is delivered twice".into(), Some(first));
        } else if !self.watcher.scope.covers(&event.key) {
            push(Kind::PhantomEvent, "is not what it watches".into(), Some(self.at));
        } else if self.from.is_none_or(|from| revision < from) {
            push(Kind::OutOfOrder, "lies before the watch's start".into(), Some(self.at));
        } else if let Some((last, last_at)) = self.last.filter(|&(last, _)| revision < last) {
            push(Kind::OutOfOrder, format!("comes after revision {last}"), Some(last_at));
        } else if let Some((_, last_at)) = before.filter(|&(last, _)| revision == last) {
            push(Kind::SplitRevision, "comes in another response".into(), Some(last_at));
        } else if let Some((promise, promise_at)) =
            self.promise.filter(|&(promise, _)| revision <= promise)
        {
            let text = format!("comes after the promise that all up to {promise} had come");
            push(Kind::OutOfOrder, text, Some(promise_at));
        }
        if self.last.is_none_or(|(last, _)| last < revision) {
            self.last = Some((revision, at));
        }
    }

    /// Everything that has changed up to where this watcher has come was delivered to it.
    fn compare(&self, truth: &Truth<'_>, history: &History, verdict: &mut Verdict) {
        let Some(from) = self.from.filter(|from| *from <= self.reached()) else { return };
        for (&revision, changes) in truth.changes.range(from..=self.reached()) {
            if self.excused.iter().any(|&(first, last)| (first..=last).contains(&revision)) {
                continue;
            }
            let delivered = self.delivered.get(&revision);
            for (key, change) in changes {
                let there = delivered.is_some_and(|keys| keys.contains_key(key));
                if there || !self.watcher.scope.covers(key) {
                    continue;
                }
                let number = self.watcher.watcher;
                let part = delivered.and_then(|keys| keys.values().next());
                let kind = if part.is_some() { Kind::SplitRevision } else { Kind::Gap };
                let text = format!("watcher {number} was not told of {key} at {revision}");
                let shown = [Some(change.at), part.copied(), Some(self.after(revision))];
                let shown = shown.into_iter().flatten();
                verdict.push(Violation::new(kind, text, history, shown));
            }
        }
    }

    /// Where it was first told of something at or after `revision`, or promised.
    fn after(&self, revision: i64) -> usize {
        let delivered = self.delivered.range(revision..).next();
        let delivered = delivered.and_then(|(_, keys)| keys.values().next().copied());
        let promise = self.promise.filter(|(promise, _)| *promise >= revision).map(|(_, at)| at);
        delivered.or(promise).unwrap_or(self.at)
    }

    /// The pair before each event is what the change before has left.
    fn previous(&self, truth: &Truth<'_>, history: &History, verdict: &mut Verdict) {
        if !self.watcher.prev_kv {
            return;
        }
        let own = |(at, _): &(usize, &Event)| matches!(&history.records[*at], Record::Watch(watch) if watch.watcher == self.watcher.watcher);
        for (at, event) in events(history).filter(own) {
            let before = truth.keys[event.key.as_str()].range(..event.revision).next_back();
            let change =
                before.map(|revision| (*revision, truth.changes[revision][event.key.as_str()]));
            let was = change.and_then(|(revision, change)| Some((revision, change.value?)));
            let prev = event.prev.as_ref();
            // What nobody was told of may lie between: a write without an answer, before the watcher began.
            let untold = prev.is_some_and(|pair| {
                before.is_none_or(|before| pair.modified > *before)
                    && pair.modified < self.from.unwrap_or(i64::MAX)
                    && truth.puts.get(pair.value.as_str()).is_some_and(|(_, key)| *key == event.key)
            });
            let agrees = prev.map(|pair| (pair.modified, pair.value.as_str())) == was;
            let unwatched = prev.is_none()
                && truth.deletes.contains_key(event.key.as_str())
                && self.from.is_none_or(|from| before.is_none_or(|before| *before < from));
            if !(agrees || untold || unwatched) || !counts(event, prev) {
                let number = self.watcher.watcher;
                let text = format!("watcher {number}: before {} at {}", event.key, event.revision);
                let shown = [Some(at), change.map(|(_, change)| change.at)];
                let shown = shown.into_iter().flatten();
                verdict.push(Violation::new(Kind::WrongPrevious, text, history, shown));
            }
        }
    }
}

/// Whether an event's version and create revision follow from the pair before it.
fn counts(event: &Event, prev: Option<&Pair>) -> bool {
    match (&event.put, prev) {
        (Some(put), Some(prev)) => put.version == prev.version + 1 && put.create == prev.create,
        (Some(put), None) => put.version == 1 && put.create == event.revision,
        // A delete of what was not there is no change.
        (None, prev) => prev.is_some(),
    }
}
