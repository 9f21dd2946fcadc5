//! The keyspace as a [`StateMachine`], and its kind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use quorate_types::kv::{
    Command, CompactOutcome, DeleteRange, DeleteRangeOutcome, KvError, Op, Outcome, Put,
    PutOutcome, Query, StatusOutcome, Txn, TxnOutcome, command, op, outcome, query,
};
use quorate_types::machine::{ReadError, RowScope, StateError};
use quorate_types::{
    Committed, Digest, Digested, GroupId, MachineKind, StateBatch, StateMachine, StateReader,
};

use super::alarms::{change_alarm, change_downgrade, conditions};
use super::hash::{hash_all, hash_kv};
use super::hashing::Seeded;
use super::meta::{AlarmCounts, Meta};
use super::pairs::Pairs;
use super::read::{Refusal, View};
use super::recent::Recent;
use super::sweep::sweep;
use super::txn::{Access, Plan, check_form, check_lease, is_read_only};
use super::write::Writer;

/// The kind "kv": etcd's keyspace.
///
/// One for each node: it remembers what was read lately of the machines that it has opened.
#[derive(Default, Debug)]
pub struct KvKind {
    hashing: Seeded,
    pairs: Mutex<BTreeMap<GroupId, Arc<Pairs>>>,
}

/// The keyspace of one group. Commands are [`Command`]s, queries [`Query`]s, outcomes [`Outcome`]s.
///
/// Rows are keyed by key alone: one group of this kind owns all of the node's keyspace for now.
///
/// After an error of the engine, a machine may be ahead of the batch that will never be written: it must
/// be dropped, and opened again from what the engine holds.
#[derive(Debug)]
pub struct KvMachine {
    meta: Meta,
    recent: Recent,
    pairs: Arc<Pairs>,
}

impl KvKind {
    /// Its persisted name.
    pub const NAME: &str = "kv";

    /// With a seed that those who choose keys do not know. [`KvKind::default`] takes the same each time, for
    /// tests.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { hashing: Seeded(seed), pairs: Mutex::default() }
    }

    /// What was read lately of the machine that was opened last for `group`.
    fn pairs(&self, group: GroupId) -> Option<Arc<Pairs>> {
        lock(&self.pairs).get(&group).cloned()
    }

    fn answer(
        &self,
        group: GroupId,
        query: Option<query::Body>,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        let malformed = |why: &str| ReadError::Malformed(why.into());
        let meta = Meta::decode(meta)?;
        let pairs = self.pairs(group);
        let view = View {
            rows: state,
            revision: meta.revision,
            floor: meta.floor,
            pairs: pairs.as_deref(),
        };
        let body = match query {
            Some(query::Body::Range(range)) => view.range(&range).map(outcome::Body::Range),
            Some(query::Body::Txn(txn)) if !is_read_only(&txn) => {
                return Err(malformed("a transaction that writes is no query"));
            }
            Some(query::Body::Txn(txn)) => read_txn(&txn, view).map(outcome::Body::Txn),
            Some(query::Body::Status(_)) => Ok(outcome::Body::Status(StatusOutcome {
                compact_revision: meta.floor.max(0),
                swept_revision: meta.swept.revision,
            })),
            Some(query::Body::HashKv(asked)) => {
                hash_kv(&view, asked.revision).map(outcome::Body::Hash)
            }
            Some(query::Body::HashAll(_)) => hash_all(&view).map(outcome::Body::Hash),
            Some(query::Body::Conditions(_)) => Ok(outcome::Body::Conditions(conditions(state)?)),
            None => return Err(malformed("no question")),
        };
        Ok(answer(meta.revision, body)?.encode_to_vec().into())
    }
}

impl MachineKind for KvKind {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self) -> RowScope {
        RowScope::Keyspace
    }

    fn grows(&self, command: &Bytes) -> bool {
        Command::decode(command.clone()).is_ok_and(|command| command.grows())
    }

    fn open(
        &self,
        group: GroupId,
        meta: &[u8],
        _state: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        let meta = Meta::decode(meta)?;
        // Pairs of their own: an earlier machine may end later than this one begins.
        let pairs = Arc::new(Pairs::new(meta.revision, self.hashing));
        lock(&self.pairs).insert(group, Arc::clone(&pairs));
        Ok(Box::new(KvMachine { meta, recent: Recent::new(self.hashing), pairs }))
    }

    fn read(
        &self,
        group: GroupId,
        query: &Bytes,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        self.answer(group, decode(query)?, meta, state)
    }

    fn read_few(
        &self,
        group: GroupId,
        query: &Bytes,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Option<Result<Bytes, ReadError>> {
        match decode(query) {
            Ok(query) => {
                looks_at_few(query.as_ref()).then(|| self.answer(group, query, meta, state))
            }
            Err(error) => Some(Err(error)),
        }
    }
}

fn decode(query: &Bytes) -> Result<Option<query::Body>, ReadError> {
    match Query::decode(query.clone()) {
        Ok(query) => Ok(query.body),
        Err(error) => Err(ReadError::Malformed(error.to_string())),
    }
}

fn looks_at_few(query: Option<&query::Body>) -> bool {
    match query {
        Some(query::Body::Range(range)) => range.range_end.is_empty(),
        Some(query::Body::Txn(txn)) => names_single_keys(txn),
        // Both are answered without looking at a key.
        Some(query::Body::Status(_) | query::Body::Conditions(_)) | None => true,
        Some(query::Body::HashKv(_) | query::Body::HashAll(_)) => false,
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under the lock can panic half way through a change.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for KvMachine {
    fn drop(&mut self) {
        self.pairs.end();
    }
}

/// True for a transaction of a few single keys; one that nests others is not looked into.
fn names_single_keys(txn: &Txn) -> bool {
    const KEYS_MAX: usize = 16;
    let ops = || txn.success.iter().chain(&txn.failure);
    let is_single = |op: &Op| match &op.body {
        Some(op::Body::Range(range)) => range.range_end.is_empty(),
        Some(op::Body::Put(_)) | None => true,
        Some(op::Body::DeleteRange(_) | op::Body::Txn(_)) => false,
    };
    txn.compares.len() + ops().count() <= KEYS_MAX
        && txn.compares.iter().all(|compare| compare.range_end.is_empty())
        && ops().all(is_single)
}

impl StateMachine for KvMachine {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let mut digest = self.meta.digest.unwrap_or_default();
        let batch = &mut Digested::new(batch, &mut digest);
        let apply = |committed: &Committed| {
            let body = match Command::decode(committed.command.clone()) {
                Ok(command) => self.command(&command, batch),
                Err(_) => Err(KvError::Malformed.into()),
            };
            Ok(answer(self.meta.revision, body)?.encode_to_vec().into())
        };
        let outcomes = committed.iter().map(apply).collect();
        self.meta.digest = self.meta.digest.map(|_| digest);
        outcomes
    }

    fn digest(&self) -> Option<Digest> {
        self.meta.digest
    }

    fn meta(&self) -> Bytes {
        self.meta.encode()
    }

    fn sweep(
        &mut self,
        budget_rows: usize,
        batch: &mut dyn StateBatch,
    ) -> Result<bool, StateError> {
        sweep(&mut self.meta, budget_rows, batch)
    }
}

impl KvMachine {
    /// Applies one command. When it is refused, nothing has changed.
    fn command(
        &mut self,
        command: &Command,
        batch: &mut dyn StateBatch,
    ) -> Result<outcome::Body, Refusal> {
        let body = command.body.as_ref().ok_or(KvError::Malformed)?;
        // A compaction takes no revision, but it does bring one along, which must not be stale either.
        let taken = self.meta.next(command.at_revision);
        if command.at_revision != 0 {
            taken?;
            self.meta.drawn = command.at_revision;
        }
        let is_upkeep =
            matches!(body, command::Body::ChangeAlarm(_) | command::Body::ChangeDowngrade(_));
        if self.meta.alarms != AlarmCounts::default() {
            self.meta.alarms.check(!is_upkeep, command.grows())?;
        }
        match body {
            command::Body::Put(put) => self.put(put, taken?, batch).map(outcome::Body::Put),
            command::Body::DeleteRange(delete) => {
                self.delete_range(delete, taken?, batch).map(outcome::Body::DeleteRange)
            }
            command::Body::Txn(txn) if is_read_only(txn) => {
                read_txn(txn, self.view(batch)).map(outcome::Body::Txn)
            }
            command::Body::Txn(txn) => self.txn(txn, taken?, batch).map(outcome::Body::Txn),
            command::Body::Compact(compact) => {
                self.meta.compact(compact.revision)?;
                Ok(outcome::Body::Compact(CompactOutcome {}))
            }
            command::Body::ChangeAlarm(change) => {
                change_alarm(*change, &mut self.meta, batch).map(outcome::Body::Conditions)
            }
            command::Body::ChangeDowngrade(change) => {
                change_downgrade(change, batch).map(outcome::Body::Conditions)
            }
        }
    }

    fn put(
        &mut self,
        put: &Put,
        taken: i64,
        batch: &mut dyn StateBatch,
    ) -> Result<PutOutcome, Refusal> {
        if put.key.is_empty() {
            return Err(KvError::Malformed.into());
        }
        check_lease(put)?;
        self.write(taken, batch, |writer| writer.put(put))
    }

    fn delete_range(
        &mut self,
        delete: &DeleteRange,
        taken: i64,
        batch: &mut dyn StateBatch,
    ) -> Result<DeleteRangeOutcome, Refusal> {
        self.write(taken, batch, |writer| writer.delete_range(delete))
    }

    fn txn(
        &mut self,
        txn: &Txn,
        taken: i64,
        batch: &mut dyn StateBatch,
    ) -> Result<TxnOutcome, Refusal> {
        check_form(txn)?;
        let view = self.view(batch);
        let plan = Plan::new(txn, &view)?;
        plan.check(&view)?;
        let outcome = self.write(taken, batch, |writer| plan.run(&mut Access::Write(writer)))?;
        if quorate_types::defect!(FailedSwapTakesRevision) && !outcome.succeeded {
            self.meta.revision = taken;
        }
        Ok(outcome)
    }

    /// Runs `write`, and moves to the revision `taken` if it wrote anything.
    fn write<T>(
        &mut self,
        taken: i64,
        batch: &mut dyn StateBatch,
        write: impl FnOnce(&mut Writer<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut writer = Writer::new(batch, &mut self.recent, &self.pairs, &self.meta, taken);
        let result = write(&mut writer);
        let revision = writer.revision();
        if let Err(Refusal::Kv(error)) = &result {
            assert!(
                revision != taken,
                "a command refused with {error:?} has written at revision {taken}"
            );
        }
        self.meta.revision = revision;
        result
    }

    fn view<'b>(&self, batch: &'b dyn StateBatch) -> View<'b> {
        View { rows: batch, revision: self.meta.revision, floor: self.meta.floor, pairs: None }
    }
}

/// A transaction of reads, at any time and place.
fn read_txn(txn: &Txn, view: View<'_>) -> Result<TxnOutcome, Refusal> {
    check_form(txn)?;
    let plan = Plan::new(txn, &view)?;
    plan.check(&view)?;
    plan.run(&mut Access::Read(view))
}

/// What clients and waiting callers get; a failed engine is not for them.
fn answer(revision: i64, body: Result<outcome::Body, Refusal>) -> Result<Outcome, StateError> {
    let body = match body {
        Ok(body) => body,
        Err(Refusal::Kv(error)) => outcome::Body::Error(error as i32),
        Err(Refusal::State(error)) => return Err(error),
    };
    Ok(Outcome { revision, body: Some(body) })
}

#[cfg(test)]
mod tests {
    use quorate_types::kv::{Compare, Range, Status};

    use super::*;

    fn is_point(body: query::Body) -> bool {
        looks_at_few(Some(&body))
    }

    #[test]
    fn only_queries_that_look_at_a_few_keys_stay_on_the_thread_that_serves_everybody() {
        let single = Range { key: "a".into(), ..Range::default() };
        let range = Range { range_end: "b".into(), ..single.clone() };
        let op = |range: &Range| Op { body: Some(op::Body::Range(range.clone())) };
        let txn = |ops: Vec<Op>| Txn { success: ops, ..Txn::default() };
        assert!(is_point(query::Body::Range(single.clone())));
        assert!(!is_point(query::Body::Range(range.clone())));
        assert!(is_point(query::Body::Txn(txn(vec![op(&single)]))));
        assert!(!is_point(query::Body::Txn(txn(vec![op(&single), op(&range)]))));
        assert!(!is_point(query::Body::Txn(txn(vec![op(&single); 100]))));
        let compare = Compare { range_end: "b".into(), ..Compare::default() };
        assert!(!is_point(query::Body::Txn(Txn { compares: vec![compare], ..Txn::default() })));
        assert!(is_point(query::Body::Status(Status {})));
    }
}
