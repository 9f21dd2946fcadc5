//! Who a node is: its id, its incarnation, and the data directory that proves them.
//!
//! A data directory belongs to one node of one cluster and to one process at a time. It is refused,
//! untouched, when another process uses it, when it is another node's or another cluster's, and when
//! it holds data without an identity.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use prost::Message;
use quorate_placement::PlacementMap;
use quorate_types::{ClusterId, GroupId, Incarnation, NodeId};
use quorate_wal::directory::{DiskDirectory, publish};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::config::InitialGroup;
use crate::rights;

/// The version of the identity file that this build writes and reads.
const VERSION: u32 = 1;

/// Bytes of a file's checksum.
const CHECKSUM_BYTES: usize = 8;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process holds the lock.
    #[error("data directory {0} is in use by another process")]
    InUse(PathBuf),
    /// It was made by another node or for another cluster.
    #[error("data directory {path} belongs to {found}, not to {wanted}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// It holds a log or a state but says not whose.
    #[error(
        "data directory {0} holds data but no identity; it is not used, and nothing in it was changed"
    )]
    Unidentified(PathBuf),
    /// The identity file is damaged or from a newer version.
    #[error("identity in {path} cannot be read: {reason}")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It has joined a cluster, but its copy of the placement map is missing or damaged: it would know
    /// no peers.
    #[error("data directory {0} belongs to a node that has joined, but its map cannot be read")]
    NoMap(PathBuf),
    /// The system refused.
    #[error("data directory {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// What a node knows of itself and of its founding fellows; durable before it speaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster's name.
    pub cluster_name: String,
    /// The cluster's token.
    pub cluster_token: String,
    /// The node's name.
    pub node_name: String,
    /// The node's id; zero for a node that joins and has not been told yet.
    pub node: NodeId,
    /// Drawn when this directory was made.
    pub incarnation: Incarnation,
    /// Stands for the first snapshot: the groups and the initial voters. Zeros with a node of id zero.
    pub cluster_digest: [u8; 32],
    /// The incarnation of every initial node; empty until the node has started.
    pub founders: BTreeMap<NodeId, Incarnation>,
    /// SHA-256 of what the keyspace began with, if the cluster was restored from a backup.
    pub restored: Option<[u8; 32]>,
}

impl Identity {
    /// True once the node has gathered all founders and may take part.
    #[must_use]
    pub fn has_started(&self) -> bool {
        !self.founders.is_empty()
    }

    /// True for a node that the cluster was started with, false for one that joined later.
    #[must_use]
    pub fn is_founder(&self) -> bool {
        self.founders.contains_key(&self.node)
    }

    /// The cluster's id, as etcd's headers carry it.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId(first_u64(&self.cluster_digest))
    }
}

/// The id of an initial node: the first eight bytes of a hash over cluster name, token and node name.
#[must_use]
pub fn node_id(cluster_name: &str, cluster_token: &str, node_name: &str) -> NodeId {
    let digest =
        digest_of(&[cluster_name.as_bytes(), cluster_token.as_bytes(), node_name.as_bytes()]);
    NodeId(first_u64(&digest))
}

/// A digest of what every founder must agree on: names, voters and groups of the first snapshot, and the SHA-256
/// of what the keyspace was `restored` from, if it was.
#[must_use]
pub fn cluster_digest(
    cluster_name: &str,
    cluster_token: &str,
    founders: &BTreeMap<NodeId, String>,
    groups: &[InitialGroup],
    restored: Option<&[u8; 32]>,
) -> [u8; 32] {
    let mut parts: Vec<Vec<u8>> = vec![cluster_name.into(), cluster_token.into()];
    for (node, name) in founders {
        parts.push(node.value().to_le_bytes().into());
        parts.push(name.as_bytes().into());
    }
    parts.push(GroupId::PLACEMENT.value().to_le_bytes().into());
    for group in groups {
        parts.push(group.id.value().to_le_bytes().into());
        parts.push(group.kind.as_bytes().into());
        if let Some(range) = &group.range {
            parts.push(range.start.to_vec());
            // No end is not an empty one.
            parts.push(vec![u8::from(range.end.is_some())]);
            parts.extend(range.end.as_ref().map(|end| end.to_vec()));
        }
    }
    if let Some(restored) = restored {
        parts.push(b"restored".into());
        parts.push(restored.to_vec());
    }
    digest_of(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// A locked data directory; the lock lasts as long as the value.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be and locks it.
    ///
    /// # Errors
    /// When another process holds it, or the system refuses.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let io_error = |source| DataDirError::Io { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(rights::MODE).create(path).map_err(io_error)?;
        // The directory's own name is durable only with its parent.
        if let Some(parent) = path.canonicalize().map_err(io_error)?.parent() {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(io_error)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("LOCK"))
            .map_err(io_error)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                rights::look_at(path).map_err(io_error)?;
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DataDirError::InUse(path.to_owned())),
            Err(errno) => Err(io_error(errno.into())),
        }
    }

    /// Where the log lives.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the state lives.
    #[must_use]
    pub fn state_path(&self) -> PathBuf {
        self.path.join("state")
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity in the directory; `None` for an empty one.
    ///
    /// # Errors
    /// When the directory is another's, unidentified or unreadable.
    pub fn identity(&self, wanted: (&str, &str, &str)) -> Result<Option<Identity>, DataDirError> {
        let Some(found) = Self::read_identity(&self.path)? else {
            if self.log_path().exists() || self.state_path().exists() {
                return Err(DataDirError::Unidentified(self.path.clone()));
            }
            return Ok(None);
        };
        let names =
            (found.cluster_name.as_str(), found.cluster_token.as_str(), found.node_name.as_str());
        if names == wanted {
            return Ok(Some(found));
        }
        let say = |(cluster, token, node)| format!("node {node} of cluster {cluster} ({token})");
        Err(DataDirError::Foreign {
            path: self.path.clone(),
            found: say(names),
            wanted: say(wanted),
        })
    }

    /// Keeps a copy of the placement map, by which the node finds its peers after a restart.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn store_map(&self, map: &PlacementMap) -> Result<(), DataDirError> {
        self.store_checked("map", &map.encode())
    }

    /// The copy of the placement map; `None` if there is none that can be read.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn map(&self) -> Result<Option<PlacementMap>, DataDirError> {
        let file = match fs::read(self.path.join("map")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DataDirError::Io { path: self.path.clone(), source }),
        };
        // It is a copy: founders do without, and group 1 brings a new one.
        Ok(checked(&file).and_then(|bytes| PlacementMap::decode(bytes).ok()))
    }

    /// Makes `identity` durable: a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn store(&self, identity: &Identity) -> Result<(), DataDirError> {
        let record = Record {
            version: VERSION,
            cluster_name: identity.cluster_name.clone(),
            cluster_token: identity.cluster_token.clone(),
            node_name: identity.node_name.clone(),
            node: identity.node.value(),
            incarnation: identity.incarnation.value(),
            cluster_digest: identity.cluster_digest.to_vec(),
            founders: identity
                .founders
                .iter()
                .map(|(node, inc)| (node.value(), inc.value()))
                .collect(),
            restored: identity.restored.map_or_else(Vec::new, |digest| digest.to_vec()),
        };
        self.store_checked("identity", &record.encode_to_vec())
    }

    /// Writes a file that begins with a checksum of what follows.
    pub(crate) fn store_checked(&self, name: &str, bytes: &[u8]) -> Result<(), DataDirError> {
        let file = [&digest_of(&[bytes])[..CHECKSUM_BYTES], bytes].concat();
        self.replace_file(name, &file)
    }

    /// Writes a file: a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn replace_file(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        self.replace(name, content)
            .map_err(|source| DataDirError::Io { path: self.path.clone(), source })
    }

    /// The identity in the directory at `path`, whoever's it is; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read_identity(path: &Path) -> Result<Option<Identity>, DataDirError> {
        let file = match fs::read(path.join("identity")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DataDirError::Io { path: path.to_owned(), source }),
        };
        let unreadable =
            |reason: String| DataDirError::Unreadable { path: path.to_owned(), reason };
        let bytes =
            checked(&file).ok_or_else(|| unreadable("its checksum does not match".into()))?;
        let record = Record::decode(bytes).map_err(|error| unreadable(error.to_string()))?;
        if record.version != VERSION {
            return Err(unreadable(format!("version {} is not supported", record.version)));
        }
        let cluster_digest = record
            .cluster_digest
            .try_into()
            .map_err(|_| unreadable("its cluster digest has the wrong length".into()))?;
        let restored =
            match record.restored.is_empty() {
                true => None,
                false => Some(record.restored.try_into().map_err(|_| {
                    unreadable("its digest of a backup has the wrong length".into())
                })?),
            };
        Ok(Some(Identity {
            restored,
            cluster_name: record.cluster_name,
            cluster_token: record.cluster_token,
            node_name: record.node_name,
            node: NodeId(record.node),
            incarnation: Incarnation(record.incarnation),
            cluster_digest,
            founders: record
                .founders
                .into_iter()
                .map(|(node, incarnation)| (NodeId(node), Incarnation(incarnation)))
                .collect(),
        }))
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let part = format!("{name}.new");
        let temporary = self.path.join(&part);
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        publish(&mut DiskDirectory::new(&self.path), &part, name)
    }
}

/// What follows the checksum, if that is right.
pub(crate) fn checked(file: &[u8]) -> Option<&[u8]> {
    let (checksum, bytes) = file.split_at_checked(CHECKSUM_BYTES)?;
    (digest_of(&[bytes])[..CHECKSUM_BYTES] == *checksum).then_some(bytes)
}

/// A random number from the system, for incarnations, sessions and seeds.
///
/// # Errors
/// When the system has none to give.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    cluster_name: String,
    #[prost(string, tag = "3")]
    cluster_token: String,
    #[prost(string, tag = "4")]
    node_name: String,
    #[prost(fixed64, tag = "5")]
    node: u64,
    #[prost(fixed64, tag = "6")]
    incarnation: u64,
    #[prost(bytes = "vec", tag = "7")]
    cluster_digest: Vec<u8>,
    #[prost(btree_map = "fixed64, fixed64", tag = "8")]
    founders: BTreeMap<u64, u64>,
    #[prost(bytes = "vec", tag = "9")]
    restored: Vec<u8>,
}

/// A hash of parts whose borders matter: ("ab", "c") is not ("a", "bc").
fn digest_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn first_u64(digest: &[u8; 32]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    // Zero means "nobody" in etcd's headers.
    u64::from_be_bytes(bytes).max(1)
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
