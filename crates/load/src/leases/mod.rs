//! Does a server keep many leases alive, and what does that take?
//!
//! 1. Clients grant leases, as fast as they can.
//! 2. Each lease belongs to one of a few keep-alive streams ([`keeper`]), and is kept alive from its grant on, three
//!    times in its time to live ([`book`]).
//! 3. Once all are granted, keep-alives are measured for a while. Their latency counts from when they were due, so a
//!    server that stalls pays for all that it delayed.
//! 4. At the end the server is asked which leases there are.
//!
//! A lease is lost when a keep-alive is answered with a time to live of 0, or when it is missing at the end. One lost
//! lease fails the run, and so does one that could not be granted.

mod book;
mod keeper;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseLeasesRequest, LeaseLeasesResponse,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::Fault;
use crate::args::Leases;
use crate::call::{Caller, Connection, Failure, Method};
use crate::drive::runtime;
use crate::process::{Servers, cpu_us};
use crate::tally::Tally;
use book::{Book, Granted};
use keeper::Keeper;
use report::{Report, Used};

/// Streams that share a connection when the number of connections is not given.
const STREAMS_PER_CONNECTION: usize = 8;

/// Leases that wait to be taken up by their stream.
const GRANTED_MAX: usize = 64;

/// Grants, keep-alives: where each is in the tally.
const GRANT: usize = 0;
const KEEP_ALIVE: usize = 1;

/// How far the run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Leases are granted, or kept alive.
    Going,
    /// No more keep-alives are sent.
    Ending,
}

/// What all clients and streams count together.
struct Counts {
    counted: Mutex<Counted>,
    /// Keep-alives that are due from then on are counted.
    measure_from: OnceLock<Instant>,
}

/// See [`Counts`].
struct Counted {
    tally: Tally,
    granted: u64,
    lost: Vec<i64>,
    lost_early: u64,
    unanswered: u64,
}

impl Counted {
    fn new() -> Self {
        let tally = Tally::new(2);
        Self { tally, granted: 0, lost: Vec::new(), lost_early: 0, unanswered: 0 }
    }
}

impl Counts {
    fn new() -> Self {
        Self { counted: Mutex::new(Counted::new()), measure_from: OnceLock::new() }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn granted(&self, took: Duration) {
        let mut counted = self.counted();
        counted.granted += 1;
        counted.tally.answered(GRANT, took);
    }

    fn kept(&self, due: Instant, now: Instant) {
        if self.measure_from.get().is_some_and(|from| due >= *from) {
            self.counted().tally.answered(KEEP_ALIVE, now.saturating_duration_since(due));
        }
    }

    fn lost(&self, id: i64, early: bool) {
        let mut counted = self.counted();
        counted.lost.push(id);
        counted.lost_early += u64::from(early);
    }

    fn unanswered(&self, count: usize) {
        self.counted().unanswered += count as u64;
    }

    fn failed(&self, failure: &Failure) {
        self.counted().tally.failed(failure);
    }
}

/// Grants, keeps alive, looks and reports; exits with 1 when a lease was lost or not granted.
///
/// # Errors
/// When the settings do not fit together, or no server can be reached.
pub(crate) fn run(args: &Leases) -> Result<ExitCode, Fault> {
    let report = runtime()?.block_on(measure(args))?;
    report.print(args.json)?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

async fn measure(args: &Leases) -> Result<Report, Fault> {
    if args.leases == 0 || args.clients == 0 || args.streams == 0 {
        return Err("--leases, --clients and --streams must be at least 1".to_owned());
    }
    let counts = Arc::new(Counts::new());
    let (phase, going) = watch::channel(Phase::Going);
    let (keepers, to_keepers) = start_keepers(args, &counts, &going)?;

    let granting = Usage::begin(&args.pids)?;
    grant_all(args, &counts, to_keepers).await?;
    let granting = granting.end()?;

    // The window is closed by the clock, so the last ones may be answered after it.
    let keeping = Usage::begin(&args.pids)?;
    counts.measure_from.get_or_init(Instant::now);
    tokio::time::sleep(args.duration).await;
    let keeping = keeping.end()?;
    phase.send_replace(Phase::Ending);
    let books = ended(keepers).await?;

    let counted = std::mem::replace(&mut *counts.counted(), Counted::new());
    let there = there(args).await?;
    let is_gone = |id: &i64| !there.contains(id);
    let missing = books.iter().flat_map(Book::ids).filter(is_gone).count() as u64;
    let lost_there = counted.lost.iter().filter(|id| !is_gone(id)).count() as u64;
    Ok(Report::new(args, &counted, (missing, lost_there), granting, keeping))
}

/// What the servers, this process and the clock use over a part of the run.
struct Usage {
    servers: Servers,
    client_us: u64,
    begun: Instant,
}

impl Usage {
    fn begin(pids: &[u32]) -> Result<Self, Fault> {
        let mut servers = Servers::new(pids);
        servers.begin()?;
        let client_us = cpu_us(std::process::id())?;
        Ok(Self { servers, client_us, begun: Instant::now() })
    }

    fn end(mut self) -> Result<Used, Fault> {
        self.servers.end()?;
        let client_cpu_us = cpu_us(std::process::id())?.saturating_sub(self.client_us);
        let elapsed = self.begun.elapsed();
        Ok(Used { elapsed, client_cpu_us, servers: self.servers.processes })
    }
}

type Keepers = JoinSet<Result<Book, Fault>>;

/// The streams, none of them open yet, and where each takes its leases from.
fn start_keepers(
    args: &Leases,
    counts: &Arc<Counts>,
    phase: &watch::Receiver<Phase>,
) -> Result<(Keepers, Vec<mpsc::Sender<Granted>>), Fault> {
    let endpoints = &args.target.endpoints;
    let mut channels = Vec::new();
    for number in 0..connections(args) {
        let endpoint = &endpoints[number % endpoints.len()];
        let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.map_err(|error| format!("endpoint {address}: {error}"))?;
        channels.push(endpoint.connect_timeout(args.target.timeout).connect_lazy());
    }
    let (mut keepers, mut to_keepers) = (JoinSet::new(), Vec::new());
    for number in 0..args.streams {
        let (to_keeper, granted) = mpsc::channel(GRANTED_MAX);
        let keeper = Keeper {
            client: LeaseClient::new(channels[number % channels.len()].clone()),
            granted,
            phase: phase.clone(),
            counts: Arc::clone(counts),
            timeout: args.target.timeout,
        };
        keepers.spawn(keeper.run());
        to_keepers.push(to_keeper);
    }
    Ok((keepers, to_keepers))
}

fn connections(args: &Leases) -> usize {
    match args.connections {
        0 => args.streams.div_ceil(STREAMS_PER_CONNECTION).max(args.target.endpoints.len()),
        given => given,
    }
}

/// Grants all leases, and hands each to a stream.
async fn grant_all(
    args: &Leases,
    counts: &Arc<Counts>,
    to_keepers: Vec<mpsc::Sender<Granted>>,
) -> Result<(), Fault> {
    let endpoints = args.target.endpoints.iter().cycle();
    let connections: Vec<_> = endpoints
        .take(connections(args))
        .map(|endpoint| Connection::new(endpoint).map(Arc::new))
        .collect::<Result<_, _>>()?;
    let numbers = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..args.clients {
        let connection = Arc::clone(&connections[client % connections.len()]);
        let mut caller = Caller::new(connection, args.target.timeout);
        caller.connect().await.map_err(|failure| format!("{}: {failure}", caller.address()))?;
        let (counts, numbers) = (Arc::clone(counts), Arc::clone(&numbers));
        let (leases, ttl) = (args.leases, args.ttl);
        let to_keepers = to_keepers.clone();
        clients.spawn(async move {
            loop {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                if number >= leases {
                    return;
                }
                match grant(&mut caller, number, ttl).await {
                    Ok(granted) => {
                        counts.granted(granted.sent.elapsed());
                        let keeper = &to_keepers[number as usize % to_keepers.len()];
                        // A stream that has ended has said why.
                        let _ = keeper.send(granted).await;
                    }
                    Err(failure) => counts.failed(&failure),
                }
            }
        });
    }
    clients.join_all().await;
    Ok(())
}

async fn grant(caller: &mut Caller, number: u64, ttl: i64) -> Result<Granted, Failure> {
    let sent = Instant::now();
    let request = LeaseGrantRequest { ttl, id: 0 };
    let answer: LeaseGrantResponse = caller.ask(Method::LeaseGrant, &request).await?;
    match u64::try_from(answer.ttl) {
        Ok(ttl_s) if ttl_s > 0 => Ok(Granted { number, id: answer.id, ttl_s, sent }),
        Ok(_) | Err(_) => {
            let text = format!("a lease was granted for {} s", answer.ttl);
            Err(Failure::client(Code::Internal, text))
        }
    }
}

async fn ended(mut keepers: Keepers) -> Result<Vec<Book>, Fault> {
    let mut books = Vec::new();
    while let Some(ended) = keepers.join_next().await {
        match ended {
            Ok(book) => books.push(book?),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    Ok(books)
}

/// Which leases there are.
async fn there(args: &Leases) -> Result<BTreeSet<i64>, Fault> {
    let connection = Connection::new(&args.target.endpoints[0])?;
    let mut caller = Caller::new(Arc::new(connection), args.target.timeout);
    let answer = caller.ask(Method::LeaseLeases, &LeaseLeasesRequest {}).await;
    let answer: LeaseLeasesResponse =
        answer.map_err(|failure| format!("which leases there are: {failure}"))?;
    Ok(answer.leases.iter().map(|lease| lease.id).collect())
}
