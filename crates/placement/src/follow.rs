//! How the groups of a node follow the map: which of them are looked at, what the map is told of them, and what
//! the leader of one does next. Pure; whoever runs groups carries it out, and asks again when that is done.

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::{GroupId, LogIndex, Membership, NodeId, Term, defect};

use crate::map::Group;
use crate::plan::{self, Step, View, Wanted};

/// A learner with a longer way to go would hold commits up once it votes.
pub const LAG_MAX: u64 = 1024;

/// Every so many rounds groups that sleep are looked at too: there nothing happens by itself.
const ROUNDS_PER_SWEEP: u32 = 8;

/// The first entry of every log, which stands for an empty snapshot: who holds no more has nothing yet.
const FIRST: LogIndex = LogIndex(1);

/// What a leader knows of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Who.
    pub node: NodeId,
    /// It is fed without pause.
    pub streams: bool,
    /// It has answered lately.
    pub heard: bool,
    /// It holds the leader's log up to here.
    pub match_index: LogIndex,
}

/// A group as its leader has it.
#[derive(Clone, Copy, Debug)]
pub struct Led<'l> {
    /// The leader.
    pub leader: NodeId,
    /// The membership in force, committed or not.
    pub membership: &'l Membership,
    /// The end of its log.
    pub last: LogIndex,
    /// Its peers.
    pub peers: &'l [Peer],
    /// How far behind a learner may be to get its vote; see [`LAG_MAX`].
    pub lag_max: u64,
}

/// What the leader of a group does for the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing: the group is as the map wants it.
    Rest,
    /// Nothing yet.
    Wait,
    /// Hand the leadership on to this voter.
    Transfer(NodeId),
    /// Change the membership so.
    Change(Difference),
}

/// What turns one membership into another: each node is named at most once.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Difference {
    /// Become voters.
    pub voters: BTreeSet<NodeId>,
    /// Become learners, that vote only when the plan says so.
    pub learners: BTreeSet<NodeId>,
    /// Take part no longer.
    pub removed: BTreeSet<NodeId>,
}

impl Difference {
    /// From the members of `now` to those of `target`.
    #[must_use]
    pub fn between(now: &Membership, target: &Membership) -> Self {
        Self {
            voters: target.voters.difference(&now.voters).copied().collect(),
            learners: target.learners.difference(&now.learners).copied().collect(),
            removed: now.nodes().difference(&target.nodes()).copied().collect(),
        }
    }
}

/// The next action of the leader of a group.
#[must_use]
pub fn next_action(wanted: &Wanted, led: &Led<'_>) -> Action {
    let caught_up = caught_up(led);
    // A new leader takes everybody for heard, and feeds nobody yet.
    let heard = led.peers.iter().filter(|peer| peer.heard);
    let there = heard.clone().filter(|peer| peer.streams).map(|peer| peer.node).collect();
    let heard = heard.map(|peer| peer.node).collect();
    let view = View {
        leader: led.leader,
        membership: led.membership,
        caught_up: &caught_up,
        heard: &heard,
        there: &there,
    };
    match plan::next_step(wanted, view) {
        Step::Done => Action::Rest,
        Step::Wait => Action::Wait,
        // Nobody may be there to take over yet.
        Step::Transfer(heirs) => heir(led.peers, &heirs).map_or(Action::Wait, Action::Transfer),
        Step::Change(target) => Action::Change(Difference::between(led.membership, &target)),
    }
}

/// The replicas of a group that the map has to be told of, if it does not know them yet: where they are, and not
/// what the group does next by itself.
#[must_use]
pub fn untold(placed: &Group, applied: Option<&Membership>) -> Option<Membership> {
    let applied = applied?;
    let places = Membership { promote: BTreeSet::new(), auto_leave: false, ..applied.clone() };
    (places != placed.replicas).then_some(places)
}

/// True when the map has the replicas of a group as they are, and will be: also those of a change that is in force and not
/// applied yet, or nobody would tell of it.
#[must_use]
pub fn is_told(placed: &Group, applied: Option<&Membership>, in_force: &Membership) -> bool {
    let knows = |membership| untold(placed, Some(membership)).is_none();
    applied.is_some_and(knows) && knows(in_force)
}

/// The learners that are there, are fed without pause and have little to go.
#[must_use]
pub fn caught_up(led: &Led<'_>) -> BTreeSet<NodeId> {
    let near = |peer: &&Peer| {
        peer.streams
            && peer.heard
            && peer.match_index > FIRST
            && led.last.since(peer.match_index) <= led.lag_max
    };
    let learners = led.peers.iter().filter(|peer| led.membership.learners.contains(&peer.node));
    let ready = learners.filter(|peer| near(peer) || defect!(VoteForLaggard));
    ready.map(|peer| peer.node).collect()
}

/// Of `candidates`, the node that holds most of the leader's log.
#[must_use]
pub fn heir(peers: &[Peer], candidates: &BTreeSet<NodeId>) -> Option<NodeId> {
    let fit = peers.iter().filter(|peer| candidates.contains(&peer.node) && peer.streams);
    fit.max_by_key(|peer| peer.match_index).map(|peer| peer.node)
}

/// Which groups of a node are looked at when: idle ones must cost nothing.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Groups that need no further look, with the version of the map and the term that this was found in.
    settled: BTreeMap<GroupId, (u64, Term)>,
    rounds: u32,
    /// The version of the map of the last round that looked at groups that sleep.
    swept: Option<u64>,
}

impl Rounds {
    /// The next round, by the map of this version, looks at these groups: of `all` those that are awake, and now
    /// and then, and for each new map, all.
    pub fn next(
        &mut self,
        version: u64,
        all: impl Iterator<Item = GroupId>,
        awake: impl Iterator<Item = GroupId>,
    ) -> Vec<GroupId> {
        let sweeps = self.rounds == 0 || self.swept != Some(version);
        self.rounds = (self.rounds + 1) % ROUNDS_PER_SWEEP;
        if !sweeps {
            return awake.collect();
        }
        self.swept = Some(version);
        let all: Vec<_> = all.collect();
        self.settled.retain(|group, _| all.contains(group));
        all
    }

    /// True when the leader of `term` has nothing more to do for a group by the map of this version.
    #[must_use]
    pub fn is_settled(&self, group: GroupId, version: u64, term: Term) -> bool {
        let found = self.settled.get(&group);
        found.is_some_and(|&(at, of)| of == term && (at == version || defect!(NewMapUnseen)))
    }

    /// The leader of `term` has found nothing more to do for a group.
    pub fn settle(&mut self, group: GroupId, version: u64, term: Term) {
        self.settled.insert(group, (version, term));
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
