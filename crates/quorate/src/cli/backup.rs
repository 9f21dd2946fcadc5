//! `quorate backup`: the keyspace of a running cluster, at one revision, in a file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_api::etcdserverpb::RangeRequest;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::quorate::v1::BackupRequest;
use quorate_api::quorate::v1::admin_client::AdminClient;
use quorate_node::restore::{BackupContents, verify};
use tempfile::NamedTempFile;
use tokio::time::timeout;

use super::connect::Tls;
use super::login::{Known, Login};
use super::{Failure, block_on, print};
use crate::shutdown::Exit;

/// How long an endpoint has to be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a node may take to write the backup, before it sends the first part.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// How long a node may take for a read.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long nothing may come.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Bytes of the checksum in the last message.
const SHA_BYTES: usize = 32;

/// Arguments of `backup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The backup holds what every key is at one revision, and the history that is not compacted, with leases, users and \
roles. It is read back before it gets its name, so that FILE is whole or not there. `quorate restore` makes \
data directories of a new cluster from it.

Exit codes: 0 done; 1 no backup, and FILE is as it was; 2 wrong usage.")]
pub struct Args {
    /// Client addresses of nodes; the first that can be reached gives the backup
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// Where to write the backup
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace FILE if it exists
    #[arg(long)]
    force: bool,
    /// How to speak to the nodes
    #[command(flatten)]
    tls: Tls,
    /// Whom to ask as
    #[command(flatten)]
    login: Login,
}

/// Runs the command.
///
/// # Errors
/// See the exit codes.
pub fn run(args: &Args) -> Result<(), Failure> {
    let exists = || format!("{} exists: --force replaces it", args.out.display());
    if !args.force && args.out.symlink_metadata().is_ok() {
        return Err(Failure::new(Exit::Failed, exists()));
    }
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failed, format!("{}: {error}", args.out.display()))
    };
    let directory = match args.out.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    let part = tempfile::Builder::new().prefix(".quorate-backup-").tempfile_in(&directory);
    let mut part = part.map_err(|error| failed(&error))?;
    block_on(async { fetch(args, &mut part).await })?;
    part.as_file().sync_all().map_err(|error| failed(&error))?;
    let contents = verify(part.path());
    let contents = contents.map_err(|error| {
        Failure::new(Exit::Failed, format!("the node has sent no whole backup: {error}"))
    })?;
    let bytes = part.as_file().metadata().map_err(|error| failed(&error))?.len();
    let named = match args.force {
        true => part.persist(&args.out),
        false => part.persist_noclobber(&args.out),
    };
    named.map_err(|error| failed(&error.error))?;
    File::open(&directory).and_then(|it| it.sync_all()).map_err(|error| failed(&error))?;
    print(&said(&contents, bytes, &args.out));
    Ok(())
}

fn said(contents: &BackupContents, bytes: u64, out: &Path) -> String {
    let BackupContents { revision, keys, leases, users, roles, .. } = contents;
    let out = out.display();
    format!(
        "{out}: revision {revision}, {keys} keys, {leases} leases, {users} users, {roles} roles, {bytes} \
         bytes\n"
    )
}

/// Writes what the first endpoint that can be reached sends.
async fn fetch(args: &Args, part: &mut NamedTempFile) -> Result<(), Failure> {
    let mut reasons = Vec::new();
    for endpoint in &args.endpoints {
        let connected = args.tls.connect(endpoint, CONNECT_TIMEOUT, WRITE_TIMEOUT).await;
        let channel = match connected {
            Ok(channel) => channel,
            Err(error) => {
                reasons.push(format!("{endpoint}: {error}"));
                continue;
            }
        };
        let known = args.login.on(channel).await;
        let known = known.map_err(|status| Failure::new(Exit::Failed, status.message()))?;
        let fetched = receive(known, part).await;
        return fetched.map_err(|why| Failure::new(Exit::Failed, format!("{endpoint}: {why}")));
    }
    Err(Failure::new(Exit::Failed, reasons.join("; ")))
}

async fn receive(known: Known, part: &mut NamedTempFile) -> Result<(), String> {
    // The node gives what its own replica has: after this, all that was acknowledged before.
    let read = RangeRequest { key: vec![0].into(), keys_only: true, ..RangeRequest::default() };
    match timeout(READ_TIMEOUT, KvClient::new(known.clone()).range(read)).await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => warn(status.message()),
        Err(_) => warn("no answer"),
    }
    let in_words = |status: tonic::Status| status.message().to_owned();
    let answer = AdminClient::new(known).backup(BackupRequest {}).await;
    let mut parts = answer.map_err(in_words)?.into_inner();
    let mut remaining = None;
    loop {
        let message = timeout(SILENCE_MAX, parts.message()).await;
        let message = message.map_err(|_| "the node has fallen silent".to_owned())?;
        let Some(message) = message.map_err(in_words)? else { break };
        if remaining == Some(0) {
            // The last message: the checksum of the whole. The snapshot has its own, over each part and
            // over all, and those are what counts, since they stay with the file.
            return match message.blob.len() {
                SHA_BYTES => Ok(()),
                _ => Err("the backup does not end as it should".to_owned()),
            };
        }
        part.write_all(&message.blob).map_err(|error| error.to_string())?;
        remaining = Some(message.remaining_bytes);
    }
    Err("the backup ends too early".to_owned())
}

fn warn(why: &str) {
    let line = format!(
        "quorate: the cluster does not answer a read ({why}): the backup is what this node has, which may not \
         be all\n"
    );
    // A closed stderr is no reason to fail.
    drop(std::io::stderr().write_all(line.as_bytes()));
}
