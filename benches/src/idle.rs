//! What groups cost that have nothing to do: three nodes with many of them, awake and asleep, left alone; and
//! what the first write costs afterwards.

#![expect(clippy::print_stdout, reason = "its output is its product")]

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_node::{Engine, EngineConfig, Role, local};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Args, Node, Order, cpu_time, group_id, start};
use crate::counters::Counters;

/// How long groups that are to sleep are idle before: long enough to be created and elected in peace.
const SLEEP_AFTER: Duration = Duration::from_secs(2);

/// Time between two looks at whether all is quiet.
const PAUSE: Duration = Duration::from_millis(200);

/// Groups of each node that are written to in the end.
const TOUCHED: u64 = 100;

/// One number of groups, measured in one state.
#[derive(Serialize, Debug)]
struct Figure {
    idle_groups: u64,
    asleep: bool,
    cpu_us_per_s: f64,
    first_write_p50_ms: f64,
    first_write_p99_ms: f64,
}

/// Measures all numbers of groups of `args`.
pub(super) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if !args.json {
        println!(
            "| idle groups | state | CPU us/s | first write, p50 ms | first write, p99 ms |\n|---|---|---|---|---|"
        );
    }
    for &groups in &args.idle_groups {
        for asleep in [false, true] {
            let figure = measure(args, groups, asleep)?;
            if args.json {
                println!("{}", serde_json::to_string(&figure)?);
                continue;
            }
            let Figure { cpu_us_per_s, first_write_p50_ms: p50, first_write_p99_ms: p99, .. } =
                figure;
            let state = if asleep { "asleep" } else { "awake" };
            println!("| {groups} | {state} | {cpu_us_per_s:.0} | {p50:.2} | {p99:.2} |");
        }
    }
    Ok(())
}

fn measure(args: &Args, groups: u64, asleep: bool) -> Result<Figure, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let sleep_after = if asleep { SLEEP_AFTER } else { Duration::ZERO };
    let open = |config| start(EngineConfig { sleep_after, ..config }, Counters::default());
    let nodes: Vec<_> = local::configs(3, dir.path())?.into_iter().map(open).collect();
    let coordinator = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    coordinator.block_on(coordinate(args, groups, asleep, nodes))
}

async fn coordinate(
    args: &Args,
    groups: u64,
    asleep: bool,
    nodes: Vec<Node>,
) -> Result<Figure, Box<dyn Error>> {
    let (mut voters, mut orders, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for Node { thread, id, groups } in nodes {
        voters.push(id.await?);
        orders.push(groups);
        threads.push(thread);
    }
    let mut done = Vec::new();
    for order in &orders {
        let groups = (0..groups).map(group_id).collect();
        let (created, receiver) = oneshot::channel();
        order.send(Order::Create { groups, voters: voters.clone(), done: created })?;
        done.push(receiver);
    }
    for order in &orders {
        let (settled, receiver) = oneshot::channel();
        order.send(Order::Settle { asleep, done: settled })?;
        done.push(receiver);
    }
    for done in done {
        done.await?;
    }
    let (began, cpu_began) = (Instant::now(), cpu_time());
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (elapsed, cpu) = (began.elapsed(), cpu_time() - cpu_began);

    let mut latencies = Vec::new();
    for order in &orders {
        let (done, touched) = oneshot::channel();
        order.send(Order::Touch { groups, done })?;
        latencies.extend(touched.await?);
    }
    latencies.sort_unstable();
    for order in orders {
        order.send(Order::Stop)?;
    }
    for thread in threads {
        thread.join().map_err(|_| "a node panicked")?;
    }
    let quantile_ms = |quantile: f64| {
        let at = (latencies.len() as f64 * quantile) as usize;
        latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    Ok(Figure {
        idle_groups: groups,
        asleep,
        cpu_us_per_s: cpu.as_secs_f64() * 1e6 / elapsed.as_secs_f64(),
        first_write_p50_ms: quantile_ms(0.5),
        first_write_p99_ms: quantile_ms(0.99),
    })
}

/// Waits until every group here knows its leader, and sleeps if it is to.
pub(super) async fn settle(engine: &Engine, asleep: bool) {
    loop {
        let status = engine.status().await;
        let is_settled = |group: &quorate_node::GroupStatus| {
            group.leadership.leader.is_some() && group.asleep == asleep
        };
        if status.groups.iter().all(is_settled) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Writes once to each of some groups that are led here, one after the other.
pub(super) async fn touch(engine: &Engine, groups: u64) -> Vec<Duration> {
    let leads = |group: &quorate_types::GroupId| {
        engine.leadership(*group).is_ok_and(|now| now.borrow().role == Role::Leader)
    };
    let led: Vec<_> = (0..groups).map(group_id).filter(leads).take(TOUCHED as usize).collect();
    let mut latencies = Vec::with_capacity(led.len());
    for group in led {
        let began = Instant::now();
        if engine.propose(group, Bytes::from_static(&[7; 16])).await.is_ok() {
            latencies.push(began.elapsed());
        }
    }
    latencies
}
