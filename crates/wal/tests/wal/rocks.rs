//! The logs in RocksDB: the suite with real files, torn tails, damage, and the single-put rule under
//! flushes and compactions at every moment.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_types::{Entry, EntryId, GroupId, LogIndex, Payload, SnapshotMeta, Term};
use quorate_wal::rocks::{RocksLog, RocksOptions};
use quorate_wal::{LogError, LogStore, Write};
use tempfile::TempDir;

use crate::suite::{self, Place};

/// Logs in a directory, with engine settings so small that flushes happen.
struct Directory {
    root: TempDir,
    /// Which copy of the logs is current: a power cut leaves the files of the dead process behind and
    /// goes on with a copy.
    copy: u32,
}

impl Directory {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), copy: 0 }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join(self.copy.to_string())
    }

    /// Goes on with a copy of the files as they are now, as a power cut would leave them: everything that
    /// these tests write is synced.
    fn copy(&mut self) {
        let from = self.path();
        self.copy += 1;
        copy_files(&from, &self.path());
    }

    /// The newest write-ahead log file.
    fn newest_log(&self) -> PathBuf {
        let files = fs::read_dir(self.path()).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| is_log(file)).max().expect("an open log has a log file")
    }
}

/// Copies a directory as a crash would leave it. The engine that is open there may remove files meanwhile:
/// then it is done again, since a mixture of before and after is nothing that a crash leaves.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    let names = || -> BTreeSet<OsString> {
        fs::read_dir(from).unwrap().map(|file| file.unwrap().file_name()).collect()
    };
    loop {
        fs::create_dir_all(to).unwrap();
        let before = names();
        let copied = before.iter().all(|name| fs::copy(from.join(name), to.join(name)).is_ok());
        if copied && names() == before {
            return;
        }
        fs::remove_dir_all(to).unwrap();
    }
}

fn is_log(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "log")
}

fn options() -> RocksOptions {
    RocksOptions { memtable_bytes: 64 << 10, ..RocksOptions::default() }
}

impl Place for Directory {
    type Log = RocksLog;

    fn open(&mut self) -> RocksLog {
        RocksLog::open(&self.path(), &options()).unwrap()
    }

    fn cut_power(&mut self, mut log: RocksLog, batches: &[Vec<Write>], seed: u64) -> usize {
        let mut random = fastrand::Rng::with_seed(seed);
        let survived = random.usize(0..=batches.len());
        for batch in &batches[..survived] {
            log.write(batch).unwrap();
        }
        if let Some(torn) = batches.get(survived) {
            let before = fs::read(self.newest_log()).unwrap();
            let file = self.newest_log();
            log.write(torn).unwrap();
            self.copy();
            drop(log);
            let copied = self.path().join(file.file_name().unwrap());
            let after = fs::read(&copied).unwrap();
            if self.newest_log() == copied {
                let torn = tear(&before, &after, &mut random);
                fs::write(copied, torn).unwrap();
                return survived;
            }
            // The engine began another file meanwhile: nothing to tear, the batch survived.
            return survived + 1;
        }
        self.copy();
        survived
    }

    fn tidy(&mut self, log: &RocksLog, thoroughly: bool) {
        log.flush().unwrap();
        if thoroughly {
            log.compact();
        }
    }
}

/// What is on disk when only the beginning of a write has reached it: the rest is as it was before, or
/// missing where the file grew.
pub(crate) fn tear(before: &[u8], after: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let same = |at: &usize| before.get(*at) == after.get(*at);
    let first = (0..after.len()).find(|at| !same(at)).expect("a batch is written");
    let last = (0..after.len()).rfind(|at| !same(at)).expect("a batch is written");
    let cut = random.usize(first..=last);
    let mut torn = after[..cut].to_vec();
    torn.extend(before.get(cut..).unwrap_or_default());
    torn
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn rocksdb_holds_what_the_model_holds(steps in suite::history(24)) {
        suite::run(&mut Directory::new(), &steps);
    }
}

fn create(group: u64) -> Write {
    let last = EntryId::new(Term(1), LogIndex(1));
    let snapshot = SnapshotMeta { last, ..SnapshotMeta::default() };
    Write::Create { group: GroupId(group), label: Bytes::new(), snapshot }
}

fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<Entry> {
    let entry = |index| {
        let id = EntryId::new(Term(term), LogIndex(index));
        Entry { id, payload: Payload::Command(format!("{id}").into()) }
    };
    indexes.map(entry).collect()
}

fn append(group: u64, term: u64, indexes: std::ops::Range<u64>) -> Write {
    let entries = entries(term, indexes);
    Write::Append { group: GroupId(group), hard_state: None, entries }
}

fn read_all(log: &RocksLog, group: u64, from: u64) -> Vec<Entry> {
    log.reader().read(GroupId(group), LogIndex(from), LogIndex(u64::MAX - 1), usize::MAX).unwrap()
}

#[test]
fn a_reader_sees_each_batch_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = RocksLog::open(directory.path(), &options()).unwrap();
    // Every batch overwrites all entries by two records, so a mixture would show two terms.
    let batch = |term| [append(1, term, 2..5), append(1, term, 5..9)];
    log.write(&[create(1)]).unwrap();
    log.write(&batch(1)).unwrap();
    let (reader, stop) = (log.reader(), AtomicBool::new(false));
    thread::scope(|scope| {
        let stop = &stop;
        let reads = scope.spawn(move || {
            let mut terms = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                let read = reader.read(GroupId(1), LogIndex(2), LogIndex(100), usize::MAX).unwrap();
                let term = read[0].id.term.value();
                assert_eq!(read, entries(term, 2..9));
                terms.insert(term);
            }
            terms
        });
        for term in 2..300 {
            log.write(&batch(term)).unwrap();
            if term % 100 == 0 {
                log.flush().unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(!reads.join().unwrap().is_empty());
    });
    assert_eq!(read_all(&log, 1, 2), entries(299, 2..9));
}

#[test]
fn a_tail_that_was_cut_anywhere_still_opens_with_a_prefix() {
    let mut directory = Directory::new();
    let mut log = directory.open();
    log.write(&[create(1)]).unwrap();
    for index in 2..12 {
        log.write(&[append(1, 1, index..index + 1)]).unwrap();
    }
    let file = directory.newest_log().file_name().unwrap().to_owned();
    directory.copy();
    drop(log);
    let whole = fs::read(directory.path().join(&file)).unwrap();
    let mut last_before = LogIndex(11);
    for cut in (0..whole.len()).step_by(13) {
        let torn = tempfile::tempdir().unwrap();
        copy_files(&directory.path(), torn.path());
        fs::write(torn.path().join(&file), &whole[..whole.len() - cut]).unwrap();
        let mut log = RocksLog::open(torn.path(), &options()).unwrap();
        let Some(recovered) = log.recover().unwrap().remove(&GroupId(1)) else { continue };
        let last = recovered.last.index;
        assert!(last <= last_before && (cut > 0 || last == last_before), "{cut} bytes cut: {last}");
        assert_eq!(read_all(&log, 1, 2), entries(1, 2..last.value() + 1));
        last_before = last;
        // And goes on from there.
        let next = last.value() + 1;
        log.write(&[append(1, 2, next..next + 1)]).unwrap();
        drop(log);
        let last = RocksLog::open(torn.path(), &options()).unwrap().log(GroupId(1)).unwrap().last;
        assert_eq!(last, EntryId::new(Term(2), LogIndex(next)));
    }
    assert_eq!(last_before, LogIndex(1), "cuts reached the first batch");
}

/// What the engine may do between two batches.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    Flush,
    Compact,
}

const BETWEEN: [Between; 3] = [Between::Nothing, Between::Flush, Between::Compact];

#[test]
fn removed_records_never_come_back_wherever_the_engine_flushes_and_compacts() {
    // The same keys are put and removed again and again: at index 2 and at index 4.
    let truncate =
        |through| Write::TruncatePrefix { group: GroupId(1), through: LogIndex(through) };
    let batches = [
        vec![append(1, 1, 2..4), append(1, 1, 4..8)],
        // Put, SingleDelete, Put of one key in one batch, and a cut inside a record.
        vec![append(1, 2, 4..6), append(1, 3, 4..5), append(1, 4, 3..5)],
        vec![append(1, 5, 2..4), append(1, 5, 4..9)],
        vec![append(1, 6, 4..5)],
    ];
    for choice in 0..BETWEEN.len().pow(4) {
        let directory = tempfile::tempdir().unwrap();
        let mut log = RocksLog::open(directory.path(), &options()).unwrap();
        log.write(&[create(1)]).unwrap();
        let mut tidied = Vec::new();
        for (at, batch) in batches.iter().enumerate() {
            log.write(batch).unwrap();
            let between = BETWEEN[choice / BETWEEN.len().pow(at as u32) % BETWEEN.len()];
            tidied.push(between);
            match between {
                Between::Nothing => {}
                Between::Flush => log.flush().unwrap(),
                Between::Compact => log.compact(),
            }
        }
        let expected: Vec<_> = [entries(5, 2..4), entries(6, 4..5)].concat();
        assert_eq!(read_all(&log, 1, 2), expected, "{tidied:?}");

        log.write(&[truncate(4)]).unwrap();
        log.compact();
        assert_eq!(read_all(&log, 1, 5), [], "{tidied:?}");
        drop(log);
        // Were a removed record back, recovery would find it without its place.
        let mut log = RocksLog::open(directory.path(), &options()).unwrap();
        let recovered = &log.recover().unwrap()[&GroupId(1)];
        assert_eq!(recovered.last, EntryId::new(Term(6), LogIndex(4)), "{tidied:?}");
        // And a group that is made anew over the same keys starts clean.
        log.write(&[Write::Destroy { group: GroupId(1) }, create(1), append(1, 1, 2..3)]).unwrap();
        log.compact();
        assert_eq!(read_all(&log, 1, 2), entries(1, 2..3), "{tidied:?}");
    }
}

#[test]
fn truncated_entries_die_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = RocksLog::open(directory.path(), &RocksOptions::default()).unwrap();
    log.write(&[create(1)]).unwrap();
    let large = |index| {
        let id = EntryId::new(Term(1), LogIndex(index));
        let entries = vec![Entry { id, payload: Payload::Command(vec![7; 10_000].into()) }];
        Write::Append { group: GroupId(1), hard_state: None, entries }
    };
    for index in 2..100 {
        log.write(&[large(index)]).unwrap();
    }
    log.write(&[Write::TruncatePrefix { group: GroupId(1), through: LogIndex(98) }]).unwrap();
    log.flush().unwrap();
    let files = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap());
    let tables = files.filter(|file| file.path().extension().is_some_and(|it| it == "sst"));
    let bytes: u64 = tables.map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes < 20_000, "one entry of 10,000 bytes is live, but {bytes} bytes were flushed");
}

#[test]
fn log_files_are_not_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = RocksLog::open(directory.path(), &options()).unwrap();
    log.write(&[create(1)]).unwrap();
    for round in 0..10 {
        log.write(&[append(1, 1, 2 + 10 * round..12 + 10 * round)]).unwrap();
        log.flush().unwrap();
    }
    // The engine tells its own diary.
    let diary = fs::read_to_string(directory.path().join("LOG")).unwrap();
    let line = diary.lines().find(|line| line.contains("Options.recycle_log_file_num"));
    assert!(line.unwrap().trim_end().ends_with(": 0"), "{line:?}");
    assert!(!diary.contains("reusing log"), "a log file was reused");
    drop(log);
    let log = RocksLog::open(directory.path(), &options()).unwrap();
    assert_eq!(read_all(&log, 1, 2), entries(1, 2..102));
}

#[test]
fn a_second_process_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let _log = RocksLog::open(directory.path(), &options()).unwrap();
    let second = RocksLog::open(directory.path(), &options()).map(drop);
    assert!(matches!(second, Err(LogError::Engine(_))));
}

/// Rows behind the back of the store.
mod raw {
    use super::*;
    use rocksdb::DB;

    fn key(group: u64, first: u64) -> Vec<u8> {
        [&[4][..], &group.to_be_bytes(), &first.to_be_bytes()].concat()
    }

    /// Groups 1 and 2 with three records each: 2..4, 4..6, 6..8. Then `change` is made and the logs are
    /// opened.
    fn open_after(change: impl FnOnce(&DB)) -> Result<(), LogError> {
        let directory = tempfile::tempdir().unwrap();
        let mut log = RocksLog::open(directory.path(), &options()).unwrap();
        for group in [1, 2] {
            let appends = [2..4, 4..6, 6..8].map(|indexes| append(group, 1, indexes));
            log.write(&[create(group)]).unwrap();
            log.write(&appends).unwrap();
        }
        drop(log);
        let db = DB::open_default(directory.path()).unwrap();
        change(&db);
        drop(db);
        let log = RocksLog::open(directory.path(), &options())?;
        log.damaged().values().next().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn damage(error: Result<(), LogError>) -> (u64, u64, String) {
        match error {
            Err(LogError::Damaged { group, index, what }) => (group.value(), index.value(), what),
            other => panic!("expected damage, got {other:?}"),
        }
    }

    #[test]
    fn untouched_logs_open() {
        assert_eq!(open_after(|_| {}), Ok(()));
    }

    #[test]
    fn a_flipped_bit_is_damage_at_its_record() {
        let found = damage(open_after(|db| {
            let mut value = db.get(key(2, 4)).unwrap().unwrap();
            *value.last_mut().unwrap() ^= 1;
            db.put(key(2, 4), value).unwrap();
        }));
        assert_eq!(found, (2, 4, "checksum does not match".to_owned()));
    }

    #[test]
    fn a_missing_record_is_damage_at_the_next_one() {
        let found = damage(open_after(|db| db.delete(key(1, 4)).unwrap()));
        assert_eq!(found, (1, 6, "entries are missing after 3@1".to_owned()));
    }

    #[test]
    fn a_record_under_another_key_is_damage() {
        let found = damage(open_after(|db| {
            let value = db.get(key(1, 6)).unwrap().unwrap();
            db.put(key(2, 6), value).unwrap();
        }));
        assert_eq!((found.0, found.1), (2, 6));
    }

    #[test]
    fn entries_of_no_group_are_damage() {
        let group_row = [&[2][..], &1u64.to_be_bytes()].concat();
        let found = damage(open_after(|db| db.delete(group_row).unwrap()));
        assert_eq!(found, (1, 2, "unknown group".to_owned()));
    }

    #[test]
    fn a_row_of_a_newer_release_is_no_damage() {
        let opened = open_after(|db| db.put([99, 1], b"news").unwrap());
        assert!(matches!(opened, Err(LogError::Format(_))), "{opened:?}");
    }

    #[test]
    fn a_read_notices_damage_that_came_after_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = RocksLog::open(directory.path(), &options()).unwrap();
        log.write(&[create(1), append(1, 1, 2..4)]).unwrap();
        log.flush().unwrap();
        let files = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path());
        for file in files.filter(|file| file.extension().is_some_and(|it| it == "sst")) {
            let mut bytes = fs::read(&file).unwrap();
            let at = bytes.windows(3).position(|window| window == b"2@1").unwrap();
            bytes[at] ^= 1;
            fs::write(file, bytes).unwrap();
        }
        let entries = log.reader().read(GroupId(1), LogIndex(2), LogIndex(3), usize::MAX);
        assert!(matches!(entries, Err(LogError::Damaged { .. })), "{entries:?}");
    }
}
