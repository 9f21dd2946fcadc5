//! A data directory made from a backup, and its first start.
//!
//! 1. [`restore`] makes of the backup what the new keyspace begins with, a snapshot beside nothing else in an empty
//!    directory, and writes a record of it last: until that is there, the directory begins nothing, and can be
//!    restored again.
//! 2. The first start finds the record, reads the whole snapshot and writes its rows beside the engine, before
//!    anybody hears of the node. Its SHA-256 is part of what all initial nodes must agree on.
//! 3. When all initial nodes were heard, the rows are put in place, the groups are made, and the identity says that
//!    the node has started. A crash before that leaves all for the next start, which does the same again. Record and
//!    snapshot go. [`first_start`](crate::first_start) has the steps.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use prost::Message;
use quorate_group::Descriptor;
use quorate_store::restore::{Contents, check_backup, from_etcd, from_quorate};
use quorate_store::{Install, SnapshotError, SnapshotReader, StateEngine, bolt};
use quorate_types::machine::StateError;
use quorate_types::{GroupId, Membership};
use sha2::Digest;

use crate::config::{EngineConfig, InitialGroup};
use crate::engine::Kinds;
use crate::hashing::Hashing;
use crate::identity::{DataDir, DataDirError, Identity, checked, node_id};
use crate::snapshot::installation::{BUFFER_BYTES, Target};

pub use quorate_store::restore::{Contents as BackupContents, RestoreError as BackupError};

/// What is added to a backup's revision, unless something else is asked for: what etcd advises. At 10,000 writes a
/// second the old cluster needs more than a day for as many, and revisions last for nine million restores.
pub const BUMP_REVISION: i64 = 1_000_000_000;

/// What the keyspace begins with.
const SNAPSHOT: &str = "restore.snapshot";
/// The record, which makes it count.
const RECORD: &str = "restore";
/// The version of the record that this build writes and reads.
const VERSION: u32 = 1;

/// Bytes of the checksum behind a file of etcd's, and what the rest is a multiple of.
const TRAILER_BYTES: u64 = 32;
const SECTOR_BYTES: u64 = 512;

/// What to restore, and for whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreConfig {
    /// A backup of Quorate's or a snapshot of etcd's.
    pub from: PathBuf,
    /// Where to: a directory that is empty, or does not exist.
    pub data_dir: PathBuf,
    /// The new cluster's name.
    pub cluster_name: String,
    /// Its token.
    pub cluster_token: String,
    /// The node.
    pub node_name: String,
    /// The names of all initial nodes.
    pub initial_cluster: BTreeSet<String>,
    /// How far above the backup's revision the new cluster goes on.
    pub bump_revision: i64,
    /// Takes a file of etcd's without a checksum behind it.
    pub skip_hash_check: bool,
}

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreFailure {
    /// The node is not one of the initial nodes.
    #[error("node {0} is not among the initial nodes")]
    NotInitial(String),
    /// There is something in the directory.
    #[error("data directory {path} is not empty: it has {found}")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The backup cannot be read, or what is made of it not written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The backup.
    #[error("{path}: {error}")]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: BackupError,
    },
    /// The backup is of no form that is known.
    #[error("{0} is neither a backup of Quorate nor a snapshot of etcd")]
    Unknown(PathBuf),
    /// A file of etcd's without a checksum.
    #[error(
        "{0} has no checksum behind it, as a file that was copied has: --skip-hash-check takes it"
    )]
    NoHash(PathBuf),
    /// A file of etcd's with another checksum.
    #[error("the checksum of {0} does not fit: the file is damaged")]
    Hash(PathBuf),
}

/// Why a restored directory does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartRestoredError {
    /// `restore` did not come to its end.
    #[error("restoring into {0} was not finished: run `quorate restore` again")]
    Unfinished(PathBuf),
    /// It was made for another cluster or node.
    #[error("{path} was restored for {found}, not for {wanted}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whom it was made for.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// The node is to join, but what was restored begins a cluster.
    #[error("a restored directory begins a new cluster: it cannot join one")]
    Joins,
    /// The record cannot be read.
    #[error("the record of the restore in {path} cannot be read: {reason}")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What was restored is damaged.
    #[error("what was restored into {path} cannot be used: {error}")]
    Snapshot {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        error: SnapshotError,
    },
    /// What was restored is whole, but not what was written.
    #[error(
        "what was restored into {0} is not what was written: remove the directory, and restore again"
    )]
    Changed(PathBuf),
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Record {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    cluster_name: String,
    #[prost(string, tag = "3")]
    cluster_token: String,
    #[prost(string, tag = "4")]
    node_name: String,
    /// All initial nodes, in ascending order.
    #[prost(string, repeated, tag = "5")]
    initial_cluster: Vec<String>,
    /// SHA-256 of the snapshot.
    #[prost(bytes = "vec", tag = "6")]
    digest: Vec<u8>,
}

/// Reads a file in Quorate's own format to its end.
///
/// # Errors
/// When it is not a whole backup.
pub fn verify(path: &Path) -> Result<Contents, RestoreFailure> {
    let file = open(path)?;
    let contents = check_backup(BufReader::with_capacity(BUFFER_BYTES, file));
    contents.map_err(|error| RestoreFailure::Backup { path: path.to_owned(), error })
}

/// Makes a data directory that one initial node of a new cluster starts with.
///
/// # Errors
/// See [`RestoreFailure`]. A directory that was empty can be restored into again.
pub fn restore(config: &RestoreConfig) -> Result<Contents, RestoreFailure> {
    let RestoreConfig { from, data_dir, cluster_name, cluster_token, node_name, .. } = config;
    if !config.initial_cluster.contains(node_name) {
        return Err(RestoreFailure::NotInitial(node_name.clone()));
    }
    let file = open(from)?;
    // Looked at before anything is put there, and again when nobody else can.
    expect_empty(data_dir)?;
    let directory = DataDir::open(data_dir)?;
    expect_empty(data_dir)?;
    let ids = config.initial_cluster.iter().map(|name| node_id(cluster_name, cluster_token, name));
    let voters = Membership::of_voters(ids);
    let path = data_dir.join(SNAPSHOT);
    let out = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
    let mut out = Hashing::new(out.map_err(|source| io_failure(&path, source))?);
    let contents = {
        let buffered = BufWriter::with_capacity(BUFFER_BYTES, &mut out);
        convert(config, file, voters, buffered)?
    };
    out.inner.sync_all().map_err(|source| io_failure(&path, source))?;
    let record = Record {
        version: VERSION,
        cluster_name: cluster_name.clone(),
        cluster_token: cluster_token.clone(),
        node_name: node_name.clone(),
        initial_cluster: config.initial_cluster.iter().cloned().collect(),
        digest: out.sha.finalize().to_vec(),
    };
    directory.store_checked(RECORD, &record.encode_to_vec())?;
    Ok(contents)
}

fn convert(
    config: &RestoreConfig,
    file: File,
    voters: Membership,
    out: impl Write,
) -> Result<Contents, RestoreFailure> {
    let (from, bump) = (&config.from, config.bump_revision);
    let io = |source| io_failure(from, source);
    let wrong = |error| RestoreFailure::Backup { path: from.clone(), error };
    let mut beginning = Vec::new();
    file.try_clone().map_err(io)?.take(64).read_to_end(&mut beginning).map_err(io)?;
    let mut file = file;
    io::Seek::rewind(&mut file).map_err(io)?;
    if beginning.starts_with(b"QSNAP\0") {
        let backup = BufReader::with_capacity(BUFFER_BYTES, file);
        return from_quorate(backup, bump, voters, out).map_err(wrong);
    }
    if !bolt::is_bolt(&beginning) {
        return Err(RestoreFailure::Unknown(from.clone()));
    }
    let length = file.metadata().map_err(io)?.len();
    let has_hash = length % SECTOR_BYTES == TRAILER_BYTES;
    let bytes = if has_hash { length - TRAILER_BYTES } else { length };
    if has_hash {
        let mut sha = Hashing::new(io::sink());
        io::copy(&mut (&file).take(bytes), &mut sha).map_err(io)?;
        let mut trailer = [0; TRAILER_BYTES as usize];
        (&file).read_exact(&mut trailer).map_err(io)?;
        if sha.sha.finalize()[..] != trailer && !config.skip_hash_check {
            return Err(RestoreFailure::Hash(from.clone()));
        }
    } else if !config.skip_hash_check {
        return Err(RestoreFailure::NoHash(from.clone()));
    }
    from_etcd(&file, bytes, bump, voters, out).map_err(wrong)
}

fn open(path: &Path) -> Result<File, RestoreFailure> {
    let file = File::open(path).map_err(|source| io_failure(path, source))?;
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err(RestoreFailure::Unknown(path.to_owned())),
        Err(source) => Err(io_failure(path, source)),
    }
}

fn io_failure(path: &Path, source: io::Error) -> RestoreFailure {
    RestoreFailure::Io { path: path.to_owned(), source }
}

/// Nothing may lie there but what a restore that was not finished has left.
fn expect_empty(path: &Path) -> Result<(), RestoreFailure> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_failure(path, source)),
    };
    let unfinished = format!("{RECORD}.new");
    let left_over = ["LOCK", SNAPSHOT, &unfinished, "lost+found"];
    for entry in entries {
        let name = entry.map_err(|source| io_failure(path, source))?.file_name();
        if !left_over.iter().any(|known| name == *known) {
            let found = name.to_string_lossy().into_owned();
            return Err(RestoreFailure::NotEmpty { path: path.to_owned(), found });
        }
    }
    Ok(())
}

/// What a directory that has not started begins with.
#[derive(Debug)]
pub(crate) struct Restoration {
    path: PathBuf,
    digest: [u8; 32],
}

/// What was restored, written beside the engine.
pub(crate) struct Restoring<'e> {
    staged: Install,
    engine: &'e dyn StateEngine,
}

/// What `data_dir` begins with, if it was restored and has not started.
///
/// # Errors
/// When restoring was not finished, or it was made for another node or cluster.
pub(crate) fn pending(
    data_dir: &DataDir,
    config: &EngineConfig,
    found: Option<&Identity>,
) -> Result<Option<Restoration>, crate::open::OpenError> {
    if found.is_some_and(Identity::has_started) {
        // It has crashed right after it had.
        clear(data_dir)?;
        return Ok(None);
    }
    let path = data_dir.path().to_owned();
    let io_error = |source| DataDirError::Io { path: path.clone(), source };
    let record = match fs::read(path.join(RECORD)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let was_restored = found.is_some_and(|found| found.restored.is_some());
            let has_snapshot = path.join(SNAPSHOT).try_exists().map_err(io_error)?;
            return match was_restored || has_snapshot {
                true => Err(StartRestoredError::Unfinished(path).into()),
                false => Ok(None),
            };
        }
        Err(source) => return Err(io_error(source).into()),
    };
    let unreadable = |reason: &dyn std::fmt::Display| StartRestoredError::Unreadable {
        path: path.clone(),
        reason: reason.to_string(),
    };
    let bytes = checked(&record).ok_or_else(|| unreadable(&"its checksum does not match"))?;
    let record = Record::decode(bytes).map_err(|error| unreadable(&error))?;
    if record.version != VERSION {
        let version = record.version;
        return Err(unreadable(&format!("version {version} is not supported")).into());
    }
    let say = |node: &str, cluster: &str, token: &str, nodes: &[&str]| {
        format!("node {node} of cluster {cluster} ({token}) with {}", nodes.join(", "))
    };
    let nodes: Vec<_> = record.initial_cluster.iter().map(String::as_str).collect();
    let made_for = say(&record.node_name, &record.cluster_name, &record.cluster_token, &nodes);
    let nodes: Vec<_> = config.initial_cluster.keys().map(String::as_str).collect();
    let wanted = say(&config.node_name, &config.cluster_name, &config.cluster_token, &nodes);
    if config.initial_state == crate::config::InitialState::New && made_for != wanted {
        return Err(StartRestoredError::Foreign { path, found: made_for, wanted }.into());
    }
    let digest = record.digest.try_into();
    let digest = digest.map_err(|_| unreadable(&"its digest has the wrong length"))?;
    Ok(Some(Restoration { path, digest }))
}

/// Removes what a node that has started needs no more.
fn clear(data_dir: &DataDir) -> Result<(), DataDirError> {
    // The snapshot last: without the record it begins nothing.
    remove_record(data_dir)?;
    remove_snapshot(data_dir)
}

/// Removes the record, if it is there.
pub(crate) fn remove_record(data_dir: &DataDir) -> Result<(), DataDirError> {
    remove(data_dir, RECORD)
}

/// Removes the snapshot, if it is there.
pub(crate) fn remove_snapshot(data_dir: &DataDir) -> Result<(), DataDirError> {
    remove(data_dir, SNAPSHOT)
}

fn remove(data_dir: &DataDir, name: &str) -> Result<(), DataDirError> {
    match fs::remove_file(data_dir.path().join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DataDirError::Io { path: data_dir.path().to_owned(), source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Restoration {
    /// The SHA-256 of what the keyspace begins with.
    pub(crate) const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Reads all of it, and writes its rows beside the engine.
    ///
    /// # Errors
    /// When it is damaged, or not what was written.
    pub(crate) fn stage<'e>(
        &self,
        groups: &[InitialGroup],
        engine: &'e dyn StateEngine,
        kinds: &Kinds,
    ) -> Result<Restoring<'e>, StartRestoredError> {
        let path = self.path.clone();
        let wrong = |error| StartRestoredError::Snapshot { path: path.clone(), error };
        let group = groups.iter().find(|group| group.id == GroupId::FIRST_DATA);
        let target = group.and_then(|group| {
            let descriptor = Descriptor { kind: group.kind.clone(), range: group.range.clone() };
            Target::new(kinds, group.id, descriptor)
        });
        let target = target.ok_or_else(|| wrong(SnapshotError::Malformed("group")))?;
        let file = File::open(path.join(SNAPSHOT)).map_err(|error| wrong(error.into()))?;
        let mut file = Hashing::new(file);
        let staged = {
            let source = BufReader::with_capacity(BUFFER_BYTES, &mut file);
            SnapshotReader::open(source, |header| target.check(header))
                .and_then(|snapshot| Install::stage(snapshot, engine))
                .map_err(wrong)?
        };
        if file.sha.finalize()[..] != self.digest {
            return Err(StartRestoredError::Changed(path));
        }
        Ok(Restoring { staged, engine })
    }
}

impl Restoring<'_> {
    /// Puts it in place, durably. Done again after a crash, it does the same.
    ///
    /// # Errors
    /// When the engine fails.
    pub(crate) fn run(self) -> Result<(), StateError> {
        self.staged.run(self.engine)
    }
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
