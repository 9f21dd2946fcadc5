//! `quorate check`: whether a data directory is whole.

use std::path::PathBuf;

use super::{Failure, print};
use crate::shutdown::Exit;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing in the directory is changed. Read are all checksums, that no log has a gap, that the state of \
each group is where its log allows, and that the rows of the keyspace fit together.

Exit codes: 0 no damage found; 1 the directory is in use, or cannot be read; 6 damage found.")]
pub struct Args {
    /// Data directory of a node that is not running
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// See the exit codes.
pub fn run(args: &Args) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, error);
    let diary = tempfile::tempdir().map_err(|error| failed(&error))?;
    let report = quorate_node::inspect::check(&args.data_dir, diary.path());
    let report = report.map_err(|error| failed(&error))?;
    for line in &report.found {
        print(&format!("{line}\n"));
    }
    for line in &report.damage {
        print(&format!("DAMAGE: {line}\n"));
    }
    match report.damage.len() {
        0 => print("no damage found\n"),
        count => return Err(Failure::new(Exit::Damaged, format!("damage found: {count} lines"))),
    }
    Ok(())
}
