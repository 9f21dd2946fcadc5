//! Who takes part, and how that changes: pure arithmetic (thesis chapter 4), and which change stands
//! where in the log. `docs/protocol/members.md` has the rules and their reasons.

use quorate_types::{LogIndex, Membership, NodeId};

use crate::error::MembershipError;

/// More nodes than a group may have, of all kinds together; a mistyped change should not fill memory.
pub const MEMBERS_MAX: usize = 64;

/// What happens to one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeChange {
    /// Becomes a voter.
    Voter(NodeId),
    /// Becomes a learner; a voter loses its vote.
    Learner {
        /// The node.
        node: NodeId,
        /// The leader makes it a voter when it has caught up.
        promote: bool,
    },
    /// Takes part no longer.
    Remove(NodeId),
}

impl NodeChange {
    /// Whom it concerns.
    #[must_use]
    pub const fn node(self) -> NodeId {
        match self {
            Self::Voter(node) | Self::Learner { node, .. } | Self::Remove(node) => node,
        }
    }
}

/// How to get from the old voters to the new ones.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Via {
    /// In one step if at most one voter comes or goes, else as `Joint`.
    #[default]
    Auto,
    /// Through a joint membership, which the leader leaves when it is committed.
    Joint,
    /// Through a joint membership, which is left by [`MembershipChange::leave`].
    JointExplicit,
}

/// A change of any number of nodes that takes place as one.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct MembershipChange {
    /// In any order; at most one for each node. None at all leaves a joint membership.
    pub nodes: Vec<NodeChange>,
    /// How.
    pub via: Via,
}

impl MembershipChange {
    /// Several nodes at once, in the shortest way.
    pub fn of(nodes: impl IntoIterator<Item = NodeChange>) -> Self {
        Self { nodes: nodes.into_iter().collect(), via: Via::Auto }
    }

    /// Leaves a joint membership that was entered by [`Via::JointExplicit`].
    #[must_use]
    pub const fn leave() -> Self {
        Self { nodes: Vec::new(), via: Via::Auto }
    }
}

/// The membership that `change` makes of `now`.
///
/// # Errors
/// When `now` is joint and `change` does not leave it, or the reverse; when a node is named twice or
/// is none, or nobody would vote, or too many would take part.
pub(crate) fn changed(
    now: &Membership,
    change: &MembershipChange,
) -> Result<Membership, MembershipError> {
    let mut next = now.clone();
    if change.nodes.is_empty() {
        if !now.is_joint() {
            return Err(MembershipError::NotJoint);
        }
        next.outgoing.clear();
        next.auto_leave = false;
        return Ok(next);
    }
    if now.is_joint() {
        return Err(MembershipError::Joint);
    }
    for (at, &node_change) in change.nodes.iter().enumerate() {
        let node = node_change.node();
        if change.nodes[..at].iter().any(|earlier| earlier.node() == node) {
            return Err(MembershipError::Duplicate { node });
        }
        if node == NodeId::ZERO {
            return Err(MembershipError::NoNode);
        }
        next.voters.remove(&node);
        next.learners.remove(&node);
        next.promote.remove(&node);
        match node_change {
            NodeChange::Voter(_) => {
                next.voters.insert(node);
            }
            NodeChange::Learner { promote, .. } => {
                next.learners.insert(node);
                if promote {
                    next.promote.insert(node);
                }
            }
            NodeChange::Remove(_) => {}
        }
    }
    if next.voters.is_empty() {
        return Err(MembershipError::NoVoters);
    }
    let moved = now.voters.symmetric_difference(&next.voters).count();
    if moved > 1 || change.via != Via::Auto {
        // A voter that becomes a learner is in both sets until the joint membership is left.
        next.outgoing = now.voters.clone();
        next.auto_leave = change.via != Via::JointExplicit;
    }
    if next.nodes().len() > MEMBERS_MAX {
        return Err(MembershipError::TooMany);
    }
    Ok(next)
}

/// The memberships in the log: that of the base, and the changes after it. The last one is in force,
/// committed or not.
#[derive(Debug)]
pub(crate) struct MembershipLog {
    base: Membership,
    /// Indexes rise.
    changes: Vec<(LogIndex, Membership)>,
}

impl MembershipLog {
    /// # Panics
    /// When the changes are not in the order of the log.
    pub(crate) fn new(base: Membership, changes: Vec<(LogIndex, Membership)>) -> Self {
        assert!(
            changes.is_sorted_by(|(a, _), (b, _)| a < b),
            "recovered memberships are out of order: {changes:?}"
        );
        Self { base, changes }
    }

    /// The membership in force.
    pub(crate) fn current(&self) -> &Membership {
        self.changes.last().map_or(&self.base, |(_, membership)| membership)
    }

    /// Where the membership in force stands; `None` when it is that of the base.
    pub(crate) fn index(&self) -> Option<LogIndex> {
        self.changes.last().map(|&(index, _)| index)
    }

    /// What was in force before the latest change.
    pub(crate) fn previous(&self) -> Option<&Membership> {
        let before = self.changes.len().checked_sub(1)?;
        Some(before.checked_sub(1).map_or(&self.base, |at| &self.changes[at].1))
    }

    /// What is in force for who holds the log up to `index`, which is not before the base.
    pub(crate) fn at(&self, index: LogIndex) -> &Membership {
        let count = self.changes.partition_point(|&(change, _)| change <= index);
        count.checked_sub(1).map_or(&self.base, |at| &self.changes[at].1)
    }

    /// The entry at `index` is appended.
    pub(crate) fn push(&mut self, index: LogIndex, membership: Membership) {
        self.changes.push((index, membership));
    }

    /// The log begins after `index` now.
    pub(crate) fn compact(&mut self, index: LogIndex) {
        let count = self.changes.partition_point(|&(change, _)| change <= index);
        if let Some((_, membership)) = self.changes.drain(..count).next_back() {
            self.base = membership;
        }
    }

    /// The entries from `index` on are gone: what they changed is undone.
    pub(crate) fn truncate(&mut self, index: LogIndex) {
        self.changes.truncate(self.changes.partition_point(|&(change, _)| change < index));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::quorum::{self, Election};

    fn ids(bits: u64) -> BTreeSet<NodeId> {
        (0..6).filter(|bit| bits >> bit & 1 == 1).map(|bit| NodeId(bit + 1)).collect()
    }

    fn node_change() -> impl Strategy<Value = NodeChange> {
        (1u64..=6, 0u8..4).prop_map(|(node, kind)| match kind {
            0 => NodeChange::Voter(NodeId(node)),
            1 => NodeChange::Learner { node: NodeId(node), promote: true },
            2 => NodeChange::Learner { node: NodeId(node), promote: false },
            _ => NodeChange::Remove(NodeId(node)),
        })
    }

    fn change() -> impl Strategy<Value = MembershipChange> {
        let via = prop_oneof![Just(Via::Auto), Just(Via::Joint), Just(Via::JointExplicit)];
        (proptest::collection::vec(node_change(), 0..4), via)
            .prop_map(|(nodes, via)| MembershipChange { nodes, via })
    }

    /// Any change, in small steps, on plain sets.
    fn slowly(
        now: &Membership,
        change: &MembershipChange,
    ) -> Option<(BTreeSet<u64>, BTreeSet<u64>)> {
        let of = |set: &BTreeSet<NodeId>| set.iter().map(|node| node.value()).collect();
        let (mut voters, mut learners): (BTreeSet<u64>, BTreeSet<u64>) =
            (of(&now.voters), of(&now.learners));
        let named: BTreeSet<_> = change.nodes.iter().map(|node| node.node()).collect();
        if named.len() != change.nodes.len() || change.nodes.is_empty() != now.is_joint() {
            return None;
        }
        for node in &change.nodes {
            let id = node.node().value();
            let is_voter = matches!(node, NodeChange::Voter(_));
            let is_learner = matches!(node, NodeChange::Learner { .. });
            if is_voter {
                voters.insert(id)
            } else {
                voters.remove(&id)
            };
            if is_learner {
                learners.insert(id)
            } else {
                learners.remove(&id)
            };
        }
        (!voters.is_empty()).then_some((voters, learners))
    }

    /// All sets of nodes that can elect under `membership`.
    fn quorums(membership: &Membership) -> Vec<BTreeSet<NodeId>> {
        let sets = (0..64).map(ids);
        sets.filter(|set| {
            quorum::election(membership, |node| Some(set.contains(&node))) == Election::Won
        })
        .collect()
    }

    proptest! {
        #[test]
        fn a_membership_and_what_follows_it_never_decide_apart(
            voters in 1u64..64,
            learners in 0u64..64,
            changes in proptest::collection::vec(change(), 1..5),
        ) {
            let mut now = Membership::of_voters(ids(voters));
            now.learners = ids(learners & !voters);
            for change in changes {
                let Ok(next) = changed(&now, &change) else {
                    prop_assert!(slowly(&now, &change).is_none());
                    continue;
                };
                let (voters, learners) = slowly(&now, &change).expect("a valid change");
                prop_assert_eq!(voters, next.voters.iter().map(|n| n.value()).collect());
                prop_assert_eq!(learners, next.learners.iter().map(|n| n.value()).collect());
                prop_assert!(next.is_valid(), "{:?}", next);
                for a in quorums(&now) {
                    for b in quorums(&next) {
                        prop_assert!(!a.is_disjoint(&b), "{:?} then {:?}", now, next);
                    }
                }
                now = next;
            }
        }

        #[test]
        fn the_log_of_memberships_equals_a_plain_list(
            steps in proptest::collection::vec((any::<bool>(), 1u64..30), 0..20),
            through in 0u64..32,
        ) {
            let mut log = MembershipLog::new(Membership::of_voters([NodeId(1)]), Vec::new());
            let mut plain: Vec<(u64, u64)> = Vec::new();
            for (number, (is_truncation, index)) in (2..).zip(steps) {
                if is_truncation {
                    log.truncate(LogIndex(index));
                    plain.retain(|&(at, _)| at < index);
                } else if plain.last().is_none_or(|&(at, _)| at < index) {
                    log.push(LogIndex(index), Membership::of_voters([NodeId(number)]));
                    plain.push((index, number));
                }
                for index in 0..32 {
                    let voter = plain.iter().rev().find(|&&(at, _)| at <= index).map_or(1, |p| p.1);
                    prop_assert!(log.at(LogIndex(index)).is_sole_voter(NodeId(voter)));
                }
                prop_assert_eq!(log.index(), plain.last().map(|&(at, _)| LogIndex(at)));
            }
            let before: Vec<_> = (0..32).map(|index| log.at(LogIndex(index)).clone()).collect();
            log.compact(LogIndex(through));
            for index in through..32 {
                prop_assert_eq!(log.at(LogIndex(index)), &before[index as usize]);
            }
        }
    }

    #[test]
    fn one_voter_comes_or_goes_in_one_step_and_more_in_two() {
        let now = Membership::of_voters([NodeId(1), NodeId(2), NodeId(3)]);
        let add = MembershipChange::of([NodeChange::Voter(NodeId(4))]);
        assert!(!changed(&now, &add).expect("valid").is_joint());
        let replace =
            MembershipChange::of([NodeChange::Remove(NodeId(3)), NodeChange::Voter(NodeId(4))]);
        let joint = changed(&now, &replace).expect("valid");
        assert_eq!(joint.outgoing, now.voters);
        assert!(joint.auto_leave);
        assert_eq!(changed(&joint, &add), Err(MembershipError::Joint));
        let left = changed(&joint, &MembershipChange::leave()).expect("joint");
        assert_eq!(left, Membership::of_voters([NodeId(1), NodeId(2), NodeId(4)]));
        assert_eq!(changed(&left, &MembershipChange::leave()), Err(MembershipError::NotJoint));
    }

    #[test]
    fn a_voter_that_becomes_a_learner_votes_until_the_joint_membership_is_left() {
        let now = Membership::of_voters([NodeId(1), NodeId(2)]);
        let nodes = vec![NodeChange::Learner { node: NodeId(2), promote: false }];
        let joint = changed(&now, &MembershipChange { nodes, via: Via::Joint }).expect("valid");
        assert!(joint.is_voter(NodeId(2)) && joint.learners.contains(&NodeId(2)));
        let left = changed(&joint, &MembershipChange::leave()).expect("joint");
        assert!(!left.is_voter(NodeId(2)) && left.learners.contains(&NodeId(2)));
    }

    #[test]
    fn what_nobody_could_mean_is_refused() {
        let now = Membership::of_voters([NodeId(1)]);
        let refused = |nodes: &[NodeChange]| {
            changed(&now, &MembershipChange::of(nodes.iter().copied())).expect_err("invalid")
        };
        let (one, two) = (NodeId(1), NodeId(2));
        let twice = [NodeChange::Voter(two), NodeChange::Remove(two)];
        assert_eq!(refused(&twice), MembershipError::Duplicate { node: two });
        assert_eq!(refused(&[NodeChange::Remove(one)]), MembershipError::NoVoters);
        assert_eq!(refused(&[NodeChange::Voter(NodeId::ZERO)]), MembershipError::NoNode);
        let many: Vec<_> = (2..100).map(|node| NodeChange::Voter(NodeId(node))).collect();
        assert_eq!(refused(&many), MembershipError::TooMany);
    }
}
