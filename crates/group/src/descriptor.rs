//! What a node must know of a group before it can open it: stored beside the group's log.

use bytes::Bytes;
use prost::Message;
use quorate_types::KeyRange;

/// The version of a stored descriptor that this build writes and reads.
const VERSION: u32 = 1;

/// What kind of machine a group replicates, and which keys it owns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// The name of the machine's kind.
    pub kind: String,
    /// The keys that the group owns; `None` for a machine whose rows are in a space of its own.
    pub range: Option<KeyRange>,
}

/// A stored descriptor that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("group descriptor: {0}")]
pub struct DescriptorError(String);

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    kind: String,
    #[prost(message, optional, tag = "3")]
    range: Option<StoredRange>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredRange {
    #[prost(bytes = "bytes", tag = "1")]
    start: Bytes,
    #[prost(bytes = "bytes", optional, tag = "2")]
    end: Option<Bytes>,
}

impl Descriptor {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let range = self.range.clone().map(|KeyRange { start, end }| StoredRange { start, end });
        Stored { version: VERSION, kind: self.kind.clone(), range }.encode_to_vec().into()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the bytes are damaged or of a newer version.
    pub fn decode(stored: &Bytes) -> Result<Self, DescriptorError> {
        let stored =
            Stored::decode(stored.clone()).map_err(|error| DescriptorError(error.to_string()))?;
        if stored.version != VERSION {
            return Err(DescriptorError(format!("version {} is not supported", stored.version)));
        }
        let range = stored.range.map(|StoredRange { start, end }| KeyRange { start, end });
        Ok(Self { kind: stored.kind, range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_reads_back_as_it_was_stored() {
        let bounded =
            KeyRange { start: Bytes::from_static(b"a"), end: Some(Bytes::from_static(b"b")) };
        for range in [None, Some(KeyRange::all()), Some(bounded)] {
            let descriptor = Descriptor { kind: "kv".into(), range };
            assert_eq!(Descriptor::decode(&descriptor.encode()), Ok(descriptor));
        }
    }

    #[test]
    fn damage_and_newer_versions_are_refused() {
        assert!(Descriptor::decode(&Bytes::from_static(b"\xff\xff")).is_err());
        let newer = Stored { version: 2, kind: "kv".into(), range: None }.encode_to_vec();
        assert!(Descriptor::decode(&newer.into()).is_err());
    }
}
