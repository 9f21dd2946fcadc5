//! Which peers a node speaks with, and when a founding node has heard all others: a value.

use std::collections::BTreeMap;

use quorate_placement::{PlacementMap, Standing};
use quorate_transport::{Hello, Refusal};
use quorate_types::{Incarnation, NodeId};

/// Why two nodes cannot begin a cluster together.
pub(crate) const OTHER_BEGINNING: &str = "was given another initial cluster, or another backup";

/// The nodes that this one knows, and what it has heard of them.
///
/// Until a founder has started it *gathers*: it notes the incarnation of every founder that says hello.
/// Once started, the table is fixed: a founder that returns with another incarnation has lost its data
/// under a known name, and is refused. As soon as the placement map is known, it alone counts.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    own: NodeId,
    digest: [u8; 32],
    names: BTreeMap<NodeId, String>,
    incarnations: BTreeMap<NodeId, Incarnation>,
    started: bool,
    /// A peer has said that it has started: then there is a table already, and this node must be in it.
    found_started: bool,
    registry: Option<Registry>,
}

/// What the placement map says of nodes.
#[derive(Clone, Debug)]
struct Registry {
    version: u64,
    nodes: BTreeMap<NodeId, (String, Incarnation)>,
    gone: BTreeMap<NodeId, String>,
}

impl Admission {
    /// A node that begins to gather; `names` are all founders, itself included.
    #[must_use]
    pub(crate) fn gathering(
        own: NodeId,
        incarnation: Incarnation,
        digest: [u8; 32],
        names: BTreeMap<NodeId, String>,
    ) -> Self {
        let incarnations = BTreeMap::from([(own, incarnation)]);
        let (started, found_started) = (false, false);
        Self { own, digest, names, incarnations, started, found_started, registry: None }
    }

    /// A node that has started with this table of founders.
    #[must_use]
    pub(crate) fn started(
        own: NodeId,
        digest: [u8; 32],
        names: BTreeMap<NodeId, String>,
        founders: BTreeMap<NodeId, Incarnation>,
    ) -> Self {
        let (started, found_started) = (true, true);
        let incarnations = founders;
        Self { own, digest, names, incarnations, started, found_started, registry: None }
    }

    /// From now on this map says who is a member, unless a later one is known.
    pub(crate) fn learn(&mut self, map: &PlacementMap) {
        if self.registry.as_ref().is_some_and(|known| known.version >= map.version()) {
            return;
        }
        let node =
            |node: &quorate_placement::Node| (node.id, (node.name.clone(), node.incarnation));
        self.registry = Some(Registry {
            version: map.version(),
            nodes: map.nodes().map(node).collect(),
            gone: map.all_gone().map(|(id, name)| (id, name.to_owned())).collect(),
        });
    }

    /// Whether a peer may speak.
    ///
    /// # Errors
    /// In words for both sides' logs.
    pub(crate) fn judge(&self, hello: &Hello) -> Result<(), Refusal> {
        self.judge_words(hello).map_err(Refusal::Policy)?;
        match &self.registry {
            Some(registry) => registry.judge(hello),
            None => self.judge_founder(hello).map_err(Refusal::Policy),
        }
    }

    fn judge_words(&self, hello: &Hello) -> Result<(), String> {
        let name = &hello.node_name;
        if hello.node == self.own {
            return Err(format!("node {name} exists twice"));
        }
        if hello.node == NodeId::ZERO {
            // It can do nothing but ask to join.
            return match self.started {
                true => Ok(()),
                false => Err("this node has not started itself and can let nobody join".to_owned()),
            };
        }
        if hello.cluster_digest != self.digest {
            return Err(format!("node {name} {OTHER_BEGINNING}"));
        }
        Ok(())
    }

    fn judge_founder(&self, hello: &Hello) -> Result<(), String> {
        if hello.node == NodeId::ZERO {
            return Ok(());
        }
        let Some(name) = self.names.get(&hello.node) else {
            return Err(not_a_member(hello));
        };
        check_name(name, hello)?;
        match self.incarnations.get(&hello.node) {
            Some(known) if self.started => check_incarnation(*known, hello),
            None if self.started => Err(format!("node {name} is not a founder")),
            Some(_) | None => Ok(()),
        }
    }

    /// Notes a peer that was admitted. Returns the whole table once every founder was heard, unless one
    /// of them has started: then its table counts, and another one would let a wiped node back in.
    pub(crate) fn hear(&mut self, hello: &Hello) -> Option<BTreeMap<NodeId, Incarnation>> {
        self.found_started |= hello.started;
        if self.found_started {
            return None;
        }
        self.incarnations.insert(hello.node, hello.incarnation);
        self.names
            .keys()
            .all(|node| self.incarnations.contains_key(node))
            .then(|| self.incarnations.clone())
    }

    /// Takes over the table of a peer that has started: this node was heard when that peer began.
    /// False if that peer had heard of another incarnation of this node.
    #[must_use]
    pub(crate) fn adopt(&self, table: &BTreeMap<NodeId, Incarnation>) -> bool {
        let own = self.incarnations.get(&self.own);
        !self.started && table.get(&self.own) == own && table.keys().eq(self.names.keys())
    }

    /// From now on the table is fixed.
    pub(crate) fn start(&mut self, founders: BTreeMap<NodeId, Incarnation>) {
        self.incarnations = founders;
        self.started = true;
    }

    /// The founders' table, once started.
    #[must_use]
    pub(crate) fn table(&self) -> Option<&BTreeMap<NodeId, Incarnation>> {
        self.started.then_some(&self.incarnations)
    }
}

impl Registry {
    fn judge(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.node == NodeId::ZERO {
            return Ok(());
        }
        if self.gone.contains_key(&hello.node) {
            let (name, id) = (&hello.node_name, hello.node);
            let reason = format!("node {name} ({id}) has been removed from the cluster");
            return Err(Refusal::Removed(reason));
        }
        let Some((name, incarnation)) = self.nodes.get(&hello.node) else {
            return Err(Refusal::Policy(not_a_member(hello)));
        };
        let known = check_name(name, hello).and_then(|()| check_incarnation(*incarnation, hello));
        known.map_err(Refusal::Policy)
    }
}

fn not_a_member(hello: &Hello) -> String {
    format!("node {} ({}) is not a member", hello.node_name, hello.node)
}

fn check_name(name: &str, hello: &Hello) -> Result<(), String> {
    if name == hello.node_name {
        return Ok(());
    }
    Err(format!("node {} is called {name} here, not {}", hello.node, hello.node_name))
}

fn check_incarnation(known: Incarnation, hello: &Hello) -> Result<(), String> {
    if known == hello.incarnation {
        return Ok(());
    }
    let name = &hello.node_name;
    Err(format!(
        "node {name} returned with another data directory: it must be replaced, not restarted"
    ))
}

/// Whom a node dials once it has this map: all nodes that have joined, but for those whose place and
/// address a successor has taken over.
pub(crate) fn peers_in(map: &PlacementMap, own: NodeId) -> BTreeMap<NodeId, (String, String)> {
    let succeeded = |node: &quorate_placement::Node| {
        let other = |other: &quorate_placement::Node| {
            other.id != node.id && other.has_joined() && other.peer_address == node.peer_address
        };
        node.standing == Standing::Leaving && map.nodes().any(other)
    };
    map.nodes()
        .filter(|node| node.id != own && node.has_joined() && !succeeded(node))
        .map(|node| (node.id, (node.name.clone(), node.peer_address.clone())))
        .collect()
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
