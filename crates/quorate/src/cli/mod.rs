//! The commands.
//!
//! - [`serve`]: one node.
//! - [`dev`]: a whole cluster in one process.
//! - [`status`]: what nodes say of themselves.
//! - [`member`]: who belongs to the cluster, and how that changes.
//! - [`backup`]: the keyspace of a running cluster in a file.
//! - [`restore`]: data directories of a new cluster, from such a file.
//! - [`check`]: whether a data directory is whole.
//! - [`log_dump`]: what a group's log holds.
//! - [`connect`]: how commands reach a node.
//! - [`cert`]: a cluster's authority and its nodes' certificates.
//! - `sim`: the simulator's own command, [`quorate_sim::cli`].

pub mod backup;
pub mod cert;
pub mod check;
pub mod connect;
pub mod dev;
pub mod log_dump;
pub mod login;
pub mod member;
pub mod restore;
pub mod serve;
pub mod status;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::shutdown::Exit;

/// The etcd v3 API on many Raft groups.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node of a cluster
    Serve(Box<serve::Args>),
    /// Run a whole cluster in this process, to try things out
    Dev(dev::Args),
    /// Show nodes, groups, leaders, terms and indexes
    Status(status::Args),
    /// Show, add, promote, remove and replace members of a cluster
    #[command(subcommand)]
    Member(member::Command),
    /// Write the keyspace of a running cluster into a file, at one revision
    Backup(backup::Args),
    /// Make a data directory for a node of a new cluster from a backup, or from a snapshot of etcd
    Restore(restore::Args),
    /// Check a data directory that no node runs on, and change nothing in it
    Check(check::Args),
    /// Look at the log in a data directory that no node runs on
    #[command(subcommand)]
    Log(log_dump::Command),
    /// Run a simulated cluster from a seed, under faults, and check what it promised
    Sim(Box<quorate_sim::cli::Args>),
    /// Make a cluster's authority and its nodes' certificates
    #[command(subcommand)]
    Cert(cert::Command),
}

/// Why a command failed: the exit code, and what to tell.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// For the person at the terminal.
    pub message: String,
}

impl Failure {
    /// A failure with these words.
    pub fn new(exit: Exit, message: impl ToString) -> Self {
        Self { exit, message: message.to_string() }
    }
}

/// Runs the command of the process's command line to its end.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(args) => serve::run(*args),
        Command::Dev(args) => dev::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Member(command) => member::run(&command),
        Command::Backup(args) => backup::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Log(command) => log_dump::run(&command),
        Command::Sim(args) => sim(&args),
        Command::Cert(command) => cert::run(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A closed stderr is no reason to fail differently.
            drop(writeln!(std::io::stderr(), "quorate: {failure}"));
            failure.exit.into()
        }
    }
}

/// The simulator writes as it goes; all that is left to do here is to say how it ended.
fn sim(args: &quorate_sim::cli::Args) -> Result<(), Failure> {
    quorate_sim::cli::run_command(args, &mut std::io::stdout().lock())
        .map_err(|error| Failure::new(Exit::Failed, error))
}

/// Runs `main` on a runtime of the main thread: signals, the metrics port and what waits for both.
fn block_on(main: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Failed, error))?.block_on(main)
}

/// Prints for people and scripts. A reader who has gone away is no error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
