//! Which of many ranges hold a key, without a look at each.
//!
//! Ranges sorted by their starts, with the largest end of each subtree of the implicit balanced tree over
//! them: a search visits only subtrees that may hold the key. Ranges that were added late wait in a short
//! list, until they are sorted in together.

use bytes::Bytes;
use quorate_types::KeyRange;
use std::collections::HashMap;

/// Ranges that wait for their place in the tree, at least; beyond, the square root of all.
const FRESH_MIN: usize = 64;

/// Ranges, each with those who are interested in it.
#[derive(Debug)]
pub(crate) struct Ranges<T> {
    /// Interested in exactly one key.
    keys: HashMap<Bytes, Vec<T>>,
    /// Interested in a range; the vectors are never empty.
    slots: HashMap<KeyRange, Vec<T>>,
    /// Sorted by start. Some may be gone from `slots`.
    tree: Vec<Node>,
    /// In `slots` and not in `tree`.
    fresh: Vec<KeyRange>,
    /// Of `tree`, about: those that are gone from `slots`.
    gone: usize,
}

#[derive(Debug)]
struct Node {
    range: KeyRange,
    /// The largest end of the subtree; `None`: no bound.
    end_max: Option<Bytes>,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        let (keys, slots) = (HashMap::new(), HashMap::new());
        Self { keys, slots, tree: Vec::new(), fresh: Vec::new(), gone: 0 }
    }
}

impl<T: PartialEq> Ranges<T> {
    /// `who` is interested in `range`.
    pub(crate) fn insert(&mut self, range: &KeyRange, who: T) {
        if let Some(key) = single(range) {
            self.keys.entry(key).or_default().push(who);
            return;
        }
        if let Some(slot) = self.slots.get_mut(range) {
            slot.push(who);
            return;
        }
        self.slots.insert(range.clone(), vec![who]);
        self.fresh.push(range.clone());
        if self.fresh.len() > FRESH_MIN.max(self.slots.len().isqrt()) {
            self.sort_in();
        }
    }

    /// `who` is interested in `range` no more.
    pub(crate) fn remove(&mut self, range: &KeyRange, who: &T) {
        if let Some(key) = single(range) {
            if let Some(slot) = self.keys.get_mut(&key) {
                slot.retain(|other| other != who);
                if slot.is_empty() {
                    self.keys.remove(&key);
                }
            }
            return;
        }
        let Some(slot) = self.slots.get_mut(range) else { return };
        slot.retain(|other| other != who);
        if !slot.is_empty() {
            return;
        }
        self.slots.remove(range);
        match self.fresh.iter().position(|fresh| fresh == range) {
            Some(at) => drop(self.fresh.swap_remove(at)),
            None => self.gone += 1,
        }
        if self.gone > FRESH_MIN.max(self.slots.len()) {
            self.sort_in();
        }
    }

    /// Calls `visit` for everybody who is interested in `key`, once for each interest.
    pub(crate) fn each(&self, key: &Bytes, visit: &mut dyn FnMut(&T)) {
        self.keys.get(key).into_iter().flatten().for_each(&mut *visit);
        for range in self.fresh.iter().filter(|range| range.contains(key)) {
            self.slots.get(range).into_iter().flatten().for_each(&mut *visit);
        }
        self.search(0, self.tree.len(), key, visit);
    }

    fn search(&self, from: usize, to: usize, key: &Bytes, visit: &mut dyn FnMut(&T)) {
        if from == to {
            return;
        }
        let middle = from.midpoint(to);
        let Node { range, end_max } = &self.tree[middle];
        if end_max.as_ref().is_some_and(|end| end <= key) {
            return;
        }
        self.search(from, middle, key, visit);
        if range.start > *key {
            return;
        }
        if range.contains(key) {
            self.slots.get(range).into_iter().flatten().for_each(&mut *visit);
        }
        self.search(middle + 1, to, key, visit);
    }

    fn sort_in(&mut self) {
        self.fresh.clear();
        self.gone = 0;
        let mut ranges: Vec<_> = self.slots.keys().cloned().collect();
        ranges.sort_unstable_by(|a, b| a.start.cmp(&b.start));
        self.tree = ranges.into_iter().map(|range| Node { range, end_max: None }).collect();
        let nodes = self.tree.len();
        set_ends(&mut self.tree, 0, nodes);
    }
}

/// The largest end of `tree[from..to]`, which is not empty, set on the way; `None`: no bound.
fn set_ends(tree: &mut [Node], from: usize, to: usize) -> Option<Bytes> {
    if from == to {
        // Below every end.
        return Some(Bytes::new());
    }
    let middle = from.midpoint(to);
    let (left, right) = (set_ends(tree, from, middle), set_ends(tree, middle + 1, to));
    let own = tree[middle].range.end.clone();
    let end = match (left, own, right) {
        (Some(left), Some(own), Some(right)) => Some(left.max(own).max(right)),
        _ => None,
    };
    tree[middle].end_max.clone_from(&end);
    end
}

/// The key of a range that holds exactly one.
fn single(range: &KeyRange) -> Option<Bytes> {
    let end = range.end.as_ref()?;
    let is_single = end.strip_suffix(&[0]) == Some(&range.start[..]);
    is_single.then(|| range.start.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(0u8..4, 0..4).prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        prop_oneof![
            (key(), prop::option::of(key())).prop_map(|(start, end)| KeyRange { start, end }),
            key().prop_map(|key| KeyRange::single(&key)),
            key().prop_map(|key| KeyRange::prefix(&key)),
        ]
    }

    proptest! {
        #[test]
        fn all_ranges_that_hold_a_key_are_found_and_no_other(
            steps in prop::collection::vec((any::<bool>(), range()), 0..400),
            keys in prop::collection::vec(key(), 20),
        ) {
            let (mut ranges, mut twin) = (Ranges::default(), Vec::new());
            for (number, (remove, range)) in steps.into_iter().enumerate() {
                if remove && !twin.is_empty() {
                    let (range, who) = twin.swap_remove(number % twin.len());
                    ranges.remove(&range, &who);
                } else {
                    ranges.insert(&range, number);
                    twin.push((range, number));
                }
            }
            for key in keys {
                let mut found = Vec::new();
                ranges.each(&key, &mut |who| found.push(*who));
                let holds = |(range, _): &&(KeyRange, usize)| range.contains(&key);
                let mut expected: Vec<_> = twin.iter().filter(holds).map(|(_, who)| *who).collect();
                found.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn what_is_gone_leaves_nothing_behind() {
        let mut ranges = Ranges::default();
        let range = |number: u32| KeyRange::prefix(&number.to_be_bytes().to_vec().into());
        for round in 0..3u32 {
            (0..1_000).for_each(|number| ranges.insert(&range(number), round));
            (0..1_000).for_each(|number| ranges.remove(&range(number), &round));
        }
        assert!(ranges.slots.is_empty() && ranges.keys.is_empty());
        assert!(ranges.tree.len() <= 2 * FRESH_MIN, "{}", ranges.tree.len());
    }
}
