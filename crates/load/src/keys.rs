//! The key space: how key number n is written, and which number comes next.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Keys of one size: a prefix and a number with leading zeros, so that their order is the numbers'.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
    size: usize,
    count: u64,
}

impl Keys {
    /// `count` keys of `size` bytes.
    ///
    /// # Errors
    /// When there are no keys, or `size` has no room for the prefix and the largest number.
    pub(crate) fn new(prefix: &str, size: usize, count: u64) -> Result<Self, String> {
        // One more than the last key must be writable too: it ends the range of all keys.
        let needed = prefix.len() + count.to_string().len();
        if count == 0 {
            return Err("--keys must be at least 1".to_owned());
        }
        if size < needed {
            return Err(format!("--key-size {size} is too small: this key space needs {needed}"));
        }
        Ok(Self { prefix: prefix.to_owned(), size, count })
    }

    /// How many keys there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of a key.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Writes key number `index` into `out`, which is as long as a key.
    pub(crate) fn write(&self, index: u64, out: &mut [u8]) {
        let (prefix, digits) = out.split_at_mut(self.prefix.len());
        prefix.copy_from_slice(self.prefix.as_bytes());
        let mut rest = index;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    /// Key number `index`, for calls that are not measured.
    pub(crate) fn key(&self, index: u64) -> Vec<u8> {
        let mut key = vec![0; self.size];
        self.write(index, &mut key);
        key
    }
}

/// Which keys a workload takes, as written on the command line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Distribution {
    /// Every key as likely as any other.
    Uniform,
    /// One after the other, over all clients.
    Sequential,
    /// Key number n with weight 1 / (n + 1)^theta: low numbers are hot.
    Zipf(f64),
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let theta = text
            .strip_prefix("zipf(")
            .and_then(|rest| rest.strip_suffix(')'))
            .or_else(|| text.strip_prefix("zipf:"));
        match (text, theta.map(str::parse::<f64>)) {
            ("uniform", _) => Ok(Self::Uniform),
            ("sequential", _) => Ok(Self::Sequential),
            (_, Some(Ok(theta))) if theta > 0.0 && theta.is_finite() => Ok(Self::Zipf(theta)),
            _ => Err("one of uniform, sequential, zipf(THETA) with THETA above 0".to_owned()),
        }
    }
}

/// Draws key numbers.
#[derive(Debug)]
pub(crate) enum Draw {
    /// Below the count.
    Uniform(u64),
    /// The next number, and the count.
    Sequential(AtomicU64, u64),
    /// Sums of the weights up to and including each key, ending in 1. A table is exact for every theta
    /// and costs eight bytes a key.
    Zipf(Vec<f64>),
}

impl Draw {
    /// Draws from `count` keys.
    pub(crate) fn new(distribution: Distribution, count: u64) -> Self {
        match distribution {
            Distribution::Uniform => Self::Uniform(count),
            Distribution::Sequential => Self::Sequential(AtomicU64::new(0), count),
            Distribution::Zipf(theta) => {
                let mut sum = 0.0;
                let mut sums: Vec<f64> = (1..=count)
                    .map(|rank| {
                        sum += (rank as f64).powf(-theta);
                        sum
                    })
                    .collect();
                for weight in &mut sums {
                    *weight /= sum;
                }
                Self::Zipf(sums)
            }
        }
    }

    /// The number of the next key.
    pub(crate) fn next(&self, rng: &mut fastrand::Rng) -> u64 {
        match self {
            Self::Uniform(count) => rng.u64(0..*count),
            Self::Sequential(next, count) => next.fetch_add(1, Ordering::Relaxed) % count,
            Self::Zipf(sums) => {
                let point = rng.f64();
                sums.partition_point(|sum| *sum <= point).min(sums.len() - 1) as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_one_size_and_their_order_is_the_numbers() {
        let keys = Keys::new("k/", 8, 1000).expect("fits");
        assert_eq!(keys.key(7), b"k/000007");
        assert_eq!(keys.key(999), b"k/000999");
        assert!(keys.key(99) < keys.key(100));
        assert_eq!(keys.size(), 8);
    }

    #[test]
    fn a_key_space_that_does_not_fit_is_refused() {
        assert!(Keys::new("k/", 3, 9).is_ok());
        assert!(Keys::new("k/", 3, 10).is_err(), "10 ends the range of all keys");
        assert!(Keys::new("k/", 8, 0).is_err());
    }

    #[test]
    fn distributions_parse() {
        assert_eq!("uniform".parse(), Ok(Distribution::Uniform));
        assert_eq!("zipf(0.99)".parse(), Ok(Distribution::Zipf(0.99)));
        assert_eq!("zipf:1".parse(), Ok(Distribution::Zipf(1.0)));
        assert!("zipf(0)".parse::<Distribution>().is_err());
        assert!("zipf(x)".parse::<Distribution>().is_err());
        assert!("normal".parse::<Distribution>().is_err());
    }

    #[test]
    fn zipf_prefers_low_numbers_by_its_weights() {
        let draw = Draw::new(Distribution::Zipf(1.0), 4);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut seen = [0u32; 4];
        for _ in 0..100_000 {
            seen[draw.next(&mut rng) as usize] += 1;
        }
        // Weights 1, 1/2, 1/3, 1/4 over their sum 25/12.
        for (rank, count) in seen.iter().enumerate() {
            let share = 12.0 / 25.0 / (rank as f64 + 1.0);
            assert!((f64::from(*count) / 100_000.0 - share).abs() < 0.01, "{seen:?}");
        }
    }

    #[test]
    fn sequential_goes_round() {
        let draw = Draw::new(Distribution::Sequential, 3);
        let mut rng = fastrand::Rng::with_seed(1);
        let drawn: Vec<u64> = (0..5).map(|_| draw.next(&mut rng)).collect();
        assert_eq!(drawn, [0, 1, 2, 0, 1]);
    }
}
