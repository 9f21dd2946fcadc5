//! The `quorate` binary: settings, wiring, start order, shutdown, exporter and commands. It decides
//! nothing about data: that is the business of the crates that it puts together.
//!
//! - [`cli`]: the commands `serve`, `dev`, `status`, `member` and `cert`.
//! - [`config`]: settings from flags, environment and file, checked into one value.
//! - [`node`]: a node from its settings to its end; several in one process.
//! - [`wiring`]: the gateway's backend over the node's engine, with members apart in `members`, and what happens to
//!   keys in `events`.
//! - [`exporter`]: metrics of each node.
//! - [`threads`]: runtimes on threads of their own.
//! - [`shutdown`]: signals, bounds and exit codes.
//! - [`log`]: log lines.
//! - [`table`]: columns of text.

pub mod cli;
pub mod config;
mod events;
pub mod exporter;
pub mod log;
mod members;
pub mod node;
pub mod shutdown;
pub mod table;
pub mod threads;
pub mod wiring;
