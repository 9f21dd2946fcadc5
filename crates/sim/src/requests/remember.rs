//! What a client keeps of an answer, and what is written down of it for the judge of histories.

use bytes::Bytes;
use prost::Message;
use quorate_placement::Answer as MapAnswer;
use quorate_types::GroupId;
use quorate_types::kv::{Outcome, outcome};

use super::Request;
use crate::check::history::{Action, Operation, Value};
use crate::client::{Ask, key_number, value_number};
use crate::world::World;

impl World {
    /// Writes down what a client did, and lets it learn.
    pub(super) fn remember(&mut self, request: &Request, outcome: Option<&Bytes>) {
        let to_us = outcome.map(|_| self.now_us);
        let answer = outcome.and_then(|outcome| Outcome::decode(outcome.clone()).ok());
        let body = answer.as_ref().and_then(|answer| answer.body.as_ref());
        let mut actions: Vec<(u32, Action)> = Vec::new();
        let keys = 0..self.plan.workload.keys;
        match &request.ask {
            Ask::Put { key, value } => actions.push((*key, Action::Put(*value))),
            Ask::Batch { values } => {
                actions.extend(values.iter().map(|(&key, &value)| (key, Action::Put(value))));
            }
            Ask::Swap { key, expected, new } => {
                let result = match body {
                    Some(outcome::Body::Txn(txn)) if txn.succeeded => Some(None),
                    Some(outcome::Body::Txn(txn)) => {
                        Some(Some(value_in(txn.responses.first(), *key)))
                    }
                    _ => None,
                };
                let action = Action::Swap { expected: *expected, new: *new, result };
                actions.push((*key, action));
            }
            Ask::Delete { key } => {
                let removed = match body {
                    Some(outcome::Body::Txn(txn)) => txn.responses.first(),
                    _ => None,
                };
                let of = key.map_or(keys, |key| key..key + 1);
                actions.extend(of.map(|key| {
                    let seen = removed.map(|removed| value_in(Some(removed), key));
                    (key, Action::Delete { seen })
                }));
            }
            Ask::Read { key, local: false } => {
                if let Some(answer) = &answer {
                    actions.push((*key, Action::Read(value_in(Some(answer), *key))));
                }
            }
            Ask::Range { local: false } => {
                if let Some(answer) = &answer {
                    actions
                        .extend(keys.map(|key| (key, Action::Read(value_in(Some(answer), key)))));
                }
            }
            Ask::ReadMap => {
                let map = outcome.and_then(|outcome| MapAnswer::map(outcome).ok()).flatten();
                if let (Some(map), Some(at)) = (map, self.clients.get_mut(request.client as usize))
                {
                    at.map = Some(map);
                }
                return;
            }
            Ask::Read { local: true, .. }
            | Ask::Range { local: true }
            | Ask::History { .. }
            | Ask::Compact { .. }
            | Ask::Grant { .. }
            | Ask::Attach { .. }
            | Ask::KeepAlive { .. }
            | Ask::Revoke { .. }
            | Ask::Users(_)
            | Ask::ChangeMap { .. }
            | Ask::Report { .. } => {}
        }
        if let (Ask::KeepAlive { id }, Some(outcome::Body::LeaseKeepAlive(kept))) =
            (&request.ask, body)
            && kept.ttl_s == 0
            && let Some(at) = self.clients.get_mut(request.client as usize)
        {
            at.leases.retain(|lease| lease != id);
        }
        if let (Some(at), Some(answer)) = (self.clients.get_mut(request.client as usize), &answer)
            && request.ask.group() == GroupId::FIRST_DATA
        {
            at.revision = at.revision.max(answer.revision);
            at.seen
                .extend(actions.iter().filter_map(|(key, action)| Some((*key, left_by(*action)?))));
        }
        for (key, action) in actions {
            self.checks.history.push(Operation { key, action, from_us: request.from_us, to_us });
        }
    }
}

/// The value of a key in the answer to a range or a delete.
pub(super) fn value_in(answer: Option<&Outcome>, key: u32) -> Value {
    let kvs = match answer?.body.as_ref()? {
        outcome::Body::Range(range) => &range.kvs,
        outcome::Body::DeleteRange(delete) => &delete.prev_kvs,
        _ => return None,
    };
    let found = kvs.iter().find(|kv| key_number(&kv.key) == Some(key))?;
    value_number(&found.value)
}

/// What a key held after an action, as far as its client knows.
const fn left_by(action: Action) -> Option<Value> {
    match action {
        Action::Put(value) => Some(Some(value)),
        Action::Delete { .. } => Some(None),
        Action::Swap { new, result: Some(None), .. } => Some(Some(new)),
        Action::Swap { result: Some(Some(seen)), .. } | Action::Read(seen) => Some(seen),
        Action::Swap { result: None, .. } => None,
    }
}
