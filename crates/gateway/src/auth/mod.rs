//! Who asks, and whether they may.
//!
//! The life of a call while users count: its path has a row in the table (`table`), or is refused; whoever asks is
//! known by a token or by the certificate of the connection (`guard`, with `token` and `jwt`); what the row
//! asks for is looked at; and what the call needs of keys is decided twice, here with what this node knows and by
//! every replica with what its log says ([`Desk::propose`](crate::desk::Desk::propose)). Denials and changes are
//! told to the audit log (`audit`).
//!
//! - `service`: etcd's Auth service; `passwords`: the work that hashing is.
//! - [`caller`]: who asks, for those who open connections and serve calls.

pub mod caller;
pub mod config;

pub(crate) mod audit;
pub(crate) mod guard;
pub(crate) mod jwt;
pub(crate) mod passwords;
pub(crate) mod service;
pub(crate) mod table;
pub(crate) mod token;

pub use caller::Peer;
pub use config::{AuthConfig, AuthConfigError, TokenKind};
