//! The order by revisions against a search, and what planted mistakes are called.

use proptest::prelude::*;

use super::super::history::{Answer, Write};
use super::super::model;
use super::*;

/// Looks for an order of the calls of one key in which every answer is right: all of them, in whatever order
/// real time allows, and of those without an answer any.
fn search(history: &History, key: &str, positions: &[usize]) -> bool {
    let calls: Vec<&Call> = positions.iter().filter_map(|&at| call_at(history, at)).collect();
    try_next(&calls, key, vec![false; calls.len()], &Place::default())
}

/// A state in the search: the store's revision is `low`, or above it after an unanswered write.
#[derive(Clone, Default)]
struct Place {
    low: i64,
    /// The value; its revision, or the least that it can be; and all that was shown of it.
    pair: Option<(String, Result<i64, i64>, Option<Pair>)>,
}

fn try_next(calls: &[&Call], key: &str, done: Vec<bool>, place: &Place) -> bool {
    let open = || (0..calls.len()).filter(|&at| !done[at]);
    let Some(until_us) = open().filter_map(|at| Some(calls[at].answer.as_ref()?.at_us)).min()
    else {
        return true;
    };
    open().filter(|&at| calls[at].sent_us <= until_us).any(|at| {
        apply(calls[at], key, place).is_some_and(|place| {
            let mut done = done.clone();
            done[at] = true;
            try_next(calls, key, done, &place)
        })
    })
}

fn apply(call: &Call, key: &str, place: &Place) -> Option<Place> {
    let mut place = place.clone();
    let expected = match &call.action {
        Action::Cas { expect, .. } => Some(*expect),
        _ => None,
    };
    let value = value_of(call, key).map(str::to_owned);
    let Some(answer) = &call.answer else {
        let there = place.pair.as_ref().map_or(Ok(0), |pair| pair.1);
        if expected.is_some_and(|expect| there != Ok(expect)) {
            return None;
        }
        place.low += 1;
        place.pair = value.map(|value| (value, Err(place.low), None));
        return Some(place);
    };
    let as_of = if answer.wrote { answer.revision - 1 } else { answer.revision };
    if as_of < place.low {
        return None;
    }
    match (&answer.seen, &mut place.pair) {
        (None, _) | (Some(Seen::Nothing), None) => {}
        (Some(Seen::Pair(shown)), Some((value, modified, before))) => {
            let fits = match modified {
                Ok(modified) => *modified == shown.modified,
                Err(least) => *least <= shown.modified && shown.modified <= as_of,
            };
            if *value != shown.value || !fits || before.as_ref().is_some_and(|b| b != shown) {
                return None;
            }
            place.low = place.low.max(shown.modified);
            (*modified, *before) = (Ok(shown.modified), Some(shown.clone()));
        }
        (Some(_), _) => return None,
    }
    let there = place.pair.as_ref().map_or(Ok(0), |pair| pair.1);
    let right = match (&call.action, answer.wrote) {
        (Action::Get(_), wrote) => !wrote,
        (Action::Put(_), wrote) => wrote,
        (Action::Delete(_), wrote) => wrote == place.pair.is_some(),
        (Action::Cas { expect, .. }, wrote) => wrote == (there == Ok(*expect)),
    };
    if !right {
        return None;
    }
    place.low = answer.revision;
    if answer.wrote {
        place.pair = value.map(|value| (value, Ok(answer.revision), None));
    }
    Some(place)
}

/// Few calls on one key, so that a search through all orders ends.
fn small(seed: u64, spoil: bool) -> (History, Vec<usize>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut history = model::right(rng.u64(..));
    let of_key = |record: &Record| match record {
        Record::Call(call) => call.action.keys().any(|key| key == "k/1"),
        _ => false,
    };
    history.records.retain(of_key);
    history.records.sort_by_key(|record| match record {
        Record::Call(call) => call.sent_us,
        _ => 0,
    });
    history.records.truncate(9);
    if spoil && !history.records.is_empty() {
        let values: Vec<Seen> = history
            .calls()
            .filter_map(|(_, call)| call.answer.as_ref()?.seen.clone())
            .chain([Seen::Nothing])
            .collect();
        let at = rng.usize(0..history.records.len());
        if let Record::Call(Call { answer: Some(answer), sent_us, action, .. }) =
            &mut history.records[at]
        {
            match rng.u32(0..4) {
                0 => answer.revision += rng.i64(-4..5),
                1 => {
                    answer.seen =
                        answer.seen.is_some().then(|| values[rng.usize(0..values.len())].clone())
                }
                // A compare that does not hold is always answered with the pair.
                2 if !matches!(action, Action::Cas { .. }) => answer.wrote = !answer.wrote,
                _ => {
                    answer.at_us =
                        answer.at_us.saturating_sub(rng.u64(0..20_000)).max(*sent_us + 1);
                }
            }
        }
    }
    let positions = (0..history.records.len()).collect();
    (history, positions)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) })]

    #[test]
    fn the_order_by_revisions_decides_as_a_search_does(seed in any::<u64>(), spoil in any::<bool>()) {
        let (history, positions) = small(seed, spoil);
        let found = replay(&history, "k/1", &positions, &positions);
        prop_assert_eq!(found.is_ok(), search(&history, "k/1", &positions), "{:?}\n{}", found,
            history.records.iter().map(super::super::history::line).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn what_shows_a_violation_violates_with_everything_else_unsure(seed in any::<u64>()) {
        let (history, positions) = small(seed, true);
        if replay(&history, "k/1", &positions, &positions).is_err() {
            let shortest = shrink(&positions, |kept| replay(&history, "k/1", &positions, kept).is_err());
            prop_assert!(replay(&history, "k/1", &positions, &shortest).is_err());
            for spared in &shortest {
                let fewer: Vec<usize> = shortest.iter().copied().filter(|at| at != spared).collect();
                prop_assert!(replay(&history, "k/1", &positions, &fewer).is_ok());
            }
        }
    }
}

fn call(client: u32, sent_us: u64, at_us: u64, action: Action, answer: Answer) -> Record {
    Record::Call(Call { client, sent_us, action, answer: Some(Answer { at_us, ..answer }) })
}

fn put(sent_us: u64, at_us: u64, value: &str, revision: i64) -> Record {
    let write = Write { key: "k".into(), value: value.into(), lease: 0 };
    let answer = Answer { at_us: 0, revision, wrote: true, seen: None };
    call(0, sent_us, at_us, Action::Put(vec![write]), answer)
}

fn get(sent_us: u64, at_us: u64, revision: i64, seen: Option<(&str, i64, i64)>) -> Record {
    let seen = match seen {
        Some((value, modified, version)) => {
            Seen::Pair(Pair { value: value.into(), create: 2, modified, version })
        }
        None => Seen::Nothing,
    };
    let answer = Answer { at_us: 0, revision, wrote: false, seen: Some(seen) };
    call(1, sent_us, at_us, Action::Get("k".into()), answer)
}

fn unknown(sent_us: u64, action: Action) -> Record {
    Record::Call(Call { client: 2, sent_us, action, answer: None })
}

fn kinds(records: Vec<Record>) -> Vec<(Kind, usize)> {
    let mut verdict = Verdict::default();
    judge(&History { records }, &mut verdict);
    verdict.violations.iter().map(|found| (found.kind, found.witness.len())).collect()
}

#[test]
fn a_write_without_an_answer_may_happen_late_or_never() {
    let delete = || unknown(20, Action::Delete("k".into()));
    let shown = Some(("a", 2, 1));
    assert_eq!(
        kinds(vec![put(0, 10, "a", 2), delete(), get(30, 40, 2, shown), get(50, 60, 3, None)]),
        []
    );
    // It cannot happen twice, and not before it was sent.
    let again = put(70, 80, "b", 4);
    let twice =
        vec![put(0, 10, "a", 2), delete(), get(30, 40, 3, None), again, get(90, 99, 5, None)];
    assert_eq!(kinds(twice).iter().map(|found| found.0).collect::<Vec<_>>(), [Kind::LostWrite]);
    let before = vec![put(0, 10, "a", 2), get(12, 15, 3, None), delete()];
    assert_eq!(kinds(before), [(Kind::LostWrite, 2)]);
}

#[test]
fn a_lost_write_and_a_stale_read_are_told_apart() {
    let first = || put(0, 10, "a", 2);
    let second = || put(20, 30, "b", 3);
    let old = || get(40, 50, 3, Some(("a", 2, 1)));
    assert_eq!(kinds(vec![first(), second(), old()]), [(Kind::LostWrite, 2)]);
    let new = get(60, 70, 3, Some(("b", 3, 2)));
    assert_eq!(kinds(vec![first(), second(), old(), new]), [(Kind::StaleRead, 2)]);
}

#[test]
fn a_value_that_nobody_wrote_is_named() {
    assert_eq!(kinds(vec![get(0, 10, 2, Some(("z", 2, 1)))]), [(Kind::PhantomValue, 1)]);
}

#[test]
fn what_a_watcher_was_told_is_known() {
    use super::super::history::{Delivery, Watch};
    let told = Record::Watch(Watch { watcher: 1, at_us: 20, what: Delivery::Progress(7) });
    assert_eq!(kinds(vec![told, get(30, 40, 6, None)]), [(Kind::RevisionBackwards, 2)]);
}
