//! The process: a command line in, an exit code out.

use std::process::ExitCode;

use clap::Parser;
use quorate::cli::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse())
}
