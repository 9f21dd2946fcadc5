//! A whole cluster in one thread from one seed.
//!
//! The code under test is the code that ships: `group` (and in it `raft`), `store`, `placement` and the twin of
//! `wal`. Around it are a network, disks and clocks that do their worst, clients, and oracles that look on.
//! Nothing here reads a real clock or waits for anything: time is a number that jumps to the next event, and the
//! same plan and seed do the same again, to the last message.

mod chaos;
mod check;
mod client;
mod clock;
mod event;
mod fault;
mod heal;
mod host;
mod net;
mod node;
mod plan;
mod requests;
mod run;
mod swarm;
mod trace;
mod world;

pub use check::{Oracle, Violation, history};
pub use fault::{Fault, FaultKind, Target, node_name, node_of};
pub use plan::{
    Clocks, Cluster, Disk, Link, Network, Plan, PlannedRequest, Workload,
};
pub use run::{Outcome, run, run_seed};
pub use swarm::EVENTS;
pub use trace::{Brief, TraceEvent, What};
pub use world::Counts;
