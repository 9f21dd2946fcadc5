//! The Hello: the first words on a connection, in both directions, and what is checked about them.
//!
//! The dialer speaks first, on the first bidirectional stream; the acceptor checks, answers with its
//! own Hello on the same stream, and the dialer checks that. Nothing else is read or sent before.

use bytes::Bytes;
use prost::Message as _;
use quorate_types::{Incarnation, NodeId};
use rustls::pki_types::CertificateDer;

use crate::close::Close;
use crate::identity::{certificate_name, check_certificate};

/// The version of the Hello that this build writes. Unknown fields of later ones are ignored; what
/// would not be compatible is told apart by ALPN.
const VERSION: u32 = 1;

/// The largest Hello that is read, in bytes: names have bounds, so an honest one is far smaller.
pub(crate) const HELLO_BYTES_MAX: usize = 4_096;

/// What a node says of itself to a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The name of its cluster; must be the one in its certificate.
    pub cluster_name: String,
    /// A digest of the first snapshot that the cluster began with.
    pub cluster_digest: [u8; 32],
    /// The node; zero if it has no id yet.
    pub node: NodeId,
    /// Its name; must be the one in its certificate.
    pub node_name: String,
    /// Drawn when its data directory was made.
    pub incarnation: Incarnation,
    /// Drawn when its process began.
    pub session: u64,
    /// Whether its directory counts as started.
    pub started: bool,
    /// How many log batches it has synced: a directory rolled back shows fewer than before.
    pub synced_batches: u64,
    /// Whom it believes to talk to; zero if it has no id itself and knows only the peer's name.
    pub target: NodeId,
}

/// The Hello on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct HelloWire {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    cluster_name: String,
    #[prost(bytes = "bytes", tag = "3")]
    cluster_digest: Bytes,
    #[prost(fixed64, tag = "4")]
    node: u64,
    #[prost(string, tag = "5")]
    node_name: String,
    #[prost(fixed64, tag = "6")]
    incarnation: u64,
    #[prost(fixed64, tag = "7")]
    session: u64,
    #[prost(bool, tag = "8")]
    started: bool,
    #[prost(uint64, tag = "9")]
    synced_batches: u64,
    #[prost(fixed64, tag = "10")]
    target: u64,
}

/// Bytes that are no Hello.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed hello")]
pub(crate) struct HelloError;

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let wire = HelloWire {
            version: VERSION,
            cluster_name: self.cluster_name.clone(),
            cluster_digest: Bytes::copy_from_slice(&self.cluster_digest),
            node: self.node.value(),
            node_name: self.node_name.clone(),
            incarnation: self.incarnation.value(),
            session: self.session,
            started: self.started,
            synced_batches: self.synced_batches,
            target: self.target.value(),
        };
        wire.encode_to_vec()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, HelloError> {
        let wire = HelloWire::decode(bytes).map_err(|_| HelloError)?;
        if wire.version == 0 {
            return Err(HelloError);
        }
        Ok(Self {
            cluster_name: wire.cluster_name,
            cluster_digest: wire.cluster_digest.as_ref().try_into().map_err(|_| HelloError)?,
            node: NodeId(wire.node),
            node_name: wire.node_name,
            incarnation: Incarnation(wire.incarnation),
            session: wire.session,
            started: wire.started,
            synced_batches: wire.synced_batches,
            target: NodeId(wire.target),
        })
    }

    /// What the transport itself checks: the certificate speaks for these names, the cluster is ours,
    /// and the peer means us.
    pub(crate) fn check(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        cluster_name: &str,
        us: NodeId,
    ) -> Result<(), Close> {
        let identity = |reason: String| Close::identity(reason);
        let certificate = certificate.ok_or_else(|| identity("no certificate".to_owned()))?;
        let claimed = certificate_name(&self.cluster_name, &self.node_name)
            .map_err(|error| identity(error.to_string()))?;
        check_certificate(certificate, &claimed).map_err(|error| identity(error.to_string()))?;
        if self.cluster_name != cluster_name {
            let reason = format!("cluster {:?} is not ours, {cluster_name:?}", self.cluster_name);
            return Err(Close::cluster(reason));
        }
        let asks_anybody = self.node == NodeId::ZERO && self.target == NodeId::ZERO;
        if self.target != us && !asks_anybody {
            return Err(Close::target(format!("node {} is meant, this is {us}", self.target)));
        }
        if self.node == us {
            return Err(Close::identity(format!("node {us} is this node itself")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hello_reads_back_as_it_was_written() {
        let hello = Hello {
            cluster_name: "c".into(),
            cluster_digest: [7; 32],
            node: NodeId(u64::MAX),
            node_name: "n".into(),
            incarnation: Incarnation(3),
            session: 4,
            started: true,
            synced_batches: 5,
            target: NodeId(6),
        };
        assert_eq!(Hello::decode(hello.encode().into()), Ok(hello));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Hello::decode(bytes.into());
        }
    }
}
