//! etcd's keyspace as a small, slow machine in memory that keeps every version of every key.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_types::KeyRange;
use quorate_types::auth::{self, Directory, Needs};
use quorate_types::kv::{
    Command, CompactOutcome, Compare, CompareResult, DeleteRange, DeleteRangeOutcome, EventKind,
    Events, EventsOutcome, KeyValue, KvError, LEASE_TTL_MAX_S, LeaseGrantOutcome,
    LeaseKeepAliveOutcome, LeaseKeysOutcome, LeaseRevokeOutcome, LeaseTimeToLiveOutcome,
    LeasesOutcome, Op, Outcome, Put, PutOutcome, Query, Range, RangeOutcome, SortOrder, SortTarget,
    StatusOutcome, Txn, TxnOutcome, WatchEvent, command, compare::Target, op, outcome, query,
};
use quorate_types::kv_maintenance::{
    Alarm, AlarmKind, ChangeAlarm, ChangeDowngrade, ConditionsOutcome,
};

/// A revision of a key: the pair, or `None` where it was deleted.
type Versions = BTreeMap<i64, Option<KeyValue>>;

/// The keyspace.
#[derive(Clone)]
pub(crate) struct Keyspace {
    keys: BTreeMap<Bytes, Versions>,
    /// Everything that ever happened, with the pairs before.
    events: Vec<WatchEvent>,
    revision: i64,
    compacted: i64,
    /// How far the sweep has come, if it lags behind the compaction.
    swept: Option<i64>,
    /// Its users and roles.
    pub(crate) directory: Directory,
    /// Times to live in seconds; here they do not pass.
    leases: BTreeMap<i64, i64>,
    alarms: BTreeSet<(i32, u64)>,
    downgrade: String,
}

/// Events of one answer, but for the rest of a revision.
const EVENTS_LOOKED_AT_MAX: usize = 1_000;

impl Keyspace {
    pub(crate) fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
            events: Vec::new(),
            revision: 1,
            compacted: -1,
            swept: None,
            directory: Directory::default(),
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            downgrade: String::new(),
        }
    }

    /// The sweep has come to a revision, and stays there.
    pub(crate) const fn sweep_to(&mut self, revision: i64) {
        self.swept = Some(revision);
    }

    pub(crate) const fn revision(&self) -> i64 {
        self.revision
    }

    /// What happened after a revision.
    pub(crate) fn events_after(&self, after: i64) -> Vec<WatchEvent> {
        let events = self.events.iter().filter(|event| event.revision() > after);
        events.map(|event| WatchEvent { prev_kv: None, ..event.clone() }).collect()
    }

    fn events(&self, asked: &Events) -> EventsOutcome {
        if asked.after + 1 < self.compacted {
            let (compacted, through) = (Some(self.compacted), self.revision);
            return EventsOutcome { compacted, through, ..EventsOutcome::default() };
        }
        let through = if asked.through == 0 { self.revision } else { asked.through };
        let range = KeyRange::from_request(&asked.key, &asked.range_end);
        let is_asked = |event: &&WatchEvent| {
            event.revision() > asked.after
                && event.revision() <= through
                && range.contains(&event.kv.key)
        };
        let mut events: Vec<_> = self.events.iter().filter(is_asked).cloned().collect();
        if !asked.prev_kv {
            events.iter_mut().for_each(|event| event.prev_kv = None);
        }
        let (mut bytes, mut through) = (0, through);
        for (at, event) in events.iter().enumerate() {
            let starts = at > 0 && events[at - 1].revision() < event.revision();
            let is_full = asked.bytes_max > 0 && bytes >= asked.bytes_max;
            if starts && (is_full || at >= EVENTS_LOOKED_AT_MAX) {
                through = event.revision() - 1;
                break;
            }
            bytes += event.cost_bytes() as u64;
            bytes += event.prev_kv.as_ref().map_or(0, |prev| prev.value.len() as u64);
        }
        events.retain(|event| event.revision() <= through);
        EventsOutcome { events, through, ..EventsOutcome::default() }
    }

    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        let body = command.body.as_ref().expect("a command");
        let caller = command.caller.as_ref();
        let mut checked = self.directory.check(caller, &Needs::of_command(body));
        for lease in Needs::leases_of(body) {
            let attached = self.attached(lease);
            checked = checked.and_then(|()| self.directory.check_lease(caller, &attached));
        }
        if let Err(error) = checked {
            return self.outcome(Err(error));
        }
        let is_full = self.alarms.iter().any(|(kind, _)| *kind == AlarmKind::NoSpace as i32);
        let is_corrupt = self.alarms.iter().any(|(kind, _)| *kind == AlarmKind::Corrupt as i32);
        match command.body.as_ref().expect("a command") {
            command::Body::ChangeAlarm(change) => return self.change_alarm(*change),
            command::Body::ChangeDowngrade(change) => return self.change_downgrade(change),
            _ if is_corrupt => return self.outcome(Err(KvError::Corrupt)),
            _ if is_full && command.grows() => return self.outcome(Err(KvError::NoSpace)),
            _ => {}
        }
        let mut writer = Writer { at: self.revision + 1, changed: false, keyspace: self };
        let result = match body {
            command::Body::Put(put) => writer.checked(&[op::Body::Put(put.clone())]),
            command::Body::DeleteRange(delete) => {
                writer.checked(&[op::Body::DeleteRange(delete.clone())])
            }
            command::Body::Txn(txn) => writer.checked(&[op::Body::Txn(txn.clone())]),
            command::Body::Compact(compact) => writer.keyspace.compact(compact.revision),
            command::Body::Auth(change) => writer.keyspace.directory.apply(change).map(|_| {
                let done = Some(auth::outcome::Body::Done(auth::outcome::Done {}));
                outcome::Body::Auth(auth::AuthOutcome { body: done })
            }),
            command::Body::LeaseGrant(grant) => writer.keyspace.grant(grant.id, grant.ttl_s),
            command::Body::LeaseRevoke(revoke) => writer.revoke(revoke.id),
            command::Body::ChangeAlarm(_) | command::Body::ChangeDowngrade(_) => unreachable!(),
        };
        if writer.changed {
            self.revision += 1;
        }
        self.outcome(result)
    }

    pub(crate) fn read(&mut self, query: &Query) -> Outcome {
        let body = query.body.as_ref().expect("a query");
        let caller = query.caller.as_ref();
        let mut checked = self.directory.check(caller, &Needs::of_query(body));
        if let query::Body::LeaseKeys(asked) = body {
            let needs = Needs::reads(&self.attached(asked.id));
            checked = checked.and_then(|()| self.directory.check(caller, &needs));
        }
        if let Err(error) = checked {
            return self.outcome(Err(error));
        }
        let mut reader = Writer { at: self.revision + 1, changed: false, keyspace: self };
        let result = match body {
            query::Body::Range(range) => reader.checked(&[op::Body::Range(range.clone())]),
            query::Body::Txn(txn) => reader.checked(&[op::Body::Txn(txn.clone())]),
            query::Body::Status(_) => Ok(outcome::Body::Status(StatusOutcome {
                compact_revision: reader.keyspace.compacted.max(0),
                swept_revision: reader.keyspace.swept.unwrap_or(reader.keyspace.compacted).max(0),
            })),
            query::Body::Events(asked) => Ok(outcome::Body::Events(reader.keyspace.events(asked))),
            query::Body::Auth(question) => reader
                .keyspace
                .directory
                .answer(query.caller.as_ref(), question)
                .map(outcome::Body::Auth),
            query::Body::LeaseTimeToLive(asked) => {
                let ttl_s = reader.keyspace.leases.get(&asked.id).copied();
                Ok(outcome::Body::LeaseTimeToLive(LeaseTimeToLiveOutcome {
                    // A moment has passed since.
                    ttl_s: ttl_s.map_or(-1, |ttl_s| ttl_s - 1),
                    granted_ttl_s: ttl_s.unwrap_or(0),
                }))
            }
            query::Body::LeaseKeepAlive(asked) => {
                let ttl_s = reader.keyspace.leases.get(&asked.id).copied().unwrap_or(0);
                Ok(outcome::Body::LeaseKeepAlive(LeaseKeepAliveOutcome { ttl_s }))
            }
            query::Body::Leases(_) => {
                let ids = reader.keyspace.leases.keys().copied().collect();
                Ok(outcome::Body::Leases(LeasesOutcome { ids }))
            }
            query::Body::LeaseKeys(asked) => Ok(outcome::Body::LeaseKeys(LeaseKeysOutcome {
                keys: reader.keyspace.attached(asked.id),
                exists: reader.keyspace.leases.contains_key(&asked.id),
            })),
            query::Body::Conditions(_) => {
                let alarms = reader.keyspace.alarms.iter();
                Ok(outcome::Body::Conditions(ConditionsOutcome {
                    alarms: alarms.map(|&(kind, member)| Alarm { member, kind }).collect(),
                    downgrade_target: reader.keyspace.downgrade.clone(),
                }))
            }
            // Only a real store has them.
            query::Body::HashKv(_) | query::Body::HashAll(_) => Err(KvError::Malformed),
        };
        assert!(!reader.changed, "a query changed the keyspace");
        self.outcome(result)
    }

    fn change_alarm(&mut self, change: ChangeAlarm) -> Outcome {
        let ChangeAlarm { alarm, raise } = change;
        let key = (alarm.kind, alarm.member);
        if alarm.kind == AlarmKind::None as i32 {
            return self.outcome(Ok(outcome::Body::Conditions(ConditionsOutcome::default())));
        }
        if AlarmKind::try_from(alarm.kind).is_err() {
            return self.outcome(Err(KvError::BadAlarm));
        }
        let is_there = match raise {
            true => {
                self.alarms.insert(key);
                true
            }
            false => self.alarms.remove(&key),
        };
        let alarms = is_there.then_some(alarm).into_iter().collect();
        let found = ConditionsOutcome { alarms, ..ConditionsOutcome::default() };
        self.outcome(Ok(outcome::Body::Conditions(found)))
    }

    fn change_downgrade(&mut self, change: &ChangeDowngrade) -> Outcome {
        if self.downgrade.is_empty() == change.target.is_empty() {
            return self.outcome(Err(match self.downgrade.is_empty() {
                true => KvError::NoDowngrade,
                false => KvError::DowngradeInProcess,
            }));
        }
        self.downgrade.clone_from(&change.target);
        self.outcome(Ok(outcome::Body::Conditions(ConditionsOutcome::default())))
    }

    fn outcome(&self, result: Result<outcome::Body, KvError>) -> Outcome {
        let body = result.unwrap_or_else(|error| outcome::Body::Error(error as i32));
        Outcome { revision: self.revision, body: Some(body) }
    }

    fn compact(&mut self, revision: i64) -> Result<outcome::Body, KvError> {
        if revision <= self.compacted {
            return Err(KvError::Compacted);
        }
        if revision > self.revision {
            return Err(KvError::FutureRevision);
        }
        self.compacted = revision;
        Ok(outcome::Body::Compact(CompactOutcome {}))
    }

    fn grant(&mut self, id: i64, ttl_s: i64) -> Result<outcome::Body, KvError> {
        if ttl_s > LEASE_TTL_MAX_S {
            return Err(KvError::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(KvError::LeaseExists);
        }
        self.leases.insert(id, ttl_s);
        Ok(outcome::Body::LeaseGrant(LeaseGrantOutcome { id, ttl_s }))
    }

    /// The keys that a lease has now.
    fn attached(&self, lease: i64) -> Vec<Bytes> {
        let pairs = self.pairs(&KeyRange::all(), self.revision).into_iter();
        pairs.filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
    }

    /// The pairs of a range as of `revision`, by key.
    fn pairs(&self, range: &KeyRange, revision: i64) -> Vec<KeyValue> {
        let of_key = |versions: &Versions| versions.range(..=revision).next_back()?.1.clone();
        let keys = self.keys.iter().filter(|(key, _)| range.contains(key));
        keys.filter_map(|(_, versions)| of_key(versions)).collect()
    }
}

/// One command or query at work.
struct Writer<'k> {
    keyspace: &'k mut Keyspace,
    /// The revision of this command's writes.
    at: i64,
    changed: bool,
}

impl Writer<'_> {
    /// Runs one operation, if all that it will run may run.
    fn checked(&mut self, ops: &[op::Body]) -> Result<outcome::Body, KvError> {
        ops.iter().try_for_each(|op| self.check(op))?;
        Ok(self.run(&ops[0]))
    }

    fn revision(&self) -> i64 {
        self.at - i64::from(!self.changed)
    }

    fn check(&self, op: &op::Body) -> Result<(), KvError> {
        match op {
            op::Body::Range(range) if range.revision > self.keyspace.revision => {
                Err(KvError::FutureRevision)
            }
            op::Body::Range(range)
                if range.revision > 0 && range.revision < self.keyspace.compacted =>
            {
                Err(KvError::Compacted)
            }
            op::Body::Put(put)
                if put.lease != 0 && !self.keyspace.leases.contains_key(&put.lease) =>
            {
                Err(KvError::LeaseNotFound)
            }
            op::Body::Put(put) if put.ignore_value || put.ignore_lease => {
                match self.current(&KeyRange::single(&put.key)).is_empty() {
                    true => Err(KvError::KeyNotFound),
                    false => Ok(()),
                }
            }
            op::Body::Txn(txn) => self.branch(txn).1.iter().try_for_each(|op| {
                self.check(op.body.as_ref().expect("the gateway lets no empty operation pass"))
            }),
            _ => Ok(()),
        }
    }

    fn revoke(&mut self, lease: i64) -> Result<outcome::Body, KvError> {
        self.keyspace.leases.remove(&lease).ok_or(KvError::LeaseNotFound)?;
        let keys = self.keyspace.attached(lease);
        let deleted = keys.len() as i64;
        keys.into_iter().for_each(|key| self.write(key, None));
        Ok(outcome::Body::LeaseRevoke(LeaseRevokeOutcome { deleted }))
    }

    fn run(&mut self, op: &op::Body) -> outcome::Body {
        match op {
            op::Body::Range(range) => outcome::Body::Range(self.range(range)),
            op::Body::Put(put) => outcome::Body::Put(self.put(put)),
            op::Body::DeleteRange(delete) => outcome::Body::DeleteRange(self.delete(delete)),
            op::Body::Txn(txn) => outcome::Body::Txn(self.txn(txn)),
        }
    }

    fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let (succeeded, ops) = self.branch(txn);
        let responses = ops
            .iter()
            .map(|op| {
                let body = self.run(op.body.as_ref().expect("checked before"));
                Outcome { revision: self.revision(), body: Some(body) }
            })
            .collect();
        TxnOutcome { succeeded, responses }
    }

    fn branch<'t>(&self, txn: &'t Txn) -> (bool, &'t [Op]) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        (succeeded, if succeeded { &txn.success } else { &txn.failure })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let pairs = self.current(&KeyRange::from_request(&compare.key, &compare.range_end));
        let target = compare.target.as_ref().expect("a target");
        if pairs.is_empty() {
            let by_value = matches!(target, Target::Value(_));
            return !by_value && pair_holds(compare, target, &KeyValue::default());
        }
        pairs.iter().all(|pair| pair_holds(compare, target, pair))
    }

    fn current(&self, range: &KeyRange) -> Vec<KeyValue> {
        self.keyspace.pairs(range, self.at)
    }

    fn range(&self, range: &Range) -> RangeOutcome {
        let revision = if range.revision == 0 { self.at } else { range.revision };
        let keys = KeyRange::from_request(&range.key, &range.range_end);
        let mut kvs = self.keyspace.pairs(&keys, revision);
        if range.page_bytes > 0 {
            return page(range, kvs);
        }
        let count = kvs.len() as i64;
        if range.count_only {
            return RangeOutcome { kvs: Vec::new(), more: false, count };
        }
        let within = |value: i64, min: i64, max: i64| {
            (min == 0 || value >= min) && (max == 0 || value <= max)
        };
        kvs.retain(|kv| {
            within(kv.mod_revision, range.min_mod_revision, range.max_mod_revision)
                && within(kv.create_revision, range.min_create_revision, range.max_create_revision)
        });
        let by_key = range.sort_target == SortTarget::Key as i32;
        if range.sort_order != SortOrder::None as i32 || !by_key {
            kvs.sort_by(|a, b| match SortTarget::try_from(range.sort_target).expect("checked") {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            });
        }
        if range.sort_order == SortOrder::Descend as i32 {
            kvs.reverse();
        }
        let limit = if range.limit == 0 { usize::MAX } else { range.limit as usize };
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        RangeOutcome { kvs, more, count }
    }

    fn put(&mut self, put: &Put) -> PutOutcome {
        let old = self.current(&KeyRange::single(&put.key)).pop();
        let (create_revision, version, value) = match &old {
            Some(old) => (old.create_revision, old.version + 1, &old.value),
            None => (self.at, 1, &put.value),
        };
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision,
            mod_revision: self.at,
            version,
            value: if put.ignore_value { value.clone() } else { put.value.clone() },
            lease: match &old {
                Some(old) if put.ignore_lease => old.lease,
                _ => put.lease,
            },
        };
        self.write(put.key.clone(), Some(kv));
        PutOutcome { prev_kv: old.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, delete: &DeleteRange) -> DeleteRangeOutcome {
        let old = self.current(&KeyRange::from_request(&delete.key, &delete.range_end));
        old.iter().for_each(|kv| self.write(kv.key.clone(), None));
        let deleted = old.len() as i64;
        DeleteRangeOutcome { deleted, prev_kvs: if delete.prev_kv { old } else { Vec::new() } }
    }

    fn write(&mut self, key: Bytes, kv: Option<KeyValue>) {
        self.changed = true;
        let prev_kv = self.keyspace.pairs(&KeyRange::single(&key), self.at - 1).pop();
        let deleted = KeyValue { key: key.clone(), mod_revision: self.at, ..KeyValue::default() };
        let kind = if kv.is_some() { EventKind::Put } else { EventKind::Delete } as i32;
        self.keyspace.events.push(WatchEvent { kind, kv: kv.clone().unwrap_or(deleted), prev_kv });
        self.keyspace.keys.entry(key).or_default().insert(self.at, kv);
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

fn pair_holds(compare: &Compare, target: &Target, pair: &KeyValue) -> bool {
    let order = match target {
        Target::Version(version) => pair.version.cmp(version),
        Target::CreateRevision(revision) => pair.create_revision.cmp(revision),
        Target::ModRevision(revision) => pair.mod_revision.cmp(revision),
        Target::Value(value) => pair.value.cmp(value),
        Target::Lease(lease) => pair.lease.cmp(lease),
    };
    match CompareResult::try_from(compare.result).expect("checked by the gateway") {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::NotEqual => order != Ordering::Equal,
    }
}
