//! `quorate-torture`: the long runs of what the tests do briefly, and measurements that take minutes.
//!
//! `make torture` adds rounds to those that the same sources have survived before.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand, ValueEnum};
use quorate_tests::cluster::Cluster;
use quorate_tests::fuzz;
use quorate_tests::measure::{restart, snapshot, steady};
use quorate_tests::network::with_network;
use quorate_tests::torture::{Tally, check, damage, kill, power};
use quorate_tests::verify::say;

/// Faults under load, and measurements over minutes and gigabytes, on clusters of real processes.
#[derive(Debug, Parser)]
#[command(name = "quorate-torture", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Rounds of faults: kills, power cuts, flipped bits, torn logs, links that are cut. Whatever is lost ends the run with
    /// exit code 1, and the data is kept.
    Faults(Faults),
    /// Random and damaged bytes at every decoder of the client port.
    Fuzz(fuzz::Settings),
    /// How long nodes take to serve again after `kill -9`, with so much data.
    Restart(restart::Settings),
    /// Steady overwrites of a data set: disk, memory and p99 over time, as a table and a graph.
    Steady(steady::Settings),
    /// The p99 of puts with and without a snapshot on its way to a node that joins.
    Snapshot(snapshot::Settings),
}

#[derive(Debug, Args)]
struct Faults {
    /// Where the sum over all runs is kept.
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// Rounds of this run.
    #[arg(long, default_value_t = 40)]
    rounds: u64,
    /// Rounds that one cluster goes through before it is checked and another one is made.
    #[arg(long, default_value_t = 10)]
    session: u64,
    /// Only these kinds; without it, whichever has had the smallest part of its share so far.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// What the rounds are drawn from; a new one each time by default.
    #[arg(long)]
    seed: Option<u64>,
}

/// Decoders that a minute of fuzzing is for.
const FUZZED_TOGETHER: usize = 8;

/// A kind of round, and how many of it make a full set beside those of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// `kill -9`.
    Kill,
    /// The power of one node.
    PowerOne,
    /// The power of all nodes at once.
    PowerAll,
    /// A flipped bit.
    Flip,
    /// A log that ends early.
    Tear,
    /// The contract checker, while nodes are killed, paused, or cut off.
    Check,
    /// The contract checker, while the kernel cuts links of nodes in network namespaces of their own.
    Partition,
    /// A minute of hostile bytes at eight decoders of the client port.
    Fuzz,
}

impl Kind {
    const EACH: [Self; 8] = [
        Self::Kill,
        Self::PowerOne,
        Self::PowerAll,
        Self::Flip,
        Self::Tear,
        Self::Check,
        Self::Partition,
        Self::Fuzz,
    ];

    /// What the tally calls it, and its part of a full set.
    fn share(self) -> (&'static str, u64) {
        match self {
            Self::Kill => ("kill:", 100),
            Self::PowerOne => ("power: one", 30),
            Self::PowerAll => ("power: all", 15),
            Self::Flip => ("flip:", 50),
            Self::Tear => ("tear:", 50),
            Self::Check => ("check:", 80),
            Self::Partition => ("partition:", 40),
            Self::Fuzz => ("fuzz:", 10 * fuzz::targets(&[]).len() as u64),
        }
    }

    /// The one that lags most behind its share.
    fn next(of: &[Self], tally: &Tally) -> Self {
        let part = |kind: &Self| {
            let (name, share) = kind.share();
            tally.count(name) * 1_000 / share
        };
        of.iter().copied().min_by_key(part).expect("there are kinds")
    }

    /// A cluster that goes through so many rounds; none when this machine or user cannot do them.
    fn session(self, rounds: u64, random: &mut fastrand::Rng, so_far: &Tally) -> Option<Tally> {
        match self {
            Self::Kill => {
                let mut session = kill::begin()?;
                for _ in 0..rounds {
                    let victims = kill::Victims::EACH[random.usize(..3)];
                    kill::round(&mut session, victims, random);
                }
                Some(session.end())
            }
            Self::PowerOne | Self::PowerAll => {
                let mut session = power::begin("power loss")?;
                for _ in 0..rounds {
                    match self {
                        Self::PowerAll => session.round(&[0, 1, 2]),
                        _ => session.round(&[random.usize(..3)]),
                    }
                }
                Some(session.end())
            }
            Self::Flip | Self::Tear => {
                let mut session = damage::begin("damage")?;
                for _ in 0..rounds {
                    let damage = match self {
                        Self::Flip => damage::Damage::Flip,
                        _ => damage::Damage::Tear,
                    };
                    damage::round(&mut session, damage, random);
                }
                Some(session.end())
            }
            Self::Check => {
                let mut cluster = check::begin();
                let mut tally = Tally::default();
                for _ in 0..rounds {
                    let fault = check::Fault::EACH[random.usize(..4)];
                    tally.add(check::round(&mut cluster, fault, random));
                }
                Some(tally)
            }
            Self::Partition => with_network("partitions", 3, |network| {
                let mut cluster = Cluster::networked(network);
                let mut tally = Tally::default();
                for _ in 0..rounds {
                    let fault = check::Fault::OF_NETWORKS[random.usize(..4)];
                    tally.add(check::round(&mut cluster, fault, random));
                }
                tally
            }),
            Self::Fuzz => {
                let mut tally = Tally::default();
                for _ in 0..rounds {
                    let name = |target: &fuzz::Target| format!("fuzz: {}", target.path());
                    let of = |target: &fuzz::Target| {
                        so_far.count_of(&name(target)) + tally.count_of(&name(target))
                    };
                    let round = fuzz::least_fuzzed(of, FUZZED_TOGETHER);
                    let seed = random.u64(..);
                    let extent = fuzz::Extent { seed, seconds: 60, calls: u64::MAX };
                    let calls = round.run(extent);
                    tally.hostile_calls += calls.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
                    round.targets().iter().for_each(|target| tally.round(&name(target)));
                }
                Some(tally)
            }
        }
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Faults(settings) => faults(&settings),
        Command::Fuzz(settings) => fuzz::run(&settings),
        Command::Restart(settings) => restart::run(&settings),
        Command::Steady(settings) => steady::run(&settings),
        Command::Snapshot(settings) => snapshot::run(&settings),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&format!("quorate-torture: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn faults(settings: &Faults) -> Result<(), String> {
    let mut total = Tally::load(&settings.state)?;
    let mut kinds =
        if settings.only.is_empty() { Kind::EACH.to_vec() } else { settings.only.clone() };
    let seed = settings.seed.unwrap_or_else(now_s);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut left = settings.rounds;
    while left > 0 && !kinds.is_empty() {
        let kind = Kind::next(&kinds, &total);
        let rounds = left.min(settings.session);
        // A session that finds something wrong panics, with what it was and where the data is.
        match catch_unwind(AssertUnwindSafe(|| kind.session(rounds, &mut random, &total))) {
            Ok(Some(tally)) => {
                total.add(tally);
                left -= rounds;
            }
            // It has said why.
            Ok(None) => kinds.retain(|other| *other != kind),
            Err(panic) => {
                total.failures.push(format!("{} seed {seed}: {}", kind.share().0, reason(&*panic)));
                total.save(&settings.state)?;
                say(&total.to_string());
                return Err(
                    "a promise was broken, or the machine is too slow: see above".to_owned()
                );
            }
        }
        total.save(&settings.state)?;
    }
    say(&total.to_string());
    if kinds.is_empty() { Err("none of these can be done here".to_owned()) } else { Ok(()) }
}

/// The first line of what a panic says.
fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason");
    text.lines().next().unwrap_or_default().to_owned()
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}
