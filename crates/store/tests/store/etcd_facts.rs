//! What etcd 3.5.1 was seen to do, one fact a test. The numbers in them are its answers.

use bytes::Bytes;
use prost::Message;
use quorate_store::MemState;
use quorate_store::kv::TXN_DEPTH_MAX;
use quorate_types::kv::compare::Target;
use quorate_types::kv::outcome::Body;
use quorate_types::kv::{
    Command, Compact, Compare, CompareResult, DeleteRange, KeyValue, KvError, Op, Outcome, Put,
    Query, Range, RangeOutcome, SortOrder, SortTarget, Status, StatusOutcome, Txn, TxnOutcome,
    command, op, query,
};
use quorate_types::machine::ReadError;

use crate::host::{Host, error};

type Kv = Host<MemState>;

fn fresh() -> Kv {
    Host::new(MemState::new())
}

/// Keys a to e at revisions 2 to 6, then b again at 7.
fn letters() -> Kv {
    let mut kv = fresh();
    for (key, value) in [("a", "9"), ("b", "8"), ("c", "7"), ("d", "6"), ("e", "5"), ("b", "x")] {
        kv.apply(&write(put(key, value)));
    }
    kv
}

fn b(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn put(key: &'static str, value: &'static str) -> Put {
    Put { key: b(key), value: b(value), ..Put::default() }
}

fn keep_value(key: &'static str) -> Put {
    Put { key: b(key), ignore_value: true, ..Put::default() }
}

fn delete(key: &'static str, range_end: &'static str) -> DeleteRange {
    DeleteRange { key: b(key), range_end: b(range_end), prev_kv: false }
}

fn range(key: &'static str, range_end: &'static str) -> Range {
    Range { key: b(key), range_end: b(range_end), ..Range::default() }
}

fn at(key: &'static str, revision: i64) -> Range {
    Range { revision, ..range(key, "") }
}

fn of(body: command::Body) -> Command {
    Command { body: Some(body), ..Command::default() }
}

fn write(put: Put) -> Command {
    of(command::Body::Put(put))
}

fn remove(delete: DeleteRange) -> Command {
    of(command::Body::DeleteRange(delete))
}

fn compact(revision: i64) -> Command {
    of(command::Body::Compact(Compact { revision }))
}

fn drawn(at_revision: i64, command: Command) -> Command {
    Command { at_revision, ..command }
}

fn r(range: Range) -> Op {
    Op { body: Some(op::Body::Range(range)) }
}

fn p(put: Put) -> Op {
    Op { body: Some(op::Body::Put(put)) }
}

fn d(key: &'static str, range_end: &'static str) -> Op {
    Op { body: Some(op::Body::DeleteRange(delete(key, range_end))) }
}

fn t(txn: Txn) -> Op {
    Op { body: Some(op::Body::Txn(txn)) }
}

fn then(success: impl Into<Vec<Op>>) -> Txn {
    Txn { success: success.into(), ..Txn::default() }
}

fn run(kv: &mut Kv, txn: Txn) -> Outcome {
    kv.apply(&of(command::Body::Txn(txn)))
}

fn ops(kv: &mut Kv, success: impl Into<Vec<Op>>) -> Outcome {
    run(kv, then(success))
}

fn compare(key: &'static str, result: CompareResult, target: Target) -> Compare {
    Compare { key: b(key), range_end: Bytes::new(), result: result as i32, target: Some(target) }
}

fn succeeds(kv: &mut Kv, compare: Compare) -> bool {
    txn_of(&run(kv, Txn { compares: vec![compare], ..Txn::default() })).succeeded
}

fn txn_of(outcome: &Outcome) -> &TxnOutcome {
    match &outcome.body {
        Some(Body::Txn(txn)) => txn,
        other => panic!("{other:?} is not of a transaction"),
    }
}

fn ranged(outcome: &Outcome) -> &RangeOutcome {
    match &outcome.body {
        Some(Body::Range(range)) => range,
        other => panic!("{other:?} is not of a range"),
    }
}

fn deleted(outcome: &Outcome) -> i64 {
    match &outcome.body {
        Some(Body::DeleteRange(delete)) => delete.deleted,
        other => panic!("{other:?} is not of a delete"),
    }
}

/// The keys of a range's outcome, as one word.
fn keys(outcome: &Outcome) -> String {
    ranged(outcome).kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

fn responses(outcome: &Outcome) -> &[Outcome] {
    &txn_of(outcome).responses
}

fn revisions(outcome: &Outcome) -> Vec<i64> {
    responses(outcome).iter().map(|response| response.revision).collect()
}

#[test]
fn a_fresh_store_is_at_revision_1_and_its_first_write_is_2() {
    let mut kv = fresh();
    assert_eq!(kv.range(range("a", "")).revision, 1);
    assert_eq!(kv.apply(&write(put("a", "1"))).revision, 2);
}

#[test]
fn reads_failed_txns_and_deletes_of_nothing_take_no_revision() {
    let mut kv = letters();
    assert_eq!(kv.apply(&remove(delete("zz", ""))).revision, 7);
    assert_eq!(kv.apply(&remove(delete("x", "z"))).revision, 7);
    let compares = vec![compare("a", CompareResult::Equal, Target::Version(99))];
    let failure = vec![r(range("a", ""))];
    let failed = run(&mut kv, Txn { compares, success: vec![p(put("q", "1"))], failure });
    assert_eq!((failed.revision, txn_of(&failed).succeeded), (7, false));
    assert_eq!(keys(&responses(&failed)[0]), "a");
    assert_eq!(ops(&mut kv, []).revision, 7);
    assert_eq!(ops(&mut kv, [d("zz", "")]).revision, 7);
    assert_eq!(error(&kv.apply(&write(keep_value("zz")))), Some(KvError::KeyNotFound));
    assert_eq!(kv.apply(&write(put("a", ""))).revision, 8);
}

#[test]
fn count_is_of_the_range_whatever_limit_and_filters_say() {
    let kv = letters();
    let all = range("a", "z");
    let ask = |range: Range| {
        let outcome = kv.range(range);
        (keys(&outcome), ranged(&outcome).more, ranged(&outcome).count)
    };
    let found = |keys: &str, more| (keys.to_owned(), more, 5);
    assert_eq!(ask(Range { limit: 2, ..all.clone() }), found("ab", true));
    assert_eq!(ask(Range { limit: 5, ..all.clone() }), found("abcde", false));
    assert_eq!(ask(Range { limit: -2, ..all.clone() }), found("abcde", false));
    assert_eq!(ask(Range { limit: i64::MAX, ..all.clone() }), found("abcde", false));
    assert_eq!(ask(Range { limit: 1, min_mod_revision: 5, ..all.clone() }), found("b", true));
    assert_eq!(ask(Range { limit: 5, min_mod_revision: 5, ..all.clone() }), found("bde", false));
    assert_eq!(ask(Range { max_mod_revision: -1, ..all.clone() }), found("", false));
    assert_eq!(ask(Range { min_mod_revision: -1, limit: 1, ..all.clone() }), found("a", true));
    let count = Range { count_only: true, limit: 1, min_mod_revision: 5, ..all };
    assert_eq!(ask(count), found("", false));
    assert_eq!(ask(range("c", "a")), (String::new(), false, 0));
    assert_eq!(ask(Range { limit: 1, ..range("c", "") }), ("c".into(), false, 1));
}

#[test]
fn a_sort_target_without_an_order_sorts_only_what_the_limit_took() {
    let kv = letters();
    let ask = |sort_order: SortOrder, sort_target: SortTarget| {
        let (sort_order, sort_target) = (sort_order as i32, sort_target as i32);
        keys(&kv.range(Range { limit: 2, sort_order, sort_target, ..range("a", "z") }))
    };
    assert_eq!(ask(SortOrder::None, SortTarget::Mod), "ac");
    assert_eq!(ask(SortOrder::None, SortTarget::Value), "ca");
    assert_eq!(ask(SortOrder::None, SortTarget::Key), "ab");
    assert_eq!(ask(SortOrder::Ascend, SortTarget::Value), "ed");
    assert_eq!(ask(SortOrder::Descend, SortTarget::Key), "ed");
}

/// As etcd answers for few keys; for more its sort is unstable, and ours is not.
#[test]
fn ties_keep_the_order_of_keys_either_way() {
    let kv = letters();
    let sort_target = SortTarget::Version as i32;
    let descend = Range { sort_order: 2, sort_target, ..range("a", "z") };
    assert_eq!(keys(&kv.range(descend)), "bacde");
    let ascend = Range { sort_order: 1, sort_target, ..range("a", "z") };
    assert_eq!(keys(&kv.range(ascend)), "acdeb");
}

#[test]
fn values_sort_even_when_only_keys_are_asked_for() {
    let kv = letters();
    let sort_target = SortTarget::Value as i32;
    let outcome =
        kv.range(Range { keys_only: true, sort_order: 1, sort_target, ..range("a", "z") });
    assert_eq!(keys(&outcome), "edcab");
    assert!(ranged(&outcome).kvs.iter().all(|kv| kv.value.is_empty()));
}

#[test]
fn an_unknown_sort_is_refused() {
    let mut kv = letters();
    for bad in [
        Range { sort_order: 7, ..range("a", "z") },
        Range { sort_target: 5, ..range("a", "z") },
        Range { sort_target: -1, ..range("a", "z") },
    ] {
        assert_eq!(error(&kv.range(bad.clone())), Some(KvError::InvalidSort));
        let txn = ops(&mut kv, [p(put("a", "no")), r(bad)]);
        assert_eq!((error(&txn), txn.revision), (Some(KvError::InvalidSort), 7));
    }
}

#[test]
fn each_operation_of_a_txn_names_the_revision_as_of_itself() {
    let mut kv = letters();
    let nested = t(then([r(range("a", "")), p(put("n", "1"))]));
    let steps = [
        r(range("a", "")),
        d("nope", ""),
        p(Put { prev_kv: true, ..put("a", "n") }),
        r(range("a", "")),
        d("nope", ""),
        nested,
        r(at("a", 3)),
    ];
    let outcome = ops(&mut kv, steps);
    assert_eq!(outcome.revision, 8);
    // The header of a nested transaction has none.
    assert_eq!(revisions(&outcome), [7, 7, 8, 8, 8, 0, 8]);
    assert_eq!(revisions(&responses(&outcome)[5]), [8, 8]);
    let seen = |at: usize| ranged(&responses(&outcome)[at]).kvs[0].clone();
    assert_eq!((seen(0).version, seen(3).version, seen(3).mod_revision), (1, 2, 8));
    assert_eq!(seen(6).mod_revision, 2, "an old revision reads as it was before the transaction");
    let Some(Body::Put(put)) = &responses(&outcome)[2].body else { panic!("{outcome:?}") };
    assert_eq!(put.prev_kv, Some(seen(0)));
}

#[test]
fn nested_compares_see_the_state_before_the_transaction() {
    let mut kv = letters();
    let nested = Txn {
        compares: vec![compare("pre", CompareResult::Greater, Target::Version(0))],
        success: vec![p(put("s", "saw"))],
        failure: vec![p(put("s", "did not see"))],
    };
    ops(&mut kv, [p(put("pre", "1")), t(nested)]);
    assert_eq!(ranged(&kv.range(range("s", ""))).kvs[0].value, b("did not see"));
}

#[test]
fn a_missing_key_compares_as_zeroes_and_has_no_value() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let kv = &mut letters();
    assert!(!succeeds(kv, compare("miss", NotEqual, Target::Value(b("x")))));
    assert!(!succeeds(kv, compare("miss", Equal, Target::Value(b("")))));
    assert!(succeeds(kv, compare("miss", Equal, Target::CreateRevision(0))));
    assert!(succeeds(kv, compare("miss", Less, Target::ModRevision(1))));
    assert!(succeeds(kv, compare("miss", Equal, Target::Lease(0))));
    assert!(succeeds(kv, compare("miss", Greater, Target::Version(-1))));
    assert!(!succeeds(kv, compare("miss", NotEqual, Target::Version(0))));
}

#[test]
fn a_compare_without_target_is_of_the_version_against_0() {
    let kv = &mut letters();
    for (key, result, expected) in [
        ("miss", CompareResult::Equal, true),
        ("a", CompareResult::Greater, true),
        ("a", CompareResult::Equal, false),
    ] {
        let compare = Compare { target: None, ..compare(key, result, Target::Version(0)) };
        assert_eq!(succeeds(kv, compare), expected);
    }
}

#[test]
fn an_unknown_compare_result_holds() {
    let compare = compare("a", CompareResult::Equal, Target::Version(77));
    assert!(succeeds(&mut letters(), Compare { result: 9, ..compare }));
}

#[test]
fn a_compare_of_a_range_must_hold_for_all_its_keys() {
    use CompareResult::{Equal, Greater, NotEqual};
    let kv = &mut letters();
    let over = |end, compare: Compare| Compare { range_end: b(end), ..compare };
    assert!(succeeds(kv, over("f", compare("a", Greater, Target::Version(0)))));
    assert!(!succeeds(kv, over("f", compare("a", Equal, Target::Version(1)))));
    assert!(succeeds(kv, over("\0", compare("c", Equal, Target::Version(1)))));
    assert!(succeeds(kv, over("y", compare("x", Equal, Target::Version(0)))), "no keys");
    assert!(!succeeds(kv, over("y", compare("x", NotEqual, Target::Value(b("1"))))), "no keys");
    assert!(succeeds(kv, over("a", compare("z", Equal, Target::Version(0)))), "no range");
}

#[test]
fn writing_a_key_twice_is_refused_where_etcd_refuses_it() {
    let put_d = || p(put("d", "1"));
    let either = |success, failure| t(Txn { compares: Vec::new(), success, failure });
    let refused = [
        vec![put_d(), put_d()],
        vec![put_d(), d("d", "")],
        vec![d("c", "e"), put_d()],
        vec![t(then([d("d", "")])), t(then([put_d()]))],
        vec![t(then([put_d()])), either(Vec::new(), vec![put_d()])],
        vec![d("d", ""), either(Vec::new(), vec![put_d()])],
    ];
    for success in refused {
        let mut kv = letters();
        let outcome = ops(&mut kv, success.clone());
        assert_eq!(error(&outcome), Some(KvError::DuplicateKey), "{success:?}");
        // Also in a branch that would not run.
        let outcome = run(&mut kv, Txn { failure: success, ..Txn::default() });
        assert_eq!((error(&outcome), outcome.revision), (Some(KvError::DuplicateKey), 7));
    }
    let accepted = [
        vec![t(then([put_d()])), t(then([d("d", "")]))],
        vec![put_d(), d("a", "\0")],
        vec![d("a", "\0"), put_d()],
        vec![put_d(), d("z", "a")],
        vec![t(then([d("a", "\0")])), put_d()],
        vec![either(vec![put_d()], vec![put_d()])],
        vec![either(vec![put_d()], vec![d("d", "")])],
        vec![d("a", ""), d("a", "b")],
    ];
    for success in accepted {
        let outcome = ops(&mut letters(), success.clone());
        assert_eq!((error(&outcome), outcome.revision), (None, 8), "{success:?}");
    }
}

#[test]
fn a_key_put_and_deleted_in_one_revision_is_gone() {
    let mut kv = letters();
    let outcome = ops(&mut kv, [p(put("new", "1")), d("n", "\0"), r(range("new", ""))]);
    assert_eq!(deleted(&responses(&outcome)[1]), 1);
    assert_eq!(keys(&responses(&outcome)[2]), "");
    assert_eq!(kv.apply(&write(put("other", "1"))).revision, 9);
    assert_eq!(keys(&kv.range(at("new", 8))), "");
}

#[test]
fn a_key_deleted_and_put_in_one_revision_begins_anew() {
    let mut kv = letters();
    ops(&mut kv, [d("b", "\0"), p(put("b", "anew"))]);
    let begun = KeyValue {
        key: b("b"),
        create_revision: 8,
        mod_revision: 8,
        version: 1,
        value: b("anew"),
        lease: 0,
    };
    assert_eq!(ranged(&kv.range(range("b", ""))).kvs, std::slice::from_ref(&begun));
    kv.apply(&write(put("b", "later")));
    assert_eq!(ranged(&kv.range(at("b", 8))).kvs, [begun]);
}

#[test]
fn a_deleted_key_begins_anew_and_its_past_can_be_read() {
    let mut kv = letters();
    let outcome = kv.apply(&remove(DeleteRange { prev_kv: true, ..delete("b", "d") }));
    let Some(Body::DeleteRange(gone)) = &outcome.body else { panic!("{outcome:?}") };
    assert_eq!((outcome.revision, gone.deleted, gone.prev_kvs.len()), (8, 2, 2));
    assert_eq!(gone.prev_kvs[0].version, 2);
    kv.apply(&write(put("b", "again")));
    let now = ranged(&kv.range(range("b", ""))).kvs[0].clone();
    assert_eq!((now.create_revision, now.mod_revision, now.version), (9, 9, 1));
    assert_eq!(keys(&kv.range(Range { revision: 8, ..range("a", "z") })), "ade");
    let old = kv.range(Range { revision: 7, ..range("a", "z") });
    assert_eq!((keys(&old).as_str(), old.revision), ("abcde", 9));
}

#[test]
fn a_lease_that_does_not_exist_attaches_to_nothing() {
    let mut kv = letters();
    let leased = Put { lease: 77, ..put("x", "x") };
    assert_eq!(error(&kv.apply(&write(leased.clone()))), Some(KvError::LeaseNotFound));
    let keeping = Put { lease: 77, ..keep_value("missing") };
    assert_eq!(error(&kv.apply(&write(keeping.clone()))), Some(KvError::LeaseNotFound));
    // In a transaction it is the other way round.
    assert_eq!(error(&ops(&mut kv, [p(keeping)])), Some(KvError::KeyNotFound));
    let outcome = ops(&mut kv, [p(put("y", "1")), p(leased)]);
    assert_eq!((error(&outcome), outcome.revision), (Some(KvError::LeaseNotFound), 7));
}

#[test]
fn keeping_a_value_counts_as_a_write() {
    let mut kv = letters();
    let outcome = kv.apply(&write(Put { prev_kv: true, ignore_lease: true, ..keep_value("b") }));
    let Some(Body::Put(put)) = &outcome.body else { panic!("{outcome:?}") };
    assert_eq!(put.prev_kv.as_ref().map(|kv| kv.mod_revision), Some(7));
    let now = ranged(&kv.range(range("b", ""))).kvs[0].clone();
    assert_eq!((now.value, now.version, now.mod_revision), (b("x"), 3, 8));
}

#[test]
fn a_txn_that_fails_at_one_operation_leaves_nothing_of_the_others() {
    let mut kv = letters();
    kv.apply(&compact(6));
    let missing = || p(keep_value("missing"));
    let first = || p(put("first", "1"));
    for (steps, expected) in [
        (vec![first(), r(at("a", 5))], KvError::Compacted),
        (vec![first(), r(at("a", 9999))], KvError::FutureRevision),
        (vec![first(), r(at("a", 8))], KvError::FutureRevision),
        (vec![first(), missing()], KvError::KeyNotFound),
        (vec![first(), t(then([d("a", "\0"), r(at("a", 5))]))], KvError::Compacted),
        (vec![r(at("a", 9999)), missing()], KvError::KeyNotFound),
    ] {
        let outcome = ops(&mut kv, steps.clone());
        assert_eq!((error(&outcome), outcome.revision), (Some(expected), 7), "{steps:?}");
        assert_eq!(ranged(&kv.range(range("a", "z"))).count, 5);
    }
    let fails_elsewhere = Txn { failure: vec![r(at("a", 5))], ..then([first()]) };
    assert_eq!(error(&run(&mut kv, fails_elsewhere)), None);
}

/// etcd 3.5.1 checks against the state before the transaction, and then stops every member when the
/// key is gone at its turn. Here it is an error like any other.
#[test]
fn keeping_a_value_that_the_transaction_deleted_is_an_error() {
    let mut kv = letters();
    let outcome = ops(&mut kv, [d("b", "\0"), p(keep_value("b"))]);
    assert_eq!((error(&outcome), outcome.revision), (Some(KvError::KeyNotFound), 7));
    assert_eq!(keys(&kv.range(range("a", "z"))), "abcde");
}

#[test]
fn compaction_takes_any_revision_above_the_floor_up_to_now() {
    let mut kv = letters();
    let status = |kv: &Kv| {
        let query = Query { body: Some(query::Body::Status(Status {})), caller: None };
        let outcome = kv.read(&query).unwrap();
        let Some(Body::Status(StatusOutcome { compact_revision, .. })) = outcome.body else {
            panic!("{outcome:?}");
        };
        (outcome.revision, compact_revision)
    };
    assert_eq!(status(&kv), (7, 0));
    assert_eq!(error(&kv.apply(&compact(8))), Some(KvError::FutureRevision));
    assert_eq!(error(&kv.apply(&compact(-1))), Some(KvError::Compacted));
    assert_eq!(error(&kv.apply(&compact(0))), None, "once");
    assert_eq!(error(&kv.apply(&compact(0))), Some(KvError::Compacted));
    assert_eq!(kv.apply(&compact(6)).revision, 7);
    assert_eq!(status(&kv), (7, 6));
    assert_eq!(error(&kv.apply(&compact(6))), Some(KvError::Compacted));
    assert_eq!(error(&kv.apply(&compact(5))), Some(KvError::Compacted));
    assert_eq!(error(&kv.apply(&compact(7))), None);
}

#[test]
fn reading_at_the_floor_works_and_below_it_does_not() {
    let mut kv = letters();
    kv.apply(&compact(6));
    for swept in [false, true] {
        let at = |revision| kv.range(Range { revision, ..range("a", "z") });
        assert_eq!(error(&at(5)), Some(KvError::Compacted));
        assert_eq!(keys(&at(6)), "abcde", "swept: {swept}");
        assert_eq!(ranged(&at(6)).kvs[1].value, b("8"));
        assert_eq!(error(&at(99)), Some(KvError::FutureRevision));
        let count = Range { revision: 5, count_only: true, ..range("a", "z") };
        assert_eq!(error(&kv.range(count)), Some(KvError::Compacted));
        while kv.sweep(1) {}
    }
}

#[test]
fn a_negative_revision_reads_as_now_but_not_in_a_transaction() {
    let mut kv = fresh();
    assert_eq!(error(&kv.range(at("a", -2))), None);
    assert_eq!(error(&ops(&mut kv, [r(at("a", -1))])), None);
    assert_eq!(error(&ops(&mut kv, [r(at("a", -2))])), Some(KvError::Compacted));
    kv.apply(&compact(0));
    assert_eq!(error(&ops(&mut kv, [r(at("a", -1))])), Some(KvError::Compacted));
    assert_eq!(error(&kv.range(at("a", -1))), None);
}

#[test]
fn a_users_key_like_the_systems_is_a_key_like_any_other() {
    let mut kv = fresh();
    kv.apply(&write(put("\0sys", "1")));
    kv.apply(&write(put("\u{1}x", "1")));
    assert_eq!(ranged(&kv.range(range("\0", "\0"))).count, 2);
    assert_eq!(ranged(&kv.range(range("", "\0"))).count, 2);
}

#[test]
fn a_revision_that_was_drawn_is_taken_or_left_but_never_given_again() {
    let mut kv = letters();
    assert_eq!(kv.apply(&drawn(20, write(put("a", "1")))).revision, 20);
    for stale in [20, 19, 1, 1 << 53, i64::MAX] {
        let outcome = kv.apply(&drawn(stale, write(put("a", "stale"))));
        assert_eq!((error(&outcome), outcome.revision), (Some(KvError::StaleRevision), 20));
    }
    assert_eq!(error(&kv.apply(&drawn(-1, write(put("a", "1"))))), Some(KvError::Malformed));
    // Unused, it is a gap.
    assert_eq!(kv.apply(&drawn(30, remove(delete("zz", "")))).revision, 20);
    assert_eq!(error(&kv.apply(&drawn(30, compact(20)))), Some(KvError::StaleRevision));
    assert_eq!(kv.apply(&write(put("a", "2"))).revision, 31);
    let last = (1 << 53) - 1;
    assert_eq!(kv.apply(&drawn(last, write(put("a", "3")))).revision, last);
    assert_eq!(error(&kv.apply(&write(put("a", "4")))), Some(KvError::StaleRevision));
    assert_eq!(keys(&kv.range(at("a", 25))), "a");
    assert_eq!(kv.range(at("a", last)).revision, last);
}

#[test]
fn what_is_no_command_is_malformed() {
    let mut kv = letters();
    let empty = Command::default().encode_to_vec();
    for bytes in [b"\xff\xff\xff".to_vec(), empty] {
        let outcome = kv.apply_all([bytes.into()]).pop().unwrap();
        assert_eq!((error(&outcome), outcome.revision), (Some(KvError::Malformed), 7));
    }
    assert_eq!(error(&kv.apply(&write(put("", "1")))), Some(KvError::Malformed));
    assert_eq!(error(&ops(&mut kv, [p(put("", "1"))])), Some(KvError::Malformed));
    assert_eq!(error(&ops(&mut kv, [Op::default()])), Some(KvError::Malformed));
}

#[test]
fn what_is_no_query_is_malformed() {
    let kv = letters();
    let writes =
        Query { body: Some(query::Body::Txn(then([t(then([p(put("a", "1"))]))]))), caller: None };
    for query in [b"\xff\xff\xff".to_vec(), Vec::new(), writes.encode_to_vec()] {
        let read = kv.read_bytes(query.into());
        assert!(matches!(read, Err(ReadError::Malformed(_))), "{read:?}");
    }
}

#[test]
fn transactions_nest_only_so_deep() {
    let nested =
        |depth: usize| (1..depth).fold(then([p(put("deep", "1"))]), |inner, _| then([t(inner)]));
    let mut kv = letters();
    assert_eq!(run(&mut kv, nested(TXN_DEPTH_MAX)).revision, 8);
    for depth in [TXN_DEPTH_MAX + 1, 60, 1000] {
        assert_eq!(error(&run(&mut kv, nested(depth))), Some(KvError::Malformed), "{depth}");
    }
}
