//! The nodes of a script and the network between them, which does nothing by itself.

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::{Body, EntryId, Message, NodeId};

use crate::describe;
use crate::disk::Content;
use crate::error::ScriptError;
use crate::node::Node;
use crate::output::Output;

/// Rounds after which [`Cluster::stabilize`] gives up: something talks in circles.
const STABILIZE_ROUNDS_MAX: usize = 1_000;

/// Everything that a script acts upon.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    /// Node `n` is at `n - 1`.
    pub(crate) nodes: Vec<Node>,
    /// Sent and not yet delivered, oldest first.
    pub(crate) network: Vec<Message>,
    /// Who cannot reach whom; looked at when a message is delivered.
    pub(crate) cuts: BTreeSet<(NodeId, NodeId)>,
    /// The contents of snapshots on their way.
    snapshots: BTreeMap<EntryId, Content>,
    pub(crate) output: Output,
}

/// Which messages to deliver, and how.
pub(crate) struct Delivery {
    pub(crate) to: NodeId,
    pub(crate) from: Option<NodeId>,
    pub(crate) kind: Option<String>,
    /// So many that match stay where they are.
    pub(crate) skip: usize,
    pub(crate) count: usize,
    pub(crate) is_drop: bool,
    /// The message also stays in the network, to arrive once more.
    pub(crate) is_copy: bool,
}

impl Delivery {
    pub(crate) const fn all(to: NodeId) -> Self {
        Self {
            to,
            from: None,
            kind: None,
            skip: 0,
            count: usize::MAX,
            is_drop: false,
            is_copy: false,
        }
    }

    fn wants(&self, message: &Message) -> bool {
        message.to == self.to
            && self.from.is_none_or(|from| message.from == from)
            && self.kind.as_ref().is_none_or(|kind| describe::has_type(message, kind))
    }
}

impl Cluster {
    pub(crate) fn node(&mut self, id: NodeId) -> Result<&mut Node, ScriptError> {
        let at = (id.value() as usize).wrapping_sub(1);
        self.nodes.get_mut(at).ok_or_else(|| ScriptError::UnknownNode(id.value()))
    }

    /// The nodes named, or all that are up.
    pub(crate) fn named_or_all(&self, named: Vec<NodeId>) -> Vec<NodeId> {
        if named.is_empty() {
            self.nodes.iter().filter(|node| node.is_up()).map(Node::id).collect()
        } else {
            named
        }
    }

    /// Takes messages out of the network as `delivery` says; returns how many.
    pub(crate) fn deliver(&mut self, delivery: &Delivery) -> Result<usize, ScriptError> {
        let (mut skipped, mut taken) = (0, Vec::new());
        let mut at = 0;
        while at < self.network.len() && taken.len() < delivery.count {
            if !delivery.wants(&self.network[at]) {
                at += 1;
            } else if skipped < delivery.skip {
                skipped += 1;
                at += 1;
            } else if delivery.is_copy {
                taken.push(self.network[at].clone());
                at += 1;
            } else {
                taken.push(self.network.remove(at));
            }
        }
        let count = taken.len();
        for message in taken {
            let words = describe::message(&message);
            let arrives = !delivery.is_drop
                && !self.cuts.contains(&(message.from, message.to))
                && self.node(message.to)?.is_up();
            if let Body::Snapshot { meta } = &message.body {
                self.end_snapshot(&message, meta.last, arrives)?;
            }
            if delivery.is_drop {
                self.output.line(format!("dropped: {words}"));
            } else if !arrives {
                self.output.line(format!("lost: {words}"));
            } else {
                self.output.line(words);
                self.node(message.to)?.replica()?.step(message);
            }
        }
        Ok(count)
    }

    /// Puts a snapshot into the network.
    pub(crate) fn send_snapshot(&mut self, from: NodeId, to: NodeId) -> Result<(), ScriptError> {
        self.with_node(from, |node, output| {
            let message = node.snapshot_for(to)?;
            output.line(describe::message(&message));
            Ok(vec![message])
        })
    }

    /// A snapshot has arrived, or never will; its sender is told.
    fn end_snapshot(
        &mut self,
        message: &Message,
        last: EntryId,
        arrives: bool,
    ) -> Result<(), ScriptError> {
        if arrives {
            let content = self.snapshots.get(&last).cloned().unwrap_or_default();
            self.node(message.to)?.receive(last, content);
        }
        if self.node(message.from).is_ok_and(|node| node.is_up()) {
            let sent = arrives.then_some(last.index);
            self.node(message.from)?.replica()?.snapshot_sent(message.to, sent);
        }
        Ok(())
    }

    pub(crate) fn process_ready(&mut self, id: NodeId) -> Result<(), ScriptError> {
        self.with_node(id, Node::process_ready)
    }

    pub(crate) fn process_append(&mut self, id: NodeId) -> Result<(), ScriptError> {
        self.with_node(id, Node::process_append)
    }

    pub(crate) fn process_apply(&mut self, id: NodeId) -> Result<(), ScriptError> {
        self.with_node(id, |node, output| node.process_apply(output).map(|()| Vec::new()))
    }

    /// Runs `work` at a node and puts what it sends into the network.
    fn with_node(
        &mut self,
        id: NodeId,
        work: impl FnOnce(&mut Node, &mut Output) -> Result<Vec<Message>, ScriptError>,
    ) -> Result<(), ScriptError> {
        let mut output = std::mem::take(&mut self.output);
        let sent = self.node(id).and_then(|node| work(node, &mut output));
        self.output = output;
        let sent = sent?;
        for message in &sent {
            if let Body::Snapshot { meta } = &message.body {
                let content = self.node(id)?.content().to_vec();
                self.snapshots.insert(meta.last, content);
            }
        }
        self.network.extend(sent);
        Ok(())
    }

    /// Readies, messages, appends and applies of `ids`, round after round, until nothing is left to
    /// do.
    pub(crate) fn stabilize(&mut self, ids: &[NodeId]) -> Result<(), ScriptError> {
        for _ in 0..STABILIZE_ROUNDS_MAX {
            let mut is_done = true;
            for &id in ids {
                if self.node(id)?.has_ready() {
                    self.section(id, "handling Ready", |cluster| cluster.process_ready(id))?;
                    is_done = false;
                }
            }
            for &id in ids {
                if self.network.iter().any(|message| message.to == id) {
                    self.section(id, "receiving messages", |cluster| {
                        cluster.deliver(&Delivery::all(id)).map(|_| ())
                    })?;
                    is_done = false;
                }
            }
            for &id in ids {
                if self.node(id)?.has_append() {
                    self.section(id, "processing append thread", |cluster| {
                        while cluster.node(id)?.has_append() {
                            cluster.process_append(id)?;
                        }
                        Ok(())
                    })?;
                    is_done = false;
                }
            }
            for &id in ids {
                if self.node(id)?.has_apply() {
                    self.section(id, "processing apply thread", |cluster| {
                        while cluster.node(id)?.has_apply() {
                            cluster.process_apply(id)?;
                        }
                        Ok(())
                    })?;
                    is_done = false;
                }
            }
            if is_done {
                return Ok(());
            }
        }
        Err(ScriptError::Usage("stabilize does not come to an end".to_owned()))
    }

    fn section(
        &mut self,
        id: NodeId,
        what: &str,
        work: impl FnOnce(&mut Self) -> Result<(), ScriptError>,
    ) -> Result<(), ScriptError> {
        self.output.line(format!("> {id} {what}"));
        self.output.indent();
        let result = work(self);
        self.output.dedent();
        result
    }
}
