//! The stored and sent form: protobuf, whose fields are added and never renumbered.
//!
//! A whole [`MapRecord`] starts with the version of the format. Whoever reads one gets a
//! [`PlacementMap`] with its invariants checked, or an error; never a panic.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes};
use prost::Message;
use quorate_types::{Epoch, GroupId, Incarnation, KeyRange, LogIndex, Membership, NodeId, ShardId};

use crate::map::{Group, MapError, Node, PlacementMap, Shard, Standing};

/// The version of the format that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Why bytes are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Not protobuf, or a field of the wrong type.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Written by a build that this one does not understand.
    #[error("format {0} is not supported (this build reads up to {FORMAT})")]
    Format(u32),
    /// Readable, but not a map.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl From<prost::DecodeError> for RecordError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A whole map.
#[derive(Clone, PartialEq, Message)]
pub struct MapRecord {
    /// [`FORMAT`].
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The map's version.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The nodes.
    #[prost(message, repeated, tag = "3")]
    pub nodes: Vec<NodeRecord>,
    /// The groups.
    #[prost(message, repeated, tag = "4")]
    pub groups: Vec<GroupRecord>,
    /// The shards.
    #[prost(message, repeated, tag = "5")]
    pub shards: Vec<ShardRecord>,
    /// The nodes that have left.
    #[prost(message, repeated, tag = "6")]
    pub gone: Vec<GoneRecord>,
    /// The last id that was allotted to a node.
    #[prost(uint64, tag = "7")]
    pub allotted: u64,
}

/// A node that has left.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GoneRecord {
    /// Its id, which nobody gets again.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its name; empty if it never had one.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// A [`Node`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeRecord {
    /// The id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where clients reach it; empty until the node has said so.
    #[prost(string, tag = "3")]
    pub client_address: String,
    /// Where other nodes reach it.
    #[prost(string, tag = "4")]
    pub peer_address: String,
    /// Locality.
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
    /// The incarnation of its data directory; 0 until it has joined.
    #[prost(fixed64, tag = "6")]
    pub incarnation: u64,
    /// What it is meant for.
    #[prost(enumeration = "StandingRecord", tag = "7")]
    pub standing: i32,
    /// The node whose place it takes; 0 for none.
    #[prost(uint64, tag = "8")]
    pub replaces: u64,
}

/// A [`Standing`]. An unknown one of a newer build reads as the first: a group's votes follow from its
/// own log, not from this.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum StandingRecord {
    /// [`Standing::Voter`].
    Voter = 0,
    /// [`Standing::Learner`].
    Learner = 1,
    /// [`Standing::Leaving`].
    Leaving = 2,
}

/// A [`Group`]; as a command, where its leader has its replicas.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GroupRecord {
    /// The id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The voters; the incoming half of a joint configuration.
    #[prost(uint64, repeated, tag = "2")]
    pub voters: Vec<u64>,
    /// The outgoing half.
    #[prost(uint64, repeated, tag = "3")]
    pub outgoing: Vec<u64>,
    /// The learners.
    #[prost(uint64, repeated, tag = "4")]
    pub learners: Vec<u64>,
    /// How much of its log the leader that says so had applied.
    #[prost(uint64, tag = "5")]
    pub reported_at: u64,
}

/// A [`Shard`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ShardRecord {
    /// The id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The first key.
    #[prost(bytes = "bytes", tag = "2")]
    pub start: Bytes,
    /// The first key after the range; absent for none.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub end: Option<Bytes>,
    /// The epoch.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// The owner.
    #[prost(uint64, tag = "5")]
    pub group: u64,
}

impl PlacementMap {
    /// The bytes of the whole map.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        MapRecord::from(self).encode_to_vec().into()
    }

    /// Reads what [`encode`](Self::encode) wrote. Fields of a newer build are ignored.
    ///
    /// # Errors
    /// When the bytes are not a map of a known format, or an invariant does not hold.
    pub fn decode(bytes: impl Buf) -> Result<Self, RecordError> {
        Self::try_from(MapRecord::decode(bytes)?)
    }
}

impl From<&PlacementMap> for MapRecord {
    fn from(map: &PlacementMap) -> Self {
        Self {
            format: FORMAT,
            version: map.version(),
            nodes: map.nodes().map(NodeRecord::from).collect(),
            groups: map.groups().map(GroupRecord::from).collect(),
            shards: map.shards().map(ShardRecord::from).collect(),
            gone: map
                .all_gone()
                .map(|(id, name)| GoneRecord { id: id.value(), name: name.to_owned() })
                .collect(),
            allotted: map.allotted().value(),
        }
    }
}

impl TryFrom<MapRecord> for PlacementMap {
    type Error = RecordError;

    fn try_from(record: MapRecord) -> Result<Self, RecordError> {
        if !(1..=FORMAT).contains(&record.format) {
            return Err(RecordError::Format(record.format));
        }
        let nodes = record.nodes.into_iter().map(Node::from);
        let groups = record.groups.into_iter().map(Group::from);
        let shards = record.shards.into_iter().map(Shard::from);
        let gone = record.gone.into_iter().map(|gone| (NodeId(gone.id), gone.name));
        let map = Self::new(record.version, nodes, groups, shards)?;
        Ok(map.with_history(gone, NodeId(record.allotted))?)
    }
}

impl From<&Node> for NodeRecord {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.value(),
            name: node.name.clone(),
            client_address: node.client_address.clone(),
            peer_address: node.peer_address.clone(),
            labels: node.labels.clone(),
            incarnation: node.incarnation.value(),
            standing: StandingRecord::from(node.standing) as i32,
            replaces: node.replaces.map_or(0, NodeId::value),
        }
    }
}

impl From<Standing> for StandingRecord {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Voter => Self::Voter,
            Standing::Learner => Self::Learner,
            Standing::Leaving => Self::Leaving,
        }
    }
}

impl From<StandingRecord> for Standing {
    fn from(record: StandingRecord) -> Self {
        match record {
            StandingRecord::Voter => Self::Voter,
            StandingRecord::Learner => Self::Learner,
            StandingRecord::Leaving => Self::Leaving,
        }
    }
}

impl From<NodeRecord> for Node {
    fn from(record: NodeRecord) -> Self {
        Self {
            standing: record.standing().into(),
            replaces: Some(NodeId(record.replaces)).filter(|node| *node != NodeId::ZERO),
            id: NodeId(record.id),
            name: record.name,
            client_address: record.client_address,
            peer_address: record.peer_address,
            labels: record.labels,
            incarnation: Incarnation(record.incarnation),
        }
    }
}

impl From<&Group> for GroupRecord {
    fn from(group: &Group) -> Self {
        let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|id| id.value()).collect();
        Self {
            id: group.id.value(),
            voters: ids(&group.replicas.voters),
            outgoing: ids(&group.replicas.outgoing),
            learners: ids(&group.replicas.learners),
            reported_at: group.reported_at.value(),
        }
    }
}

impl From<GroupRecord> for Group {
    fn from(record: GroupRecord) -> Self {
        let ids = |nodes: Vec<u64>| nodes.into_iter().map(NodeId).collect();
        let replicas = Membership {
            voters: ids(record.voters),
            outgoing: ids(record.outgoing),
            learners: ids(record.learners),
            // How a change goes on is the group's own matter.
            ..Membership::default()
        };
        Self { id: GroupId(record.id), replicas, reported_at: LogIndex(record.reported_at) }
    }
}

impl From<&Shard> for ShardRecord {
    fn from(shard: &Shard) -> Self {
        Self {
            id: shard.id.value(),
            start: shard.range.start.clone(),
            end: shard.range.end.clone(),
            epoch: shard.epoch.value(),
            group: shard.group.value(),
        }
    }
}

impl From<ShardRecord> for Shard {
    fn from(record: ShardRecord) -> Self {
        Self {
            id: ShardId(record.id),
            range: KeyRange { start: record.start, end: record.end },
            epoch: Epoch(record.epoch),
            group: GroupId(record.group),
        }
    }
}
