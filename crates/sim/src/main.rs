//! `quorate-sim`: the simulator as a program of its own, for use without the rest.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use quorate_sim::cli::{Args, run_command};

fn main() -> ExitCode {
    match run_command(&Args::parse(), &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            // Nowhere is left to report to when this fails.
            drop(writeln!(std::io::stderr(), "quorate-sim: {failed}"));
            ExitCode::FAILURE
        }
    }
}
