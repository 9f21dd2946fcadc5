//! Bytes that no honest client sends, to everything of the client port that decodes, at running nodes.
//!
//! A [`Target`] is a method of the services, as the descriptors name them, so that a new one is fuzzed without a
//! further word; a path of the JSON gateway; a connection before any call; or a token. Methods and paths get random
//! messages of their own type ([`message`]), whole, damaged, nested too deeply, or cut off. Several targets make a
//! [`Round`] on a fresh cluster. Whatever is sent, the node answers with a status or a response, lives on without a
//! panic in its log, keeps its memory bounded, and serves an honest client afterwards.

mod call;
mod connection;
mod json;
mod message;
mod mutate;
mod round;
mod target;
mod token;

use clap::Args;

use crate::verify::say;

pub use self::round::{Extent, Round, least_fuzzed};
pub use self::target::{Target, targets};

/// How long, and what.
#[derive(Debug, Args)]
pub struct Settings {
    /// Seconds for each target.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Calls for each target, if that is less.
    #[arg(long, default_value_t = u64::MAX)]
    calls: u64,
    /// Targets that are fuzzed at the same time, on a cluster of their own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    together: u8,
    /// Only targets whose path contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// What the messages are drawn from; a new one each time by default.
    #[arg(long)]
    seed: Option<u64>,
}

impl Settings {
    /// So many calls for each target.
    #[must_use]
    pub const fn brief(calls: u64, seed: u64) -> Self {
        Self { seconds: 600, calls, together: 16, only: Vec::new(), seed: Some(seed) }
    }
}

/// Fuzzes every target.
///
/// # Errors
/// When a node ends, panics, grows without bound, or does not serve afterwards.
pub fn run(settings: &Settings) -> Result<(), String> {
    let seed = settings.seed.unwrap_or_else(|| fastrand::u64(..));
    say(&format!("seed {seed}"));
    let extent = Extent { seed, seconds: settings.seconds, calls: settings.calls };
    let mut calls = 0;
    for round in Round::all(targets(&settings.only), settings.together.into()) {
        calls += round.run(extent)?;
    }
    say(&format!("{calls} hostile calls"));
    Ok(())
}
