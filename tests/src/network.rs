//! Nodes in network namespaces of their own, whose links the kernel cuts: both ways, one way, or between two of them.
//!
//! A thread of its own is the hub: it has two bridges, one for clients and one for the nodes' links with each other,
//! and every node is at both. So a node that is cut off from the others still answers its clients. Nothing of the
//! machine's own network changes, and everything is gone with the thread and its processes.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::resume_unwind;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::programs::skip_without_rights;

/// How long a datagram is waited for that should come, or should not.
const HEARD_BOUND: Duration = Duration::from_millis(200);

/// A link-layer address that nobody has: what is sent there is lost without a word.
const NOBODY: &str = "02:00:00:00:00:99";

/// A network namespace.
pub struct Namespace(File);

impl Namespace {
    /// A new one, with a loopback.
    fn new() -> Result<Self, String> {
        std::thread::scope(|scope| scope.spawn(own_network).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// What `f` makes, with the sockets that it opens and the processes that it starts in this namespace.
    ///
    /// # Panics
    /// When the kernel refuses, or `f` panics.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.0.as_fd(), network).expect("it is ours");
            f()
        };
        std::thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The path by which another program finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Runs `f` on a thread that is the hub of a new network of `nodes` nodes. `None`: this machine or user cannot have
/// one, which is said as the reason why `test` is skipped.
///
/// # Panics
/// When `f` does.
pub fn with_network<T: Send>(
    test: &str,
    nodes: usize,
    f: impl FnOnce(Network) -> T + Send,
) -> Option<T> {
    let hub = || match own_network().and_then(|_| Network::build(nodes)) {
        Ok(network) => Some(f(network)),
        Err(why) => {
            skip_without_rights(test, &format!("no network of its own: {why}"));
            None
        }
    };
    std::thread::scope(|scope| scope.spawn(hub).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// The nodes' namespaces, and the bridges between them.
pub struct Network {
    nodes: Vec<Namespace>,
}

impl Network {
    fn build(nodes: usize) -> Result<Self, String> {
        ip("link add clients type bridge")?;
        ip("link add peers type bridge")?;
        ip("addr add 10.77.0.254/24 dev clients")?;
        ip("link set clients up")?;
        ip("link set peers up")?;
        let nodes = (0..nodes).map(|_| Namespace::new()).collect::<Result<Vec<_>, _>>()?;
        for (number, node) in nodes.iter().enumerate() {
            for (bridge, subnet) in [("clients", 0), ("peers", 1)] {
                let (hub, inside) = (format!("{bridge}{number}"), &bridge[..5]);
                let namespace = node.path();
                ip(&format!("link add {hub} type veth peer name {inside} netns {namespace}"))?;
                ip(&format!("link set {hub} master {bridge} up"))?;
                let address = format!("10.77.{subnet}.{}", number + 1);
                node.within(|| {
                    ip(&format!("addr add {address}/24 dev {inside}"))?;
                    ip(&format!("link set {inside} up"))
                })?;
            }
        }
        Ok(Self { nodes })
    }

    /// The namespace of node `number`.
    #[must_use]
    pub fn node(&self, number: usize) -> &Namespace {
        &self.nodes[number]
    }

    /// The address of node `number` for clients.
    #[must_use]
    pub fn client_address(number: usize) -> String {
        format!("10.77.0.{}", number + 1)
    }

    /// The address of node `number` for other nodes.
    #[must_use]
    pub fn peer_address(number: usize) -> String {
        format!("10.77.1.{}", number + 1)
    }

    /// Cuts node `number` off from all others, in both directions.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn cut(&self, number: usize) {
        ip(&format!("link set peers{number} down")).expect("the link is there");
        let others = (0..self.nodes.len()).filter(|other| *other != number);
        others.for_each(|other| self.assert_deaf(number, other));
    }

    /// What `from` sends to `to` is lost from now on; what `to` sends arrives.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn lose(&self, from: usize, to: usize) {
        let to_address = Self::peer_address(to);
        let lose = format!("neigh replace {to_address} lladdr {NOBODY} dev peers nud permanent");
        self.nodes[from].within(|| ip(&lose)).expect("the link is there");
        self.assert_deaf(to, from);
    }

    /// Mends all links, and waits until everybody hears everybody.
    ///
    /// # Panics
    /// When that does not come to be.
    pub fn mend(&self) {
        for (number, node) in self.nodes.iter().enumerate() {
            ip(&format!("link set peers{number} up")).expect("the link is there");
            // One that is there no more needs no flush.
            node.within(|| ip("neigh flush dev peers nud permanent")).expect("the link is there");
        }
        let numbers = || 0..self.nodes.len();
        for (to, from) in numbers().flat_map(|to| numbers().map(move |from| (to, from))) {
            if to != from {
                crate::wait::until("a datagram arrives", Duration::from_secs(30), || {
                    if self.hears(to, from) { Ok(()) } else { Err(format!("{from} to {to}")) }
                });
            }
        }
    }

    /// A cut that lets something pass shows nothing.
    fn assert_deaf(&self, to: usize, from: usize) {
        assert!(!self.hears(to, from), "node {to} still hears node {from}");
    }

    /// Whether a datagram of node `from` arrives at node `to`.
    fn hears(&self, to: usize, from: usize) -> bool {
        let bind = |number: usize| {
            let address = (Self::peer_address(number), 0);
            self.nodes[number].within(|| UdpSocket::bind(address)).expect("it has this address")
        };
        let (ear, mouth) = (bind(to), bind(from));
        let address = ear.local_addr().expect("it is bound");
        ear.set_read_timeout(Some(HEARD_BOUND)).expect("a time above zero");
        // A link that is down may refuse it.
        let _ = mouth.send_to(b"?", address);
        ear.recv(&mut [0; 1]).is_ok()
    }
}

/// Takes this thread, and what it starts from now on, into a network namespace of its own, with a loopback.
#[expect(
    unsafe_code,
    reason = "the wrapper leaves it to us that no other thread shares our network"
)]
fn own_network() -> Result<Namespace, String> {
    // SAFETY: only the network that this thread sees changes.
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    unshared.map_err(|error| format!("unshare: {error}"))?;
    ip("link set lo up")?;
    let own =
        File::open("/proc/thread-self/ns/net").map_err(|error: io::Error| error.to_string())?;
    Ok(Namespace(own))
}

fn ip(args: &str) -> Result<(), String> {
    let output = Command::new("ip").args(args.split(' ')).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {args}: {}", said.trim())) }
}
