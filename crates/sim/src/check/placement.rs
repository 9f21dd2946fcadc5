//! I18: the placement map has one version after another, and each was made by one command.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_placement::{Answer, Changed, Refused};

use super::{Checked, Oracle};

/// Which command made which version.
#[derive(Debug, Default)]
pub(crate) struct PlacementOracle {
    made: BTreeMap<u64, u64>,
    highest: u64,
}

impl PlacementOracle {
    /// A client has the outcome of a change that it made for `expected`.
    pub(crate) fn on_changed(&mut self, request: u64, expected: u64, outcome: &Bytes) -> Checked {
        match Answer::parse(outcome) {
            Ok(Changed { version, .. }) => {
                let other = self.made.insert(version, request);
                Oracle::Placement.check(other.is_none_or(|other| other == request), || {
                    format!("requests {request} and {other:?} both made version {version}")
                })?;
                self.highest = self.highest.max(version);
                Oracle::Placement.check(version == expected + 1, || {
                    format!("request {request} was made for version {expected} and made {version}")
                })
            }
            Err(Refused::Conflict { version }) => Oracle::Placement
                .check(version != expected, || {
                    format!("request {request} for version {expected} conflicts with that very one")
                }),
            // Another client's change may be in the way of this one.
            Err(Refused::Member(_)) => Ok(()),
            Err(other) => Err(Oracle::Placement.broken(format!("request {request}: {other}"))),
        }
    }

    /// The highest version that a client has heard of.
    pub(crate) const fn highest(&self) -> u64 {
        self.highest
    }

    /// A linearizable read, asked for when `floor` was the highest version, shows this one.
    pub(crate) fn on_read(&mut self, request: u64, floor: u64, version: u64) -> Checked {
        self.highest = self.highest.max(version);
        Oracle::Placement.check(version >= floor, || {
            format!("read {request} shows version {version} of the map, but {floor} was heard of")
        })
    }
}
