//! Bit flips and torn tails on copies of real files, against the written truth.
//!
//! Each case is drawn from a seed. `DAMAGE_CASES=n` runs `n` of each kind, `SEED=n` the one that failed.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use quorate_types::LogIndex;
use quorate_wal::rocks::{RocksLog, RocksOptions};
use quorate_wal::{LogError, LogStore};
use tempfile::TempDir;

use crate::model::{Change, Model};
use crate::rocks::{copy_files, tear};

/// Of each kind, unless `DAMAGE_CASES` says otherwise.
const CASES: u64 = 120;

/// So small that there are several sorted files and live log files.
fn options() -> RocksOptions {
    RocksOptions { memtable_bytes: 64 << 10, ..RocksOptions::default() }
}

fn seeds() -> Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DAMAGE_CASES").unwrap_or(CASES),
    }
}

/// Logs as a power cut leaves them, and what they hold.
struct Written {
    directory: TempDir,
    truth: Model,
}

/// A life of some groups: batches of all sizes, overwritten and truncated, with restarts in between. The
/// last batch is sealed, as in any pause.
fn written(seed: u64) -> (Written, RocksLog) {
    let mut random = Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut truth = Model::default();
    let mut log = RocksLog::open(directory.path(), &options()).unwrap();
    for group in 1..5 {
        log.write(&truth.batch(&[Change::Create { group, term: 1, index: 1 }])).unwrap();
    }
    for _ in 0..random.usize(40..120) {
        let changes: Vec<_> = (0..random.usize(1..4)).map(|_| change(&mut random)).collect();
        log.write(&truth.batch(&changes)).unwrap();
        match random.u32(0..60) {
            0 => log.flush().unwrap(),
            1 => {
                drop(log);
                log = RocksLog::open(directory.path(), &options()).unwrap();
            }
            2 => log.compact(),
            3 => log.seal().unwrap(),
            _ => {}
        }
    }
    log.seal().unwrap();
    (Written { directory, truth }, log)
}

fn change(random: &mut Rng) -> Change {
    let group = random.u64(1..5);
    match random.u32(0..20) {
        0 => Change::HardState { group, same: random.bool() },
        1..4 => Change::Truncate { group, percent: random.u64(30..=100) },
        _ => Change::Append {
            group,
            back: if random.u32(0..4) == 0 { random.u64(0..5) } else { 0 },
            term_steps: (0..random.usize(1..5)).map(|_| u64::from(random.u32(0..8) == 0)).collect(),
            bytes: if random.u32(0..8) == 0 {
                random.usize(0..60_000)
            } else {
                random.usize(0..900)
            },
            hard_state: random.bool(),
        },
    }
}

/// Copies of three lives: making one takes longer than looking at it.
fn lives() -> Vec<Written> {
    (0..3).map(|seed| crashed(written(seed))).collect()
}

/// The files as they are while the process runs.
fn crashed((written, log): (Written, RocksLog)) -> Written {
    let directory = tempfile::tempdir().unwrap();
    copy_files(written.directory.path(), directory.path());
    drop(log);
    Written { directory, truth: written.truth }
}

fn copy_of(written: &Written) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_files(written.directory.path(), copy.path());
    copy
}

/// How a start ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// It says what is damaged, and shows nothing of that.
    Detected,
    /// Everything is there.
    Harmless,
}

/// Starts, and panics if anything is shown that is not the truth.
fn start(directory: &Path, truth: &Model, case: &str) -> Outcome {
    let mut log = match RocksLog::open(directory, &options()) {
        Ok(log) => log,
        Err(LogError::DamagedEngine(_) | LogError::Format(_)) => return Outcome::Detected,
        Err(other) => panic!("{case}: {other}"),
    };
    let damaged = log.damaged().clone();
    let mut expected = truth.recovered();
    expected.retain(|group, _| !damaged.contains_key(group));
    assert_eq!(log.recover().unwrap(), expected, "{case}: {damaged:?}");
    let reader = log.reader();
    for (group, log) in expected {
        let from = log.snapshot.last.index.next();
        match reader.read(group, from, LogIndex(u64::MAX - 1), usize::MAX) {
            Ok(entries) => assert_eq!(entries, truth.entries(group), "{case}: group {group}"),
            Err(LogError::Damaged { .. }) => return Outcome::Detected,
            Err(other) => panic!("{case}: group {group}: {other}"),
        }
    }
    if damaged.is_empty() { Outcome::Harmless } else { Outcome::Detected }
}

/// Files that hold data, by what they are for.
fn data_files(directory: &Path, random: &mut Rng) -> PathBuf {
    let kind = [".log", ".log", ".sst", "MANIFEST", "CURRENT"][random.usize(0..5)];
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let is_kind = |file: &PathBuf| {
        let name = file.file_name().unwrap().to_string_lossy();
        (name.ends_with(kind) || name.starts_with(kind)) && file.metadata().unwrap().len() > 0
    };
    let mut files: Vec<_> = files.filter(is_kind).collect();
    files.sort();
    if files.is_empty() {
        data_files(directory, random)
    } else {
        files[random.usize(..files.len())].clone()
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a figure for whoever runs it with --nocapture")]
fn a_flipped_bit_anywhere_is_detected_or_harmless() {
    let lives = lives();
    let mut detected = 0;
    for seed in seeds() {
        let mut random = Rng::with_seed(seed);
        let life = &lives[random.usize(..lives.len())];
        let copy = copy_of(life);
        let file = data_files(copy.path(), &mut random);
        let mut bytes = fs::read(&file).unwrap();
        let bit = random.usize(..8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, bytes).unwrap();
        let name = file.file_name().unwrap().to_string_lossy();
        let case = format!("SEED={seed}: bit {bit} of {name}");
        if start(copy.path(), &life.truth, &case) == Outcome::Detected {
            detected += 1;
            // And at the next start no less.
            assert_eq!(start(copy.path(), &life.truth, &case), Outcome::Detected, "{case}, again");
        }
    }
    eprintln!("{detected} flips were detected, {} were harmless", seeds().count() - detected);
    assert!(detected > 0 || seeds().count() < 20, "no flip hit anything");
}

#[test]
#[expect(clippy::print_stderr, reason = "a figure for whoever runs it with --nocapture")]
fn a_tail_that_was_torn_anywhere_starts_and_nothing_synced_is_lost() {
    let mut torn = 0;
    for seed in seeds() {
        let mut random = Rng::with_seed(seed);
        let (mut life, mut log) = written(1_000 + seed % 4);
        if random.bool() {
            // Torn behind a seal, or not.
            let changes = [change(&mut random)];
            log.write(&life.truth.batch(&changes)).unwrap();
        }
        let before = newest_log(life.directory.path());
        let before_bytes = fs::read(&before).unwrap();
        let synced = life.truth.clone();
        let changes: Vec<_> = (0..random.usize(1..5)).map(|_| change(&mut random)).collect();
        log.write(&life.truth.batch(&changes)).unwrap();
        let copy = copy_of(&life);
        drop(log);
        let file = newest_log(copy.path());
        // Where a new file was begun, what was there before is not known, and the file has grown.
        let is_same = file.file_name() == before.file_name();
        let before_bytes = if is_same { before_bytes } else { Vec::new() };
        let after_bytes = fs::read(&file).unwrap();
        let mut left = tear(&before_bytes, &after_bytes, &mut random);
        if random.bool() {
            garble(&mut left, &before_bytes, &after_bytes, &mut random);
        }
        let is_whole = left == after_bytes;
        fs::write(&file, left).unwrap();
        let case = format!("SEED={seed}: torn {}", file.display());
        let mut opened = RocksLog::open(copy.path(), &options()).expect(&case);
        assert!(opened.damaged().is_empty(), "{case}");
        // A batch is there as a whole or not at all; torn behind its last byte it may be there.
        let recovered = opened.recover().unwrap();
        let is_there = recovered == life.truth.recovered();
        assert!(is_there || recovered == synced.recovered() && !is_whole, "{case}");
        torn += usize::from(!is_there);
        let mut truth = if is_there { life.truth } else { synced };
        truth.check(&mut opened);
        // And goes on from there.
        opened.write(&truth.batch(&[change(&mut random)])).unwrap();
        drop(opened);
        assert_eq!(start(copy.path(), &truth, &case), Outcome::Harmless, "{case}, gone on");
    }
    eprintln!("{torn} of {} batches were torn", seeds().count());
}

#[test]
fn a_manifest_that_has_lost_its_end_is_detected_or_harmless() {
    let lives = lives();
    for seed in seeds() {
        let mut random = Rng::with_seed(seed);
        let life = &lives[random.usize(..lives.len())];
        let copy = copy_of(life);
        let current = fs::read_to_string(copy.path().join("CURRENT")).unwrap();
        let manifest = copy.path().join(current.trim_end());
        let bytes = fs::read(&manifest).unwrap();
        let kept = random.usize(..bytes.len());
        fs::write(&manifest, &bytes[..kept]).unwrap();
        start(copy.path(), &life.truth, &format!("SEED={seed}: {kept} of {} bytes", bytes.len()));
    }
}

#[test]
fn a_missing_file_is_detected_or_harmless() {
    for (seed, life) in lives().iter().enumerate() {
        // Nothing is behind the newest log file that could tell of it.
        let newest = newest_log(life.directory.path());
        for file in fs::read_dir(life.directory.path()).unwrap() {
            let name = file.unwrap().file_name();
            if newest.file_name() == Some(&*name) {
                continue;
            }
            let copy = copy_of(life);
            fs::remove_file(copy.path().join(&name)).unwrap();
            let name = name.to_string_lossy();
            let outcome = start(copy.path(), &life.truth, &format!("life {seed} without {name}"));
            // Sorted files may have been on their way out; what they held is compared all the same.
            let current = fs::read_to_string(life.directory.path().join("CURRENT")).unwrap();
            let is_needed = name == "CURRENT" || *name == *current.trim_end();
            assert!(!is_needed || outcome == Outcome::Detected, "life {seed} without {name}");
        }
    }
}

#[test]
fn a_damaged_block_fences_the_groups_in_it_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut truth = Model::default();
    let mut log = RocksLog::open(directory.path(), &RocksOptions::default()).unwrap();
    for group in 1..7 {
        log.write(&truth.batch(&[Change::Create { group, term: 1, index: 1 }])).unwrap();
    }
    for group in 1..7 {
        let (term_steps, bytes) = (vec![0; 6], 9_000);
        let append = Change::Append { group, back: 0, term_steps, bytes, hard_state: true };
        log.write(&truth.batch(&[append])).unwrap();
    }
    log.flush().unwrap();
    drop(log);
    let files = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path());
    let table = files.filter(|file| file.extension().is_some_and(|it| it == "sst")).max().unwrap();
    let mut bytes = fs::read(&table).unwrap();
    // Inside the third group's record, which fills a block.
    let key = [&[4][..], &3u64.to_be_bytes()].concat();
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + 20_000;
    bytes[at] ^= 1;
    fs::write(&table, bytes).unwrap();
    let mut log = RocksLog::open(directory.path(), &RocksOptions::default()).unwrap();
    let damaged: Vec<_> = log.damaged().keys().map(|group| group.value()).collect();
    assert!(damaged.contains(&3) && damaged.len() <= 3, "{:?}", log.damaged());
    let mut expected = truth.recovered();
    expected.retain(|group, _| !damaged.contains(&group.value()));
    assert_eq!(log.recover().unwrap(), expected);
    for (group, recovered) in &expected {
        let (from, to) = (recovered.snapshot.last.index.next(), recovered.last.index);
        let entries = log.reader().read(*group, from, to, usize::MAX).unwrap();
        assert_eq!(entries, truth.entries(*group));
    }
}

/// Puts noise behind what has reached the disk, up to where the write would have ended.
fn garble(left: &mut [u8], before: &[u8], after: &[u8], random: &mut Rng) {
    let end = (0..after.len()).rfind(|at| before.get(*at) != after.get(*at)).unwrap() + 1;
    let begin = (0..after.len()).find(|at| before.get(*at) != after.get(*at)).unwrap();
    let end = end.min(left.len());
    let from = end.saturating_sub(random.usize(1..=512)).max(begin);
    left[from..end.max(from)].fill_with(|| random.u8(..));
}

fn newest_log(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|it| it == "log")).max().unwrap()
}
