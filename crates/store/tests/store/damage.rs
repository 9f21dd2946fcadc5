//! Bit flips and cuts on copies of a state's files: what can be read is what was written, as of some batch,
//! or nothing can be read at all.
//!
//! Each case is drawn from a seed. `DAMAGE_CASES=n` runs `n` of each kind, `SEED=n` the one that failed.

use std::collections::BTreeMap;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_store::{GroupRow, OpenStateError, RocksConfig, RocksState, StateEngine};
use quorate_types::kv::{Command, Compact, Put, command};
use quorate_types::machine::{Direction, StateError};
use tempfile::TempDir;

use crate::host::{GROUP, Host};

/// Of each kind, unless `DAMAGE_CASES` says otherwise.
const CASES: u64 = 120;

fn seeds() -> Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DAMAGE_CASES").unwrap_or(CASES),
    }
}

type Rows = BTreeMap<Bytes, Bytes>;

/// A state's files, and all rows as they were after each entry that a batch ended with.
struct Written {
    directory: TempDir,
    truth: BTreeMap<u64, Rows>,
}

fn config(directory: &Path) -> RocksConfig {
    RocksConfig { memtable_bytes: 64 << 10, memtables_merged: 1, ..RocksConfig::new(directory) }
}

/// A keyspace with overwritten keys, compactions and a sweep, in several sorted files, and with batches that
/// no file has.
fn written() -> Written {
    let directory = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut host = Host::new(RocksState::open(&config(directory.path())).unwrap());
    let mut truth = BTreeMap::from([(0, Rows::new())]);
    for batch in 0..60 {
        for _ in 0..20 {
            let key = format!("key {}", random.u32(0..200)).into();
            let value = vec![random.u8(..); random.usize(0..600)].into();
            let put = Put { key, value, ..Put::default() };
            host.apply(&Command { body: Some(command::Body::Put(put)), ..Command::default() });
            remember(&mut truth, &host);
        }
        if batch % 7 == 6 {
            let compact = Compact { revision: 10 * batch };
            host.apply(&Command {
                body: Some(command::Body::Compact(compact)),
                ..Command::default()
            });
            remember(&mut truth, &host);
            while host.sweep(50) {}
            remember(&mut truth, &host);
        }
        if batch % 9 == 8 {
            host.engine.flush().unwrap();
        }
    }
    let copy = tempfile::tempdir().unwrap();
    copy_files(directory.path(), copy.path());
    Written { directory: copy, truth }
}

fn remember(truth: &mut BTreeMap<u64, Rows>, host: &Host<RocksState>) {
    // A sweep changes rows and not the index: then the last ones count, and those before a sweep are gone.
    truth.insert(host.log_len() as u64, rows(&host.engine).unwrap());
}

fn rows(engine: &RocksState) -> Result<Rows, StateError> {
    let mut rows = Rows::new();
    engine.view().scan(&[], None, Direction::Forward, &mut |key, value| {
        rows.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

fn copy_files(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.path().is_file() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

/// A file that holds data: mostly a sorted one. What a compaction has just begun to write is empty yet.
fn data_file(directory: &Path, random: &mut fastrand::Rng) -> PathBuf {
    let kind = [".sst", ".sst", "MANIFEST", "CURRENT"][random.usize(0..4)];
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let is_kind = |file: &PathBuf| {
        let name = file.file_name().unwrap().to_string_lossy();
        let is_empty = fs::metadata(file).unwrap().len() == 0;
        (name.ends_with(kind) || name.starts_with(kind)) && !is_empty
    };
    let mut files: Vec<_> = files.filter(is_kind).collect();
    files.sort();
    files[random.usize(..files.len())].clone()
}

/// Reads everything; true if damage was met. Panics if anything is read that was never there.
fn meets_damage(directory: &Path, truth: &BTreeMap<u64, Rows>, case: &str) -> bool {
    let engine = match RocksState::open(&config(directory)) {
        Ok(engine) => engine,
        Err(OpenStateError::Damaged(_)) => return true,
        Err(other) => panic!("{case}: {other}"),
    };
    let Ok(found) = rows(&engine) else {
        assert!(engine.damage().is_some(), "{case}: it is known from now on");
        return true;
    };
    let row = GroupRow::load(GROUP, &*engine.view()).expect(case);
    let applied = row.map_or(0, |row| row.applied.index.value());
    assert!(truth.get(&applied) == Some(&found), "{case}: not the rows as of {applied}");
    false
}

#[expect(clippy::print_stderr, reason = "a figure for whoever runs it with --nocapture")]
fn damaged(what: &str, change: impl Fn(&mut Vec<u8>, &mut fastrand::Rng) -> String) {
    let written = written();
    let mut met = 0;
    for seed in seeds() {
        let mut random = fastrand::Rng::with_seed(seed);
        let copy = tempfile::tempdir().unwrap();
        copy_files(written.directory.path(), copy.path());
        let file = data_file(copy.path(), &mut random);
        let mut bytes = fs::read(&file).unwrap();
        let change = change(&mut bytes, &mut random);
        fs::write(&file, bytes).unwrap();
        let name = file.file_name().unwrap().to_string_lossy();
        let case = format!("SEED={seed}: {change} of {name}");
        met += usize::from(meets_damage(copy.path(), &written.truth, &case));
    }
    eprintln!("{met} of {} {what} were met, the others did no harm", seeds().count());
    assert!(met > 0 || seeds().count() < 20, "no case hit anything");
}

#[test]
fn untouched_files_hold_what_was_flushed() {
    let written = written();
    assert!(!meets_damage(written.directory.path(), &written.truth, "untouched"));
}

#[test]
fn a_flipped_bit_is_met_or_harmless_and_never_served() {
    damaged("flips", |bytes, random| {
        let bit = random.usize(..8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        format!("bit {bit}")
    });
}

#[test]
fn a_file_that_lost_its_end_is_met_or_harmless_and_never_served() {
    damaged("cuts", |bytes, random| {
        let (length, kept) = (bytes.len(), random.usize(..bytes.len()));
        bytes.truncate(kept);
        format!("{kept} of {length} bytes")
    });
}

#[test]
fn a_state_that_is_looked_at_is_not_changed() {
    let written = written();
    let before: BTreeMap<_, _> = files(written.directory.path());
    let diary = tempfile::tempdir().unwrap();
    let config = config(written.directory.path());
    let state = RocksState::open_read_only(&config, diary.path()).unwrap();
    state.verify().unwrap();
    let row = GroupRow::load(GROUP, &*state.view()).unwrap().unwrap();
    assert_eq!(written.truth[&row.applied.index.value()], rows(&state).unwrap());
    drop(state);
    assert!(files(written.directory.path()) == before);
}

fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files.map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
}
