//! Feeds: what a group's commands did, for those who follow it on this node.
//!
//! The life of a feed: a machine gives it with its outcomes; the applier writes the rows and then publishes
//! it, unread, in the group's ring; those who follow the group take it from there, all of them the same
//! allocation. Who falls behind what the ring holds reads the rest from the rows, by a query of the
//! machine's own, and goes on from where that ends. No follower ever holds up the applier.
//!
//! A ring begins anew when its group does, or when a snapshot takes the place of its rows: the first feed of
//! the new machine does not follow on what was there, so followers find themselves behind.
//!
//! - `ring`: the ring of one group.
//! - `subscription`: [`Subscription`], by which a group is followed.
//! - `elsewhere`: groups that do not live here.

mod elsewhere;
mod ring;
mod subscription;

pub(crate) use elsewhere::answer_follower;
pub(crate) use ring::{Feeds, Ring};
pub use subscription::{Followed, Subscription};
