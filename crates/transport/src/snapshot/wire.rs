//! What both sides of a snapshot say beside its content.

use bytes::Bytes;
use prost::Message;

use crate::frame::{Frame, HEADER_BYTES};

/// The largest header that an announcement may carry, in bytes.
pub const SNAPSHOT_HEADER_BYTES_MAX: usize = 64 << 10;

/// The largest announcement that is read.
pub(super) const ANNOUNCEMENT_BYTES_MAX: usize = SNAPSHOT_HEADER_BYTES_MAX + 64;

/// The largest answer that is read.
pub(super) const ANSWER_BYTES_MAX: usize = 2 << 10;

/// The longest reason that travels, in characters.
const REASON_CHARS_MAX: usize = 400;

const VERSION: u32 = 1;

/// What the sender says first.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Announcement {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// The node's own words.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) header: Bytes,
    #[prost(uint64, tag = "3")]
    pub(super) total_bytes: u64,
}

/// What the receiver answers: once to the announcement, once to the content.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(oneof = "Verdict", tags = "1, 2, 3, 4, 5")]
    verdict: Option<Verdict>,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(super) enum Verdict {
    /// Send, from this offset on.
    #[prost(uint64, tag = "1")]
    Accepted(u64),
    /// Too many snapshots are under way; the value means nothing.
    #[prost(bool, tag = "2")]
    Busy(bool),
    /// Not wanted; the reason is for people.
    #[prost(string, tag = "3")]
    Refused(String),
    /// All of it is where it belongs; the value means nothing.
    #[prost(bool, tag = "4")]
    Stored(bool),
    /// It was not taken after all; the reason is for people.
    #[prost(string, tag = "5")]
    Failed(String),
}

impl Announcement {
    pub(super) fn new(header: Bytes, total_bytes: u64) -> Self {
        Self { version: VERSION, header, total_bytes }
    }

    pub(super) fn frame(&self) -> Bytes {
        framed(self)
    }

    /// `None` for bytes that are no announcement of a version that we know.
    pub(super) fn read(frame: Bytes) -> Option<Self> {
        let announcement = Self::decode(frame).ok()?;
        (announcement.version == VERSION && announcement.header.len() <= SNAPSHOT_HEADER_BYTES_MAX)
            .then_some(announcement)
    }
}

impl Verdict {
    pub(super) fn refused(reason: &str) -> Self {
        Self::Refused(reason.chars().take(REASON_CHARS_MAX).collect())
    }

    pub(super) fn failed(reason: &str) -> Self {
        Self::Failed(reason.chars().take(REASON_CHARS_MAX).collect())
    }

    pub(super) fn frame(self) -> Bytes {
        framed(&Answer { verdict: Some(self) })
    }

    /// `None` for bytes that are no answer that we know.
    pub(super) fn read(frame: Bytes) -> Option<Self> {
        Answer::decode(frame).ok()?.verdict
    }
}

fn framed(message: &impl Message) -> Bytes {
    let mut buf = Frame::begin(message.encoded_len() + HEADER_BYTES);
    message.encode(&mut buf).expect("a BytesMut grows as needed");
    Frame::finish(buf, 0).bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(frame: &Bytes) -> Bytes {
        frame.slice(HEADER_BYTES..)
    }

    #[test]
    fn words_read_back_as_they_were_written() {
        let announcement = Announcement::new(Bytes::from_static(b"of group 2"), 1 << 40);
        assert_eq!(Announcement::read(body(&announcement.frame())), Some(announcement));
        for verdict in [
            Verdict::Accepted(7),
            Verdict::Busy(true),
            Verdict::refused("why"),
            Verdict::Stored(true),
            Verdict::failed("why"),
        ] {
            assert_eq!(Verdict::read(body(&verdict.clone().frame())), Some(verdict));
        }
    }

    #[test]
    fn reasons_fit_an_answer() {
        let long = "\u{1f980}".repeat(10_000);
        for verdict in [Verdict::refused(&long), Verdict::failed(&long)] {
            assert!(verdict.frame().len() <= ANSWER_BYTES_MAX);
        }
    }

    #[test]
    fn a_version_from_the_future_is_not_understood() {
        let future = Announcement { version: VERSION + 1, ..Announcement::default() };
        assert_eq!(Announcement::read(body(&future.frame())), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Announcement::read(bytes.clone().into());
            let _ = Verdict::read(bytes.into());
        }
    }
}
