//! Messages, entries and readies in words, one line each.

use quorate_raft::{Append, ReadReady, RoleChange};
use quorate_types::{Body, Entry, HardState, Membership, Message, NodeId, Payload};

/// `3@1 "foo"`; a no-op has no text.
pub(crate) fn entry(entry: &Entry) -> String {
    match &entry.payload {
        Payload::Empty => entry.id.to_string(),
        Payload::Command(command) => {
            format!("{} {:?}", entry.id, String::from_utf8_lossy(command))
        }
        Payload::Membership(membership) => format!("{} {}", entry.id, self::membership(membership)),
    }
}

/// `voters=(1,2)`, and what else there is.
pub(crate) fn membership(membership: &Membership) -> String {
    let Membership { voters, outgoing, learners, promote, auto_leave } = membership;
    let sets =
        [("voters", voters), ("outgoing", outgoing), ("learners", learners), ("promote", promote)];
    let sets = sets.into_iter().filter(|(name, nodes)| *name == "voters" || !nodes.is_empty());
    let words = sets.map(|(name, nodes)| {
        let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
        format!("{name}=({})", nodes.join(","))
    });
    let words: Vec<_> = words.chain(auto_leave.then(|| "auto-leave".to_owned())).collect();
    words.join(" ")
}

pub(crate) fn entries(entries: &[Entry]) -> String {
    let list: Vec<_> = entries.iter().map(entry).collect();
    format!("[{}]", list.join(", "))
}

pub(crate) fn message(message: &Message) -> String {
    let Message { from, to, term, body, .. } = message;
    let said = match body {
        Body::PreVote { last } | Body::Vote { last, transfer: false } => format!("last={last}"),
        Body::Vote { last, transfer: true } => format!("last={last} transfer"),
        Body::TimeoutNow | Body::Wake => String::new(),
        Body::Sleep { last, round } => format!("last={last} round={round}"),
        Body::Asleep { round } => format!("round={round}"),
        Body::Digest { at, digest, wants_snapshot } => {
            let wants = if *wants_snapshot { " wants a snapshot" } else { "" };
            format!("at={at} digest={:016x}{wants}", digest.0)
        }
        Body::Snapshot { meta } => format!("last={} {}", meta.last, membership(&meta.membership)),
        Body::PreVoteReply { granted } | Body::VoteReply { granted } => {
            (if *granted { "granted" } else { "refused" }).to_owned()
        }
        Body::Append { prev, entries: sent, commit } => {
            format!("prev={prev} commit={commit} {}", entries(sent))
        }
        Body::AppendAccepted { last } => format!("last={last}"),
        Body::AppendRejected { refused, hint } => format!("refused={refused} hint={hint}"),
        Body::Commit { commit } => format!("commit={commit}"),
        Body::Heartbeat { commit, round } => format!("commit={commit} round={round}"),
        Body::HeartbeatReply { round, promise_us: 0 } => format!("round={round}"),
        Body::HeartbeatReply { round, promise_us } => {
            format!("round={round} promise={promise_us}us")
        }
        Body::ReadIndex { context } => format!("context={}.{}", context.life, context.number),
        Body::ReadIndexReply { context, index } => {
            format!("context={}.{} index={index}", context.life, context.number)
        }
    };
    format!("{from}->{to} term {term} {} {said}", body.name()).trim_end().to_owned()
}

/// The append without its promises.
pub(crate) fn append(append: &Append) -> String {
    let hard_state = append.hard_state.map_or_else(String::new, |hard_state| {
        let HardState { term, vote, commit } = hard_state;
        format!(" term={term} vote={} commit={commit}", node(vote))
    });
    let list = if append.entries.is_empty() {
        String::new()
    } else {
        format!(" {}", entries(&append.entries))
    };
    format!("append #{}{hard_state}{list}", append.ticket.0)
}

pub(crate) fn role_change(change: &RoleChange) -> String {
    let RoleChange { role, term, leader, cause } = change;
    format!("{} in term {term}, leader {}: {}", role.name(), node(*leader), cause.name())
}

pub(crate) fn read(read: &ReadReady) -> String {
    format!("read {} at {}", read.id.0, read.index)
}

pub(crate) fn node(node: Option<NodeId>) -> String {
    node.map_or_else(|| "-".to_owned(), |node| node.to_string())
}

/// Does a message have this type? Both our names and etcd's are understood.
pub(crate) fn has_type(message: &Message, name: &str) -> bool {
    message.body.name() == name || etcd_name(&message.body) == name
}

/// What etcd's scripts call it.
const fn etcd_name(body: &Body) -> &'static str {
    match body {
        Body::PreVote { .. } => "MsgPreVote",
        Body::PreVoteReply { .. } => "MsgPreVoteResp",
        Body::Vote { .. } => "MsgVote",
        Body::VoteReply { .. } => "MsgVoteResp",
        Body::Append { .. } => "MsgApp",
        Body::AppendAccepted { .. } | Body::AppendRejected { .. } => "MsgAppResp",
        Body::Heartbeat { .. } => "MsgHeartbeat",
        Body::HeartbeatReply { .. } => "MsgHeartbeatResp",
        Body::TimeoutNow => "MsgTimeoutNow",
        Body::Sleep { .. } | Body::Asleep { .. } => "MsgSleep",
        Body::Snapshot { .. } => "MsgSnap",
        Body::ReadIndex { .. } => "MsgReadIndex",
        Body::ReadIndexReply { .. } => "MsgReadIndexResp",
        // It has no such messages; what Commit says an empty MsgApp says there.
        Body::Commit { .. } => "MsgCommit",
        Body::Digest { .. } => "MsgDigest",
        Body::Wake => "MsgWake",
    }
}
