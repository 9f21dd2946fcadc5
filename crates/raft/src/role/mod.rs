//! The roles, each with the state that only it has.
//!
//! A role looks at one input, changes the shared [`State`](crate::state::State) and itself, and
//! says by a [`Transition`] when it is over. Only [`Replica`](crate::Replica) changes roles.

mod candidate;
mod follower;
mod leader;

use quorate_types::NodeId;

pub(crate) use candidate::Candidate;
pub(crate) use follower::Follower;
pub(crate) use leader::Leader;

use crate::ready::Cause;

/// What a replica does.
#[derive(Debug)]
pub(crate) enum Acting {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Leader),
}

/// How a role ends.
#[derive(Debug)]
pub(crate) enum Transition {
    /// Follow in the same term.
    Follow { leader: Option<NodeId>, cause: Cause },
    /// Ask whether an election could be won.
    PreCampaign(Cause),
    /// Raise the term and ask for votes; with `transfer`, by the leave of the present leader.
    Campaign { cause: Cause, transfer: bool },
    /// Lead.
    Lead,
}
