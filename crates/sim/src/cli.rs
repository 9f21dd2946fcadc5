//! The command `sim`: one run to look at, or many to find something. The only part of the simulator that knows
//! files and real time.
//!
//! `quorate sim` and `quorate-sim` both take these arguments.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{fs, io};

use clap::{Parser, Subcommand, ValueEnum};

use crate::campaign::{Report, campaign};
use crate::check::Violation;
use crate::diagram;
use crate::plan::Plan;
use crate::run::{Outcome, run};
use crate::scenario::Scenario;
use crate::shrink::shrink;
use crate::world::Counts;

/// Runs that shrinking a failure may take.
const SHRINK_RUNS_MAX: usize = 200;

/// Lines of a trace that are shown of a failing run without being asked for.
const TRACE_TAIL: usize = 40;

/// Run a cluster in one thread from one seed, under faults, and check what it promised
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The seed; with a scenario, in place of its own
    #[arg(long)]
    seed: Option<u64>,
    /// Run this scenario instead of a plan drawn from the seed
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Print everything that happened
    #[arg(long)]
    trace: bool,
    /// Draw elections, appends and faults over time
    #[arg(long, value_enum)]
    diagram: Option<Form>,
    /// Part of the run to draw or print, in milliseconds: 0..200
    #[arg(long, value_name = "FROM..TO", value_parser = parse_span)]
    span: Option<Range<u64>>,
    /// Print the plan as TOML, to be kept as a scenario
    #[arg(long)]
    plan: bool,
    /// Do not look for fewer faults that fail alike
    #[arg(long)]
    no_shrink: bool,
}

/// How a diagram is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Form {
    /// As lines of text
    Text,
    /// As an SVG image
    Svg,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run many seeds
    Campaign(CampaignArgs),
    /// Switch known defects on, one at a time, and see that they are found
    #[cfg(feature = "defects")]
    Mutants(MutantsArgs),
}

#[derive(Debug, clap::Args)]
struct CampaignArgs {
    /// The first seed; without it, where the state file says
    #[arg(long)]
    from: Option<u64>,
    /// How many
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Keep count here of the seeds that were run, and go on from there
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Keep count after so many seeds each
    #[arg(long, default_value_t = 500)]
    chunk: u64,
}

#[cfg(feature = "defects")]
#[derive(Debug, clap::Args)]
struct MutantsArgs {
    /// Only this defect
    #[arg(long)]
    only: Option<String>,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Seeds for each defect
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Write the table here too
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// A file or the output.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Something was found, or a scenario is wrong.
    #[error("{0}")]
    Found(String),
}

/// Runs the command.
///
/// # Errors
/// When a promise was broken, a scenario failed, a defect survived, or a file cannot be used.
pub fn run_command(args: &Args, out: &mut dyn Write) -> Result<(), Failed> {
    // A broken assertion is a finding like any other and is told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let result = match &args.command {
        None => one(args, out),
        Some(Command::Campaign(args)) => many(args, out),
        #[cfg(feature = "defects")]
        Some(Command::Mutants(args)) => gate(args, out),
    };
    drop(std::panic::take_hook());
    result
}

fn one(args: &Args, out: &mut dyn Write) -> Result<(), Failed> {
    let scenario = match &args.scenario {
        Some(path) => {
            let text = fs::read_to_string(path)?;
            Some(Scenario::parse(&text).map_err(|error| Failed::Found(error.to_string()))?)
        }
        None => None,
    };
    let own = scenario.as_ref().map_or(0, |scenario| scenario.seed);
    let seed = args.seed.unwrap_or(own);
    let plan = match &scenario {
        Some(scenario) => scenario.plan.clone(),
        None => Plan::of_seed(seed),
    };
    if args.plan {
        let text = toml::to_string(&plan).map_err(|error| Failed::Found(error.to_string()))?;
        writeln!(out, "{text}")?;
    }
    let outcome = run(&plan, seed, true);
    let span = args.span.clone().unwrap_or(0..u64::MAX / 1000);
    if args.trace {
        let shown = outcome.trace.iter().filter(|e| span.contains(&(e.at_us / 1000)));
        for event in shown {
            writeln!(out, "{event}")?;
        }
    }
    match args.diagram {
        Some(Form::Text) => writeln!(out, "{}", diagram::text(&plan, &outcome.trace, &span))?,
        Some(Form::Svg) => writeln!(out, "{}", diagram::svg(&plan, &outcome.trace, &span))?,
        None => {}
    }
    if args.diagram != Some(Form::Svg) {
        summary(out, &plan, seed, &outcome)?;
    }
    if let Some(violation) = &outcome.violation {
        explain(out, &plan, seed, &outcome, violation, !args.no_shrink)?;
        return Err(Failed::Found(format!("seed {seed}: {violation}")));
    }
    match scenario.map(|scenario| scenario.judge(&outcome)) {
        Some(Err(error)) => Err(Failed::Found(error.to_string())),
        Some(Ok(())) | None => Ok(()),
    }
}

fn summary(out: &mut dyn Write, plan: &Plan, seed: u64, outcome: &Outcome) -> io::Result<()> {
    let counts = &outcome.counts;
    writeln!(out, "seed            {seed}")?;
    writeln!(out, "plan            {}", plan.title)?;
    let cluster = &plan.cluster;
    writeln!(
        out,
        "nodes           {} voters, {} learners{}",
        cluster.voters,
        cluster.learners,
        if cluster.placement { ", with a placement group" } else { "" }
    )?;
    count_lines(out, counts)?;
    writeln!(out, "trace hash      {:016x}", outcome.trace_hash)?;
    writeln!(
        out,
        "verdict         {}",
        match &outcome.violation {
            None => "every promise was kept".to_owned(),
            Some(violation) => format!("BROKEN {}", violation.oracle),
        }
    )
}

fn count_lines(out: &mut dyn Write, counts: &Counts) -> io::Result<()> {
    let Counts { answered, failed, unknown, .. } = counts;
    writeln!(out, "virtual time    {} ms in {} events", counts.virtual_ms, counts.events)?;
    writeln!(out, "faults          {}, {} starts", counts.faults, counts.starts)?;
    writeln!(out, "messages lost   {}", counts.lost)?;
    writeln!(out, "asleep          {} ticks of groups", counts.asleep)?;
    writeln!(out, "elections       {}", counts.elections)?;
    writeln!(out, "map changes     {}, {} moves of replicas", counts.map_changes, counts.moved)?;
    writeln!(out, "committed       {} entries", counts.committed)?;
    let (kept_alive, expired) = (counts.kept_alive, counts.expired);
    writeln!(out, "leases          {kept_alive} kept alive, {expired} ended by themselves")?;
    writeln!(out, "watchers        told of {} events", counts.told_events)?;
    writeln!(out, "undecided       {} histories", counts.undecided)?;
    writeln!(out, "requests        {answered} answered, {failed} failed, {unknown} unknown")
}

/// What a failure rests on: the fewest faults, and the end of the trace.
fn explain(
    out: &mut dyn Write,
    plan: &Plan,
    seed: u64,
    outcome: &Outcome,
    violation: &Violation,
    shrinks: bool,
) -> io::Result<()> {
    let shrunk = if shrinks { shrink(plan, seed, violation.oracle, SHRINK_RUNS_MAX) } else { None };
    let (plan, outcome) = match &shrunk {
        Some(shrunk) => (&shrunk.plan, &run(&shrunk.plan, seed, true)),
        None => (plan, outcome),
    };
    writeln!(out, "\nseed {seed} fails; repeat it with --seed {seed}")?;
    if let Some(shrunk) = &shrunk {
        writeln!(out, "shrunk to {} faults in {} runs:", plan.faults.len(), shrunk.runs)?;
    }
    for (number, fault) in plan.faults.iter().enumerate() {
        writeln!(out, "  {number}: at {} ms {fault}", fault.at_us / 1000)?;
    }
    writeln!(out, "the end of its trace:")?;
    let from = outcome.trace.len().saturating_sub(TRACE_TAIL);
    for event in &outcome.trace[from..] {
        writeln!(out, "  {event}")?;
    }
    if let Some(violation) = &outcome.violation {
        writeln!(out, "  {violation}")?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "how many seeds a minute is a matter of real time")]
fn many(args: &CampaignArgs, out: &mut dyn Write) -> Result<(), Failed> {
    let done = args.state.as_deref().map_or(Ok(0), seeds_done)?;
    let from = args.from.unwrap_or(done);
    let (end, chunk) = (from + args.seeds, args.chunk.max(1));
    let began = Instant::now();
    let mut report = Report::default();
    let mut next = from;
    // Whatever ends a campaign, what has passed counts: the next one goes on from there.
    while next < end && report.failures.is_empty() {
        let until = end.min(next + chunk);
        report.add(campaign(next..until, args.threads, 5, &|_| {}));
        next = until;
        if report.failures.is_empty() {
            // Seeds that were left out between the count and `--from` have not passed.
            if let Some(state) = args.state.as_deref().filter(|_| from <= done) {
                keep(state, done.max(next))?;
            }
            let seconds = began.elapsed().as_secs_f64();
            writeln!(out, "passed          {from} to {next}, {seconds:.0} s")?;
            out.flush()?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = report.seeds as f64 * 60.0 / seconds.max(0.001);
    writeln!(out, "seeds           {from} to {next}")?;
    writeln!(out, "rate            {rate:.0} seeds in a minute, {seconds:.1} s")?;
    count_lines(out, &report.counts)?;
    if report.failures.is_empty() {
        if let Some(state) = &args.state {
            writeln!(out, "since change    {} seeds, all passed", seeds_done(state)?)?;
        }
        return Ok(());
    }
    for (seed, violation) in &report.failures {
        writeln!(out, "FAILED          seed {seed}: {violation}")?;
    }
    if let Some((&seed, violation)) = report.failures.first_key_value() {
        let plan = Plan::of_seed(seed);
        explain(out, &plan, seed, &run(&plan, seed, true), violation, true)?;
    }
    Err(Failed::Found(format!("{} seeds failed", report.failures.len())))
}

/// How many seeds were run since the sources changed; the caller names the file after them.
fn seeds_done(state: &Path) -> io::Result<u64> {
    match fs::read_to_string(state) {
        Ok(text) => text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn keep(state: &Path, total: u64) -> io::Result<()> {
    if let Some(directory) = state.parent() {
        fs::create_dir_all(directory)?;
    }
    // In its place as a whole, or not at all: half a number would be another one.
    let written = state.with_extension("new");
    fs::write(&written, format!("{total}\n"))?;
    fs::rename(written, state)
}

#[cfg(feature = "defects")]
fn gate(args: &MutantsArgs, out: &mut dyn Write) -> Result<(), Failed> {
    use quorate_types::defect::Defect;

    let chosen = |defect: &Defect| {
        args.only.as_ref().is_none_or(|only| format!("{defect:?}").eq_ignore_ascii_case(only))
    };
    let defects: Vec<_> = Defect::ALL.iter().copied().filter(chosen).collect();
    let tell = |mutant: &crate::mutants::Mutant| {
        let seeds = mutant.kill.as_ref().map_or(0, |(seeds, _)| *seeds);
        // Progress only: the table says it all at the end.
        drop(writeln!(io::stderr(), "{:?}: {seeds}", mutant.defect));
    };
    let found = crate::mutants::mutants(&defects, args.from, args.seeds, args.threads, &tell);
    let table = crate::mutants::table(&found, args.seeds);
    writeln!(out, "{table}")?;
    if let Some(path) = &args.table {
        fs::write(path, &table)?;
    }
    let killed = found.iter().filter(|mutant| mutant.kill.is_some()).count();
    if killed * 100 < found.len() * 95 {
        return Err(Failed::Found(format!("only {killed} of {} defects were found", found.len())));
    }
    Ok(())
}

fn parse_span(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("a span is FROM..TO")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}
