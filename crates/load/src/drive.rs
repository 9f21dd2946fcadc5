//! Running a load: worker threads, clients, the closed and the open loop.
//!
//! 1. [`run`] builds the workload and the connections, and starts the workers.
//! 2. Each [`Worker`] connects its clients, then all wait for each other.
//! 3. In a closed loop every client sends its next operation when the last one is answered; in an open
//!    loop a schedule says when each operation is due, and its latency counts from then, however late it
//!    is sent.
//! 4. What starts during the warm-up is not counted.
//! 5. [`run`] samples the servers when the measurement begins and ends, merges what the workers counted,
//!    and reports.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Fault;
use crate::args::Load;
use crate::call::{Caller, Connection, Failure, Method};
use crate::keys::{Distribution, Draw, Keys};
use crate::pacer::Pacer;
use crate::process::Servers;
use crate::progress::Progress;
use crate::report;
use crate::tally::Tally;
use crate::workload::{Shape, Workload};

/// Clients that share a connection when the number of connections is not given.
const CLIENTS_PER_CONNECTION: usize = 64;

/// Clients that put missing keys before a workload that reads.
const FILL_CLIENTS: usize = 128;

/// How often the main thread looks at what the workers do.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Runs `load` in the given shape and prints the report.
///
/// # Errors
/// When the settings do not fit together, or no server can be reached.
pub(crate) fn run(shape: Shape, load: &Load) -> Result<ExitCode, Fault> {
    let keys = Keys::new(&load.prefix, load.key_size, load.keys)?;
    check(load)?;
    if shape.reads() && !load.no_fill && !filled(load, &keys)? {
        let missing = Load {
            total: Some(load.keys),
            clients: FILL_CLIENTS,
            warmup: Duration::ZERO,
            rate: None,
            ..load.clone()
        };
        let draw = Draw::new(Distribution::Sequential, load.keys);
        let puts = Workload::new(Shape::Put, keys.clone(), draw, load.value_size, load.seed);
        let filled = measure(&missing, Arc::new(puts), "fill")?;
        if let Some((kind, count)) = filled.tally.errors.first_key_value() {
            return Err(format!("the keys could not be filled in: {count} times {kind}"));
        }
    }
    let draw = Draw::new(load.distribution, load.keys);
    let workload = Arc::new(Workload::new(shape, keys, draw, load.value_size, load.seed));
    let measured = measure(load, Arc::clone(&workload), shape.name())?;
    let report = report::Report::new(shape, load, &workload, &measured);
    report.print(load.json)?;
    Ok(ExitCode::SUCCESS)
}

/// What a run came to.
pub(crate) struct Measured {
    /// Counts of all workers.
    pub(crate) tally: Tally,
    /// The measured time.
    pub(crate) elapsed: Duration,
    /// What the servers used meanwhile.
    pub(crate) servers: Servers,
    /// CPU time of this process meanwhile, microseconds.
    pub(crate) client_cpu_us: u64,
}

/// Settings that the parser cannot check one by one.
fn check(load: &Load) -> Result<(), Fault> {
    if load.clients == 0 || load.threads == 0 {
        return Err("--clients and --threads must be at least 1".to_owned());
    }
    if load.threads > load.clients {
        return Err("--threads must not be above --clients".to_owned());
    }
    if load.rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        return Err("--rate must be above 0".to_owned());
    }
    Ok(())
}

/// Whether every key of the key space exists.
fn filled(load: &Load, keys: &Keys) -> Result<bool, Fault> {
    use quorate_api::etcdserverpb::{RangeRequest, RangeResponse};
    let request = RangeRequest {
        key: keys.key(0).into(),
        range_end: keys.key(keys.count()).into(),
        count_only: true,
        ..RangeRequest::default()
    };
    let connection = Arc::new(Connection::new(&load.target.endpoints[0])?);
    let mut caller = Caller::new(connection, load.target.timeout);
    let answer: RangeResponse = runtime()?
        .block_on(caller.ask(Method::Range, &request))
        .map_err(|failure| format!("{}: {failure}", caller.address()))?;
    Ok(u64::try_from(answer.count) == Ok(keys.count()))
}

/// A current-thread runtime, the kind every worker has.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))
}

/// What all workers share.
struct Run {
    workload: Arc<Workload>,
    load: Load,
    /// All workers are connected, and the main thread has begun to watch.
    connected: Barrier,
    /// When the workers went off; set by the first one.
    began: OnceLock<Instant>,
    /// Operations that may still be counted, if the run is bounded by their number.
    budget: Option<AtomicI64>,
    stop: AtomicBool,
    /// Answered and failed operations, the warm-up included, for the progress line.
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Run {
    fn began(&self) -> Instant {
        *self.began.get_or_init(Instant::now)
    }

    fn measure_from(&self) -> Instant {
        self.began() + self.load.warmup
    }

    /// When a run that is bounded by time ends.
    fn until(&self) -> Option<Instant> {
        self.budget.is_none().then(|| self.measure_from() + self.load.duration)
    }

    /// Whether an operation that is due at `moment` belongs to the run.
    fn admits(&self, moment: Instant) -> bool {
        if self.stop.load(Ordering::Relaxed) || self.until().is_some_and(|until| moment >= until) {
            return false;
        }
        match &self.budget {
            Some(budget) if moment >= self.measure_from() => {
                budget.fetch_sub(1, Ordering::Relaxed) > 0
            }
            Some(_) | None => true,
        }
    }
}

/// Starts the workers, watches them, and gathers what they counted.
fn measure(load: &Load, workload: Arc<Workload>, name: &str) -> Result<Measured, Fault> {
    let operations = workload.operations.len();
    let run = Arc::new(Run {
        workload,
        load: load.clone(),
        connected: Barrier::new(load.threads + 1),
        began: OnceLock::new(),
        budget: load.total.map(|total| AtomicI64::new(i64::try_from(total).unwrap_or(i64::MAX))),
        stop: AtomicBool::new(false),
        answered: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let connections = connections(load)?;
    let (finished, results) = mpsc::channel();
    for number in 0..load.threads {
        // Every worker has connections of its own, so that no connection is driven by two threads.
        let share: Vec<_> =
            connections.iter().skip(number).step_by(load.threads).cloned().collect();
        let (run, finished) = (Arc::clone(&run), finished.clone());
        thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || {
                // The main thread is gone only when the process ends.
                let _ = finished.send(Worker { run, number, connections: share }.work());
            })
            .map_err(|error| format!("no thread for a worker: {error}"))?;
    }
    drop(finished);
    watch(&run, name, operations, &results)
}

/// The connections of all workers, each worker at least one.
fn connections(load: &Load) -> Result<Vec<Arc<Connection>>, Fault> {
    let wanted = match load.connections {
        0 => load.clients.div_ceil(CLIENTS_PER_CONNECTION).max(load.target.endpoints.len()),
        given => given,
    };
    let count = wanted.min(load.clients).max(load.threads);
    load.target
        .endpoints
        .iter()
        .cycle()
        .take(count)
        .map(|endpoint| Ok(Arc::new(Connection::new(endpoint)?.carrying(load.value_size))))
        .collect()
}

/// The main thread's part: samples, shows progress, merges.
fn watch(
    run: &Run,
    name: &str,
    operations: usize,
    results: &mpsc::Receiver<Result<Counted, Fault>>,
) -> Result<Measured, Fault> {
    let mut progress = Progress::new(name, &run.load);
    let mut servers = Servers::new(&run.load.pids);
    let own = std::process::id();
    let mut client_cpu_before_us = None;
    if run.load.warmup.is_zero() {
        // Before the workers go off: a short run may be over at the first look.
        client_cpu_before_us = Some(crate::process::cpu_us(own)?);
        servers.begin()?;
    }
    let mut tally = Tally::new(operations);
    let mut last_answer = None;
    let mut working = run.load.threads;
    run.connected.wait();
    while working > 0 {
        // The samples are taken at the moment when the measurement begins, not at the next look.
        let left = run.measure_from().saturating_duration_since(Instant::now());
        let wait = if left.is_zero() { WATCH_INTERVAL } else { left.min(WATCH_INTERVAL) };
        match results.recv_timeout(wait) {
            Ok(counted) => {
                let counted = counted.inspect_err(|_| run.stop.store(true, Ordering::Relaxed))?;
                tally.merge(&counted.tally);
                last_answer = last_answer.max(counted.last_answer);
                working -= 1;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err("a worker died".to_owned()),
        }
        if client_cpu_before_us.is_none() && Instant::now() >= run.measure_from() {
            client_cpu_before_us = Some(crate::process::cpu_us(own)?);
            servers.begin()?;
        }
        progress.show(run.answered.load(Ordering::Relaxed), run.failed.load(Ordering::Relaxed));
    }
    progress.finish();
    servers.end()?;
    let ended = match (run.until(), last_answer) {
        // A run that was stopped early ends with its last answer.
        (Some(until), _) if !run.stop.load(Ordering::Relaxed) => until,
        (_, Some(last_answer)) => last_answer,
        (_, None) => Instant::now(),
    };
    let own_us = crate::process::cpu_us(own)?;
    Ok(Measured {
        tally,
        elapsed: ended.saturating_duration_since(run.measure_from()),
        servers,
        client_cpu_us: own_us.saturating_sub(client_cpu_before_us.unwrap_or(own_us)),
    })
}

/// What one worker counted.
struct Counted {
    tally: Tally,
    last_answer: Option<Instant>,
}

/// One thread with its clients.
struct Worker {
    run: Arc<Run>,
    number: usize,
    connections: Vec<Arc<Connection>>,
}

impl Worker {
    fn work(self) -> Result<Counted, Fault> {
        let connected = runtime().and_then(|runtime| {
            let callers = runtime.block_on(self.connect())?;
            Ok((runtime, callers))
        });
        // Whoever could not connect still comes to the barrier, or the others would wait for ever.
        if connected.is_err() {
            self.run.stop.store(true, Ordering::Relaxed);
        }
        self.run.connected.wait();
        let (runtime, callers) = connected?;
        runtime.block_on(async {
            let run = Arc::clone(&self.run);
            tokio::spawn(async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    run.stop.store(true, Ordering::Relaxed);
                }
            });
            match self.run.load.rate {
                None => Ok(self.closed_loop(callers).await),
                Some(rate) => self.open_loop(callers, rate / self.run.load.threads as f64).await,
            }
        })
    }

    /// This worker's clients, connected.
    async fn connect(&self) -> Result<Vec<Caller>, Fault> {
        let all = self.run.load.clients;
        let clients = (self.number..all).step_by(self.run.load.threads).len();
        let mut callers = Vec::with_capacity(clients);
        for connection in self.connections.iter().cycle().take(clients) {
            let mut caller = Caller::new(Arc::clone(connection), self.run.load.target.timeout);
            caller.connect().await.map_err(|failure| format!("{}: {failure}", caller.address()))?;
            callers.push(caller);
        }
        Ok(callers)
    }

    /// A source of choices for client number `client` of this worker.
    fn rng(&self, client: usize) -> fastrand::Rng {
        let stream = (self.number as u64) << 32 | client as u64;
        fastrand::Rng::with_seed(self.run.load.seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    async fn closed_loop(&self, callers: Vec<Caller>) -> Counted {
        let counts = Arc::new(Counts::new(&self.run));
        let mut clients = JoinSet::new();
        for (number, mut caller) in callers.into_iter().enumerate() {
            let (run, counts) = (Arc::clone(&self.run), Arc::clone(&counts));
            let mut rng = self.rng(number);
            clients.spawn(async move {
                loop {
                    let due = Instant::now();
                    if !run.admits(due) {
                        break;
                    }
                    operation(&run, &counts, &mut caller, &mut rng, due).await;
                }
            });
        }
        clients.join_all().await;
        counts.take()
    }

    async fn open_loop(&self, callers: Vec<Caller>, rate: f64) -> Result<Counted, Fault> {
        let run = &self.run;
        let counts = Arc::new(Counts::new(run));
        let mut pacer = Pacer::new().map_err(|error| format!("no timer: {error}"))?;
        let room = Arc::new(Semaphore::new(callers.len()));
        let idle = Arc::new(Mutex::new(callers));
        let mut rng = self.rng(0);
        let mut operations = JoinSet::new();
        // The workers' schedules interleave.
        let phase = self.number as f64 / run.load.threads as f64;
        for number in 0_u64.. {
            let due = run.began() + Duration::from_secs_f64((number as f64 + phase) / rate);
            if !run.admits(due) {
                break;
            }
            pacer.until(due).await.map_err(|error| format!("the timer failed: {error}"))?;
            while operations.try_join_next().is_some() {}
            // When all clients are busy the schedule goes on; this operation and the next ones are sent
            // late, and their latency still counts from when they were due.
            let permit = match Arc::clone(&room).try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => {
                    let waited = Arc::clone(&room).acquire_owned().await;
                    waited.expect("the semaphore is never closed")
                }
            };
            if run.until().is_some_and(|until| Instant::now() >= until) {
                // The run is over, and this operation's time came without its being sent.
                counts.unsent(due);
                continue;
            }
            let mut caller = pop(&idle);
            let (run, counts, idle) = (Arc::clone(run), Arc::clone(&counts), Arc::clone(&idle));
            let mut rng = rng.fork();
            operations.spawn(async move {
                operation(&run, &counts, &mut caller, &mut rng, due).await;
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(caller);
                drop(permit);
            });
        }
        operations.join_all().await;
        Ok(counts.take())
    }
}

fn pop(idle: &Mutex<Vec<Caller>>) -> Caller {
    let caller = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    caller.expect("whoever holds a permit finds an idle client")
}

/// One operation, counted if it was due after the warm-up.
async fn operation(
    run: &Run,
    counts: &Counts,
    caller: &mut Caller,
    rng: &mut fastrand::Rng,
    due: Instant,
) {
    let (number, body) = run.workload.next(rng);
    let method = run.workload.operations[number].method;
    let outcome = caller.call(method, body).await;
    let total = if outcome.is_ok() { &run.answered } else { &run.failed };
    total.fetch_add(1, Ordering::Relaxed);
    if due >= run.measure_from() {
        counts.note(number, due, outcome.err());
    }
}

/// What the clients of one worker count together. The lock is never contended: they share a thread.
struct Counts {
    measure_from: Instant,
    counted: Mutex<Counted>,
}

impl Counts {
    fn new(run: &Run) -> Self {
        let tally = Tally::new(run.workload.operations.len());
        Self {
            measure_from: run.measure_from(),
            counted: Mutex::new(Counted { tally, last_answer: None }),
        }
    }

    fn note(&self, operation: usize, due: Instant, failure: Option<Failure>) {
        let now = Instant::now();
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.last_answer = Some(now);
        match failure {
            None => counted.tally.answered(operation, now - due),
            Some(failure) => counted.tally.failed(&failure),
        }
    }

    fn unsent(&self, due: Instant) {
        if due >= self.measure_from {
            self.counted.lock().unwrap_or_else(PoisonError::into_inner).tally.unsent += 1;
        }
    }

    fn take(&self) -> Counted {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let operations = counted.tally.latency_us.len();
        let tally = std::mem::replace(&mut counted.tally, Tally::new(operations));
        Counted { tally, last_answer: counted.last_answer }
    }
}
