//! `quorate-load`: load and latency against any etcd v3 endpoints, the ceiling of a gRPC door, and a
//! check that servers keep etcd's contract.
//!
//! One run: [`args`] is parsed, [`workload`] builds request templates, [`drive`] starts worker threads
//! (one current-thread runtime each; one by default, because the client shares the machine's cores with
//! the servers it measures), every client sends through a [`call::Caller`], [`tally`] counts, [`process`]
//! samples the servers' CPU, and [`report`] prints. [`leases`] is a load of leases that are kept alive; [`watch`] is
//! many watchers and few puts; [`verify`] is the workload that remembers what was acknowledged; [`check`] records all
//! answers and judges them; [`ceiling`] is a server with constant answers, which shows what the protocol alone costs.

mod args;
mod call;
mod ceiling;
mod check;
mod drive;
mod keys;
mod leases;
mod pacer;
mod process;
mod progress;
mod report;
mod socket;
mod tally;
mod values;
mod verify;
mod watch;
mod workload;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Why a run could not be made, for people to read.
type Fault = String;

fn main() -> ExitCode {
    let outcome = match args::Args::parse().command {
        args::Command::Put(load) => drive::run(workload::Shape::Put, &load),
        args::Command::Get(get) => drive::run(
            workload::Shape::Get { serializable: get.consistency.is_serializable() },
            &get.load,
        ),
        args::Command::Mixed(mixed) => drive::run(
            workload::Shape::Mixed {
                read_ratio: mixed.read_ratio,
                serializable: mixed.consistency.is_serializable(),
            },
            &mixed.load,
        ),
        args::Command::Range(range) => drive::run(
            workload::Shape::Range {
                span: range.span,
                serializable: range.consistency.is_serializable(),
            },
            &range.load,
        ),
        args::Command::Txn(load) => drive::run(workload::Shape::Txn, &load),
        args::Command::Leases(leases) => leases::run(&leases),
        args::Command::Watch(watch) => watch::run(&watch),
        args::Command::Verify(verify) => verify::run(&verify),
        args::Command::Check(check) => check::run(&check),
        args::Command::Ceiling(ceiling) => ceiling::run(&ceiling).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|fault| {
        // Nothing is left to do when standard error itself is closed.
        let _ = writeln!(std::io::stderr(), "quorate-load: {fault}");
        ExitCode::from(2)
    })
}
