//! Permissions merged into intervals: whether a whole range is allowed is one look-up.

use bytes::Bytes;

use super::message::{Permission, PermissionKind};
use crate::KeyRange;

/// What somebody may read and write, whatever roles it comes from.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Grants {
    read: Intervals,
    write: Intervals,
}

impl Grants {
    /// What the permissions allow together. An inverted range allows nothing.
    pub fn of<'p>(permissions: impl IntoIterator<Item = &'p Permission>) -> Self {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let range = KeyRange::from_request(&permission.key, &permission.range_end);
            match PermissionKind::try_from(permission.kind) {
                Ok(PermissionKind::Read) => read.push(range),
                Ok(PermissionKind::Write) => write.push(range),
                Ok(PermissionKind::ReadWrite) => {
                    read.push(range.clone());
                    write.push(range);
                }
                // A kind from a later version is not guessed at.
                Err(_) => {}
            }
        }
        Self { read: Intervals::of(read), write: Intervals::of(write) }
    }

    /// True when all of `range` may be read.
    #[must_use]
    pub fn may_read(&self, range: &KeyRange) -> bool {
        self.read.covers(range)
    }

    /// True when all of `range` may be written.
    #[must_use]
    pub fn may_write(&self, range: &KeyRange) -> bool {
        self.write.covers(range)
    }
}

/// A union of ranges, in ascending order; no two overlap or touch, none is empty.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Intervals(Vec<KeyRange>);

impl Intervals {
    fn of(mut ranges: Vec<KeyRange>) -> Self {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<KeyRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.end.as_ref().is_none_or(|end| range.start <= *end) => {
                    last.end = later(last.end.take(), range.end);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// True when every key of `range` lies in the union. A range without keys needs its first one: else
    /// an inverted range would be allowed to everybody, and whoever runs it may read it otherwise.
    fn covers(&self, range: &KeyRange) -> bool {
        let range = match range.is_empty() {
            true => &KeyRange::single(&range.start),
            false => range,
        };
        let after = self.0.partition_point(|interval| interval.start <= range.start);
        after.checked_sub(1).is_some_and(|at| self.0[at].covers(range))
    }
}

/// The later of two ends, where none is the latest.
fn later(a: Option<Bytes>, b: Option<Bytes>) -> Option<Bytes> {
    a.zip(b).map(|(a, b)| a.max(b))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        vec(0u8..3, 0..3).prop_map(Bytes::from)
    }

    fn permission() -> impl Strategy<Value = Permission> {
        (0i32..4, key(), key()).prop_map(|(kind, key, range_end)| Permission {
            kind,
            key,
            range_end,
        })
    }

    /// All keys over three letters up to length 4: enough to separate any two ranges from [`key`].
    fn keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for length in 0..4 {
            let longer: Vec<_> = keys
                .iter()
                .filter(|key: &&Vec<u8>| key.len() == length)
                .flat_map(|key| (0..3).map(move |byte| [key.as_slice(), &[byte]].concat()))
                .collect();
            keys.extend(longer);
        }
        keys
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The slow twin asks of each key whether any single permission names it.
        #[test]
        fn a_range_is_allowed_exactly_when_each_of_its_keys_is(
            permissions in vec(permission(), 0..6), start in key(), end in key(),
        ) {
            let grants = Grants::of(&permissions);
            let asked = KeyRange::from_request(&start, &end);
            let allows = |key: &[u8], kind: PermissionKind| permissions.iter().any(|permission| {
                let range = KeyRange::from_request(&permission.key, &permission.range_end);
                (permission.kind == kind as i32 || permission.kind == PermissionKind::ReadWrite as i32)
                    && range.contains(key)
            });
            let each = |kind| match asked.is_empty() {
                true => allows(&start, kind),
                false => keys().iter().filter(|key| asked.contains(key)).all(|key| allows(key, kind)),
            };
            // Beyond the sampled keys lies what only an open end covers.
            let open = |kind| asked.end.is_some() || permissions.iter().any(|permission| {
                (permission.kind == kind as i32 || permission.kind == PermissionKind::ReadWrite as i32)
                    && permission.range_end[..] == [0]
            });
            prop_assert_eq!(
                grants.may_read(&asked), each(PermissionKind::Read) && open(PermissionKind::Read)
            );
            prop_assert_eq!(
                grants.may_write(&asked), each(PermissionKind::Write) && open(PermissionKind::Write)
            );
        }
    }

    #[test]
    fn a_right_on_one_key_is_no_right_on_what_follows_it() {
        let key = Bytes::from_static(b"a");
        let one = Permission { kind: 0, key: key.clone(), range_end: Bytes::new() };
        let grants = Grants::of([&one]);
        assert!(grants.may_read(&KeyRange::single(&key)));
        for end in [&b"\0"[..], b"b", b"a\0\0", b"\xff"] {
            let range = KeyRange::from_request(&key, &Bytes::from_static(end));
            assert!(!grants.may_read(&range), "{range:?}");
        }
        assert!(!grants.may_write(&KeyRange::single(&key)));
        let inverted = KeyRange::from_request(&Bytes::from_static(b"b"), &key);
        assert!(!grants.may_read(&inverted));
    }
}
