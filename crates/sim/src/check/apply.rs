//! I5 and I21: every replica applies what is committed, in order, with the outcomes that a slow model of the
//! machine gives; and no command is applied twice.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_types::kv::{Command, Outcome, command};
use quorate_types::{Entry, EntryId, GroupId, LogIndex, NodeId, Payload};

use super::log::LogOracle;
use super::model::Model;
use super::{Checked, Oracle};
use crate::node::FIRST;
use crate::trace::hash_of;

/// What was applied anywhere, and with what outcome.
#[derive(Debug)]
pub(crate) struct ApplyOracle {
    /// The outcome of each index from FIRST + 1 on, hashed; 0 for a no-op.
    outcomes: Vec<u64>,
    /// How far each node has come in its present life.
    applied: BTreeMap<NodeId, LogIndex>,
    /// The keyspace, for the group that holds it.
    model: Option<Model>,
    /// Commands that were made for one request only, and where they were applied.
    commands: BTreeMap<u64, EntryId>,
    /// Commands of which a client was told that they were not done.
    refused: BTreeSet<u64>,
    /// Commands about leases that were applied for the first time, and are still to be judged.
    pub(crate) of_leases: Vec<(Command, Outcome)>,
}

impl ApplyOracle {
    pub(crate) fn new(group: GroupId) -> Self {
        Self {
            outcomes: Vec::new(),
            applied: BTreeMap::new(),
            model: (group == GroupId::FIRST_DATA).then(Model::new),
            commands: BTreeMap::new(),
            refused: BTreeSet::new(),
            of_leases: Vec::new(),
        }
    }

    /// The keyspace as of the furthest replica.
    pub(crate) const fn model(&self) -> Option<&Model> {
        self.model.as_ref()
    }

    /// A process of `node` found its state applied up to here.
    pub(crate) fn on_started(&mut self, node: NodeId, applied: LogIndex) {
        self.applied.insert(node, applied);
    }

    pub(crate) fn on_applied(
        &mut self,
        node: NodeId,
        entries: &[Entry],
        outcomes: &[(EntryId, Bytes)],
        log: &LogOracle,
        is_right: bool,
    ) -> Checked {
        let mut outcomes = outcomes.iter();
        for entry in entries {
            let before = self.applied.get(&node).copied().unwrap_or(FIRST.index);
            Oracle::StateMachineSafety.check(entry.id.index == before.next(), || {
                format!("node {node} applies {} after {before}", entry.id)
            })?;
            let committed = log.committed_at(entry.id.index);
            Oracle::StateMachineSafety.check(committed == Some(entry.id), || {
                format!("node {node} applies {}, but {committed:?} is committed", entry.id)
            })?;
            self.applied.insert(node, entry.id.index);
            let outcome = match &entry.payload {
                Payload::Empty | Payload::Membership(_) => None,
                Payload::Command(command) => {
                    let next = outcomes.next().filter(|(id, _)| *id == entry.id);
                    let Some((_, outcome)) = next else {
                        return Err(Oracle::StateMachineSafety
                            .broken(format!("node {node} has no outcome for {}", entry.id)));
                    };
                    Some((command, outcome))
                }
            };
            // A state that is known to be spoiled gives wrong outcomes.
            if is_right {
                self.on_outcome(node, entry.id, outcome)?;
            }
        }
        Ok(())
    }

    fn on_outcome(
        &mut self,
        node: NodeId,
        id: EntryId,
        outcome: Option<(&Bytes, &Bytes)>,
    ) -> Checked {
        let hash = outcome.map_or(0, |(_, outcome)| hash_of(outcome.as_ref()));
        let at = id.index.since(FIRST.index) as usize - 1;
        if let Some(&known) = self.outcomes.get(at) {
            return Oracle::StateMachineSafety.check(known == hash, || {
                format!("node {node}: the outcome of {id} differs from that of another replica")
            });
        }
        Oracle::StateMachineSafety
            .check(at == self.outcomes.len(), || format!("node {node} is first to apply {id}"))?;
        self.outcomes.push(hash);
        let Some((command, outcome)) = outcome else { return Ok(()) };
        self.on_first_outcome(node, id, command, outcome)
    }

    fn on_first_outcome(
        &mut self,
        node: NodeId,
        id: EntryId,
        bytes: &Bytes,
        outcome: &Bytes,
    ) -> Checked {
        let Some(model) = &mut self.model else { return Ok(()) };
        let (Ok(command), Ok(outcome)) =
            (Command::decode(bytes.clone()), Outcome::decode(outcome.clone()))
        else {
            return Err(Oracle::StateMachineSafety.broken(format!("{id} cannot be read")));
        };
        let expected = model.apply(&command, id.term);
        Oracle::Revisions.check(outcome.revision == expected.revision, || {
            format!(
                "node {node}: {id} leaves revision {}, expected {}: {command:?}",
                outcome.revision, expected.revision
            )
        })?;
        Oracle::StateMachineSafety.check(outcome == expected, || {
            format!("node {node}: {id} {command:?} gave {outcome:?}, expected {expected:?}")
        })?;
        // Two compactions may be the same, two revokes of clients, and two changes of users; everything else carries a
        // value of its own, or is proposed once in its term.
        let may_repeat = match &command.body {
            Some(command::Body::Compact(_) | command::Body::Auth(_)) => true,
            Some(command::Body::LeaseRevoke(revoke)) => revoke.expired_in_term == 0,
            _ => false,
        };
        if !may_repeat {
            let hash = hash_of(bytes.as_ref());
            let before = self.commands.insert(hash, id);
            Oracle::ExactlyOnce.check(before.is_none(), || {
                format!("{id} applies the command of {before:?} again: {command:?}")
            })?;
            Oracle::ExactlyOnce.check(!self.refused.contains(&hash), || {
                format!("{id} applies a command that was refused: {command:?}")
            })?;
        }
        if matches!(
            command.body,
            Some(command::Body::LeaseGrant(_) | command::Body::LeaseRevoke(_))
        ) {
            self.of_leases.push((command, outcome));
        }
        Ok(())
    }

    /// A client is told that its command was not done.
    pub(crate) fn on_refused(&mut self, command: &Bytes) -> Checked {
        let hash = hash_of(command.as_ref());
        let applied = self.commands.get(&hash);
        Oracle::ExactlyOnce.check(applied.is_none(), || {
            format!("a command is refused that was applied as {applied:?}")
        })?;
        self.refused.insert(hash);
        Ok(())
    }

    /// A client is told that its command was applied as `id`.
    pub(crate) fn on_acknowledged(&self, id: EntryId, command: &Bytes) -> Checked {
        if self.model.is_none() {
            return Ok(());
        }
        let known = self.commands.get(&hash_of(command.as_ref()));
        Oracle::Durability.check(known.is_none_or(|&applied| applied == id), || {
            format!("a command is acknowledged as {id}, but was applied as {known:?}")
        })
    }
}
