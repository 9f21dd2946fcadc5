//! The map as a replicated state machine.
//!
//! Rows, in the group's own space, one for each part, so that a change writes what it changes and not
//! the whole map: `n` + node id, `g` + group id, `s` + first key of the shard. The version stands in the
//! group's `meta`; an empty `meta` or a version of 0 means that there is no map yet.
//!
//! The life of a change: a proposer reads the map, decides, and proposes a [`Command`] with the version
//! that it read ([`PlacementKind::bootstrap`] and its siblings make one). The machine applies it if that
//! version is still in force; the proposer reads the answer with [`Answer::parse`].

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use quorate_types::machine::{Direction, StateError};
use quorate_types::{
    Committed, GroupId, MachineKind, ReadError, StateBatch, StateMachine, StateReader,
};

use crate::map::{Group, Node, PlacementMap, Shard};
use crate::record::{
    AnswerRecord, Applied, Command, Conflict, FORMAT, GroupRecord, MapRecord, NodeRecord, Outcome,
    Query, RecordError, Rejected, ShardRecord, WholeMap, command, outcome, query,
};

/// The kind of group 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlacementKind;

/// Why a change of the map did not happen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The map has moved on: read it and decide again.
    #[error("the placement map is at version {version} now")]
    Conflict {
        /// The version in force; 0 while there is none.
        version: u64,
    },
    /// The change makes no sense for any map.
    #[error("the placement map cannot change so: {reason}")]
    Rejected {
        /// Why.
        reason: String,
    },
    /// The machine answered what this build does not understand.
    #[error("unreadable answer of the placement machine: {0}")]
    Unreadable(String),
}

/// Reads what the machine answers.
#[derive(Clone, Copy, Debug)]
pub struct Answer;

impl Answer {
    /// Reads the outcome of a command: the version of the map that it made.
    ///
    /// # Errors
    /// When the command changed nothing.
    pub fn parse(outcome: &Bytes) -> Result<u64, Refused> {
        let outcome = Outcome::decode(outcome.clone())
            .map_err(|error| Refused::Unreadable(error.to_string()))?;
        match outcome.body {
            Some(outcome::Body::Applied(Applied {})) => Ok(outcome.version),
            Some(outcome::Body::Conflict(Conflict {})) => {
                Err(Refused::Conflict { version: outcome.version })
            }
            Some(outcome::Body::Rejected(Rejected { reason })) => Err(Refused::Rejected { reason }),
            None => Err(Refused::Unreadable("an outcome of an unknown kind".to_owned())),
        }
    }

    /// Reads the answer to [`PlacementKind::whole_map`]; `None` before the first map.
    ///
    /// # Errors
    /// When the bytes are not an answer, or not of a map.
    pub fn map(answer: &Bytes) -> Result<Option<PlacementMap>, RecordError> {
        let answer = AnswerRecord::decode(answer.clone())?;
        answer.map.map(PlacementMap::try_from).transpose()
    }
}

impl PlacementKind {
    /// The persisted name of the kind.
    pub const NAME: &'static str = "placement";

    /// A command that makes `map` the cluster's first; refused as a conflict if there is one.
    #[must_use]
    pub fn bootstrap(map: &PlacementMap) -> Bytes {
        encode(0, command::Body::Bootstrap(MapRecord::from(map)))
    }

    /// A command that adds `node` to the map of version `expected_version`.
    #[must_use]
    pub fn register_node(expected_version: u64, node: &Node) -> Bytes {
        encode(expected_version, command::Body::RegisterNode(NodeRecord::from(node)))
    }

    /// A command that gives the node with `node.id` new addresses and labels.
    #[must_use]
    pub fn update_node(expected_version: u64, node: &Node) -> Bytes {
        encode(expected_version, command::Body::UpdateNode(NodeRecord::from(node)))
    }

    /// The query for the map in force.
    #[must_use]
    pub fn whole_map() -> Bytes {
        Query { body: Some(query::Body::WholeMap(WholeMap {})) }.encode_to_vec().into()
    }
}

impl MachineKind for PlacementKind {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn open(
        &self,
        _group: GroupId,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        Ok(Box::new(PlacementMachine { map: load(meta, state)? }))
    }

    fn read(
        &self,
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
}

impl StateMachine for PlacementMachine {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let mut outcomes = Vec::with_capacity(committed.len());
        for one in committed {
            let body = self.apply_one(&one.command, batch);
            let outcome = Outcome { version: self.version(), body: Some(body) };
            outcomes.push(outcome.encode_to_vec().into());
        }
        Ok(outcomes)
    }

    fn meta(&self) -> Bytes {
        Meta { format: FORMAT, version: self.version() }.encode_to_vec().into()
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
            (command::Body::RegisterNode(record), Some(map)) => {
                let node = Node::from(record);
                change(map.register_node(node.clone()).map(|()| node), batch)
            }
            (command::Body::UpdateNode(record), Some(map)) => {
                change(update_node(map, Node::from(record)), batch)
            }
            (command::Body::RegisterNode(_) | command::Body::UpdateNode(_), None) => {
                rejected("there is no map yet")
            }
        }
    }

    fn bootstrap(&mut self, record: MapRecord, batch: &mut dyn StateBatch) -> outcome::Body {
        let map = match PlacementMap::try_from(record) {
            Ok(map) if map.version() == PlacementMap::FIRST_VERSION => map,
            Ok(map) => return rejected(format!("a first map of version {}", map.version())),
            Err(error) => return rejected(error),
        };
        map.nodes().for_each(|node| put_node(batch, node));
        for group in map.groups() {
            batch.put(&row(GROUP, group.id.value()), &GroupRecord::from(group).encode_to_vec());
        }
        for shard in map.shards() {
            batch.put(&shard_row(&shard.range.start), &ShardRecord::from(shard).encode_to_vec());
        }
        self.map = Some(map);
        outcome::Body::Applied(Applied {})
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
}

const NODE: u8 = b'n';
const GROUP: u8 = b'g';
const SHARD: u8 = b's';

fn update_node(map: &mut PlacementMap, node: Node) -> Result<Node, String> {
    let Some(before) = map.node(node.id) else {
        return Err(format!("node {} is not registered", node.id));
    };
    if before.name != node.name {
        return Err(format!("node {} is called {:?}, not {:?}", node.id, before.name, node.name));
    }
    if before.incarnation != node.incarnation {
        return Err(format!("node {} has another data directory", node.id));
    }
    map.set_node(node.clone()).map_err(|error| error.to_string())?;
    Ok(node)
}

fn change(changed: Result<Node, impl ToString>, batch: &mut dyn StateBatch) -> outcome::Body {
    match changed {
        Ok(node) => {
            put_node(batch, &node);
            outcome::Body::Applied(Applied {})
        }
        Err(why) => rejected(why),
    }
}

fn rejected(why: impl ToString) -> outcome::Body {
    outcome::Body::Rejected(Rejected { reason: why.to_string() })
}

fn encode(expected_version: u64, body: command::Body) -> Bytes {
    Command { expected_version, body: Some(body) }.encode_to_vec().into()
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
    let map = PlacementMap::new(meta.version, nodes, groups, shards);
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
