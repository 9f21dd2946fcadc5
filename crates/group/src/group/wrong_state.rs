//! What is known of a state that is wrong, for the next life of its replica.

use bytes::Bytes;
use prost::Message;
use quorate_types::{Digest, EntryId, LogIndex, NodeId, Term};

use crate::digest::Checkpoint;

/// The version of the stored form that this build writes and reads.
const VERSION: u32 = 1;

/// How it is known that a replica's state is wrong; for its next life, see
/// [`Group::inherit`](super::Group::inherit).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrongState {
    /// Where that showed.
    pub(super) at: Checkpoint,
    /// Who agrees with each other.
    pub(super) agreed: Vec<NodeId>,
}

/// A stored [`WrongState`] that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("what is known of a wrong state: {0}")]
pub struct WrongStateError(String);

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(fixed64, tag = "4")]
    digest: u64,
    #[prost(uint64, repeated, tag = "5")]
    agreed: Vec<u64>,
}

impl WrongState {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Self { at: Checkpoint { at, digest: Digest(digest) }, agreed } = self;
        let (term, index) = (at.term.value(), at.index.value());
        let agreed = agreed.iter().map(|node| node.value()).collect();
        Stored { version: VERSION, term, index, digest: *digest, agreed }.encode_to_vec().into()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the bytes are damaged or of a newer version.
    pub fn decode(stored: Bytes) -> Result<Self, WrongStateError> {
        let stored = Stored::decode(stored).map_err(|error| WrongStateError(error.to_string()))?;
        let Stored { version, term, index, digest, agreed } = stored;
        if version != VERSION {
            return Err(WrongStateError(format!("version {version} is not supported")));
        }
        let at = EntryId::new(Term(term), LogIndex(index));
        let agreed = agreed.into_iter().map(NodeId).collect();
        Ok(Self { at: Checkpoint { at, digest: Digest(digest) }, agreed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_reads_back_as_it_was_stored_and_damage_is_refused() {
        let at = EntryId::new(Term(3), LogIndex(1_024));
        let at = Checkpoint { at, digest: Digest(u64::MAX) };
        for agreed in [vec![], vec![NodeId(2), NodeId(u64::MAX)]] {
            let known = WrongState { at, agreed };
            assert_eq!(WrongState::decode(known.encode()), Ok(known));
        }
        assert!(WrongState::decode(Bytes::new()).is_err());
        assert!(WrongState::decode(Bytes::from_static(b"\xff")).is_err());
        let future = Stored { version: VERSION + 1, ..Stored::default() };
        assert!(WrongState::decode(future.encode_to_vec().into()).is_err());
    }
}
