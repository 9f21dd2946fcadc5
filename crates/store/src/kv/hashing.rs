//! How the caches of the keyspace hash keys.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

/// SipHash behind a seed that clients do not know: they choose the keys, and could choose ones that collide.
///
/// It decides where an entry lies in memory, never what a machine answers.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Seeded(pub(crate) u64);

impl BuildHasher for Seeded {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}
