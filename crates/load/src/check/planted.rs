//! Right histories pass, and each planted mistake is found in them and named.
//!
//! A plant changes a right history as a server with that defect would have made it, if there is a place for it:
//! histories are drawn until there is one.

use std::collections::BTreeSet;

use fastrand::Rng;
use proptest::prelude::*;

use super::history::{
    Action, Call, Delivery, Event, History, LeaseAction, Record, Scope, Seen, Watch, line,
};
use super::judge::judge;
use super::model;
use super::verdict::Kind;

/// Histories into which each mistake is planted.
const PLANTED: u64 = 60;

/// Histories that are drawn for them.
const DRAWN_MAX: u64 = 20_000;

/// Changes a history; false if there is no place for the mistake.
type Plant = fn(&mut History, &mut Rng) -> bool;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn right_histories_pass(seed in any::<u64>()) {
        let history = model::right(seed);
        let verdict = judge(&history);
        let told: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
        let lines: Vec<String> = history.records.iter().map(line).collect();
        prop_assert!(verdict.is_clean(), "{}\n{}", told.join("\n"), lines.join("\n"));
    }
}

/// Plants a mistake into many histories: it is found in each, under the name `kind`, and a history of at most
/// `witness_max` records shows it.
fn planted(kind: Kind, witness_max: usize, plant: Plant) {
    let mut found = 0;
    for seed in 0..DRAWN_MAX {
        let mut history = model::right(seed);
        if !plant(&mut history, &mut Rng::with_seed(seed)) {
            continue;
        }
        let verdict = judge(&history);
        let shortest = verdict.violations.iter().filter(|found| found.kind == kind);
        let shortest = shortest.map(|found| found.witness.len()).min();
        let others = || verdict.violations.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(
            shortest.is_some_and(|length| length <= witness_max),
            "seed {seed}: {shortest:?}\n{}",
            others().join("\n")
        );
        found += 1;
        if found == PLANTED {
            return;
        }
    }
    panic!("only {found} places in {DRAWN_MAX} histories");
}

/// Any position of a record for which `wanted` has something.
fn choose<T>(
    history: &History,
    rng: &mut Rng,
    wanted: impl Fn(&Record) -> Option<T>,
) -> Option<(usize, T)> {
    let all = history.records.iter().enumerate();
    let all: Vec<_> = all.filter_map(|(at, record)| Some((at, wanted(record)?))).collect();
    rng.choice(all)
}

/// The events of a response.
fn events(record: &Record) -> Option<&Vec<Event>> {
    match record {
        Record::Watch(Watch { what: Delivery::Events(events), .. }) => Some(events),
        _ => None,
    }
}

fn events_mut(record: &mut Record) -> &mut Vec<Event> {
    match record {
        Record::Watch(Watch { what: Delivery::Events(events), .. }) => events,
        _ => panic!("a response with events was chosen"),
    }
}

/// An answered call that wrote `key` alone, and its revision.
fn wrote(record: &Record) -> Option<(String, i64, u64)> {
    match record {
        Record::Call(Call { action, answer: Some(answer), .. }) if answer.wrote => {
            let mut keys = action.keys();
            let key = keys.next()?.to_owned();
            let single = keys.next().is_none() && key.starts_with("k/");
            single.then_some((key, answer.revision, answer.at_us))
        }
        _ => None,
    }
}

#[test]
fn a_stale_read_is_found() {
    planted(Kind::StaleRead, 2, |history, rng| {
        // A read is answered as an earlier one was, which a write in between has outdated.
        let read = |record: &Record| match record {
            Record::Call(Call {
                action: Action::Get(key), answer: Some(answer), sent_us, ..
            }) if key.starts_with("k/") => Some((key.clone(), answer.clone(), *sent_us)),
            _ => None,
        };
        let Some((_, (key, old, _))) = choose(history, rng, read) else { return false };
        let writes: Vec<_> = history.records.iter().filter_map(wrote).collect();
        let later = |record: &Record| {
            let (other, _, sent_us) = read(record)?;
            let outdated = writes.iter().any(|(written, revision, at_us)| {
                *written == key && *revision > old.revision && *at_us < sent_us
            });
            (other == key && outdated).then_some(())
        };
        let Some((at, ())) = choose(history, rng, later) else { return false };
        if let Record::Call(Call { answer: Some(answer), .. }) = &mut history.records[at] {
            (answer.revision, answer.seen) = (old.revision, old.seen);
        }
        true
    });
}

#[test]
fn a_lost_write_is_found() {
    // Other deletes have to stand beside it, where they would explain that the key is not there.
    planted(Kind::LostWrite, 12, |history, rng| {
        // A write was acknowledged, but every read until the next one shows what was before.
        let Some((at, (key, revision, _))) = choose(history, rng, wrote) else { return false };
        let Record::Call(write) = &history.records[at] else { return false };
        if !matches!(write.action, Action::Put(_)) {
            return false;
        }
        let of_key = |record: &Record| match record {
            Record::Call(call) => call.action.keys().any(|other| other == key),
            _ => false,
        };
        // Nobody with an unknown outcome may explain it, and what was there must be known.
        let clear =
            history.records.iter().filter(|record| of_key(record)).all(|record| match record {
                Record::Call(call) => call.answer.is_some(),
                _ => true,
            });
        let mut before = None;
        for (_, call) in history.calls().filter(|(_, call)| call.action.keys().any(|k| k == key)) {
            if let Some(answer) = &call.answer
                && answer.revision < revision
                && let (Action::Get(_), Some(seen)) = (&call.action, &answer.seen)
                && before.as_ref().is_none_or(|(known, _)| *known < answer.revision)
            {
                before = Some((answer.revision, seen.clone()));
            }
        }
        let Some((known, old)) = before.filter(|_| clear) else { return false };
        let between = history.calls().any(|(_, call)| {
            call.action.keys().any(|other| other == key)
                && call.answer.as_ref().is_some_and(|answer| {
                    answer.wrote && answer.revision > known && answer.revision < revision
                })
        });
        let mut lost = 0;
        for record in &mut history.records {
            let Record::Call(call) = record else { continue };
            let Some(answer) = &mut call.answer else { continue };
            if let Some(Seen::Pair(pair)) = &answer.seen
                && pair.modified == revision
                && call.action.keys().any(|other| other == key)
            {
                // Only plain reads are changed; another kind of answer tells of the write in its own way.
                if !matches!(call.action, Action::Get(_)) {
                    return false;
                }
                answer.seen = Some(old.clone());
                lost += 1;
            }
        }
        lost > 0 && !between
    });
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    planted(Kind::PhantomValue, 1, |history, rng| {
        let shows = |record: &Record| match record {
            Record::Call(Call { action: Action::Get(key), answer: Some(answer), .. })
                if key.starts_with("k/") && matches!(answer.seen, Some(Seen::Pair(_))) =>
            {
                Some(())
            }
            _ => None,
        };
        let Some((at, ())) = choose(history, rng, shows) else { return false };
        if let Record::Call(Call { answer: Some(answer), .. }) = &mut history.records[at]
            && let Some(Seen::Pair(pair)) = &mut answer.seen
        {
            "never".clone_into(&mut pair.value);
        }
        true
    });
}

#[test]
fn a_revision_that_goes_back_is_found() {
    planted(Kind::RevisionBackwards, 2, |history, rng| {
        let Some((at, (_, revision, _))) = choose(history, rng, wrote) else { return false };
        let Record::Call(Call { sent_us, .. }) = &history.records[at] else { return false };
        let sent_us = *sent_us;
        let known = history
            .records
            .iter()
            .filter_map(wrote)
            .any(|(_, other, at_us)| at_us < sent_us && other < revision);
        if let Record::Call(Call { answer: Some(answer), .. }) = &mut history.records[at] {
            answer.revision = 1;
        }
        known
    });
}

#[test]
fn a_duplicate_event_is_found() {
    planted(Kind::DuplicateEvent, 2, |history, rng| {
        let Some((at, ())) = choose(history, rng, |record| events(record).map(|_| ())) else {
            return false;
        };
        let again = history.records[at].clone();
        history.records.insert(at + 1, again);
        true
    });
}

#[test]
fn a_gap_is_found() {
    planted(Kind::Gap, 3, |history, rng| {
        // A response is left out, and the watcher goes on.
        let Some((at, ())) = choose(history, rng, |record| events(record).map(|_| ())) else {
            return false;
        };
        let Record::Watch(watch) = history.records.remove(at) else { return false };
        // Somebody must know of the change.
        let Delivery::Events(lost) = watch.what else { return false };
        lost.iter().any(|lost| {
            let acknowledged = history.records.iter().filter_map(wrote);
            let mut acknowledged = acknowledged.map(|(_, revision, _)| revision);
            let mut told = history.records.iter().filter_map(events).flatten();
            acknowledged.any(|revision| revision == lost.revision)
                || told.any(|event| event.revision == lost.revision && event.key == lost.key)
        })
    });
}

#[test]
fn a_split_revision_is_found() {
    planted(Kind::SplitRevision, 2, |history, rng| {
        let several = |record: &Record| {
            let [.., one, two] = events(record)?.as_slice() else { return None };
            (one.revision == two.revision).then_some(())
        };
        let Some((at, ())) = choose(history, rng, several) else { return false };
        let mut second = history.records[at].clone();
        let last = events_mut(&mut history.records[at]).pop().expect("there are two");
        *events_mut(&mut second) = vec![last];
        history.records.insert(at + 1, second);
        true
    });
}

#[test]
fn a_revision_that_comes_in_part_is_found() {
    planted(Kind::SplitRevision, 3, |history, rng| {
        let several = |record: &Record| {
            let [.., one, two] = events(record)?.as_slice() else { return None };
            (one.revision == two.revision && one.key.starts_with("k/")).then_some(())
        };
        let Some((at, ())) = choose(history, rng, several) else { return false };
        let lost = events_mut(&mut history.records[at]).pop().expect("there are two");
        let mut told = history.records.iter().filter_map(events).flatten();
        told.any(|event| event.revision == lost.revision && event.key == lost.key)
    });
}

#[test]
fn events_out_of_order_are_found() {
    planted(Kind::OutOfOrder, 2, |history, rng| {
        let several = |record: &Record| {
            let events = events(record)?;
            (events.first()?.revision < events.last()?.revision).then_some(())
        };
        let Some((at, ())) = choose(history, rng, several) else { return false };
        events_mut(&mut history.records[at]).reverse();
        true
    });
}

#[test]
fn an_event_after_the_promise_that_none_would_come_is_found() {
    planted(Kind::OutOfOrder, 2, |history, rng| {
        let Some((at, promise)) =
            choose(history, rng, |record| events(record)?.iter().map(|event| event.revision).max())
        else {
            return false;
        };
        let Record::Watch(watch) = &history.records[at] else { return false };
        let what = Delivery::Progress(promise);
        let early = Record::Watch(Watch { what, ..watch.clone() });
        history.records.insert(at, early);
        true
    });
}

#[test]
fn an_event_that_was_no_write_is_found() {
    planted(Kind::PhantomEvent, 2, |history, rng| {
        let puts = |record: &Record| events(record)?.iter().position(|event| event.put.is_some());
        let Some((at, number)) = choose(history, rng, puts) else { return false };
        let event = &mut events_mut(&mut history.records[at])[number];
        event.put.as_mut().expect("it is a put").value = "never".to_owned();
        true
    });
}

#[test]
fn a_wrong_previous_pair_is_found() {
    planted(Kind::WrongPrevious, 2, |history, rng| {
        let shows = |record: &Record| {
            let is_known = |event: &Event| event.prev.as_ref().is_some_and(|prev| prev.version > 1);
            events(record)?.iter().position(is_known)
        };
        let Some((at, number)) = choose(history, rng, shows) else { return false };
        let prev = events_mut(&mut history.records[at])[number].prev.as_mut();
        let prev = prev.expect("it was looked for");
        (prev.modified, prev.version) = (prev.create, 1);
        true
    });
}

#[test]
fn a_watch_that_hangs_is_found() {
    planted(Kind::StalledWatch, 3, |history, rng| {
        let last = |record: &Record| match record {
            Record::Watch(watch) => Some(watch.watcher),
            _ => None,
        };
        let Some((at, watcher)) = choose(history, rng, last) else { return false };
        let mut number = 0;
        history.records.retain(|record| {
            number += 1;
            number <= at || last(record) != Some(watcher)
        });
        let reached = history.records.iter().filter(|record| last(record) == Some(watcher));
        let reached = reached.filter_map(|record| match record {
            Record::Watch(Watch { what: Delivery::Progress(revision), .. }) => Some(*revision),
            record => events(record)?.iter().map(|event| event.revision).max(),
        });
        let reached = reached.max();
        !history.records.iter().any(|record| match record {
            Record::Settled(revision) => reached == Some(*revision),
            _ => false,
        })
    });
}

#[test]
fn an_early_expiry_is_found() {
    planted(Kind::EarlyExpiry, 2, |history, rng| {
        let ends = |record: &Record| match record {
            Record::Lease(call) if call.action == LeaseAction::Revoke => Some(call.lease),
            _ => None,
        };
        // As if nobody had revoked it.
        let Some((at, _)) = choose(history, rng, ends) else { return false };
        let Record::Lease(revoke) = history.records.remove(at) else { return false };
        let gone = history.calls().find_map(|(_, call)| {
            let answer = call.answer.as_ref()?;
            let Action::Get(key) = &call.action else { return None };
            let of_lease = key.starts_with(&format!("l/{}/", revoke.lease));
            (of_lease && answer.seen == Some(Seen::Nothing)).then_some(answer.at_us)
        });
        // Told by a read before its time was over.
        gone.is_some_and(|at_us| {
            history.records.iter().any(|record| match record {
                Record::Lease(call) => {
                    call.lease == revoke.lease && call.sent_us + 2_000_000 > at_us
                }
                _ => false,
            })
        })
    });
}

/// The position of a response that tells of the end of several keys of one lease, and of one of them in it.
fn ends_of_a_lease(record: &Record) -> Option<usize> {
    let events = events(record)?;
    let ended = |event: &Event| event.put.is_none() && event.key.starts_with("l/");
    let revisions: Vec<i64> =
        events.iter().filter(|event| ended(event)).map(|event| event.revision).collect();
    let unique: BTreeSet<&i64> = revisions.iter().collect();
    (unique.len() < revisions.len()).then(|| events.iter().position(ended))?
}

#[test]
fn keys_of_a_lease_that_vanish_one_after_the_other_are_found() {
    planted(Kind::PartialVanishing, 2, |history, rng| {
        let Some((at, number)) = choose(history, rng, ends_of_a_lease) else { return false };
        let late = events_mut(&mut history.records[at]).remove(number);
        let Record::Watch(watch) = &history.records[at] else { return false };
        let revision = late.revision + 1_000;
        let what = Delivery::Events(vec![Event { revision, ..late }]);
        let record = Record::Watch(Watch { what, ..watch.clone() });
        history.records.push(record);
        true
    });
}

#[test]
fn a_key_that_outlives_its_lease_is_found() {
    planted(Kind::PartialVanishing, 3, |history, rng| {
        let Some((at, number)) = choose(history, rng, ends_of_a_lease) else { return false };
        let left = events_mut(&mut history.records[at])[number].clone();
        // Nobody is told of its end.
        for record in &mut history.records {
            if events(record).is_some() {
                events_mut(record).retain(|event| event.key != left.key || event.put.is_some());
            }
        }
        let wide = |record: &Record| match record {
            Record::Watcher(watcher) => watcher.scope == Scope::Prefix(String::new()),
            _ => false,
        };
        history.records.iter().any(wide)
    });
}

#[test]
fn two_holders_are_found() {
    planted(Kind::TwoHolders, 2, |history, rng| {
        let keeps = |record: &Record| match record {
            Record::Hold(hold) => Some(hold.clone()),
            _ => None,
        };
        let Some((at, hold)) = choose(history, rng, keeps) else { return false };
        let holds: Vec<_> = history.records.iter().filter_map(keeps).collect();
        let Some(last) = holds.iter().map(|hold| hold.token).max() else { return false };
        // Another one gets it while this one still has a lease.
        let mut other = hold.clone();
        (other.holder, other.token) = (hold.holder + 100, last + 1);
        let free_us = hold.released_us.unwrap_or(hold.acquired_us + 1_000);
        (other.acquired_us, other.released_us) = (hold.acquired_us.midpoint(free_us), None);
        let overlaps = other.acquired_us < free_us;
        history.records.insert(at + 1, Record::Hold(other));
        overlaps
    });
}

#[test]
fn a_token_that_goes_back_is_found() {
    planted(Kind::TokenBackwards, 2, |history, _| {
        let mut holds: Vec<_> = (history.records.iter_mut())
            .filter_map(|record| match record {
                Record::Hold(hold) => Some(hold),
                _ => None,
            })
            .collect();
        let [first, second, ..] = holds.as_mut_slice() else { return false };
        std::mem::swap(&mut first.token, &mut second.token);
        // Times of no length are not sure.
        let real = |hold: &super::history::Hold| hold.released_us != Some(hold.acquired_us);
        real(first) && real(second)
    });
}
