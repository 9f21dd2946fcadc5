//! Where one JSON object of a stream ends and the next begins.

/// Finds the objects of a stream of JSON, however it is cut. It knows nothing of JSON but braces, brackets
/// and strings: whether a part is an object of JSON, its reader has to tell.
#[derive(Debug)]
pub(super) struct Splitter {
    /// What has come and was not handed out.
    held: Vec<u8>,
    /// Bytes of `held` that were looked at.
    seen: usize,
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
    bytes_max: usize,
}

/// Why there is no next object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SplitError {
    /// An object of at least `found` bytes is larger than `limit`.
    TooLarge {
        /// Bytes so far.
        found: usize,
        /// Bytes at most.
        limit: usize,
    },
    /// The stream goes on with something that is no object.
    NoObject,
    /// The stream ended within an object.
    Unfinished,
}

impl Splitter {
    /// A splitter for objects of at most `bytes_max` bytes.
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self {
            held: Vec::new(),
            seen: 0,
            depth: 0,
            is_in_string: false,
            is_escaped: false,
            bytes_max,
        }
    }

    /// More of the stream.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole object; `None`: more has to come first.
    ///
    /// # Errors
    /// When there never will be one.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, SplitError> {
        if self.depth == 0 {
            let blank = self.held.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.held.drain(..blank);
            match self.held.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(_) => return Err(SplitError::NoObject),
            }
        }
        while let Some(byte) = self.held.get(self.seen) {
            self.seen += 1;
            if self.seen > self.bytes_max {
                let (found, limit) = (self.held.len(), self.bytes_max);
                return Err(SplitError::TooLarge { found, limit });
            }
            match (self.is_in_string, self.is_escaped, byte) {
                (true, true, _) => self.is_escaped = false,
                (true, false, b'\\') => self.is_escaped = true,
                (_, _, b'"') => self.is_in_string = !self.is_in_string,
                (false, _, b'{' | b'[') => self.depth += 1,
                (false, _, b'}' | b']') => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                let rest = self.held.split_off(self.seen);
                self.seen = 0;
                return Ok(Some(std::mem::replace(&mut self.held, rest)));
            }
        }
        Ok(None)
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// When it ended within an object.
    pub(super) const fn end(&self) -> Result<(), SplitError> {
        if self.depth == 0 { Ok(()) } else { Err(SplitError::Unfinished) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(parts: &[&[u8]], bytes_max: usize) -> Result<Vec<String>, SplitError> {
        let (mut splitter, mut found) = (Splitter::new(bytes_max), Vec::new());
        for part in parts {
            splitter.feed(part);
            while let Some(object) = splitter.next()? {
                found.push(String::from_utf8_lossy(&object).into_owned());
            }
        }
        splitter.end()?;
        Ok(found)
    }

    #[test]
    fn objects_are_told_apart_with_or_without_space() {
        let found = split(&[br#" {"a":"}\"{"}{} "#, b"\n{\"b\":[{}]}"], 100).unwrap();
        assert_eq!(found, [r#"{"a":"}\"{"}"#, "{}", r#"{"b":[{}]}"#]);
    }

    #[test]
    fn what_is_no_object_ends_the_stream() {
        assert_eq!(split(&[b"{} 5"], 9), Err(SplitError::NoObject));
        assert_eq!(split(&[b"]"], 9), Err(SplitError::NoObject));
        assert_eq!(split(&[b"{{"], 9), Err(SplitError::Unfinished));
        let too_large = SplitError::TooLarge { found: 5, limit: 4 };
        assert_eq!(split(&[br#"{"aaa"#], 4), Err(too_large));
        assert_eq!(split(&[b"{}{}{}{}"], 2).map(|found| found.len()), Ok(4));
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            text in r#"[{}"\\\[\] a]{0,20}"#,
            cut in 0_usize..20,
        ) {
            let cut = cut.min(text.len());
            let (a, b) = text.as_bytes().split_at(cut);
            let bytes = text.as_bytes().chunks(1).collect::<Vec<_>>();
            prop_assert_eq!(split(&[a, b], 8).ok(), split(&bytes, 8).ok());
        }

        #[test]
        fn objects_of_json_are_found_as_a_reader_of_json_finds_them(
            keys in proptest::collection::vec(".{0,6}", 0..5),
        ) {
            let objects: Vec<String> =
                keys.iter().map(|key| serde_json::json!({ key.as_str(): [key, {}] }).to_string()).collect();
            prop_assert_eq!(split(&[objects.concat().as_bytes()], 1000), Ok(objects));
        }
    }
}
