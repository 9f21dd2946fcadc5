//! `quorate serve`: one node.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use quorate_node::Straight;

use super::{Failure, block_on};
use crate::config::values::ClusterState;
use crate::config::{self, Settings};
use crate::log;
use crate::node::{self, NodeError};
use crate::shutdown::{Exit, on_signals};

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every setting can be given as a flag, as an environment variable or in the file, in this order of \
precedence: --listen-client, QUORATE_LISTEN_CLIENT, or in the file: listen-client = \"0.0.0.0:2379\".

Exit codes: 0 stopped cleanly; 1 did not start, or did not stop in time; 2 wrong usage or settings; \
3 a part of the node ended by itself; 4 the node was removed from its cluster; \
5 its data directory is an older copy, or a second one in use; 6 the node is fenced, since its log or \
state is damaged: replace it; 70 log or state cannot be written; 130 stopped at once by a \
second signal.")]
pub struct Args {
    /// File with settings (TOML) [env: QUORATE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
///
/// # Errors
/// See [`crate::shutdown`] for the exit codes.
pub fn run(args: Args) -> Result<(), Failure> {
    let loaded = config::load(args.settings, std::env::vars_os(), args.config.as_deref());
    let (config, warnings) = loaded.map_err(|error| Failure::new(Exit::Usage, error))?;
    log::start(config.log_format, &config.log_filter);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let founds = config.cluster_state == ClusterState::New;
    if founds && config.initial_cluster.len() % 2 == 0 {
        let nodes = config.initial_cluster.len();
        tracing::warn!(nodes, "an even number of voters survives no more failures than one less");
    }
    tracing::info!(
        node = config.name,
        cluster = config.cluster_name,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    block_on(async {
        let stop = on_signals().map_err(|error| Failure::new(Exit::Failed, error))?;
        let (node, began) = (config.name.clone(), Instant::now());
        let on_ready = || {
            let seconds = began.elapsed().as_secs_f64();
            tracing::info!(node, seconds, "ready");
        };
        let link = Arc::new(Straight);
        node::run(vec![config], link, stop, on_ready).await.map_err(|(_, error)| failure(&error))
    })
}

/// A node's error with its exit code.
pub(super) fn failure(error: &NodeError) -> Failure {
    let exit = match error {
        NodeError::Broken(_) => Exit::Broken,
        NodeError::Removed(_) => Exit::Removed,
        NodeError::Copy(_) => Exit::Copy,
        NodeError::Engine(quorate_node::OpenError::Fenced(_)) => Exit::Damaged,
        NodeError::Bind { .. }
        | NodeError::File { .. }
        | NodeError::ClientTls(_)
        | NodeError::AuthToken(_)
        | NodeError::Engine(_)
        | NodeError::Metrics(_)
        | NodeError::Thread(_)
        | NodeError::Stopped
        | NodeError::Stuck(_) => Exit::Failed,
    };
    Failure::new(exit, error)
}
