//! Values: different each time, so that no store keeps many of them in the room of one.

use bytes::Bytes;

/// Letters and digits that values are cut from, beside the length of one: so many that the values in one block of a
/// store's file seldom share any.
const POOL_BYTES: usize = 1 << 20;

/// A byte that no value, key or number holds a run of, so that a run of it marks a value's place.
const PLACEHOLDER: u8 = 0xfe;

/// Shorter values stay the same: a run of so few bytes marks nothing, and compressing them saves nothing.
const VARIED_BYTES_MIN: usize = 8;

/// A source of values of one size.
pub(crate) struct Values {
    pool: Bytes,
    size: usize,
}

impl Values {
    /// Values of `size` bytes made from `seed`.
    pub(crate) fn new(size: usize, seed: u64) -> Self {
        Self { pool: letters(POOL_BYTES + size, seed), size }
    }

    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// What stands for a value in a template: a mark, or a short value itself.
    pub(crate) fn in_template(&self) -> Bytes {
        match self.size {
            ..VARIED_BYTES_MIN => self.pool.slice(..self.size),
            size => vec![PLACEHOLDER; size].into(),
        }
    }

    /// Where the mark is in an encoded template.
    pub(crate) fn find(&self, template: &[u8]) -> Option<usize> {
        if self.size < VARIED_BYTES_MIN {
            return None;
        }
        let is_mark = |window: &[u8]| window.iter().all(|&byte| byte == PLACEHOLDER);
        template.windows(self.size).position(is_mark)
    }

    /// Writes another value in the place of the mark.
    pub(crate) fn write(&self, rng: &mut fastrand::Rng, into: &mut [u8]) {
        let at = rng.usize(..=self.pool.len() - self.size);
        into.copy_from_slice(&self.pool[at..at + self.size]);
    }
}

/// Letters and digits: nothing compresses them much, and they are readable in a terminal.
pub(crate) fn letters(size: usize, seed: u64) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..size).map(|_| rng.alphanumeric() as u8).collect::<Vec<u8>>().into()
}
