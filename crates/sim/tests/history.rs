//! The judge of histories is judged: planted histories, and random ones against trying every order.

use quorate_sim::history::{Action, History, Judgement, Operation, Value};

const STEPS: u64 = 1_000_000;

fn history(operations: &[(u64, Option<u64>, Action)]) -> History {
    let mut history = History::default();
    for &(from_us, to_us, action) in operations {
        history.push(Operation { key: 0, action, from_us, to_us });
    }
    history
}

fn read(value: u64) -> Action {
    Action::Read(Some(value))
}

#[test]
fn a_read_after_an_acknowledged_write_must_see_it() {
    let put = (0, Some(10), Action::Put(1));
    let fresh = history(&[put, (20, Some(30), read(1))]);
    assert_eq!(fresh.judge(STEPS), Judgement::Linearizable);
    let stale = history(&[put, (20, Some(30), Action::Read(None))]);
    assert_eq!(stale.judge(STEPS), Judgement::NotLinearizable(0));
}

#[test]
fn reads_beside_a_write_may_see_either_but_not_go_back() {
    let put = (0, Some(100), Action::Put(1));
    let either = history(&[put, (10, Some(20), Action::Read(None)), (30, Some(40), read(1))]);
    assert_eq!(either.judge(STEPS), Judgement::Linearizable);
    let back = history(&[put, (10, Some(20), read(1)), (30, Some(40), Action::Read(None))]);
    assert_eq!(back.judge(STEPS), Judgement::NotLinearizable(0));
}

#[test]
fn a_write_of_unknown_outcome_may_take_effect_at_any_later_time_but_only_once() {
    let lost = (0, None, Action::Put(1));
    let second = (10, Some(20), Action::Put(2));
    let late = history(&[lost, second, (30, Some(40), read(2)), (50, Some(60), read(1))]);
    assert_eq!(late.judge(STEPS), Judgement::Linearizable);
    let twice = history(&[
        lost,
        second,
        (30, Some(40), read(1)),
        (50, Some(60), Action::Put(3)),
        (70, Some(80), read(1)),
    ]);
    assert_eq!(twice.judge(STEPS), Judgement::NotLinearizable(0));
}

#[test]
fn a_value_that_nobody_wrote_is_a_phantom() {
    assert_eq!(history(&[(0, Some(1), read(9))]).judge(STEPS), Judgement::NotLinearizable(0));
}

#[test]
fn of_two_swaps_from_one_value_only_one_succeeds() {
    let swap = |new| Action::Swap { expected: None, new, result: Some(None) };
    let both = history(&[(0, Some(10), swap(1)), (0, Some(10), swap(2))]);
    assert_eq!(both.judge(STEPS), Judgement::NotLinearizable(0));
    let lost = Action::Swap { expected: None, new: 2, result: Some(Some(Some(1))) };
    let one = history(&[(0, Some(10), swap(1)), (0, Some(10), lost)]);
    assert_eq!(one.judge(STEPS), Judgement::Linearizable);
}

#[test]
fn keys_are_judged_one_by_one() {
    let mut history = history(&[(0, Some(1), Action::Put(1)), (2, Some(3), read(1))]);
    history.push(Operation { key: 7, action: read(5), from_us: 0, to_us: Some(1) });
    assert_eq!(history.judge(STEPS), Judgement::NotLinearizable(7));
}

/// Every order that time allows, every subset of the open operations.
fn explainable(operations: &[(u64, Option<u64>, Action)], done: u32, state: Value) -> bool {
    let left = || (0..operations.len()).filter(move |at| done & (1 << at) == 0);
    if left().all(|at| operations[at].1.is_none()) {
        return true;
    }
    left().any(|at| {
        let (from, _, action) = operations[at];
        let preceded = left().any(|other| operations[other].1.is_some_and(|to| to < from));
        let after = match action {
            Action::Put(value) => Some(Some(value)),
            Action::Delete { seen } => seen.is_none_or(|seen| seen == state).then_some(None),
            Action::Read(seen) => (seen == state).then_some(state),
            Action::Swap { expected, new, result } => match (state == expected, result) {
                (true, None | Some(None)) => Some(Some(new)),
                (false, None) => Some(state),
                (false, Some(Some(seen))) => (seen == state).then_some(state),
                (true, Some(Some(_))) | (false, Some(None)) => None,
            },
        };
        !preceded && after.is_some_and(|after| explainable(operations, done | (1 << at), after))
    })
}

#[test]
fn random_histories_are_judged_as_by_trying_every_order() {
    let mut verdicts = [0, 0];
    for seed in 0..20_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = random.u64(2..8);
        let mut operations = Vec::new();
        for serial in 1..=count {
            let from = random.u64(..40);
            let to = (random.u8(..5) > 0).then(|| from + random.u64(1..20));
            let some = |random: &mut fastrand::Rng| {
                let value = random.u64(..=count);
                (value > 0).then_some(value)
            };
            let action = match random.u8(..4) {
                0 => Action::Put(serial),
                1 => Action::Delete { seen: to.map(|_| some(&mut random)) },
                2 => Action::Swap {
                    expected: some(&mut random),
                    new: serial,
                    result: to.map(|_| random.bool().then(|| some(&mut random))),
                },
                _ => Action::Read(some(&mut random)),
            };
            operations.push((from, to, action));
        }
        // A read without an answer saw nothing.
        operations.retain(|(_, to, action)| to.is_some() || !matches!(action, Action::Read(_)));
        let expected = explainable(&operations, 0, None);
        let judged = history(&operations).judge(STEPS);
        let wanted = if expected { Judgement::Linearizable } else { Judgement::NotLinearizable(0) };
        assert_eq!(judged, wanted, "seed {seed}: {operations:?}");
        verdicts[usize::from(expected)] += 1;
    }
    assert!(verdicts.iter().all(|&count| count > 1_000), "both verdicts occur: {verdicts:?}");
}
