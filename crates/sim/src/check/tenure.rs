//! I14: a lease of keys does not end before its time to live has passed, in true time, since it was asked for or
//! since the last keep-alive that was acknowledged was sent, unless a client revokes it. It is not renewed after its
//! end, and in quiet one that nobody keeps alive does end.
//!
//! That its keys go with it, in one revision, is what the model says of each revoke.

use std::collections::BTreeMap;

use quorate_types::kv::{Command, KvError, LeaseGrant, LeaseRevoke, Outcome, command, outcome};

use super::{Checked, Oracle};
use crate::swarm::DRIFT_PPM_MAX;

/// Beyond its time to live a lease may live so long in quiet: the deadline begins at a tick, nothing ends for a moment
/// after a stall, and the revoke has to be committed.
const LATE_US_MAX: u64 = 5_000_000;

/// The leases that were ever asked for.
#[derive(Debug, Default)]
pub(crate) struct TenureOracle {
    leases: BTreeMap<i64, Tenure>,
    /// When somebody last began to keep deadlines.
    promoted_us: u64,
    /// How many ended because their time was over.
    expired: u64,
}

#[derive(Debug)]
struct Tenure {
    ttl_us: u64,
    /// When the last request was sent that counts.
    kept_us: u64,
    /// When the grant was first applied.
    granted_us: Option<u64>,
    ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    at_us: u64,
    expired: bool,
}

impl Tenure {
    /// The least true time that the fastest clock allowed may count as the time to live.
    const fn least_us(&self) -> u64 {
        // A little less, since clocks round.
        (self.ttl_us * 1_000_000 / (1_000_000 + DRIFT_PPM_MAX as u64)).saturating_sub(100)
    }
}

impl TenureOracle {
    /// A client asks for a lease.
    pub(crate) fn on_asked(&mut self, id: i64, ttl_s: i64, now_us: u64) {
        let ttl_us = ttl_s.unsigned_abs() * 1_000_000;
        let tenure = Tenure { ttl_us, kept_us: now_us, granted_us: None, ended: None };
        self.leases.insert(id, tenure);
    }

    /// A replica begins to keep deadlines.
    pub(crate) fn on_promoted(&mut self, now_us: u64) {
        self.promoted_us = now_us;
    }

    /// A command is applied for the first time anywhere.
    pub(crate) fn on_applied(
        &mut self,
        now_us: u64,
        command: &Command,
        outcome: &Outcome,
    ) -> Checked {
        match (&command.body, &outcome.body) {
            (
                Some(command::Body::LeaseGrant(LeaseGrant { id, .. })),
                Some(outcome::Body::LeaseGrant(_)),
            ) => {
                if let Some(tenure) = self.leases.get_mut(id) {
                    tenure.granted_us = Some(now_us);
                }
                Ok(())
            }
            (Some(command::Body::LeaseRevoke(revoke)), Some(outcome::Body::LeaseRevoke(_))) => {
                self.on_ended(*revoke, now_us)
            }
            (Some(command::Body::LeaseRevoke(revoke)), Some(outcome::Body::Error(error)))
                if *error == KvError::StaleDeadline as i32 =>
            {
                Oracle::Tenure.check(revoke.expired_in_term != 0, || {
                    format!("the revoke of a client is dropped: {revoke:?}")
                })
            }
            _ => Ok(()),
        }
    }

    fn on_ended(&mut self, revoke: LeaseRevoke, now_us: u64) -> Checked {
        let LeaseRevoke { id, expired_in_term } = revoke;
        let expired = expired_in_term != 0;
        self.expired += u64::from(expired);
        let Some(tenure) = self.leases.get_mut(&id) else {
            return Err(Oracle::Tenure.broken(format!("lease {id} ends, and nobody asked for it")));
        };
        tenure.ended = Some(Ended { at_us: now_us, expired });
        let (kept_us, least_us) = (tenure.kept_us, tenure.least_us());
        Oracle::Tenure.check(!expired || now_us >= kept_us + least_us, || {
            format!(
                "lease {id} of {} us ends at {now_us} us, by the deadline of term \
                 {expired_in_term}, but was kept alive from {kept_us} us on",
                tenure.ttl_us
            )
        })
    }

    /// A keep-alive that was sent then is answered: with a time to live, or with none.
    pub(crate) fn on_kept(&mut self, id: i64, sent_us: u64, ttl_s: i64) -> Checked {
        let Some(tenure) = self.leases.get_mut(&id) else { return Ok(()) };
        if ttl_s == 0 {
            let was_there = tenure.granted_us.is_some_and(|granted_us| granted_us <= sent_us);
            return Oracle::Tenure.check(!was_there || tenure.ended.is_some(), || {
                format!("a keep-alive finds no lease {id}, but it is there: {tenure:?}")
            });
        }
        Oracle::Tenure.check(ttl_s.unsigned_abs() * 1_000_000 == tenure.ttl_us, || {
            format!("lease {id} is kept alive for {ttl_s} s: {tenure:?}")
        })?;
        if let Some(Ended { at_us, expired }) = tenure.ended {
            Oracle::Tenure.check(at_us >= sent_us, || {
                format!(
                    "a keep-alive of {sent_us} us renews lease {id}, which has ended: {tenure:?}"
                )
            })?;
            let is_early = expired && at_us < sent_us + tenure.least_us();
            Oracle::Tenure.check(!is_early, || {
                format!("a keep-alive of {sent_us} us is acknowledged for lease {id}: {tenure:?}")
            })?;
        }
        tenure.kept_us = tenure.kept_us.max(sent_us);
        Ok(())
    }

    /// Nobody has asked for anything since `quiet_us`: true when no lease is left, an error when one lives too long. What
    /// was due before may have waited in a mailbox for two election timeouts, each `timeout_us` at most.
    pub(crate) fn all_ended(
        &self,
        quiet_us: u64,
        now_us: u64,
        timeout_us: u64,
    ) -> Result<bool, super::Violation> {
        let mut left = self
            .leases
            .iter()
            .filter(|(_, tenure)| tenure.granted_us.is_some() && tenure.ended.is_none());
        let since_us = quiet_us.max(self.promoted_us);
        left.try_fold(true, |_, (id, tenure)| {
            let longest_us = tenure.ttl_us + tenure.ttl_us / 100 + LATE_US_MAX + 2 * timeout_us;
            Oracle::Tenure.check(now_us <= since_us + longest_us, || {
                format!("lease {id} does not end, in quiet since {since_us} us: {tenure:?}")
            })?;
            Ok(false)
        })
    }

    /// How many leases have ended because their time was over.
    pub(crate) const fn expired(&self) -> u64 {
        self.expired
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::kv::LeaseRevokeOutcome;

    use super::*;

    fn expire(oracle: &mut TenureOracle, id: i64, at_us: u64) -> Checked {
        let revoke = LeaseRevoke { id, expired_in_term: 3 };
        let body = Some(command::Body::LeaseRevoke(revoke));
        let command = Command { body, ..Command::default() };
        let outcome = outcome::Body::LeaseRevoke(LeaseRevokeOutcome { deleted: 0 });
        oracle.on_applied(at_us, &command, &Outcome { revision: 1, body: Some(outcome) })
    }

    fn oracle() -> TenureOracle {
        let mut oracle = TenureOracle::default();
        oracle.on_asked(7, 2, 1_000_000);
        oracle.leases.get_mut(&7).expect("it was asked for").granted_us = Some(1_000_000);
        oracle
    }

    #[test]
    fn a_lease_that_ends_in_time_breaks_nothing_and_an_early_end_does() {
        assert!(expire(&mut oracle(), 7, 3_000_000).is_ok());
        // As much as clocks may run apart.
        assert!(expire(&mut oracle(), 7, 2_990_500).is_ok());
        assert!(expire(&mut oracle(), 7, 2_980_000).is_err());
    }

    #[test]
    fn a_keep_alive_counts_from_when_it_was_sent_whenever_it_is_acknowledged() {
        let mut early = oracle();
        assert!(early.on_kept(7, 2_000_000, 2).is_ok());
        assert!(expire(&mut early, 7, 3_500_000).is_err());
        let mut late = oracle();
        assert!(expire(&mut late, 7, 3_500_000).is_ok());
        assert!(late.on_kept(7, 2_000_000, 2).is_err(), "the end was before");
        assert!(late.on_kept(7, 3_600_000, 2).is_err(), "renewed after its end");
        assert!(late.on_kept(7, 3_600_000, 0).is_ok());
    }

    #[test]
    fn a_lease_that_is_there_is_found_and_ends_in_quiet() {
        let mut oracle = oracle();
        assert!(oracle.on_kept(7, 2_000_000, 0).is_err());
        assert_eq!(oracle.all_ended(3_000_000, 4_000_000, 0), Ok(false));
        assert!(oracle.all_ended(3_000_000, 12_000_000, 0).is_err());
        oracle.on_promoted(8_000_000);
        assert_eq!(oracle.all_ended(3_000_000, 12_000_000, 0), Ok(false));
        assert!(expire(&mut oracle, 7, 12_000_000).is_ok());
        assert_eq!((oracle.all_ended(0, 50_000_000, 0), oracle.expired()), (Ok(true), 1));
    }
}
