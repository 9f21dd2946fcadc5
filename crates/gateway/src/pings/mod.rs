//! Clients that ping too often are told to calm down, as etcd's server tells them.
//!
//! HTTP/2's library answers pings by itself and shows them to nobody, so the frames are seen on their way
//! through: [`frames`] finds where they begin in bytes however cut, [`policy`] counts what is too much,
//! and [`guarded`] is the connection that passes bytes through and ends when it was too much.

mod frames;
mod guarded;
mod policy;

pub(crate) use guarded::Guarded;
