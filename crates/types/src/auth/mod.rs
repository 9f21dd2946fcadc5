//! Users, roles and what they may do with keys: etcd's rules as a value.
//!
//! [`Directory`] is the whole of it: users, roles, whether they count at all, and the *auth revision*, which
//! grows with every change. Each replica of the keyspace keeps one, changed by nothing but the commands of its
//! own log, so that all of them refuse the same; a gateway decides early with the one that its node has.
//!
//! - [`message`]: commands, queries and outcomes as they are replicated, and the stored rows.
//! - [`directory`]: the value, and who may what. `rules`: what each command does, and when it is refused.
//! - [`grants`]: permissions merged into intervals. [`hashes`]: how passwords are kept.
//! - [`needs`]: what a command or query needs.
//! - [`cell`]: where a node's replica shows its directory to whoever asks on that node.

pub mod cell;
pub mod directory;
pub mod grants;
pub mod hashes;
pub mod message;
pub mod needs;
mod rules;

pub use cell::{AuthCell, Claim};
pub use directory::{Directory, ROOT};
pub use grants::Grants;
pub use hashes::HashForm;
pub use message::{
    AuthCommand, AuthOutcome, AuthQuery, Caller, Permission, PermissionKind, Role, User, command,
    outcome, query,
};
pub use needs::Needs;
pub use rules::Touched;
