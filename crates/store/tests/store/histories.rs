//! Random histories: every outcome and every readable revision as in the model, whatever is swept,
//! lost and replayed in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;
use quorate_store::layout::{self, Stamp, TAG_CURRENT, TAG_EVENT, TAG_HISTORY};
use quorate_store::{
    GroupRow, KeyspaceCheck, MemState, ScopedView, SharedView, StateEngine, check_keyspace,
};
use quorate_types::MachineKind;
use quorate_types::kv::{
    Command, Compact, DeleteRange, LeaseGrant, LeaseKeys, LeaseKeysOutcome, LeaseRevoke, Leases,
    LeasesOutcome, Op, Put, Query, Range, Txn, command, op, outcome, query,
};
use quorate_types::machine::RowScope;

use crate::generate::{command, range};
use crate::host::{GROUP, Host, error, rows};
use crate::model::Model;

/// What happens to a replica.
#[derive(Clone, Debug)]
enum Step {
    Apply(Box<Command>),
    /// Compact at this many hundredths of the present revision.
    Compact(i64),
    Read(Box<Range>),
    Sweep(usize),
    Flush,
    /// Lose what was not flushed but so many batches, and start anew.
    Crash(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => command().prop_map(|command| Step::Apply(Box::new(command))),
        2 => (0i64..=100).prop_map(Step::Compact),
        12 => range().prop_map(|range| Step::Read(Box::new(range))),
        6 => (0usize..6).prop_map(Step::Sweep),
        2 => Just(Step::Flush),
        1 => (0usize..8).prop_map(Step::Crash),
    ]
}

fn compact(revision: i64) -> Command {
    Command { body: Some(command::Body::Compact(Compact { revision })), ..Command::default() }
}

fn everything(revision: i64) -> Range {
    let zero = Bytes::from_static(b"\0");
    Range { key: zero.clone(), range_end: zero, revision, ..Range::default() }
}

/// Every revision that may be read reads as in the model, and the one below the floor does not.
fn check_all_revisions<E: StateEngine>(host: &Host<E>, model: &Model) {
    for revision in (model.floor - 1).max(1)..=model.revision() + 1 {
        let range = everything(revision);
        assert_eq!(host.range(range.clone()), model.range(&range), "at revision {revision}");
    }
}

/// The leases and their keys are the model's.
fn check_leases(host: &Host<MemState>, model: &Model) {
    assert_eq!(host.lease_count(), model.leases.len() as u64);
    let ask = |body| host.read(&Query { body: Some(body), caller: None }).unwrap().body.unwrap();
    let ids = model.leases.keys().copied().collect();
    let listed = ask(query::Body::Leases(Leases {}));
    assert_eq!(listed, outcome::Body::Leases(LeasesOutcome { ids }));
    for id in model.leases.keys().copied().chain([99]) {
        let (exists, keys) = (model.leases.contains_key(&id), model.attached(id));
        let found = ask(query::Body::LeaseKeys(LeaseKeys { id }));
        assert_eq!(found, outcome::Body::LeaseKeys(LeaseKeysOutcome { keys, exists }));
    }
}

/// Rows of the keyspace by tag.
fn tagged<E: StateEngine>(host: &Host<E>, tag: u8) -> BTreeMap<Bytes, Bytes> {
    rows(&host.engine).into_iter().filter(|(key, _)| key[0] == tag).collect()
}

/// How many rows the keyspace has.
fn keyspace_rows<E: StateEngine>(host: &Host<E>) -> usize {
    rows(&host.engine).keys().filter(|key| key[0] <= TAG_HISTORY).count()
}

/// A swept keyspace holds no row below the floor that no read and no watch can see.
fn check_swept<E: StateEngine>(host: &Host<E>, model: &Model) {
    for row in tagged(host, TAG_EVENT).keys() {
        assert!(layout::parse_event(row).unwrap().revision >= model.floor, "event below the floor");
    }
    let mut below = BTreeMap::new();
    for (row, value) in tagged(host, TAG_HISTORY) {
        let (key, stamp) = layout::parse_history(&row).unwrap();
        if stamp.revision < model.floor {
            assert_ne!(&value[..], [2], "tombstone of {key:?} below the floor");
            assert_eq!(
                below.insert(key.clone(), stamp),
                None,
                "{key:?} has two rows below the floor"
            );
        }
    }
    let Ok(last) = usize::try_from(model.revision()) else { return };
    assert!(below.len() <= last, "at most one row for each write");
}

/// What an offline check finds.
fn misfits(host: &Host<MemState>) -> Vec<String> {
    check(&host.engine).damage
}

fn check(engine: &MemState) -> KeyspaceCheck {
    let view = engine.view();
    let row = GroupRow::load(GROUP, &*view).unwrap().unwrap_or_default();
    let scoped = ScopedView::new(&*view, RowScope::Keyspace, GROUP);
    check_keyspace(&row.meta, &scoped).unwrap()
}

#[test]
fn leases_are_counted_while_their_machine_lives() {
    let mut host = Host::new(MemState::new());
    let grant = |id| Command {
        body: Some(command::Body::LeaseGrant(LeaseGrant { id, ttl_s: 60 })),
        ..Command::default()
    };
    let revoke = LeaseRevoke { id: 2, expired_in_term: 0 };
    for command in [grant(1), grant(2), grant(3), grant(3)] {
        host.apply(&command);
    }
    assert_eq!(host.lease_count(), 3);
    host.apply(&Command { body: Some(command::Body::LeaseRevoke(revoke)), ..Command::default() });
    assert_eq!(host.lease_count(), 2);
    host.restart();
    assert_eq!(host.lease_count(), 2);
    let figures = host.end().figures();
    assert_eq!(figures.iter().map(|figure| figure.value).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_row_that_is_lost_or_of_another_time_is_found_by_a_check() {
    let mut host = Host::new(MemState::new());
    let key = Bytes::from_static(b"a");
    let put = |value: &'static [u8]| Command {
        caller: None,
        at_revision: 0,
        body: Some(command::Body::Put(Put {
            key: Bytes::from_static(b"a"),
            value: Bytes::from_static(value),
            ..Put::default()
        })),
    };
    for value in [b"one", b"two"] {
        host.apply(&put(value));
    }
    let found = check(&host.engine);
    assert_eq!((found.revision, found.keys, found.versions, found.events), (3, 1, 2, 2));
    assert_eq!(found.damage, Vec::<String>::new());
    let whole = rows(&host.engine);
    // Every row of the keyspace is needed; so is the meta that says how far it is.
    for lost in whole.keys() {
        let engine = MemState::new();
        let kept = whole.iter().filter(|(row, _)| *row != lost);
        engine
            .write(kept.map(|(row, value)| (row.clone(), Some(value.clone()))).collect())
            .unwrap();
        assert!(check(&engine).damage_count > 0, "without {}", lost.escape_ascii());
    }
    // The older of two versions in the place of the newer one, and a row that is none.
    let older = &whole[&layout::history(&key, Stamp { revision: 2, sub: 0 })[..]];
    let newer = layout::history(&key, Stamp { revision: 3, sub: 0 });
    let current = layout::current(&key);
    for (row, value) in [(newer, older.clone()), (current, Bytes::from_static(b"?"))] {
        let engine = MemState::new();
        let mut changed = whole.clone();
        changed.insert(row.into(), value);
        engine.write(changed.into_iter().map(|(row, value)| (row, Some(value))).collect()).unwrap();
        assert!(check(&engine).damage_count > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_history_gives_the_models_outcomes_and_reads(steps in vec(step(), 1..60)) {
        let mut host = Host::new(MemState::new());
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Apply(command) => {
                    prop_assert_eq!(host.apply(&command), model.apply(&command), "{:?}", command);
                }
                Step::Compact(hundredths) => {
                    let command = compact(model.revision() * hundredths / 100);
                    prop_assert_eq!(host.apply(&command), model.apply(&command));
                }
                Step::Read(range) => {
                    prop_assert_eq!(host.range((*range).clone()), model.range(&range), "{:?}", range);
                }
                Step::Sweep(budget) => {
                    let before = keyspace_rows(&host);
                    let more = host.sweep(budget);
                    let removed = before - keyspace_rows(&host);
                    prop_assert!(removed <= budget.max(3), "removed {removed} with budget {budget}");
                    prop_assert!(!more || removed > 0, "a sweep that is not done removes something");
                }
                Step::Flush => host.engine.flush().unwrap(),
                Step::Crash(kept) => {
                    host.engine.crash(kept);
                    host.restart();
                }
            }
        }
        check_all_revisions(&host, &model);
        check_leases(&host, &model);
        prop_assert_eq!(misfits(&host), Vec::<String>::new());
        while host.sweep(3) {}
        check_all_revisions(&host, &model);
        prop_assert_eq!(misfits(&host), Vec::<String>::new());
        check_swept(&host, &model);
        let swept = rows(&host.engine);
        prop_assert!(!host.sweep(100), "nothing is left");
        prop_assert_eq!(rows(&host.engine), swept);
        host.engine.crash(0);
        host.restart();
        check_all_revisions(&host, &model);
    }

    #[test]
    fn what_was_read_lately_misleads_no_view_however_old_it_is(
        steps in vec((command(), any::<bool>(), vec((any::<Index>(), range()), 0..6)), 1..60),
    ) {
        let mut host = Host::new(MemState::new());
        let mut views = vec![host.engine.shared_view()];
        let check = |host: &Host<MemState>, views: &[Arc<SharedView>], reads: &[(Index, Range)]| {
            for (at, range) in reads {
                let single = Range { range_end: Bytes::new(), ..range.clone() };
                let view = &views[at.index(views.len())];
                let [remembering, looking] = host.range_in(view, &single);
                assert_eq!(remembering, looking, "{single:?}");
            }
        };
        for (command, ends, reads) in steps {
            host.apply_while(&command, |host| check(host, &views, &reads));
            views.push(host.engine.shared_view());
            check(&host, &views, &reads);
            if ends && views.len() % 8 == 0 {
                host.restart();
            }
        }
    }

    #[test]
    fn equal_logs_give_equal_rows_however_they_are_batched(
        commands in vec(command(), 1..40),
        cuts in vec(1usize..8, 40),
    ) {
        let mut one_by_one = Host::new(MemState::new());
        let single: Vec<_> = commands.iter().map(|command| one_by_one.apply(command)).collect();
        let mut batched = Host::new(MemState::new());
        let mut rest = &commands[..];
        let mut outcomes = Vec::new();
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            outcomes.extend(batched.apply_all(now.iter().map(|command| command.encode_to_vec().into())));
            rest = later;
        }
        prop_assert_eq!(outcomes, single);
        prop_assert_eq!(batched.engine.rows(), one_by_one.engine.rows());
        prop_assert_eq!(batched.meta(), one_by_one.meta());
    }

    #[test]
    fn a_replica_that_lost_its_tail_replays_to_the_same_rows(
        commands in vec(command(), 1..40),
        flushed in 0usize..40,
        kept in 0usize..10,
    ) {
        let mut host = Host::new(MemState::new());
        for (at, command) in commands.iter().enumerate() {
            host.apply(command);
            if at == flushed {
                host.engine.flush().unwrap();
            }
        }
        let before = host.engine.rows();
        host.engine.crash(kept);
        host.restart();
        prop_assert_eq!(host.engine.rows(), before);
    }

    #[test]
    fn a_transaction_of_reads_says_as_a_query_what_it_says_as_a_command(
        commands in vec(command(), 1..20),
        ranges in vec(range(), 1..4),
    ) {
        let mut host = Host::new(MemState::new());
        commands.iter().for_each(|command| {
            host.apply(command);
        });
        let success = ranges.into_iter().map(|range| Op { body: Some(op::Body::Range(range)) });
        let txn = Txn { success: success.collect(), ..Txn::default() };
        let asked = host.read(&Query { body: Some(query::Body::Txn(txn.clone())), caller: None }).unwrap();
        let before = rows(&host.engine).len();
        let applied = host.apply(&Command { body: Some(command::Body::Txn(txn)), ..Command::default() });
        prop_assert_eq!(asked, applied);
        prop_assert_eq!(rows(&host.engine).len(), before);
    }

    #[test]
    fn random_bytes_are_outcomes_and_change_nothing(bytes in vec(any::<u8>(), 0..60)) {
        let mut host = Host::new(MemState::new());
        host.apply_all([Bytes::from(bytes.clone())]);
        let _ = host.read_bytes(bytes.into());
    }

    #[test]
    fn damaged_commands_never_panic(
        command in command(), at in any::<Index>(), bit in 0u8..8,
    ) {
        let mut host = Host::new(MemState::new());
        let mut bytes = command.encode_to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        host.apply_all([Bytes::from(bytes)]);
    }
}

#[test]
fn the_cost_of_a_sweep_follows_the_writes_and_not_the_keys() {
    let mut host = Host::new(MemState::new());
    for key in 0u32..500 {
        host.apply(&put(&key.to_be_bytes(), b"1"));
    }
    let revision = host.range(everything(0)).revision;
    assert_eq!(error(&host.apply(&compact(revision))), None);
    while host.sweep(64) {}
    let rows_before = rows(&host.engine).len();
    // Three writes to one key among 500: the sweep has three events to look at, and no more.
    (0..3).for_each(|_| drop(host.apply(&put(&7u32.to_be_bytes(), b"2"))));
    host.apply(&compact(revision + 3));
    let mut rounds = 1;
    while host.sweep(1) {
        rounds += 1;
    }
    // The event at the old floor, and two above it with the values that they replaced; and a last look.
    assert_eq!(rounds, 4);
    // What the write at the new floor has overwritten stays until the floor has passed that write.
    assert_eq!(rows(&host.engine).len(), rows_before + 1);
}

#[test]
fn long_histories_of_neighbouring_keys_read_right_at_every_revision() {
    let mut host = Host::new(MemState::new());
    let mut model = Model::new();
    for round in 0..60u8 {
        for (key, every) in [(&b"a"[..], 1), (b"a\0", 2), (b"a\0\0", 20), (b"b", 3), (b"c", 30)] {
            if round % every == 0 {
                let put = put(key, &[round]);
                assert_eq!(host.apply(&put), model.apply(&put));
            }
            if round % (7 * every) == 3 {
                let delete = DeleteRange { key: Bytes::copy_from_slice(key), ..Default::default() };
                let body = Some(command::Body::DeleteRange(delete));
                let delete = Command { body, ..Command::default() };
                assert_eq!(host.apply(&delete), model.apply(&delete));
            }
        }
    }
    for key in [&b"a"[..], b"a\0", b"c", b"d"] {
        for revision in 1..=model.revision() {
            let key = Bytes::copy_from_slice(key);
            let single = Range { key, revision, ..Range::default() };
            assert_eq!(host.range(single.clone()), model.range(&single));
        }
    }
    check_all_revisions(&host, &model);
    let floor = compact(model.revision() / 2);
    assert_eq!(host.apply(&floor), model.apply(&floor));
    while host.sweep(10) {}
    check_all_revisions(&host, &model);
    check_swept(&host, &model);
}

#[test]
fn a_failed_engine_is_an_error_and_not_an_outcome() {
    let engine = MemState::new();
    let mut host = Host::new(engine.clone());
    host.apply(&put(b"a", b"1"));
    engine.fail(true);
    assert!(
        host.read(&Query { body: Some(query::Body::Range(everything(0))), caller: None }).is_err()
    );
    assert!(engine.write(quorate_store::Rows::default()).is_err());
    assert!(engine.flush().is_err() && engine.durable(b"x").is_err());
    engine.fail(false);
    host.restart();
    assert_eq!(host.log_len(), 1);
}

fn put(key: &[u8], value: &[u8]) -> Command {
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    let put = Put { key, value, ..Default::default() };
    Command { body: Some(command::Body::Put(put)), ..Command::default() }
}

#[test]
fn rows_are_where_the_layout_says() {
    let mut host = Host::new(MemState::new());
    host.apply(&put(b"a\0b", b"value"));
    let stamp = Stamp { revision: 2, sub: 0 };
    let tags: Vec<_> = rows(&host.engine).keys().cloned().collect();
    let expected = [
        layout::current(b"a\0b"),
        layout::event(stamp).to_vec(),
        layout::history(b"a\0b", stamp),
        layout::group(GROUP).to_vec(),
    ];
    assert_eq!(tags, expected.map(Bytes::from));
    assert_eq!(tagged(&host, TAG_CURRENT).len(), 1);
}
