//! The writers, the readers, and the announcements of faults.

use std::io::BufRead;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use quorate_api::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ledger::Ledger;
use super::record::{VALUE_SIZE_MIN, value};
use crate::Fault;
use crate::args::Verify;
use crate::call::{Caller, Connection, Failure, Method};

/// How long a client waits after an error before it tries the next endpoint.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Writes and reads until the time is up or the announcements end, and returns what was seen.
///
/// # Errors
/// When the settings do not fit, or no endpoint answers at all.
pub(crate) async fn work(args: &Verify) -> Result<Ledger, Fault> {
    if args.writers == 0 {
        return Err("--writers must be at least 1".to_owned());
    }
    if args.value_size < VALUE_SIZE_MIN {
        return Err(format!("--value-size must be at least {VALUE_SIZE_MIN}"));
    }
    // A number that no earlier run has had, so that this run's keys are new.
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let prefix = &args.prefix;
    let keys = (0..args.writers).map(|writer| format!("{prefix}{run:x}/{writer:04}"));
    let shared = Arc::new(Mutex::new(Ledger::new(keys, Instant::now())));
    let connections = connections(&args.endpoints)?;
    let (stop, stopped) = watch::channel(false);
    if args.marks {
        announcements(Arc::clone(&shared), stop.clone())?;
    }
    let mut clients = JoinSet::new();
    for writer in 0..args.writers {
        let rover = Rover::new(&connections, writer, args.timeout);
        clients.spawn(write(Arc::clone(&shared), writer, rover, args.value_size, stopped.clone()));
    }
    for reader in 0..args.readers {
        let rover = Rover::new(&connections, reader, args.timeout);
        let rng = fastrand::Rng::with_seed(args.seed.wrapping_add(reader as u64));
        clients.spawn(read(Arc::clone(&shared), args.writers, rover, rng, stopped.clone()));
    }
    let mut ended = stopped;
    tokio::select! {
        () = tokio::time::sleep(args.duration) => {}
        _ = ended.wait_for(|stop| *stop) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    // The clients hold receivers until they end, so there is somebody to tell.
    stop.send_replace(true);
    clients.join_all().await;
    let mut ledger = lock(&shared);
    ledger.end(Instant::now());
    if ledger.writes().0 == 0 {
        let errors: Vec<&String> = ledger.errors().keys().collect();
        return Err(format!("not one write was acknowledged: {errors:?}"));
    }
    Ok(std::mem::replace(&mut *ledger, Ledger::new([], Instant::now())))
}

/// One connection for each endpoint.
///
/// # Errors
/// When an endpoint is not of the right form.
pub(crate) fn connections(endpoints: &[String]) -> Result<Vec<Arc<Connection>>, Fault> {
    endpoints.iter().map(|endpoint| Connection::new(endpoint).map(Arc::new)).collect()
}

/// A client of all endpoints: it stays with one until a call to it fails.
pub(crate) struct Rover {
    callers: Vec<Caller>,
    at: usize,
}

impl Rover {
    /// Begins with endpoint number `first`, counted around.
    pub(crate) fn new(connections: &[Arc<Connection>], first: usize, timeout: Duration) -> Self {
        let callers =
            connections.iter().map(|connection| Caller::new(Arc::clone(connection), timeout));
        Self { callers: callers.collect(), at: first % connections.len() }
    }

    /// Asks the endpoint that this client is at; after a failure it is at the next one.
    ///
    /// # Errors
    /// As [`Caller::ask`].
    pub(crate) async fn ask<A: Message + Default>(
        &mut self,
        method: Method,
        request: &impl Message,
    ) -> Result<A, Failure> {
        let answer = self.callers[self.at].ask(method, request).await;
        if answer.is_err() {
            self.at = (self.at + 1) % self.callers.len();
            tokio::time::sleep(ERROR_PAUSE).await;
        }
        answer
    }
}

fn lock(shared: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that turns the lines of standard input into marks. It may outlive the workload, waiting for a
/// line; it ends with the process.
fn announcements(shared: Arc<Mutex<Ledger>>, stop: watch::Sender<bool>) -> Result<(), Fault> {
    let listen = move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            lock(&shared).mark(line, Instant::now());
        }
        stop.send_replace(true);
    };
    let thread = thread::Builder::new().name("marks".to_owned()).spawn(listen);
    thread.map(drop).map_err(|error| format!("no thread for the marks: {error}"))
}

async fn write(
    shared: Arc<Mutex<Ledger>>,
    key: usize,
    mut rover: Rover,
    value_size: usize,
    stopped: watch::Receiver<bool>,
) {
    let name: bytes::Bytes = lock(&shared).key(key).to_owned().into();
    while !*stopped.borrow() {
        let (known, number) = {
            let mut ledger = lock(&shared);
            (ledger.known(key, Instant::now()), ledger.next_write(key))
        };
        let request = PutRequest {
            key: name.clone(),
            value: value(number, value_size).into(),
            ..PutRequest::default()
        };
        let answer: Result<PutResponse, Failure> = rover.ask(Method::Put, &request).await;
        let mut ledger = lock(&shared);
        match answer {
            Ok(answer) => ledger.acknowledged(key, known, &answer, Instant::now()),
            Err(failure) => ledger.unknown(key, &failure),
        }
    }
}

async fn read(
    shared: Arc<Mutex<Ledger>>,
    keys: usize,
    mut rover: Rover,
    mut rng: fastrand::Rng,
    stopped: watch::Receiver<bool>,
) {
    while !*stopped.borrow() {
        let key = rng.usize(0..keys);
        let (request, known) = {
            let ledger = lock(&shared);
            let name = ledger.key(key).to_owned().into();
            let request = RangeRequest { key: name, ..RangeRequest::default() };
            (request, ledger.known(key, Instant::now()))
        };
        let answer: Result<RangeResponse, Failure> = rover.ask(Method::Range, &request).await;
        let mut ledger = lock(&shared);
        match answer {
            Ok(answer) => ledger.read(key, known, &answer, Instant::now()),
            Err(failure) => ledger.read_failed(&failure),
        }
    }
}
