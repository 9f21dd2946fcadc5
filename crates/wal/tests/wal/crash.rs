//! The memory twin: the suite, and what it promises to those who crash it.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_types::{
    Entry, EntryId, GroupId, HardState, LogIndex, NodeId, Payload, SnapshotMeta, Term,
};
use quorate_wal::mem::{Crash, MemDisk, MemLog};
use quorate_wal::{LogError, LogStore, Write};

use crate::suite::{self, Place};

impl Place for MemDisk {
    type Log = MemLog;

    fn open(&mut self) -> MemLog {
        Self::open(self)
    }

    fn cut_power(&mut self, mut log: MemLog, batches: &[Vec<Write>], seed: u64) -> usize {
        for batch in batches {
            log.stage(batch).expect("nothing fails here");
        }
        let Crash { survived, lost } = self.crash(seed);
        assert_eq!(survived + lost, batches.len());
        survived
    }

    fn tidy(&mut self, _log: &MemLog, _thoroughly: bool) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_twin_holds_what_the_model_holds(steps in suite::history(40)) {
        suite::run(&mut MemDisk::new(), &steps);
    }
}

fn create(group: u64) -> Write {
    let last = EntryId::new(Term(1), LogIndex(1));
    let snapshot = SnapshotMeta { last, ..SnapshotMeta::default() };
    Write::Create { group: GroupId(group), label: Bytes::new(), snapshot }
}

fn append(group: u64, index: u64) -> Write {
    let id = EntryId::new(Term(1), LogIndex(index));
    let entries = vec![Entry { id, payload: Payload::Empty }];
    Write::Append { group: GroupId(group), hard_state: None, entries }
}

fn last(log: &MemLog, group: u64) -> u64 {
    log.log(GroupId(group)).expect("the group exists").last.index.value()
}

#[test]
fn a_power_cut_keeps_any_prefix_of_what_was_not_synced_and_the_seed_decides() {
    let mut seen = [false; 4];
    for seed in 0..64 {
        let outcome = || {
            let disk = MemDisk::new();
            let mut log = disk.open();
            log.write(&[create(1)]).unwrap();
            for index in 2..5 {
                log.stage(&[append(1, index)]).unwrap();
            }
            assert_eq!(last(&log, 1), 1, "nothing is seen before its sync");
            let crash = disk.crash(seed);
            assert_eq!(last(&disk.open(), 1), 1 + crash.survived as u64);
            crash.survived
        };
        assert_eq!(outcome(), outcome());
        seen[outcome()] = true;
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn a_mere_kill_keeps_what_was_staged() {
    let disk = MemDisk::new();
    let mut log = disk.open();
    log.write(&[create(1)]).unwrap();
    log.stage(&[append(1, 2)]).unwrap();
    assert_eq!(last(&disk.open(), 1), 2);
}

#[test]
fn a_process_that_is_gone_can_neither_write_nor_read() {
    let disk = MemDisk::new();
    let mut old = disk.open();
    old.write(&[create(1)]).unwrap();
    let reader = old.reader();
    let mut new = disk.open();
    assert!(matches!(old.write(&[append(1, 2)]), Err(LogError::Engine(_))));
    assert!(matches!(old.recover(), Err(LogError::Engine(_))));
    let entries = reader.read(GroupId(1), LogIndex(2), LogIndex(2), 0);
    assert!(matches!(entries, Err(LogError::Engine(_))));
    new.write(&[append(1, 2)]).unwrap();
    assert_eq!(last(&new, 1), 2);
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_the_batch_may_or_may_not_survive() {
    let mut seen = [false; 2];
    for seed in 0..64 {
        let disk = MemDisk::new();
        let mut log = disk.open();
        disk.fail_sync_after(1);
        log.write(&[create(1)]).unwrap();
        assert!(matches!(log.write(&[append(1, 2)]), Err(LogError::Engine(_))));
        assert_eq!(log.write(&[append(1, 2)]), Err(LogError::Poisoned));
        assert_eq!((disk.sync_count(), log.synced_batches()), (1, 1));
        seen[disk.crash(seed).survived] = true;
    }
    assert_eq!(seen, [true; 2]);
}

#[test]
#[should_panic(expected = "group 1: append at 4@1 leaves a gap after 2@1")]
fn a_gap_is_a_broken_invariant() {
    let _ = MemDisk::new().open().write(&[create(1), append(1, 2), append(1, 4)]);
}

#[test]
#[should_panic(expected = "group 1: append at 1@1 would overwrite the base 1@1")]
fn so_is_overwriting_the_base() {
    let _ = MemDisk::new().open().write(&[create(1), append(1, 1)]);
}

#[test]
#[should_panic(expected = "append to unknown g7")]
fn so_is_an_append_to_no_group() {
    let _ = MemDisk::new().open().write(&[append(7, 2)]);
}

#[test]
#[should_panic(expected = "group 1: truncation through 3 reaches beyond the last entry 2@1")]
fn so_is_truncating_what_is_not_there() {
    let through = LogIndex(3);
    let truncate = Write::TruncatePrefix { group: GroupId(1), through };
    let _ = MemDisk::new().open().write(&[create(1), append(1, 2), truncate]);
}

#[test]
#[should_panic(expected = "intent for unknown g7")]
fn so_is_an_intent_for_no_group() {
    let write = Write::Intend { group: GroupId(7), intent: Bytes::new() };
    let _ = MemDisk::new().open().write(&[write]);
}

#[test]
fn an_intent_lasts_until_the_log_is_reset_and_the_vote_stays() {
    let disk = MemDisk::new();
    let mut log = disk.open();
    let hard_state = HardState { term: Term(3), vote: Some(NodeId(2)), commit: LogIndex(2) };
    let vote =
        Write::Append { group: GroupId(1), hard_state: Some(hard_state), entries: Vec::new() };
    log.write(&[create(1), append(1, 2), vote]).unwrap();
    let intent = Bytes::from_static(b"snapshot at 90");
    log.write(&[Write::Intend { group: GroupId(1), intent: intent.clone() }]).unwrap();
    log.write(&[append(1, 3)]).unwrap();
    disk.crash(0);

    let mut log = disk.open();
    let found = log.log(GroupId(1)).unwrap();
    assert_eq!((found.intent, found.last.index), (Some(intent), LogIndex(3)));
    let last = EntryId::new(Term(2), LogIndex(90));
    let snapshot = SnapshotMeta { last, ..SnapshotMeta::default() };
    log.write(&[Write::Create { group: GroupId(1), label: Bytes::new(), snapshot }]).unwrap();
    let found = log.log(GroupId(1)).unwrap();
    assert_eq!((found.intent, found.last, found.hard_state), (None, last, hard_state));
    let first = LogIndex(91);
    let gone = log.reader().read(GroupId(1), LogIndex(3), LogIndex(90), usize::MAX);
    assert_eq!(gone, Err(LogError::Compacted { group: GroupId(1), first }));
    assert_eq!(log.reader().read(GroupId(1), first, first, usize::MAX), Ok(Vec::new()));
}
