//! `quorate log`: what a group's log holds.

use std::path::PathBuf;

use quorate_node::inspect::{DumpedEntry, InspectError, dump};
use quorate_types::{GroupId, LogIndex};

use super::{Failure, print};
use crate::shutdown::Exit;

/// What to do with a log.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the entries of a group, one a line: index, term, kind, size, and what it does, without values
    Dump(DumpArgs),
}

/// Arguments of `log dump`.
#[derive(Debug, clap::Args)]
pub struct DumpArgs {
    /// Data directory of a node that is not running; nothing in it is changed
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Number of the group: 1 is the placement group, 2 the keyspace
    #[arg(long, value_name = "GROUP")]
    group: u64,
    /// First index
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    from: u64,
    /// Last index [default: the last of the log]
    #[arg(long, value_name = "INDEX")]
    to: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// When the directory is in use or the group has no log (exit code 1), or the log is damaged (6).
pub fn run(command: &Command) -> Result<(), Failure> {
    let Command::Dump(args) = command;
    let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, error);
    let diary = tempfile::tempdir().map_err(|error| failed(&error))?;
    let (group, from) = (GroupId(args.group), LogIndex(args.from));
    let to = LogIndex(args.to.unwrap_or(u64::MAX - 1));
    let mut each = |entry: DumpedEntry| print(&line(&entry));
    dump(&args.data_dir, group, from, to, diary.path(), &mut each).map_err(|error| {
        let damaged = matches!(
            error,
            InspectError::Log(
                quorate_node::inspect::LogError::Damaged { .. }
                    | quorate_node::inspect::LogError::DamagedEngine(_)
            )
        );
        Failure::new(if damaged { Exit::Damaged } else { Exit::Failed }, error)
    })
}

fn line(entry: &DumpedEntry) -> String {
    let DumpedEntry { id, kind, bytes, what } = entry;
    let line =
        format!("{:>8} t{:<6} {kind:<10} {bytes:>8} B  {what}", id.index.value(), id.term.value());
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use quorate_types::{EntryId, Term};

    use super::*;

    #[test]
    fn an_entry_is_one_line() {
        let id = EntryId::new(Term(3), LogIndex(12));
        let what = "put \"a\" (6 B)".to_owned();
        let put = DumpedEntry { id, kind: "command", bytes: 17, what };
        assert_eq!(line(&put), "      12 t3      command          17 B  put \"a\" (6 B)\n");
        let empty = DumpedEntry { id, kind: "no-op", bytes: 0, what: String::new() };
        assert_eq!(line(&empty), "      12 t3      no-op             0 B\n");
    }
}
