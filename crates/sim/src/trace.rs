//! What happened, in order: hashed always, kept on request.
//!
//! The hash covers everything that is traced, so two runs with one hash did the same, and a run that differs
//! from its repetition has found randomness that does not come from the seed.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};

use quorate_raft::Role;
use quorate_types::{Body, GroupId, LogIndex, Membership, Message, NodeId, Term};

use crate::fault::node_name;

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TraceEvent {
    /// True time since the start.
    pub at_us: u64,
    /// Where; `None` for the world as a whole.
    pub node: Option<NodeId>,
    /// What.
    pub what: What,
}

/// The kinds of things that happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum What {
    /// A process started.
    Started,
    /// A process ended, by this.
    Stopped(&'static str),
    /// A process stands still.
    Paused,
    /// And goes on.
    Resumed,
    /// What a replica is has changed.
    Role {
        /// The group.
        group: GroupId,
        /// Its role.
        role: Role,
        /// Its term.
        term: Term,
        /// The leader that it knows.
        leader: Option<NodeId>,
        /// It leads and has applied its own no-op.
        serving: bool,
    },
    /// Another membership is in force at a replica, committed or not.
    Members {
        /// The group.
        group: GroupId,
        /// Who votes.
        voters: Vec<NodeId>,
        /// Who votes too while the membership is joint.
        outgoing: Vec<NodeId>,
        /// Who only receives the log.
        learners: Vec<NodeId>,
    },
    /// A snapshot is in the place of log and rows.
    Installed {
        /// The group.
        group: GroupId,
        /// It contains everything up to here.
        last: LogIndex,
    },
    /// A message arrived.
    Received {
        /// Who sent it.
        from: NodeId,
        /// When.
        sent_us: u64,
        /// What it says.
        brief: Brief,
    },
    /// A message was lost.
    Lost {
        /// Who will not get it.
        to: NodeId,
        /// What it said.
        brief: Brief,
    },
    /// The log has synced a batch, or failed to.
    Synced(bool),
    /// The commit index moved here.
    Committed {
        /// The group.
        group: GroupId,
        /// To here.
        index: LogIndex,
    },
    /// The state machine has applied everything up to here.
    Applied {
        /// The group.
        group: GroupId,
        /// To here.
        index: LogIndex,
    },
    /// A group has panicked.
    Panicked {
        /// The group.
        group: GroupId,
        /// It stays away.
        quarantined: bool,
    },
    /// A group is loaded again.
    Reloaded {
        /// The group.
        group: GroupId,
    },
    /// A request reached a node.
    Asked {
        /// Whose.
        client: u32,
        /// Its number.
        request: u64,
        /// A word for it.
        kind: &'static str,
    },
    /// A client has its answer.
    Answered {
        /// Whose.
        client: u32,
        /// Its number.
        request: u64,
        /// A word for the answer.
        result: &'static str,
        /// What a put writes if it is done, or a linearizable read of a key saw.
        value: Option<u64>,
    },
    /// The fault of this number in the plan begins.
    FaultBegins(usize),
    /// And ends.
    FaultEnds(usize),
    /// No more faults; everybody must come together.
    Healed,
    /// They have.
    Converged,
}

impl What {
    /// Another membership is in force.
    pub(crate) fn members(group: GroupId, membership: &Membership) -> Self {
        let names = |nodes: &BTreeSet<NodeId>| nodes.iter().copied().collect();
        Self::Members {
            group,
            voters: names(&membership.voters),
            outgoing: names(&membership.outgoing),
            learners: names(&membership.learners),
        }
    }
}

/// A message in short.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Brief {
    /// The group.
    pub group: GroupId,
    /// The kind of body.
    pub kind: &'static str,
    /// The message's term.
    pub term: Term,
    /// What counts most in it; see the text form.
    pub numbers: [u64; 3],
}

impl Brief {
    /// A message in short.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        let numbers = match &message.body {
            Body::PreVote { last } | Body::Vote { last, .. } => {
                [last.index.value(), last.term.value(), 0]
            }
            Body::PreVoteReply { granted } | Body::VoteReply { granted } => {
                [u64::from(*granted), 0, 0]
            }
            Body::Append { prev, entries, commit } => {
                [prev.index.value(), entries.len() as u64, commit.value()]
            }
            Body::AppendAccepted { last } => [last.value(), 0, 0],
            Body::AppendRejected { refused, hint } => [refused.value(), hint.index.value(), 0],
            Body::Commit { commit } => [commit.value(), 0, 0],
            Body::Heartbeat { commit, round } => [commit.value(), *round, 0],
            Body::TimeoutNow | Body::Wake => [0; 3],
            Body::Sleep { last, round } => [last.index.value(), *round, 0],
            Body::Asleep { round } => [*round, 0, 0],
            Body::Snapshot { meta } => [meta.last.index.value(), meta.last.term.value(), 0],
            Body::Digest { at, digest, wants_snapshot } => {
                [at.index.value(), digest.0, u64::from(*wants_snapshot)]
            }
            Body::HeartbeatReply { round, promise_us } => [*round, *promise_us, 0],
            Body::ReadIndex { context } => [context.number, context.life, 0],
            Body::ReadIndexReply { context, index } => {
                [context.number, context.life, index.value()]
            }
        };
        Self { group: message.group, kind: message.body.name(), term: message.term, numbers }
    }
}

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, term, numbers: [a, b, c], .. } = self;
        match *kind {
            "PreVote" | "Vote" => write!(f, "{kind} t{term} last {a}@{b}"),
            "PreVoteReply" | "VoteReply" => {
                write!(f, "{kind} t{term} {}", if *a == 1 { "granted" } else { "refused" })
            }
            "Append" if *b == 0 => write!(f, "Append t{term} empty after {a} commit {c}"),
            "Append" => write!(f, "Append t{term} [{}..{}] commit {c}", a + 1, a + b),
            "AppendAccepted" => write!(f, "Accepted t{term} to {a}"),
            "AppendRejected" => write!(f, "Rejected t{term} {a} hint {b}"),
            "Heartbeat" => write!(f, "Heartbeat t{term} commit {a} round {b}"),
            "Snapshot" => write!(f, "Snapshot t{term} of all to {a}@{b}"),
            "Sleep" => write!(f, "Sleep t{term} at {a}"),
            "TimeoutNow" => write!(f, "TimeoutNow t{term}"),
            "ReadIndex" => write!(f, "ReadIndex t{term} number {a}"),
            "ReadIndexReply" => write!(f, "ReadIndexReply t{term} number {a} index {c}"),
            "HeartbeatReply" => write!(f, "HeartbeatReply t{term} round {a}"),
            _ => write!(f, "{kind} t{term} {a} {b} {c}"),
        }
    }
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node.map_or_else(|| "-".to_owned(), node_name);
        let (ms, us) = (self.at_us / 1000, self.at_us % 1000);
        write!(f, "{ms:>7}.{us:03} ms  {node}  {}", self.what)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("starts"),
            Self::Stopped(how) => write!(f, "stops: {how}"),
            Self::Paused => f.write_str("pauses"),
            Self::Resumed => f.write_str("goes on"),
            Self::Role { group, role, term, leader, serving } => {
                let leader = leader.map_or_else(|| "nobody".to_owned(), node_name);
                let serving = if *serving { ", serving" } else { "" };
                write!(f, "g{group} {} of term {term}, leader {leader}{serving}", role.name())
            }
            Self::Members { group, voters, outgoing, learners } => {
                write!(f, "g{group} has the voters {}", names(voters))?;
                if !outgoing.is_empty() {
                    write!(f, " in the place of {}", names(outgoing))?;
                }
                if learners.is_empty() {
                    Ok(())
                } else {
                    write!(f, ", learners {}", names(learners))
                }
            }
            Self::Installed { group, last } => write!(f, "g{group} installs all to {last}"),
            Self::Received { from, sent_us, brief } => {
                let sent_ms = *sent_us as f64 / 1000.0;
                let (group, from) = (brief.group, node_name(*from));
                write!(f, "g{group} <- {from} (sent {sent_ms:.3}) {brief}")
            }
            Self::Lost { to, brief } => {
                write!(f, "g{} -x {} lost {brief}", brief.group, node_name(*to))
            }
            Self::Synced(true) => f.write_str("log synced"),
            Self::Synced(false) => f.write_str("log sync FAILED"),
            Self::Committed { group, index } => write!(f, "g{group} commits {index}"),
            Self::Applied { group, index } => write!(f, "g{group} applies {index}"),
            Self::Panicked { group, quarantined: false } => write!(f, "g{group} panics"),
            Self::Panicked { group, quarantined: true } => write!(f, "g{group} panics too often"),
            Self::Reloaded { group } => write!(f, "g{group} is loaded again"),
            Self::Asked { client, request, kind } => {
                write!(f, "client {client} asks #{request} {kind}")
            }
            Self::Answered { client, request, result, .. } => {
                write!(f, "client {client} gets #{request} {result}")
            }
            Self::FaultBegins(number) => write!(f, "fault {number} begins"),
            Self::FaultEnds(number) => write!(f, "fault {number} ends"),
            Self::Healed => f.write_str("healed: everybody must come together and serve"),
            Self::Converged => f.write_str("converged"),
        }
    }
}

/// Letters in one word.
fn names(nodes: &[NodeId]) -> String {
    nodes.iter().copied().map(node_name).collect()
}

/// The trace of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: Fnv,
    kept: Option<Vec<TraceEvent>>,
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Self {
        Self { hasher: Fnv::default(), kept: keep.then(Vec::new) }
    }

    pub(crate) fn push(&mut self, at_us: u64, node: Option<NodeId>, what: What) {
        let event = TraceEvent { at_us, node, what };
        event.hash(&mut self.hasher);
        if let Some(kept) = &mut self.kept {
            kept.push(event);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub(crate) fn into_kept(self) -> Vec<TraceEvent> {
        self.kept.unwrap_or_default()
    }
}

/// FNV-1a over words. The standard library's hashers promise no result from one release to the next.
#[derive(Clone, Debug)]
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    const fn word(&mut self, word: u64) {
        // A rotation, so that the high bits of a word reach the low ones of the hash.
        self.0 = (self.0.rotate_left(29) ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.word(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.word(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.word(value as u64);
    }
}

/// The hash of some bytes.
pub(crate) fn hash_of(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = Fnv::default();
    value.hash(&mut hasher);
    hasher.finish()
}
