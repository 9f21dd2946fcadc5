//! A new beginning out of a database file of etcd 3.
//!
//! ```text
//! bucket key:      main revision u64 be, '_', sub revision u64 be, { 't' }     -> KeyValue, protobuf
//! bucket meta:     finishedCompactRev, scheduledCompactRev                     -> a revision as in bucket key
//! ```
//!
//! [`etcd_form`] has the buckets of leases, users and roles.
//!
//! Of the history only what stands at its end is taken, so what must be held is one entry for each key; values
//! are read again when their row is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use bytes::Bytes;
use prost::Message;
use quorate_types::auth::message::Rows;
use quorate_types::kv::{KeyValue, LEASE_TTL_MAX_S};
use quorate_types::{Membership, Revision};

use super::{Contents, RestoreError, beginning, header};
use crate::bolt::{Bolt, BoltError, Pair, ReadAt};
use crate::etcd_form::{Moved, StoredLease};
use crate::kv::lease::LeaseRecord;
use crate::kv::machine::version_of;
use crate::kv::meta::Meta;
use crate::kv::record::Record;
use crate::layout::{self, Stamp};
use crate::snapshot::SnapshotWriter;
use crate::{auth, etcd_form};

/// Bytes of a revision in etcd's form.
const REVISION_BYTES: usize = 17;

/// What is known of a key that exists at the end.
struct Latest {
    record: Record,
    value_at: u64,
    value_bytes: usize,
}

/// All that is taken of the file.
#[derive(Default)]
struct Keyspace {
    /// The last write of each key; `None` if that deleted it.
    keys: BTreeMap<Bytes, (Stamp, Option<Latest>)>,
    leases: BTreeMap<i64, i64>,
    revision: i64,
    auth: Moved,
    alarms: u64,
}

pub(super) fn restore<W: Write>(
    backup: &dyn ReadAt,
    bytes: u64,
    bump: i64,
    voters: Membership,
    out: W,
) -> Result<Contents, RestoreError> {
    let bolt = Bolt::open(backup, bytes)?;
    let mut keyspace = Keyspace::read(&bolt)?;
    let lost = keyspace.forget_leases();
    let (directory, locked) = std::mem::take(&mut keyspace.auth).directory();
    let meta = beginning(keyspace.revision, bump, None)?;
    let meta = Meta { auth: version_of(&directory), ..meta };
    let Rows { users, roles, .. } = directory.rows();
    let mut contents = Contents {
        revision: keyspace.revision,
        begins_at: meta.revision,
        leases: keyspace.leases.len() as u64,
        users: users.len() as u64,
        roles: roles.len() as u64,
        ..Contents::default()
    };
    let mut writer = SnapshotWriter::new(out, &header(&meta, voters))?;
    // In the order of the rows: users before leases, and all of the system before the clients' keys.
    for (row, value) in auth::all(&directory) {
        writer.put(&row, &value)?;
    }
    keyspace.write_leases(&mut writer)?;
    for (key, latest) in keyspace.standing() {
        contents.keys += 1;
        writer.put(&layout::current(key), &latest.record.encode_current())?;
    }
    let mut rows: Vec<_> = keyspace
        .standing()
        .map(|(key, latest)| (layout::history(key, latest.record.modified), latest))
        .collect();
    // Escaping keeps the order of keys; this says so rather than to rely on it.
    rows.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (row, latest) in rows {
        let stored = bolt.value(latest.value_at, latest.value_bytes)?;
        let pair = KeyValue::decode(&stored[..]).map_err(|_| wrong("a pair that has changed"))?;
        writer.put(&row, &latest.record.encode_history(&pair.value))?;
    }
    writer.finish()?;
    if locked > 0 {
        contents.left_out.push(format!(
            "the passwords of {locked} users, which cannot be compared with here: they need new ones"
        ));
    }
    if keyspace.alarms > 0 {
        let alarms = keyspace.alarms;
        contents.left_out.push(format!("{alarms} alarms: they were about the old nodes"));
    }
    if lost > 0 {
        let what =
            format!("the leases of {lost} keys, which the file does not hold: the keys stay");
        contents.left_out.push(what);
    }
    Ok(contents)
}

fn wrong(what: impl Into<String>) -> RestoreError {
    RestoreError::Etcd(what.into())
}

/// A revision in etcd's form, at the beginning of `bytes`.
fn stamp(bytes: &[u8]) -> Result<Stamp, RestoreError> {
    let read = || {
        let (main, rest) = bytes.split_first_chunk()?;
        let (sub, _) = rest.strip_prefix(b"_")?.split_first_chunk()?;
        let revision = i64::try_from(u64::from_be_bytes(*main)).ok()?;
        let sub = u32::try_from(u64::from_be_bytes(*sub)).ok()?;
        (0..Revision::LIMIT.value()).contains(&revision).then_some(Stamp { revision, sub })
    };
    read().ok_or_else(|| wrong(format!("revision {}", bytes.escape_ascii())))
}

impl Keyspace {
    fn read(bolt: &Bolt<'_>) -> Result<Self, RestoreError> {
        // etcd begins with revision 1, before anything was written.
        let mut keyspace = Self { revision: 1, ..Self::default() };
        bolt.each("key", &mut |pair| keyspace.take(pair))?;
        optional(bolt.each("meta", &mut |pair| {
            if [&b"finishedCompactRev"[..], b"scheduledCompactRev"].contains(&pair.key) {
                keyspace.revision = keyspace.revision.max(stamp(pair.value)?.revision);
            }
            Ok(())
        }))?;
        optional(bolt.each(etcd_form::LEASES, &mut |pair| {
            let lease = StoredLease::decode(pair.value).ok();
            let lease = lease.filter(|lease| {
                lease.id != 0
                    && (1..=LEASE_TTL_MAX_S).contains(&lease.ttl_s)
                    && lease.id.to_be_bytes() == pair.key
            });
            let lease = lease.ok_or_else(|| wrong("a lease"))?;
            keyspace.leases.insert(lease.id, lease.ttl_s);
            Ok(())
        }))?;
        for bucket in [etcd_form::AUTH, etcd_form::USERS, etcd_form::ROLES] {
            optional(bolt.each(bucket, &mut |pair| {
                keyspace.auth.take(bucket, pair.key, pair.value).map_err(wrong)
            }))?;
        }
        optional(bolt.each("alarm", &mut |_| {
            keyspace.alarms += 1;
            Ok::<_, RestoreError>(())
        }))?;
        Ok(keyspace)
    }

    /// One write of the history.
    fn take(&mut self, pair: Pair<'_>) -> Result<(), RestoreError> {
        let at = stamp(pair.key)?;
        let is_delete = match pair.key.get(REVISION_BYTES..) {
            Some(b"") => false,
            Some(b"t") => true,
            _ => return Err(wrong(format!("revision {}", pair.key.escape_ascii()))),
        };
        let stored = KeyValue::decode(pair.value);
        let stored = stored.map_err(|error| wrong(format!("revision {at:?}: {error}")))?;
        if stored.key.is_empty() {
            return Err(wrong(format!("revision {at:?}: no key")));
        }
        self.revision = self.revision.max(at.revision);
        let latest = if is_delete {
            None
        } else {
            let KeyValue { create_revision: create, version, lease, .. } = stored;
            let fits = 0 < create && create <= at.revision && version > 0;
            if !fits || stored.mod_revision != at.revision {
                return Err(wrong(format!("revision {at:?}: revisions that do not fit")));
            }
            let record = Record { create, modified: at, version, lease };
            let (value_at, value_bytes) = (pair.value_at, pair.value.len());
            Some(Latest { record, value_at, value_bytes })
        };
        let known = self.keys.entry(stored.key).or_insert_with(|| (Stamp::default(), None));
        if at >= known.0 {
            *known = (at, latest);
        }
        Ok(())
    }

    fn standing(&self) -> impl Iterator<Item = (&Bytes, &Latest)> {
        self.keys.iter().filter_map(|(key, (_, latest))| Some((key, latest.as_ref()?)))
    }

    /// Keys of leases that do not exist belong to none; how many there were.
    fn forget_leases(&mut self) -> u64 {
        let mut lost = 0;
        for (_, latest) in self.keys.values_mut() {
            if let Some(Latest { record, .. }) = latest
                && record.lease != 0
                && !self.leases.contains_key(&record.lease)
            {
                record.lease = 0;
                lost += 1;
            }
        }
        lost
    }

    fn write_leases<W: Write>(&self, writer: &mut SnapshotWriter<W>) -> Result<(), RestoreError> {
        let with_lease = self.standing().filter(|(_, latest)| latest.record.lease != 0);
        let attached: BTreeSet<_> =
            with_lease.map(|(key, latest)| layout::attached(latest.record.lease, key)).collect();
        for row in attached {
            writer.put(&row, &[])?;
        }
        // Ids sort by their bytes.
        let leases: BTreeMap<_, _> =
            self.leases.iter().map(|(id, ttl_s)| (layout::lease(*id), *ttl_s)).collect();
        for (row, ttl_s) in leases {
            writer.put(&row, &LeaseRecord { ttl_s }.encode_to_vec())?;
        }
        Ok(())
    }
}

/// A bucket that only later versions of etcd have, or earlier ones.
fn optional(visited: Result<(), RestoreError>) -> Result<(), RestoreError> {
    match visited {
        Err(RestoreError::Bolt(BoltError::NoBucket(_))) => Ok(()),
        other => other,
    }
}
