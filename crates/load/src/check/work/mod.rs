//! The clients of one round, and what they record.
//!
//! A round: watchers and clients begin; until it ends, [`calls`] read and write single keys, [`leases`] are
//! granted, kept and lost, [`locks`] are taken and given up, and [`watchers`] follow all of it over streams
//! that break every now and then. Then every client finishes its call, one last write touches what each
//! watcher watches, and the watchers are given the time to come to it.

mod calls;
mod leases;
mod locks;
mod servers;
mod watchers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::End;
use super::history::{Action, History, Record, Write};
use crate::Fault;
use crate::args::{Check, Exception};
use servers::Servers;

/// What a round came to.
pub(crate) struct Round {
    /// What was recorded.
    pub(crate) history: History,
    /// Whether the service `Lock` is served, if that is known.
    pub(crate) lock_service: Option<bool>,
    /// Why the round did not come to its end.
    pub(crate) fault: Option<Fault>,
}

/// What all clients of a round share.
struct Shared {
    args: Check,
    began: Instant,
    /// What stands before every key of this round.
    prefix: String,
    /// What stands before the names of locks of the service, which watchers do not see.
    service_prefix: String,
    history: Mutex<History>,
    values: AtomicU64,
    lock_service: Mutex<Option<bool>>,
    /// When the clients end.
    stop: watch::Receiver<bool>,
    /// The revision that watchers have to come to, once it is known; 0 ends them as they are.
    end: watch::Receiver<Option<i64>>,
}

impl Shared {
    /// Microseconds since the round began.
    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a round takes no 500,000 years")
    }

    fn record(&self, record: Record) {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).records.push(record);
    }

    fn is_full(&self) -> bool {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.records.len() >= self.args.records_max
    }

    /// A value that nobody else writes.
    fn value(&self) -> String {
        self.values.fetch_add(1, Ordering::Relaxed).to_string()
    }

    fn write(&self, key: &str, lease: i64) -> Write {
        Write { key: key.to_owned(), value: self.value(), lease }
    }

    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits, or less when the clients end.
    async fn pause(&self, time: Duration) {
        let mut stop = self.stop.clone();
        // An error says that the round is gone, and with it the reason to wait.
        let _ = tokio::time::timeout(time, stop.wait_for(|stop| *stop)).await;
    }

    /// A key as it is sent.
    fn sent(&self, key: &str) -> bytes::Bytes {
        format!("{}{key}", self.prefix).into()
    }

    /// A key as it is recorded.
    fn shown(&self, key: &[u8]) -> String {
        let text = String::from_utf8_lossy(key);
        text.strip_prefix(&self.prefix).unwrap_or(&text).to_owned()
    }
}

/// Runs round `number`, not beyond `run_end`.
///
/// # Errors
/// When the settings do not fit.
pub(crate) async fn round(args: &Check, number: u64, run_end: &End) -> Result<Round, Fault> {
    if args.keys == 0 || args.clients == 0 || args.watchers == 0 {
        return Err("--keys, --clients and --watchers must be at least 1".to_owned());
    }
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(None);
    let shared = Arc::new(Shared {
        args: args.clone(),
        began: Instant::now(),
        prefix: format!("{}{run:x}/{number}/", args.prefix),
        service_prefix: format!("{}{run:x}/lock-{number}/", args.prefix),
        history: Mutex::new(History::default()),
        values: AtomicU64::new(1),
        lock_service: Mutex::new(None),
        stop: stopped,
        end: ended,
    });
    let servers = |first| Servers::new(&args.endpoints, first, args.timeout);
    let rng =
        |client: usize| fastrand::Rng::with_seed(args.seed ^ number << 32 ^ (client as u64) << 48);
    let mut watchers = JoinSet::new();
    for watcher in 0..args.watchers {
        let (servers, rng) = (servers(watcher)?, rng(1_000 + watcher));
        watchers.spawn(watchers::watch(Arc::clone(&shared), servers, watcher, rng));
    }
    let mut clients = JoinSet::new();
    for client in 0..args.clients {
        clients.spawn(calls::work(Arc::clone(&shared), servers(client)?, client, rng(client)));
    }
    for client in 0..args.leases {
        let (servers, rng) = (servers(client)?, rng(2_000 + client));
        clients.spawn(leases::work(Arc::clone(&shared), servers, args.clients + client, rng));
    }
    for client in 0..args.lockers {
        let number = args.clients + args.leases + client;
        let (servers, rng) = (servers(client)?, rng(3_000 + client));
        clients.spawn(locks::work(Arc::clone(&shared), servers, number, client % 2 == 1, rng));
    }
    wait(&shared, run_end).await;
    stop.send_replace(true);
    clients.join_all().await;
    let fault = match last_write(&shared, servers(0)?).await {
        Ok(revision) => {
            end.send_replace(Some(revision));
            watchers.join_all().await;
            shared.record(Record::Settled(revision));
            None
        }
        Err(fault) => {
            end.send_replace(Some(0));
            watchers.join_all().await;
            Some(fault)
        }
    };
    let history =
        std::mem::take(&mut *shared.history.lock().unwrap_or_else(PoisonError::into_inner));
    let lock_service = *shared.lock_service.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Round { history, lock_service, fault })
}

/// Until the round is over: by time, by its records, or because somebody wants it to end.
async fn wait(shared: &Shared, run_end: &End) {
    let until = shared.began + shared.args.round;
    while Instant::now() < until && !run_end.has_come() && !shared.is_full() {
        let left = until - Instant::now().min(until);
        tokio::time::sleep(left.min(Duration::from_millis(100))).await;
    }
}

/// One write, in one revision, of a key of every watcher; tried until it is answered. Returns its revision.
async fn last_write(shared: &Shared, mut servers: Servers) -> Result<i64, Fault> {
    let until = Instant::now() + shared.args.settle;
    let keys: Vec<String> = calls::keys(shared).chain([leases::END_KEY.to_owned()]).collect();
    loop {
        let writes = keys.iter().map(|key| shared.write(key, 0)).collect();
        let client = u32::MAX;
        match calls::call(shared, &mut servers, client, Action::Put(writes), false).await {
            Ok(Some(answer)) => return Ok(answer.revision),
            Ok(None) if Instant::now() < until => {}
            Ok(None) => {
                let settle = shared.args.settle;
                return Err(format!("no write was answered for {settle:?} at a round's end"));
            }
            Err(refusal) => return Err(format!("the last write was refused: {refusal}")),
        }
    }
}

/// Whether watchers may ask how far they have come.
fn asks_progress(args: &Check) -> bool {
    !args.except.contains(&Exception::ProgressRequests)
}
