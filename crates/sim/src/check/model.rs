//! etcd's keyspace as a list of maps, one for each revision: slow, and written from what etcd does.
//!
//! It knows the commands that the workload makes, and no others.

use bytes::Bytes;
use quorate_types::auth::{self, AuthOutcome, Directory, Needs};
use quorate_types::kv::compare::Target;
use quorate_types::kv::{
    Command, CompactOutcome, Compare, DeleteRange, DeleteRangeOutcome, EventKind, KeyValue,
    KvError, LeaseGrant, LeaseGrantOutcome, LeaseRevokeOutcome, Op, Outcome, Put, PutOutcome,
    Range, RangeOutcome, Txn, TxnOutcome, WatchEvent, command, op, outcome,
};
use quorate_types::{KeyRange, Term};

/// Pairs in key order.
type State = Vec<KeyValue>;

/// The keyspace after each revision.
#[derive(Debug)]
pub(crate) struct Model {
    /// `states[r - 1]` is what there was at revision `r`.
    states: Vec<State>,
    floor: i64,
    leases: Vec<i64>,
    /// Not a twin: the machine's own rules. What they come to at each entry is the question.
    directory: Directory,
}

/// A command under way.
struct Working {
    state: State,
    before: i64,
    wrote: bool,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            states: vec![State::new()],
            floor: -1,
            leases: Vec::new(),
            directory: Directory::default(),
        }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.states.len() as i64
    }

    pub(crate) const fn floor(&self) -> i64 {
        self.floor
    }

    /// The pairs in a range at a revision; `None` for one that has not been.
    pub(crate) fn at(&self, range: &Range, revision: i64) -> Option<RangeOutcome> {
        let state = self.states.get(usize::try_from(revision - 1).ok()?)?;
        Some(find(state, range))
    }

    /// What happened in a range after a revision and up to another one, with the pairs as they were before. Within a
    /// revision in key order: so the workload writes.
    pub(crate) fn events(&self, range: &Range, after: i64, through: i64) -> Vec<WatchEvent> {
        let none = State::new();
        let state = |revision: i64| {
            usize::try_from(revision - 1).ok().and_then(|at| self.states.get(at)).unwrap_or(&none)
        };
        let keys = KeyRange::from_request(&range.key, &range.range_end);
        let mut events = Vec::new();
        for revision in after.max(1) + 1..=through.min(self.revision()) {
            let (before, now) = (state(revision - 1), state(revision));
            let put = now.iter().filter(|kv| kv.mod_revision == revision).map(|kv| WatchEvent {
                kind: EventKind::Put as i32,
                kv: kv.clone(),
                prev_kv: before.iter().find(|old| old.key == kv.key).cloned(),
            });
            let is_gone = |old: &&KeyValue| now.iter().all(|kv| kv.key != old.key);
            let deleted = before.iter().filter(is_gone).map(|old| WatchEvent {
                kind: EventKind::Delete as i32,
                kv: KeyValue {
                    key: old.key.clone(),
                    mod_revision: revision,
                    ..KeyValue::default()
                },
                prev_kv: Some(old.clone()),
            });
            let mut told: Vec<_> = put.chain(deleted).collect();
            told.retain(|event| keys.contains(&event.kv.key));
            told.sort_by(|a, b| a.kv.key.cmp(&b.kv.key));
            events.append(&mut told);
        }
        events
    }

    /// Applies a command of an entry of `term`.
    pub(crate) fn apply(&mut self, command: &Command, term: Term) -> Outcome {
        let body =
            self.command(command, term).unwrap_or_else(|error| outcome::Body::Error(error as i32));
        Outcome { revision: self.revision(), body: Some(body) }
    }

    fn command(&mut self, command: &Command, term: Term) -> Result<outcome::Body, KvError> {
        let before = self.revision();
        let state = self.states.last().cloned().unwrap_or_default();
        let mut working = Working { state, before, wrote: false };
        let body = command.body.as_ref().ok_or(KvError::Malformed)?;
        // Leases are asked for by nodes alone, which may attach what they like.
        self.directory.check(command.caller.as_ref(), &Needs::of_command(body))?;
        let body = match body {
            command::Body::Put(put) if put.lease != 0 && !self.leases.contains(&put.lease) => {
                return Err(KvError::LeaseNotFound);
            }
            command::Body::Put(put) => outcome::Body::Put(working.put(put)),
            command::Body::DeleteRange(delete) => {
                outcome::Body::DeleteRange(working.delete(delete))
            }
            command::Body::Txn(txn) => {
                let lacks = |op: &Op| match &op.body {
                    Some(op::Body::Put(put)) => put.lease != 0 && !self.leases.contains(&put.lease),
                    _ => false,
                };
                if working.branch(txn).1.iter().any(lacks) {
                    return Err(KvError::LeaseNotFound);
                }
                outcome::Body::Txn(working.txn(txn))
            }
            command::Body::Compact(compact) => {
                if compact.revision <= self.floor {
                    return Err(KvError::Compacted);
                }
                if compact.revision > before {
                    return Err(KvError::FutureRevision);
                }
                self.floor = compact.revision;
                outcome::Body::Compact(CompactOutcome {})
            }
            command::Body::Auth(change) => {
                self.directory.apply(change)?;
                let done = auth::outcome::Body::Done(auth::outcome::Done {});
                outcome::Body::Auth(AuthOutcome { body: Some(done) })
            }
            command::Body::LeaseGrant(grant) => {
                if self.leases.contains(&grant.id) {
                    return Err(KvError::LeaseExists);
                }
                self.leases.push(grant.id);
                let LeaseGrant { id, ttl_s } = *grant;
                outcome::Body::LeaseGrant(LeaseGrantOutcome { id, ttl_s })
            }
            command::Body::LeaseRevoke(revoke)
                if ![0, term.value()].contains(&revoke.expired_in_term) =>
            {
                return Err(KvError::StaleDeadline);
            }
            command::Body::LeaseRevoke(revoke) => {
                let at = self.leases.iter().position(|id| *id == revoke.id);
                self.leases.swap_remove(at.ok_or(KvError::LeaseNotFound)?);
                outcome::Body::LeaseRevoke(working.revoke(revoke.id))
            }
            command::Body::ChangeAlarm(_) | command::Body::ChangeDowngrade(_) => {
                unreachable!("no workload proposes them")
            }
        };
        if working.wrote {
            self.states.push(working.state);
        }
        Ok(body)
    }
}

impl Working {
    fn taken(&self) -> i64 {
        self.before + 1
    }

    fn put(&mut self, put: &Put) -> PutOutcome {
        self.wrote = true;
        let taken = self.taken();
        let at = self.state.binary_search_by(|kv| kv.key.cmp(&put.key));
        let mut new = KeyValue {
            key: put.key.clone(),
            create_revision: taken,
            mod_revision: taken,
            version: 1,
            value: put.value.clone(),
            lease: put.lease,
        };
        let prev_kv = match at {
            Ok(at) => {
                new.create_revision = self.state[at].create_revision;
                new.version = self.state[at].version + 1;
                Some(std::mem::replace(&mut self.state[at], new))
            }
            Err(at) => {
                self.state.insert(at, new);
                None
            }
        };
        PutOutcome { prev_kv: prev_kv.filter(|_| put.prev_kv) }
    }

    fn revoke(&mut self, lease: i64) -> LeaseRevokeOutcome {
        let before = self.state.len();
        self.state.retain(|kv| kv.lease != lease);
        let deleted = (before - self.state.len()) as i64;
        self.wrote |= deleted > 0;
        LeaseRevokeOutcome { deleted }
    }

    fn delete(&mut self, delete: &DeleteRange) -> DeleteRangeOutcome {
        let range = KeyRange::from_request(&delete.key, &delete.range_end);
        let (gone, kept): (State, State) =
            self.state.drain(..).partition(|kv| range.contains(&kv.key));
        self.state = kept;
        self.wrote |= !gone.is_empty();
        let deleted = gone.len() as i64;
        DeleteRangeOutcome { deleted, prev_kvs: if delete.prev_kv { gone } else { Vec::new() } }
    }

    fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let (succeeded, branch) = self.branch(txn);
        let responses = branch.iter().map(|op| self.op(op)).collect();
        TxnOutcome { succeeded, responses }
    }

    /// Whether all comparisons hold, and what is done then.
    fn branch<'t>(&self, txn: &'t Txn) -> (bool, &'t [Op]) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        (succeeded, if succeeded { &txn.success } else { &txn.failure })
    }

    fn op(&mut self, op: &Op) -> Outcome {
        let body = match &op.body {
            Some(op::Body::Put(put)) => Some(outcome::Body::Put(self.put(put))),
            Some(op::Body::DeleteRange(delete)) => {
                Some(outcome::Body::DeleteRange(self.delete(delete)))
            }
            Some(op::Body::Range(range)) => Some(outcome::Body::Range(find(&self.state, range))),
            Some(op::Body::Txn(txn)) => Some(outcome::Body::Txn(self.txn(txn))),
            None => None,
        };
        Outcome { revision: if self.wrote { self.taken() } else { self.before }, body }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.state.iter().find(|kv| kv.key == compare.key);
        match &compare.target {
            Some(Target::Value(value)) => found.is_some_and(|kv| kv.value == value),
            Some(Target::Version(version)) => found.map_or(0, |kv| kv.version) == *version,
            Some(Target::ModRevision(revision)) => {
                found.map_or(0, |kv| kv.mod_revision) == *revision
            }
            Some(Target::CreateRevision(revision)) => {
                found.map_or(0, |kv| kv.create_revision) == *revision
            }
            Some(Target::Lease(lease)) => found.map_or(0, |kv| kv.lease) == *lease,
            None => false,
        }
    }
}

fn find(state: &State, range: &Range) -> RangeOutcome {
    let keys = KeyRange::from_request(&range.key, &range.range_end);
    let kvs: Vec<_> = state.iter().filter(|kv| keys.contains(&kv.key)).cloned().collect();
    RangeOutcome { count: kvs.len() as i64, more: false, kvs }
}

/// The end of a range request that takes every key from `start` on.
pub(crate) fn to_the_end() -> Bytes {
    Bytes::from_static(b"\0")
}
