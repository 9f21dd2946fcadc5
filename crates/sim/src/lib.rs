//! A whole cluster in one thread from one seed.
//!
//! The code under test is the code that ships: `group` (and in it `raft`), `store`, `placement` and the twin of
//! `wal`. Around it are a network, disks and clocks that do their worst, clients, and oracles that look on.
//! Nothing here reads a real clock or waits for anything: time is a number that jumps to the next event, and the
//! same plan and seed do the same again, to the last message.
//!
//! # The life of a run
//!
//! 1. A [`Plan`] is drawn from a seed ([`Plan::of_seed`]) or read from a scenario ([`scenario`]): the cluster, its
//!    links, disks and clocks, what clients do, and a list of [`Fault`]s.
//! 2. The `world` takes one event after another. Hosts (`host`, `node`) drive groups as the real ones do; messages
//!    pass through `net`, syncs through the memory twin of the log; clients (`client`, `requests`) ask and remember.
//! 3. The oracles (`check`) see every turn, message, sync, apply and answer. The first broken promise ends the run.
//! 4. In the end the faults stop, and everybody, or a bare quorum, has to come together and serve (`heal`).
//!
//! What a run did is a trace, hashed always and kept on request; [`diagram`] draws it. [`shrink`] looks for the
//! fewest faults that fail alike, [`campaign`] runs many seeds, and [`cli`] puts these together.

mod applier;
mod atlas;
mod beats;
mod campaign;
mod chaos;
mod check;
pub mod cli;
mod client;
mod clock;
pub mod diagram;
mod disks;
mod dues;
mod event;
mod fault;
mod feed;
mod heal;
mod host;
mod mover;
mod moves;
#[cfg(feature = "defects")]
pub mod museum;
#[cfg(feature = "defects")]
pub mod mutants;
mod net;
mod node;
mod panics;
mod plan;
mod recipes;
mod requests;
mod run;
pub mod scenario;
mod shrink;
mod snapshot;
mod spoil;
mod swarm;
mod trace;
mod users;
mod watch;
mod world;

pub use campaign::{Report, campaign};
pub use check::{Oracle, Violation, history};
pub use fault::{Fault, FaultKind, Target, node_name, node_of};
pub use plan::{Clocks, Cluster, Disk, Link, Network, Plan, PlannedRequest, RequestKind, Workload};
pub use run::{Outcome, run, run_seed};
pub use shrink::{Shrunk, shrink};
pub use swarm::EVENTS;
pub use trace::{Brief, TraceEvent, What};
pub use world::Counts;
