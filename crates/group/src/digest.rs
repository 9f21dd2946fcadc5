//! Which replica of a group is wrong, if they differ: the comparison of replica digests, as a value.
//!
//! The life of a comparison:
//!
//! 1. Every replica takes down what its state comes to after each entry whose index is a multiple of
//!    [`DIGEST_INTERVAL`]: a [`Checkpoint`]. Entries are committed when they are applied, so replicas that
//!    speak of the same entry must have the same digest.
//! 2. Each tells all others. Nobody decides for anybody else: a replica is wrong if a majority of the
//!    voters (of both halves, in a joint membership) has one digest there, and it has another. Two against
//!    one decide; one against one do not, and both only say that they differ.
//! 3. Who is wrong distrusts itself; see [`Group`](crate::Group) for what that means.
//! 4. Where no majority can come about any more, whatever those say who have told nothing yet, nobody will
//!    ever know who is right; see [`Group::undecided`](crate::Group::undecided).
//!
//! Checkpoints that never meet (a message was lost, a replica was away) are not missed: a digest rests on
//! all writes before it, so the next one shows the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quorate_types::{Digest, EntryId, LogIndex, Membership, NodeId};

/// Entries from one comparison to the next. Each costs one message of some 30 bytes from every replica to
/// every other.
pub const DIGEST_INTERVAL: u64 = 1_024;

/// Checkpoints that are kept of each replica: as far as two may be apart in applying, in intervals.
const KEPT: usize = 8;

/// What the state of a replica comes to after an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// The entry.
    pub at: EntryId,
    /// Everything that was written up to there.
    pub digest: Digest,
}

/// Two replicas that have applied the same entries and have written different rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Divergence {
    /// What this replica has.
    pub own: Checkpoint,
    /// Who has something else.
    pub peer: NodeId,
    /// What that is.
    pub theirs: Digest,
}

/// What was heard of one group's replicas lately.
///
/// Bounds: [`KEPT`] checkpoints of each member, and none of anybody else.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    own: VecDeque<Checkpoint>,
    peers: BTreeMap<NodeId, VecDeque<Checkpoint>>,
    undecided: Option<EntryId>,
}

/// What a checkpoint has shown.
#[derive(PartialEq, Eq, Debug, Default)]
pub(crate) struct Finding {
    /// With whom this replica differs.
    pub(crate) divergences: Vec<Divergence>,
    /// Those who agree with each other against this replica, if they are a majority.
    pub(crate) majority: Option<Vec<NodeId>>,
}

impl Digests {
    /// This replica has applied up to a checkpoint.
    pub(crate) fn reached(&mut self, own: Checkpoint, members: &Membership) -> Finding {
        note(&mut self.own, own);
        // Who has left tells nothing any more.
        self.peers.retain(|&peer, _| members.contains(peer));
        let differs = |(&peer, told): (&NodeId, &VecDeque<Checkpoint>)| {
            let theirs = find(told, own.at).filter(|theirs| *theirs != own.digest)?;
            Some(Divergence { own, peer, theirs })
        };
        let divergences = self.peers.iter().filter_map(differs).collect();
        Finding { divergences, majority: self.majority_against(own, members) }
    }

    /// A peer told of one of its own.
    pub(crate) fn heard(
        &mut self,
        peer: NodeId,
        theirs: Checkpoint,
        members: &Membership,
    ) -> Finding {
        if !members.contains(peer) {
            return Finding::default();
        }
        note(self.peers.entry(peer).or_default(), theirs);
        let Some(digest) = find(&self.own, theirs.at) else { return Finding::default() };
        let own = Checkpoint { at: theirs.at, digest };
        let differs = digest != theirs.digest;
        let divergence = Divergence { own, peer, theirs: theirs.digest };
        Finding {
            divergences: differs.then_some(divergence).into_iter().collect(),
            majority: self.majority_against(own, members),
        }
    }

    /// This replica's state is another one now.
    pub(crate) fn forget_own(&mut self) {
        self.own.clear();
    }

    /// The last entry after which no digest could have a majority any more.
    pub(crate) const fn undecided(&self) -> Option<EntryId> {
        self.undecided
    }

    /// Looks whether no digest can have a majority any more after the entry `at`. `node` is this replica's own,
    /// which must have a vote. In a joint membership nothing is found: it ends soon, and then fewer decide.
    pub(crate) fn look_for_majority(&mut self, node: NodeId, at: EntryId, members: &Membership) {
        let voters = &members.voters;
        let may_tell = voters.contains(&node) && members.outgoing.is_empty();
        let Some(own) = find(&self.own, at).filter(|_| may_tell) else { return };
        let peers = self.peers.iter().filter_map(|(&peer, told)| Some((peer, find(told, at)?.0)));
        let told: BTreeMap<NodeId, u64> = peers.chain([(node, own.0)]).collect();
        // Those who have told nothing may all say the same, be it what another one has told or something else.
        let may_win = |digest: Option<u64>| {
            let agrees =
                |voter: &&NodeId| told.get(*voter).is_none_or(|told| Some(*told) == digest);
            voters.iter().filter(agrees).count() * 2 > voters.len()
        };
        let digests: BTreeSet<Option<u64>> =
            told.values().copied().map(Some).chain([None]).collect();
        let is_news = self.undecided.is_none_or(|last| last.index < at.index);
        if is_news && !digests.into_iter().any(may_win) {
            self.undecided = Some(at);
        }
    }

    /// Voters that are at one at `own.at`, but not with `own`.
    fn majority_against(&self, own: Checkpoint, members: &Membership) -> Option<Vec<NodeId>> {
        let told = self.peers.iter().filter_map(|(&peer, told)| Some((peer, find(told, own.at)?)));
        let mut by_digest: BTreeMap<u64, Vec<NodeId>> = BTreeMap::new();
        for (peer, digest) in told.filter(|(_, digest)| *digest != own.digest) {
            by_digest.entry(digest.0).or_default().push(peer);
        }
        if quorate_types::defect!(DigestsIgnored) {
            return None;
        }
        by_digest.into_values().find(|agreed| {
            let halves = [&members.voters, &members.outgoing].into_iter();
            halves.filter(|half| !half.is_empty()).all(|half| {
                agreed.iter().filter(|peer| half.contains(peer)).count() * 2 > half.len()
            })
        })
    }
}

/// Adds a checkpoint; one of the same index takes its place.
fn note(known: &mut VecDeque<Checkpoint>, new: Checkpoint) {
    known.retain(|old| old.at.index != new.at.index);
    if known.len() == KEPT {
        known.pop_front();
    }
    known.push_back(new);
}

fn find(known: &VecDeque<Checkpoint>, at: EntryId) -> Option<Digest> {
    known.iter().find(|checkpoint| checkpoint.at == at).map(|checkpoint| checkpoint.digest)
}

/// True when a replica takes down its digest after the entry at `index`, with so many entries between.
#[must_use]
pub const fn is_checkpoint(index: LogIndex, interval: u64) -> bool {
    index.value().is_multiple_of(interval)
}

#[cfg(test)]
mod tests {
    use quorate_types::Term;

    use super::*;

    fn at(index: u64, digest: u64) -> Checkpoint {
        Checkpoint { at: EntryId::new(Term(1), LogIndex(index)), digest: Digest(digest) }
    }

    fn voters(count: u64) -> Membership {
        Membership::of_voters((1..=count).map(NodeId))
    }

    /// Node 1 has `own`; what the others have, in the order in which it hears of them. The majority that
    /// it finds against itself in the end.
    fn judge(members: &Membership, own: u64, others: &[(u64, u64)]) -> Option<Vec<NodeId>> {
        let mut digests = Digests::default();
        let (early, late) = others.split_at(others.len() / 2);
        for &(peer, digest) in early {
            let nothing_to_compare = digests.heard(NodeId(peer), at(1_024, digest), members);
            assert_eq!(nothing_to_compare, Finding::default());
        }
        let mut last = digests.reached(at(1_024, own), members).majority;
        for &(peer, digest) in late {
            last = digests.heard(NodeId(peer), at(1_024, digest), members).majority;
        }
        last
    }

    #[test]
    fn replicas_that_agree_find_nothing() {
        assert_eq!(judge(&voters(3), 7, &[(2, 7), (3, 7)]), None);
    }

    #[test]
    fn two_that_agree_outvote_one_of_three() {
        assert_eq!(judge(&voters(3), 7, &[(2, 8), (3, 8)]), Some(vec![NodeId(2), NodeId(3)]));
        assert_eq!(judge(&voters(3), 8, &[(2, 8), (3, 7)]), None, "the others are the majority");
        assert_eq!(judge(&voters(3), 7, &[(2, 8), (3, 9)]), None, "nobody knows who is right");
    }

    #[test]
    fn two_replicas_only_know_that_they_differ() {
        let mut digests = Digests::default();
        digests.reached(at(1_024, 7), &voters(2));
        let finding = digests.heard(NodeId(2), at(1_024, 8), &voters(2));
        assert_eq!(finding.majority, None);
        let own = at(1_024, 7);
        let divergence = Divergence { own, peer: NodeId(2), theirs: Digest(8) };
        assert_eq!(finding.divergences, [divergence]);
    }

    #[test]
    fn both_halves_of_a_joint_membership_must_agree() {
        let joint = Membership { outgoing: [1, 4, 5].map(NodeId).into(), ..voters(3) };
        assert_eq!(judge(&joint, 7, &[(2, 8), (3, 8)]), None);
        let all = judge(&joint, 7, &[(2, 8), (3, 8), (4, 8), (5, 8)]);
        assert_eq!(all, Some([2, 3, 4, 5].map(NodeId).into()));
    }

    #[test]
    fn learners_are_judged_but_do_not_judge() {
        let members = Membership {
            learners: [1, 4, 5].map(NodeId).into(),
            ..Membership::of_voters([2, 3].map(NodeId))
        };
        assert_eq!(judge(&members, 7, &[(4, 8), (5, 8), (2, 8)]), None);
        assert!(judge(&members, 7, &[(4, 8), (2, 8), (3, 8)]).is_some());
    }

    /// As `judge`; whether node `own.0` finds in the end that nobody can have a majority any more.
    fn is_undecided(members: &Membership, own: (u64, u64), others: &[(u64, u64)]) -> bool {
        let mut digests = Digests::default();
        digests.reached(at(1_024, own.1), members);
        for &(peer, digest) in others {
            let theirs = at(1_024, digest);
            digests.heard(NodeId(peer), theirs, members);
            digests.look_for_majority(NodeId(own.0), theirs.at, members);
        }
        digests.undecided() == Some(at(1_024, 0).at)
    }

    #[test]
    fn it_is_undecided_only_when_no_majority_can_come_about_any_more() {
        type Row<'r> = (u64, (u64, u64), &'r [(u64, u64)], bool);
        let rows: [Row<'_>; 13] = [
            // One against one: the third may decide.
            (3, (1, 7), &[(2, 8)], false),
            (3, (1, 7), &[(2, 8), (3, 8)], false),
            (3, (1, 7), &[(2, 8), (3, 7)], false),
            (3, (1, 7), &[(2, 8), (3, 9)], true),
            (2, (1, 7), &[(2, 7)], false),
            (2, (1, 7), &[(2, 8)], true),
            (4, (1, 7), &[(2, 8), (3, 8)], false),
            (4, (1, 7), &[(2, 8), (3, 8), (4, 7)], true),
            (5, (1, 7), &[(2, 8), (3, 9)], false),
            (5, (1, 7), &[(2, 8), (3, 9), (4, 6)], true),
            (1, (1, 7), &[(2, 8)], false),
            // A learner judges nobody, and whoever is no member says nothing.
            (3, (9, 7), &[(1, 7), (2, 8), (3, 9)], false),
            (2, (1, 7), &[(2, 7), (9, 8)], false),
        ];
        for (voters_count, own, others, undecided) in rows {
            let found = is_undecided(&voters(voters_count), own, others);
            assert_eq!(found, undecided, "{voters_count} voters, {own:?} and {others:?}");
        }
        let joint = Membership { outgoing: [1, 4].map(NodeId).into(), ..voters(3) };
        assert!(!is_undecided(&joint, (1, 7), &[(2, 8), (4, 9), (3, 9)]));
        let learners = Membership { learners: [3].map(NodeId).into(), ..voters(2) };
        assert!(!is_undecided(&learners, (1, 7), &[(2, 7), (3, 8)]));
    }

    #[test]
    fn what_is_undecided_never_goes_back() {
        let mut digests = Digests::default();
        for (index, theirs) in [(2_048, 8), (1_024, 8), (3_072, 7)] {
            digests.reached(at(index, 7), &voters(2));
            digests.heard(NodeId(2), at(index, theirs), &voters(2));
            digests.look_for_majority(NodeId(1), at(index, 0).at, &voters(2));
            assert_eq!(digests.undecided(), Some(at(2_048, 0).at), "after {index}");
        }
    }

    #[test]
    fn only_the_same_entry_is_compared_and_only_with_members() {
        let mut digests = Digests::default();
        digests.reached(at(1_024, 7), &voters(3));
        assert_eq!(digests.heard(NodeId(2), at(2_048, 8), &voters(3)), Finding::default());
        let other_term = Checkpoint { at: EntryId::new(Term(2), LogIndex(1_024)), ..at(0, 8) };
        assert_eq!(digests.heard(NodeId(2), other_term, &voters(3)), Finding::default());
        assert_eq!(digests.heard(NodeId(9), at(1_024, 8), &voters(3)), Finding::default());
        // What came early is compared when this replica gets there.
        assert_eq!(digests.reached(at(2_048, 7), &voters(3)).divergences.len(), 1);
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_peers_say() {
        let mut digests = Digests::default();
        for index in 0..1_000 {
            digests.heard(NodeId(2), at(index, 7), &voters(3));
            digests.heard(NodeId(index + 10), at(index, 7), &voters(3));
            digests.reached(at(index, 7), &voters(3));
        }
        assert_eq!(digests.own.len(), KEPT);
        assert_eq!(digests.peers.values().map(VecDeque::len).collect::<Vec<_>>(), [KEPT]);
    }
}
