//! Clients: what they ask for, and what they make of the answers.
//!
//! Each has one request at a time, and a value is written once only, so that whatever is read tells which write it
//! comes from.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use quorate_placement::{Node, PlacementKind, PlacementMap, Standing};
use quorate_types::auth::Caller;
use quorate_types::kv::compare::Target;
use quorate_types::kv::{
    Command, Compact, Compare, DeleteRange, LeaseGrant, LeaseKeepAlive, LeaseRevoke, Op, Put,
    Query, Range, Txn, command, op, query,
};
use quorate_types::{GroupId, Incarnation, LogIndex, Membership, NodeId};

use crate::check::history::Value;
use crate::check::model::to_the_end;
use crate::plan::Workload;
use crate::users::Doing;

/// Keys that are attached to leases. They are none of those whose history is judged key by key, since they go by
/// themselves.
const LEASED_KEYS: std::ops::Range<u32> = 50..54;

/// Leases that one client keeps alive, at most.
const LEASES_MAX: usize = 3;

/// A client between two requests.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) random: fastrand::Rng,
    /// The node that it talks to.
    pub(crate) gateway: NodeId,
    pub(crate) busy: bool,
    /// What it last saw of each key.
    pub(crate) seen: BTreeMap<u32, Value>,
    /// The highest revision that it has seen.
    pub(crate) revision: i64,
    pub(crate) map: Option<PlacementMap>,
    /// Leases that it wants to live.
    pub(crate) leases: Vec<i64>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Put {
        key: u32,
        value: u64,
    },
    Swap {
        key: u32,
        expected: Value,
        new: u64,
    },
    /// One key, or all.
    Delete {
        key: Option<u32>,
    },
    Batch {
        values: BTreeMap<u32, u64>,
    },
    Read {
        key: u32,
        local: bool,
    },
    Range {
        local: bool,
    },
    /// Of one key, at an old revision.
    History {
        key: u32,
        revision: i64,
    },
    Compact {
        revision: i64,
    },
    Grant {
        id: i64,
        ttl_s: i64,
    },
    /// Keys of a lease, or of none any more.
    Attach {
        values: BTreeMap<u32, u64>,
        lease: i64,
    },
    KeepAlive {
        id: i64,
    },
    Revoke {
        id: i64,
    },
    /// Something about users.
    Users(Doing),
    ReadMap,
    ChangeMap {
        expected: u64,
        change: MapChange,
    },
    /// Where the leader of a group has its replicas.
    Report {
        expected: u64,
        group: GroupId,
        replicas: Membership,
        at: LogIndex,
    },
}

/// How the placement map is to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MapChange {
    /// Make it, with so many nodes.
    Found { founders: u64 },
    /// Another address of a node.
    Update,
    /// A node more, of a name that nobody had.
    Add { standing: Standing },
    /// A node that was added is there.
    Join(NodeId),
    /// A learner is to vote.
    Promote(NodeId),
    /// A node less.
    Remove(NodeId),
    /// A node in the place of another.
    Replace(NodeId),
}

/// What clients do with the placement map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MapUse {
    /// There is none.
    Nothing,
    /// Whatever it allows: no group follows it.
    Anything,
    /// They read it and change addresses; who comes and goes is not theirs to say.
    Addresses,
}

impl Client {
    pub(crate) fn new(seed: u64, nodes: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let gateway = NodeId(random.u64(1..=nodes));
        let seen = BTreeMap::new();
        Self { random, gateway, busy: false, seen, revision: 1, map: None, leases: Vec::new() }
    }

    /// Draws the next request. `next_value` makes a value that nobody has used.
    pub(crate) fn draw(
        &mut self,
        workload: &Workload,
        map_use: MapUse,
        mut next_value: impl FnMut() -> u64,
    ) -> Ask {
        let Workload { put, swap, delete, batch, read, range, .. } = *workload;
        let Workload { serializable, history, compact, .. } = *workload;
        let map = if map_use == MapUse::Nothing { 0 } else { workload.placement };
        let weights = [
            put,
            swap,
            delete,
            batch,
            read,
            range,
            serializable,
            history,
            compact,
            map,
            workload.lease,
            workload.users,
        ];
        let total: u32 = weights.iter().sum();
        let mut drawn = self.random.u32(..total.max(1));
        let kind = weights.iter().position(|&weight| {
            let hit = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            hit
        });
        let key = self.random.u32(..workload.keys);
        match kind {
            Some(1) => {
                let expected = self.seen.get(&key).copied().unwrap_or_default();
                Ask::Swap { key, expected, new: next_value() }
            }
            Some(2) => Ask::Delete { key: (self.random.u8(..4) > 0).then_some(key) },
            Some(3) => {
                let keys = (0..workload.keys).filter(|_| self.random.bool()).collect::<Vec<_>>();
                let keys = if keys.is_empty() { vec![key] } else { keys };
                Ask::Batch { values: keys.into_iter().map(|key| (key, next_value())).collect() }
            }
            Some(4) => Ask::Read { key, local: false },
            Some(5) => Ask::Range { local: false },
            Some(6) if self.random.bool() => Ask::Read { key, local: true },
            Some(6) => Ask::Range { local: true },
            Some(7) => Ask::History { key, revision: self.random.i64(1..=self.revision) },
            Some(8) => Ask::Compact { revision: self.random.i64(1..=self.revision) },
            Some(9) => match &self.map {
                Some(map) if self.random.bool() => {
                    let change = match map_use {
                        MapUse::Addresses => MapChange::Update,
                        MapUse::Nothing | MapUse::Anything => draw_change(&mut self.random, map),
                    };
                    Ask::ChangeMap { expected: map.version(), change }
                }
                None if map_use == MapUse::Anything && self.random.bool() => {
                    let change = MapChange::Found { founders: FOUNDERS };
                    Ask::ChangeMap { expected: 0, change }
                }
                Some(_) | None => Ask::ReadMap,
            },
            Some(10) => self.draw_of_leases(workload.lease_ttl_s_max, next_value),
            Some(11) => Ask::Users(Doing::draw(&mut self.random, next_value)),
            _ => Ask::Put { key, value: next_value() },
        }
    }

    /// Something about leases. Some are kept alive, until their client forgets them.
    fn draw_of_leases(&mut self, ttl_s_max: i64, mut next_value: impl FnMut() -> u64) -> Ask {
        let few = self.leases.len() < LEASES_MAX;
        if self.leases.is_empty() || few && self.random.u8(..8) == 0 {
            let id = next_value() as i64;
            self.leases.push(id);
            return Ask::Grant { id, ttl_s: self.random.i64(1..=ttl_s_max.max(1)) };
        }
        let at = self.random.usize(..self.leases.len());
        match self.random.u8(..32) {
            0 => Ask::Revoke { id: self.leases.swap_remove(at) },
            1..4 => Ask::KeepAlive { id: self.leases.swap_remove(at) },
            4..14 => {
                let lease = if self.random.u8(..8) == 0 { 0 } else { self.leases[at] };
                let mut values = BTreeMap::new();
                for _ in 0..self.random.u8(1..4) {
                    values.insert(self.random.u32(LEASED_KEYS), next_value());
                }
                Ask::Attach { values, lease }
            }
            _ => Ask::KeepAlive { id: self.leases[at] },
        }
    }

    /// Goes to another node, after one that did not answer.
    pub(crate) fn move_on(&mut self, nodes: u64) {
        self.gateway = NodeId(self.random.u64(1..=nodes));
    }
}

impl Ask {
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Put { .. } => "put",
            Self::Swap { .. } => "swap",
            Self::Delete { .. } => "delete",
            Self::Batch { .. } => "batch",
            Self::Read { local: false, .. } => "read",
            Self::Range { local: false } => "range",
            Self::Read { local: true, .. } => "serializable read",
            Self::Range { local: true } => "serializable range",
            Self::History { .. } => "read of history",
            Self::Compact { .. } => "compact",
            Self::Grant { .. } => "grant",
            Self::Attach { .. } => "attach",
            Self::KeepAlive { .. } => "keep-alive",
            Self::Revoke { .. } => "revoke",
            Self::Users(Doing::Change(_)) => "change of users",
            Self::Users(Doing::Put { .. }) => "put by a user",
            Self::ReadMap => "read map",
            Self::ChangeMap { .. } => "change map",
            Self::Report { .. } => "report",
        }
    }

    pub(crate) const fn group(&self) -> GroupId {
        match self {
            Self::ReadMap | Self::ChangeMap { .. } | Self::Report { .. } => GroupId::PLACEMENT,
            _ => GroupId::FIRST_DATA,
        }
    }

    pub(crate) const fn is_write(&self) -> bool {
        match self {
            Self::Put { .. }
            | Self::Swap { .. }
            | Self::Delete { .. }
            | Self::Batch { .. }
            | Self::Compact { .. }
            | Self::Grant { .. }
            | Self::Attach { .. }
            | Self::Revoke { .. }
            | Self::Users(_)
            | Self::ChangeMap { .. }
            | Self::Report { .. } => true,
            Self::Read { .. }
            | Self::Range { .. }
            | Self::History { .. }
            | Self::KeepAlive { .. }
            | Self::ReadMap => false,
        }
    }

    /// What must not be taken while too few disks have room; everything else must be.
    pub(crate) const fn grows(&self) -> bool {
        match self {
            Self::Put { .. }
            | Self::Swap { .. }
            | Self::Batch { .. }
            | Self::Grant { .. }
            | Self::Attach { .. } => true,
            Self::Users(doing) => doing.grows(),
            _ => false,
        }
    }

    /// A read that only the leader can answer.
    pub(crate) const fn is_led(&self) -> bool {
        matches!(self, Self::KeepAlive { .. })
    }

    /// A read that the node at hand may answer from what it has.
    pub(crate) const fn is_local(&self) -> bool {
        matches!(self, Self::Read { local: true, .. } | Self::Range { local: true })
    }

    /// What is read, if it is a range of the keyspace.
    pub(crate) fn range(&self) -> Option<Range> {
        match self {
            Self::Read { key, .. } => Some(range_of(Some(*key), 0)),
            Self::Range { .. } => Some(range_of(None, 0)),
            Self::History { key, revision } => Some(range_of(Some(*key), *revision)),
            _ => None,
        }
    }

    /// The command or query. `unique` makes it differ from every other.
    pub(crate) fn encode(
        &self,
        workload: &Workload,
        gateway: NodeId,
        map: Option<&PlacementMap>,
        unique: u64,
    ) -> Bytes {
        let put = |key: u32, value: u64| Put {
            key: key_of(key),
            value: value_of(value, workload.value_bytes_max),
            prev_kv: value.is_multiple_of(2),
            ..Put::default()
        };
        let caller = (workload.users > 0).then(Caller::system);
        let put_op = |key, value| Op { body: Some(op::Body::Put(put(key, value))) };
        let body = match self {
            Self::Put { key, value } => command::Body::Put(put(*key, *value)),
            Self::Swap { key, expected, new } => {
                let target = match expected {
                    Some(value) => Target::Value(value_of(*value, workload.value_bytes_max)),
                    None => Target::Version(0),
                };
                let key_bytes = key_of(*key);
                let compare =
                    Compare { key: key_bytes, target: Some(target), ..Compare::default() };
                let look = Op { body: Some(op::Body::Range(range_of(Some(*key), 0))) };
                command::Body::Txn(Txn {
                    compares: vec![compare],
                    success: vec![put_op(*key, *new)],
                    failure: vec![look],
                })
            }
            Self::Delete { key } => {
                // The branch that never runs carries what makes this command one of a kind. It puts nothing, or a
                // delete would grow the state.
                let never = Range { limit: unique as i64, ..range_of(*key, 0) };
                command::Body::Txn(Txn {
                    compares: Vec::new(),
                    success: vec![Op { body: Some(op::Body::DeleteRange(delete_of(*key))) }],
                    failure: vec![Op { body: Some(op::Body::Range(never)) }],
                })
            }
            Self::Batch { values } => command::Body::Txn(Txn {
                compares: Vec::new(),
                success: values.iter().map(|(&key, &value)| put_op(key, value)).collect(),
                failure: Vec::new(),
            }),
            Self::Grant { id, ttl_s } => {
                command::Body::LeaseGrant(LeaseGrant { id: *id, ttl_s: *ttl_s })
            }
            Self::Attach { values, lease } => {
                let attached = |(&key, &value)| {
                    let put = Put { lease: *lease, ..put(key, value) };
                    Op { body: Some(op::Body::Put(put)) }
                };
                let success = values.iter().map(attached).collect();
                command::Body::Txn(Txn { success, ..Txn::default() })
            }
            Self::Revoke { id } => {
                command::Body::LeaseRevoke(LeaseRevoke { id: *id, expired_in_term: 0 })
            }
            Self::KeepAlive { id } => {
                let body = Some(query::Body::LeaseKeepAlive(LeaseKeepAlive { id: *id }));
                return Query { body, caller }.encode_to_vec().into();
            }
            Self::Users(doing) => {
                let value_of = |value| value_of(value, workload.value_bytes_max);
                return doing.command(value_of).encode_to_vec().into();
            }
            Self::Compact { revision } => command::Body::Compact(Compact { revision: *revision }),
            Self::Read { .. } | Self::Range { .. } | Self::History { .. } => {
                let body = self.range().map(query::Body::Range);
                return Query { body, caller }.encode_to_vec().into();
            }
            Self::ReadMap => return PlacementKind::whole_map(),
            Self::ChangeMap { expected, change } => {
                return change_of(*expected, *change, gateway, map, unique);
            }
            Self::Report { expected, group, replicas, at } => {
                return PlacementKind::report(*expected, *group, replicas, *at);
            }
        };
        Command { body: Some(body), caller, ..Command::default() }.encode_to_vec().into()
    }
}

fn delete_of(key: Option<u32>) -> DeleteRange {
    let (key, range_end) = bounds(key);
    DeleteRange { key, range_end, prev_kv: true }
}

pub(crate) fn range_of(key: Option<u32>, revision: i64) -> Range {
    let (key, range_end) = bounds(key);
    Range { key, range_end, revision, ..Range::default() }
}

fn bounds(key: Option<u32>) -> (Bytes, Bytes) {
    match key {
        Some(key) => (key_of(key), Bytes::new()),
        None => (key_of(0), to_the_end()),
    }
}

/// Nodes that the map begins with.
const FOUNDERS: u64 = 3;

/// A change that a map allows. Those that were added leave again, or there would soon be no place for more.
fn draw_change(random: &mut fastrand::Rng, map: &PlacementMap) -> MapChange {
    let mut added = map.nodes().filter(|node| node.id > NodeId(FOUNDERS));
    match (random.u8(..3), added.next()) {
        (0, _) => MapChange::Update,
        (_, Some(node)) => MapChange::Remove(node.id),
        (_, None) => MapChange::Add { standing: Standing::Learner },
    }
}

/// The command of a change, for the map that a client has seen.
fn change_of(
    expected: u64,
    change: MapChange,
    gateway: NodeId,
    map: Option<&PlacementMap>,
    unique: u64,
) -> Bytes {
    let node = |id: u64| Node {
        id: NodeId(id),
        name: format!("n{id}"),
        client_address: format!("client-{unique}"),
        peer_address: format!("peer-{id}"),
        labels: BTreeMap::new(),
        incarnation: Incarnation(id),
        ..Node::default()
    };
    match change {
        MapChange::Found { founders } => {
            let first = PlacementMap::first((1..=founders).map(node)).expect("a map of some nodes");
            PlacementKind::bootstrap(&first)
        }
        // A gateway that is no founder speaks for one.
        MapChange::Update => {
            let is_founder =
                |map: &PlacementMap| map.node(gateway).is_some() && gateway.value() <= FOUNDERS;
            let known = if map.is_some_and(is_founder) { gateway } else { NodeId(1) };
            PlacementKind::update_node(expected, &node(known.value()))
        }
        MapChange::Add { standing } => {
            let (name, address) = (format!("added-{unique}"), format!("peer-added-{unique}"));
            PlacementKind::add_node(expected, &name, &address, standing)
        }
        MapChange::Join(id) => {
            let known = map.and_then(|map| map.node(id));
            let (name, address) =
                known.map_or(("", ""), |node| (node.name.as_str(), node.peer_address.as_str()));
            PlacementKind::join_node(expected, name, address, Incarnation(id.value()))
        }
        MapChange::Promote(id) => PlacementKind::promote_node(expected, id),
        MapChange::Remove(id) => PlacementKind::remove_node(expected, id),
        MapChange::Replace(id) => PlacementKind::replace_node(expected, id, ""),
    }
}

pub(crate) fn key_of(key: u32) -> Bytes {
    Bytes::from(format!("k{key:02}"))
}

/// The number of a key.
pub(crate) fn key_number(key: &[u8]) -> Option<u32> {
    std::str::from_utf8(key.get(1..)?).ok()?.parse().ok()
}

/// A value: its number, and so many more bytes that long and short ones occur.
fn value_of(value: u64, bytes_max: usize) -> Bytes {
    let mut bytes = value.to_be_bytes().to_vec();
    let extra = (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % (bytes_max + 1);
    bytes.resize(8 + extra, b'.');
    bytes.into()
}

/// The number of a value.
pub(crate) fn value_number(value: &[u8]) -> Option<u64> {
    value.get(..8)?.try_into().map(u64::from_be_bytes).ok()
}
