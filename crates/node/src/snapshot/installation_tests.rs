//! Installations with a crash after every step, and within those that can be cut: on the memory twins
//! with every outcome that a crash can have, and on RocksDB with copies of its files.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use prost::Message as _;
use quorate_store::{Export, GroupRow, KvKind, MemState, Overlay, RocksConfig, RocksState};
use quorate_types::kv::{Command, Put, command};
use quorate_types::machine::{Direction, RowScope};
use quorate_types::{
    Committed, Entry, EntryId, HardState, LogIndex, MachineKind, Membership, NodeId, Payload,
    ReadError, StateBatch, StateMachine, StateReader, Term,
};
use quorate_wal::mem::{MemDisk, MemLog};
use quorate_wal::rocks::{RocksLog, RocksOptions};
use tempfile::TempDir;

use super::*;
use crate::image::image;

const GROUP: GroupId = GroupId(7);
const FILE: &str = "in-7-1";

/// A kind whose machine nobody opens here.
#[derive(Debug)]
struct Rows;

impl MachineKind for Rows {
    fn name(&self) -> &str {
        "rows"
    }

    fn open(
        &self,
        _: GroupId,
        _: &[u8],
        _: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        Ok(Box::new(NoMachine))
    }

    fn read(
        &self,
        _: GroupId,
        _: &Bytes,
        _: &[u8],
        _: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        Err(ReadError::Malformed("nothing is asked".into()))
    }
}

struct NoMachine;

impl StateMachine for NoMachine {
    fn apply(&mut self, _: &[Committed], _: &mut dyn StateBatch) -> Result<Vec<Bytes>, StateError> {
        Err(StateError("nothing is applied".into()))
    }

    fn meta(&self) -> Bytes {
        Bytes::new()
    }
}

fn kinds() -> Kinds {
    let rows: Arc<dyn MachineKind> = Arc::new(Rows);
    BTreeMap::from([("rows".to_owned(), rows)])
}

fn descriptor() -> Descriptor {
    Descriptor { kind: "rows".into(), range: None }
}

fn target() -> Target {
    Target::new(&kinds(), GROUP, descriptor()).unwrap()
}

fn id(term: u64, index: u64) -> EntryId {
    EntryId::new(Term(term), LogIndex(index))
}

fn voters() -> Membership {
    Membership::of_voters([NodeId(1), NodeId(2)])
}

/// What one applied entry leaves.
fn apply(engine: &dyn StateEngine, applied: EntryId) {
    let mut overlay = Overlay::new(engine.view());
    let mut batch = overlay.scoped(RowScope::Group, GROUP);
    batch.put(&applied.index.value().to_be_bytes(), &applied.term.value().to_be_bytes());
    let row = GroupRow { applied, membership: voters(), kind: "rows".into(), meta: Bytes::new() };
    overlay.put_group_row(GROUP, &row);
    engine.write(overlay.into_rows()).unwrap();
}

fn all(engine: &dyn StateEngine) -> BTreeMap<Bytes, Bytes> {
    let mut rows = BTreeMap::new();
    engine
        .view()
        .scan(&[], None, Direction::Forward, &mut |key, value| {
            rows.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

/// The snapshot: as of entry 50 of term 4.
fn snapshot() -> (Vec<u8>, MemState) {
    let engine = MemState::new();
    for index in [3, 49, 50] {
        apply(&engine, id(4, index));
    }
    let rows = GroupRows::Own(GROUP);
    let mut export = Export::new(engine.view(), GROUP, rows, None).unwrap().unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = export.next_piece().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    drop(export);
    (bytes, engine)
}

/// The log that the group had: entries 2 to 9 of term 1, and a vote in term 5.
fn old_log() -> Vec<Write> {
    let entries = (2..10).map(|index| Entry { id: id(1, index), payload: Payload::Empty });
    let snapshot = SnapshotMeta { last: id(1, 1), membership: voters() };
    vec![
        Write::Create { group: GROUP, label: descriptor().encode(), snapshot },
        Write::Append { group: GROUP, hard_state: Some(vote()), entries: entries.collect() },
    ]
}

fn vote() -> HardState {
    HardState { term: Term(5), vote: Some(NodeId(2)), commit: LogIndex(8) }
}

/// What a start makes of what it finds.
fn start(log: &mut impl LogStore, engine: &dyn StateEngine, files: &Files) {
    redo_all(log, engine, files, &kinds()).unwrap();
}

/// After a start the group is as it was, up to what may be replayed, or as the snapshot has it.
fn check(log: &impl LogStore, engine: &dyn StateEngine, installed: &MemState) -> bool {
    let found = log.log(GROUP).unwrap();
    assert_eq!((found.intent, found.hard_state), (None, vote()));
    let row = GroupRow::load(GROUP, &*engine.view()).unwrap();
    let applied = row.as_ref().map_or(found.snapshot.last, |row| row.applied);
    assert!(
        found.snapshot.last.index <= applied.index && applied.index <= found.last.index,
        "the state is at {applied}, the log has {} to {}",
        found.snapshot.last,
        found.last
    );
    let is_new = found.snapshot.last == id(4, 50);
    if is_new {
        assert_eq!((found.last, found.snapshot.membership), (id(4, 50), voters()));
        assert_eq!(all(engine), all(installed));
    } else {
        assert_eq!((found.snapshot.last, found.last), (id(1, 1), id(1, 9)));
        let old = MemState::new();
        for index in 2..=applied.index.value() {
            apply(&old, id(1, index));
        }
        assert_eq!(all(engine), all(&old));
    }
    is_new
}

struct Twins {
    directory: TempDir,
    files: Files,
    disk: MemDisk,
    state: MemState,
    installed: MemState,
}

impl Twins {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let (bytes, installed) = snapshot();
        fs::write(files.path(FILE), bytes).unwrap();
        let (disk, state) = (MemDisk::new(), MemState::new());
        disk.open().write(&old_log()).unwrap();
        for index in 2..8 {
            apply(&state, id(1, index));
            if index == 4 {
                state.flush().unwrap();
            }
        }
        Self { directory, files, disk, state, installed }
    }

    /// Does the first `whole` steps, and begins the next one if it can be cut.
    fn work(&self, log: &mut MemLog, steps: impl IntoIterator<Item = Step>, whole: usize) {
        let mut staged = None;
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                step if at < whole => {
                    let prepared =
                        Installation::prepare(&target(), &self.files, FILE, &self.state).unwrap();
                    staged.get_or_insert(prepared.1);
                    carry_out(step, log, &self.state, &mut staged).unwrap();
                }
                Step::Log(write) if at == whole => drop(log.stage(&[write]).unwrap()),
                Step::Log(_) | Step::Replace => return,
            }
        }
    }
}

fn plan(twins: &Twins) -> Installation {
    Installation::prepare(&target(), &twins.files, FILE, &twins.state).unwrap().0
}

#[test]
fn whatever_step_a_crash_follows_the_group_is_the_old_one_or_the_new_one() {
    let mut seen = [[false; 2]; 4];
    for (steps, seen) in seen.iter_mut().enumerate() {
        for seed in 0..6 {
            for kept in 0..8 {
                let twins = Twins::new();
                twins.work(&mut twins.disk.open(), plan(&twins).steps(), steps);
                twins.disk.crash(seed);
                twins.state.crash(kept);
                let mut log = twins.disk.open();
                start(&mut log, &twins.state, &twins.files);
                let is_new = check(&log, &twins.state, &twins.installed);
                seen[usize::from(is_new)] = true;
                // And it is durable: another crash changes nothing more.
                twins.disk.crash(seed);
                twins.state.crash(0);
                assert_eq!(check(&twins.disk.open(), &twins.state, &twins.installed), is_new);
            }
        }
    }
    // With the intent durable, nothing but the new one comes of it.
    assert_eq!(seen, [[true, true], [false, true], [false, true], [false, true]]);
}

#[test]
fn a_crash_while_it_is_done_again_is_no_different() {
    for first in 1..3 {
        for again in 0..=2 {
            for seed in 0..6 {
                let twins = Twins::new();
                let plan = plan(&twins);
                twins.work(&mut twins.disk.open(), plan.steps(), first);
                twins.disk.crash(seed);
                twins.state.crash(0);
                let mut log = twins.disk.open();
                if log.log(GROUP).unwrap().intent.is_some() {
                    twins.work(&mut log, plan.steps_again(), again);
                }
                drop(log);
                twins.disk.crash(seed);
                twins.state.crash(1);
                let mut log = twins.disk.open();
                start(&mut log, &twins.state, &twins.files);
                assert!(check(&log, &twins.state, &twins.installed));
            }
        }
    }
}

#[test]
fn files_that_no_intent_names_are_removed_at_a_start() {
    let twins = Twins::new();
    start(&mut twins.disk.open(), &twins.state, &twins.files);
    let files = fs::read_dir(twins.directory.path().join("snapshots")).unwrap();
    assert_eq!(files.count(), 0);
}

#[test]
fn an_intent_whose_snapshot_is_damaged_stops_the_start() {
    let twins = Twins::new();
    let mut log = twins.disk.open();
    twins.work(&mut log, plan(&twins).steps(), 1);
    let path = twins.files.path(FILE);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut log = twins.disk.open();
    let result = redo_all(&mut log, &twins.state, &twins.files, &kinds());
    assert!(matches!(result, Err(InstallError::Snapshot { .. })), "{result:?}");
    assert!(path.exists(), "what is left of it is kept");
}

#[test]
fn a_snapshot_of_another_group_kind_or_range_is_refused() {
    let twins = Twins::new();
    let refused = |target: &Target| {
        let prepared = Installation::prepare(target, &twins.files, FILE, &twins.state);
        assert!(matches!(prepared, Err(InstallError::Snapshot { .. })), "{prepared:?}");
    };
    refused(&Target { group: GroupId(8), ..target() });
    refused(&Target { descriptor: Descriptor { kind: "kv".into(), range: None }, ..target() });
    let range = Some(quorate_types::KeyRange::all());
    refused(&Target { descriptor: Descriptor { range, ..descriptor() }, ..target() });
    assert!(Target::new(&kinds(), GROUP, Descriptor { kind: "?".into(), range: None }).is_none());
}

fn open(directory: &Path) -> (RocksLog, RocksState, Files) {
    let log = RocksLog::open(&directory.join("log"), &RocksOptions::default()).unwrap();
    let state = RocksState::open(&RocksConfig::new(directory.join("state"))).unwrap();
    (log, state, Files::open(directory).unwrap())
}

#[test]
fn on_disks_too_every_crash_leaves_the_old_group_or_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let (bytes, installed) = snapshot();
    let (mut log, state, files) = open(directory.path());
    log.write(&old_log()).unwrap();
    for index in 2..8 {
        apply(&state, id(1, index));
        if index == 4 {
            state.flush().unwrap();
        }
    }
    fs::write(files.path(FILE), bytes).unwrap();
    let (plan, staged) = Installation::prepare(&target(), &files, FILE, &state).unwrap();
    let mut staged = Some(staged);
    let restarted = |expected: bool| {
        let image = image(directory.path());
        let (mut log, state, files) = open(image.path());
        start(&mut log, &state, &files);
        assert_eq!(check(&log, &state, &installed), expected);
        drop((log, state));
        // What was done again is there the next time.
        let (mut log, state, files) = open(image.path());
        start(&mut log, &state, &files);
        assert_eq!(check(&log, &state, &installed), expected);
    };
    restarted(false);
    for step in plan.steps() {
        carry_out(step, &mut log, &state, &mut staged).unwrap();
        restarted(true);
    }
}

/// Figures, printed rather than asserted: `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "figures are for people")]
fn how_long_export_stage_and_ingestion_take() {
    const PUTS: u64 = 1_000_000;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = |of: &TempDir| RocksState::open(&RocksConfig::new(of.path())).unwrap();
    let (from, to) = (open(&one), open(&two));
    let mut machine = KvKind::default().open(GROUP, &[], &*from.view()).unwrap();
    for first in (1..=PUTS).step_by(1_000) {
        let put = |number: u64| {
            // Hashed, so that nothing compresses better than real values would.
            let value = (0..32u64).map(|part| {
                let mixed = (number * 32 + part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                format!("{:08x}", mixed >> 32)
            });
            let put = Put {
                key: format!("key/{number:08}").into(),
                value: value.collect::<String>().into(),
                ..Put::default()
            };
            let command = Command { body: Some(command::Body::Put(put)), ..Command::default() };
            Committed { id: id(1, number), command: command.encode_to_vec().into() }
        };
        let committed: Vec<_> = (first..first + 1_000).map(put).collect();
        let mut overlay = Overlay::new(from.view());
        let mut batch = overlay.scoped(RowScope::Keyspace, GROUP);
        machine.apply(&committed, &mut batch).unwrap();
        let row = GroupRow {
            applied: id(1, first + 999),
            membership: voters(),
            kind: "kv".into(),
            meta: machine.meta(),
        };
        overlay.put_group_row(GROUP, &row);
        from.write(overlay.into_rows()).unwrap();
    }
    let rows = GroupRows::new(RowScope::Keyspace, GROUP, None);
    let began = Instant::now();
    let mut export = Export::new(from.view(), GROUP, rows.clone(), None).unwrap().unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = export.next_piece().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    println!("{PUTS} keys, {} bytes: exported in {:?}", bytes.len(), began.elapsed());
    let read = || SnapshotReader::open(&bytes[..], |_| Ok(rows.clone())).unwrap();
    let began = Instant::now();
    read().verify().unwrap();
    println!("read through in {:?}", began.elapsed());
    let began = Instant::now();
    let install = Install::stage(read(), &to).unwrap();
    println!("written as tables in {:?}", began.elapsed());
    let began = Instant::now();
    install.run(&to).unwrap();
    println!("in place after {:?}", began.elapsed());
}
