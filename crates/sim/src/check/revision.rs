//! I10 at once, and I15: what a read shows is the keyspace at its revision, and that is not too old.
//!
//! The history that is checked at the end knows no revisions. This oracle knows them, and so finds a stale read
//! when it is answered.

use std::collections::BTreeMap;

use quorate_types::NodeId;
use quorate_types::kv::{KvError, Outcome, Range, outcome};

use super::model::Model;
use super::{Checked, Oracle};

/// How fresh an answer must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Freshness {
    /// Whatever was acknowledged before it was asked for is in it.
    Linearizable,
    /// Not older than what the same gateway has answered before.
    Serializable,
}

/// The revisions that clients have seen.
#[derive(Debug, Default)]
pub(crate) struct RevisionOracle {
    /// The highest revision in any answer so far.
    acknowledged: i64,
    /// Of each request under way, what was answered anywhere, and by its own gateway, before it was asked.
    floors: BTreeMap<u64, (i64, i64)>,
    /// The highest revision that each process's gateway has answered, by node and life.
    gateways: BTreeMap<(NodeId, u64), i64>,
}

impl RevisionOracle {
    pub(crate) fn on_asked(&mut self, request: u64, gateway: (NodeId, u64)) {
        let by_gateway = self.gateways.get(&gateway).copied().unwrap_or(0);
        self.floors.insert(request, (self.acknowledged, by_gateway));
    }

    /// A client has the answer to a read of `range`.
    pub(crate) fn on_read(
        &mut self,
        request: u64,
        gateway: (NodeId, u64),
        freshness: Freshness,
        range: &Range,
        answer: &Outcome,
        model: &Model,
    ) -> Checked {
        let (anywhere, by_gateway) = self.floors.get(&request).copied().unwrap_or((0, 0));
        let floor = match freshness {
            Freshness::Linearizable => anywhere,
            Freshness::Serializable => by_gateway,
        };
        let revision = answer.revision;
        let stale = match freshness {
            Freshness::Linearizable => Oracle::Linearizability,
            Freshness::Serializable => Oracle::Revisions,
        };
        stale.check(revision >= floor, || {
            let node = gateway.0;
            format!(
                "request {request} through node {node}: {freshness:?} answer at revision {revision}, \
                 but {floor} was answered before"
            )
        })?;
        self.note(gateway, revision);
        let at = if range.revision > 0 { range.revision } else { revision };
        match &answer.body {
            Some(outcome::Body::Range(found)) => {
                let expected = model.at(range, at);
                Oracle::Revisions.check(expected.as_ref() == Some(found), || {
                    format!(
                        "request {request}: {range:?} at revision {at} of {revision} shows \
                         {found:?}, but there was {expected:?}"
                    )
                })
            }
            Some(outcome::Body::Error(error)) => {
                let fits = match KvError::try_from(*error) {
                    Ok(KvError::Compacted) => at < model.floor(),
                    Ok(KvError::FutureRevision) => at > revision,
                    Ok(_) | Err(_) => false,
                };
                Oracle::Revisions
                    .check(fits, || format!("request {request}: {range:?} gave error {error}"))
            }
            other => Err(Oracle::Revisions.broken(format!("a read answered {other:?}"))),
        }
    }

    /// A client has the answer to a write; its revision lies above all that was answered before it was asked.
    pub(crate) fn on_written(
        &mut self,
        request: u64,
        gateway: (NodeId, u64),
        revision: i64,
    ) -> Checked {
        let (floor, _) = self.floors.get(&request).copied().unwrap_or((0, 0));
        Oracle::Revisions.check(revision >= floor, || {
            format!("write {request} left revision {revision}, but {floor} was answered before")
        })?;
        self.note(gateway, revision);
        Ok(())
    }

    pub(crate) fn on_ended(&mut self, request: u64) {
        self.floors.remove(&request);
    }

    fn note(&mut self, gateway: (NodeId, u64), revision: i64) {
        self.acknowledged = self.acknowledged.max(revision);
        let highest = self.gateways.entry(gateway).or_default();
        *highest = revision.max(*highest);
    }
}
