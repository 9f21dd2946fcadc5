//! What is going to happen, in order of true time; what is due at one time happens in the order in which it
//! was planned.

use std::collections::BTreeMap;

use quorate_group::{Generation, Refusal};
use quorate_raft::LogFetch;
use quorate_types::{EntryId, GroupId, LogIndex, Message, NodeId, Term};

use bytes::Bytes;

use crate::node::Slot;
use crate::snapshot::Snapshot;

/// Something that is due. Whatever concerns a process names its life: an event for a process that is gone
/// means nothing to the next one.
#[derive(Debug)]
pub(crate) enum Event {
    /// The node's ticker.
    Tick { node: NodeId, life: u64 },
    /// Messages arrive together.
    Frame { from: NodeId, to: NodeId, session: u64, sent_us: u64, messages: Vec<Message> },
    /// The transport found out that it lost something.
    Unreachable { node: NodeId, life: u64, peer: NodeId },
    /// A group has gathered its inputs.
    Turn { node: NodeId, life: u64, group: GroupId },
    /// The batch under way is synced, or has failed.
    Synced { node: NodeId, life: u64 },
    /// The applier takes what waits.
    Apply { node: NodeId, life: u64 },
    /// Old entries are read.
    Fetched { node: NodeId, life: u64, group: GroupId, generation: Generation, fetch: LogFetch },
    /// A snapshot is there as a whole.
    Snapshot {
        life: u64,
        generation: Generation,
        sent_us: u64,
        message: Message,
        snapshot: Box<Snapshot>,
    },
    /// Its sender hears what became of it.
    SnapshotSent {
        node: NodeId,
        life: u64,
        group: GroupId,
        generation: Generation,
        to: NodeId,
        last: Option<LogIndex>,
    },
    /// A snapshot takes the place of the state, and then of the log.
    Install { node: NodeId, life: u64, rows_written: bool },
    /// The rows of a snapshot take the place of a wrong state.
    Rebuild {
        node: NodeId,
        life: u64,
        group: GroupId,
        generation: Generation,
        snapshot: Box<Snapshot>,
    },
    /// What a machine wants reaches its group.
    Due { node: NodeId, life: u64, number: u32 },
    /// A read for the leader was granted in a term.
    Granted { node: NodeId, life: u64, group: GroupId, slot: Slot, term: Term },
    /// A watcher looks for news.
    Watch { number: usize },
    /// The state engine makes durable what it has.
    Flush { node: NodeId, life: u64 },
    /// A process is started again.
    Start { node: NodeId, life: u64 },
    /// A process that stood still goes on.
    Resume { node: NodeId },
    /// A client makes its next request.
    Client { client: u32 },
    /// A request of the plan is next.
    PlanRequest { number: usize },
    /// A request of the plan.
    Planned { number: usize },
    /// The mover of a node goes on, or gives up what it waits for.
    Mover { node: NodeId, life: u64, step: u32 },
    /// A request is to be routed, for the first time or again.
    Route { request: u64, attempt: u32 },
    /// A request reaches another node.
    Forward { request: u64, attempt: u32, to: NodeId },
    /// An answer from another node is back.
    Reply { request: u64, attempt: u32, answer: Answer },
    /// An answer reaches its client.
    Answered { request: u64, result: Finished },
    /// A client has waited long enough.
    Expire { request: u64 },
    /// A fault of the plan begins.
    FaultBegins { number: usize },
    /// It ends.
    FaultEnds { number: usize },
    /// Look whether everybody has come together.
    Look,
}

/// What a group, or the way to it, says to a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Proposed and applied.
    Written { id: EntryId, outcome: Bytes },
    /// Read.
    Read { outcome: Bytes },
    /// Neither.
    Refused(Refusal),
    /// Nobody took it.
    NotSent,
}

/// What a client gets to hear.
#[derive(Clone, Debug)]
pub(crate) enum Finished {
    /// The outcome.
    Done { outcome: Bytes },
    /// Certainly not done.
    Failed,
    /// Certainly not done, since disks are nearly full.
    NoSpace,
    /// Perhaps done.
    Unknown,
}

/// The events that are due, soonest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    due: BTreeMap<(u64, u64), Event>,
    planned: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at_us: u64, event: Event) {
        self.planned += 1;
        self.due.insert((at_us, self.planned), event);
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        self.due.pop_first().map(|((at_us, _), event)| (at_us, event))
    }
}
