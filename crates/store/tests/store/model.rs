//! etcd's keyspace as a list of maps: one whole map for each revision. Written from what etcd does, not
//! from how the store does it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_types::kv::compare::Target;
use quorate_types::kv::{
    Command, CompactOutcome, Compare, DeleteRangeOutcome, KeyValue, KvError, LeaseGrantOutcome,
    LeaseRevokeOutcome, Op, Outcome, Put, PutOutcome, Range, RangeOutcome, Txn, TxnOutcome,
    command, op, outcome,
};

type State = BTreeMap<Bytes, KeyValue>;
/// Starts and ends, as etcd's interval tree takes them: an end of one zero byte is below any start.
type Intervals = Vec<(Bytes, Bytes)>;
type Result<T> = std::result::Result<T, KvError>;

/// The keyspace. Only for well-formed commands.
pub(crate) struct Model {
    /// What there was after each revision that changed anything.
    states: BTreeMap<i64, State>,
    pub(crate) floor: i64,
    drawn: i64,
    /// Times to live, in seconds. Leases have no revisions.
    pub(crate) leases: BTreeMap<i64, i64>,
}

/// A command under way.
struct Working {
    state: State,
    before: i64,
    taken: i64,
    wrote: bool,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { states: [(1, State::new())].into(), floor: -1, drawn: 0, leases: BTreeMap::new() }
    }

    pub(crate) fn revision(&self) -> i64 {
        *self.states.last_key_value().unwrap().0
    }

    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        let body = self.command(command).unwrap_or_else(|error| outcome::Body::Error(error as i32));
        Outcome { revision: self.revision(), body: Some(body) }
    }

    pub(crate) fn range(&self, range: &Range) -> Outcome {
        let now = &self.states[&self.revision()];
        let body = match self.range_in(range, now, self.revision()) {
            Ok(outcome) => outcome::Body::Range(outcome),
            Err(error) => outcome::Body::Error(error as i32),
        };
        Outcome { revision: self.revision(), body: Some(body) }
    }

    fn command(&mut self, command: &Command) -> Result<outcome::Body> {
        let last = self.revision().max(self.drawn);
        let taken = if command.at_revision == 0 { last + 1 } else { command.at_revision };
        if taken <= last {
            return Err(KvError::StaleRevision);
        }
        self.drawn = self.drawn.max(command.at_revision);
        let before = self.revision();
        let start = self.states[&before].clone();
        let mut working = Working { state: start.clone(), before, taken, wrote: false };
        let body = match command.body.as_ref().unwrap() {
            command::Body::Put(put) => {
                self.lease(put)?;
                outcome::Body::Put(working.put(put)?)
            }
            command::Body::DeleteRange(delete) => outcome::Body::DeleteRange(working.delete(
                &delete.key,
                &delete.range_end,
                delete.prev_kv,
            )),
            command::Body::Txn(txn) => {
                writes(&txn.success)?;
                writes(&txn.failure)?;
                self.check(txn, &start)?;
                outcome::Body::Txn(self.run(txn, &start, &mut working))
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
            command::Body::Auth(_) => unreachable!("nobody generates changes of users"),
            command::Body::LeaseGrant(grant) => {
                if grant.id == 0 {
                    return Err(KvError::LeaseNotFound);
                }
                if grant.ttl_s > 9_000_000_000 {
                    return Err(KvError::LeaseTtlTooLarge);
                }
                if self.leases.contains_key(&grant.id) {
                    return Err(KvError::LeaseExists);
                }
                let ttl_s = grant.ttl_s.max(1);
                self.leases.insert(grant.id, ttl_s);
                outcome::Body::LeaseGrant(LeaseGrantOutcome { id: grant.id, ttl_s })
            }
            command::Body::LeaseRevoke(revoke) => {
                // All entries of a host are of term 1.
                if revoke.expired_in_term > 1 {
                    return Err(KvError::StaleDeadline);
                }
                if self.leases.remove(&revoke.id).is_none() {
                    return Err(KvError::LeaseNotFound);
                }
                let before = working.state.len();
                working.state.retain(|_, kv| kv.lease != revoke.id);
                let deleted = (before - working.state.len()) as i64;
                working.wrote = deleted > 0;
                outcome::Body::LeaseRevoke(LeaseRevokeOutcome { deleted })
            }
            command::Body::ChangeAlarm(_) | command::Body::ChangeDowngrade(_) => {
                unreachable!("never drawn")
            }
        };
        if working.wrote {
            self.states.insert(taken, working.state);
        }
        Ok(body)
    }

    fn lease(&self, put: &Put) -> Result<()> {
        if put.lease == 0 || self.leases.contains_key(&put.lease) {
            Ok(())
        } else {
            Err(KvError::LeaseNotFound)
        }
    }

    /// The keys that are attached to a lease now.
    pub(crate) fn attached(&self, lease: i64) -> Vec<Bytes> {
        let now = &self.states[&self.revision()];
        now.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect()
    }

    /// What would fail on the way: first puts, then ranges.
    fn check(&self, txn: &Txn, start: &State) -> Result<()> {
        let mut ops = Vec::new();
        flatten(txn, start, &mut ops);
        let mut state = start.clone();
        for op in &ops {
            match op {
                op::Body::Put(put) => {
                    if (put.ignore_value || put.ignore_lease) && !state.contains_key(&put.key) {
                        return Err(KvError::KeyNotFound);
                    }
                    self.lease(put)?;
                }
                op::Body::DeleteRange(delete) => {
                    state.retain(|key, _| !inside(key, &delete.key, &delete.range_end));
                }
                op::Body::Range(_) | op::Body::Txn(_) => {}
            }
        }
        for op in &ops {
            if let op::Body::Range(range) = op {
                if range.revision > self.revision() {
                    return Err(KvError::FutureRevision);
                }
                if range.revision != 0 && range.revision < self.floor {
                    return Err(KvError::Compacted);
                }
            }
        }
        Ok(())
    }

    fn run(&self, txn: &Txn, start: &State, working: &mut Working) -> TxnOutcome {
        let (succeeded, ops) = branch(txn, start);
        let mut responses = Vec::new();
        for op in ops {
            let body = match op.body.as_ref().unwrap() {
                op::Body::Range(range) => outcome::Body::Range(
                    self.range_in(range, &working.state, working.revision()).unwrap(),
                ),
                op::Body::Put(put) => outcome::Body::Put(working.put(put).unwrap()),
                op::Body::DeleteRange(delete) => outcome::Body::DeleteRange(working.delete(
                    &delete.key,
                    &delete.range_end,
                    delete.prev_kv,
                )),
                op::Body::Txn(txn) => {
                    let body = Some(outcome::Body::Txn(self.run(txn, start, working)));
                    responses.push(Outcome { revision: 0, body });
                    continue;
                }
            };
            responses.push(Outcome { revision: working.revision(), body: Some(body) });
        }
        TxnOutcome { succeeded, responses }
    }

    /// `now` is what there is at `revision`, the largest that may be read.
    fn range_in(&self, range: &Range, now: &State, revision: i64) -> Result<RangeOutcome> {
        if range.revision > revision {
            return Err(KvError::FutureRevision);
        }
        let state = if range.revision <= 0 || range.revision == revision {
            if revision < self.floor {
                return Err(KvError::Compacted);
            }
            now
        } else {
            if range.revision < self.floor {
                return Err(KvError::Compacted);
            }
            self.states.range(..=range.revision).next_back().map_or(now, |(_, state)| state)
        };
        let mut kvs: Vec<KeyValue> = state
            .values()
            .filter(|kv| inside(&kv.key, &range.key, &range.range_end))
            .cloned()
            .collect();
        if range.page_bytes > 0 {
            return Ok(page(range, kvs));
        }
        let count = kvs.len() as i64;
        if range.count_only {
            kvs.clear();
        }
        let filters = [
            range.min_mod_revision,
            range.max_mod_revision,
            range.min_create_revision,
            range.max_create_revision,
        ];
        if range.limit > 0 && range.sort_order == 0 && filters == [0; 4] {
            kvs.truncate(range.limit as usize + 1);
        }
        let [min_mod, max_mod, min_create, max_create] = filters;
        kvs.retain(|kv| max_mod == 0 || kv.mod_revision <= max_mod);
        kvs.retain(|kv| min_mod == 0 || kv.mod_revision >= min_mod);
        kvs.retain(|kv| max_create == 0 || kv.create_revision <= max_create);
        kvs.retain(|kv| min_create == 0 || kv.create_revision >= min_create);
        let sign = if range.sort_order == 2 { -1 } else { 1 };
        match range.sort_target {
            0 if sign == -1 => kvs.reverse(),
            0 => {}
            1 => kvs.sort_by_key(|kv| sign * kv.version),
            2 => kvs.sort_by_key(|kv| sign * kv.create_revision),
            3 => kvs.sort_by_key(|kv| sign * kv.mod_revision),
            _ if sign == -1 => kvs.sort_by(|a, b| b.value.cmp(&a.value)),
            _ => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
        }
        let more = range.limit > 0 && kvs.len() > range.limit as usize;
        if more {
            kvs.truncate(range.limit as usize);
        }
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeOutcome { kvs, more, count })
    }
}

/// As many of `all` as a page takes.
fn page(range: &Range, all: Vec<KeyValue>) -> RangeOutcome {
    let (mut kvs, mut bytes) = (Vec::new(), 0);
    for mut kv in all {
        if range.keys_only {
            kv.value = Bytes::new();
        }
        bytes += kv.encoded_len() as u64;
        let enough = range.limit > 0 && kvs.len() == range.limit as usize;
        if enough || bytes > range.page_bytes && !kvs.is_empty() {
            return RangeOutcome { kvs, more: true, count: 0 };
        }
        kvs.push(kv);
    }
    RangeOutcome { kvs, more: false, count: 0 }
}

impl Working {
    fn revision(&self) -> i64 {
        if self.wrote { self.taken } else { self.before }
    }

    fn put(&mut self, put: &Put) -> Result<PutOutcome> {
        let before = self.state.get(&put.key).cloned();
        if before.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(KvError::KeyNotFound);
        }
        let mut after = KeyValue {
            key: put.key.clone(),
            create_revision: self.taken,
            mod_revision: self.taken,
            version: 1,
            value: put.value.clone(),
            lease: put.lease,
        };
        if let Some(before) = &before {
            after.create_revision = before.create_revision;
            after.version = before.version + 1;
            if put.ignore_value {
                after.value = before.value.clone();
            }
            if put.ignore_lease {
                after.lease = before.lease;
            }
        }
        self.state.insert(put.key.clone(), after);
        self.wrote = true;
        Ok(PutOutcome { prev_kv: before.filter(|_| put.prev_kv) })
    }

    fn delete(&mut self, key: &Bytes, range_end: &Bytes, prev_kv: bool) -> DeleteRangeOutcome {
        let gone: Vec<_> =
            self.state.values().filter(|kv| inside(&kv.key, key, range_end)).cloned().collect();
        for kv in &gone {
            self.state.remove(&kv.key);
            self.wrote = true;
        }
        let deleted = gone.len() as i64;
        DeleteRangeOutcome { deleted, prev_kvs: if prev_kv { gone } else { Vec::new() } }
    }
}

fn inside(key: &Bytes, start: &Bytes, range_end: &Bytes) -> bool {
    match &range_end[..] {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && &key[..] < end,
    }
}

fn branch<'t>(txn: &'t Txn, start: &State) -> (bool, &'t [Op]) {
    let succeeded = txn.compares.iter().all(|compare| holds(compare, start));
    (succeeded, if succeeded { &txn.success } else { &txn.failure })
}

fn flatten<'t>(txn: &'t Txn, start: &State, ops: &mut Vec<&'t op::Body>) {
    for op in branch(txn, start).1 {
        match op.body.as_ref().unwrap() {
            op::Body::Txn(txn) => flatten(txn, start, ops),
            other => ops.push(other),
        }
    }
}

fn holds(compare: &Compare, start: &State) -> bool {
    let kvs: Vec<_> =
        start.values().filter(|kv| inside(&kv.key, &compare.key, &compare.range_end)).collect();
    if kvs.is_empty() {
        return !matches!(compare.target, Some(Target::Value(_)))
            && holds_for(compare, &KeyValue::default());
    }
    kvs.iter().all(|kv| holds_for(compare, kv))
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match compare.target.as_ref() {
        Some(Target::Version(given)) => kv.version.cmp(given),
        Some(Target::CreateRevision(given)) => kv.create_revision.cmp(given),
        Some(Target::ModRevision(given)) => kv.mod_revision.cmp(given),
        Some(Target::Lease(given)) => kv.lease.cmp(given),
        Some(Target::Value(given)) => kv.value.cmp(given),
        None => kv.version.cmp(&0),
    };
    match compare.result {
        0 => order.is_eq(),
        1 => order.is_gt(),
        2 => order.is_lt(),
        3 => order.is_ne(),
        _ => true,
    }
}

/// The puts of `ops` by any way, and the deletes.
fn writes(ops: &[Op]) -> Result<(BTreeSet<Bytes>, Intervals)> {
    let mut deletes = Intervals::new();
    for op in ops {
        if let Some(op::Body::DeleteRange(delete)) = &op.body {
            let end = match &delete.range_end {
                end if end.is_empty() => [&delete.key[..], &[0]].concat().into(),
                end => end.clone(),
            };
            deletes.push((delete.key.clone(), end));
        }
    }
    let hit = |deletes: &[(Bytes, Bytes)], key: &Bytes| {
        deletes.iter().any(|(start, end)| start <= key && key < end)
    };
    let mut puts = BTreeSet::new();
    for op in ops {
        if let Some(op::Body::Txn(txn)) = &op.body {
            let (then_puts, then_deletes) = writes(&txn.success)?;
            let (else_puts, else_deletes) = writes(&txn.failure)?;
            for key in &then_puts {
                if puts.contains(key) || hit(&deletes, key) {
                    return Err(KvError::DuplicateKey);
                }
            }
            for key in &else_puts {
                if puts.contains(key) || hit(&deletes, key) {
                    return Err(KvError::DuplicateKey);
                }
            }
            puts.extend(then_puts);
            puts.extend(else_puts);
            deletes.extend(then_deletes);
            deletes.extend(else_deletes);
        }
    }
    for op in ops {
        if let Some(op::Body::Put(put)) = &op.body
            && (hit(&deletes, &put.key) || !puts.insert(put.key.clone()))
        {
            return Err(KvError::DuplicateKey);
        }
    }
    Ok((puts, deletes))
}
