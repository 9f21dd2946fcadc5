//! How nodes come and go in the map.
//!
//! The life of a node: *added* (it gets its id, and nothing else happens), *joined* (a data directory
//! stands behind it; every group makes it a learner, and a voter once it has caught up, if that is what
//! it is meant for), *leaving* (every group drops it), *gone* (only its id is remembered). Groups say
//! where they are by reports; nothing here waits for them.

use std::collections::BTreeSet;

use quorate_types::{GroupId, Incarnation, LogIndex, Membership, NodeId};

use crate::map::{Node, PlacementMap, Standing};

/// Most nodes that are meant to stay learners, as etcd's default: each costs its leaders a full copy of
/// what they send.
pub const LEARNERS_MAX: usize = 1;

/// Why nodes cannot change in this way. Those of etcd have etcd's texts at the gateway.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemberRefusal {
    /// No such node, or it is leaving.
    #[error("there is no such member")]
    NotFound,
    /// Another node is called so.
    #[error("another member has this name")]
    NameTaken,
    /// Another node is reached there.
    #[error("another member has this peer address")]
    AddressTaken,
    /// It has no address, or its name is none that a certificate carries.
    #[error("a member needs a peer address")]
    NoAddress,
    /// It votes already.
    #[error("only a learner can be promoted")]
    NotLearner,
    /// There are [`LEARNERS_MAX`] already.
    #[error("there are too many learners")]
    TooManyLearners,
    /// The nodes that have joined would be no majority of the voters.
    #[error("too few of the remaining members have joined")]
    NotEnoughStarted,
    /// The name belongs to a node with another data directory.
    #[error("a member of this name has another data directory: it must be replaced")]
    OtherDirectory,
    /// A group's replicas as the map cannot have them.
    #[error("group {0} cannot have such replicas")]
    Replicas(GroupId),
}

/// What a change has touched: the rows to write. A node that is not in the map any more is gone.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Touched {
    /// The node that the change was about.
    pub node: NodeId,
    /// All nodes that have changed or gone.
    pub nodes: BTreeSet<NodeId>,
    /// The group whose replicas have changed.
    pub group: Option<GroupId>,
}

impl PlacementMap {
    /// Adds a node: allots it an id that no node has or had.
    ///
    /// # Errors
    /// When name or address are taken, there are too many learners, or too few nodes have joined for one
    /// more voter; the map is then as it was.
    pub fn add_node(
        &mut self,
        name: &str,
        peer_address: &str,
        standing: Standing,
    ) -> Result<Touched, MemberRefusal> {
        self.check_free(NodeId::ZERO, name, peer_address)?;
        match standing {
            Standing::Learner => {
                let learners = self.standing(Standing::Learner).count();
                if learners >= LEARNERS_MAX {
                    return Err(MemberRefusal::TooManyLearners);
                }
            }
            Standing::Voter => self.check_can_add_voter()?,
            Standing::Leaving => return Err(MemberRefusal::NotFound),
        }
        let node = Node {
            name: name.to_owned(),
            peer_address: peer_address.to_owned(),
            standing,
            ..Node::default()
        };
        Ok(self.insert_new(node))
    }

    /// Gives the node that was added under this name, or under this address without a name, its data
    /// directory. Doing so again changes nothing.
    ///
    /// # Errors
    /// When no such node was added, or another directory has joined as it.
    pub fn join_node(
        &mut self,
        name: &str,
        peer_address: &str,
        incarnation: Incarnation,
    ) -> Result<Touched, MemberRefusal> {
        let mut present = self.nodes.values().filter(|node| node.standing != Standing::Leaving);
        let by_name = present.clone().find(|node| !node.name.is_empty() && node.name == name);
        let found = by_name.or_else(|| {
            present.find(|node| node.name.is_empty() && node.peer_address == peer_address)
        });
        let Some(found) = found.filter(|_| !name.is_empty()) else {
            return Err(MemberRefusal::NotFound);
        };
        if found.has_joined() && found.incarnation != incarnation || incarnation.value() == 0 {
            return Err(MemberRefusal::OtherDirectory);
        }
        let node = Node { name: name.to_owned(), incarnation, ..found.clone() };
        Ok(self.put(node))
    }

    /// Gives a node other addresses and labels.
    ///
    /// # Errors
    /// When there is no such node, it has another name or directory, or its address is taken.
    pub fn update_node(&mut self, node: &Node) -> Result<Touched, MemberRefusal> {
        let before = self.present(node.id)?;
        if before.name != node.name {
            return Err(MemberRefusal::NameTaken);
        }
        if before.incarnation != node.incarnation {
            return Err(MemberRefusal::OtherDirectory);
        }
        if before.peer_address != node.peer_address {
            self.check_free(node.id, "", &node.peer_address)?;
        }
        let (standing, replaces) = (before.standing, before.replaces);
        Ok(self.put(Node { standing, replaces, ..node.clone() }))
    }

    /// Means a learner to vote. One that is meant to already and does not vote everywhere yet may be
    /// promoted again, to no effect.
    ///
    /// # Errors
    /// When there is no such node, or it votes already.
    pub fn promote_node(&mut self, id: NodeId) -> Result<Touched, MemberRefusal> {
        let node = self.present(id)?;
        if node.standing == Standing::Voter && self.votes(id) {
            return Err(MemberRefusal::NotLearner);
        }
        let node = Node { standing: Standing::Voter, ..node.clone() };
        Ok(self.put(node))
    }

    /// Means a node to leave. With the last group that it is in, it is gone.
    ///
    /// # Errors
    /// When there is no such node, or those that have joined would be no majority of the other voters.
    pub fn remove_node(&mut self, id: NodeId) -> Result<Touched, MemberRefusal> {
        let node = self.nodes.get(&id).ok_or(MemberRefusal::NotFound)?.clone();
        if node.standing == Standing::Voter {
            self.check_can_remove_voter(id)?;
        }
        let mut touched = self.put(Node { standing: Standing::Leaving, ..node });
        // Nobody waits for a successor that leaves, nor for a node that is removed by its own.
        for waiting in self.nodes.values_mut() {
            if waiting.replaces == Some(id) {
                waiting.replaces = None;
                touched.nodes.insert(waiting.id);
            }
        }
        touched.nodes.extend(self.forget());
        self.assert_invariants();
        Ok(touched)
    }

    /// Adds a node of the same name and standing as `id`, which keeps its replicas until the new one has
    /// caught up, and then leaves. Without an address the new node is reached where the old one was.
    ///
    /// # Errors
    /// When there is no such node, or the address is taken.
    pub fn replace_node(
        &mut self,
        id: NodeId,
        peer_address: &str,
    ) -> Result<Touched, MemberRefusal> {
        let old = self.present(id)?.clone();
        let peer_address = Some(peer_address).filter(|at| !at.is_empty());
        let peer_address = peer_address.unwrap_or(&old.peer_address).to_owned();
        self.check_free(id, "", &peer_address)?;
        self.nodes.insert(id, Node { standing: Standing::Leaving, ..old.clone() });
        let new = Node {
            name: old.name,
            peer_address,
            labels: old.labels,
            standing: old.standing,
            // A node that never was in a group is not waited for.
            replaces: Some(id).filter(|_| self.is_anywhere(id)),
            ..Node::default()
        };
        let mut touched = self.insert_new(new);
        touched.nodes.insert(id);
        touched.nodes.extend(self.forget());
        self.assert_invariants();
        Ok(touched)
    }

    /// Takes in where a group's replicas are, as its leader has them after applying its log up to `at`.
    /// What is older than what the map knows changes nothing.
    ///
    /// # Errors
    /// When there is no such group, or the replicas are none that it could have.
    pub fn report(
        &mut self,
        id: GroupId,
        replicas: &Membership,
        at: LogIndex,
    ) -> Result<Touched, MemberRefusal> {
        let refusal = MemberRefusal::Replicas(id);
        let Some(group) = self.groups.get(&id) else { return Err(refusal) };
        if at < group.reported_at {
            return Ok(Touched::default());
        }
        let known = replicas.nodes().iter().all(|node| self.nodes.contains_key(node));
        let apart = replicas.learners.iter().all(|node| !replicas.is_voter(*node));
        if replicas.voters.is_empty() || !known || !apart {
            return Err(refusal);
        }
        let group = self.groups.get_mut(&id).expect("it was found above");
        group.replicas = replicas.clone();
        group.reported_at = at;
        let mut touched = Touched { group: Some(id), ..Touched::default() };
        touched.nodes.extend(self.forget());
        self.changed();
        Ok(touched)
    }

    /// The nodes of one standing.
    pub fn standing(&self, standing: Standing) -> impl Iterator<Item = &Node> + Clone {
        self.nodes.values().filter(move |node| node.standing == standing)
    }

    /// The node of this name that is not leaving.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Node> {
        let mut present = self.nodes.values().filter(|node| node.standing != Standing::Leaving);
        present.find(|node| !name.is_empty() && node.name == name)
    }

    /// True when every group has a vote for the node, as far as groups have reported.
    #[must_use]
    pub fn votes(&self, id: NodeId) -> bool {
        self.groups.values().all(|group| group.replicas.voters.contains(&id))
    }

    /// True when some group has a replica on the node, as far as groups have reported.
    #[must_use]
    pub fn is_anywhere(&self, id: NodeId) -> bool {
        self.groups.values().any(|group| group.replicas.nodes().contains(&id))
    }

    fn present(&self, id: NodeId) -> Result<&Node, MemberRefusal> {
        let node = self.nodes.get(&id).filter(|node| node.standing != Standing::Leaving);
        node.ok_or(MemberRefusal::NotFound)
    }

    fn check_free(&self, own: NodeId, name: &str, peer_address: &str) -> Result<(), MemberRefusal> {
        if peer_address.is_empty() {
            return Err(MemberRefusal::NoAddress);
        }
        if self.named(name).is_some_and(|other| other.id != own) {
            return Err(MemberRefusal::NameTaken);
        }
        let taken = |other: &Node| {
            let leaves = other.standing == Standing::Leaving;
            other.id != own && !leaves && other.peer_address == peer_address
        };
        match self.nodes.values().any(taken) {
            true => Err(MemberRefusal::AddressTaken),
            false => Ok(()),
        }
    }

    /// etcd's rule, by which a mistyped address does not cost a majority: those that have joined must be
    /// a majority of all that would be meant to vote. A single node may always get its first fellow.
    fn check_can_add_voter(&self) -> Result<(), MemberRefusal> {
        let voters = self.standing(Standing::Voter).count() + 1;
        let joined = self.standing(Standing::Voter).filter(|node| node.has_joined()).count();
        match joined > voters / 2 || joined == 1 && voters == 2 {
            true => Ok(()),
            false => Err(MemberRefusal::NotEnoughStarted),
        }
    }

    fn check_can_remove_voter(&self, id: NodeId) -> Result<(), MemberRefusal> {
        let others = self.standing(Standing::Voter).filter(|node| node.id != id);
        let voters = others.clone().count();
        let joined = others.filter(|node| node.has_joined()).count();
        match voters > 0 && joined > voters / 2 {
            true => Ok(()),
            false => Err(MemberRefusal::NotEnoughStarted),
        }
    }

    fn insert_new(&mut self, node: Node) -> Touched {
        let mut id = self.allotted.next();
        if quorate_types::defect!(IdReused)
            && let Some((gone, _)) = self.gone.pop_first()
        {
            id = gone;
        }
        // Founders' ids come from a hash: they could lie anywhere.
        while self.nodes.contains_key(&id) || self.gone.contains_key(&id) {
            id = id.next();
        }
        self.allotted = id;
        self.put(Node { id, ..node })
    }

    fn put(&mut self, node: Node) -> Touched {
        let id = node.id;
        self.nodes.insert(id, node);
        self.changed();
        Touched { node: id, nodes: BTreeSet::from([id]), group: None }
    }

    /// Turns nodes that leave and are in no group any more into memories.
    fn forget(&mut self) -> Vec<NodeId> {
        let leaving = self.standing(Standing::Leaving).map(|node| node.id);
        let done: Vec<_> = leaving.filter(|id| !self.is_anywhere(*id)).collect();
        for id in &done {
            let node = self.nodes.remove(id).expect("it was found above");
            self.gone.insert(*id, node.name);
        }
        let mut touched = done.clone();
        for node in self.nodes.values_mut() {
            if node.replaces.is_some_and(|old| done.contains(&old)) {
                node.replaces = None;
                touched.push(node.id);
            }
        }
        touched
    }

    fn changed(&mut self) {
        self.version += 1;
        self.assert_invariants();
    }
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
