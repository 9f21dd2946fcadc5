//! The map as a replicated state machine.
//!
//! Rows, in the group's own space, one for each part, so that a change writes what it changes and not
//! the whole map: `n` + node id, `t` + id of a node that has left, `g` + group id, `s` + first key of the
//! shard. The version and the last id that was allotted stand in the group's `meta`; an empty `meta` or a version of 0 means that there is no map yet.
//!
//! The life of a change: a proposer reads the map, decides, and proposes a [`Command`] with the version
//! that it read. The machine applies it if that version is still in force.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use quorate_types::machine::{Direction, StateError};
use quorate_types::{
    Committed, Digest, Digested, GroupId, Incarnation, MachineKind, NodeId, ReadError, StateBatch,
    StateMachine, StateReader,
};

use crate::map::{Group, Node, PlacementMap, Shard};
use crate::members::{MemberRefusal, Touched};
use crate::message::{
    AnswerRecord, Applied, Command, Conflict, Outcome, Query, Rejected, WholeMap, command, outcome,
    query,
};
use crate::record::{
    FORMAT, GoneRecord, GroupRecord, MapRecord, NodeRecord, RecordError, ShardRecord,
};

/// The kind of group 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlacementKind;

impl MachineKind for PlacementKind {
    fn name(&self) -> &str {
        Self::NAME
    }

    /// Who belongs to the cluster must be able to change, above all when disks are full.
    fn grows(&self, _command: &Bytes) -> bool {
        false
    }

    fn open(
        &self,
        _group: GroupId,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        Ok(Box::new(PlacementMachine { map: load(meta, state)?, digest: digest(meta)? }))
    }

    fn read(
        &self,
        _group: GroupId,
        query: &Bytes,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        let query = Query::decode(query.clone())
            .map_err(|error| ReadError::Malformed(error.to_string()))?;
        match query.body {
            Some(query::Body::WholeMap(WholeMap {})) => {
                let map = load(meta, state)?;
                let map = map.as_ref().map(MapRecord::from);
                Ok(AnswerRecord { map }.encode_to_vec().into())
            }
            None => Err(ReadError::Malformed("no question of a known kind".to_owned())),
        }
    }
}

/// A replica of the map: what the rows say, kept parsed.
#[derive(Debug)]
struct PlacementMachine {
    /// `None` until a bootstrap was applied.
    map: Option<PlacementMap>,
    /// None where the map was begun before there were digests.
    digest: Option<Digest>,
}

impl StateMachine for PlacementMachine {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let mut digest = self.digest.unwrap_or_default();
        let batch = &mut Digested::new(batch, &mut digest);
        let mut outcomes = Vec::with_capacity(committed.len());
        for one in committed {
            let body = self.apply_one(&one.command, batch);
            let outcome = Outcome { version: self.version(), body: Some(body) };
            outcomes.push(outcome.encode_to_vec().into());
        }
        self.digest = self.digest.map(|_| digest);
        Ok(outcomes)
    }

    fn digest(&self) -> Option<Digest> {
        self.digest
    }

    fn meta(&self) -> Bytes {
        let allotted = self.map.as_ref().map_or(0, |map| map.allotted().value());
        let digest = self.digest.map(|digest| digest.0);
        let meta = Meta { format: FORMAT, version: self.version(), allotted, digest };
        meta.encode_to_vec().into()
    }
}

impl PlacementMachine {
    fn apply_one(&mut self, command: &Bytes, batch: &mut dyn StateBatch) -> outcome::Body {
        let command = match Command::decode(command.clone()) {
            Ok(command) => command,
            Err(error) => return rejected(error),
        };
        let Some(body) = command.body else { return rejected("a command of an unknown kind") };
        if command.expected_version != self.version() {
            return outcome::Body::Conflict(Conflict {});
        }
        match (body, &mut self.map) {
            (command::Body::Bootstrap(record), None) => self.bootstrap(record, batch),
            // An expected version of 0 is that of no map, and any other that of a map.
            (command::Body::Bootstrap(_), Some(_)) => outcome::Body::Conflict(Conflict {}),
            (_, None) => rejected("there is no map yet"),
            (body, Some(map)) => match change(map, body) {
                Ok(touched) => {
                    put_touched(batch, map, &touched);
                    outcome::Body::Applied(Applied { node: touched.node.value() })
                }
                Err(refusal) => outcome::Body::Rejected(Rejected::from(&refusal)),
            },
        }
    }

    fn bootstrap(&mut self, record: MapRecord, batch: &mut dyn StateBatch) -> outcome::Body {
        let map = match PlacementMap::try_from(record) {
            Ok(map) if map.version() == PlacementMap::FIRST_VERSION => map,
            Ok(map) => return rejected(format!("a first map of version {}", map.version())),
            Err(error) => return rejected(error),
        };
        map.nodes().for_each(|node| put_node(batch, node));
        for (id, name) in map.all_gone() {
            let gone = GoneRecord { id: id.value(), name: name.to_owned() };
            batch.put(&row(GONE, id.value()), &gone.encode_to_vec());
        }
        for group in map.groups() {
            batch.put(&row(GROUP, group.id.value()), &GroupRecord::from(group).encode_to_vec());
        }
        for shard in map.shards() {
            batch.put(&shard_row(&shard.range.start), &ShardRecord::from(shard).encode_to_vec());
        }
        self.map = Some(map);
        outcome::Body::Applied(Applied { node: 0 })
    }

    fn version(&self) -> u64 {
        self.map.as_ref().map_or(0, PlacementMap::version)
    }
}

/// The group's `meta`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Meta {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    version: u64,
    #[prost(uint64, tag = "3")]
    allotted: u64,
    #[prost(fixed64, optional, tag = "4")]
    digest: Option<u64>,
}

const NODE: u8 = b'n';
const GONE: u8 = b't';
const GROUP: u8 = b'g';
const SHARD: u8 = b's';

/// A change of nodes or replicas. `body` is none that makes a first map.
fn change(map: &mut PlacementMap, body: command::Body) -> Result<Touched, MemberRefusal> {
    match body {
        command::Body::UpdateNode(record) => map.update_node(&Node::from(record)),
        command::Body::AddNode(add) => {
            map.add_node(&add.name, &add.peer_address, add.standing().into())
        }
        command::Body::JoinNode(join) => {
            map.join_node(&join.name, &join.peer_address, Incarnation(join.incarnation))
        }
        command::Body::PromoteNode(id) => map.promote_node(NodeId(id)),
        command::Body::RemoveNode(id) => map.remove_node(NodeId(id)),
        command::Body::ReplaceNode(replace) => {
            map.replace_node(NodeId(replace.id), &replace.peer_address)
        }
        command::Body::Report(record) => {
            let Group { id, replicas, reported_at } = Group::from(record);
            map.report(id, &replicas, reported_at)
        }
        command::Body::Bootstrap(_) => unreachable!("a bootstrap is told apart before"),
    }
}

/// Writes the rows of what a change has touched.
fn put_touched(batch: &mut dyn StateBatch, map: &PlacementMap, touched: &Touched) {
    for &id in &touched.nodes {
        match (map.node(id), map.gone(id)) {
            (Some(node), _) => put_node(batch, node),
            (None, Some(name)) => {
                let gone = GoneRecord { id: id.value(), name: name.to_owned() };
                batch.delete(&row(NODE, id.value()));
                if !quorate_types::defect!(TombstoneLost) {
                    batch.put(&row(GONE, id.value()), &gone.encode_to_vec());
                }
            }
            (None, None) => unreachable!("node {id} was touched and is nowhere"),
        }
    }
    if let Some(group) = touched.group.and_then(|id| map.group(id)) {
        batch.put(&row(GROUP, group.id.value()), &GroupRecord::from(group).encode_to_vec());
    }
}

fn rejected(why: impl ToString) -> outcome::Body {
    outcome::Body::Rejected(Rejected { reason: why.to_string(), ..Rejected::default() })
}

fn row(space: u8, id: u64) -> [u8; 9] {
    let mut row = [space; 9];
    row[1..].copy_from_slice(&id.to_be_bytes());
    row
}

fn shard_row(start: &[u8]) -> Vec<u8> {
    [&[SHARD], start].concat()
}

fn put_node(batch: &mut dyn StateBatch, node: &Node) {
    batch.put(&row(NODE, node.id.value()), &NodeRecord::from(node).encode_to_vec());
}

/// What all commands so far have written. A new machine begins one; one that began without has none.
fn digest(meta: &[u8]) -> Result<Option<Digest>, StateError> {
    if meta.is_empty() {
        return Ok(Some(Digest::default()));
    }
    let meta = Meta::decode(meta).map_err(|error| StateError(format!("placement: {error}")))?;
    Ok(meta.digest.map(Digest))
}

/// The map as the rows have it.
fn load(meta: &[u8], state: &dyn StateReader) -> Result<Option<PlacementMap>, StateError> {
    let damaged = |what: &str, why: &dyn ToString| {
        StateError(format!("placement: {what}: {}", why.to_string()))
    };
    let meta = Meta::decode(meta).map_err(|error| damaged("meta", &error))?;
    if meta.version == 0 {
        return Ok(None);
    }
    if meta.format > FORMAT {
        return Err(damaged("meta", &RecordError::Format(meta.format)));
    }
    let nodes = rows::<NodeRecord>(NODE, state)?.into_iter().map(Node::from);
    let groups = rows::<GroupRecord>(GROUP, state)?.into_iter().map(Group::from);
    let shards = rows::<ShardRecord>(SHARD, state)?.into_iter().map(Shard::from);
    let gone = rows::<GoneRecord>(GONE, state)?.into_iter();
    let gone = gone.map(|gone| (NodeId(gone.id), gone.name));
    let map = PlacementMap::new(meta.version, nodes, groups, shards)
        .and_then(|map| map.with_history(gone, NodeId(meta.allotted)));
    map.map(Some).map_err(|error| damaged("rows", &error))
}

fn rows<R: Message + Default>(space: u8, state: &dyn StateReader) -> Result<Vec<R>, StateError> {
    let mut records = Ok(Vec::new());
    state.scan(&[space], Some(&[space + 1]), Direction::Forward, &mut |key, value| match (
        R::decode(value),
        &mut records,
    ) {
        (Ok(record), Ok(records)) => {
            records.push(record);
            ControlFlow::Continue(())
        }
        (Err(error), _) => {
            let key = key.escape_ascii();
            records = Err(StateError(format!("placement: row \"{key}\": {error}")));
            ControlFlow::Break(())
        }
        (Ok(_), Err(_)) => ControlFlow::Break(()),
    })?;
    records
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
