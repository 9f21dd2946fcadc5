//! Who waits for an answer: a task of this node, or another node.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quorate_group::{Proposed, Refusal};
use quorate_transport::Replier;
use quorate_types::{Due, LogIndex, MachineKind, Term};
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
    /// Nobody waits: the group's machine wanted it.
    Due(Box<Promise>),
}

/// A command that a kind of machine wants proposed. If it certainly was not, the kind hears of it, however
/// this comes to an end.
pub(crate) struct Promise {
    kind: Arc<dyn MachineKind>,
    /// There until it is known what has become of it.
    due: Option<Due>,
}

impl Promise {
    pub(crate) fn new(kind: Arc<dyn MachineKind>, due: Due) -> Self {
        Self { kind, due: Some(due) }
    }

    /// It may be in the log: what comes of it is seen when it is applied, or the term ends.
    fn may_be_in_log(&mut self) {
        self.due = None;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // What a panic takes with it may be in the log; the group's life ends, and with it the leadership.
        if let Some(due) = self.due.take().filter(|_| !std::thread::panicking()) {
            self.kind.not_proposed(&due);
        }
    }
}

impl fmt::Debug for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Promise").field("due", &self.due).finish_non_exhaustive()
    }
}

impl ProposalReply {
    pub(crate) fn send(self, result: Result<Proposed, Refusal>) {
        match self {
            // A caller that has given up is no error.
            Self::Local(sender) => drop(sender.send(result)),
            Self::Remote(replier) => replier.send(Reply::of_proposal(result)),
            Self::Due(mut promise) => match result {
                Ok(_) | Err(Refusal::Unknown) => promise.may_be_in_log(),
                Err(_) => drop(promise),
            },
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
    /// This node looks at the state for another; `led`: as the leader, or not at all.
    Remote { query: Bytes, led: bool, replier: Replier },
}

/// Permission to read the state now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReadGrant {
    pub(crate) term: Term,
    pub(crate) index: LogIndex,
}
