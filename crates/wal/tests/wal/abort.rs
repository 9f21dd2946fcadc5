//! A panic on a thread of the log ends the process: seen from a process that starts another one.

use std::env;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use quorate_types::{Entry, GroupId, SnapshotMeta};
use quorate_wal::mem::MemDisk;
use quorate_wal::{Completions, Fetch, LogError, Persisted, Task, Wal, WalConfig, Write};

const CHILD: &str = "QUORATE_WAL_TEST_CHILD";

/// Panics when it hears of a completion; otherwise it keeps the child waiting.
struct Clumsy {
    _held: Mutex<mpsc::Sender<()>>,
}

impl Completions for Clumsy {
    fn persisted(&self, _done: &[Persisted]) {
        panic!("clumsy");
    }

    fn fetched(&self, _fetch: Fetch, _entries: Result<Vec<Entry>, LogError>) {}

    fn poisoned(&self, _error: &LogError) {}
}

#[test]
fn a_panic_on_the_writer_thread_ends_the_process() {
    let name = "abort::a_panic_on_the_writer_thread_ends_the_process";
    if env::var_os(CHILD).is_none() {
        let itself = env::current_exe().unwrap();
        let mut child = Command::new(itself);
        child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
        let output = child.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), None, "ended by a signal: {errors}");
        assert!(errors.contains("'quorate-wal'") && errors.contains("clumsy"), "{errors}");
        return;
    }
    let (held, gone) = mpsc::channel();
    let completions = Arc::new(Clumsy { _held: Mutex::new(held) });
    let wal = Wal::start(
        MemDisk::new().open(),
        completions,
        WalConfig::default(),
        &metrics::NoopRecorder,
    );
    let snapshot = SnapshotMeta::default();
    let write = Write::Create { group: GroupId(1), label: Bytes::new(), snapshot };
    wal.submit(Task { write, generation: 1, ticket: 1 }).unwrap();
    // Ends, and lets the parent see a success, only if the writer dies alone.
    drop(wal);
    let _ = gone.recv();
}
