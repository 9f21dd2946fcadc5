//! I7: what leaves a node as a promise is on its disk.

use quorate_types::{Body, Entry, GroupId, Message, NodeId};

use super::durable::Platter;
use super::{Checked, Oracle};

/// `message` leaves a node with this disk.
pub(crate) fn on_sent(message: &Message, platter: &Platter) -> Checked {
    let Some(log) = platter.log(message.group) else { return Ok(()) };
    let (durable, term) = (log.hard_state, message.term);
    let holds = match &message.body {
        Body::VoteReply { granted: true } => {
            durable.term > term || durable.term == term && durable.vote == Some(message.to)
        }
        Body::Vote { last, .. } => {
            durable.term > term
                || durable.term == term && durable.vote == Some(message.from) && log.last() >= *last
        }
        Body::AppendAccepted { last } => {
            durable.term > term || durable.term == term && log.last().index >= *last
        }
        Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::VoteReply { granted: false }
        | Body::Append { .. }
        | Body::AppendRejected { .. }
        | Body::Commit { .. }
        | Body::Heartbeat { .. }
        | Body::HeartbeatReply { .. }
        | Body::TimeoutNow
        | Body::Sleep { .. }
        | Body::Asleep { .. }
        | Body::Wake
        | Body::Snapshot { .. }
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::Digest { .. } => true,
    };
    Oracle::PersistBeforePromise.check(holds, || {
        format!("{message:?} leaves with {durable:?} and a log up to {}", log.last())
    })
}

/// A node applies these entries: nobody shows what its own log could still lose.
pub(crate) fn on_applied(
    node: NodeId,
    group: GroupId,
    entries: &[Entry],
    platter: &Platter,
) -> Checked {
    let Some(log) = platter.log(group) else { return Ok(()) };
    let lacking = entries.iter().find(|entry| !log.holds(entry.id));
    Oracle::PersistBeforePromise.check(lacking.is_none(), || {
        let lacking = lacking.map(|entry| entry.id);
        format!("node {node} applies {lacking:?}, its log is durable up to {}", log.last())
    })
}
