//! Which keys a set of half-open ranges covers.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// A union of ranges, kept disjoint, so that asking takes logarithmic time however many were added.
#[derive(Default, Debug)]
pub(crate) struct Covered {
    /// Start to end; `None` has no end. No two overlap or touch.
    ranges: BTreeMap<Bytes, Option<Bytes>>,
}

impl Covered {
    /// Adds the keys `start <= key < end`; there may be none.
    pub(crate) fn add(&mut self, start: &Bytes, end: Option<&Bytes>) {
        if end.is_some_and(|end| end <= start) {
            return;
        }
        let (mut start, mut end) = (start.clone(), end.cloned());
        if let Some((before, reach)) = self.ranges.range::<Bytes, _>(..=&start).next_back()
            && reach.as_ref().is_none_or(|reach| *reach >= start)
        {
            end = later(end, reach.clone());
            start = before.clone();
        }
        let bounds =
            (Bound::Included(&start), end.as_ref().map_or(Bound::Unbounded, Bound::Included));
        let swallowed: Vec<_> = self
            .ranges
            .range::<Bytes, _>(bounds)
            .map(|(start, end)| (start.clone(), end.clone()))
            .collect();
        for (inner, reach) in swallowed {
            self.ranges.remove(&inner);
            end = later(end, reach);
        }
        self.ranges.insert(start, end);
    }

    /// True when `key` lies in one of the ranges.
    pub(crate) fn contains(&self, key: &Bytes) -> bool {
        self.ranges
            .range::<Bytes, _>(..=key)
            .next_back()
            .is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }

    /// Adds all of `other`.
    pub(crate) fn append(&mut self, other: &Self) {
        for (start, end) in &other.ranges {
            self.add(start, end.as_ref());
        }
    }
}

/// The later of two ends, where none is the latest.
fn later(a: Option<Bytes>, b: Option<Bytes>) -> Option<Bytes> {
    a.zip(b).map(|(a, b)| a.max(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(0u8..3, 0..3).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn a_union_covers_what_any_of_its_ranges_does(
            ranges in proptest::collection::vec((key(), proptest::option::of(key())), 0..6),
            asked in key(),
        ) {
            let mut covered = Covered::default();
            for (start, end) in &ranges {
                covered.add(start, end.as_ref());
            }
            let any = ranges.iter().any(|(start, end)| {
                *start <= asked && end.as_ref().is_none_or(|end| asked < *end)
            });
            prop_assert_eq!(covered.contains(&asked), any);
            let ends: Vec<_> = covered.ranges.iter().collect();
            for pair in ends.windows(2) {
                prop_assert!(pair[0].1.as_ref().is_some_and(|end| end < pair[1].0), "touching");
            }
        }
    }
}
