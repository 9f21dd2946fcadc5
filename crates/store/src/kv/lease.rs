//! The rows of leases, in the system's part of the keyspace: one for each lease, and one for each key that
//! is attached to one.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use quorate_types::StateReader;
use quorate_types::kv::{
    KvError, LEASE_TTL_MAX_S, LeaseGrant, LeaseKeysOutcome, LeasesOutcome, Put,
};
use quorate_types::machine::{Direction, StateError};

use super::read::{Refusal, View};
use super::record::damaged;
use crate::layout;

/// What is kept of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct LeaseRecord {
    /// Its time to live, in seconds.
    #[prost(int64, tag = "1")]
    pub(crate) ttl_s: i64,
}

/// All leases, each with its time to live in seconds.
pub(crate) fn leases(rows: &dyn StateReader) -> Result<Vec<(i64, i64)>, StateError> {
    let (start, end) = layout::leases();
    let mut found = Vec::new();
    let mut result = Ok(());
    rows.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
        match (layout::id_of_lease(row), LeaseRecord::decode(value)) {
            (Some(id), Ok(record)) => found.push((id, record.ttl_s)),
            (None, _) => result = Err(damaged(row, &"not a lease")),
            (_, Err(error)) => result = Err(damaged(row, &error)),
        }
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    result.map(|()| found)
}

/// What the state has nothing to do with; `ttl_s` of 0 or less stands for the shortest.
pub(crate) fn check_grant(grant: &LeaseGrant) -> Result<LeaseRecord, KvError> {
    if grant.id == 0 {
        return Err(KvError::LeaseNotFound);
    }
    if grant.ttl_s > LEASE_TTL_MAX_S {
        return Err(KvError::LeaseTtlTooLarge);
    }
    Ok(LeaseRecord { ttl_s: grant.ttl_s.max(1) })
}

impl View<'_> {
    /// Whether there is such a lease.
    pub(crate) fn has_lease(&self, id: i64) -> Result<bool, StateError> {
        Ok(self.rows.get(&layout::lease(id))?.is_some())
    }

    /// Only what exists can be attached to.
    pub(crate) fn check_lease(&self, put: &Put) -> Result<(), Refusal> {
        if put.lease == 0 || self.has_lease(put.lease)? {
            Ok(())
        } else {
            Err(KvError::LeaseNotFound.into())
        }
    }

    /// The keys that are attached to a lease, in order.
    pub(crate) fn attached(&self, id: i64) -> Result<Vec<Bytes>, StateError> {
        let (start, end) = layout::attached_range(id);
        let mut keys = Vec::new();
        self.rows.scan(&start, Some(&end), Direction::Forward, &mut |row, _| {
            keys.push(Bytes::copy_from_slice(&row[start.len()..]));
            ControlFlow::Continue(())
        })?;
        Ok(keys)
    }

    /// Answers which keys are attached to a lease.
    pub(crate) fn lease_keys(&self, id: i64) -> Result<LeaseKeysOutcome, Refusal> {
        Ok(LeaseKeysOutcome { exists: self.has_lease(id)?, keys: self.attached(id)? })
    }

    /// Answers which leases there are.
    pub(crate) fn leases(&self) -> Result<LeasesOutcome, Refusal> {
        let mut ids: Vec<_> = leases(self.rows)?.into_iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        Ok(LeasesOutcome { ids })
    }
}
