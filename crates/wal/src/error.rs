//! What can go wrong with the logs, by what the caller has to do about it.

use quorate_types::{GroupId, LogIndex};

/// Why the logs could not be written, read or recovered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// The engine failed to write, sync or read. After a failed write or sync nothing may be
    /// acknowledged any more: stop the node.
    #[error("log engine: {0}")]
    Engine(String),
    /// A write was tried after one that had failed. It was not attempted.
    #[error("log refused: an earlier write or sync failed")]
    Poisoned,
    /// What is on disk is not what was written: fence the group.
    #[error("log of group {group} is damaged at index {index}: {what}")]
    Damaged {
        /// Whose record it is.
        group: GroupId,
        /// The first index that cannot be trusted; 0 for a record that is no entry.
        index: LogIndex,
        /// What does not fit, in words.
        what: String,
    },
    /// The engine's files are not what was written, and no telling which groups that concerns: fence every
    /// group of the node.
    #[error("the log is damaged: {0}")]
    DamagedEngine(String),
    /// What is on disk was written by a release that this one does not understand: run that one.
    #[error("log was written in an unknown format: {0}")]
    Format(String),
    /// The wanted entries were truncated: send a snapshot instead.
    #[error("log of group {group} begins at index {first}")]
    Compacted {
        /// Whose log it is.
        group: GroupId,
        /// The first index that can be read.
        first: LogIndex,
    },
    /// This node holds no log of the group.
    #[error("no log of group {0}")]
    UnknownGroup(GroupId),
}
