//! Quorum arithmetic over a possibly joint [`Membership`]: pure, and checked against a slow twin.
//!
//! Everything that needs agreement comes down to two questions: how far has a quorum come
//! ([`reached`]: match indexes, read rounds, last-heard ticks), and is an election decided
//! ([`election`]). A joint membership agrees only when a majority of *both* halves does (thesis
//! section 4.3). Learners are never asked.

use std::collections::BTreeSet;

use quorate_types::{Membership, NodeId};

/// Halves up to this size are sorted on the stack; larger ones, which nobody should run, on the
/// heap.
const INLINE_VOTERS: usize = 16;

/// How an election stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Election {
    /// A quorum granted.
    Won,
    /// So many refused that no quorum can grant any more.
    Lost,
    /// Still open.
    Open,
}

/// The largest value that a quorum of voters has reached: the quorum-th *largest* of `value_of`,
/// and of the two halves the smaller one. Zero when there are no voters: nobody can agree on
/// anything.
///
/// The values are sorted anew each time. Keeping them sorted while single ones change is where an
/// order can be lost, and with it the quorum.
pub(crate) fn reached(membership: &Membership, value_of: impl Fn(NodeId) -> u64) -> u64 {
    let incoming = majority_reached(&membership.voters, &value_of);
    if membership.is_joint() && !quorate_types::defect!(OneHalfCommits) {
        incoming.min(majority_reached(&membership.outgoing, &value_of))
    } else {
        incoming
    }
}

/// The result of an election in which `vote_of` tells who granted, who refused and who is silent.
pub(crate) fn election(
    membership: &Membership,
    vote_of: impl Fn(NodeId) -> Option<bool>,
) -> Election {
    let incoming = majority_election(&membership.voters, &vote_of);
    if !membership.is_joint() {
        return incoming;
    }
    match (incoming, majority_election(&membership.outgoing, &vote_of)) {
        (Election::Won, Election::Won) => Election::Won,
        (Election::Lost, _) | (_, Election::Lost) => Election::Lost,
        (Election::Open, _) | (_, Election::Open) => Election::Open,
    }
}

const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

fn majority_reached(voters: &BTreeSet<NodeId>, value_of: &impl Fn(NodeId) -> u64) -> u64 {
    let count = voters.len();
    if count == 0 {
        return 0;
    }
    let (mut inline, mut heap);
    let values = if count <= INLINE_VOTERS {
        inline = [0; INLINE_VOTERS];
        &mut inline[..count]
    } else {
        heap = vec![0; count];
        heap.as_mut_slice()
    };
    for (value, &node) in values.iter_mut().zip(voters) {
        *value = value_of(node);
    }
    if !quorate_types::defect!(QuorumOutOfOrder) {
        values.sort_unstable();
    }
    values[count - majority(count)]
}

fn majority_election(
    voters: &BTreeSet<NodeId>,
    vote_of: &impl Fn(NodeId) -> Option<bool>,
) -> Election {
    let (mut granted, mut silent) = (0, 0);
    for &node in voters {
        match vote_of(node) {
            Some(true) => granted += 1,
            Some(false) => {}
            None => silent += 1,
        }
    }
    let needed = majority(voters.len());
    if granted >= needed {
        Election::Won
    } else if granted + silent >= needed {
        Election::Open
    } else {
        Election::Lost
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn node() -> impl Strategy<Value = NodeId> {
        (1u64..=20).prop_map(NodeId)
    }

    fn half(max: u64) -> impl Strategy<Value = BTreeSet<NodeId>> {
        proptest::collection::btree_set((1..=max).prop_map(NodeId), 0..=max as usize)
    }

    fn membership() -> impl Strategy<Value = Membership> {
        let voters = half(20).prop_filter("a group has voters", |voters| !voters.is_empty());
        (voters, prop_oneof![Just(BTreeSet::new()), half(6)])
            .prop_map(|(voters, outgoing)| Membership { voters, outgoing, ..Membership::default() })
    }

    /// Tries every value and counts who has reached it, half by half.
    fn reached_slowly(membership: &Membership, values: &BTreeMap<NodeId, u64>) -> u64 {
        let of = |node: &NodeId| values.get(node).copied().unwrap_or(0);
        let agreed = |half: &BTreeSet<NodeId>, value| {
            half.is_empty() || half.iter().filter(|node| of(node) >= value).count() * 2 > half.len()
        };
        let best = values.values().copied().filter(|&value| {
            agreed(&membership.voters, value) && agreed(&membership.outgoing, value)
        });
        best.max().unwrap_or(0)
    }

    /// Won if granting suffices, lost if even the silent ones granting would not.
    fn election_slowly(membership: &Membership, votes: &BTreeMap<NodeId, bool>) -> Election {
        let wins = |grants: &dyn Fn(&NodeId) -> bool| {
            [&membership.voters, &membership.outgoing].into_iter().all(|half| {
                half.is_empty() || half.iter().filter(|node| grants(node)).count() * 2 > half.len()
            })
        };
        if wins(&|node| votes.get(node) == Some(&true)) {
            Election::Won
        } else if wins(&|node| votes.get(node) != Some(&false)) {
            Election::Open
        } else {
            Election::Lost
        }
    }

    proptest! {
        #[test]
        fn reached_equals_counting(
            membership in membership(),
            values in proptest::collection::btree_map(node(), 0u64..9, 0..=20),
        ) {
            let fast = reached(&membership, |node| values.get(&node).copied().unwrap_or(0));
            prop_assert_eq!(fast, reached_slowly(&membership, &values));
        }

        #[test]
        fn an_election_equals_counting(
            membership in membership(),
            votes in proptest::collection::btree_map(node(), any::<bool>(), 0..=20),
        ) {
            let fast = election(&membership, |node| votes.get(&node).copied());
            prop_assert_eq!(fast, election_slowly(&membership, &votes));
        }
    }

    #[test]
    fn nobody_agrees_without_voters() {
        let nobody = Membership::default();
        assert_eq!(reached(&nobody, |_| 7), 0);
        assert_eq!(election(&nobody, |_| Some(true)), Election::Lost);
    }
}
