//! I19: an id names one node for ever, who is gone stays gone, and no two groups of a node own the same keys.

use std::collections::BTreeMap;

use quorate_group::Host;
use quorate_placement::PlacementMap;
use quorate_types::NodeId;

use super::{Checked, Oracle};

/// Who had which id, over all versions of the placement map.
#[derive(Debug, Default)]
pub(crate) struct IdentityOracle {
    names: BTreeMap<NodeId, String>,
    /// The request that each id was allotted to.
    allotted: BTreeMap<NodeId, u64>,
    /// The earliest version in which each of those that are gone was known to be.
    gone: BTreeMap<NodeId, u64>,
}

impl IdentityOracle {
    /// A client that adds a node hears of its id.
    pub(crate) fn on_allotted(&mut self, request: u64, node: NodeId) -> Checked {
        let other = *self.allotted.entry(node).or_insert(request);
        Oracle::Identity.check(other == request, || {
            format!("requests {other} and {request} both were given id {node}")
        })
    }

    /// A client that removed a node which no group has hears that it is gone.
    pub(crate) fn on_removed(&mut self, node: NodeId, version: u64) {
        let since = self.gone.entry(node).or_insert(version);
        *since = version.min(*since);
    }

    /// A client reads the map: whichever replica answers, after whatever restarts and snapshots.
    pub(crate) fn on_map(&mut self, map: &PlacementMap) -> Checked {
        let version = map.version();
        for node in map.nodes() {
            self.on_name(node.id, &node.name, version)?;
            let gone = self.gone.get(&node.id).copied();
            Oracle::Identity.check(gone.is_none_or(|gone| gone > version), || {
                format!("node {} is back in version {version}, gone since {gone:?}", node.id)
            })?;
        }
        for (id, name) in map.all_gone() {
            self.on_name(id, name, version)?;
            self.on_removed(id, version);
        }
        let forgotten =
            self.gone.iter().find(|&(id, &since)| since <= version && map.gone(*id).is_none());
        Oracle::Identity.check(forgotten.is_none(), || {
            format!("version {version} has forgotten that a node is gone: {forgotten:?}")
        })
    }

    /// The groups of a process are others than before.
    pub(crate) fn on_host(&self, node: NodeId, host: &Host) -> Checked {
        let ranges = host.groups().filter_map(|(group, it)| Some((group, it.range.as_ref()?)));
        let ranges: Vec<_> = ranges.collect();
        let overlapping = ranges.iter().enumerate().find_map(|(at, (group, range))| {
            let other = ranges[at + 1..].iter().find(|(_, other)| range.overlaps(other));
            other.map(|(other, _)| (*group, *other))
        });
        Oracle::Identity.check(overlapping.is_none(), || {
            format!("node {node}: two groups own the same keys: {overlapping:?}")
        })
    }

    fn on_name(&mut self, id: NodeId, name: &str, version: u64) -> Checked {
        let known = self.names.entry(id).or_insert_with(|| name.to_owned());
        Oracle::Identity.check(known == name, || {
            format!("id {id} is that of {name:?} in version {version}, and was that of {known:?}")
        })
    }
}
