//! The machine over rows in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_types::machine::Visit;
use quorate_types::{EntryId, Incarnation, LogIndex, Membership, NodeId, Term};

use super::*;
use crate::map::Standing;
use crate::members::MemberRefusal;
use crate::proposal::{Answer, Refused};

/// Rows in a sorted map; writes are seen at once.
#[derive(Clone, Default, PartialEq, Debug)]
struct Rows(BTreeMap<Vec<u8>, Vec<u8>>);

impl StateReader for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.0.get(key).map(|value| Bytes::copy_from_slice(value)))
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError> {
        let inside = |key: &[u8]| start <= key && end.is_none_or(|end| key < end);
        let mut rows: Vec<_> = self.0.iter().filter(|(key, _)| inside(key)).collect();
        if direction == Direction::Backward {
            rows.reverse();
        }
        for (key, value) in rows {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl StateBatch for Rows {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(key.to_vec(), value.to_vec());
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
}

fn parsed(outcome: &Bytes) -> Result<u64, Refused> {
    Answer::parse(outcome).map(|changed| changed.version)
}

fn add(version: u64, name: &str) -> Bytes {
    PlacementKind::add_node(version, name, &format!("{name}:2380"), Standing::Voter)
}

/// A replica: machine, rows, and the meta last stored with them.
struct Replica {
    machine: Box<dyn StateMachine>,
    rows: Rows,
    meta: Bytes,
    applied: u64,
}

impl Replica {
    fn new() -> Self {
        let rows = Rows::default();
        let machine = PlacementKind.open(GroupId::PLACEMENT, &[], &rows).unwrap();
        Self { machine, rows, meta: Bytes::new(), applied: 1 }
    }

    fn apply(&mut self, commands: &[Bytes]) -> Vec<Bytes> {
        let committed: Vec<_> = commands
            .iter()
            .map(|command| {
                self.applied += 1;
                let id = EntryId::new(Term(1), LogIndex(self.applied));
                Committed { id, command: command.clone() }
            })
            .collect();
        let outcomes = self.machine.apply(&committed, &mut self.rows).unwrap();
        assert_eq!(outcomes.len(), commands.len(), "one outcome for each command");
        self.meta = self.machine.meta();
        outcomes
    }

    /// The version that the command made.
    fn apply_one(&mut self, command: Bytes) -> Result<u64, Refused> {
        parsed(&self.apply(&[command])[0])
    }

    fn restart(&mut self) {
        self.machine = PlacementKind.open(GroupId::PLACEMENT, &self.meta, &self.rows).unwrap();
    }

    fn map(&self) -> Option<PlacementMap> {
        let answer = PlacementKind.read(
            GroupId::PLACEMENT,
            &PlacementKind::whole_map(),
            &self.meta,
            &self.rows,
        );
        Answer::map(&answer.unwrap()).unwrap()
    }
}

fn node(id: u64, name: &str) -> Node {
    Node {
        id: NodeId(id),
        name: name.to_owned(),
        client_address: "127.0.0.1:2379".to_owned(),
        peer_address: format!("127.0.0.1:{id}"),
        incarnation: Incarnation(id * 10),
        ..Node::default()
    }
}

fn first_map() -> PlacementMap {
    PlacementMap::first([node(1, "a"), node(2, "b")]).unwrap()
}

fn rejected_with(result: Result<u64, Refused>) -> String {
    match result {
        Err(Refused::Rejected { reason }) => reason,
        other => panic!("expected a rejection, got {other:?}"),
    }
}

#[test]
fn a_bootstrap_is_read_back_before_and_after_a_restart() {
    let mut replica = Replica::new();
    assert_eq!(replica.map(), None);
    assert_eq!(replica.apply_one(PlacementKind::bootstrap(&first_map())), Ok(1));
    assert_eq!(replica.map(), Some(first_map()));
    replica.restart();
    assert_eq!(replica.map(), Some(first_map()));
    assert_eq!(replica.apply_one(add(1, "c")), Ok(2));
}

#[test]
fn of_two_proposals_for_one_version_only_the_first_changes_the_map() {
    let mut replica = Replica::new();
    let other = PlacementMap::first([node(9, "z")]).unwrap();
    let outcomes =
        replica.apply(&[PlacementKind::bootstrap(&first_map()), PlacementKind::bootstrap(&other)]);
    assert_eq!(parsed(&outcomes[0]), Ok(1));
    assert_eq!(parsed(&outcomes[1]), Err(Refused::Conflict { version: 1 }));

    let outcomes = replica.apply(&[add(1, "c"), add(1, "d")]);
    assert_eq!(parsed(&outcomes[0]), Ok(2));
    assert_eq!(parsed(&outcomes[1]), Err(Refused::Conflict { version: 2 }));
    assert_eq!(replica.map().unwrap().nodes().count(), 3);
}

#[test]
fn a_nodes_addresses_and_labels_may_change_its_name_and_incarnation_may_not() {
    let mut replica = Replica::new();
    replica.apply_one(PlacementKind::bootstrap(&first_map())).unwrap();
    let mut moved = node(2, "b");
    moved.peer_address = "10.0.0.2:2380".to_owned();
    moved.labels.insert("zone".to_owned(), "eu-1a".to_owned());
    assert_eq!(replica.apply_one(PlacementKind::update_node(1, &moved)), Ok(2));
    assert_eq!(replica.map().unwrap().node(NodeId(2)), Some(&moved));

    let renamed = Node { name: "x".to_owned(), ..moved.clone() };
    let refused = replica.apply_one(PlacementKind::update_node(2, &renamed));
    assert_eq!(refused, Err(Refused::Member(MemberRefusal::NameTaken)));
    let wiped = Node { incarnation: Incarnation(1), ..moved };
    let refused = replica.apply_one(PlacementKind::update_node(2, &wiped));
    assert_eq!(refused, Err(Refused::Member(MemberRefusal::OtherDirectory)));
    let stranger = node(7, "g");
    let refused = replica.apply_one(PlacementKind::update_node(2, &stranger));
    assert_eq!(refused, Err(Refused::Member(MemberRefusal::NotFound)));
    assert_eq!(replica.map().unwrap().version(), 2);
}

#[test]
fn what_makes_no_sense_is_an_outcome_and_writes_nothing() {
    let mut replica = Replica::new();
    let reason = rejected_with(replica.apply_one(add(0, "a")));
    assert_eq!(reason, "there is no map yet");
    let early = add(4, "a");
    assert_eq!(replica.apply_one(early), Err(Refused::Conflict { version: 0 }));
    let reason = rejected_with(replica.apply_one(Bytes::from_static(b"\xff\xff\xff")));
    assert!(!reason.is_empty());
    let reason = rejected_with(replica.apply_one(Bytes::new()));
    assert_eq!(reason, "a command of an unknown kind");
    let mut record = MapRecord::from(&first_map());
    record.version = 3;
    let body = command::Body::Bootstrap(record);
    let command = Command { expected_version: 0, body: Some(body) }.encode_to_vec();
    let reason = rejected_with(replica.apply_one(command.into()));
    assert_eq!(reason, "a first map of version 3");
    let mut record = MapRecord::from(&first_map());
    record.shards.clear();
    let body = command::Body::Bootstrap(record);
    let command = Command { expected_version: 0, body: Some(body) }.encode_to_vec();
    let reason = rejected_with(replica.apply_one(command.into()));
    assert!(reason.contains("do not partition"), "{reason}");
    assert_eq!(replica.rows, Rows::default());

    replica.apply_one(PlacementKind::bootstrap(&first_map())).unwrap();
    let refused = replica.apply_one(add(1, "a"));
    assert_eq!(refused, Err(Refused::Member(MemberRefusal::NameTaken)));
}

#[test]
fn queries_that_are_none_are_malformed_and_damaged_rows_stop_the_node() {
    let mut replica = Replica::new();
    let read = |query: &'static [u8], replica: &Replica| {
        PlacementKind.read(
            GroupId::PLACEMENT,
            &Bytes::from_static(query),
            &replica.meta,
            &replica.rows,
        )
    };
    assert!(matches!(read(b"", &replica), Err(ReadError::Malformed(_))));
    assert!(matches!(read(b"\xff\xff", &replica), Err(ReadError::Malformed(_))));

    replica.apply_one(PlacementKind::bootstrap(&first_map())).unwrap();
    let shard = shard_row(b"");
    let value = replica.rows.0.remove(&shard).unwrap();
    assert!(PlacementKind.open(GroupId::PLACEMENT, &replica.meta, &replica.rows).is_err());
    replica.rows.put(&shard, b"\xff");
    assert!(PlacementKind.open(GroupId::PLACEMENT, &replica.meta, &replica.rows).is_err());
    replica.rows.put(&shard, &value);
    let newer = Meta { format: FORMAT + 1, version: 1, allotted: 0, digest: None }.encode_to_vec();
    assert!(PlacementKind.open(GroupId::PLACEMENT, &newer, &replica.rows).is_err());
}

/// Commands, most of which fit the map that the ones before them make.
fn commands() -> impl Strategy<Value = Vec<Bytes>> {
    let one = (0u8..14, 0u64..9, 1u64..6, 0u8..4).prop_map(|(what, version, id, letter)| {
        let name = char::from(b'a' + letter).to_string();
        let at = format!("{name}:2380");
        let replicas = Membership::of_voters((1..=id).map(NodeId));
        match what {
            0 => PlacementKind::bootstrap(&first_map()),
            1..=3 => add(version, &name),
            4 => PlacementKind::add_node(version, "", &at, Standing::Learner),
            7 => PlacementKind::join_node(version, &name, &at, Incarnation(id)),
            8 => PlacementKind::promote_node(version, NodeId(id)),
            9 | 10 => PlacementKind::remove_node(version, NodeId(id)),
            11 => PlacementKind::replace_node(version, NodeId(id), ""),
            12 => PlacementKind::report(version, GroupId(2), &replicas, LogIndex(version)),
            5 | 6 => {
                let peer_address = format!("10.0.0.{letter}:2380");
                PlacementKind::update_node(version, &Node { peer_address, ..node(id, &name) })
            }
            _ => Bytes::copy_from_slice(&[what, letter, id as u8]),
        }
    });
    proptest::collection::vec(one, 0..40)
        .prop_map(|rest| [vec![PlacementKind::bootstrap(&first_map())], rest].concat())
}

proptest! {
    #[test]
    fn replicas_agree_however_the_log_is_cut_into_batches_and_restarts(
        commands in commands(),
        cuts in proptest::collection::vec((1usize..5, any::<bool>()), 1..40),
    ) {
        let mut whole = Replica::new();
        let outcomes = whole.apply(&commands);

        let mut pieces = Replica::new();
        let mut rest = commands.as_slice();
        let mut seen = Vec::new();
        for (length, restart) in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*length).min(rest.len()));
            seen.extend(pieces.apply(now));
            rest = later;
            if *restart {
                pieces.restart();
            }
        }
        prop_assert_eq!(outcomes, seen);
        prop_assert_eq!(&whole.rows, &pieces.rows);
        prop_assert_eq!(&whole.meta, &pieces.meta);
        let map = whole.map().expect("the first command makes a map");
        prop_assert_eq!(Some(map), pieces.map());
    }
}
