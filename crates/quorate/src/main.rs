//! The process: a command line in, an exit code out.

use std::process::ExitCode;

use clap::Parser;
use quorate::cli::{Cli, run};

/// Requests are many small allocations, freed on the thread that made them: this allocator serves those
/// with less work than the system's. RocksDB keeps the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    run(Cli::parse())
}
