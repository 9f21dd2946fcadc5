//! Half-open key ranges.

use bytes::Bytes;

/// The keys `k` with `start <= k < end`; without an end, all keys from `start` on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Bytes,
    /// The first key after the range; `None` when the range has no upper bound.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub const fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// The range of etcd's request fields: an empty `range_end` names the one key, a single zero byte
    /// means "from `key` on", anything else is the exclusive end. An end at or below the start is no
    /// error: the range is empty.
    #[must_use]
    pub fn from_request(key: &Bytes, range_end: &Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::single(key),
            [0] => Self { start: key.clone(), end: None },
            _ => Self { start: key.clone(), end: Some(range_end.clone()) },
        }
    }

    /// Exactly one key.
    #[must_use]
    pub fn single(key: &Bytes) -> Self {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        Self { start: key.clone(), end: Some(end.into()) }
    }

    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &Bytes) -> Self {
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Self { start: prefix.clone(), end: Some(end.into()) };
            }
        }
        Self { start: prefix.clone(), end: None }
    }

    /// True when no key lies in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// True when `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    /// True when every key of `other` lies in this range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty()
            || self.start <= other.start
                && match (&self.end, &other.end) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(end), Some(other_end)) => other_end <= end,
                }
    }

    /// True when some key lies in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let starts_before = |a: &Self, b: &Self| b.end.as_ref().is_none_or(|end| a.start < *end);
        !self.is_empty()
            && !other.is_empty()
            && starts_before(self, other)
            && starts_before(other, self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> impl Strategy<Value = KeyRange> {
        let key = || proptest::collection::vec(0u8..3, 0..3).prop_map(Bytes::from);
        (key(), proptest::option::of(key())).prop_map(|(start, end)| KeyRange { start, end })
    }

    /// All keys over three letters up to length 4: enough to separate any two ranges from `range()`.
    fn keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for length in 0..4 {
            let longer: Vec<_> = keys
                .iter()
                .filter(|key| key.len() == length)
                .flat_map(|key| (0..3).map(move |byte| [key.as_slice(), &[byte]].concat()))
                .collect();
            keys.extend(longer);
        }
        keys
    }

    proptest! {
        #[test]
        fn range_relations_equal_those_of_the_sets_of_keys(a in range(), b in range()) {
            let keys = keys();
            let both = keys.iter().any(|key| a.contains(key) && b.contains(key));
            prop_assert_eq!(a.overlaps(&b), both);
            if a.covers(&b) {
                prop_assert!(keys.iter().all(|key| !b.contains(key) || a.contains(key)));
            }
            prop_assert_eq!(a.is_empty(), !keys.iter().any(|key| a.contains(key)));
        }

        #[test]
        fn a_prefix_range_holds_exactly_the_keys_with_that_prefix(
            prefix in proptest::collection::vec(prop_oneof![0u8..2, 254u8..=255], 0..3),
            key in proptest::collection::vec(prop_oneof![0u8..2, 254u8..=255], 0..5),
        ) {
            let range = KeyRange::prefix(&Bytes::from(prefix.clone()));
            prop_assert_eq!(range.contains(&key), key.starts_with(&prefix));
        }
    }

    #[test]
    fn request_fields_read_as_etcd_reads_them() {
        let key = Bytes::from_static(b"k");
        let single = KeyRange::from_request(&key, &Bytes::new());
        assert!(single.contains(b"k") && !single.contains(b"k\0") && !single.contains(b"j"));
        let from = KeyRange::from_request(&key, &Bytes::from_static(b"\0"));
        assert!(from.contains(b"k") && from.contains(b"\xff\xff") && !from.contains(b"j"));
        assert!(KeyRange::from_request(&key, &Bytes::from_static(b"a")).is_empty());
    }
}
