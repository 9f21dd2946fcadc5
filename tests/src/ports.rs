//! Free ports on loopback.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// The first of the ports that tests take: below the range from which the kernel draws ports of outgoing
/// connections, so that none of those is in the way.
const FIRST: u16 = 20_000;

/// How many ports tests may take.
const COUNT: u16 = 10_000;

/// Ports taken by this process so far.
static TAKEN: AtomicU16 = AtomicU16::new(0);

/// A port that nobody uses, for TCP and UDP, and that this process has not been given before.
///
/// # Panics
/// When all are in use.
pub fn free() -> u16 {
    free_run(1)
}

/// The first of `count` such ports, one after the other.
///
/// # Panics
/// When there is no such run.
pub fn free_run(count: u16) -> u16 {
    // Test programs that run at the same time begin at different places.
    let start = (std::process::id().wrapping_mul(61) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let next = TAKEN.fetch_add(count, Ordering::Relaxed);
        let first = FIRST + start.wrapping_add(next) % COUNT;
        if (first..first + count).all(is_free) {
            return first;
        }
    }
    panic!("no {count} free ports between {FIRST} and {}", FIRST + COUNT);
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}
