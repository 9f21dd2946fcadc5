//! SHA-256 of what is read or written, on its way.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// Hashes what goes through.
pub(crate) struct Hashing<T> {
    /// What it goes to, or comes from.
    pub(crate) inner: T,
    /// The hash so far.
    pub(crate) sha: Sha256,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, sha: Sha256::new() }
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sha.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.sha.update(&into[..read]);
        Ok(read)
    }
}
