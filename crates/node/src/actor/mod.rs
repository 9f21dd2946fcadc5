//! The actors: shells that give a [`quorate_group::Group`] its mailbox, its turns and its effects.
//!
//! - `group`: [`GroupActor`] drains a burst of its mailbox into one turn.
//! - `reload`: what a group that has panicked begins its next life from.
//! - `drive`: [`Drive`] carries a turn's effects out, without ever waiting.
//! - `herald`: tells the rest of the node who leads.
//! - `glance`: [`Glance`] shows a few facts of a group to everybody.
//! - `rest`: [`Rest`] lets the rest of the node know whether a group sleeps.
//! - `slot`: who waits for an answer, here or on another node.

mod drive;
#[cfg(test)]
mod fitness_tests;
mod glance;
mod group;
mod herald;
mod reload;
#[cfg(test)]
mod reload_tests;
mod rest;
mod slot;

pub(crate) use drive::Drive;
pub(crate) use glance::Glance;
pub(crate) use group::{GroupActor, GroupReport, Input};
pub(crate) use reload::Reloader;
pub(crate) use rest::Rest;
pub(crate) use slot::{Promise, ProposalReply, ProposalSlot, ReadGrant, ReadReply, ReadSlot};
