//! Golden scripts of the Raft core: a cluster in text, whose every step is decided by the script.
//!
//! A script is a list of stanzas: a command, `----`, and what it prints. The vocabulary is the one
//! that etcd's Raft tests made standard, plus crashes, partitions, reads and forged messages; each
//! command is a file in `command/`, with its usage. Nothing happens by itself: messages lie in the
//! network until they are delivered, appends wait for `process-append-thread` (with
//! `async-storage-writes=true`), and time is a command.
//!
//! The scripts are in `scripts/`, one scenario a file; the file name is the claim and the comment
//! at the top is the reason. A test runs them all; `REWRITE=1` writes what they print instead, to
//! be reviewed as a diff.
//!
//! The binary `raft-script FILE` runs one and prints, after each stanza, what is true of each node
//! as one JSON object per line:
//!
//! ```text
//! {"line":7,"node":1,"up":true,"role":"leader","term":1,"vote":1,"leader":1,"commit":3,"applied":3,
//!  "base":{"index":2,"term":1},"first":{"index":3,"term":1},"last":{"index":3,"term":1},"durable":3,
//!  "incoming":[1,2,3],"outgoing":[],"learners":[],"inflight":{"2":0,"3":0}}
//! ```
//!
//! `line` is that of the stanza's command; a node that is down has only `"up":false`. Commands that
//! cannot be run are named on standard error, the script goes on, and the exit code is 1.

mod args;
mod cluster;
mod command;
mod describe;
mod disk;
mod error;
mod facts;
mod node;
mod output;
mod parse;
mod runner;

pub use error::ScriptError;
pub use parse::{Arg, Line, Script, Stanza};
pub use runner::{Outcome, Runner};
