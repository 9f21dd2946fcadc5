//! What the kind does where it leads: leases are kept alive, and end.

use std::sync::Arc;

use prost::Message;
use quorate_types::kv::{
    Command, LeaseKeepAliveOutcome, LeaseRevoke, LeaseTimeToLiveOutcome, command, outcome, query,
};
use quorate_types::{Due, Figure, GroupId, Led, Moment, ReadError, Term, defect};

use super::lessor::{Remaining, Renewal};
use super::machine::{KvKind, lock};

impl KvKind {
    pub(super) fn lead(&self, group: GroupId, term: Option<Term>) {
        // A group that has no machine yet does not lead.
        let Some(lessor) = lock(&self.lessors).get(&group).cloned() else { return };
        match term {
            Some(term) => lock(&lessor).promote(term),
            None => lock(&lessor).demote(),
        }
    }

    /// The leases whose time is over, as revokes.
    pub(super) fn due(&self, now: Moment) -> Vec<Due> {
        let mut due = Vec::new();
        for (group, lessor) in &*lock(&self.lessors) {
            let mut lessor = lock(lessor);
            let Some(term) = lessor.term() else { continue };
            due.extend(lessor.tick(now).into_iter().map(|id| {
                let revoke = LeaseRevoke { id, expired_in_term: term.value() };
                let body = Some(command::Body::LeaseRevoke(revoke));
                let command = Command { body, ..Command::default() }.encode_to_vec().into();
                Due { group: *group, command }
            }));
        }
        due
    }

    pub(super) fn revoke_dropped(&self, due: &Due) {
        if defect!(ExpiryNotRepeated) {
            return;
        }
        let Ok(Command { body: Some(command::Body::LeaseRevoke(revoke)), .. }) =
            Command::decode(due.command.clone())
        else {
            return;
        };
        if let Some(lessor) = lock(&self.lessors).get(&due.group) {
            lock(lessor).dropped(revoke.id, Term(revoke.expired_in_term));
        }
    }

    /// How many leases the replicas of this node know. A machine that has ended without another one in its place
    /// has taken its share of its leases along, and those of its group are not counted any more.
    pub(super) fn lease_count(&self) -> Figure {
        let lessors = lock(&self.lessors);
        let living = lessors.values().filter(|lessor| Arc::strong_count(lessor) > 1);
        let value = living.map(|lessor| lock(lessor).count() as u64).sum();
        let help = "Leases that the replicas of this node know, whether it leads or not.";
        Figure { name: "quorate_lease_count", help, value }
    }

    pub(super) fn answer_led(
        &self,
        group: GroupId,
        query: Option<&query::Body>,
        led: Led,
    ) -> Result<outcome::Body, ReadError> {
        let lessor = lock(&self.lessors).get(&group).cloned().ok_or(ReadError::NotNow)?;
        let mut lessor = lock(&lessor);
        match query {
            Some(query::Body::LeaseKeepAlive(asked)) => match lessor.renew(asked.id, led) {
                Renewal::Renewed(ttl_s) => {
                    Ok(outcome::Body::LeaseKeepAlive(LeaseKeepAliveOutcome { ttl_s }))
                }
                Renewal::Missing => {
                    Ok(outcome::Body::LeaseKeepAlive(LeaseKeepAliveOutcome { ttl_s: 0 }))
                }
                Renewal::NotNow => Err(ReadError::NotNow),
            },
            Some(query::Body::LeaseTimeToLive(asked)) => {
                let (ttl_s, granted_ttl_s) = match lessor.remaining(asked.id, led) {
                    Remaining::Time { left_us, ttl_s } => ((left_us / 1_000_000) as i64, ttl_s),
                    Remaining::Missing => (-1, 0),
                    Remaining::NotNow => return Err(ReadError::NotNow),
                };
                let outcome = LeaseTimeToLiveOutcome { ttl_s, granted_ttl_s };
                Ok(outcome::Body::LeaseTimeToLive(outcome))
            }
            _ => Err(ReadError::Malformed("no question for a leader".into())),
        }
    }
}
