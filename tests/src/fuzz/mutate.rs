//! Damage to bytes that were right.

use fastrand::Rng;

/// Up to so many random bytes.
pub(super) fn noise(random: &mut Rng, bytes_max: usize) -> Vec<u8> {
    (0..random.usize(0..bytes_max)).map(|_| random.u8(..)).collect()
}

/// Changes one place of `bytes`.
pub(super) fn damage(random: &mut Rng, bytes: &mut Vec<u8>) {
    let at = random.usize(0..=bytes.len());
    match random.u32(0..5) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, random.u8(..)),
        // A length, or the number of a field, that is beyond everything.
        2 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
        3 => drop(bytes.splice(at..at, noise(random, 16))),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.u8(0..8);
            }
        }
    }
}

/// Changes one to three places, every other time.
pub(super) fn damage_some(random: &mut Rng, bytes: &mut Vec<u8>) {
    if random.bool() {
        (0..random.usize(1..4)).for_each(|_| damage(random, bytes));
    }
}
