//! Frames of HTTP/2 (RFC 9113, section 4.1) in a stream of bytes that is cut anywhere.

/// Length, type, flags and stream: what every frame begins with.
const HEAD_BYTES: usize = 9;

/// What a frame is; only those kinds that the policy tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Data,
    Headers,
    Reset,
    Ping,
    Other,
}

/// A frame's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    flags: u8,
    pub(super) stream: u32,
}

impl Frame {
    /// Of a ping: it answers one.
    pub(super) const fn is_ack(self) -> bool {
        matches!(self.kind, Kind::Ping) && self.flags & 1 != 0
    }

    /// The sender says no more on this stream.
    pub(super) const fn ends_stream(self) -> bool {
        match self.kind {
            Kind::Data | Kind::Headers => self.flags & 1 != 0,
            Kind::Reset => true,
            Kind::Ping | Kind::Other => false,
        }
    }

    fn parse(head: [u8; HEAD_BYTES]) -> (Self, u64) {
        let kind = match head[3] {
            0 => Kind::Data,
            1 => Kind::Headers,
            3 => Kind::Reset,
            6 => Kind::Ping,
            _ => Kind::Other,
        };
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let payload = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        (Self { kind, flags: head[4], stream }, u64::from(payload))
    }
}

/// Finds the frames of one direction; payloads are stepped over, not looked at.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes that belong to what has begun and are no head: the preface at first, then a payload.
    skip: u64,
    head: [u8; HEAD_BYTES],
    /// Bytes of `head` that are there.
    filled: usize,
}

impl Frames {
    /// A direction that begins with `preface_bytes` of something else.
    pub(super) const fn after(preface_bytes: u64) -> Self {
        Self { skip: preface_bytes, head: [0; HEAD_BYTES], filled: 0 }
    }

    /// True when what was seen ends with the end of a frame.
    pub(super) const fn is_between(&self) -> bool {
        self.skip == 0 && self.filled == 0
    }

    /// The bytes that came next; `see` is called with the head of each frame once it is whole.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut see: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let skipped =
                usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
            self.skip -= skipped as u64;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(HEAD_BYTES - self.filled);
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD_BYTES {
                let (frame, payload) = Frame::parse(self.head);
                self.filled = 0;
                self.skip = payload;
                see(frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn encoded(kind: u8, flags: u8, stream: u32, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend(stream.to_be_bytes());
        bytes.extend(std::iter::repeat_n(0xff, payload));
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_bytes_are_cut(
            frames in vec((0u8..10, any::<u8>(), 0u32..1 << 31, 0usize..40), 0..20),
            cuts in vec(1usize..30, 0..60),
        ) {
            let mut bytes = b"preface".to_vec();
            for &(kind, flags, stream, payload) in &frames {
                bytes.extend(encoded(kind, flags, stream, payload));
            }
            let mut reader = Frames::after(7);
            let mut seen = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                reader.feed(part, |frame| seen.push((frame.flags, frame.stream)));
                rest = after;
            }
            reader.feed(rest, |frame| seen.push((frame.flags, frame.stream)));
            let expected: Vec<_> = frames.iter().map(|&(_, flags, stream, _)| (flags, stream)).collect();
            prop_assert_eq!(seen, expected);
            prop_assert!(reader.is_between());
        }
    }

    #[test]
    fn a_head_says_what_its_frame_is() {
        let mut seen = Vec::new();
        let mut reader = Frames::after(0);
        for (kind, flags) in [(0, 0), (1, 5), (3, 0), (6, 0), (6, 1), (4, 1)] {
            reader.feed(&encoded(kind, flags, 3, 8), |frame| {
                seen.push((frame.kind, frame.is_ack(), frame.ends_stream()));
            });
        }
        assert_eq!(
            seen,
            [
                (Kind::Data, false, false),
                (Kind::Headers, false, true),
                (Kind::Reset, false, true),
                (Kind::Ping, false, false),
                (Kind::Ping, true, false),
                (Kind::Other, false, false),
            ]
        );
    }
}
