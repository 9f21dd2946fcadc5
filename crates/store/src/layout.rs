//! Which rows there are, and how their keys sort.
//!
//! ```text
//! C | stored key                                -> create, mod, version, lease of a key that exists now
//! E | revision | sub                            -> what was done to which key (catch-up, sweep)
//! K | escaped stored key | ~revision | ~sub     -> the value, or a tombstone
//! M | group                                     -> the group's own row
//! U | group | ...                               -> rows of a machine that has a space of its own
//!
//! stored key = space | key        space 1: the system's, space 2: the clients'
//!
//! C | 1 | l | r | lease                         -> what is kept of a lease
//! C | 1 | l | k | lease | key                   -> nothing: the key is attached to the lease
//! C | 1 | a | ...                               -> users and roles
//! C | 1 | m | a | ..., C | 1 | m | d            -> alarms; a downgrade
//! ```
//!
//! Shards are ranges of stored keys.
//!
//! Numbers are big endian, and `~` is the complement, so that the newest of a key comes first. A key of
//! `K` is escaped (`00` -> `00 ff`) and ended with `00 01`: no key is a prefix of another then, keys keep
//! their order whatever bytes they hold, and the revision can never be taken for a part of the key.
//!
//! `sub` numbers the writes of one revision. History has it too because one transaction may write a key
//! twice (etcd lets a nested one delete what was put, and a delete "from key on" overlap any put), and
//! both are events.

use bytes::{BufMut, Bytes, BytesMut};
use quorate_types::{GroupId, KeyRange};

/// Begins rows about keys that exist now.
pub const TAG_CURRENT: u8 = b'C';
/// Begins rows about what a revision did.
pub const TAG_EVENT: u8 = b'E';
/// Begins rows of values by key and revision.
pub const TAG_HISTORY: u8 = b'K';
/// Begins rows of groups.
pub const TAG_GROUP: u8 = b'M';
/// Begins rows of machines with a space of their own.
pub const TAG_OWN: u8 = b'U';

/// The space of keys that only the system names.
pub const SPACE_SYSTEM: u8 = 1;
/// The space of the clients' keys.
pub const SPACE_USER: u8 = 2;

const _: () =
    assert!(TAG_CURRENT < TAG_EVENT && TAG_EVENT < TAG_HISTORY, "scopes rely on the order");
const _: () = assert!(TAG_HISTORY < TAG_GROUP && TAG_GROUP < TAG_OWN, "scopes rely on the order");

const ESCAPED: u8 = 0xff;
const TERMINATOR: u8 = 0x01;
const STAMP_BYTES: usize = 12;

/// The position of one write: the `sub`-th of a revision. Ordered as the writes are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Stamp {
    /// The revision; positive.
    pub revision: i64,
    /// Counts the writes of the revision from 0.
    pub sub: u32,
}

impl Stamp {
    /// The last position that `revision` can have.
    #[must_use]
    pub const fn last_of(revision: i64) -> Self {
        Self { revision, sub: u32::MAX }
    }

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.sub.checked_add(1) {
            Some(sub) => Self { revision: self.revision, sub },
            None => Self { revision: self.revision + 1, sub: 0 },
        }
    }
}

/// The row of a group.
#[must_use]
pub fn group(group: GroupId) -> [u8; 9] {
    tagged(TAG_GROUP, group)
}

/// What every row of a machine with a space of its own begins with.
#[must_use]
pub fn own_prefix(group: GroupId) -> [u8; 9] {
    tagged(TAG_OWN, group)
}

/// The end of the rows that begin with `prefix`, the tag and the group's number: the next group's prefix,
/// or the next tag after the last group.
#[must_use]
pub fn after(prefix: &[u8; 9]) -> Bytes {
    let mut end = prefix.to_vec();
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// The `C` and the `K` rows of a range of stored keys, each `start <= row < end`.
#[must_use]
pub fn stored_ranges(range: &KeyRange) -> [(Vec<u8>, Vec<u8>); 2] {
    let rows = |tag: u8, row: &dyn Fn(&[u8]) -> Vec<u8>| {
        let end = range.end.as_ref().map_or_else(|| vec![tag + 1], |end| row(end));
        (row(&range.start), end)
    };
    [
        rows(TAG_CURRENT, &|stored| [&[TAG_CURRENT], stored].concat()),
        rows(TAG_HISTORY, &|stored| escaped(&[TAG_HISTORY], stored, 0)),
    ]
}

/// The `C` row of a user's key.
#[must_use]
pub fn current(key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(key.len() + 2);
    row.extend_from_slice(&[TAG_CURRENT, SPACE_USER]);
    row.extend_from_slice(key);
    row
}

/// The `C` rows of a range of users' keys: `start <= row < end`.
#[must_use]
pub fn current_range(range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let end =
        range.end.as_ref().map_or_else(|| vec![TAG_CURRENT, SPACE_USER + 1], |end| current(end));
    (current(&range.start), end)
}

/// The user's key of a `C` row; `None` when it is not such a row.
#[must_use]
pub fn key_of_current(row: &[u8]) -> Option<&[u8]> {
    row.strip_prefix(&[TAG_CURRENT, SPACE_USER])
}

/// The beginning of the `K` rows of users' keys.
const HISTORY: [u8; 2] = [TAG_HISTORY, SPACE_USER];
/// The beginning of the rows of users and roles.
pub const AUTH: [u8; 3] = [TAG_CURRENT, SPACE_SYSTEM, b'a'];
/// The beginning of the rows of alarms and downgrades.
pub const CONDITIONS: [u8; 3] = [TAG_CURRENT, SPACE_SYSTEM, b'm'];
/// The beginning of the rows of alarms.
pub const ALARMS: [u8; 4] = [TAG_CURRENT, SPACE_SYSTEM, b'm', b'a'];
/// The row of a downgrade.
pub const DOWNGRADE: [u8; 4] = [TAG_CURRENT, SPACE_SYSTEM, b'm', b'd'];
/// The beginning of the rows of leases.
const LEASES: [u8; 4] = [TAG_CURRENT, SPACE_SYSTEM, b'l', b'r'];
/// The beginning of the rows of the keys that are attached to leases.
const ATTACHED: [u8; 4] = [TAG_CURRENT, SPACE_SYSTEM, b'l', b'k'];

/// The row of a lease.
#[must_use]
pub fn lease(id: i64) -> [u8; 12] {
    of_lease(LEASES, id)
}

/// The rows of all leases: `start <= row < end`.
#[must_use]
pub const fn leases() -> ([u8; 4], [u8; 4]) {
    let [tag, space, leases, record] = LEASES;
    (LEASES, [tag, space, leases, record + 1])
}

/// The id of a lease's row; `None` when it is not such a row.
#[must_use]
pub fn id_of_lease(row: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(row.strip_prefix(&LEASES)?.try_into().ok()?))
}

/// The row that says that `key` is attached to a lease.
#[must_use]
pub fn attached(id: i64, key: &[u8]) -> Vec<u8> {
    [&of_lease(ATTACHED, id)[..], key].concat()
}

/// The rows of the keys that are attached to a lease: `start <= row < end`; what follows `start` is the key.
#[must_use]
pub fn attached_range(id: i64) -> ([u8; 12], Vec<u8>) {
    let start = of_lease(ATTACHED, id);
    let end = match (id as u64).checked_add(1) {
        Some(next) => of_lease(ATTACHED, next as i64).to_vec(),
        None => vec![TAG_CURRENT, SPACE_SYSTEM, b'l', b'k' + 1],
    };
    (start, end)
}

/// Where the rows of attached keys begin, and those of leases end after them.
#[must_use]
pub const fn attached_start() -> [u8; 4] {
    ATTACHED
}

/// The lease and the key of a row that says that they belong together; `None` when it is not such a row.
#[must_use]
pub fn parse_attached(row: &[u8]) -> Option<(i64, &[u8])> {
    let (id, key) = row.strip_prefix(&ATTACHED)?.split_first_chunk()?;
    Some((i64::from_be_bytes(*id), key))
}

fn of_lease(prefix: [u8; 4], id: i64) -> [u8; 12] {
    let mut row = [0; 12];
    row[..4].copy_from_slice(&prefix);
    row[4..].copy_from_slice(&id.to_be_bytes());
    row
}

/// The `K` row of one write to a user's key; also where a scan for what stood there at `stamp` begins.
#[must_use]
pub fn history(key: &[u8], stamp: Stamp) -> Vec<u8> {
    let mut row = escaped(&HISTORY, key, STAMP_BYTES + 2);
    row.extend_from_slice(&[0, TERMINATOR]);
    row.extend_from_slice(&(!(stamp.revision as u64)).to_be_bytes());
    row.extend_from_slice(&(!stamp.sub).to_be_bytes());
    row
}

/// The end of the `K` rows of one user's key: above all of them, below those of any larger key.
#[must_use]
pub fn history_end(key: &[u8]) -> Vec<u8> {
    let mut row = escaped(&HISTORY, key, 2);
    row.extend_from_slice(&[0, TERMINATOR + 1]);
    row
}

/// The `K` rows of a range of users' keys: `start <= row < end`.
#[must_use]
pub fn history_range(range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let row = |key: &[u8]| escaped(&HISTORY, key, 0);
    let end = range.end.as_ref().map_or_else(|| vec![TAG_HISTORY, SPACE_USER + 1], |end| row(end));
    (row(&range.start), end)
}

/// The user's key and the position of a `K` row; `None` when it is not such a row.
#[must_use]
pub fn parse_history(row: &[u8]) -> Option<(Bytes, Stamp)> {
    let row = row.strip_prefix(&HISTORY)?;
    let (key, stamp) = row.split_at_checked(row.len().checked_sub(STAMP_BYTES)?)?;
    let mut rest = key.strip_suffix(&[0, TERMINATOR])?;
    let mut key = BytesMut::with_capacity(rest.len());
    while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
        if rest.get(zero + 1) != Some(&ESCAPED) {
            return None;
        }
        key.put_slice(&rest[..=zero]);
        rest = &rest[zero + 2..];
    }
    key.put_slice(rest);
    let (revision, sub) = stamp.split_first_chunk()?;
    let revision = i64::try_from(!u64::from_be_bytes(*revision)).ok()?;
    Some((key.freeze(), Stamp { revision, sub: !u32::from_be_bytes(sub.try_into().ok()?) }))
}

/// The `E` row of one write.
#[must_use]
pub fn event(stamp: Stamp) -> [u8; 13] {
    let mut row = [0; 13];
    row[0] = TAG_EVENT;
    row[1..9].copy_from_slice(&stamp.revision.to_be_bytes());
    row[9..].copy_from_slice(&stamp.sub.to_be_bytes());
    row
}

/// The position of an `E` row; `None` when it is not such a row.
#[must_use]
pub fn parse_event(row: &[u8]) -> Option<Stamp> {
    let (revision, sub) = row.strip_prefix(&[TAG_EVENT])?.split_first_chunk()?;
    let revision = i64::from_be_bytes(*revision);
    Some(Stamp { revision, sub: u32::from_be_bytes(sub.try_into().ok()?) })
}

fn tagged(tag: u8, group: GroupId) -> [u8; 9] {
    let mut row = [tag; 9];
    row[1..].copy_from_slice(&group.value().to_be_bytes());
    row
}

/// `prefix` and the escaped key, with room for `more` bytes.
fn escaped(prefix: &[u8], key: &[u8], more: usize) -> Vec<u8> {
    let mut row = Vec::with_capacity(prefix.len() + key.len() + more);
    row.extend_from_slice(prefix);
    let mut rest = key;
    while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
        row.extend_from_slice(&rest[..=zero]);
        row.push(ESCAPED);
        rest = &rest[zero + 1..];
    }
    row.extend_from_slice(rest);
    row
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Keys full of the bytes that escaping is about.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(0xfe), Just(0xff), Just(b'a')], 0..6)
    }

    fn stamp() -> impl Strategy<Value = Stamp> {
        let revision = prop_oneof![1i64..4, Just((1 << 53) - 1), Just(0xff00_ff00)];
        let sub = prop_oneof![0u32..3, Just(u32::MAX), Just(0xff00)];
        (revision, sub).prop_map(|(revision, sub)| Stamp { revision, sub })
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), proptest::option::of(key()))
            .prop_map(|(start, end)| KeyRange { start: start.into(), end: end.map(Bytes::from) })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn history_rows_sort_by_key_and_then_newest_first(
            a in key(), b in key(), at_a in stamp(), at_b in stamp(),
        ) {
            let rows = history(&a, at_a).cmp(&history(&b, at_b));
            prop_assert_eq!(rows, a.cmp(&b).then(at_b.cmp(&at_a)));
        }

        #[test]
        fn a_history_row_reads_back_as_it_was_written(key in key(), at in stamp()) {
            prop_assert_eq!(parse_history(&history(&key, at)), Some((Bytes::from(key), at)));
        }

        #[test]
        fn row_ranges_hold_exactly_the_rows_of_the_keys(range in range(), key in key(), at in stamp()) {
            let inside = range.contains(&key);
            let (start, end) = history_range(&range);
            let row = history(&key, at);
            prop_assert_eq!(start <= row && row < end, inside);
            let (start, end) = current_range(&range);
            let row = current(&key);
            prop_assert_eq!(start <= row && row < end, inside);
        }

        #[test]
        fn ranges_of_stored_keys_hold_exactly_their_rows(range in range(), key in key(), at in stamp()) {
            let inside = range.contains(&[&[SPACE_USER], &key[..]].concat());
            let rows = [current(&key), history(&key, at)];
            for ((start, end), row) in stored_ranges(&range).into_iter().zip(rows) {
                prop_assert_eq!(start <= row && row < end, inside);
            }
        }

        #[test]
        fn the_end_of_a_keys_history_parts_it_from_every_other_key(
            key in key(), other in key(), at in stamp(),
        ) {
            prop_assert_eq!(history(&other, at) < history_end(&key), other <= key);
        }

        #[test]
        fn events_sort_by_revision_and_then_by_sub(a in stamp(), b in stamp()) {
            prop_assert_eq!(event(a).cmp(&event(b)), a.cmp(&b));
            prop_assert_eq!(parse_event(&event(a)), Some(a));
        }

        #[test]
        fn foreign_rows_never_panic(row in vec(any::<u8>(), 0..40), tag in 0u8..3) {
            let tag = [TAG_HISTORY, TAG_EVENT, TAG_CURRENT][usize::from(tag)];
            let row = [&[tag, SPACE_USER][..], &row].concat();
            let _ = (parse_history(&row), parse_event(&row), key_of_current(&row));
        }
    }

    #[test]
    fn the_keys_of_a_lease_lie_in_its_own_range_and_in_no_others() {
        let ids = [1, 2, 0xff, 0x100, i64::MAX, i64::MIN, -1];
        for (id, other) in ids.into_iter().flat_map(|id| ids.map(|other| (id, other))) {
            for key in [&b""[..], b"k", &[0xff; 9]] {
                let row = attached(other, key);
                let (start, end) = attached_range(id);
                assert_eq!(start[..] <= row[..] && row < end, id == other, "{id} {other}");
                assert_eq!(parse_attached(&row), Some((other, key)));
            }
            assert_eq!(id_of_lease(&lease(id)), Some(id));
            let (start, end) = leases();
            assert!(start[..] <= lease(id)[..] && lease(id)[..] < end[..]);
        }
    }

    #[test]
    fn the_systems_rows_lie_in_no_range_of_the_clients() {
        let (start, end) = current_range(&KeyRange::all());
        let system = [TAG_CURRENT, SPACE_SYSTEM, 0xff, 0xff];
        let after = [TAG_CURRENT, SPACE_USER + 1];
        assert!(system[..] < start[..] && after[..] >= end[..]);
    }
}
