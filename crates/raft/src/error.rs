//! Why a command to a replica was not taken.

use quorate_types::{LogIndex, NodeId};

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

/// Why the membership is not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader can.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<NodeId>,
    },
    /// The leader has not committed an entry of its term yet; try again.
    #[error("the leader is not ready yet")]
    NotReady,
    /// The change before is not committed yet; try again.
    #[error("the change at {index} is not committed yet")]
    Pending {
        /// Where that change is.
        index: LogIndex,
    },
    /// The leadership is being handed over; try again when that has ended, at this leader or the next.
    #[error("the leadership is being handed over to {to}")]
    Transferring {
        /// The successor.
        to: NodeId,
    },
    /// The membership is joint, and must be left before anything else changes.
    #[error("the membership is joint")]
    Joint,
    /// There is no joint membership to leave.
    #[error("the membership is not joint")]
    NotJoint,
    /// A node is named twice.
    #[error("{node} is named twice")]
    Duplicate {
        /// Which.
        node: NodeId,
    },
    /// 0 is no node.
    #[error("0 is no node")]
    NoNode,
    /// Nobody would vote any more.
    #[error("no voter would be left")]
    NoVoters,
    /// More than [`MEMBERS_MAX`](crate::MEMBERS_MAX) nodes.
    #[error("too many members")]
    TooMany,
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
