//! The store as its host uses it: engines, the batch, and the keyspace machine, against slow models.
//!
//! - [`host`]: a stand-in for the node: one group, its log, restarts.
//! - [`model`]: etcd's keyspace, obviously right and slow.
//! - [`generate`]: random commands and questions.
//! - [`etcd_facts`]: what etcd 3.5.1 does in the cases that are easy to get wrong, one test each.
//! - [`pages`]: ranges that are read in parts.
//! - [`events`]: what watchers are told as it happens, and what they read later.
//! - [`histories`]: random histories with compactions, sweeps and crashes, against the model.
//! - [`snapshots`]: exported, damaged, installed.
//! - [`auth`]: users and roles, at apply and in reads.
//! - [`upkeep`]: hashes, alarms, downgrades.
//! - [`engines`]: the promises of the engines and of the overlay.
//! - `damage`: bit flips and cuts on copies of RocksDB's files.

mod auth;
#[cfg(feature = "rocks")]
mod damage;
mod engines;
mod etcd_facts;
mod events;
mod generate;
mod histories;
mod host;
mod model;
mod pages;
mod snapshots;
mod upkeep;
