//! What the keyspace knows beside its rows: its revision, its floor, and how far the sweep has come.

use bytes::Bytes;
use prost::Message;
use quorate_types::kv::KvError;
use quorate_types::machine::StateError;
use quorate_types::{Digest, Revision};

use crate::layout::Stamp;

/// The format that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// The revision of a keyspace that nothing was written to.
const FRESH: i64 = 1;

/// The floor before the first compaction. Below 0, because etcd lets a fresh keyspace be compacted at 0.
const NO_FLOOR: i64 = -1;

/// The keyspace as of the last applied command. Invariants: `floor <= revision < 2^53`, and
/// `swept.revision <= floor` once there is a floor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Meta {
    /// The revision of the last change.
    pub(crate) revision: i64,
    /// Reads below it fail.
    pub(crate) floor: i64,
    /// The largest revision that any command brought along, used or not. A revision that was drawn is
    /// not given again, so the next one lies above this too.
    pub(crate) drawn: i64,
    /// Events before this position are swept.
    pub(crate) swept: Stamp,
    /// What all commands have written; none where that began before there were digests.
    pub(crate) digest: Option<Digest>,
    /// Which directory of users and roles the rows hold.
    pub(crate) auth: AuthVersion,
    /// How many alarms there are.
    pub(crate) alarms: AlarmCounts,
}

/// Tells directories of one keyspace apart: the auth revision moves with every change but one, that users
/// begin to count.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct AuthVersion {
    /// Users count.
    pub(crate) enabled: bool,
    /// The auth revision; 0 before the first change.
    pub(crate) revision: i64,
}

/// How many alarms of each kind are raised: what each command must know, without a look at their rows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct AlarmCounts {
    pub(crate) no_space: u32,
    pub(crate) corrupt: u32,
}

impl Meta {
    /// Reads what [`Self::encode`] wrote; no bytes at all stand for a new keyspace.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.is_empty() {
            let swept = Stamp::default();
            let digest = Some(Digest::default());
            let auth = AuthVersion::default();
            let alarms = AlarmCounts::default();
            let (revision, floor, drawn) = (FRESH, NO_FLOOR, 0);
            return Ok(Self { revision, floor, drawn, swept, digest, auth, alarms });
        }
        let stored = Stored::decode(bytes)
            .map_err(|error| StateError(format!("damaged keyspace meta: {error}")))?;
        if stored.format == 0 || stored.format > FORMAT {
            return Err(StateError(format!("keyspace meta of format {}", stored.format)));
        }
        Ok(Self {
            revision: stored.revision,
            floor: stored.floor.unwrap_or(NO_FLOOR),
            drawn: stored.drawn,
            swept: Stamp { revision: stored.swept_revision, sub: stored.swept_sub },
            digest: stored.digest.map(Digest),
            auth: AuthVersion { enabled: stored.auth_enabled, revision: stored.auth_revision },
            alarms: AlarmCounts {
                no_space: stored.no_space_alarms,
                corrupt: stored.corrupt_alarms,
            },
        })
    }

    /// The stored form.
    pub(crate) fn encode(&self) -> Bytes {
        let stored = Stored {
            format: FORMAT,
            revision: self.revision,
            floor: (self.floor != NO_FLOOR).then_some(self.floor),
            drawn: self.drawn,
            swept_revision: self.swept.revision,
            swept_sub: self.swept.sub,
            digest: self.digest.map(|digest| digest.0),
            auth_enabled: self.auth.enabled,
            auth_revision: self.auth.revision,
            no_space_alarms: self.alarms.no_space,
            corrupt_alarms: self.alarms.corrupt,
        };
        stored.encode_to_vec().into()
    }

    /// The revision that a command with this `at_revision` takes if it changes something.
    ///
    /// # Errors
    /// [`KvError::StaleRevision`] when the one that it brings is not above all earlier ones, or when
    /// there is none left below 2^53; [`KvError::Malformed`] for a negative one.
    pub(crate) fn next(&self, at_revision: i64) -> Result<i64, KvError> {
        let last = self.revision.max(self.drawn);
        let next = match at_revision {
            ..0 => return Err(KvError::Malformed),
            0 => last + 1,
            1.. => at_revision,
        };
        if next > last && next < Revision::LIMIT.value() {
            Ok(next)
        } else {
            Err(KvError::StaleRevision)
        }
    }

    /// Moves the floor to `revision`.
    ///
    /// # Errors
    /// [`KvError::Compacted`] at or below the present floor, [`KvError::FutureRevision`] above the
    /// keyspace's revision.
    pub(crate) fn compact(&mut self, revision: i64) -> Result<(), KvError> {
        if revision <= self.floor {
            return Err(KvError::Compacted);
        }
        if revision > self.revision {
            return Err(KvError::FutureRevision);
        }
        self.floor = revision;
        Ok(())
    }
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(int64, tag = "2")]
    revision: i64,
    #[prost(int64, optional, tag = "3")]
    floor: Option<i64>,
    #[prost(int64, tag = "4")]
    drawn: i64,
    #[prost(int64, tag = "5")]
    swept_revision: i64,
    #[prost(uint32, tag = "6")]
    swept_sub: u32,
    #[prost(fixed64, optional, tag = "7")]
    digest: Option<u64>,
    #[prost(bool, tag = "20")]
    auth_enabled: bool,
    #[prost(int64, tag = "21")]
    auth_revision: i64,
    #[prost(uint32, tag = "30")]
    no_space_alarms: u32,
    #[prost(uint32, tag = "31")]
    corrupt_alarms: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_reads_back_as_it_was_written() {
        let fresh = Meta::decode(&[]).unwrap();
        assert_eq!((fresh.revision, fresh.floor), (1, -1));
        let swept = Stamp { revision: 3, sub: 4 };
        for meta in [
            fresh,
            Meta { floor: 0, ..fresh },
            Meta { revision: 9, floor: 5, drawn: 12, swept, digest: Some(Digest(7)), ..fresh },
            Meta { auth: AuthVersion { enabled: true, revision: 7 }, ..fresh },
            Meta { alarms: AlarmCounts { no_space: 2, corrupt: 1 }, ..fresh },
        ] {
            assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
        }
    }

    #[test]
    fn a_keyspace_that_began_without_a_digest_has_none() {
        let stored = Stored { format: FORMAT, revision: 9, ..Stored::default() };
        let meta = Meta::decode(&stored.encode_to_vec()).unwrap();
        assert_eq!(
            meta.digest, None,
            "one that began in between would differ from replica to replica"
        );
        assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
    }

    #[test]
    fn damage_and_formats_from_the_future_are_errors() {
        assert!(Meta::decode(b"\xff\xff").is_err());
        let future = Stored { format: FORMAT + 1, ..Stored::default() };
        assert!(Meta::decode(&future.encode_to_vec()).is_err());
    }

    #[test]
    fn revisions_stay_below_what_a_double_holds() {
        let limit = Revision::LIMIT.value();
        let last = Meta { revision: limit - 1, ..Meta::decode(&[]).unwrap() };
        assert_eq!(last.next(0), Err(KvError::StaleRevision));
        let meta = Meta { revision: limit - 2, ..last };
        assert_eq!(meta.next(0), Ok(limit - 1));
        assert_eq!(meta.next(limit), Err(KvError::StaleRevision));
        assert_eq!(meta.next(i64::MAX), Err(KvError::StaleRevision));
        assert_eq!(meta.next(i64::MIN), Err(KvError::Malformed));
    }
}
