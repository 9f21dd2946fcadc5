//! The writer and the fetcher over the memory twin. No test waits for time: syncs are held and released.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, NoopRecorder,
    Recorder, SharedString, Unit,
};
use quorate_types::{Entry, EntryId, GroupId, LogIndex, Payload, SnapshotMeta, Term};
use quorate_wal::mem::MemDisk;
use quorate_wal::{
    Completions, Fetch, LogError, LogStore, Persisted, RecoveredLog, Task, Wal, WalConfig, Why,
    Write,
};

#[derive(Debug)]
enum Heard {
    Persisted(Vec<Persisted>),
    Fetched(Fetch, Result<Vec<Entry>, LogError>),
    Reloaded(GroupId, u64, Option<Box<RecoveredLog>>),
    Poisoned(LogError),
}

struct Ear(Sender<Heard>);

impl Completions for Ear {
    fn persisted(&self, done: &[Persisted]) {
        let _ = self.0.send(Heard::Persisted(done.to_vec()));
    }

    fn fetched(&self, fetch: Fetch, entries: Result<Vec<Entry>, LogError>) {
        let _ = self.0.send(Heard::Fetched(fetch, entries));
    }

    fn reloaded(&self, group: GroupId, generation: u64, log: Option<RecoveredLog>) {
        let _ = self.0.send(Heard::Reloaded(group, generation, log.map(Box::new)));
    }

    fn poisoned(&self, error: &LogError) {
        let _ = self.0.send(Heard::Poisoned(error.clone()));
    }
}

/// How long anything may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until it is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::yield_now();
    }
}

struct Node {
    disk: MemDisk,
    wal: Wal,
    heard: Receiver<Heard>,
}

impl Node {
    fn start(config: WalConfig) -> Self {
        Self::start_with(config, &NoopRecorder)
    }

    /// A node whose groups 1 to 9 exist, at index 1.
    fn start_with(config: WalConfig, recorder: &dyn Recorder) -> Self {
        let disk = MemDisk::new();
        let mut log = disk.open();
        let creates: Vec<Write> = (1..10).map(create).collect();
        log.write(&creates).unwrap();
        let (ear, heard) = unbounded();
        let wal = Wal::start(log, Arc::new(Ear(ear)), config, recorder);
        Self { disk, wal, heard }
    }

    fn submit(&self, group: u64, index: u64, ticket: u64) {
        self.wal.submit(task(group, index, ticket)).unwrap();
    }

    /// Keeps the writer inside the sync of a batch of its own.
    fn occupy(&self) {
        self.disk.hold_syncs();
        self.submit(9, 2, 0);
        self.disk.wait_for_held_sync();
    }

    /// What is heard next.
    fn heard(&self) -> Heard {
        self.heard.recv_timeout(PATIENCE).expect("the threads say something")
    }

    fn persisted(&self) -> Vec<Persisted> {
        match self.heard() {
            Heard::Persisted(done) => done,
            other => panic!("expected a completion, heard {other:?}"),
        }
    }

    /// Everything still to be heard; ends once the threads have.
    fn rest(self) -> Vec<Heard> {
        self.wal.shutdown();
        drop(self.wal);
        self.heard.iter().collect()
    }
}

fn create(group: u64) -> Write {
    let last = EntryId::new(Term(1), LogIndex(1));
    let snapshot = SnapshotMeta { last, ..SnapshotMeta::default() };
    Write::Create { group: GroupId(group), label: Bytes::from_static(b"kind"), snapshot }
}

fn entry(term: u64, index: u64) -> Entry {
    let id = EntryId::new(Term(term), LogIndex(index));
    Entry { id, payload: Payload::Command(format!("{id}").into()) }
}

fn append(group: u64, term: u64, index: u64) -> Write {
    let entries = vec![entry(term, index)];
    Write::Append { group: GroupId(group), hard_state: None, entries }
}

fn task(group: u64, index: u64, ticket: u64) -> Task {
    Task { write: append(group, 1, index), generation: 1, ticket }
}

fn done(group: u64, ticket: u64) -> Persisted {
    Persisted { group: GroupId(group), generation: 1, ticket }
}

fn fetch(group: u64, from: u64, to: u64) -> Fetch {
    let (from, to) = (LogIndex(from), LogIndex(to));
    Fetch { group: GroupId(group), generation: 1, from, to, bytes_max: usize::MAX }
}

#[test]
fn what_waits_during_a_sync_becomes_one_batch_with_one_sync_and_one_completion() {
    let node = Node::start(WalConfig::default());
    node.occupy();
    let syncs = node.disk.sync_count();
    for ticket in 1..=50 {
        for group in 1..=8 {
            node.submit(group, 1 + ticket, ticket);
        }
    }
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(9, 0)]);
    let expected: Vec<_> = (1..=8).map(|group| done(group, 50)).collect();
    assert_eq!(node.persisted(), expected);
    assert_eq!(node.disk.sync_count(), syncs + 2);
    assert_eq!(node.wal.synced_batches(), syncs + 2);
}

#[test]
fn tickets_of_a_group_complete_in_order_whatever_the_batches_are() {
    // A batch of one byte is a batch of one task.
    for batch_bytes_max in [1, 500, 1 << 20] {
        let node = Node::start(WalConfig { batch_bytes_max, ..WalConfig::default() });
        for ticket in 1..=100 {
            for group in [3, 1] {
                node.submit(group, 1 + ticket, ticket);
            }
        }
        let disk = node.disk.clone();
        let mut last = BTreeMap::new();
        for heard in node.rest() {
            let Heard::Persisted(done) = heard else { panic!("heard {heard:?}") };
            assert!(done.is_sorted());
            for Persisted { group, ticket, .. } in done {
                assert!(last.insert(group, ticket).is_none_or(|earlier| earlier < ticket));
            }
        }
        assert_eq!(last, [(GroupId(1), 100), (GroupId(3), 100)].into());
        let expected = EntryId::new(Term(1), LogIndex(101));
        assert_eq!(disk.open().log(GroupId(3)).unwrap().last, expected);
    }
}

#[test]
fn generations_of_one_group_complete_apart() {
    let node = Node::start(WalConfig::default());
    node.occupy();
    node.submit(1, 2, 8);
    let reloaded = Task { generation: 2, ..task(1, 3, 1) };
    node.wal.submit(reloaded).unwrap();
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(9, 0)]);
    assert_eq!(node.persisted(), [done(1, 8), Persisted { generation: 2, ..done(1, 1) }]);
}

#[test]
fn nothing_completes_before_its_sync_and_nothing_acknowledged_is_lost() {
    for seed in 0..32 {
        let node = Node::start(WalConfig::default());
        node.submit(1, 2, 1);
        assert_eq!(node.persisted(), [done(1, 1)]);
        node.disk.hold_syncs();
        node.submit(1, 3, 2);
        node.disk.wait_for_held_sync();
        assert!(node.heard.is_empty());
        let survived = node.disk.crash(seed).survived as u64;
        let last = node.disk.open().log(GroupId(1)).unwrap().last.index;
        assert_eq!(last, LogIndex(2 + survived));
        assert!(matches!(&node.rest()[..], [Heard::Poisoned(_)]), "the old process saw an error");
    }
}

#[test]
fn a_disk_that_hangs_in_a_seal_shows() {
    let node = Node::start(WalConfig { seal_after: Duration::ZERO, ..WalConfig::default() });
    node.disk.hold_syncs();
    node.submit(1, 2, 1);
    node.disk.wait_for_held_sync();
    assert!(node.wal.oldest_unsynced().is_some(), "in the sync of a batch");
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(1, 1)]);
    node.disk.hold_syncs();
    // Until the writer seals what it has written, unless it has done so already; a further batch then
    // leaves it something to seal.
    while node.wal.oldest_unsynced().is_none() {
        node.disk.release_syncs();
        node.submit(1, 3, 2);
        drop(node.persisted());
        node.disk.hold_syncs();
        thread::yield_now();
    }
    node.disk.wait_for_held_sync();
    node.submit(2, 2, 1);
    assert!(node.wal.oldest_unsynced().is_some(), "in a seal, with a write behind it");
    node.disk.release_syncs();
    while node.persisted() != [done(2, 1)] {}
}

#[test]
fn the_first_failed_sync_poisons_once_and_for_all() {
    let node = Node::start(WalConfig::default());
    node.occupy();
    node.submit(1, 2, 1);
    node.submit(2, 2, 1);
    node.disk.fail_sync_after(1);
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(9, 0)]);
    let Heard::Poisoned(error) = node.heard() else { panic!("not poisoned") };
    assert!(matches!(error, LogError::Engine(_)));
    assert!(node.wal.is_poisoned());

    // The disk works again, which must not tempt anyone.
    let task = task(1, 2, 2);
    let refused = node.wal.submit(task.clone()).unwrap_err();
    assert_eq!((*refused.task, refused.why), (task, Why::Closed));
    assert_eq!(node.wal.reload(GroupId(1), 2), Err(Why::Closed));
    assert_eq!(node.wal.fetch(fetch(9, 2, 2)).unwrap_err().why, Why::Closed);
    assert!(node.rest().is_empty());
}

#[test]
fn what_waits_behind_a_failed_sync_never_completes() {
    let node = Node::start(WalConfig { batch_bytes_max: 1, ..WalConfig::default() });
    node.occupy();
    for ticket in 1..=10 {
        node.submit(1, 1 + ticket, ticket);
    }
    node.wal.reload(GroupId(1), 2).unwrap();
    node.disk.fail_sync_after(3);
    node.disk.release_syncs();
    let heard = node.rest();
    assert_eq!(heard.len(), 4);
    assert!(matches!(&heard[2], Heard::Persisted(done) if done[0].ticket == 2));
    assert!(matches!(&heard[3], Heard::Poisoned(_)));
}

#[test]
fn a_full_queue_gives_the_task_back_and_takes_others_later() {
    let node = Node::start(WalConfig { queue_tasks_max: 2, ..WalConfig::default() });
    node.occupy();
    node.submit(1, 2, 1);
    node.submit(1, 3, 2);
    let refused = node.wal.submit(task(1, 4, 3)).unwrap_err();
    assert_eq!((*refused.task, refused.why), (task(1, 4, 3), Why::Full));
    assert_eq!(node.wal.reload(GroupId(1), 1), Err(Why::Full));
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(9, 0)]);
    assert_eq!(node.persisted(), [done(1, 2)]);
    node.submit(1, 4, 3);
    assert_eq!(node.persisted(), [done(1, 3)]);
}

#[test]
fn the_queue_is_bounded_in_bytes_but_takes_a_task_of_any_size_alone() {
    let large = |index: u64, ticket| {
        let id = EntryId::new(Term(1), LogIndex(index));
        let payload = Payload::Command(vec![0; 5_000].into());
        let entries = vec![Entry { id, payload }];
        let write = Write::Append { group: GroupId(1), hard_state: None, entries };
        Task { write, generation: 1, ticket }
    };
    let node = Node::start(WalConfig { queue_bytes_max: 1_000, ..WalConfig::default() });
    node.wal.submit(large(2, 1)).unwrap();
    assert_eq!(node.persisted(), [done(1, 1)]);
    // Bytes are given back before the next batch is written; by then nothing waits.
    node.occupy();
    assert_eq!(node.wal.submit(large(3, 2)).unwrap_err().why, Why::Full);
    node.submit(2, 2, 1);
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(9, 0)]);
    assert_eq!(node.persisted(), [done(2, 1)]);
}

#[test]
fn shutdown_writes_everything_that_was_accepted_and_refuses_the_rest() {
    let node = Node::start(WalConfig { batch_bytes_max: 1, ..WalConfig::default() });
    for ticket in 1..=20 {
        node.submit(1, 1 + ticket, ticket);
    }
    node.wal.fetch(fetch(2, 2, 2)).unwrap();
    node.wal.shutdown();
    node.wal.shutdown();
    assert_eq!(node.wal.submit(task(1, 22, 21)).unwrap_err().why, Why::Closed);
    assert_eq!(node.wal.fetch(fetch(1, 2, 2)).unwrap_err().why, Why::Closed);
    let heard: Vec<Heard> = node.heard.try_iter().collect();
    assert_eq!(heard.len(), 21);
    assert_eq!(node.disk.open().log(GroupId(1)).unwrap().last.index, LogIndex(21));
}

#[test]
fn entries_are_fetched_while_a_sync_hangs_and_only_durable_ones() {
    let node = Node::start(WalConfig::default());
    node.submit(1, 2, 1);
    assert_eq!(node.persisted(), [done(1, 1)]);
    node.disk.hold_syncs();
    node.submit(1, 3, 2);
    node.disk.wait_for_held_sync();
    node.wal.fetch(fetch(1, 2, 9)).unwrap();
    node.wal.fetch(fetch(1, 1, 1)).unwrap();
    let Heard::Fetched(asked, entries) = node.heard() else { panic!() };
    assert_eq!((asked, entries), (fetch(1, 2, 9), Ok(vec![entry(1, 2)])));
    let Heard::Fetched(_, entries) = node.heard() else { panic!() };
    assert_eq!(entries, Err(LogError::Compacted { group: GroupId(1), first: LogIndex(2) }));
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(1, 2)]);
}

#[test]
fn overwritten_entries_are_never_read_back() {
    let node = Node::start(WalConfig::default());
    for (ticket, index) in (2..=5).enumerate() {
        node.submit(1, index, ticket as u64);
    }
    let overwrite = Task { write: append(1, 2, 3), generation: 1, ticket: 9 };
    node.wal.submit(overwrite).unwrap();
    while node.persisted().last() != Some(&done(1, 9)) {}
    node.wal.fetch(fetch(1, 2, 9)).unwrap();
    let Heard::Fetched(_, entries) = node.heard() else { panic!() };
    assert_eq!(entries, Ok(vec![entry(1, 2), entry(2, 3)]));
}

#[test]
fn a_reload_sees_everything_that_was_submitted_before_it() {
    let node = Node::start(WalConfig::default());
    node.occupy();
    node.submit(1, 2, 1);
    node.wal.reload(GroupId(1), 2).unwrap();
    node.submit(1, 3, 2);
    node.wal.reload(GroupId(77), 3).unwrap();
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(9, 0)]);
    assert_eq!(node.persisted(), [done(1, 1)]);
    let Heard::Reloaded(group, generation, Some(log)) = node.heard() else { panic!() };
    assert_eq!((group, generation, log.last.index), (GroupId(1), 2, LogIndex(2)));
    assert_eq!(log.label, "kind");
    assert_eq!(node.persisted(), [done(1, 2)]);
    assert!(matches!(node.heard(), Heard::Reloaded(GroupId(77), 3, None)));
}

/// Remembers sums of counters and what histograms were told.
#[derive(Default)]
struct Figures {
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    samples: Mutex<BTreeMap<String, Arc<Samples>>>,
}

#[derive(Default)]
struct Samples(Mutex<Vec<f64>>);

impl HistogramFn for Samples {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

impl Figures {
    fn count(&self, name: &str) -> u64 {
        self.counters.lock().unwrap()[name].load(Ordering::Relaxed)
    }

    fn samples(&self, name: &str) -> Vec<f64> {
        self.samples.lock().unwrap()[name].0.lock().unwrap().clone()
    }
}

impl Recorder for Figures {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = self.counters.lock().unwrap();
        let cell = Arc::clone(counters.entry(key.name().to_owned()).or_default());
        cell.absolute(0);
        Counter::from_arc(cell)
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let mut samples = self.samples.lock().unwrap();
        Histogram::from_arc(Arc::clone(samples.entry(key.name().to_owned()).or_default()))
    }
}

#[test]
fn a_batch_is_told_to_the_recorder() {
    let figures = Figures::default();
    let node = Node::start_with(WalConfig::default(), &figures);
    node.occupy();
    for group in 1..=4 {
        node.submit(group, 2, 1);
        node.submit(group, 3, 2);
    }
    node.wal.fetch(fetch(9, 1, 1)).unwrap();
    node.disk.release_syncs();
    assert_eq!(node.rest().len(), 3);
    assert_eq!(figures.count("quorate_wal_syncs_total"), 2);
    assert_eq!(figures.count("quorate_wal_fetches_total"), 1);
    assert_eq!(figures.samples("quorate_wal_batch_entries"), [1.0, 8.0]);
    assert_eq!(figures.samples("quorate_wal_batch_groups"), [1.0, 4.0]);
    assert_eq!(figures.samples("quorate_wal_sync_seconds").len(), 2);
    let bytes: f64 = figures.samples("quorate_wal_batch_bytes").iter().sum();
    assert_eq!(figures.count("quorate_wal_written_bytes_total"), bytes as u64);
}

#[test]
fn what_is_not_synced_grows_old_until_its_sync_returns() {
    let node = Node::start(WalConfig::default());
    assert_eq!(node.wal.oldest_unsynced(), None);
    node.occupy();
    let young = node.wal.oldest_unsynced().expect("a sync is under way");
    node.submit(1, 2, 1);
    let age = || node.wal.oldest_unsynced().expect("it still is");
    until("it grows old", || age() != young);
    let old = age();
    assert!(old > young, "the one under way, not the one that waits");
    node.disk.release_syncs();
    assert_eq!(node.persisted(), [done(9, 0)]);
    assert_eq!(node.persisted(), [done(1, 1)]);
    assert_eq!(node.wal.oldest_unsynced(), None);
}

#[test]
fn the_last_batch_before_a_pause_is_sealed_once() {
    let figures = Figures::default();
    // Any pause is long enough.
    let config = WalConfig { seal_after: Duration::ZERO, ..WalConfig::default() };
    let node = Node::start_with(config, &figures);
    for index in 2..5 {
        node.submit(1, index, index);
        assert_eq!(node.persisted(), [done(1, index)]);
        until("a seal", || figures.count("quorate_wal_seals_total") >= index - 1);
    }
    assert!(node.rest().is_empty());
    assert_eq!(figures.count("quorate_wal_seals_total"), 3, "nothing new, nothing to seal");
    assert_eq!(figures.count("quorate_wal_syncs_total"), 3);
    assert_eq!(figures.count("quorate_wal_entries_total"), 3);
}

#[test]
fn a_log_under_load_is_sealed_at_its_end_alone() {
    let figures = Figures::default();
    let config = WalConfig { seal_after: Duration::from_secs(3_600), ..WalConfig::default() };
    let node = Node::start_with(config, &figures);
    for index in 2..5 {
        node.submit(1, index, index);
        assert_eq!(node.persisted(), [done(1, index)]);
    }
    assert_eq!(figures.count("quorate_wal_seals_total"), 0);
    assert!(node.rest().is_empty());
    assert_eq!(figures.count("quorate_wal_seals_total"), 1);
}
