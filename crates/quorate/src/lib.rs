//! The `quorate` binary: settings, wiring, start order, shutdown, exporter and commands. It decides
//! nothing about data: that is the business of the crates that it puts together.
//!
//! - [`alarms`]: those that a node raises for itself.
//! - [`cli`]: the commands `serve`, `dev`, `status`, `member` and `cert`.
//! - [`config`]: settings from flags, environment and file, checked into one value.
//! - [`node`]: a node from its settings to its end; several in one process. `engine_life`: its engine's thread.
//! - [`wiring`]: the gateway's backend over the node's engine, with members apart in `members`, and what happens to
//!   keys in `events`.
//! - [`exporter`]: metrics of each node; `etcd_metrics`: some under etcd's names.
//! - [`threads`]: runtimes on threads of their own.
//! - [`shutdown`]: signals, bounds and exit codes.
//! - [`log`]: log lines.
//! - [`table`]: columns of text.

pub mod alarms;
pub mod cli;
pub mod config;
mod engine_life;
mod etcd_metrics;
mod events;
pub mod exporter;
pub mod log;
mod members;
pub mod node;
pub mod shutdown;
pub mod table;
pub mod threads;
pub mod wiring;
