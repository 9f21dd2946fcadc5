//! What nodes write down of a snapshot: in its announcement to a peer, and in the log's intent.
//!
//! A group has one intent at a time. While a snapshot is being installed it is that; else, while the state is
//! known to be wrong, it is to rebuild that state from the next snapshot that a peer sends.

use bytes::Bytes;
use prost::Message;
use quorate_group::WrongState;

/// The version that this build writes and reads of announcements, and of intents to install.
const VERSION: u32 = 1;
/// That of intents to rebuild, which older builds must not take for the others.
const VERSION_REBUILD: u32 = 2;

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

/// What the log says of a state that is not what it will be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Intent {
    /// This snapshot, a file in the directory of snapshots, is put in the place of log and state: a start
    /// goes on with it.
    Install(String),
    /// The state is wrong; the log is right. A start goes on without trusting the state.
    Rebuild(WrongState),
}

#[derive(Clone, PartialEq, Message)]
struct StoredIntent {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    file: String,
    #[prost(bytes = "bytes", optional, tag = "3")]
    wrong_state: Option<Bytes>,
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
    pub(crate) fn read(bytes: Bytes) -> Result<Self, WordsError> {
        let what = "intent to replace a state";
        let wrong = |error: String| WordsError(format!("{what}: {error}"));
        let stored = StoredIntent::decode(bytes).map_err(|error| wrong(error.to_string()))?;
        match (stored.version, stored.wrong_state) {
            (VERSION_REBUILD, Some(known)) => {
                let known = WrongState::decode(known).map_err(|error| wrong(error.to_string()))?;
                Ok(Self::Rebuild(known))
            }
            (version, _) => check(version, what).map(|()| Self::Install(stored.file)),
        }
    }

    pub(crate) fn bytes(&self) -> Bytes {
        let stored = match self {
            Self::Install(file) => {
                StoredIntent { version: VERSION, file: file.clone(), wrong_state: None }
            }
            Self::Rebuild(known) => StoredIntent {
                version: VERSION_REBUILD,
                file: String::new(),
                wrong_state: Some(known.encode()),
            },
        };
        stored.encode_to_vec().into()
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
        let known = WrongState::decode(Bytes::from_static(b"\x08\x01")).expect("all else is zero");
        for intent in [Intent::Install("in-2-7".to_owned()), Intent::Rebuild(known)] {
            assert_eq!(Intent::read(intent.bytes()), Ok(intent));
        }
    }

    #[test]
    fn damage_and_versions_from_the_future_are_errors() {
        assert!(Announcement::read(Bytes::from_static(b"\xff")).is_err());
        assert!(Intent::read(Bytes::new()).is_err());
        // Nor is an intent to rebuild without saying why one to install.
        for version in [VERSION_REBUILD, VERSION_REBUILD + 1] {
            let future = StoredIntent { version, ..StoredIntent::default() };
            assert!(Intent::read(future.encode_to_vec().into()).is_err());
        }
    }
}
