//! `quorate restore`: a data directory for a node of a new cluster, from a backup.

use std::path::PathBuf;

use quorate_node::restore::{BUMP_REVISION, RestoreConfig, RestoreFailure, restore};

use super::{Failure, print};
use crate::config::values::{InitialCluster, Name, parser};
use crate::shutdown::Exit;

/// Arguments of `restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Run it once for each initial node of the new cluster, with the same FILE, and start each node with `quorate serve` \
and the same name, cluster and token. Nodes that were given different files do not start together.

The new cluster has another cluster id. Each key has the value and the revisions that it had at the backup's revision; \
the history before is compacted, and new revisions go on above the old ones by --bump-revision, so that \
no client sees them run backwards. Choose more than the old cluster has written since the backup. Leases begin \
anew with all their time to live. Alarms are not restored. Users of an etcd keep their passwords; those that cannot \
be taken over are told.

Exit codes: 0 done; 1 nothing was restored; 2 wrong usage.")]
pub struct Args {
    /// Backup: a file of `quorate backup`, or of `etcdctl snapshot save`
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Directory to make; it must be empty, or not exist
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Name of the node that the directory is for
    #[arg(long, value_name = "NAME", value_parser = parser::<Name>)]
    name: Name,
    /// Names and peer addresses of all initial nodes of the new cluster
    #[arg(long, value_name = "NAME=HOST:PORT,...", value_parser = parser::<InitialCluster>)]
    initial_cluster: InitialCluster,
    /// Name of the new cluster, as certificates have it
    #[arg(long, value_name = "NAME", value_parser = parser::<Name>, default_value = "quorate")]
    cluster_name: Name,
    /// Token of the new cluster, as `serve` is given it
    #[arg(long, value_name = "TOKEN", default_value = "quorate-cluster")]
    initial_cluster_token: String,
    /// How far above the backup's revision the new cluster goes on: more than the old one has written since. At
    /// 10,000 writes a second the default is enough for a day
    #[arg(long, value_name = "COUNT", default_value_t = BUMP_REVISION)]
    bump_revision: i64,
    /// Take a file of etcd's that has no checksum behind it, or a wrong one
    #[arg(long)]
    skip_hash_check: bool,
}

/// Runs the command.
///
/// # Errors
/// See the exit codes.
pub fn run(args: &Args) -> Result<(), Failure> {
    let config = RestoreConfig {
        from: args.from.clone(),
        data_dir: args.data_dir.clone(),
        cluster_name: args.cluster_name.0.clone(),
        cluster_token: args.initial_cluster_token.clone(),
        node_name: args.name.0.clone(),
        initial_cluster: args.initial_cluster.0.keys().map(|name| name.0.clone()).collect(),
        bump_revision: args.bump_revision,
        skip_hash_check: args.skip_hash_check,
    };
    let restored = restore(&config).map_err(|error| {
        let exit = match error {
            RestoreFailure::NotInitial(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Failure::new(exit, error)
    })?;
    let counts = format!(
        "{} keys, {} leases, {} users, {} roles",
        restored.keys, restored.leases, restored.users, restored.roles
    );
    let (from, to) = (restored.revision, restored.begins_at);
    let directory = args.data_dir.display();
    print(&format!("{directory}: {counts} of revision {from}; the new cluster begins at {to}\n"));
    for what in &restored.left_out {
        print(&format!("left out: {what}\n"));
    }
    Ok(())
}
