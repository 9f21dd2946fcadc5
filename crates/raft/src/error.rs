//! Why a command to a replica was not taken.

use quorate_types::NodeId;

/// This replica does not lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not the leader")]
pub struct NotLeader {
    /// Who does, as far as known.
    pub leader: Option<NodeId>,
}

/// Why nothing was proposed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// Try the leader.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<NodeId>,
    },
    /// Too many bytes wait to be committed; try later.
    #[error("too many uncommitted bytes")]
    TooManyUncommitted,
}
