//! The judgement of log files against the truth: what a writer has synced, what a power cut leaves of the
//! batch that it was writing, and what a disk does that loses what it had.

use proptest::prelude::*;

use super::batch::Batches;
use super::fragment::writer::Writer;
use super::fragment::{BLOCK_BYTES, Form, HEADER_BYTES, Unfit};
use super::manifest::Manifest;
use super::scan::{Scan, Scanner, Stop, Why};
use super::verdict::{LogFile, Tail, judge};

const MARK: u64 = 0x6d61_726b;

/// A batch of `rows` rows whose first one has the number `sequence`.
fn batch(sequence: u64, rows: u32, bytes: usize) -> Vec<u8> {
    let mut batch = sequence.to_le_bytes().to_vec();
    batch.extend(rows.to_le_bytes());
    batch.extend([3, 8]);
    batch.extend(MARK.to_le_bytes());
    batch.extend((0..bytes).map(|at| (at as u64 * 31 + sequence) as u8));
    batch
}

/// Files as one process writes them; every batch has one row more than `rows` says.
struct Logs {
    next: u64,
    files: Vec<(u64, Writer)>,
    /// Where each batch of the last file ends.
    ends: Vec<usize>,
}

impl Logs {
    fn new() -> Self {
        Self { next: 1, files: Vec::new(), ends: Vec::new() }
    }

    fn begin(&mut self, number: u64, recyclable: bool) {
        self.files.push((number, Writer::new(recyclable.then_some(number as u32))));
        self.ends = vec![0];
    }

    fn add(&mut self, bytes: usize) {
        let (_, writer) = self.files.last_mut().expect("a file was begun");
        writer.add(&batch(self.next, 3, bytes));
        self.next += 3;
        self.ends.push(writer.file.len());
    }

    fn file(&self) -> &[u8] {
        &self.files.last().expect("a file was begun").1.file
    }
}

fn log_file(number: u64, bytes: &[u8]) -> LogFile {
    marked_log_file(number, bytes, &[])
}

/// As it is read where the marks of the last processes are known.
fn marked_log_file(number: u64, bytes: &[u8], marks: &[u64]) -> LogFile {
    let mut scanner = Scanner::new(number, Batches::of(marks));
    bytes.chunks(BLOCK_BYTES).for_each(|block| scanner.block(block));
    let (scan, batches) = scanner.finish();
    LogFile { number, scan, batches }
}

fn scan(number: u64, bytes: &[u8]) -> Scan {
    log_file(number, bytes).scan
}

/// Logs of one file, with batches of these sizes.
fn logs(recyclable: bool, sizes: &[usize]) -> Logs {
    let mut logs = Logs::new();
    logs.begin(7, recyclable);
    sizes.iter().for_each(|bytes| logs.add(*bytes));
    logs
}

/// Sizes around everything that matters: nothing, small, about a block, several blocks.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0..400usize, BLOCK_BYTES - 90..BLOCK_BYTES + 20, 0..3 * BLOCK_BYTES]
}

/// What may lie in a file behind its log.
fn leftover() -> impl Strategy<Value = Vec<u8>> {
    let older = prop::collection::vec(size(), 1..4).prop_map(|sizes| {
        let mut older = Writer::new(Some(5));
        sizes.iter().for_each(|bytes| older.add(&batch(900, 1, *bytes)));
        older.file
    });
    let older = older.boxed();
    prop_oneof![
        Just(Vec::new()),
        (1..3 * BLOCK_BYTES).prop_map(|bytes| vec![0; bytes]),
        older.clone(),
        prop::collection::vec(any::<u8>(), 1..500),
        // Cut at any byte: the older log's fragments begin where they like.
        (older, any::<prop::sample::Index>())
            .prop_map(|(older, at)| older[at.index(older.len())..].to_vec()),
    ]
}

/// The file as it is on disk when `leftover` was there before.
fn over(log: &[u8], leftover: &[u8]) -> Vec<u8> {
    [log, leftover.get(log.len()..).unwrap_or_default()].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_lies_behind_a_log_is_none_of_it(
        recyclable: bool,
        sizes in prop::collection::vec(size(), 0..6),
        behind in leftover(),
    ) {
        let logs = logs(recyclable, &sizes);
        let file = [logs.file(), &behind].concat();
        let file = log_file(7, &file);
        prop_assert_eq!(file.scan.whole_bytes, logs.file().len() as u64, "{:?}", file.scan);
        prop_assert_eq!(file.batches.span(), (!sizes.is_empty()).then_some((1, logs.next)));
        let tails = judge(Some(0), &[file]).expect("nothing is missing");
        // Before its first fragment a file does not say which form its fragments have.
        let may_look_torn = !recyclable || sizes.is_empty();
        prop_assert!(may_look_torn || tails.iter().all(|tail| !tail.is_torn), "{tails:?}");
    }

    #[test]
    fn a_batch_that_was_written_in_part_is_torn_and_everything_before_it_whole(
        recyclable: bool,
        sizes in prop::collection::vec(size(), 1..6),
        before in leftover(),
        cut: prop::sample::Index,
        garbled in prop::collection::vec(any::<u8>(), 0..512),
    ) {
        let logs = logs(recyclable, &sizes);
        let [.., synced, end] = logs.ends[..] else { unreachable!("there is a batch") };
        // Some of the last batch has reached the disk, then there may be noise; the rest is as it was.
        let cut = synced + cut.index(end - synced);
        let mut torn = logs.file()[..cut].to_vec();
        torn.extend(&garbled[..garbled.len().min(end - cut)]);
        let file = log_file(7, &over(&torn, &before));
        prop_assert!(file.scan.whole_bytes >= synced as u64, "{:?}", file.scan);
        let whole = file.scan.whole_bytes;
        prop_assert!(whole == synced as u64 || whole == end as u64, "{:?}", file.scan);
        prop_assert!(judge(Some(0), &[file]).is_ok());
    }

    #[test]
    fn blocks_of_a_batch_that_reach_the_disk_out_of_order_are_no_damage(
        recyclable: bool,
        sizes in prop::collection::vec(size(), 1..4),
        lost: prop::sample::Index,
    ) {
        // The middle and the end of a batch are there, its beginning is not.
        let logs = logs(recyclable, &[&sizes[..], &[5 * BLOCK_BYTES]].concat());
        let [.., synced, end] = logs.ends[..] else { unreachable!("there is a batch") };
        let sectors = (synced.next_multiple_of(512)..end).step_by(512).collect::<Vec<_>>();
        let sector = sectors[lost.index(sectors.len())];
        let mut file = logs.file().to_vec();
        file[sector..(sector + 512).min(end)].fill(0);
        let file = log_file(7, &file);
        prop_assert!(file.scan.whole_bytes >= synced as u64);
        prop_assert!(judge(Some(0), &[file]).is_ok());
    }

    #[test]
    fn a_flipped_bit_before_the_last_batch_is_damage(
        recyclable: bool,
        sizes in prop::collection::vec(size(), 2..6),
        behind in leftover(),
        bit: prop::sample::Index,
    ) {
        let logs = logs(recyclable, &sizes);
        let synced = logs.ends[logs.ends.len() - 2];
        let mut file = [logs.file(), &behind].concat();
        let bit = bit.index(8 * synced);
        file[bit / 8] ^= 1 << (bit % 8);
        let scanned = log_file(7, &file);
        // Padding is read by nobody: then all is there.
        let is_whole = scanned.scan.whole_bytes == logs.file().len() as u64;
        prop_assert!(is_whole || judge(Some(0), &[scanned]).is_err(), "bit {bit} of {:?}", logs.ends);
    }

    #[test]
    fn a_first_batch_that_was_written_in_part_is_torn_whatever_clients_put_into_it(
        recyclable: bool,
        forged in 1..40usize,
        size in size(),
        lost: prop::sample::Index,
    ) {
        // Values that look like later batches, but for the mark, which is known to no client.
        let mut forger = Writer::new(recyclable.then_some(9));
        for at in 0..forged {
            let mut record = batch(7 + 3 * at as u64, 3, size / forged);
            record[14] ^= 1;
            forger.add(&record);
        }
        let mut logs = logs(recyclable, &[100, 100]);
        let before = logs.file().to_vec();
        logs.begin(9, recyclable);
        let mut record = batch(logs.next, 3, 100);
        record.extend(&forger.file);
        let (_, writer) = logs.files.last_mut().expect("a file was begun");
        writer.add(&record);
        let mut file = writer.file.clone();
        let sectors = file.len().div_ceil(512);
        let at = 512 * lost.index(sectors);
        let end = file.len().min(at + 512);
        file[at..end].fill(0);
        let files = [
            marked_log_file(7, &before, &[3, MARK]),
            marked_log_file(9, &file, &[3, MARK]),
        ];
        prop_assert!(judge(Some(0), &files).is_ok(), "{:?}", files[1].scan);
    }

    #[test]
    fn a_flipped_bit_in_the_first_batch_of_a_file_is_damage(
        recyclable: bool,
        sizes in prop::collection::vec(size(), 2..4),
        bit: prop::sample::Index,
        knows: bool,
    ) {
        let mut logs = logs(recyclable, &[100]);
        let before = logs.file().to_vec();
        logs.begin(9, recyclable);
        sizes.iter().for_each(|bytes| logs.add(*bytes));
        let mut file = logs.file().to_vec();
        let bit = bit.index(8 * logs.ends[1]);
        file[bit / 8] ^= 1 << (bit % 8);
        let marks = if knows { &[3, MARK][..] } else { &[] };
        let file = marked_log_file(9, &file, marks);
        // Padding is read by nobody: then all is there.
        let is_whole = file.scan.whole_bytes == logs.file().len() as u64;
        prop_assert!(is_whole || judge(Some(0), &[log_file(7, &before), file]).is_err());
    }

    #[test]
    fn noise_is_neither_a_batch_nor_a_panic(
        noise in prop::collection::vec(any::<u8>(), 0..2000),
        number: u64,
    ) {
        let file = log_file(number, &noise);
        prop_assert_eq!((file.scan.whole_bytes, file.batches.span()), (0, None));
        prop_assert!(judge(None, &[file]).is_ok());
    }

    #[test]
    fn noise_in_a_manifest_is_no_panic(records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5)) {
        let mut manifest = Writer::new(None);
        records.iter().for_each(|record| manifest.add(record));
        let mut scanner = Scanner::new(0, Manifest::default());
        manifest.file.chunks(BLOCK_BYTES).for_each(|block| scanner.block(block));
        let (scan, manifest) = scanner.finish();
        prop_assert_eq!((scan.stop, manifest.edits()), (None, records.len() as u64));
    }
}

#[test]
fn a_length_that_was_damaged_hides_no_later_batch_of_the_same_block() {
    let logs = logs(true, &[100, 100, 100]);
    for bit in 0..16 {
        let mut file = logs.file().to_vec();
        file[4 + bit / 8] ^= 1 << (bit % 8);
        let damage = judge(Some(0), &[log_file(7, &file)]).expect_err("two batches were after it");
        let later = logs.ends[1];
        assert!(
            damage.what.ends_with(&format!("a later batch begins at byte {later}")),
            "{damage}"
        );
    }
}

#[test]
fn zeros_in_the_middle_are_no_end() {
    let logs = logs(true, &[2 * BLOCK_BYTES, 100, 100]);
    let mut file = logs.file().to_vec();
    file[BLOCK_BYTES..2 * BLOCK_BYTES].fill(0);
    assert!(judge(Some(0), &[log_file(7, &file)]).is_err());
}

#[test]
fn what_clients_have_written_is_not_taken_for_a_later_batch() {
    // A value in an older log holds a whole record of the log that uses the file again.
    let mut forged = Writer::new(Some(7));
    let mut record = batch(4, 3, 10);
    record[14] ^= 1;
    forged.add(&record);
    let mut older = Writer::new(Some(5));
    older.add(&[&vec![9; 600][..], &forged.file].concat());
    let mut logs = logs(true, &[100]);
    logs.next = 4;
    let file = over(logs.file(), &older.file);
    let found = log_file(7, &file);
    assert_eq!(found.scan.whole_bytes, logs.file().len() as u64);
    let tails = judge(Some(0), &[found]).expect("the log is sound");
    let (number, whole_bytes, file_bytes) = (7, logs.file().len() as u64, file.len() as u64);
    assert_eq!(tails, [Tail { number, whole_bytes, file_bytes, is_torn: false }]);
}

#[test]
fn a_torn_batch_before_a_later_file_is_damage() {
    let mut logs = logs(true, &[100, 100]);
    logs.begin(9, true);
    let (first, second) = (&logs.files[0].1.file, &logs.files[1].1.file);
    let whole = [log_file(7, first), log_file(9, second)];
    assert_eq!(judge(Some(0), &whole), Ok(vec![]));
    let cut = [log_file(7, &first[..first.len() - 1]), log_file(9, second)];
    assert!(judge(Some(0), &cut).is_err());
}

#[test]
fn what_is_lost_at_the_head_of_a_file_is_damage_once_there_is_a_later_file() {
    let files = |first: &[u8]| [log_file(7, first), log_file(9, &[])];
    for recyclable in [false, true] {
        let logs = logs(recyclable, &[100, 100]);
        let lost = |from: usize| {
            let mut file = logs.file().to_vec();
            file[from..].fill(0);
            file
        };
        assert_eq!(judge(Some(0), &files(logs.file())), Ok(vec![]));
        // Its last sync was before the later file was begun.
        assert!(judge(Some(0), &files(&lost(0))).is_err(), "recyclable: {recyclable}");
        // The bytes of an older log may lie behind what was written, if there was one.
        let end = judge(Some(0), &files(&lost(logs.ends[1])));
        assert_eq!(end.is_ok(), recyclable, "{end:?}");
        // With nothing behind it, the end is what was being written.
        assert!(judge(Some(0), &[log_file(7, &lost(0))]).is_ok());
    }
}

#[test]
fn starts_that_were_cut_short_leave_files_without_batches() {
    // What RocksDB writes when it opens: a batch without rows, which nobody has synced.
    let mut empty = Writer::new(None);
    empty.add(&[&7u64.to_le_bytes()[..], &[0; 4]].concat());
    let logs = logs(false, &[100, 100]);
    let lost = vec![0; empty.file.len()];
    let files = [
        log_file(7, logs.file()),
        log_file(9, &empty.file),
        log_file(11, &lost),
        log_file(13, &[]),
        log_file(15, &empty.file[..5]),
    ];
    let tails = judge(Some(0), &files).expect("nothing is missing");
    let ends: Vec<_> = tails.iter().map(|tail| (tail.number, tail.whole_bytes)).collect();
    assert_eq!(ends, [(11, 0), (15, 0)]);
}

#[test]
fn a_gap_between_files_is_damage_and_so_is_one_before_the_first() {
    let mut logs = logs(true, &[100, 100]);
    let whole = logs.file().to_vec();
    let first_end = logs.ends[1];
    logs.begin(9, true);
    logs.add(50);
    let second = logs.file();
    let judged = |first: &[u8], last| judge(last, &[log_file(7, first), log_file(9, second)]);
    assert_eq!(judged(&whole, Some(0)), Ok(vec![]));
    // The last batch of the first file is gone as if it had never been.
    assert!(judged(&whole[..first_end], Some(0)).is_err());
    // The file with the batches up to 6 is not there.
    let alone = |last| judge(last, &[log_file(9, second)]);
    assert_eq!(alone(Some(6)), Ok(vec![]));
    assert_eq!(alone(Some(5)).map_err(|damage| damage.at), Err(0));
    assert_eq!(alone(None), Ok(vec![]));
    // Batches that are in sorted files too are no gap.
    assert_eq!(alone(Some(8)), Ok(vec![]));
}

#[test]
fn a_file_says_why_it_ends() {
    let stop = |bytes: &[u8]| scan(7, bytes).stop.map(|Stop { at, why, .. }| (at, why));
    let logs = logs(true, &[100, 100]);
    let (file, end) = (logs.file(), logs.file().len() as u64);
    assert_eq!(stop(file), None);
    let last = logs.ends[1] as u64;
    let cut = &file[..file.len() - 1];
    assert_eq!(stop(cut), Some((last, Why::Broken)));
    assert_eq!(stop(&[file, &[0; 4]].concat()), Some((end, Why::Foreign(Unfit::Zeros))));
    let mut older = Writer::new(Some(6));
    older.add(b"older");
    let with_older = [file, &older.file].concat();
    assert_eq!(stop(&with_older), Some((end, Why::Foreign(Unfit::OtherLog))));
    let mut plain = Writer::new(None);
    plain.add(b"of another form");
    let with_plain = [file, &plain.file].concat();
    assert_eq!(stop(&with_plain), Some((end, Why::Foreign(Unfit::Garbage))));
    assert!(plain.file.len() > HEADER_BYTES && Form::Plain != Form::Recyclable);
}

#[test]
fn a_manifest_tells_the_live_logs_and_steps_over_the_rest() {
    let mut manifest = Writer::new(None);
    // Comparator, log number, next file, last sequence; a file; something from the future.
    manifest.add(&[&[1, 3][..], b"abc", &[2, 4, 3, 9, 4, 100]].concat());
    let file = [103, 0, 12, 80, 1, 7, 1, 8, 90, 110, 5, 1, 42, 1];
    manifest.add(&[&file[..], &[2, 12, 10, 11, 4, 110, 0x81, 0x40, 2, 0, 0]].concat());
    let read = |bytes: &[u8]| {
        let mut scanner = Scanner::new(0, Manifest::default());
        bytes.chunks(BLOCK_BYTES).for_each(|block| scanner.block(block));
        scanner.finish().1
    };
    let found = read(&manifest.file);
    assert_eq!((found.live_from(), found.last_sequence()), (12, Some(110)));
    manifest.add(&[77]);
    let found = read(&manifest.file);
    assert_eq!((found.live_from(), found.last_sequence(), found.edits()), (0, None, 3));
}
