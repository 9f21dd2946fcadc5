//! Leases: commands, questions and outcomes.
//!
//! What is replicated of a lease is its id, its time to live, and which keys are attached to it. *When* it
//! ends is not: that is kept by the leader alone.

use bytes::Bytes;
use prost::Message;

/// The longest time to live that a lease may have, in seconds; etcd's.
pub const LEASE_TTL_MAX_S: i64 = 9_000_000_000;

/// Makes a lease. The log's index is its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseGrant {
    /// Its id, chosen by the client or drawn by the gateway; not 0.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Its time to live, in seconds.
    #[prost(int64, tag = "2")]
    pub ttl_s: i64,
}

/// Ends a lease, and deletes the keys that are attached to it, in one revision.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseRevoke {
    /// The lease.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// 0: a client wants it. Otherwise the time of the lease is over, by the deadline that the leader of
    /// this term kept; it is dropped unless it is applied in an entry of this very term.
    #[prost(uint64, tag = "2")]
    pub expired_in_term: u64,
}

/// Asks how long a lease has still to live. For the leader only.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseTimeToLive {
    /// The lease.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// Wants a lease to live on for its full time from now. It changes nothing that is replicated; for the
/// leader only.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseKeepAlive {
    /// The lease.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// Asks which keys are attached to a lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseKeys {
    /// The lease.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// Asks for all leases.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Leases {}

/// Of a grant.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseGrantOutcome {
    /// The lease.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// The time to live in force, in seconds.
    #[prost(int64, tag = "2")]
    pub ttl_s: i64,
}

/// Of a revoke.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseRevokeOutcome {
    /// Keys that were deleted.
    #[prost(int64, tag = "1")]
    pub deleted: i64,
}

/// Of a question for the time to live.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseTimeToLiveOutcome {
    /// Whole seconds that are left; 0 when less than one is; -1 for a lease that does not exist.
    #[prost(int64, tag = "1")]
    pub ttl_s: i64,
    /// The time to live in force, in seconds; 0 for a lease that does not exist.
    #[prost(int64, tag = "2")]
    pub granted_ttl_s: i64,
}

/// Of a keep-alive.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseKeepAliveOutcome {
    /// The lease lives at least this long from the moment when it was asked for, in seconds; 0 for one that
    /// does not exist.
    #[prost(int64, tag = "1")]
    pub ttl_s: i64,
}

/// Of a question for attached keys.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeaseKeysOutcome {
    /// In order. Empty also for a lease that does not exist.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub keys: Vec<Bytes>,
    /// Whether the lease exists.
    #[prost(bool, tag = "2")]
    pub exists: bool,
}

/// Of a question for all leases.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeasesOutcome {
    /// In ascending order.
    #[prost(int64, repeated, tag = "1")]
    pub ids: Vec<i64>,
}
