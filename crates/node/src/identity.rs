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
use quorate_types::{ClusterId, GroupId, Incarnation, NodeId};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::config::InitialGroup;

/// The version of the identity file that this build writes and reads.
const VERSION: u32 = 1;

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
    /// The node says that its cluster runs already, but has no data.
    #[error(
        "data directory {0} is empty and the initial cluster state is `existing`: a node whose data \
         is gone cannot return under its name"
    )]
    Empty(PathBuf),
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
    /// The node's id.
    pub node: NodeId,
    /// Drawn when this directory was made.
    pub incarnation: Incarnation,
    /// Stands for the first snapshot: the groups and the initial voters.
    pub cluster_digest: [u8; 32],
    /// The incarnation of every initial node; empty until the node has started.
    pub founders: BTreeMap<NodeId, Incarnation>,
}

impl Identity {
    /// True once the node has gathered all founders and may take part.
    #[must_use]
    pub fn has_started(&self) -> bool {
        !self.founders.is_empty()
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

/// A digest of what every founder must agree on: names, voters and groups of the first snapshot.
#[must_use]
pub fn cluster_digest(
    cluster_name: &str,
    cluster_token: &str,
    founders: &BTreeMap<NodeId, String>,
    groups: &[InitialGroup],
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
        // Keys and values are nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error)?;
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
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
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

    /// The identity in the directory; `fresh` makes one for an empty directory.
    ///
    /// # Errors
    /// When the directory is another's, unidentified or unreadable.
    pub fn identify(
        &self,
        fresh: impl FnOnce() -> Result<Identity, DataDirError>,
        wanted: (&str, &str, &str),
    ) -> Result<Identity, DataDirError> {
        let Some(found) = self.load()? else {
            if self.log_path().exists() || self.state_path().exists() {
                return Err(DataDirError::Unidentified(self.path.clone()));
            }
            let identity = fresh()?;
            self.store(&identity)?;
            return Ok(identity);
        };
        let names =
            (found.cluster_name.as_str(), found.cluster_token.as_str(), found.node_name.as_str());
        if names == wanted {
            return Ok(found);
        }
        let say = |(cluster, token, node)| format!("node {node} of cluster {cluster} ({token})");
        Err(DataDirError::Foreign {
            path: self.path.clone(),
            found: say(names),
            wanted: say(wanted),
        })
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
        };
        let bytes = record.encode_to_vec();
        let mut file = digest_of(&[&bytes])[..8].to_vec();
        file.extend_from_slice(&bytes);
        self.replace_file("identity", &file)
            .map_err(|source| DataDirError::Io { path: self.path.clone(), source })
    }

    fn load(&self) -> Result<Option<Identity>, DataDirError> {
        let file = match fs::read(self.path.join("identity")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DataDirError::Io { path: self.path.clone(), source }),
        };
        let unreadable =
            |reason: String| DataDirError::Unreadable { path: self.path.clone(), reason };
        let (checksum, bytes) =
            file.split_at_checked(8).ok_or_else(|| unreadable("it is too short".into()))?;
        if digest_of(&[bytes])[..8] != *checksum {
            return Err(unreadable("its checksum does not match".into()));
        }
        let record = Record::decode(bytes).map_err(|error| unreadable(error.to_string()))?;
        if record.version != VERSION {
            return Err(unreadable(format!("version {} is not supported", record.version)));
        }
        let cluster_digest = record
            .cluster_digest
            .try_into()
            .map_err(|_| unreadable("its cluster digest has the wrong length".into()))?;
        Ok(Some(Identity {
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

    fn replace_file(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!("{name}.new"));
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path.join(name))?;
        // The new name is durable only with the directory.
        File::open(&self.path)?.sync_all()
    }
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
mod tests {
    use super::*;

    fn identity(node_name: &str) -> Identity {
        Identity {
            cluster_name: "c".into(),
            cluster_token: "t".into(),
            node_name: node_name.into(),
            node: node_id("c", "t", node_name),
            incarnation: Incarnation(7),
            cluster_digest: [3; 32],
            founders: BTreeMap::from([(NodeId(1), Incarnation(2))]),
        }
    }

    fn never() -> Result<Identity, DataDirError> {
        panic!("an identity was made where one existed")
    }

    #[test]
    fn an_identity_outlives_the_process() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let made = DataDir::open(dir.path())
            .and_then(|data| data.identify(|| Ok(identity("n1")), ("c", "t", "n1")))
            .expect("an empty directory takes an identity");
        let found = DataDir::open(dir.path())
            .and_then(|data| data.identify(never, ("c", "t", "n1")))
            .expect("the identity is found again");
        assert_eq!(made, found);
    }

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let _first = DataDir::open(dir.path()).expect("free");
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::InUse(_))));
    }

    #[test]
    fn the_directory_of_another_node_or_cluster_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::open(dir.path()).expect("free");
        data.identify(|| Ok(identity("n1")), ("c", "t", "n1")).expect("made");
        for wanted in [("c", "t", "n2"), ("d", "t", "n1"), ("c", "u", "n1")] {
            assert!(matches!(data.identify(never, wanted), Err(DataDirError::Foreign { .. })));
        }
    }

    #[test]
    fn data_without_an_identity_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::open(dir.path()).expect("free");
        fs::create_dir(data.log_path()).expect("made");
        let refused = data.identify(never, ("c", "t", "n1"));
        assert!(matches!(refused, Err(DataDirError::Unidentified(_))));
    }

    #[test]
    fn a_damaged_identity_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::open(dir.path()).expect("free");
        data.store(&identity("n1")).expect("stored");
        let path = dir.path().join("identity");
        let good = fs::read(&path).expect("read");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).expect("written");
            let refused = data.identify(never, ("c", "t", "n1"));
            assert!(matches!(refused, Err(DataDirError::Unreadable { .. })), "flip at {at}");
        }
        fs::write(&path, &good[..5]).expect("written");
        assert!(matches!(data.load(), Err(DataDirError::Unreadable { .. })));
    }

    #[test]
    fn ids_differ_by_every_name() {
        let ids = [node_id("c", "t", "n"), node_id("ct", "", "n"), node_id("c", "tn", "")];
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    }
}
