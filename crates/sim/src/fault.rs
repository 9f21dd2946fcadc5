//! What can go wrong, as data: a list that can be drawn, replayed, shrunk and written into a scenario.

use std::fmt;

use quorate_types::NodeId;
use serde::{Deserialize, Serialize};

/// One thing that goes wrong at a time, and for how long.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fault {
    /// When it begins, in true time since the start.
    pub at_us: u64,
    /// How long it lasts; what that means for each kind is said there.
    #[serde(default)]
    pub for_us: u64,
    /// What goes wrong.
    #[serde(flatten)]
    pub kind: FaultKind,
}

/// The kinds of faults. Whoever is named as "leader" or "follower" is looked up when the fault begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    deny_unknown_fields,
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
pub enum FaultKind {
    /// A process ends at once, in the middle of what it does, and starts again after `for_us`.
    Crash {
        /// Whose.
        node: Target,
        /// The power goes too, so that what was not synced may be gone.
        power: bool,
        /// It goes down after so many more effects, not at `at_us`; 0 for at once.
        #[serde(default)]
        after_effects: u32,
    },
    /// Whoever is elected next crashes in that very moment, and starts again after `for_us`.
    CrashWinner {
        /// After so many effects of the turn that made it a leader.
        after_effects: u32,
        /// It never comes back.
        #[serde(default)]
        for_good: bool,
    },
    /// Whoever puts a snapshot in the place of its state next loses its power in the middle of that, and starts again
    /// after `for_us`.
    CrashInstaller {
        /// 0 when it is about to begin, 1 when the rows are written, 2 when the log is.
        step: u8,
    },
    /// The power of all nodes goes; they start again after `for_us`, one after another.
    Blackout,
    /// A process stands still, and then goes on as if nothing had been.
    Pause {
        /// Whose.
        node: Target,
        /// The ticks that it missed come all at once.
        #[serde(default)]
        late_ticks: bool,
    },
    /// Clients ask for nothing new: idle groups may fall asleep.
    Rest,
    /// Nodes of one side do not hear those of the other.
    Partition {
        /// One side; the other is everybody else.
        side: Vec<Target>,
    },
    /// Two nodes do not hear each other, though others hear both.
    Cut {
        /// One.
        a: Target,
        /// The other.
        b: Target,
    },
    /// What `from` sends does not reach `to`.
    OneWay {
        /// The sender.
        from: Target,
        /// Who hears nothing of it.
        to: Target,
    },
    /// A node hears nobody, but is heard.
    Deafen {
        /// Who.
        node: Target,
    },
    /// A node is heard by nobody, but hears.
    Mute {
        /// Who.
        node: Target,
    },
    /// What is sent between two nodes takes longer, and then arrives at once.
    Clog {
        /// The sender.
        from: Target,
        /// The receiver.
        to: Target,
    },
    /// More messages are lost, everywhere.
    Loss {
        /// So many in a thousand.
        permille: u32,
    },
    /// Syncs take longer.
    SlowDisk {
        /// Whose.
        node: Target,
        /// So much longer each.
        sync_us: u64,
    },
    /// A sync fails; the process ends, and starts again after `for_us`.
    FailedSync {
        /// Whose.
        node: Target,
        /// After so many that succeed.
        after: u64,
    },
    /// There is no room on the disk: the process ends with the next write, and again whenever it is started.
    FullDisk {
        /// Whose.
        node: Target,
    },
    /// Less is free on some disks: their nodes have to notice, and to take less.
    LowDisk {
        /// Whose.
        nodes: Vec<Target>,
        /// So much of the reserve is left.
        percent: u32,
    },
    /// No sync ends, though the process goes on.
    HungDisk {
        /// Whose.
        node: Target,
    },
    /// The next put that a replica applies writes another value than its log says.
    Spoil {
        /// Whose.
        node: Target,
    },
    /// A group panics; it alone is loaded again.
    Panic {
        /// Where.
        node: Target,
        /// With the next apply, and not in the group itself.
        in_machine: bool,
    },
    /// A record of the log that was synced is damaged and the process ends: it must not speak again.
    Damage {
        /// Whose.
        node: Target,
    },
    /// The data directory is gone: the node must not come back under its old name.
    Wipe {
        /// Whose.
        node: Target,
    },
    /// A clock runs faster or slower.
    Drift {
        /// Whose.
        node: Target,
        /// By so many parts per million.
        ppm: i32,
    },
    /// A wall clock jumps. Nothing that a promise rests on may notice.
    Jump {
        /// Whose.
        node: Target,
        /// By so much.
        by_ms: i64,
    },
    /// A replica stands for election although there may be a leader.
    Campaign {
        /// Whose.
        node: Target,
    },
    /// The leader is asked to hand over.
    Transfer {
        /// To whom.
        to: Target,
    },
    /// The leader is asked to change the membership: all of these at once. What would leave a group without
    /// enough nodes that can come back is not asked for.
    Members {
        /// Become voters.
        #[serde(default)]
        add: Vec<Target>,
        /// Become learners, to be voters when they have caught up.
        #[serde(default)]
        learn: Vec<Target>,
        /// Take part no longer.
        #[serde(default)]
        remove: Vec<Target>,
        /// Through a joint membership that has to be left by another change.
        #[serde(default)]
        explicit: bool,
    },
    /// An operator adds a node to the placement map; a spare joins as it. As everything that operators want: where
    /// groups follow the map, and only what leaves them enough nodes that can come back.
    AddNode {
        /// It is to stay a learner.
        learner: bool,
    },
    /// An operator means the learner of the map to vote.
    PromoteNode,
    /// An operator removes a node.
    RemoveNode {
        /// Which.
        node: Target,
    },
    /// An operator puts a new node in the place of another.
    ReplaceNode {
        /// Which.
        node: Target,
    },
    /// A node is asked to take in a group whose keys another group on it owns, as a snapshot of a group that
    /// has moved since might.
    Intrude {
        /// Which.
        node: Target,
    },
    /// All replicas are told who should lead; nobody in particular after `for_us`.
    Prefer {
        /// Who.
        node: Target,
    },
}

impl FaultKind {
    /// A word for tables.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Crash { power: false, .. } => "crash",
            Self::Crash { power: true, .. } => "power-loss",
            Self::CrashWinner { .. } => "crash-winner",
            Self::CrashInstaller { .. } => "crash-installer",
            Self::Blackout => "blackout",
            Self::Pause { .. } => "pause",
            Self::Rest => "rest",
            Self::Partition { .. } => "partition",
            Self::Cut { .. } => "cut",
            Self::OneWay { .. } => "one-way",
            Self::Deafen { .. } => "deafen",
            Self::Mute { .. } => "mute",
            Self::Clog { .. } => "clog",
            Self::Loss { .. } => "loss",
            Self::SlowDisk { .. } => "slow-disk",
            Self::FailedSync { .. } => "failed-sync",
            Self::FullDisk { .. } => "full-disk",
            Self::LowDisk { .. } => "low-disk",
            Self::HungDisk { .. } => "hung-disk",
            Self::Panic { .. } => "panic",
            Self::Spoil { .. } => "spoil",
            Self::Damage { .. } => "damage",
            Self::Wipe { .. } => "wipe",
            Self::Drift { .. } => "drift",
            Self::Jump { .. } => "jump",
            Self::Campaign { .. } => "campaign",
            Self::Transfer { .. } => "transfer",
            Self::Prefer { .. } => "prefer",
            Self::Members { .. } => "members",
            Self::AddNode { .. } => "add-node",
            Self::PromoteNode => "promote-node",
            Self::RemoveNode { .. } => "remove-node",
            Self::ReplaceNode { .. } => "replace-node",
            Self::Intrude { .. } => "intrude",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.name())?;
        match &self.kind {
            FaultKind::Crash { node, after_effects: 0, .. } => write!(f, "{node}")?,
            FaultKind::Crash { node, after_effects, .. } => {
                write!(f, "{node} after {after_effects} effects")?;
            }
            FaultKind::CrashWinner { after_effects, for_good } => {
                f.write_str(if *for_good { "for good, " } else { "" })?;
                write!(f, "of the next election after {after_effects} effects")?;
            }
            FaultKind::CrashInstaller { step } => write!(f, "of the next snapshot at step {step}")?,
            FaultKind::Blackout => write!(f, "of all")?,
            FaultKind::Partition { side } => write!(f, "[{}] from the rest", names(side))?,
            FaultKind::LowDisk { nodes, percent } => {
                write!(f, "[{}] to {percent} % of the reserve", names(nodes))?;
            }
            FaultKind::Members { add, learn, remove, explicit } => {
                for (sign, targets) in [("+", add), ("~", learn), ("-", remove)] {
                    for target in targets {
                        write!(f, "{sign}{target} ")?;
                    }
                }
                f.write_str(if *explicit { "explicitly" } else { "" })?;
            }
            FaultKind::Cut { a, b } => write!(f, "{a} | {b}")?,
            FaultKind::OneWay { from, to } | FaultKind::Clog { from, to } => {
                write!(f, "{from} -> {to}")?;
            }
            FaultKind::Loss { permille } => write!(f, "{permille} in 1000")?,
            FaultKind::SlowDisk { node, sync_us } => write!(f, "{node} by {sync_us} us")?,
            FaultKind::FailedSync { node, after } => write!(f, "{node} after {after}")?,
            FaultKind::Drift { node, ppm } => write!(f, "{node} by {ppm} ppm")?,
            FaultKind::Jump { node, by_ms } => write!(f, "{node} by {by_ms} ms")?,
            FaultKind::Pause { node, late_ticks } => {
                let late = if *late_ticks { ", its ticks come late" } else { "" };
                write!(f, "{node}{late}")?;
            }
            FaultKind::Panic { node, in_machine } => {
                write!(f, "{node}{}", if *in_machine { ", its machine" } else { "" })?;
            }
            FaultKind::AddNode { learner } => {
                f.write_str(if *learner { "to learn" } else { "to vote" })?
            }
            FaultKind::PromoteNode => f.write_str("the learner")?,
            FaultKind::Rest => f.write_str("of all clients")?,
            FaultKind::Deafen { node }
            | FaultKind::Mute { node }
            | FaultKind::FullDisk { node }
            | FaultKind::HungDisk { node }
            | FaultKind::Spoil { node }
            | FaultKind::Damage { node }
            | FaultKind::Wipe { node }
            | FaultKind::Transfer { to: node }
            | FaultKind::Prefer { node }
            | FaultKind::Intrude { node }
            | FaultKind::RemoveNode { node }
            | FaultKind::ReplaceNode { node }
            | FaultKind::Campaign { node } => write!(f, "{node}")?,
        }
        if self.for_us > 0 {
            write!(f, " for {} ms", self.for_us / 1000)?;
        }
        Ok(())
    }
}

fn names(targets: &[Target]) -> String {
    targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Who is meant. Written as `A`, `leader` or `follower-1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// This node.
    Node(NodeId),
    /// Whoever leads the data group; the first node when nobody does.
    Leader,
    /// The so-manieth of the others, from 1, around the cluster.
    Follower(u64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => f.write_str(&node_name(*node)),
            Self::Leader => f.write_str("leader"),
            Self::Follower(which) => write!(f, "follower-{which}"),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "leader" {
            return Ok(Self::Leader);
        }
        if let Some(which) = text.strip_prefix("follower-") {
            return which.parse().map(Self::Follower).map_err(|error| format!("{text}: {error}"));
        }
        node_of(&text).map(Self::Node).ok_or_else(|| format!("{text} names no node"))
    }
}

/// The letter of a node, as people talk of it: A is node 1.
#[must_use]
pub fn node_name(node: NodeId) -> String {
    match u8::try_from(node.value()) {
        Ok(number @ 1..=26) => char::from(b'A' + number - 1).to_string(),
        _ => node.value().to_string(),
    }
}

/// The node that a letter names.
#[must_use]
pub fn node_of(name: &str) -> Option<NodeId> {
    match name.as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(NodeId(u64::from(letter - b'A') + 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_back_from_its_text() {
        let fault = Fault {
            at_us: 7,
            for_us: 2_000,
            kind: FaultKind::Partition {
                side: vec![Target::Leader, Target::Node(NodeId(3)), Target::Follower(2)],
            },
        };
        let text = toml::to_string(&fault).expect("TOML");
        assert_eq!(toml::from_str::<Fault>(&text).expect("a fault"), fault);
        assert_eq!(fault.to_string(), "partition [leader C follower-2] from the rest for 2 ms");
    }

    #[test]
    fn what_names_nobody_is_refused() {
        for text in ["", "AB", "a", "follower-x", "boss"] {
            assert!(Target::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
