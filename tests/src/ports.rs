//! Free ports on loopback.

use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

/// The first of the ports that tests take: below the range from which the kernel draws ports of outgoing
/// connections, so that none of those is in the way.
const FIRST: u16 = 20_000;

/// How many ports a process claims at a time.
const BLOCK: u16 = 100;

/// How many such blocks there are.
const BLOCKS: u16 = 100;

/// What this process has claimed.
static CLAIMED: Mutex<Claimed> = Mutex::new(Claimed { blocks: Vec::new(), next: 0, end: 0 });

/// Blocks that are this process's alone: a node that is down has its ports still, though nobody listens there, and
/// other programs that test at the same time must not get them.
struct Claimed {
    /// The first port of each, and the socket whose name says so. The system takes it back when the process ends.
    blocks: Vec<(u16, UnixListener)>,
    /// The ports of the last one that were not given yet.
    next: u16,
    end: u16,
}

/// A port that nobody uses, for TCP and UDP, and that this process has not been given before.
///
/// # Panics
/// When all are in use.
pub fn free() -> u16 {
    free_run(1)
}

/// The first of `count` such ports, one after the other; at most 100.
///
/// # Panics
/// When there is no such run.
pub fn free_run(count: u16) -> u16 {
    assert!(count <= BLOCK, "{count} ports are more than a block of {BLOCK}");
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..u32::from(BLOCK) * u32::from(BLOCKS) {
        if claimed.next + count > claimed.end {
            let first = claimed.another_block();
            (claimed.next, claimed.end) = (first, first + BLOCK);
        }
        let first = claimed.next;
        claimed.next += count;
        if (first..first + count).all(is_free) {
            return first;
        }
    }
    panic!("no {count} free ports from {FIRST} on");
}

impl Claimed {
    /// The first port of a block that no other process has; once there is none, of the one that was claimed first.
    fn another_block(&mut self) -> u16 {
        // Programs that follow each other begin at different places.
        let begin = (std::process::id() % u32::from(BLOCKS)) as u16;
        for block in (begin..BLOCKS).chain(0..begin) {
            let first = FIRST + block * BLOCK;
            let name = SocketAddr::from_abstract_name(format!("quorate-tests-{first}"));
            let Ok(claim) = UnixListener::bind_addr(&name.expect("a short name")) else { continue };
            self.blocks.push((first, claim));
            return first;
        }
        assert!(!self.blocks.is_empty(), "other processes have claimed all ports from {FIRST} on");
        self.blocks.rotate_left(1);
        self.blocks[self.blocks.len() - 1].0
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_not_given_again_and_its_block_is_claimed() {
        let given: Vec<u16> = (0..BLOCK * 2 + 1).map(|_| free()).collect();
        let mut different = given.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), given.len());
        for port in given {
            let first = port - (port - FIRST) % BLOCK;
            let name = SocketAddr::from_abstract_name(format!("quorate-tests-{first}"));
            let claim = UnixListener::bind_addr(&name.expect("a name"));
            assert!(claim.is_err(), "{first} can be claimed twice");
        }
    }
}
