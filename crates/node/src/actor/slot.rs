//! Who waits for an answer: a task of this node, or another node.

use std::time::Instant;

use bytes::Bytes;
use quorate_group::{Proposed, Refusal};
use quorate_transport::Replier;
use quorate_types::{LogIndex, Term};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::forward::Reply;

/// A proposal on its way through a group.
#[derive(Debug)]
pub(crate) struct ProposalSlot {
    /// When the group's mailbox got it.
    pub(crate) since: Instant,
    pub(crate) reply: ProposalReply,
    /// The proposal's bytes, counted against the node's bound until it is answered.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// Where the answer to a proposal goes.
#[derive(Debug)]
pub(crate) enum ProposalReply {
    Local(oneshot::Sender<Result<Proposed, Refusal>>),
    Remote(Replier),
}

impl ProposalReply {
    pub(crate) fn send(self, result: Result<Proposed, Refusal>) {
        match self {
            // A caller that has given up is no error.
            Self::Local(sender) => drop(sender.send(result)),
            Self::Remote(replier) => replier.send(Reply::of_proposal(result)),
        }
    }
}

/// A linearizable read on its way through a group.
#[derive(Debug)]
pub(crate) struct ReadSlot {
    pub(crate) reply: ReadReply,
}

/// Where a granted read goes on.
#[derive(Debug)]
pub(crate) enum ReadReply {
    /// The caller looks at the state itself.
    Local(oneshot::Sender<Result<ReadGrant, Refusal>>),
    /// This node looks at the state for another.
    Remote { query: Bytes, replier: Replier },
}

/// Permission to read the state now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReadGrant {
    pub(crate) term: Term,
    pub(crate) index: LogIndex,
}
