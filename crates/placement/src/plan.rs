//! From what nodes are meant for to the next change of one group: pure, one step at a time.
//!
//! Whoever leads a group asks [`next_step`] again after each step, and whenever the map or the group has
//! changed, until there is nothing to do. Every group has a replica on every node that has joined and
//! does not leave, and group 1 on those that leave too, as long as another one has.

use std::collections::BTreeSet;

use quorate_types::{GroupId, Membership, NodeId};

use crate::map::{Node, PlacementMap, Standing};

/// A group as its leader sees it.
#[derive(Clone, Copy, Debug)]
pub struct View<'v> {
    /// The leader.
    pub leader: NodeId,
    /// The membership in force, which the group has committed.
    pub membership: &'v Membership,
    /// The learners that hold the log so far that they could vote without holding anybody up.
    pub caught_up: &'v BTreeSet<NodeId>,
    /// The members that the leader has heard lately; a new leader takes everybody for heard.
    pub heard: &'v BTreeSet<NodeId>,
    /// Of them, those that are there: it feeds them without pause.
    pub there: &'v BTreeSet<NodeId>,
}

/// What the leader of a group does next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing: the group is as it should be.
    Done,
    /// Nothing yet: a change is under way, or learners have to catch up.
    Wait,
    /// Hand the leadership to one of these voters, since this node is to leave.
    Transfer(BTreeSet<NodeId>),
    /// Change to this membership, by way of a joint one where votes change.
    Change(Membership),
}

/// What is meant for a group.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    /// Vote.
    pub voters: BTreeSet<NodeId>,
    /// Receive the log.
    pub learners: BTreeSet<NodeId>,
    /// Voters that stay until their successor votes: (who leaves, who follows).
    pub successions: Vec<(NodeId, NodeId)>,
}

impl Wanted {
    /// What the map means for one of its groups.
    ///
    /// Group 1 lets go of a node last, of its vote at once: a leader of another group that hears no more of the map
    /// would never hear that its node is to leave, nor could it tell where its replicas are.
    #[must_use]
    pub fn of(map: &PlacementMap, group: GroupId) -> Self {
        let is_last = group == GroupId::PLACEMENT;
        let stays = |node: &Node| {
            let mut others = map.groups().filter(|other| other.id != group);
            is_last && others.any(|other| other.replicas.nodes().contains(&node.id))
        };
        let leaving = map.standing(Standing::Leaving).filter(|node| stays(node));
        let joined =
            |standing| map.standing(standing).filter(|node| node.has_joined()).map(|node| node.id);
        // A successor that has not joined yet is waited for, too.
        let replaces = |node: &Node| node.replaces.map(|old| (old, node.id));
        Self {
            voters: joined(Standing::Voter).collect(),
            learners: joined(Standing::Learner).chain(leaving.map(|node| node.id)).collect(),
            successions: map.standing(Standing::Voter).filter_map(replaces).collect(),
        }
    }
}

/// The next step of a group towards what is wanted.
///
/// - A node gets a vote only once it has caught up, and has been a learner before.
/// - A voter that is to leave keeps its vote while its successor has none, and while the wanted voters
///   that vote already would be no majority of all wanted ones. So a change never leaves fewer of them.
/// - It also keeps its vote while those that would be left could not decide without voters that are not there: two that
///   vote and one that catches up are a majority of three that are wanted, and stand still when one of them is dead.
/// - And while those that would be left bear the loss of fewer than both those that vote now and those wanted do: of
///   three, before and after, any one may be lost, and of two in between none.
/// - The leader never takes its own vote: it hands over first, and while none of those that could take over votes yet and
///   is there, it keeps its vote beside them.
#[must_use]
pub fn next_step(wanted: &Wanted, view: View<'_>) -> Step {
    let View { leader, membership, caught_up, heard, there } = view;
    if membership.is_joint() {
        return Step::Wait;
    }
    let now = &membership.voters;
    let mut voters: BTreeSet<NodeId> = now.intersection(&wanted.voters).copied().collect();
    voters.extend(
        membership
            .learners
            .iter()
            .filter(|node| wanted.voters.contains(node) && caught_up.contains(node)),
    );
    for (old, new) in &wanted.successions {
        if now.contains(old) && !voters.contains(new) {
            voters.insert(*old);
        }
    }
    let settled = voters.intersection(&wanted.voters).count();
    // How many more may be lost; none when the voters cannot decide. Who is to get its vote is expected. Of those that
    // leave only the dead are no loss: that a new leader does not feed one yet says nothing.
    let bears = |voters: &BTreeSet<NodeId>, leavers: &BTreeSet<NodeId>| {
        let able = |node: &&NodeId| {
            let leaves = !wanted.voters.contains(node) && leavers.contains(node);
            **node == leader || !now.contains(node) || there.contains(node) || leaves
        };
        voters.iter().filter(able).count().checked_sub(voters.len() / 2 + 1)
    };
    let left = bears(&voters, there);
    let least = bears(now, heard).min(bears(&wanted.voters, there));
    if settled <= wanted.voters.len() / 2 || left.is_none() || left < least {
        voters.extend(now);
    }
    if !voters.contains(&leader) {
        let heirs: BTreeSet<_> =
            voters.intersection(now).filter(|heir| there.contains(heir)).copied().collect();
        if !heirs.is_empty() {
            return Step::Transfer(heirs);
        }
        voters.insert(leader);
    }
    let all = wanted.voters.union(&wanted.learners);
    let learners = all.filter(|node| !voters.contains(node)).copied().collect();
    let target = Membership { learners, ..Membership::of_voters(voters) };
    if target.voters != *now || target.learners != membership.learners {
        return Step::Change(target);
    }
    let done = target.voters == wanted.voters && target.learners == wanted.learners;
    if done { Step::Done } else { Step::Wait }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
