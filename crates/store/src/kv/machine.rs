//! The keyspace as a [`StateMachine`], and its kind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use quorate_types::auth::{AuthCell, AuthCommand, AuthOutcome, Directory, Needs};
use quorate_types::kv::{
    Command, CompactOutcome, DeleteRange, DeleteRangeOutcome, KvError, LeaseGrant,
    LeaseGrantOutcome, LeaseRevoke, LeaseRevokeOutcome, Outcome, Put, PutOutcome, Query,
    StatusOutcome, Txn, TxnOutcome, WatchEvent, WatchEvents, command, outcome, query,
};
use quorate_types::machine::{Feed, ReadError, RowScope, StateError};
use quorate_types::{
    Committed, Digest, Digested, Due, Figure, GroupId, Led, MachineKind, Moment, StateBatch,
    StateMachine, StateReader, Term, defect,
};

use super::alarms::{change_alarm, change_downgrade, conditions};
use super::events::events;
use super::few::looks_at_few;
use super::hash::{hash_all, hash_kv};
use super::hashing::Seeded;
use super::lease::{check_grant, leases};
use super::lessor::Lessor;
use super::meta::{AlarmCounts, AuthVersion, Meta};
use super::pairs::Pairs;
use super::read::{Refusal, View};
use super::recent::Recent;
use super::sweep::sweep;
use super::txn::{Access, Plan, check_form, is_read_only};
use super::write::Writer;
use crate::auth::{self, Live};
use crate::layout;

/// The kind "kv": etcd's keyspace.
///
/// One for each node: it remembers what was read lately of the machines that it has opened.
#[derive(Default, Debug)]
pub struct KvKind {
    hashing: Seeded,
    opened: Mutex<BTreeMap<GroupId, Opened>>,
    auth: Arc<AuthCell>,
    /// Of the machine that was opened last for each group.
    pub(super) lessors: Mutex<BTreeMap<GroupId, Arc<Mutex<Lessor>>>>,
}

/// What the machine that was opened last for a group shares with those who read its keyspace.
#[derive(Clone, Debug)]
struct Opened {
    pairs: Arc<Pairs>,
    auth: Arc<Live>,
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
    /// What watchers have still to be told.
    events: Vec<WatchEvent>,
    /// The revision up to which they were told; `None` before anybody was told where it stands.
    fed: Option<i64>,
    auth: Arc<Live>,
    lessor: Arc<Mutex<Lessor>>,
}

impl KvKind {
    /// Its persisted name.
    pub const NAME: &str = "kv";

    /// With a seed that those who choose keys do not know. [`KvKind::default`] takes the same each time, for
    /// tests.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { hashing: Seeded(seed), ..Self::default() }
    }

    /// Where the replica of this node shows its users and roles.
    #[must_use]
    pub fn auth(&self) -> Arc<AuthCell> {
        Arc::clone(&self.auth)
    }

    /// What the machine that was opened last for `group` shares.
    fn opened(&self, group: GroupId) -> Option<Opened> {
        lock(&self.opened).get(&group).cloned()
    }

    fn answer(
        &self,
        group: GroupId,
        query: Query,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        let malformed = |why: &str| ReadError::Malformed(why.into());
        let meta = Meta::decode(meta)?;
        let opened = self.opened(group);
        let view = View {
            rows: state,
            revision: meta.revision,
            floor: meta.floor,
            pairs: opened.as_ref().map(|opened| &*opened.pairs),
        };
        let Some(body) = query.body else { return Err(malformed("no question")) };
        let (caller, live) = (query.caller.as_ref(), opened.as_ref().map(|opened| &*opened.auth));
        if meta.auth.enabled {
            let directory = directory_of(meta.auth, live, state)?;
            let mut checked = directory.check(caller, &Needs::of_query(&body));
            if let (Ok(()), query::Body::LeaseKeys(asked)) = (&checked, &body) {
                let attached = match view.lease_keys(asked.id) {
                    Ok(found) => found.keys,
                    Err(Refusal::State(error)) => return Err(error.into()),
                    Err(Refusal::Kv(_)) => Vec::new(),
                };
                checked = directory.check(caller, &Needs::reads(&attached));
            }
            if let Err(error) = checked {
                return Ok(answer(meta.revision, Err(error.into()))?.encode_to_vec().into());
            }
        }
        let body = match body {
            query::Body::Range(range) => view.range(&range).map(outcome::Body::Range),
            query::Body::Txn(txn) if !is_read_only(&txn) => {
                return Err(malformed("a transaction that writes is no query"));
            }
            query::Body::Txn(txn) => read_txn(&txn, view).map(outcome::Body::Txn),
            query::Body::Status(_) => Ok(outcome::Body::Status(StatusOutcome {
                compact_revision: meta.floor.max(0),
                swept_revision: meta.swept.revision,
            })),
            query::Body::HashKv(asked) => hash_kv(&view, asked.revision).map(outcome::Body::Hash),
            query::Body::HashAll(_) => hash_all(&view).map(outcome::Body::Hash),
            query::Body::Conditions(_) => Ok(outcome::Body::Conditions(conditions(state)?)),
            query::Body::Events(asked) => events(&asked, &view).map(outcome::Body::Events),
            query::Body::Auth(question) => directory_of(meta.auth, live, state)?
                .answer(caller, &question)
                .map(outcome::Body::Auth)
                .map_err(Refusal::from),
            query::Body::Leases(_) => view.leases().map(outcome::Body::Leases),
            query::Body::LeaseKeys(asked) => {
                view.lease_keys(asked.id).map(outcome::Body::LeaseKeys)
            }
            query::Body::LeaseTimeToLive(_) | query::Body::LeaseKeepAlive(_) => {
                return Err(malformed("a question for the leader"));
            }
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
        state: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        let meta = Meta::decode(meta)?;
        let lessor = Arc::new(Mutex::new(Lessor::new(leases(state)?)));
        lock(&self.lessors).insert(group, Arc::clone(&lessor));
        // Pairs of their own: an earlier machine may end later than this one begins.
        let pairs = Arc::new(Pairs::new(meta.revision, self.hashing));
        let auth = Arc::new(Live::new(auth::load(state)?, &self.auth));
        let opened = Opened { pairs: Arc::clone(&pairs), auth: Arc::clone(&auth) };
        lock(&self.opened).insert(group, opened);
        let recent = Recent::new(self.hashing);
        let (events, fed) = (Vec::new(), None);
        Ok(Box::new(KvMachine { meta, recent, pairs, events, fed, auth, lessor }))
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
                looks_at_few(query.body.as_ref()).then(|| self.answer(group, query, meta, state))
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn on_leadership(&self, group: GroupId, term: Option<Term>) {
        self.lead(group, term);
    }

    fn tick(&self, now: Moment) -> Vec<Due> {
        self.due(now)
    }

    fn not_proposed(&self, due: &Due) {
        self.revoke_dropped(due);
    }

    fn figures(&self) -> Vec<Figure> {
        vec![self.lease_count()]
    }

    fn read_led(
        &self,
        group: GroupId,
        query: &Bytes,
        led: Led,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        let (query, meta) = (decode(query)?, Meta::decode(meta)?);
        let needs = query.body.as_ref().map_or(Needs::Nothing, Needs::of_query);
        let opened = self.opened(group);
        let live = opened.as_ref().map(|opened| &*opened.auth);
        let checked = match meta.auth.enabled {
            true => directory_of(meta.auth, live, state)?.check(query.caller.as_ref(), &needs),
            false => Ok(()),
        };
        let body = match checked {
            Ok(()) => Ok(self.answer_led(group, query.body.as_ref(), led)?),
            Err(error) => Err(error.into()),
        };
        Ok(answer(meta.revision, body)?.encode_to_vec().into())
    }
}

fn decode(query: &Bytes) -> Result<Query, ReadError> {
    Query::decode(query.clone()).map_err(|error| ReadError::Malformed(error.to_string()))
}

/// The users and roles as of a view: those that the machine has in memory, unless it has gone on since.
fn directory_of(
    version: AuthVersion,
    live: Option<&Live>,
    state: &dyn StateReader,
) -> Result<Arc<Directory>, StateError> {
    let now = live.map(Live::now).filter(|now| version_of(now) == version);
    now.map_or_else(|| auth::load(state).map(Arc::new), Ok)
}

/// As it stands in the meta; a directory that nothing was done to is not there.
pub(crate) fn version_of(directory: &Directory) -> AuthVersion {
    let fresh = *directory == Directory::default();
    let revision = if fresh { 0 } else { directory.revision() };
    AuthVersion { enabled: directory.enabled(), revision }
}

pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under the lock can panic half way through a change.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for KvMachine {
    fn drop(&mut self) {
        self.pairs.end();
        self.auth.end();
    }
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
                Ok(command) => self.command(&command, committed.id.term, batch),
                Err(_) => Err(KvError::Malformed.into()),
            };
            Ok(answer(self.meta.revision, body)?.encode_to_vec().into())
        };
        let outcomes = committed.iter().map(apply).collect();
        self.meta.digest = self.meta.digest.map(|_| digest);
        outcomes
    }

    fn take_feed(&mut self) -> Option<Feed> {
        let through = self.meta.revision;
        let after = self.fed.replace(through);
        // Writers that were refused have told nothing, and a revision without events is a refused one.
        let events = std::mem::take(&mut self.events);
        if after == Some(through) {
            return None;
        }
        let bytes = events.iter().map(WatchEvent::cost_bytes).sum();
        Some(Feed {
            after: after.unwrap_or(if defect!(FeedBeginsAtZero) { 0 } else { through }),
            through,
            bytes,
            payload: Arc::new(WatchEvents(events)),
        })
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
    /// Applies one command, of an entry of `term`. When it is refused, nothing has changed.
    fn command(
        &mut self,
        command: &Command,
        term: Term,
        batch: &mut dyn StateBatch,
    ) -> Result<outcome::Body, Refusal> {
        let body = command.body.as_ref().ok_or(KvError::Malformed)?;
        // A compaction takes no revision, but it does bring one along, which must not be stale either.
        let taken = self.meta.next(command.at_revision);
        if command.at_revision != 0 {
            taken?;
            self.meta.drawn = command.at_revision;
        }
        // One comparison while users do not count.
        if self.meta.auth.enabled && !defect!(RightsUnchecked) {
            let (directory, caller) = (self.auth.now(), command.caller.as_ref());
            directory.check(caller, &Needs::of_command(body))?;
            for lease in Needs::leases_of(body) {
                directory.check_lease(caller, &self.view(batch).attached(lease)?)?;
            }
        }
        if self.meta.alarms != AlarmCounts::default() {
            self.meta.alarms.check(!goes_on_whatever_is_wrong(body), command.grows())?;
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
            command::Body::Auth(change) => self.auth(change, batch).map(outcome::Body::Auth),
            command::Body::LeaseGrant(grant) => {
                self.grant(grant, batch).map(outcome::Body::LeaseGrant)
            }
            command::Body::LeaseRevoke(revoke) => {
                self.revoke(revoke, term, taken, batch).map(outcome::Body::LeaseRevoke)
            }
            command::Body::ChangeAlarm(change) => {
                change_alarm(*change, &mut self.meta, batch).map(outcome::Body::Conditions)
            }
            command::Body::ChangeDowngrade(change) => {
                change_downgrade(change, batch).map(outcome::Body::Conditions)
            }
        }
    }

    /// Changes users or roles, which takes no revision of the keyspace.
    fn auth(
        &mut self,
        change: &AuthCommand,
        batch: &mut dyn StateBatch,
    ) -> Result<AuthOutcome, Refusal> {
        let mut directory = Directory::clone(&self.auth.now());
        let touched = directory.apply(change)?;
        if !touched.is_empty() {
            auth::write(&directory, &touched, batch);
            self.meta.auth = version_of(&directory);
            self.auth.set(directory);
        }
        let done = quorate_types::auth::outcome::Done {};
        Ok(AuthOutcome { body: Some(quorate_types::auth::outcome::Body::Done(done)) })
    }

    /// Makes a lease: a row of the system, which takes no revision.
    fn grant(
        &mut self,
        grant: &LeaseGrant,
        batch: &mut dyn StateBatch,
    ) -> Result<LeaseGrantOutcome, Refusal> {
        let record = check_grant(grant)?;
        if self.view(batch).has_lease(grant.id)? {
            return Err(KvError::LeaseExists.into());
        }
        batch.put(&layout::lease(grant.id), &record.encode_to_vec());
        lock(&self.lessor).granted(grant.id, record.ttl_s);
        Ok(LeaseGrantOutcome { id: grant.id, ttl_s: record.ttl_s })
    }

    /// Ends a lease. What is attached to it goes in one revision; if there is nothing, none is taken.
    fn revoke(
        &mut self,
        revoke: &LeaseRevoke,
        term: Term,
        taken: Result<i64, KvError>,
        batch: &mut dyn StateBatch,
    ) -> Result<LeaseRevokeOutcome, Refusal> {
        let LeaseRevoke { id, expired_in_term } = *revoke;
        let is_stale = expired_in_term != 0 && expired_in_term != term.value();
        if is_stale && !defect!(StaleRevokeApplied) {
            lock(&self.lessor).dropped(id, Term(expired_in_term));
            return Err(KvError::StaleDeadline.into());
        }
        let view = self.view(batch);
        if !view.has_lease(id)? {
            return Err(KvError::LeaseNotFound.into());
        }
        let mut keys = view.attached(id)?;
        if defect!(RevokeLeavesKey) && keys.len() > 1 {
            keys.pop();
        }
        let deleted = match keys.is_empty() {
            true => 0,
            false => self.write(taken?, batch, |writer| writer.delete_keys(keys))?,
        };
        batch.delete(&layout::lease(id));
        lock(&self.lessor).revoked(id);
        Ok(LeaseRevokeOutcome { deleted })
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
        self.view(batch).check_lease(put)?;
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
        if defect!(FailedSwapTakesRevision) && !outcome.succeeded {
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
        self.events.append(&mut writer.into_events());
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

/// What must be possible while an alarm says that the data is damaged: to manage users and alarms. And leases
/// end, because nobody else would clear the mark that one is being ended.
fn goes_on_whatever_is_wrong(body: &command::Body) -> bool {
    match body {
        command::Body::ChangeAlarm(_)
        | command::Body::ChangeDowngrade(_)
        | command::Body::Auth(_) => true,
        command::Body::LeaseRevoke(revoke) => revoke.expired_in_term != 0,
        command::Body::Put(_)
        | command::Body::DeleteRange(_)
        | command::Body::Txn(_)
        | command::Body::Compact(_)
        | command::Body::LeaseGrant(_) => false,
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
