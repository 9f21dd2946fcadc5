//! Users and roles of a keyspace: their rows, and where a group keeps its directory in memory.
//!
//! What commands do and who may what is decided by [`quorate_types::auth`]. Here the rows lie in the system's
//! space, one for each user and role and one for the whole, written by commands of the group's own log alone:
//!
//! ```text
//! C | 1 | 'a' | 0            -> users count or not, the auth revision, the secret of tokens
//! C | 1 | 'a' | 'r' | name   -> a role
//! C | 1 | 'a' | 'u' | name   -> a user
//! ```

mod live;
mod rows;

pub(crate) use live::Live;
pub(crate) use rows::{all, load, write};
