//! Which peers a node speaks with, and when a founding node has heard all others: a value.

use std::collections::BTreeMap;

use quorate_transport::Hello;
use quorate_types::{Incarnation, NodeId};

/// The nodes that this one knows, and what it has heard of them.
///
/// Until a node has started it *gathers*: it notes the incarnation of every founder that says hello.
/// Once started, the table is fixed: a founder that returns with another incarnation has lost its data
/// under a known name, and is refused.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    own: NodeId,
    digest: [u8; 32],
    names: BTreeMap<NodeId, String>,
    incarnations: BTreeMap<NodeId, Incarnation>,
    started: bool,
    /// A peer has said that it has started: then there is a table already, and this node must be in it.
    found_started: bool,
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
        Self { own, digest, names, incarnations, started: false, found_started: false }
    }

    /// A node that has started with this table.
    #[must_use]
    pub(crate) fn started(
        own: NodeId,
        digest: [u8; 32],
        names: BTreeMap<NodeId, String>,
        founders: BTreeMap<NodeId, Incarnation>,
    ) -> Self {
        Self { own, digest, names, incarnations: founders, started: true, found_started: true }
    }

    /// Whether a peer may speak.
    ///
    /// # Errors
    /// In words for both sides' logs.
    pub(crate) fn judge(&self, hello: &Hello) -> Result<(), String> {
        let Some(name) = self.names.get(&hello.node) else {
            return Err(format!("node {} ({}) is not a member", hello.node_name, hello.node));
        };
        if *name != hello.node_name {
            return Err(format!(
                "node {} is called {name} here, not {}",
                hello.node, hello.node_name
            ));
        }
        if hello.node == self.own {
            return Err(format!("node {name} exists twice"));
        }
        if hello.cluster_digest != self.digest {
            return Err(format!("node {name} was given another initial cluster"));
        }
        match self.incarnations.get(&hello.node) {
            Some(known) if self.started && *known != hello.incarnation => Err(format!(
                "node {name} returned with another data directory: it must be replaced, not restarted"
            )),
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

    /// The table, once started.
    #[must_use]
    pub(crate) fn table(&self) -> Option<&BTreeMap<NodeId, Incarnation>> {
        self.started.then_some(&self.incarnations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> BTreeMap<NodeId, String> {
        (1..=3).map(|id| (NodeId(id), format!("n{id}"))).collect()
    }

    fn hello(node: u64, incarnation: u64) -> Hello {
        Hello {
            cluster_name: "c".into(),
            cluster_digest: [9; 32],
            node: NodeId(node),
            node_name: format!("n{node}"),
            incarnation: Incarnation(incarnation),
            session: 0,
            started: false,
            synced_batches: 0,
            target: NodeId(1),
        }
    }

    fn gathering() -> Admission {
        Admission::gathering(NodeId(1), Incarnation(10), [9; 32], names())
    }

    #[test]
    fn a_founder_has_its_table_when_it_has_heard_all_others() {
        let mut admission = gathering();
        assert_eq!(admission.hear(&hello(2, 20)), None);
        assert_eq!(admission.hear(&hello(2, 21)), None, "n2 was wiped before anything began");
        let table = admission.hear(&hello(3, 30)).expect("all were heard");
        let expected = [(1, 10), (2, 21), (3, 30)].map(|(n, i)| (NodeId(n), Incarnation(i)));
        assert_eq!(table, BTreeMap::from(expected));
    }

    #[test]
    fn a_wiped_node_is_refused_after_the_start() {
        let mut admission = gathering();
        admission.hear(&hello(2, 20));
        let table = admission.hear(&hello(3, 30)).expect("complete");
        admission.start(table);
        assert_eq!(admission.judge(&hello(2, 20)), Ok(()));
        assert!(admission.judge(&hello(2, 21)).is_err());
    }

    #[test]
    fn strangers_and_nodes_of_another_initial_cluster_are_refused() {
        let admission = gathering();
        assert!(admission.judge(&hello(4, 1)).is_err(), "not a member");
        assert!(admission.judge(&hello(1, 1)).is_err(), "our own id");
        assert!(admission.judge(&Hello { node_name: "n3".into(), ..hello(2, 1) }).is_err());
        assert!(admission.judge(&Hello { cluster_digest: [8; 32], ..hello(2, 1) }).is_err());
    }

    #[test]
    fn a_founder_that_meets_a_started_peer_makes_no_table_of_its_own() {
        let mut admission = gathering();
        assert_eq!(admission.hear(&hello(2, 20)), None);
        assert_eq!(admission.hear(&Hello { started: true, ..hello(3, 30) }), None);
        assert_eq!(admission.hear(&hello(2, 21)), None);
    }

    #[test]
    fn a_table_is_adopted_only_if_it_holds_this_very_node() {
        let admission = gathering();
        let table = |own| {
            BTreeMap::from([(1, own), (2, 20), (3, 30)].map(|(n, i)| (NodeId(n), Incarnation(i))))
        };
        assert!(admission.adopt(&table(10)));
        assert!(!admission.adopt(&table(11)));
    }
}
