//! Does every lease last as long as it was promised, and do its keys vanish together?
//!
//! A grant and a keep-alive that were answered promise the answer's time from the moment when they were *sent*,
//! on the client's clock: the server did its part later. Whatever shows, before that time is over, that the
//! lease is gone has broken the promise; so has a keep-alive that is answered as if a lost lease lived.
//! A revoke ends the promise when it is sent.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Action, Call, Delivery, History, LeaseAction, Record, Scope, Seen};
use super::verdict::{Kind, Verdict, Violation};

/// Looks at all leases.
pub(crate) fn judge(history: &History, verdict: &mut Verdict) {
    let mut leases = leases(history);
    signs(history, &mut leases);
    let ends = Ends::of(history);
    for (id, lease) in &leases {
        lease.early(*id, history, verdict);
        lease.together(*id, &ends, history, verdict);
    }
}

/// What is known of a lease.
#[derive(Debug, Default)]
pub(super) struct Lease<'a> {
    /// Until when it was promised to live, each with where.
    promises: Vec<(u64, usize)>,
    /// When the client first sent a revoke.
    revoked_us: Option<u64>,
    /// Its keys: the revision of the put, and where.
    keys: BTreeMap<&'a str, (i64, usize)>,
    /// Signs that it is gone: when they were seen, and where.
    gone: Vec<(u64, usize)>,
}

impl Lease<'_> {
    /// Until when it lives for sure; 0 if nobody promised that.
    pub(super) fn until_us(&self) -> u64 {
        let promised = self.promises.iter().map(|(until_us, _)| *until_us).max().unwrap_or(0);
        promised.min(self.revoked_us.unwrap_or(u64::MAX))
    }

    fn early(&self, id: i64, history: &History, verdict: &mut Verdict) {
        let Some(&(gone_us, at)) = self.gone.iter().min() else { return };
        if self.revoked_us.is_some_and(|revoked_us| revoked_us <= gone_us) {
            return;
        }
        let Some(&(until_us, promise)) = self.promises.iter().max() else { return };
        if gone_us < until_us {
            let early_ms = (until_us - gone_us) / 1_000;
            let text = format!("lease {id} was gone {early_ms} ms before its time");
            verdict.push(Violation::new(Kind::EarlyExpiry, text, history, [promise, at]));
        } else {
            verdict.expired += 1;
            verdict.late_us = verdict.late_us.max(gone_us - until_us);
        }
    }

    /// Each watcher that is told of one key's end is told of all of them at that revision, and no read shows
    /// one that is left.
    fn together(&self, id: i64, ends: &Ends<'_>, history: &History, verdict: &mut Verdict) {
        let mut push = |text: String, shown: &[usize]| {
            let shown = shown.iter().copied();
            verdict.push(Violation::new(Kind::PartialVanishing, text, history, shown));
        };
        let by_lease = || self.keys.iter().filter(|(key, _)| !ends.explicit.contains_key(**key));
        let told = || by_lease().filter_map(|(key, _)| ends.told.get(key)).flatten();
        let Some(&(end, end_at, _)) = told().min() else { return };
        if let Some(&(other, other_at, _)) = told().find(|(revision, _, _)| *revision != end) {
            let text = format!("keys of lease {id} vanished at {end}, others at {other}");
            push(text, &[end_at, other_at]);
        }
        for (key, (_, put_at)) in by_lease() {
            let later = ends.shown.get(key).into_iter().flatten().find(|shown| shown.0 >= end);
            if let Some((revision, at)) = later {
                let text = format!(
                    "keys of lease {id} vanished at {end}, and {key} is there at {revision}"
                );
                push(text, &[end_at, *at]);
            }
            let informed: BTreeSet<u32> = told().map(|(_, _, watcher)| *watcher).collect();
            for watcher in informed {
                let of_key = ends.told.get(key).into_iter().flatten();
                let covered = ends.scopes.get(&watcher).is_some_and(|scope| scope.covers(key));
                let past = ends.reached.get(&watcher).into_iter().flatten();
                let past = past.copied().find(|(revision, _)| *revision > end);
                if covered
                    && !of_key.into_iter().any(|(_, _, other)| *other == watcher)
                    && let Some((_, past_at)) = past
                {
                    let text = format!("keys of lease {id} vanished at {end}, but {key} did not");
                    push(text, &[*put_at, end_at, past_at]);
                }
            }
        }
    }
}

/// What the watchers and the reads tell of the ends of keys.
struct Ends<'a> {
    /// Keys that a call deletes, or may delete.
    explicit: BTreeMap<&'a str, u64>,
    /// What each watcher watches.
    scopes: BTreeMap<u32, &'a Scope>,
    /// Deletes of each key: the revision, where, and the watcher.
    told: BTreeMap<&'a str, Vec<(i64, usize, u32)>>,
    /// How far each watcher had come, and where.
    reached: BTreeMap<u32, Vec<(i64, usize)>>,
    /// Reads that show each key: the header's revision, and where.
    shown: BTreeMap<&'a str, Vec<(i64, usize)>>,
}

impl<'a> Ends<'a> {
    fn of(history: &'a History) -> Self {
        let mut ends = Self {
            explicit: explicit_deletes(history),
            scopes: BTreeMap::new(),
            told: BTreeMap::new(),
            reached: BTreeMap::new(),
            shown: BTreeMap::new(),
        };
        for (at, record) in history.records.iter().enumerate() {
            match record {
                Record::Watcher(watcher) => {
                    ends.scopes.insert(watcher.watcher, &watcher.scope);
                }
                Record::Watch(watch) => {
                    let reached = ends.reached.entry(watch.watcher).or_default();
                    match &watch.what {
                        Delivery::Events(events) => {
                            reached.extend(events.iter().map(|event| (event.revision, at)));
                            for event in events.iter().filter(|event| event.put.is_none()) {
                                let told = ends.told.entry(&event.key).or_default();
                                told.push((event.revision, at, watch.watcher));
                            }
                        }
                        Delivery::Progress(revision) => reached.push((*revision, at)),
                        _ => {}
                    }
                }
                Record::Call(Call { action: Action::Get(key), answer: Some(answer), .. }) => {
                    if let Some(Seen::Pair(_)) = &answer.seen {
                        ends.shown.entry(key).or_default().push((answer.revision, at));
                    }
                }
                _ => {}
            }
        }
        ends
    }
}

/// Keys that a call deletes, or may delete, and since when.
fn explicit_deletes(history: &History) -> BTreeMap<&str, u64> {
    let deletes = history.calls().filter_map(|(_, call)| match &call.action {
        Action::Delete(key) => Some((key.as_str(), call.sent_us)),
        _ => None,
    });
    deletes.collect()
}

/// The leases: what was promised, and their keys.
pub(super) fn leases(history: &History) -> BTreeMap<i64, Lease<'_>> {
    let mut leases: BTreeMap<i64, Lease<'_>> = BTreeMap::new();
    for (at, record) in history.records.iter().enumerate() {
        match record {
            Record::Lease(call) => {
                let lease = leases.entry(call.lease).or_default();
                match (call.action, call.answer) {
                    (LeaseAction::Revoke, _) => {
                        let before = lease.revoked_us.unwrap_or(u64::MAX);
                        lease.revoked_us = Some(before.min(call.sent_us));
                    }
                    (LeaseAction::Grant | LeaseAction::KeepAlive, Some(answer)) => {
                        match u64::try_from(answer.ttl_s) {
                            Ok(ttl_s) if ttl_s > 0 => {
                                let until_us = call.sent_us + ttl_s * 1_000_000;
                                lease.promises.push((until_us, at));
                            }
                            _ => lease.gone.push((answer.at_us, at)),
                        }
                    }
                    (LeaseAction::Grant | LeaseAction::KeepAlive, None) => {}
                }
            }
            Record::Call(Call { action, answer: Some(answer), .. }) if answer.wrote => {
                for write in action.puts().iter().filter(|write| write.lease != 0) {
                    let lease = leases.entry(write.lease).or_default();
                    lease.keys.insert(&write.key, (answer.revision, at));
                }
            }
            _ => {}
        }
    }
    leases
}

/// Adds what shows that a lease is gone: the end of a key of it that nobody else has ended, as a watcher or a
/// read shows it.
fn signs(history: &History, leases: &mut BTreeMap<i64, Lease<'_>>) {
    let mut keys: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for (id, lease) in &*leases {
        keys.extend(lease.keys.iter().map(|(key, (revision, _))| (*key, (*id, *revision))));
    }
    let explicit = explicit_deletes(history);
    let by_lease = |key: &str, at_us: u64, revision: i64| {
        let (lease, put) = keys.get(key)?;
        let deleted = explicit.get(key).is_some_and(|sent_us| *sent_us <= at_us);
        (!deleted && revision > *put).then_some(*lease)
    };
    let mut gone: Vec<(i64, u64, usize)> = Vec::new();
    for (at, record) in history.records.iter().enumerate() {
        match record {
            Record::Watch(watch) => {
                let Delivery::Events(events) = &watch.what else { continue };
                let ends = events.iter().filter(|event| event.put.is_none());
                let ends =
                    ends.filter_map(|event| by_lease(&event.key, watch.at_us, event.revision));
                gone.extend(ends.map(|lease| (lease, watch.at_us, at)));
            }
            Record::Call(Call { action: Action::Get(key), answer: Some(answer), .. })
                if answer.seen == Some(Seen::Nothing) =>
            {
                let lease = by_lease(key, answer.at_us, answer.revision);
                gone.extend(lease.map(|lease| (lease, answer.at_us, at)));
            }
            _ => {}
        }
    }
    for (lease, at_us, at) in gone {
        leases.entry(lease).or_default().gone.push((at_us, at));
    }
}
