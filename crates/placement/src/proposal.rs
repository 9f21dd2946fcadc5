//! What a proposer says to the placement machine, and what it reads from its answers.
//!
//! A proposer reads the map ([`PlacementKind::whole_map`], [`Answer::map`]), decides, and proposes a command
//! with the version that it read ([`PlacementKind::bootstrap`] and its siblings make one). It reads what
//! came of it with [`Answer::parse`].

use bytes::Bytes;
use prost::Message;
use quorate_types::{GroupId, Incarnation, LogIndex, Membership, NodeId};

use crate::machine::PlacementKind;
use crate::map::{Group, Node, PlacementMap, Standing};
use crate::members::MemberRefusal;
use crate::message::{
    AddNode, AnswerRecord, Applied, Command, Conflict, JoinNode, Outcome, Query, ReplaceNode,
    WholeMap, command, outcome, query,
};
use crate::record::{GroupRecord, MapRecord, NodeRecord, RecordError, StandingRecord};

/// Why a change of the map did not happen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The map has moved on: read it and decide again.
    #[error("the placement map is at version {version} now")]
    Conflict {
        /// The version in force; 0 while there is none.
        version: u64,
    },
    /// Nodes cannot change so.
    #[error(transparent)]
    Member(#[from] MemberRefusal),
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

/// What a command has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The version of the map that it made.
    pub version: u64,
    /// The node that it was about; zero if it was about none.
    pub node: NodeId,
}

/// Reads what the machine answers.
#[derive(Clone, Copy, Debug)]
pub struct Answer;

impl Answer {
    /// Reads the outcome of a command.
    ///
    /// # Errors
    /// When the command changed nothing.
    pub fn parse(outcome: &Bytes) -> Result<Changed, Refused> {
        let outcome = Outcome::decode(outcome.clone())
            .map_err(|error| Refused::Unreadable(error.to_string()))?;
        match outcome.body {
            Some(outcome::Body::Applied(Applied { node })) => {
                Ok(Changed { version: outcome.version, node: NodeId(node) })
            }
            Some(outcome::Body::Conflict(Conflict {})) => {
                Err(Refused::Conflict { version: outcome.version })
            }
            Some(outcome::Body::Rejected(rejected)) => Err(match rejected.member_refusal() {
                Some(refusal) => Refused::Member(refusal),
                None => Refused::Rejected { reason: rejected.reason },
            }),
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

    /// A command that adds a node; see [`PlacementMap::add_node`].
    #[must_use]
    pub fn add_node(
        expected_version: u64,
        name: &str,
        peer_address: &str,
        standing: Standing,
    ) -> Bytes {
        let add = AddNode {
            name: name.to_owned(),
            peer_address: peer_address.to_owned(),
            standing: StandingRecord::from(standing) as i32,
        };
        encode(expected_version, command::Body::AddNode(add))
    }

    /// A command that gives a node that was added its data directory; see [`PlacementMap::join_node`].
    #[must_use]
    pub fn join_node(
        expected_version: u64,
        name: &str,
        peer_address: &str,
        incarnation: Incarnation,
    ) -> Bytes {
        let join = JoinNode {
            name: name.to_owned(),
            peer_address: peer_address.to_owned(),
            incarnation: incarnation.value(),
        };
        encode(expected_version, command::Body::JoinNode(join))
    }

    /// A command that means a node to vote; see [`PlacementMap::promote_node`].
    #[must_use]
    pub fn promote_node(expected_version: u64, id: NodeId) -> Bytes {
        encode(expected_version, command::Body::PromoteNode(id.value()))
    }

    /// A command that means a node to leave; see [`PlacementMap::remove_node`].
    #[must_use]
    pub fn remove_node(expected_version: u64, id: NodeId) -> Bytes {
        encode(expected_version, command::Body::RemoveNode(id.value()))
    }

    /// A command that adds a node in the place of another; see [`PlacementMap::replace_node`].
    #[must_use]
    pub fn replace_node(expected_version: u64, id: NodeId, peer_address: &str) -> Bytes {
        let replace = ReplaceNode { id: id.value(), peer_address: peer_address.to_owned() };
        encode(expected_version, command::Body::ReplaceNode(replace))
    }

    /// A command that says where a group's replicas are; see [`PlacementMap::report`].
    #[must_use]
    pub fn report(
        expected_version: u64,
        id: GroupId,
        replicas: &Membership,
        at: LogIndex,
    ) -> Bytes {
        let group = Group { id, replicas: replicas.clone(), reported_at: at };
        encode(expected_version, command::Body::Report(GroupRecord::from(&group)))
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

fn encode(expected_version: u64, body: command::Body) -> Bytes {
    Command { expected_version, body: Some(body) }.encode_to_vec().into()
}
