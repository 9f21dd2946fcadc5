//! Which groups live on a node: a node's decisions about groups, as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_types::GroupId;

use crate::descriptor::Descriptor;

/// Tells one life of a group on a node from the next: a completion that was asked for by an earlier
/// life must not reach a later one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Why a group may not live here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostError {
    /// It lives here already.
    #[error("group {0} exists already")]
    Exists(GroupId),
    /// What the node held of it is damaged.
    #[error("group {0} is fenced on this node")]
    Fenced(GroupId),
    /// Two groups would own the same rows of the one keyspace.
    #[error("the range of group {group} overlaps that of group {with}")]
    Overlaps {
        /// The group that was refused.
        group: GroupId,
        /// The group that owns part of its range.
        with: GroupId,
    },
}

/// The groups of a node.
///
/// Invariant: the ranges of any two groups that own keys do not overlap.
#[derive(Debug, Default)]
pub struct Host {
    groups: BTreeMap<GroupId, Resident>,
    /// Groups that must not live here again.
    fenced: BTreeSet<GroupId>,
    lives: u64,
}

#[derive(Debug)]
struct Resident {
    descriptor: Descriptor,
    generation: Generation,
}

impl Host {
    /// A node without groups.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a group in and begins a life of it.
    ///
    /// # Errors
    /// When it lives here already, is fenced, or its range overlaps that of another group.
    pub fn admit(
        &mut self,
        group: GroupId,
        descriptor: Descriptor,
    ) -> Result<Generation, HostError> {
        self.may_admit(group, &descriptor)?;
        let generation = self.next_generation();
        self.groups.insert(group, Resident { descriptor, generation });
        Ok(generation)
    }

    /// Whether [`Self::admit`] would take a group in now.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn may_admit(&self, group: GroupId, descriptor: &Descriptor) -> Result<(), HostError> {
        if self.groups.contains_key(&group) {
            return Err(HostError::Exists(group));
        }
        if self.fenced.contains(&group) {
            return Err(HostError::Fenced(group));
        }
        let overlapping = self.groups.iter().find(|(_, other)| {
            matches!((&descriptor.range, &other.descriptor.range), (Some(a), Some(b)) if a.overlaps(b))
        });
        match overlapping.filter(|_| !quorate_types::defect!(OverlapAdmitted)) {
            Some((&with, _)) => Err(HostError::Overlaps { group, with }),
            None => Ok(()),
        }
    }

    /// Keeps a group out for good: what this node has promised in it is not known any more, so it must
    /// not even begin anew under the same id.
    pub fn fence(&mut self, group: GroupId) {
        self.fenced.insert(group);
    }

    /// True for a group that may begin here: it neither lives here nor is fenced.
    #[must_use]
    pub fn is_unknown(&self, group: GroupId) -> bool {
        !self.groups.contains_key(&group) && !self.fenced.contains(&group)
    }

    /// What a group is that lives here.
    #[must_use]
    pub fn descriptor(&self, group: GroupId) -> Option<&Descriptor> {
        self.groups.get(&group).map(|resident| &resident.descriptor)
    }

    /// Begins a new life of a group that lives here: completions of the old one are stale from now on.
    pub fn reload(&mut self, group: GroupId) -> Option<Generation> {
        let generation = self.next_generation();
        let resident = self.groups.get_mut(&group)?;
        if quorate_types::defect!(GenerationKept) {
            return Some(resident.generation);
        }
        resident.generation = generation;
        Some(generation)
    }

    /// Sends a group away.
    pub fn dismiss(&mut self, group: GroupId) -> Option<Descriptor> {
        self.groups.remove(&group).map(|resident| resident.descriptor)
    }

    /// The current life of a group.
    #[must_use]
    pub fn generation(&self, group: GroupId) -> Option<Generation> {
        self.groups.get(&group).map(|resident| resident.generation)
    }

    /// The groups that live here, in order.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &Descriptor)> {
        self.groups.iter().map(|(&group, resident)| (group, &resident.descriptor))
    }

    fn next_generation(&mut self) -> Generation {
        self.lives += 1;
        Generation(self.lives)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_types::KeyRange;

    use super::*;

    fn keys(start: &'static str, end: &'static str) -> Descriptor {
        let range = KeyRange { start: Bytes::from(start), end: Some(Bytes::from(end)) };
        Descriptor { kind: "kv".into(), range: Some(range) }
    }

    #[test]
    fn groups_whose_ranges_overlap_do_not_share_a_node() {
        let mut host = Host::new();
        host.admit(GroupId(2), keys("a", "m")).expect("the first has nobody to overlap");
        host.admit(GroupId(3), keys("m", "z")).expect("half-open ranges may touch");
        let refused = host.admit(GroupId(4), keys("l", "n"));
        assert_eq!(refused, Err(HostError::Overlaps { group: GroupId(4), with: GroupId(2) }));
        host.dismiss(GroupId(2));
        host.dismiss(GroupId(3));
        assert!(host.admit(GroupId(4), keys("l", "n")).is_ok());
    }

    #[test]
    fn groups_with_rows_of_their_own_never_overlap() {
        let mut host = Host::new();
        let own = || Descriptor { kind: "counter".into(), range: None };
        assert!(host.admit(GroupId(2), own()).is_ok() && host.admit(GroupId(3), own()).is_ok());
        assert_eq!(host.admit(GroupId(3), own()), Err(HostError::Exists(GroupId(3))));
    }

    #[test]
    fn a_fenced_group_never_begins_again() {
        let mut host = Host::new();
        assert!(host.is_unknown(GroupId(2)));
        host.fence(GroupId(2));
        assert!(!host.is_unknown(GroupId(2)) && host.descriptor(GroupId(2)).is_none());
        assert_eq!(host.admit(GroupId(2), keys("a", "m")), Err(HostError::Fenced(GroupId(2))));
        host.dismiss(GroupId(2));
        assert_eq!(host.admit(GroupId(2), keys("a", "m")), Err(HostError::Fenced(GroupId(2))));
        assert!(host.admit(GroupId(3), keys("a", "m")).is_ok());
        assert!(!host.is_unknown(GroupId(3)));
    }

    #[test]
    fn every_life_has_a_generation_of_its_own() {
        let mut host = Host::new();
        let first = host.admit(GroupId(2), keys("a", "b")).expect("admitted");
        let second = host.reload(GroupId(2)).expect("lives here");
        host.dismiss(GroupId(2));
        let third = host.admit(GroupId(2), keys("a", "b")).expect("admitted");
        assert!(first < second && second < third);
        assert_eq!(host.generation(GroupId(2)), Some(third));
        assert_eq!(host.reload(GroupId(9)), None);
    }
}
