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
    /// The leadership is being handed over; try again when that has ended, at this leader or the next.
    #[error("the leadership is being handed over to {to}")]
    Transferring {
        /// The successor.
        to: NodeId,
    },
}

/// Why the leadership is not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<NodeId>,
    },
    /// The successor could not be elected.
    #[error("{node} is no voter")]
    NotVoter {
        /// Who was asked for.
        node: NodeId,
    },
}
