//! Identifiers and counters as newtypes, so that a term can never be passed for an index.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl $name {
            /// The smallest value: "none yet" where the type counts something.
            pub const ZERO: Self = Self(0);

            /// The bare number, for arithmetic and encoding.
            #[must_use]
            pub const fn value(self) -> $inner {
                self.0
            }

            /// The value after this one.
            ///
            /// # Panics
            /// On overflow, which no counter of ours reaches in the life of a cluster.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("counter overflow"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

number!(
    /// A node: one process with one data directory. It is also the etcd member id. Never reused.
    NodeId(u64), "n"
);
number!(
    /// A Raft group. Group 1 is the placement group, group 2 holds the first shard.
    GroupId(u64), "g"
);
number!(
    /// A Raft term (thesis section 3.3): each term has at most one leader.
    Term(u64), "t"
);
number!(
    /// A position in a group's log. Index 1 is the first snapshot; 0 means "nothing".
    LogIndex(u64), "i"
);
number!(
    /// etcd's number of a modification: positive, below 2^53, ordered over the whole keyspace.
    Revision(i64), "r"
);
number!(
    /// A shard: a half-open key range that exactly one group owns.
    ShardId(u64), "s"
);
number!(
    /// The version of a shard's range and owner; requests carry the one that they were routed by.
    Epoch(u64), "e"
);
number!(
    /// The cluster, as etcd's headers name it.
    ClusterId(u64), "c"
);
number!(
    /// Drawn at random when a data directory is made: tells a node from its wiped namesake.
    Incarnation(u64), "inc"
);

impl GroupId {
    /// The group that replicates the map from key ranges to shards, groups and replicas.
    pub const PLACEMENT: Self = Self(1);
    /// The group that owns the whole keyspace of a fresh cluster.
    pub const FIRST_DATA: Self = Self(2);
}

impl LogIndex {
    /// The value before this one; `None` at zero.
    #[must_use]
    pub const fn previous(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// How many entries lie in `(earlier, self]`; 0 when `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This index moved forward by `count`, saturating.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }
}

impl Revision {
    /// One above the largest revision that may exist: clients hold revisions in doubles.
    pub const LIMIT: Self = Self(1 << 53);
}
