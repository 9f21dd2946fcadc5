//! The promises of the engines and of the overlay.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_store::{GroupRow, MemState, Overlay, Rows, ScopedView, SharedView, StateEngine};
use quorate_types::machine::{Direction, RowScope};
use quorate_types::{EntryId, GroupId, LogIndex, StateBatch, StateReader, Term};

use crate::host::rows;

type Map = BTreeMap<Bytes, Bytes>;
/// A row set or removed.
type Change = (Bytes, Option<Bytes>);

/// A row of one of the keyspace's tags, so that both scopes may name it.
fn key() -> impl Strategy<Value = Bytes> {
    vec(prop_oneof![Just(0u8), Just(1), Just(0xff)], 0..3)
        .prop_map(|rest| [&[b'C'][..], &rest].concat().into())
}

fn change() -> impl Strategy<Value = (Bytes, Option<Bytes>)> {
    let value = vec(any::<u8>(), 0..3).prop_map(Bytes::from);
    (key(), proptest::option::weighted(0.7, value))
}

/// What of one group's part of a batch is written, and whether it is taken back.
fn parts() -> impl Strategy<Value = Vec<(Vec<Change>, bool)>> {
    vec((vec(change(), 0..6), any::<bool>()), 0..4)
}

fn set(map: &mut Map, changes: &[Change]) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

fn write(batch: &mut dyn StateBatch, changes: &[Change]) {
    for (key, value) in changes {
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        }
    }
}

/// A scan's first rows, up to `max`.
fn scanned(
    reader: &dyn StateReader,
    start: &[u8],
    end: Option<&[u8]>,
    direction: Direction,
    max: usize,
) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    reader
        .scan(start, end, direction, &mut |key, value| {
            if found.len() == max {
                return ControlFlow::Break(());
            }
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn expected(
    map: &Map,
    start: &[u8],
    end: Option<&[u8]>,
    direction: Direction,
    max: usize,
) -> Vec<(Bytes, Bytes)> {
    let inside =
        map.iter().filter(|(key, _)| &key[..] >= start && end.is_none_or(|end| &key[..] < end));
    let mut rows: Vec<_> = inside.map(|(key, value)| (key.clone(), value.clone())).collect();
    if direction == Direction::Backward {
        rows.reverse();
    }
    rows.truncate(max);
    rows
}

fn batch(changes: &[Change]) -> Rows {
    changes.iter().cloned().collect()
}

fn check_overlay(
    engine: &dyn StateEngine,
    stored: &[Change],
    parts: &[(Vec<Change>, bool)],
    range: &(Bytes, Option<Bytes>),
    max: usize,
) {
    engine.write(batch(stored)).unwrap();
    let mut map = Map::new();
    set(&mut map, stored);
    for (scope, group) in [(RowScope::Keyspace, GroupId(1)), (RowScope::Group, GroupId(u64::MAX))] {
        let mut map = if scope == RowScope::Keyspace { map.clone() } else { Map::new() };
        let mut overlay = Overlay::new(engine.view());
        for (changes, kept) in parts {
            let savepoint = overlay.savepoint();
            write(&mut overlay.scoped(scope, group), changes);
            if *kept {
                set(&mut map, changes);
            } else {
                overlay.rollback(savepoint);
            }
        }
        let reader = overlay.scoped(scope, group);
        for direction in [Direction::Forward, Direction::Backward] {
            let (start, end) = (&range.0[..], range.1.as_deref());
            assert_eq!(
                scanned(&reader, start, end, direction, max),
                expected(&map, start, end, direction, max)
            );
        }
        assert_eq!(reader.get(&range.0).unwrap(), map.get(&range.0).cloned());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn an_overlay_reads_as_if_it_were_written(
        stored in vec(change(), 0..8),
        parts in parts(),
        range in (key(), proptest::option::of(key())),
        max in prop_oneof![Just(usize::MAX), 0usize..4],
    ) {
        check_overlay(&MemState::new(), &stored, &parts, &range, max);
    }

    #[test]
    fn a_crash_leaves_the_rows_after_some_prefix_of_the_batches(
        batches in vec(vec(change(), 0..4), 0..8),
        flushed in 0usize..8,
        kept in 0usize..8,
    ) {
        let engine = MemState::new();
        let mut history = vec![Map::new()];
        for (at, changes) in batches.iter().enumerate() {
            engine.write(batch(changes)).unwrap();
            let mut map = history[at].clone();
            set(&mut map, changes);
            history.push(map);
            if at + 1 == flushed {
                engine.flush().unwrap();
            }
        }
        let flushed = if flushed <= batches.len() { flushed } else { 0 };
        for (key, _) in batches.iter().flatten() {
            prop_assert_eq!(engine.durable(key).unwrap(), history[flushed].get(key).cloned());
        }
        prop_assert_eq!(engine.unflushed(), batches.len() - flushed);
        engine.crash(kept);
        let left = (flushed + kept).min(batches.len());
        prop_assert_eq!(&engine.rows(), &history[left]);
        engine.crash(0);
        prop_assert_eq!(&engine.rows(), &history[left]);
    }
}

#[test]
fn a_view_sees_no_later_batch() {
    check_views(&MemState::new());
}

fn check_views(engine: &dyn StateEngine) {
    let row = |value: &'static [u8]| [(Bytes::from_static(b"Ck"), Some(Bytes::from_static(value)))];
    engine.write(batch(&row(b"1"))).unwrap();
    let view = engine.view();
    engine.write(batch(&row(b"2"))).unwrap();
    engine.flush().unwrap();
    assert_eq!(view.get(b"Ck").unwrap().as_deref(), Some(&b"1"[..]));
    let seen = scanned(&*view, b"", None, Direction::Forward, 9);
    assert_eq!(seen, [(Bytes::from_static(b"Ck"), Bytes::from_static(b"1"))]);
    assert_eq!(engine.view().get(b"Ck").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(engine.view().get(b"missing").unwrap(), None);
}

#[test]
fn a_shared_view_is_one_until_the_next_write() {
    check_shared_views(&MemState::new());
}

fn check_shared_views(engine: &dyn StateEngine) {
    let write = |applied: u64| {
        let mut overlay = Overlay::new(engine.view());
        let row =
            GroupRow { applied: EntryId::new(Term(1), LogIndex(applied)), ..GroupRow::default() };
        overlay.put_group_row(GroupId(3), &row);
        engine.write(overlay.into_rows()).unwrap();
    };
    let applied = |view: &SharedView| view.group_row(GroupId(3)).unwrap().applied.index;
    write(7);
    let first = engine.shared_view();
    assert!(Arc::ptr_eq(&first, &engine.shared_view()));
    assert_eq!(applied(&first), LogIndex(7));
    write(8);
    let second = engine.shared_view();
    assert_eq!((applied(&first), applied(&second)), (LogIndex(7), LogIndex(8)));
    assert_eq!(second.rows().get(b"missing").unwrap(), None);
    assert_eq!(*second.group_row(GroupId(4)).unwrap(), GroupRow::default());
}

#[test]
fn groups_with_their_own_space_do_not_see_each_other() {
    let engine = MemState::new();
    let mut overlay = Overlay::new(engine.view());
    for group in [1, 2, u64::MAX] {
        let mut batch = overlay.scoped(RowScope::Group, GroupId(group));
        batch.put(b"", &group.to_be_bytes());
        batch.put(b"\xff\xff", &group.to_be_bytes());
    }
    overlay.scoped(RowScope::Keyspace, GroupId(1)).put(b"C1", b"keyspace");
    assert!(!overlay.is_empty() && overlay.size_bytes() > 6 * 17);
    engine.write(overlay.into_rows()).unwrap();
    let view = engine.view();
    for group in [1, 2, u64::MAX] {
        let own = ScopedView::new(&*view, RowScope::Group, GroupId(group));
        let found = scanned(&own, b"", None, Direction::Forward, 9);
        let value = Bytes::copy_from_slice(&group.to_be_bytes());
        let rows = [(Bytes::new(), value.clone()), (Bytes::from_static(b"\xff\xff"), value)];
        assert_eq!(found, rows);
        assert_eq!(own.get(b"C1").unwrap(), None);
    }
    let keyspace = ScopedView::new(&*view, RowScope::Keyspace, GroupId(1));
    assert_eq!(scanned(&keyspace, b"", None, Direction::Backward, 9).len(), 1);
}

#[test]
#[should_panic(expected = "not one of its own")]
fn a_machine_of_the_keyspace_cannot_write_a_groups_row() {
    let engine = MemState::new();
    let mut overlay = Overlay::new(engine.view());
    overlay.scoped(RowScope::Keyspace, GroupId(1)).put(b"M12345678", b"");
}

#[test]
fn a_removed_group_row_is_gone() {
    let engine = MemState::new();
    let mut overlay = Overlay::new(engine.view());
    overlay.put_group_row(GroupId(3), &GroupRow::default());
    let rows_with_it = overlay.into_rows();
    assert_eq!((rows_with_it.len(), rows_with_it.is_empty()), (1, false));
    engine.write(rows_with_it).unwrap();
    assert!(engine.size_bytes() > 9);
    let mut overlay = Overlay::new(engine.view());
    overlay.delete_group_row(GroupId(3));
    engine.write(overlay.into_rows()).unwrap();
    assert!(rows(&engine).is_empty());
}

#[cfg(feature = "rocks")]
mod rocks {
    use std::fs;

    use quorate_store::{RocksConfig, RocksState};
    use tempfile::TempDir;

    use super::*;
    use crate::generate::command;
    use crate::host::Host;

    fn open(dir: &TempDir) -> RocksState {
        RocksState::open(&RocksConfig::new(dir.path())).unwrap()
    }

    #[test]
    fn space_of_what_was_removed_and_overwritten_comes_back_when_it_is_asked_for() {
        let dir = TempDir::new().unwrap();
        let engine = open(&dir);
        let mut random = fastrand::Rng::with_seed(3);
        let mut value = || Bytes::from((0..64 << 10).map(|_| random.u8(..)).collect::<Vec<_>>());
        let key = |number: u32| Bytes::from(format!("C{number:03}"));
        for _ in 0..2 {
            let all = (0..100).map(|number| (key(number), Some(value())));
            engine.write(batch(&all.collect::<Vec<_>>())).unwrap();
            engine.flush().unwrap();
        }
        let removed: Vec<_> = (1..100).map(|number| (key(number), None)).collect();
        engine.write(batch(&removed)).unwrap();
        engine.flush().unwrap();
        let before = engine.size_bytes();
        assert!(before > 12 << 20, "{before}");
        engine.compact(&|| false).unwrap();
        assert_eq!(engine.size_bytes(), before, "it was to stop before the first piece");
        engine.compact(&|| true).unwrap();
        let after = engine.size_bytes();
        assert!(after < 1 << 20, "{after}");
        assert!(engine.view().get(&key(0)).unwrap().is_some());
        assert!(engine.view().get(&key(1)).unwrap().is_none());
    }

    /// What a crash now would leave: the files as they are, while the engine still runs.
    fn crash_image(dir: &TempDir) -> TempDir {
        let image = TempDir::new().unwrap();
        for file in fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            if file.file_name() != "LOCK" {
                fs::copy(file.path(), image.path().join(file.file_name())).unwrap();
            }
        }
        image
    }

    #[test]
    fn a_view_sees_no_later_batch() {
        check_views(&open(&TempDir::new().unwrap()));
    }

    #[test]
    fn a_shared_view_is_one_until_the_next_write() {
        let dir = TempDir::new().unwrap();
        let engine = open(&dir);
        check_shared_views(&engine);
        let view = engine.shared_view();
        drop(engine);
        assert_eq!(view.group_row(GroupId(3)).unwrap().applied.index, LogIndex(8));
    }

    #[test]
    fn what_was_flushed_survives_and_a_clean_close_flushes() {
        let dir = TempDir::new().unwrap();
        let engine = open(&dir);
        let row = |key: &'static [u8]| [(Bytes::from_static(key), Some(Bytes::from_static(b"v")))];
        engine.write(batch(&row(b"C1"))).unwrap();
        assert_eq!(engine.durable(b"C1").unwrap(), None);
        engine.flush().unwrap();
        engine.write(batch(&row(b"C2"))).unwrap();
        assert_eq!(engine.durable(b"C1").unwrap().as_deref(), Some(&b"v"[..]));
        assert_eq!(engine.durable(b"C2").unwrap(), None);
        assert_eq!(rows(&engine).len(), 2);
        assert!(engine.size_bytes() > 0);
        let image = crash_image(&dir);
        assert_eq!(rows(&open(&image)).into_keys().collect::<Vec<_>>(), [&b"C1"[..]]);
        drop(engine);
        assert_eq!(rows(&open(&dir)).len(), 2);
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = TempDir::new().unwrap();
        let engine = open(&dir);
        let error = RocksState::open(&RocksConfig::new(dir.path())).unwrap_err();
        assert!(error.to_string().contains("lock"), "{error}");
        assert!(format!("{engine:?}").contains("RocksState"));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_a_missing_row() {
        let dir = TempDir::new().unwrap();
        let engine = open(&dir);
        engine
            .write(batch(&[(Bytes::from_static(b"C1"), Some(Bytes::from(vec![7; 9000])))]))
            .unwrap();
        drop(engine);
        for file in fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "sst") {
                let mut bytes = fs::read(&file).unwrap();
                bytes[..20].iter_mut().for_each(|byte| *byte ^= 0xff);
                fs::write(&file, bytes).unwrap();
            }
        }
        let engine = open(&dir);
        assert!(engine.view().get(b"C1").is_err());
        let visited = engine
            .view()
            .scan(b"C", None, Direction::Forward, &mut |_, _| ControlFlow::Continue(()));
        assert!(visited.is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn an_overlay_over_rocks_reads_as_if_it_were_written(
            stored in vec(change(), 0..8),
            parts in parts(),
            range in (key(), proptest::option::of(key())),
            max in prop_oneof![Just(usize::MAX), 0usize..4],
        ) {
            check_overlay(&open(&TempDir::new().unwrap()), &stored, &parts, &range, max);
        }

        #[test]
        fn rocks_and_memory_agree_row_for_row(
            commands in vec(command(), 1..60),
            flushes in vec(any::<bool>(), 60),
        ) {
            let dir = TempDir::new().unwrap();
            let mut rocks = Host::new(open(&dir));
            let mut memory = Host::new(MemState::new());
            for (command, flush) in commands.iter().zip(flushes) {
                prop_assert_eq!(rocks.apply(command), memory.apply(command));
                if flush {
                    rocks.engine.flush().unwrap();
                    prop_assert_eq!(rocks.sweep(3), memory.sweep(3));
                }
            }
            prop_assert_eq!(rows(&rocks.engine), memory.engine.rows());
            drop(rocks);
            let reopened = Host::new(open(&dir));
            prop_assert_eq!(rows(&reopened.engine), memory.engine.rows());
            prop_assert_eq!(reopened.meta(), memory.meta());
        }
    }
}
