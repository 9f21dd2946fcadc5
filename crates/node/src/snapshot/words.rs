//! What nodes write down of a snapshot: in its announcement to a peer, and in the log's intent.

use bytes::Bytes;
use prost::Message;

/// The version of both that this build writes and reads.
const VERSION: u32 = 1;

/// The announcement of a snapshot.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Announcement {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// Drawn for each export: two with the same number have the same bytes, so that one can be continued.
    #[prost(fixed64, tag = "2")]
    pub(crate) export: u64,
    /// The group's descriptor, as stored.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) descriptor: Bytes,
    /// The leader's message to the replica, as a frame: to be delivered once the content is here.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) frame: Bytes,
}

/// What the log says of a snapshot that is to be installed.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Intent {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// The file's name in the directory of snapshots.
    #[prost(string, tag = "2")]
    pub(crate) file: String,
}

/// Bytes that are none of these words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct WordsError(String);

impl Announcement {
    pub(crate) fn new(export: u64, descriptor: Bytes, frame: Bytes) -> Self {
        Self { version: VERSION, export, descriptor, frame }
    }

    pub(crate) fn read(bytes: Bytes) -> Result<Self, WordsError> {
        let words = Self::decode(bytes)
            .map_err(|error| WordsError(format!("announcement of a snapshot: {error}")))?;
        check(words.version, "announcement of a snapshot")?;
        Ok(words)
    }

    pub(crate) fn bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

impl Intent {
    pub(crate) fn new(file: &str) -> Self {
        Self { version: VERSION, file: file.to_owned() }
    }

    pub(crate) fn read(bytes: Bytes) -> Result<Self, WordsError> {
        let words = Self::decode(bytes)
            .map_err(|error| WordsError(format!("intent to install a snapshot: {error}")))?;
        check(words.version, "intent to install a snapshot")?;
        Ok(words)
    }

    pub(crate) fn bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

fn check(version: u32, what: &str) -> Result<(), WordsError> {
    if version == VERSION {
        Ok(())
    } else {
        Err(WordsError(format!("{what}: version {version} is not supported")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_as_they_were_written() {
        let announcement = Announcement::new(7, Bytes::from_static(b"d"), Bytes::from_static(b"f"));
        assert_eq!(Announcement::read(announcement.bytes()), Ok(announcement));
        let intent = Intent::new("in-2-7");
        assert_eq!(Intent::read(intent.bytes()), Ok(intent));
    }

    #[test]
    fn damage_and_versions_from_the_future_are_errors() {
        assert!(Announcement::read(Bytes::from_static(b"\xff")).is_err());
        assert!(Intent::read(Bytes::new()).is_err());
        let future = Intent { version: VERSION + 1, ..Intent::default() };
        assert!(Intent::read(future.bytes()).is_err());
    }
}
