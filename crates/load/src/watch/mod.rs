//! `watch`: many watchers, and puts whose events they wait for.
//!
//! 1. Streams are opened and their watchers created; nothing is put before all of them are there.
//! 2. If asked, others join them that do not read ([`stuck`]). If asked, they idle, and the servers' memory is compared with that before.
//! 3. Puts follow a fixed schedule, one watched key after the other ([`plan`]). Each value carries the number of
//!    its put, so an event says when its put was due: event latency counts from then to the arrival at the
//!    watcher, as put latency counts from then to the answer. A server that stalls pays for every put and every
//!    event that it delayed; a put that fails is counted as an error and has no latency.
//! 4. When all puts are answered, events are waited for; then [`verdict`] looks whether every watcher was told
//!    of every acknowledged put to its key, once, in order. If not, the run fails.

mod follower;
mod plan;
mod puts;
mod report;
mod stuck;
mod verdict;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Fault;
use crate::args::Watch;
use crate::call::{Caller, Connection, Failure};
use crate::drive::runtime;
use crate::keys::Keys;
use crate::process::{Servers, cpu_us, resident_bytes};
use crate::tally::Tally;
use follower::{Followed, Follower};
use plan::Plan;
use report::{Memory, Report};
use verdict::{Fate, Told};

/// Streams that share a connection when the number of connections is not given.
const STREAMS_PER_CONNECTION: usize = 10;

/// How often it is looked whether all events have come.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The operations of the tally.
const PUT: usize = 0;
const EVENT: usize = 1;

/// Watches, puts, and prints the report; exits with 1 when an event is missing, or came twice, out of order or
/// from nowhere.
///
/// # Errors
/// When the settings do not fit together, or the servers do not let so many watch.
pub(crate) fn run(args: &Watch) -> Result<ExitCode, Fault> {
    let plan = Plan::new(args)?;
    if args.value_size < size_of::<u64>() {
        return Err(
            "--value-size must be at least 8: values carry the number of their put".to_owned()
        );
    }
    let keys = Keys::new(&args.prefix, args.key_size, plan.keys)?;
    let shared = Arc::new(Shared {
        args: args.clone(),
        plan,
        keys,
        began: OnceLock::new(),
        counts: Mutex::new(Counts {
            fates: vec![Fate::Unsent; plan.puts as usize],
            tally: Tally::new(2),
            arrivals: vec![0; plan.puts as usize],
        }),
    });
    let report = runtime()?.block_on(watch_and_put(&shared))?;
    report.print(args.json)?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What all tasks of a run share. They share a thread too, so that no lock is contended.
struct Shared {
    args: Watch,
    plan: Plan,
    keys: Keys,
    /// When the first put is due.
    began: OnceLock<Instant>,
    counts: Mutex<Counts>,
}

struct Counts {
    /// By the puts' numbers.
    fates: Vec<Fate>,
    /// Latencies of puts and of events.
    tally: Tally,
    /// How many events of each have arrived.
    arrivals: Vec<u32>,
}

impl Counts {
    /// The first acknowledged put from `from` on that has caused fewer events than its key has watchers; the number of
    /// all puts if there is none.
    fn first_open(&self, plan: &Plan, watchers: &[u32], from: u64) -> u64 {
        let is_open = |put: &u64| {
            let (at, key) = (*put as usize, plan.key_of(*put) as usize);
            self.fates[at] == Fate::Acknowledged && self.arrivals[at] < watchers[key]
        };
        (from..plan.puts).find(is_open).unwrap_or(plan.puts)
    }
}

impl Shared {
    fn begin(&self) -> Instant {
        *self.began.get_or_init(Instant::now)
    }

    /// An event of put number `put` has arrived. False when there is no such put, or none yet: somebody else puts.
    fn arrived(&self, put: u64, at: Instant) -> bool {
        let Some(began) = self.began.get().filter(|_| put < self.plan.puts) else { return false };
        let due = *began + self.plan.due(put);
        let mut counts = lock(&self.counts);
        counts.arrivals[put as usize] += 1;
        if put >= self.plan.measured_from {
            counts.tally.answered(EVENT, at.saturating_duration_since(due));
        }
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn watch_and_put(shared: &Arc<Shared>) -> Result<Report, Fault> {
    let Watch { pids, idle, .. } = &shared.args;
    let resident = || pids.iter().map(|pid| resident_bytes(*pid)).sum::<Result<u64, Fault>>();
    let before = resident()?;
    let endpoints = shared.args.target.endpoints.len();
    let for_streams = match shared.args.connections {
        0 => shared.plan.streams.div_ceil(STREAMS_PER_CONNECTION).max(endpoints),
        given => given,
    };
    let connections = connections(shared, for_streams)?;
    let (end, over) = tokio::sync::watch::channel(false);
    let mut following = JoinSet::new();
    for (number, follower) in open(shared, &connections).await?.into_iter().enumerate() {
        let over = over.clone();
        following.spawn(async move { (number, follower.follow(over).await) });
    }
    let stuck = stuck::open(shared).await?;
    tokio::time::sleep(*idle).await;
    let watching_bytes = resident()?;

    let mut servers = Servers::new(pids);
    let mut client_us = None;
    let mut begins = || {
        client_us = Some(cpu_us(std::process::id())?);
        servers.begin()
    };
    // Puts have connections of their own: they are not to wait behind events.
    puts::put_all(shared, &self::connections(shared, endpoints)?, &mut begins).await?;
    await_events(shared).await;
    let client_us = client_us
        .map_or(Ok(0), |before| cpu_us(std::process::id()).map(|now| now.saturating_sub(before)))?;
    servers.end()?;
    let memory = Memory { before_bytes: before, watching_bytes, ended_bytes: resident()? };
    drop(stuck);
    // They listen until they hear this, and those that have ended do not.
    let _ = end.send(true);
    let streams: BTreeMap<usize, Followed> = following.join_all().await.into_iter().collect();
    let broken: Vec<Failure> =
        streams.values().filter_map(|followed| followed.broken.clone()).collect();
    let told: Vec<Vec<Told>> = streams.into_values().map(|followed| followed.told).collect();
    let counts = lock(&shared.counts);
    let verdict = verdict::judge(&shared.plan, &counts.fates, &told);
    let memory = (!pids.is_empty()).then_some(memory);
    Ok(Report::new(shared, &counts, verdict, &broken, &servers, client_us, memory))
}

/// So many connections, to one endpoint after the other.
fn connections(shared: &Shared, count: usize) -> Result<Vec<Arc<Connection>>, Fault> {
    let endpoints = shared.args.target.endpoints.iter().cycle().take(count);
    let connection = |endpoint: &String| {
        Ok(Arc::new(Connection::new(endpoint)?.carrying(shared.args.value_size)))
    };
    endpoints.map(connection).collect()
}

/// All streams, with all their watchers.
async fn open(
    shared: &Arc<Shared>,
    connections: &[Arc<Connection>],
) -> Result<Vec<Follower>, Fault> {
    let timeout = shared.args.target.timeout;
    let mut opening = JoinSet::new();
    for (number, connection) in connections.iter().cycle().take(shared.plan.streams).enumerate() {
        let (shared, connection) = (Arc::clone(shared), Arc::clone(connection));
        opening.spawn(async move {
            let mut caller = Caller::new(connection, timeout);
            let opened = Follower::open(shared, number, &mut caller);
            let said = match tokio::time::timeout(timeout, opened).await {
                Ok(Ok(follower)) => return Ok((number, follower)),
                Ok(Err(failure)) => failure.to_string(),
                Err(_) => "the watchers are not there in time".to_owned(),
            };
            Err(format!("{}: {said}", caller.address()))
        });
    }
    let opened: Result<BTreeMap<usize, Follower>, Fault> =
        opening.join_all().await.into_iter().collect();
    Ok(opened?.into_values().collect())
}

/// Waits until all watchers of every acknowledged put's key were told of it, but not for ever. Put by put: events of
/// a put whose answer was lost come too, and do not stand for others.
async fn await_events(shared: &Shared) {
    let watchers = shared.plan.watchers_by_key();
    let until = Instant::now() + shared.args.settle;
    // The first put of which somebody was not told.
    let mut open = 0;
    while open < shared.plan.puts && Instant::now() < until {
        open = lock(&shared.counts).first_open(&shared.plan, &watchers, open);
        if open < shared.plan.puts {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_put_that_nobody_answered_do_not_stand_for_those_of_another() {
        let plan = plan::tests::plan(
            "--streams 2 --watchers 1 --watchers-per-key 2 --rate 1 --warmup 0s --duration 3s",
        );
        let plan = plan.expect("fits");
        let (watchers, acknowledged) = (plan.watchers_by_key(), Fate::Acknowledged);
        let mut counts = Counts {
            fates: vec![acknowledged, Fate::Unknown, acknowledged],
            tally: Tally::new(2),
            arrivals: vec![2, 2, 0],
        };
        assert_eq!(counts.first_open(&plan, &watchers, 0), 2);
        counts.arrivals[2] = 2;
        assert_eq!(counts.first_open(&plan, &watchers, 2), plan.puts);
    }
}
