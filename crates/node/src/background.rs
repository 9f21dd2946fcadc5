//! What works in the background yields to what is waited for.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{Pid, setpriority_process};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How far the threads that flush and compact are set back. RocksDB's own call knows only 19, with which a busy node
/// would hardly flush at all, and writes would wait for memtables; at 10 a thread gets a tenth of the share of one
/// that serves, and all of what is idle.
const NICENESS: i32 = 10;

/// What RocksDB calls its threads.
const THREADS: &str = "rocksdb:";

/// Work has not come to its end: it panicked, or the system gave no thread for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it panicked, or there was no thread for it")]
pub(crate) struct Unfinished;

impl From<Unfinished> for io::Error {
    fn from(error: Unfinished) -> Self {
        Self::other(error)
    }
}

/// Does long work that blocks, on a thread of its own that yields to those that serve: one of the runtime's would be
/// given to requests afterwards, and cannot be set back for a while.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let (done, result) = oneshot::channel();
    let runtime = Handle::current();
    let started = std::thread::Builder::new().name("quorate-bulk".into()).spawn(move || {
        // What it drops may have work for the runtime.
        let _inside = runtime.enter();
        if let Err(error) = setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
            tracing::debug!(%error, "long work competes with requests");
        }
        // Nobody may wait any more.
        drop(done.send(catch_unwind(AssertUnwindSafe(work))));
    });
    started.map_err(|_| Unfinished)?;
    result.await.map_err(|_| Unfinished)?.map_err(|_| Unfinished)
}

/// Sets the background threads of all RocksDB instances of this process back, and returns how many those are.
///
/// All replicas of a busy group flush at about the same time, and a flush takes a core for a tenth of a second and
/// more: three nodes on two cores had a p99 of 2.8 times the median without this, and of 2.0 times with it.
///
/// # Errors
/// When the system does not say which threads there are, or refuses.
pub(crate) fn yield_to_foreground() -> io::Result<usize> {
    let mut count = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        // A thread may end meanwhile.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let id = task.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        if let Some(id) = id.filter(|_| name.starts_with(THREADS)) {
            setpriority_process(Some(id), NICENESS)?;
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn long_work_yields_and_its_panic_is_an_error() {
        let niceness = || getpriority_process(Some(rustix::thread::gettid())).unwrap();
        assert_eq!(run(niceness).await, Ok(NICENESS));
        assert_eq!(run(|| panic!("on purpose")).await, Err::<(), _>(Unfinished));
    }

    #[test]
    fn threads_of_the_engines_are_set_back_and_no_others() {
        let named = |name: &str| {
            let (tell, told) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                tell.send(rustix::thread::gettid()).unwrap();
                let _ = ended.recv();
            });
            (told.recv().unwrap(), end, thread.unwrap())
        };
        let (engine, end_engine, engine_thread) = named("rocksdb:high");
        let (other, end_other, other_thread) = named("serves");
        let before = getpriority_process(Some(other)).unwrap();
        assert!(yield_to_foreground().unwrap() >= 1);
        assert_eq!(getpriority_process(Some(engine)).unwrap(), NICENESS);
        assert_eq!(getpriority_process(Some(other)).unwrap(), before);
        drop((end_engine, end_other));
        engine_thread.join().unwrap();
        other_thread.join().unwrap();
    }
}
