//! Snapshots: what is exported is what is installed, whole and nothing else, whatever lies around it.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_store::{
    Export, GroupRow, GroupRows, Install, MemState, Overlay, SnapshotError, SnapshotHeader,
    SnapshotReader, StateEngine,
};
use quorate_types::kv::{Command, Put, command};
use quorate_types::machine::RowScope;
use quorate_types::{EntryId, GroupId, KeyRange, LogIndex, Membership, NodeId, StateBatch, Term};

use crate::generate::command;
use crate::host::{GROUP, Host, rows};

/// A snapshot of the group of these tests.
fn export(engine: &dyn StateEngine, group: GroupId, of: &GroupRows) -> Vec<u8> {
    let range = match of {
        GroupRows::Own(_) => None,
        GroupRows::Keys(range) => Some(range.clone()),
    };
    let mut export = Export::new(engine.view(), group, of.clone(), range).unwrap().unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = export.next_piece().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

fn read<'b>(bytes: &'b [u8], of: &GroupRows) -> Result<SnapshotReader<&'b [u8]>, SnapshotError> {
    SnapshotReader::open(bytes, |_| Ok(of.clone()))
}

fn install(engine: &dyn StateEngine, bytes: &[u8], of: &GroupRows) {
    Install::stage(read(bytes, of).unwrap(), engine).unwrap().run(engine).unwrap();
}

fn all_keys() -> GroupRows {
    GroupRows::new(RowScope::Keyspace, GROUP, Some(&KeyRange::all()))
}

/// Group rows need voters, which the host of the other tests does without.
fn with_voters(engine: &dyn StateEngine, group: GroupId) {
    let row = GroupRow::load(group, &*engine.view()).unwrap().unwrap_or_default();
    let mut overlay = Overlay::new(engine.view());
    let membership = Membership::of_voters([NodeId(1), NodeId(2)]);
    overlay.put_group_row(group, &GroupRow { membership, ..row });
    engine.write(overlay.into_rows()).unwrap();
}

fn put(key: &str, value: &str) -> Command {
    let put = Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.to_owned().into(),
        ..Put::default()
    };
    Command { body: Some(command::Body::Put(put)), ..Command::default() }
}

/// Rows of other groups, which no snapshot of a group may take or touch.
fn strangers(engine: &dyn StateEngine) -> BTreeMap<Bytes, Bytes> {
    let mut overlay = Overlay::new(engine.view());
    for group in [1, 3, u64::MAX] {
        overlay.put_group_row(GroupId(group), &GroupRow::default());
        overlay.scoped(RowScope::Group, GroupId(group)).put(b"row", b"value");
    }
    let written = overlay.into_rows();
    let rows = written.iter().map(|(key, value)| (key.clone(), value.cloned().unwrap()));
    let rows = rows.collect();
    engine.write(written).unwrap();
    rows
}

fn check_copy<E: StateEngine>(
    from: Host<impl StateEngine>,
    mut to: Host<E>,
    engine_of: impl FnOnce(Host<E>) -> E,
    before: &[Command],
) {
    with_voters(&from.engine, GROUP);
    for command in before {
        to.apply(command);
    }
    let others = strangers(&to.engine);
    let snapshot = export(&from.engine, GROUP, &all_keys());
    let header = read(&snapshot, &all_keys()).unwrap().verify().unwrap();
    assert_eq!(Some(header.row), GroupRow::load(GROUP, &*from.engine.view()).unwrap());
    install(&to.engine, &snapshot, &all_keys());
    let mut expected = rows(&from.engine);
    expected.extend(others);
    assert_eq!(rows(&to.engine), expected);
    // A machine opened from it is the same machine: it goes on with the same revisions.
    let mut copy = Host::new(engine_of(to));
    assert_eq!(copy.meta(), from.meta());
    let mut from = from;
    assert_eq!(copy.apply(&put("next", "one")), from.apply(&put("next", "one")));
}

/// Where a shard may begin or end: mostly among the clients' keys, sometimes among the system's.
fn stored_key() -> impl Strategy<Value = Vec<u8>> {
    let among =
        |space: &'static [u8]| vec(any::<u8>(), 0..2).prop_map(move |key| [space, &key].concat());
    prop_oneof![1 => among(b""), 1 => among(b"\x01l"), 4 => among(b"\x02")]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_installed_snapshot_is_the_keyspace_it_was_taken_of(
        commands in vec(command(), 1..40),
        before in vec(command(), 0..20),
        sweeps in 0usize..4,
    ) {
        let mut from = Host::new(MemState::new());
        for command in &commands {
            from.apply(command);
        }
        for _ in 0..sweeps {
            from.sweep(3);
        }
        check_copy(from, Host::new(MemState::new()), |host| host.engine, &before);
    }

    #[test]
    fn a_range_takes_its_own_rows_and_leaves_the_others(
        commands in vec(command(), 1..40),
        others in vec(command(), 1..40),
        start in stored_key(),
        end in proptest::option::of(stored_key()),
    ) {
        let range = KeyRange { start: start.into(), end: end.map(Bytes::from) };
        let of = GroupRows::new(RowScope::Keyspace, GROUP, Some(&range));
        let (mut from, mut to) = (Host::new(MemState::new()), Host::new(MemState::new()));
        for command in &commands {
            from.apply(command);
        }
        for command in &others {
            to.apply(command);
        }
        with_voters(&from.engine, GROUP);
        let inside = |engine: &MemState| -> BTreeMap<Bytes, Bytes> {
            let spans = of.spans();
            let within = |key: &Bytes| spans.iter().any(|span| span.start <= key && key < &span.end);
            let owned = |key: &Bytes, value: &Bytes| within(key) && of.contains(key, value).unwrap();
            engine.rows().into_iter().filter(|(key, value)| owned(key, value)).collect()
        };
        let (mine, theirs) = (inside(&from.engine), inside(&to.engine));
        let mut expected = to.engine.rows();
        expected.retain(|key, _| !theirs.contains_key(key));
        expected.extend(mine);
        let row = GroupRow::load(GROUP, &*from.engine.view()).unwrap().unwrap();
        expected.insert(Bytes::copy_from_slice(&quorate_store::layout::group(GROUP)), row.encode());
        install(&to.engine, &export(&from.engine, GROUP, &of), &of);
        prop_assert_eq!(to.engine.rows(), expected);
    }

    #[test]
    fn a_damaged_snapshot_is_an_error_and_never_a_panic(
        commands in vec(command(), 0..10),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut host = Host::new(MemState::new());
        for command in &commands {
            host.apply(command);
        }
        with_voters(&host.engine, GROUP);
        let snapshot = export(&host.engine, GROUP, &all_keys());
        let verify = |bytes: &[u8]| read(bytes, &all_keys()).and_then(SnapshotReader::verify);
        prop_assert!(verify(&snapshot).is_ok());
        prop_assert!(verify(&snapshot[..cut.index(snapshot.len())]).is_err());
        prop_assert!(verify(&[&snapshot[..], &[0]].concat()).is_err());
        let mut damaged = snapshot;
        let at = at.index(damaged.len());
        damaged[at] ^= 1u8 << bit;
        prop_assert!(verify(&damaged).is_err());
    }

    #[test]
    fn random_bytes_are_no_snapshot_and_never_panic(
        bytes in vec(any::<u8>(), 0..300),
        begins_well in any::<bool>(),
        header in vec(any::<u8>(), 0..60),
    ) {
        let bytes = if begins_well { [b"QSNAP\0\x01", &bytes[..]].concat() } else { bytes };
        prop_assert!(read(&bytes, &all_keys()).and_then(SnapshotReader::verify).is_err());
        let _ = SnapshotHeader::decode(header.into());
    }
}

type Row<'r> = (&'r [u8], &'r [u8]);

/// Frames with right checksums, so that only what they hold is wrong.
fn forged(rows: &[Row<'_>], count: u64) -> Vec<u8> {
    let mut host = Host::new(MemState::new());
    host.apply(&put("a", "b"));
    with_voters(&host.engine, GROUP);
    let header = Export::new(host.engine.view(), GROUP, all_keys(), None).unwrap().unwrap();
    let header = header.header().encode();
    let mut bytes = b"QSNAP\0\x01".to_vec();
    let mut frame = |kind: u8, body: &[u8]| {
        let head = [&[kind][..], &u32::try_from(body.len()).unwrap().to_le_bytes()].concat();
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), body);
        let before = crc32c::crc32c(&bytes);
        bytes.extend([&head[..], &checksum.to_le_bytes(), body].concat());
        before
    };
    frame(1, &header);
    let mut chunk = bytes::BytesMut::new();
    for (key, value) in rows {
        quorate_types::codec::put_bytes(&mut chunk, key);
        quorate_types::codec::put_bytes(&mut chunk, value);
    }
    frame(2, &chunk);
    let before = crc32c::crc32c(&bytes);
    let end = [&[8, count as u8, 0x15][..], &before.to_le_bytes()].concat();
    let head = [&[3][..], &u32::try_from(end.len()).unwrap().to_le_bytes()].concat();
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), &end);
    bytes.extend([&head[..], &checksum.to_le_bytes(), &end].concat());
    bytes
}

#[test]
fn rows_that_are_not_the_groups_or_out_of_order_are_refused() {
    let verify = |rows: &[Row<'_>], count| {
        let result = read(&forged(rows, count), &all_keys()).and_then(SnapshotReader::verify);
        result.map(drop).map_err(|error| error.to_string())
    };
    let (one, two): (Row<'_>, Row<'_>) = ((b"C\x02a", b"1"), (b"C\x02b", b"2"));
    assert_eq!(verify(&[one, two], 2), Ok(()));
    let refused = |rows: &[Row<'_>], count, why: &str| {
        let error = verify(rows, count).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused(&[two, one], 2, "does not follow");
    refused(&[one, one], 2, "does not follow");
    refused(&[one, two], 3, "another number of rows");
    refused(&[one, (b"M\0\0\0\0\0\0\0\x02", b"")], 2, "is not the group's");
    refused(&[one, (b"U\0\0\0\0\0\0\0\x03x", b"")], 2, "is not the group's");
}

#[test]
fn a_snapshot_from_the_future_says_so() {
    let mut bytes = forged(&[(b"C\x02a", b"1")], 1);
    bytes[6] = 2;
    assert!(matches!(read(&bytes, &all_keys()), Err(SnapshotError::Version(2))));
}

#[test]
fn an_announced_part_above_its_bound_is_refused_unread() {
    let mut bytes = b"QSNAP\0\x01".to_vec();
    bytes.extend([&[1][..], &u32::MAX.to_le_bytes(), &[0; 4]].concat());
    assert!(matches!(read(&bytes, &all_keys()), Err(SnapshotError::TooLarge { .. })));
}

#[test]
fn a_space_of_its_own_goes_over_whole_and_in_many_chunks() {
    let (from, to) = (MemState::new(), MemState::new());
    let (group, of) = (GroupId(7), GroupRows::Own(GroupId(7)));
    let mut overlay = Overlay::new(from.view());
    for row in 0u32..3_000 {
        let value = vec![row as u8; 1_000];
        overlay.scoped(RowScope::Group, group).put(&row.to_be_bytes(), &value);
    }
    let membership = Membership::of_voters([NodeId(1)]);
    let applied = EntryId::new(Term(2), LogIndex(9));
    overlay.put_group_row(group, &GroupRow { applied, membership, ..GroupRow::default() });
    from.write(overlay.into_rows()).unwrap();
    // What the receiver had of the group goes.
    let mut overlay = Overlay::new(to.view());
    overlay.scoped(RowScope::Group, group).put(b"\xff\xff", b"old");
    to.write(overlay.into_rows()).unwrap();
    let others = strangers(&to);

    let snapshot = export(&from, group, &of);
    let mut pieces = Export::new(from.view(), group, of.clone(), None).unwrap().unwrap();
    let mut count = 0;
    while let Some(piece) = pieces.next_piece().unwrap() {
        assert!(piece.len() < 300 << 10, "a piece of {} bytes", piece.len());
        count += 1;
    }
    assert!(count > 10, "{count} pieces");
    install(&to, &snapshot, &of);
    let mut expected = from.rows();
    expected.extend(others);
    assert_eq!(to.rows(), expected);
    to.crash(0);
    assert_eq!(to.rows(), expected, "what was installed is durable");
}

#[test]
fn a_group_that_has_applied_nothing_has_no_snapshot() {
    let engine = MemState::new();
    assert!(Export::new(engine.view(), GROUP, all_keys(), None).unwrap().is_none());
}

#[test]
fn views_see_the_old_rows_or_the_new_ones() {
    check_views(&MemState::new(), &MemState::new());
}

fn check_views(from: &dyn StateEngine, to: &dyn StateEngine) {
    let of = GroupRows::Own(GroupId(7));
    let write = |engine: &dyn StateEngine, value: &[u8]| {
        let mut overlay = Overlay::new(engine.view());
        overlay.scoped(RowScope::Group, GroupId(7)).put(b"k", value);
        let membership = Membership::of_voters([NodeId(1)]);
        overlay.put_group_row(GroupId(7), &GroupRow { membership, ..GroupRow::default() });
        engine.write(overlay.into_rows()).unwrap();
    };
    write(from, b"new");
    write(to, b"old");
    let key = [&quorate_store::layout::own_prefix(GroupId(7))[..], b"k"].concat();
    let snapshot = export(from, GroupId(7), &of);
    let staged = Install::stage(read(&snapshot, &of).unwrap(), to).unwrap();
    let (view, shared) = (to.view(), to.shared_view());
    assert_eq!(to.durable(&key).unwrap(), None);
    staged.run(to).unwrap();
    assert_eq!(view.get(&key).unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(shared.rows().get(&key).unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(to.view().get(&key).unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(to.shared_view().rows().get(&key).unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(to.durable(&key).unwrap().as_deref(), Some(&b"new"[..]));
}

#[cfg(feature = "rocks")]
mod rocks {
    use std::path::Path;

    use quorate_store::{RocksConfig, RocksState};
    use tempfile::TempDir;

    use super::*;

    fn open(path: &Path) -> RocksState {
        RocksState::open(&RocksConfig::new(path)).unwrap()
    }

    /// Files that wait to be ingested.
    fn staged(path: &Path) -> usize {
        std::fs::read_dir(path.join("staged")).map_or(0, Iterator::count)
    }

    #[test]
    fn views_of_rocks_see_the_old_rows_or_the_new_ones() {
        let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        check_views(&open(from.path()), &open(to.path()));
        assert_eq!(staged(to.path()), 0);
    }

    #[test]
    fn a_large_snapshot_becomes_several_tables_and_one_change() {
        let (from, directory) = (MemState::new(), TempDir::new().unwrap());
        let (group, of) = (GroupId(7), GroupRows::Own(GroupId(7)));
        // Random bytes, so that compression does not make one table of them.
        let mut random = 1u64;
        let mut value = || {
            let mut bytes = Vec::with_capacity(1 << 20);
            while bytes.len() < 1 << 20 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                bytes.extend_from_slice(&random.to_le_bytes());
            }
            bytes
        };
        let fill = |engine: &dyn StateEngine,
                    rows: std::ops::Range<u32>,
                    value: &mut dyn FnMut() -> Vec<u8>| {
            for row in rows {
                let mut overlay = Overlay::new(engine.view());
                overlay.scoped(RowScope::Group, group).put(&row.to_be_bytes(), &value());
                engine.write(overlay.into_rows()).unwrap();
            }
        };
        fill(&from, 0..150, &mut value);
        with_voters(&from, group);
        let to = open(directory.path());
        fill(&to, 100..260, &mut || vec![1; 100]);
        let others = strangers(&to);
        let snapshot = export(&from, group, &of);
        let install = Install::stage(read(&snapshot, &of).unwrap(), &to).unwrap();
        assert_eq!(staged(directory.path()), 3);
        install.run(&to).unwrap();
        assert_eq!(staged(directory.path()), 0);
        let mut expected = from.rows();
        expected.extend(others);
        assert!(rows(&to) == expected);
        drop(to);
        assert!(rows(&open(directory.path())) == expected);
    }

    #[test]
    fn what_was_staged_and_not_ingested_is_removed_now_or_at_the_next_start() {
        let (from, directory) = (MemState::new(), TempDir::new().unwrap());
        let (group, of) = (GroupId(7), GroupRows::Own(GroupId(7)));
        with_voters(&from, group);
        let snapshot = export(&from, group, &of);
        let to = open(directory.path());
        drop(Install::stage(read(&snapshot, &of).unwrap(), &to).unwrap());
        assert_eq!(staged(directory.path()), 0);
        std::mem::forget(Install::stage(read(&snapshot, &of).unwrap(), &to).unwrap());
        assert_eq!(staged(directory.path()), 1);
        // The file of a process that is gone: the engine cannot be opened twice, its path can be read.
        let image = TempDir::new().unwrap();
        drop(open(image.path()));
        std::fs::create_dir(image.path().join("staged")).unwrap();
        std::fs::write(image.path().join("staged/0.sst"), b"torn").unwrap();
        drop(open(image.path()));
        assert_eq!(staged(image.path()), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn a_snapshot_in_rocks_is_the_keyspace_it_was_taken_of(
            commands in vec(command(), 1..40),
            before in vec(command(), 0..20),
            flush in any::<bool>(),
        ) {
            let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            let mut from = Host::new(open(one.path()));
            for command in &commands {
                from.apply(command);
            }
            let to = Host::new(open(two.path()));
            if flush {
                to.engine.flush().unwrap();
            }
            let reopen = |host: Host<RocksState>| {
                drop(host);
                open(two.path())
            };
            check_copy(from, to, reopen, &before);
        }
    }
}
