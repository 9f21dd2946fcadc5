//! A directory as a node leaves it, looked at, and looked at after its disk has lost something.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use prost::Message as _;
use quorate_group::Descriptor;
use quorate_store::{GroupRow, KvKind, Overlay, RocksConfig, RocksState, StateEngine};
use quorate_types::kv::{Command, Put, command};
use quorate_types::machine::RowScope;
use quorate_types::{
    Committed, Entry, EntryId, GroupId, HardState, Incarnation, LogIndex, MachineKind, Membership,
    NodeId, Payload, SnapshotMeta, Term,
};
use quorate_wal::rocks::{RocksLog, RocksOptions};
use quorate_wal::{LogStore, Write};
use tempfile::TempDir;

use super::*;
use crate::identity::{DataDir, Identity};

const GROUP: GroupId = GroupId(2);

fn id(index: u64) -> EntryId {
    EntryId::new(Term(1), LogIndex(index))
}

fn put(index: u64) -> Bytes {
    let key = format!("key {}", index % 7).into();
    let body = command::Body::Put(Put { key, value: vec![7; 50].into(), ..Put::default() });
    Command { body: Some(body), ..Command::default() }.encode_to_vec().into()
}

/// Node n1 with one group of the keyspace: entries 2 to `last` in its log, of which those up to `applied`
/// are in its state.
fn data_dir(last: u64, applied: u64) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = DataDir::open(directory.path()).unwrap();
    let identity = Identity {
        cluster_name: "c".into(),
        cluster_token: "t".into(),
        node_name: "n1".into(),
        node: NodeId(1),
        incarnation: Incarnation(7),
        cluster_digest: [3; 32],
        founders: BTreeMap::from([(NodeId(1), Incarnation(7))]),
        restored: None,
    };
    data_dir.store(&identity).unwrap();
    let mut log = RocksLog::open(&data_dir.log_path(), &RocksOptions::default()).unwrap();
    let range = Some(quorate_types::KeyRange::all());
    let descriptor = Descriptor { kind: "kv".into(), range };
    let snapshot = SnapshotMeta { last: id(1), membership: Membership::of_voters([NodeId(1)]) };
    let create = Write::Create { group: GROUP, label: descriptor.encode(), snapshot };
    log.write(&[create]).unwrap();
    for index in 2..=last {
        let entries = vec![Entry { id: id(index), payload: Payload::Command(put(index)) }];
        let commit = LogIndex(index - 1);
        let hard_state = Some(HardState { term: Term(1), vote: None, commit });
        log.write(&[Write::Append { group: GROUP, hard_state, entries }]).unwrap();
    }
    log.seal().unwrap();
    let state = RocksState::open(&RocksConfig::new(data_dir.state_path())).unwrap();
    apply(&state, applied);
    state.flush().unwrap();
    directory
}

fn apply(state: &RocksState, applied: u64) {
    let mut overlay = Overlay::new(state.view());
    let mut batch = overlay.scoped(RowScope::Keyspace, GROUP);
    let mut machine = KvKind::default().open(GROUP, &[], &batch).unwrap();
    let committed: Vec<_> =
        (2..=applied).map(|index| Committed { id: id(index), command: put(index) }).collect();
    machine.apply(&committed, &mut batch).unwrap();
    let (applied, meta) = (id(applied), machine.meta());
    let row = GroupRow { applied, kind: "kv".into(), meta, ..GroupRow::default() };
    overlay.put_group_row(GROUP, &row);
    state.write(overlay.into_rows()).unwrap();
}

fn look(directory: &Path) -> Report {
    let diary = tempfile::tempdir().unwrap();
    check(directory, diary.path()).unwrap()
}

fn dumped(directory: &Path, from: u64, to: u64) -> Result<Vec<DumpedEntry>, InspectError> {
    let (diary, mut entries) = (tempfile::tempdir().unwrap(), Vec::new());
    let each = &mut |entry| entries.push(entry);
    dump(directory, GROUP, LogIndex(from), LogIndex(to), diary.path(), each)?;
    Ok(entries)
}

/// Every file below a directory, with its bytes and the time of its last change.
fn files(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut all = BTreeMap::new();
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            all.insert(path.clone(), (Vec::new(), path.metadata().unwrap().modified().unwrap()));
            all.extend(files(&path));
        } else {
            let changed = path.metadata().unwrap().modified().unwrap();
            all.insert(path.clone(), (fs::read(&path).unwrap(), changed));
        }
    }
    all
}

#[test]
fn a_whole_directory_has_no_damage_and_says_what_it_holds() {
    let directory = data_dir(40, 30);
    let report = look(directory.path());
    assert_eq!(report.damage, Vec::<String>::new());
    let found = report.found.join("\n");
    for line in [
        "node n1 (",
        "log: 1 groups, 40 batches synced ever",
        "log of group 2 (kv): behind 1@1, up to 40@1, term 1, commit 39 or more",
        "state of group 2 (kv): applied 30@1",
        "keyspace of group 2: revision 30, 7 keys, 29 versions, 29 events",
    ] {
        assert!(found.contains(line), "{line} is not in\n{found}");
    }
}

#[test]
fn a_dump_has_the_entries_that_were_asked_for() {
    let directory = data_dir(40, 30);
    let entries = dumped(directory.path(), 5, 7).unwrap();
    let indexes: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    assert_eq!(indexes, [id(5), id(6), id(7)]);
    assert_eq!((entries[0].kind, &*entries[0].what), ("command", "put \"key 5\" (50 B)"));
    assert_eq!(entries[0].bytes, put(5).len());
    assert_eq!(dumped(directory.path(), 0, u64::MAX - 1).unwrap().len(), 39);
    assert_eq!(dumped(directory.path(), 41, 50).unwrap(), []);
    let (diary, each) = (tempfile::tempdir().unwrap(), &mut |_| ());
    let other = dump(directory.path(), GroupId(9), id(1).index, id(2).index, diary.path(), each);
    assert!(matches!(other, Err(InspectError::Log(LogError::UnknownGroup(GroupId(9))))));
}

#[test]
fn looking_changes_nothing() {
    let directory = data_dir(40, 30);
    // A batch that was being written when the power went is no part of the log; the next start cuts it.
    let log = fs::read_dir(directory.path().join("log")).unwrap().map(|file| file.unwrap().path());
    let log = log.filter(|file| file.extension().is_some_and(|it| it == "log")).max().unwrap();
    let mut torn = fs::read(&log).unwrap();
    // The head of a fragment that never came.
    torn.extend_from_within(..7);
    fs::write(&log, torn).unwrap();
    let before = files(directory.path());
    assert_eq!(look(directory.path()).damage, Vec::<String>::new());
    assert_eq!(dumped(directory.path(), 0, u64::MAX - 1).unwrap().len(), 39);
    assert!(files(directory.path()) == before, "a file was changed, made or removed");
}

#[test]
fn a_directory_in_use_or_of_nobody_is_refused() {
    let directory = data_dir(3, 2);
    let diary = tempfile::tempdir().unwrap();
    let in_use = DataDir::open(directory.path()).unwrap();
    let refused = check(directory.path(), diary.path()).unwrap_err();
    assert!(refused.to_string().ends_with("is in use by another process"), "{refused}");
    assert!(dumped(directory.path(), 1, 2).is_err());
    drop(in_use);
    assert_eq!(look(directory.path()).damage, Vec::<String>::new());
    let empty = tempfile::tempdir().unwrap();
    let refused = check(empty.path(), diary.path());
    assert!(matches!(refused, Err(InspectError::NotADataDir(_))));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn a_state_beyond_its_log_or_of_another_one_is_damage() {
    let directory = data_dir(10, 10);
    assert_eq!(look(directory.path()).damage, Vec::<String>::new());
    let state = || RocksState::open(&RocksConfig::new(directory.path().join("state"))).unwrap();
    let with_row = |applied: EntryId| {
        let state = state();
        let mut row = GroupRow::load(GROUP, &*state.view()).unwrap().unwrap();
        row.applied = applied;
        let mut overlay = Overlay::new(state.view());
        overlay.put_group_row(GROUP, &row);
        let rows = overlay.into_rows();
        state.write(rows).unwrap();
        state.flush().unwrap();
    };
    with_row(id(11));
    let damage = look(directory.path()).damage;
    assert_eq!(damage, ["group 2: its state is at 11@1, but its log reaches from 1@1 to 10@1"]);
    with_row(EntryId::new(Term(2), LogIndex(10)));
    let damage = look(directory.path()).damage;
    assert_eq!(damage, ["group 2: its state is at 10@2, its log has 10@1"]);
}

#[test]
fn a_flipped_bit_in_log_state_identity_or_fence_is_found() {
    let directory = data_dir(40, 30);
    let flip = |name: &str, extension: &str, at: fn(usize) -> usize| {
        let copy = tempfile::tempdir().unwrap();
        copy_all(directory.path(), copy.path());
        let files = fs::read_dir(copy.path().join(name)).unwrap().map(|file| file.unwrap().path());
        let file = files.filter(|file| file.to_string_lossy().ends_with(extension)).max().unwrap();
        let mut bytes = fs::read(&file).unwrap();
        let at = at(bytes.len());
        bytes[at] ^= 4;
        fs::write(file, bytes).unwrap();
        look(copy.path()).damage
    };
    for damage in [
        flip("log", ".log", |length| length / 2),
        flip("state", ".sst", |_| 100),
        flip(".", "identity", |_| 20),
    ] {
        assert!(!damage.is_empty());
    }
    fs::write(directory.path().join("fence"), "quorate fence 1\ngroup 2: bad block\n").unwrap();
    assert_eq!(look(directory.path()).damage, ["group 2 is fenced: bad block"]);
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let (path, to) = (file.as_ref().unwrap().path(), to.join(file.unwrap().file_name()));
        if path.is_dir() {
            copy_all(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}
