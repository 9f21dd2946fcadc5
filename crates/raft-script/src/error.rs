//! What can be wrong with a script.

/// A script that cannot be read or run.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScriptError {
    /// It is not a script.
    #[error("line {line}: {problem}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// In words.
        problem: &'static str,
    },
    /// No command has this name.
    #[error("unknown command {0}")]
    UnknownCommand(String),
    /// The command does not take this.
    #[error("{0}")]
    Usage(String),
    /// There is no such node.
    #[error("no node {0}")]
    UnknownNode(u64),
    /// The node has applied nothing that it could make a snapshot of.
    #[error("node {0} has no snapshot to send")]
    NoSnapshot(u64),
    /// The node is down.
    #[error("node {0} is down")]
    Down(u64),
}
