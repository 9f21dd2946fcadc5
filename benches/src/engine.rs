//! `bench-engine`: three nodes in one process over loopback QUIC, everything synced, clients in the
//! process. Prints writes per second, latencies, CPU per write (all three replicas and the clients), and
//! what the logs wrote for it: syncs per entry, and bytes to the disk per byte of a command.
//!
//! `--rtt-ms` puts a distance between the nodes, and `--window` fixes how many appends may be under way to a peer,
//! to see what the window that adapts to the distance is worth. With `--idle-groups` it prints what groups cost that
//! have nothing to do, awake and asleep.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is its product")]

mod counters;
mod idle;

use std::error::Error;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hdrhistogram::Histogram;
use quorate_node::{Engine, EngineConfig, Fate, Link, local};
use quorate_types::machine::StateError;
use quorate_types::{
    Committed, GroupId, MachineKind, NodeId, ReadError, StateBatch, StateMachine, StateReader,
};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::counters::{Counters, LogFigures};

/// Measures the embeddable engine.
#[derive(Parser, Debug)]
struct Args {
    /// Numbers of groups to measure with.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 48])]
    groups: Vec<u64>,
    /// Sizes of a command, in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [16, 1024])]
    bytes: Vec<usize>,
    /// Writes in flight, over all groups.
    #[arg(long, default_value_t = 3072)]
    in_flight: usize,
    /// Seconds to measure each combination for, after a fifth of it to warm up.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Round trips between any two nodes, in milliseconds, beside what loopback takes.
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    rtt_ms: Vec<u64>,
    /// Appends that may be under way to a peer although they are not full: `adaptive`, or a number.
    #[arg(long, value_delimiter = ',', default_values_t = [Window(None)])]
    window: Vec<Window>,
    /// Instead of writes, measure so many idle groups for these seconds, awake and asleep.
    #[arg(long, value_delimiter = ',', value_name = "GROUPS")]
    idle_groups: Vec<u64>,
    /// Print JSON lines instead of a table.
    #[arg(long)]
    json: bool,
}

/// How many appends may be under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window(Option<NonZeroUsize>);

impl FromStr for Window {
    type Err = <NonZeroUsize as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "adaptive" { Ok(Self(None)) } else { Ok(Self(Some(text.parse()?))) }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("adaptive"),
            Some(fixed) => write!(f, "{fixed}"),
        }
    }
}

/// Nodes that are so far from each other, one way.
struct Distance(Duration);

impl Link for Distance {
    fn fate(&self, _: NodeId, _: NodeId) -> Fate {
        Fate { delay: self.0, deliver: true }
    }
}

/// What is measured.
#[derive(Clone, Copy)]
struct Combination {
    rtt_ms: u64,
    window: Window,
    groups: u64,
    bytes: usize,
}

/// One combination, measured.
#[derive(Serialize, Debug)]
struct Figure {
    rtt_ms: u64,
    window: String,
    groups: u64,
    bytes: usize,
    in_flight: usize,
    writes_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us_per_write: f64,
    syncs_per_entry: f64,
    read_back_per_entry: f64,
    log_write_amplification: f64,
    errors: u64,
}

/// Forgets what it is told: what is left is the cost of agreeing.
#[derive(Debug)]
struct SinkKind;

struct Sink;

impl StateMachine for Sink {
    fn apply(
        &mut self,
        committed: &[Committed],
        _: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        Ok(vec![Bytes::new(); committed.len()])
    }

    fn meta(&self) -> Bytes {
        Bytes::new()
    }
}

impl MachineKind for SinkKind {
    fn name(&self) -> &str {
        "sink"
    }

    fn open(
        &self,
        _: GroupId,
        _: &[u8],
        _: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        Ok(Box::new(Sink))
    }

    fn read(
        &self,
        _: GroupId,
        _: &Bytes,
        _: &[u8],
        _: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        Ok(Bytes::new())
    }
}

/// What the clients of one node saw.
struct Tally {
    latencies_us: Histogram<u64>,
    errors: u64,
}

/// What all clients share.
struct Run {
    counting: AtomicBool,
    ending: AtomicBool,
}

/// A node on a thread of its own, with the clients of the groups that it leads.
struct Node {
    thread: JoinHandle<()>,
    id: oneshot::Receiver<NodeId>,
    groups: mpsc::UnboundedSender<Order>,
}

/// What a node's thread is told.
enum Order {
    Create {
        groups: Vec<GroupId>,
        voters: Vec<NodeId>,
        done: oneshot::Sender<()>,
    },
    /// To be answered when every group has a leader, and all sleep if they are to.
    Settle {
        asleep: bool,
        done: oneshot::Sender<()>,
    },
    /// One write to each of so many of the groups that the node leads.
    Touch {
        groups: u64,
        done: oneshot::Sender<Vec<Duration>>,
    },
    Load {
        clients: usize,
        groups: u64,
        bytes: usize,
        run: Arc<Run>,
        done: oneshot::Sender<Tally>,
    },
    Stop,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if !args.idle_groups.is_empty() {
        return idle::run(&args);
    }
    if !args.json {
        println!(
            "| rtt ms | window | groups | bytes | in flight | writes/s | p50 ms | p99 ms | CPU us/write | syncs/entry | log bytes/byte | read back/entry |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    }
    for combination in combinations(&args) {
        let figure = measure(&args, combination)?;
        if args.json {
            println!("{}", serde_json::to_string(&figure)?);
        } else {
            let Figure { rtt_ms, window, groups, bytes, in_flight, .. } = &figure;
            let Figure { writes_per_s, p50_ms, p99_ms, cpu_us_per_write, .. } = &figure;
            let Figure { syncs_per_entry, log_write_amplification, .. } = &figure;
            let read_back = figure.read_back_per_entry;
            println!(
                "| {rtt_ms} | {window} | {groups} | {bytes} | {in_flight} | {writes_per_s:.0} | {p50_ms:.2} | {p99_ms:.2} | {cpu_us_per_write:.1} | {syncs_per_entry:.4} | {log_write_amplification:.2} | {read_back:.4} |"
            );
        }
        if figure.errors > 0 {
            eprintln!("{} writes failed", figure.errors);
        }
    }
    Ok(())
}

fn combinations(args: &Args) -> Vec<Combination> {
    let mut all = Vec::new();
    for &rtt_ms in &args.rtt_ms {
        for &groups in &args.groups {
            for &bytes in &args.bytes {
                let of = |&window: &Window| Combination { rtt_ms, window, groups, bytes };
                all.extend(args.window.iter().map(of));
            }
        }
    }
    all
}

fn measure(args: &Args, combination: Combination) -> Result<Figure, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let counters = Counters::default();
    let mut configs = local::configs(3, dir.path())?;
    for config in &mut configs {
        config.append_window = combination.window.0;
        if combination.rtt_ms > 0 {
            let one_way = Duration::from_millis(combination.rtt_ms) / 2;
            config.link = Arc::new(Distance(one_way));
        }
    }
    let nodes: Vec<_> = configs.into_iter().map(|config| start(config, counters.clone())).collect();
    let coordinator = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figure = coordinator.block_on(coordinate(args, combination, nodes, &counters))?;
    Ok(figure)
}

async fn coordinate(
    args: &Args,
    combination: Combination,
    nodes: Vec<Node>,
    counters: &Counters,
) -> Result<Figure, Box<dyn Error>> {
    let Combination { rtt_ms, window, groups, bytes } = combination;
    let (mut voters, mut orders, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for Node { thread, id, groups } in nodes {
        voters.push(id.await?);
        orders.push(groups);
        threads.push(thread);
    }
    let mut created = Vec::new();
    for order in &orders {
        let groups = (0..groups).map(group_id).collect();
        let (done, receiver) = oneshot::channel();
        order.send(Order::Create { groups, voters: voters.clone(), done })?;
        created.push(receiver);
    }
    for created in created {
        created.await?;
    }
    let run = Arc::new(Run { counting: AtomicBool::new(false), ending: AtomicBool::new(false) });
    let mut tallies = Vec::new();
    for order in &orders {
        let (done, tally) = oneshot::channel();
        let run = Arc::clone(&run);
        order.send(Order::Load { clients: args.in_flight, groups, bytes, run, done })?;
        tallies.push(tally);
    }
    tokio::time::sleep(Duration::from_secs(args.seconds) / 5).await;
    run.counting.store(true, Ordering::Relaxed);
    let (began, cpu_began) = (Instant::now(), cpu_time());
    let log_began = LogFigures::of(counters);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    run.counting.store(false, Ordering::Relaxed);
    let (elapsed, cpu) = (began.elapsed(), cpu_time() - cpu_began);
    let log = LogFigures::of(counters);
    run.ending.store(true, Ordering::Relaxed);
    let mut latencies_us = Histogram::<u64>::new(3)?;
    let mut errors = 0;
    for tally in tallies {
        let tally = tally.await?;
        latencies_us.add(tally.latencies_us)?;
        errors += tally.errors;
    }
    for order in orders {
        order.send(Order::Stop)?;
    }
    for thread in threads {
        thread.join().map_err(|_| "a node panicked")?;
    }
    let writes = latencies_us.len() as f64;
    let quantile_ms = |quantile| latencies_us.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Figure {
        rtt_ms,
        window: window.to_string(),
        groups,
        bytes,
        in_flight: args.in_flight,
        writes_per_s: writes / elapsed.as_secs_f64(),
        p50_ms: quantile_ms(0.5),
        p99_ms: quantile_ms(0.99),
        cpu_us_per_write: cpu.as_secs_f64() * 1e6 / writes,
        syncs_per_entry: log.syncs_per_entry(&log_began),
        read_back_per_entry: log.read_back_per_entry(&log_began),
        log_write_amplification: log.write_amplification(&log_began),
        errors,
    })
}

const fn group_id(number: u64) -> GroupId {
    GroupId(100 + number)
}

fn start(config: EngineConfig, counters: Counters) -> Node {
    let (groups, orders) = mpsc::unbounded_channel();
    let (say_id, id) = oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime for the node");
        runtime.block_on(serve(config, counters, say_id, orders));
    });
    Node { thread, id, groups }
}

async fn serve(
    config: EngineConfig,
    counters: Counters,
    say_id: oneshot::Sender<NodeId>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let engine = Engine::open(config, vec![Arc::new(SinkKind)], &counters).await;
    let engine = Arc::new(engine.expect("the node opens"));
    let _ = say_id.send(engine.node());
    while let Some(order) = orders.recv().await {
        match order {
            Order::Create { groups, voters, done } => {
                for group in groups {
                    let created = engine.create_group(group, "sink", None, voters.clone()).await;
                    created.expect("the group is created");
                }
                let _ = done.send(());
            }
            Order::Settle { asleep, done } => {
                idle::settle(&engine, asleep).await;
                let _ = done.send(());
            }
            Order::Touch { groups, done } => {
                let _ = done.send(idle::touch(&engine, groups).await);
            }
            Order::Load { clients, groups, bytes, run, done } => {
                let load = load(Arc::clone(&engine), clients, groups, bytes, run);
                tokio::spawn(async move { drop(done.send(load.await)) });
            }
            Order::Stop => break,
        }
    }
    if let Some(engine) = Arc::into_inner(engine) {
        engine.shutdown().await;
    }
}

/// Every node has clients for every group; those of the groups that it does not lead stand by.
async fn load(
    engine: Arc<Engine>,
    clients: usize,
    groups: u64,
    bytes: usize,
    run: Arc<Run>,
) -> Tally {
    let latencies_us = Histogram::new(3).expect("three digits are a valid precision");
    let tally = Arc::new(Mutex::new(Tally { latencies_us, errors: 0 }));
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let group = group_id(client as u64 % groups);
            let client = client_loop(
                Arc::clone(&engine),
                group,
                bytes,
                Arc::clone(&run),
                Arc::clone(&tally),
            );
            tokio::spawn(client)
        })
        .collect();
    for task in tasks {
        task.await.expect("a client does not panic");
    }
    drop(engine);
    Arc::into_inner(tally).expect("all clients are done").into_inner().expect("no client panicked")
}

async fn client_loop(
    engine: Arc<Engine>,
    group: GroupId,
    bytes: usize,
    run: Arc<Run>,
    tally: Arc<Mutex<Tally>>,
) {
    let mut leadership = engine.leadership(group).expect("the group lives here");
    let command = Bytes::from(vec![7; bytes]);
    while !run.ending.load(Ordering::Relaxed) {
        if leadership.borrow_and_update().leader != Some(engine.node()) {
            let pause = tokio::time::timeout(Duration::from_millis(100), leadership.changed());
            drop(pause.await);
            continue;
        }
        let began = Instant::now();
        let proposed = engine.propose(group, command.clone()).await;
        let mut tally = tally.lock().expect("no client panicked");
        match proposed {
            Ok(_) if run.counting.load(Ordering::Relaxed) => {
                let latency_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                tally.latencies_us.record(latency_us).expect("the histogram grows as needed");
            }
            Ok(_) => {}
            Err(_) => tally.errors += 1,
        }
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
