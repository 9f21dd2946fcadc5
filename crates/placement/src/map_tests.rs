//! The map against a slow twin, and every way in which parts may fail to make one.

use proptest::prelude::*;

use super::*;
use crate::record::{FORMAT, MapRecord, RecordError};

fn node(id: u64) -> Node {
    Node {
        id: NodeId(id),
        name: format!("n{id}"),
        client_address: format!("10.0.0.{id}:2379"),
        peer_address: format!("10.0.0.{id}:2380"),
        labels: BTreeMap::from([("region".to_owned(), "eu".to_owned())]),
        incarnation: Incarnation(id << 40),
        ..Node::default()
    }
}

fn group(id: u64, voters: &[u64]) -> Group {
    let replicas = Membership::of_voters(voters.iter().copied().map(NodeId));
    Group { id: GroupId(id), replicas, reported_at: LogIndex::ZERO }
}

fn shard(id: u64, start: &[u8], end: Option<&[u8]>, group: u64) -> Shard {
    let range =
        KeyRange { start: Bytes::copy_from_slice(start), end: end.map(Bytes::copy_from_slice) };
    Shard { id: ShardId(id), range, epoch: Epoch(1), group: GroupId(group) }
}

/// Shards that split the keyspace at `bounds`, each with a group of its own on node 1.
fn split_at(bounds: &BTreeSet<Vec<u8>>) -> PlacementMap {
    let starts = std::iter::once(Vec::new()).chain(bounds.iter().cloned());
    let ends = bounds.iter().cloned().map(Some).chain([None]);
    let ids = 1u64..;
    let shards: Vec<_> = starts
        .zip(ends)
        .zip(ids)
        .map(|((start, end), id)| shard(id, &start, end.as_deref(), id + 1))
        .collect();
    let groups = (1..=shards.len() as u64 + 1).map(|id| group(id, &[1]));
    PlacementMap::new(7, [node(1)], groups, shards).expect("a partition")
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![0u8..3, Just(255)], 0..4)
}

fn bounds() -> impl Strategy<Value = BTreeSet<Vec<u8>>> {
    proptest::collection::btree_set(
        proptest::collection::vec(prop_oneof![0u8..3, Just(255)], 1..4),
        0..6,
    )
}

proptest! {
    #[test]
    fn every_key_has_exactly_one_shard(bounds in bounds(), key in key()) {
        let map = split_at(&bounds);
        let holders: Vec<_> = map.shards().filter(|shard| shard.range.contains(&key)).collect();
        prop_assert_eq!(holders, vec![map.shard_of(&key)]);
    }

    #[test]
    fn the_shards_of_a_range_are_those_that_overlap_it(
        bounds in bounds(),
        start in key(),
        end in proptest::option::of(key()),
    ) {
        let map = split_at(&bounds);
        let range = KeyRange { start: start.into(), end: end.map(Bytes::from) };
        let slow: Vec<_> = map.shards().filter(|shard| shard.range.overlaps(&range)).collect();
        prop_assert_eq!(map.shards_in(&range).collect::<Vec<_>>(), slow);
    }

    #[test]
    fn a_map_reads_back_as_it_was_written(bounds in bounds()) {
        let map = split_at(&bounds);
        prop_assert_eq!(PlacementMap::decode(map.encode()), Ok(map));
    }

    #[test]
    fn a_moved_or_dropped_bound_is_never_a_map(
        bounds in bounds(),
        at in any::<prop::sample::Index>(),
        key in proptest::option::of(key()),
        drop in any::<bool>(),
    ) {
        let map = split_at(&bounds);
        let mut record = MapRecord::from(&map);
        let at = at.index(record.shards.len());
        if drop {
            record.shards.remove(at);
        } else {
            let key = key.map(Bytes::from);
            prop_assume!(record.shards[at].end != key);
            record.shards[at].end = key;
        }
        prop_assert!(PlacementMap::try_from(record).is_err());
    }

    #[test]
    fn random_and_damaged_bytes_never_panic(
        random in proptest::collection::vec(any::<u8>(), 0..200),
        bounds in bounds(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let _ = PlacementMap::decode(random.as_slice());
        let mut bytes = split_at(&bounds).encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = PlacementMap::decode(bytes.as_slice());
    }
}

#[test]
fn a_fresh_cluster_has_one_row_from_the_whole_keyspace_to_group_2() {
    let map = PlacementMap::first([node(3), node(1), node(2)]).unwrap();
    assert_eq!(map.version(), 1);
    assert_eq!(map.shards().collect::<Vec<_>>(), [&shard(1, b"", None, 2)]);
    for id in [GroupId::PLACEMENT, GroupId::FIRST_DATA] {
        assert_eq!(map.group(id), Some(&group(id.value(), &[1, 2, 3])));
    }
    assert_eq!(map.shard_of(b"").group, GroupId::FIRST_DATA);
    assert_eq!(map.shard_of(b"\xff\xff").group, GroupId::FIRST_DATA);
}

#[test]
fn the_stored_form_of_the_first_map_stays() {
    let bare = Node { labels: BTreeMap::new(), incarnation: Incarnation(5), ..node(1) };
    let golden: &[u8] = b"\x08\x01\x10\x01\
        \x1a\x2d\x08\x01\x12\x02n1\x1a\x0d10.0.0.1:2379\x22\x0d10.0.0.1:2380\x31\x05\0\0\0\0\0\0\0\
        \x22\x05\x08\x01\x12\x01\x01\x22\x05\x08\x02\x12\x01\x01\
        \x2a\x06\x08\x01\x20\x01\x28\x02";
    let map = PlacementMap::first([bare]).unwrap();
    assert_eq!(map.encode().escape_ascii().to_string(), golden.escape_ascii().to_string());
    assert_eq!(PlacementMap::decode(golden), Ok(map));
}

#[test]
fn formats_of_a_newer_build_are_refused_and_unknown_fields_ignored() {
    let map = PlacementMap::first([node(1)]).unwrap();
    let newer = MapRecord { format: FORMAT + 1, ..MapRecord::from(&map) };
    assert_eq!(PlacementMap::try_from(newer), Err(RecordError::Format(FORMAT + 1)));
    let none = MapRecord { format: 0, ..MapRecord::from(&map) };
    assert_eq!(PlacementMap::try_from(none), Err(RecordError::Format(0)));
    let mut bytes = map.encode().to_vec();
    // Field 2000, a varint.
    bytes.extend_from_slice(&[0x80, 0x7d, 0x01]);
    assert_eq!(PlacementMap::decode(bytes.as_slice()), Ok(map));
}

#[test]
fn parts_that_break_an_invariant_are_refused_with_the_reason() {
    let whole = || shard(1, b"", None, 2);
    let groups = || vec![group(1, &[1]), group(2, &[1])];
    let both = Group {
        id: GroupId(2),
        replicas: Membership {
            learners: BTreeSet::from([NodeId(1)]),
            ..Membership::of_voters([NodeId(1)])
        },
        reported_at: LogIndex::ZERO,
    };
    let nameless = Node { name: String::new(), ..node(1) };
    let namesake = Node { name: "n1".to_owned(), ..node(2) };
    let no_epoch = Shard { epoch: Epoch::ZERO, ..whole() };
    let table = [
        (0, vec![node(1)], groups(), vec![whole()], "a map's version starts at 1"),
        (1, vec![node(0)], groups(), vec![whole()], "node 0 lacks an id, a name or a peer address"),
        (
            1,
            vec![nameless],
            groups(),
            vec![whole()],
            "node 1 lacks an id, a name or a peer address",
        ),
        (1, vec![node(1), node(1)], groups(), vec![whole()], "two nodes have the id 1"),
        (1, vec![node(1), namesake], groups(), vec![whole()], "two nodes have the name \"n1\""),
        (
            1,
            vec![node(1)],
            vec![group(2, &[1])],
            vec![whole()],
            "group 1, the placement group, is missing",
        ),
        (
            1,
            vec![node(1)],
            vec![group(1, &[1]), group(1, &[1])],
            vec![whole()],
            "two groups have the id 1",
        ),
        (
            1,
            vec![node(1)],
            vec![group(1, &[1]), group(2, &[])],
            vec![whole()],
            "group 2 has no voters",
        ),
        (
            1,
            vec![node(1)],
            vec![group(1, &[1]), both],
            vec![whole()],
            "node 1 is both voter and learner of group 2",
        ),
        (
            1,
            vec![node(1)],
            vec![group(1, &[1]), group(2, &[1, 9])],
            vec![whole()],
            "group 2 has a replica on node 9, which is not registered",
        ),
        (1, vec![node(1)], groups(), vec![no_epoch], "shard 1 has no epoch"),
        (
            1,
            vec![node(1)],
            groups(),
            vec![shard(1, b"", None, 5)],
            "shard 1 belongs to group 5, which does not exist",
        ),
        (
            1,
            vec![node(1)],
            groups(),
            vec![shard(1, b"", None, 1)],
            "shard 1 cannot belong to group 1, which owns something else",
        ),
        (
            1,
            vec![node(1)],
            groups(),
            vec![shard(1, b"", Some(b"m"), 2), shard(2, b"m", None, 2)],
            "shard 2 cannot belong to group 2, which owns something else",
        ),
        (
            1,
            vec![node(1)],
            vec![group(1, &[1]), group(2, &[1]), group(3, &[1])],
            vec![shard(1, b"", Some(b"m"), 2), shard(1, b"m", None, 3)],
            "two shards have the id 1",
        ),
        (
            1,
            vec![node(1)],
            groups(),
            vec![],
            "the shards do not partition the keyspace: nothing owns the keys from \"\" on",
        ),
        (
            1,
            vec![node(1)],
            groups(),
            vec![shard(1, b"a", None, 2)],
            "the shards do not partition the keyspace: \"\" is the end of one and \"a\" the start of the next",
        ),
        (
            1,
            vec![node(1)],
            groups(),
            vec![shard(1, b"", Some(b""), 2)],
            "the shards do not partition the keyspace: the one at \"\" is empty",
        ),
        (
            1,
            vec![node(1)],
            vec![group(1, &[1]), group(2, &[1]), group(3, &[1])],
            vec![shard(1, b"", None, 2), shard(2, b"m", None, 3)],
            "the shards do not partition the keyspace: one without an end is not the last",
        ),
        (
            1,
            vec![node(1)],
            vec![group(1, &[1]), group(2, &[1]), group(3, &[1])],
            vec![shard(1, b"", None, 2), shard(2, b"", None, 3)],
            "the shards do not partition the keyspace: two start at \"\"",
        ),
    ];
    for (version, nodes, groups, shards, expected) in table {
        let error = PlacementMap::new(version, nodes, groups, shards).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}
