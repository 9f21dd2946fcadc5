//! The map itself: parsed at the edge, trusted inside.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use quorate_types::{Epoch, GroupId, Incarnation, KeyRange, LogIndex, Membership, NodeId, ShardId};

/// What a node is meant for: every group follows, in its own time.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Standing {
    /// It is to vote in every group, as soon as it has caught up.
    #[default]
    Voter,
    /// It is to receive every group's log without a vote.
    Learner,
    /// It is to leave every group; with the last one it leaves the map.
    Leaving,
}

/// A node as the cluster knows it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Node {
    /// The id; also the etcd member id. Not zero, never reused.
    pub id: NodeId,
    /// The name that its certificate carries; empty only for a node that has not joined and was added
    /// by its address alone.
    pub name: String,
    /// Where clients reach it, `host:port`; empty until the node itself has said so.
    pub client_address: String,
    /// Where other nodes reach it, `host:port`.
    pub peer_address: String,
    /// Locality and whatever else policies match: `region` -> `eu`.
    pub labels: BTreeMap<String, String>,
    /// Drawn when its data directory was made; zero until the node has joined.
    pub incarnation: Incarnation,
    /// What it is meant for.
    pub standing: Standing,
    /// The node whose place it takes, which keeps its votes until this one has them.
    pub replaces: Option<NodeId>,
}

impl Node {
    /// True once a data directory stands behind it.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.incarnation != Incarnation::ZERO
    }
}

/// A group and where its replicas are placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// The id.
    pub id: GroupId,
    /// The replicas. What the group's own log says may be ahead of this while a change is under way.
    pub replicas: Membership,
    /// How much of its log the leader that reported them had applied; zero: they are the first ones.
    pub reported_at: LogIndex,
}

/// A half-open range of stored keys, the system's and the clients', that exactly one group owns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shard {
    /// The id.
    pub id: ShardId,
    /// The keys; never empty.
    pub range: KeyRange,
    /// Grows whenever the range or the owner changes.
    pub epoch: Epoch,
    /// The owner.
    pub group: GroupId,
}

/// Why parts do not make a map.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// A map in force has had at least one change: its first.
    #[error("a map's version starts at 1")]
    NoVersion,
    /// A node with id 0, no address for other nodes, or no name though it has joined.
    #[error("node {0} lacks an id, a name or a peer address")]
    BareNode(NodeId),
    /// Two nodes of one id.
    #[error("two nodes have the id {0}")]
    NodeTwice(NodeId),
    /// Two nodes of one name.
    #[error("two nodes have the name {0:?}")]
    NameTwice(String),
    /// Two groups of one id.
    #[error("two groups have the id {0}")]
    GroupTwice(GroupId),
    /// A group without voters.
    #[error("group {0} has no voters")]
    NoVoters(GroupId),
    /// A node that both votes and learns in one group.
    #[error("node {1} is both voter and learner of group {0}")]
    VoterAndLearner(GroupId, NodeId),
    /// A replica on a node that is not in the map.
    #[error("group {0} has a replica on node {1}, which is not registered")]
    UnknownNode(GroupId, NodeId),
    /// The placement group is missing.
    #[error("group 1, the placement group, is missing")]
    NoPlacementGroup,
    /// A shard's owner is missing.
    #[error("shard {0} belongs to group {1}, which does not exist")]
    UnknownGroup(ShardId, GroupId),
    /// The placement group, or a group that owns a shard already, as owner.
    #[error("shard {0} cannot belong to group {1}, which owns something else")]
    GroupTaken(ShardId, GroupId),
    /// Two shards of one id.
    #[error("two shards have the id {0}")]
    ShardTwice(ShardId),
    /// A shard whose epoch is 0: requests could not tell it from "not routed yet".
    #[error("shard {0} has no epoch")]
    NoEpoch(ShardId),
    /// The shards leave a gap, overlap, or do not reach both ends of the keyspace.
    #[error("the shards do not partition the keyspace: {0}")]
    NotAPartition(String),
}

/// The map from keys to shards, groups and nodes.
///
/// Invariants, checked when a map is made and asserted after each change:
/// - The ranges of the shards partition the keyspace: no gap, no overlap, from the empty key on without
///   an end. So every key has exactly one shard.
/// - A shard belongs to one group, that group is in the map, is not the placement group, and owns no
///   other shard.
/// - Every group has voters, no node both votes and learns in one, and every replica is on a registered
///   node. The placement group is there.
/// - Ids are unique, also with those of nodes that are gone; so are the names of nodes, but for those that
///   leave, whose names others may have taken over.
/// - `version` grows by one with every change and is never 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacementMap {
    pub(crate) version: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    /// By the first key of the range.
    shards: BTreeMap<Bytes, Shard>,
    /// Names of nodes that have left, by the ids that nobody gets again.
    pub(crate) gone: BTreeMap<NodeId, String>,
    /// The last id that was allotted to a node that was added; founders have theirs from elsewhere.
    pub(crate) allotted: NodeId,
}

impl PlacementMap {
    /// The version of a cluster's first map.
    pub const FIRST_VERSION: u64 = 1;

    /// A map of these parts.
    ///
    /// # Errors
    /// When an invariant would not hold.
    pub fn new(
        version: u64,
        nodes: impl IntoIterator<Item = Node>,
        groups: impl IntoIterator<Item = Group>,
        shards: impl IntoIterator<Item = Shard>,
    ) -> Result<Self, MapError> {
        let mut map = Self {
            version,
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            shards: BTreeMap::new(),
            gone: BTreeMap::new(),
            allotted: NodeId::ZERO,
        };
        for node in nodes {
            let id = node.id;
            if map.nodes.insert(id, node).is_some() {
                return Err(MapError::NodeTwice(id));
            }
        }
        for group in groups {
            let id = group.id;
            if map.groups.insert(id, group).is_some() {
                return Err(MapError::GroupTwice(id));
            }
        }
        for shard in shards {
            if let Some(before) = map.shards.insert(shard.range.start.clone(), shard) {
                let start = before.range.start.escape_ascii();
                return Err(MapError::NotAPartition(format!("two start at \"{start}\"")));
            }
        }
        map.check()?;
        Ok(map)
    }

    /// This map with the memory of nodes that have left: their ids, and the last id that was allotted.
    ///
    /// # Errors
    /// When one of them is still there.
    pub fn with_history(
        self,
        gone: impl IntoIterator<Item = (NodeId, String)>,
        allotted: NodeId,
    ) -> Result<Self, MapError> {
        let map = Self { gone: gone.into_iter().collect(), allotted, ..self };
        map.check()?;
        Ok(map)
    }

    /// The map of a fresh cluster: one shard, the whole keyspace, owned by group 2; every node votes in
    /// group 2 and in the placement group.
    ///
    /// # Errors
    /// When the nodes do not make a cluster: none, or two of one id or name.
    pub fn first(nodes: impl IntoIterator<Item = Node>) -> Result<Self, MapError> {
        let nodes: Vec<_> = nodes.into_iter().collect();
        let replicas = Membership::of_voters(nodes.iter().map(|node| node.id));
        let groups = [GroupId::PLACEMENT, GroupId::FIRST_DATA].map(|id| Group {
            id,
            replicas: replicas.clone(),
            reported_at: LogIndex::ZERO,
        });
        let shard = Shard {
            id: ShardId(1),
            range: KeyRange::all(),
            epoch: Epoch(1),
            group: GroupId::FIRST_DATA,
        };
        Self::new(Self::FIRST_VERSION, nodes, groups, [shard])
    }

    /// How many changes made this map.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The shard that holds `key`. O(log of the number of shards).
    #[must_use]
    pub fn shard_of(&self, key: &[u8]) -> &Shard {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let (_, shard) = self
            .shards
            .range::<[u8], _>(upto)
            .next_back()
            .expect("a shard starts at the empty key");
        debug_assert!(shard.range.contains(key), "{shard:?} must hold {key:?}");
        shard
    }

    /// The shards that hold some key of `range`, in key order; none for an empty range. O(log of the
    /// number of shards) to the first.
    pub fn shards_in<'m>(&'m self, range: &'m KeyRange) -> impl Iterator<Item = &'m Shard> {
        // An inverted range would make the lower bound lie above the upper one.
        let first = (!range.is_empty()).then(|| self.shard_of(&range.start));
        let from = first.map_or(&range.start, |shard| &shard.range.start);
        self.shards
            .range::<[u8], _>((Bound::Included(from.as_ref()), Bound::Unbounded))
            .map(|(_, shard)| shard)
            .take_while(move |shard| {
                first.is_some() && range.end.as_ref().is_none_or(|end| shard.range.start < *end)
            })
    }

    /// All shards in key order.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.values()
    }

    /// A group.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)
    }

    /// All groups by id.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// A node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The name of a node that was in the map and has left it.
    #[must_use]
    pub fn gone(&self, id: NodeId) -> Option<&str> {
        self.gone.get(&id).map(String::as_str)
    }

    /// All nodes that have left, by id, with their names.
    pub fn all_gone(&self) -> impl Iterator<Item = (NodeId, &str)> {
        self.gone.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// The last id that was allotted to a node that was added.
    #[must_use]
    pub const fn allotted(&self) -> NodeId {
        self.allotted
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    fn check(&self) -> Result<(), MapError> {
        if self.version == 0 {
            return Err(MapError::NoVersion);
        }
        let mut names = BTreeSet::new();
        for node in self.nodes.values() {
            check_node(node)?;
            if self.gone.contains_key(&node.id) {
                return Err(MapError::NodeTwice(node.id));
            }
            let named = node.standing != Standing::Leaving && !node.name.is_empty();
            if named && !names.insert(&node.name) {
                return Err(MapError::NameTwice(node.name.clone()));
            }
        }
        if !self.groups.contains_key(&GroupId::PLACEMENT) {
            return Err(MapError::NoPlacementGroup);
        }
        self.groups.values().try_for_each(|group| self.check_replicas(group))?;
        self.check_owners()?;
        self.check_partition()
    }

    fn check_replicas(&self, group: &Group) -> Result<(), MapError> {
        let replicas = &group.replicas;
        if replicas.voters.is_empty() {
            return Err(MapError::NoVoters(group.id));
        }
        if let Some(both) = replicas.learners.iter().find(|node| replicas.is_voter(**node)) {
            return Err(MapError::VoterAndLearner(group.id, *both));
        }
        match replicas.nodes().into_iter().find(|node| !self.nodes.contains_key(node)) {
            Some(node) => Err(MapError::UnknownNode(group.id, node)),
            None => Ok(()),
        }
    }

    fn check_owners(&self) -> Result<(), MapError> {
        let mut ids = BTreeSet::new();
        let mut owners = BTreeSet::from([GroupId::PLACEMENT]);
        for shard in self.shards.values() {
            if !ids.insert(shard.id) {
                return Err(MapError::ShardTwice(shard.id));
            }
            if shard.epoch == Epoch::ZERO {
                return Err(MapError::NoEpoch(shard.id));
            }
            if !self.groups.contains_key(&shard.group) {
                return Err(MapError::UnknownGroup(shard.id, shard.group));
            }
            if !owners.insert(shard.group) {
                return Err(MapError::GroupTaken(shard.id, shard.group));
            }
        }
        Ok(())
    }

    fn check_partition(&self) -> Result<(), MapError> {
        let mut covered = Some(Bytes::new());
        for shard in self.shards.values() {
            let start = &shard.range.start;
            if covered.as_ref() != Some(start) {
                let why = match covered {
                    Some(end) => {
                        let (end, start) = (end.escape_ascii(), start.escape_ascii());
                        format!("\"{end}\" is the end of one and \"{start}\" the start of the next")
                    }
                    None => "one without an end is not the last".to_owned(),
                };
                return Err(MapError::NotAPartition(why));
            }
            if shard.range.is_empty() {
                let start = start.escape_ascii();
                return Err(MapError::NotAPartition(format!("the one at \"{start}\" is empty")));
            }
            covered.clone_from(&shard.range.end);
        }
        match covered {
            Some(end) => {
                let end = end.escape_ascii();
                Err(MapError::NotAPartition(format!("nothing owns the keys from \"{end}\" on")))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn assert_invariants(&self) {
        if let Err(broken) = self.check() {
            panic!("placement map version {} broke an invariant: {broken}", self.version);
        }
    }
}

fn check_node(node: &Node) -> Result<(), MapError> {
    let named = !node.name.is_empty() || !node.has_joined();
    let whole = node.id != NodeId::ZERO && named && !node.peer_address.is_empty();
    if whole { Ok(()) } else { Err(MapError::BareNode(node.id)) }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
