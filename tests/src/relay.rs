//! Links between nodes that can be cut, without any right of an administrator: the datagrams for each node go
//! through a socket of this process, which drops those of a node that is cut off.
//!
//! Nodes know each other by the relays' addresses. A node sends from the port that it listens on, so the relay
//! sees whose a datagram is. Clients do not come this way: they still reach the node.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::client::runtime;

/// Nobody is cut off.
const NOBODY: usize = usize::MAX;

/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// A relay before each node, until it is dropped.
pub struct Relays {
    cut: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relays {
    /// Starts relays: node `number` listens on `nodes[number].0` and is known as `nodes[number].1`.
    ///
    /// # Panics
    /// When an address cannot be bound.
    pub fn start(nodes: Vec<(SocketAddr, SocketAddr)>) -> Self {
        let cut = Arc::new(AtomicUsize::new(NOBODY));
        let dropped = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let links =
            Links { cut: Arc::clone(&cut), dropped: Arc::clone(&dropped), nodes: Arc::new(nodes) };
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let mut relays = JoinSet::new();
                for number in 0..links.nodes.len() {
                    let front = UdpSocket::bind(links.nodes[number].1).await;
                    let front = Arc::new(front.expect("the port is free"));
                    relays.spawn(links.clone().relay(number, front));
                }
                bound.send(()).expect("somebody waits");
                // The sender may just be dropped.
                let _ = stopped.await;
            });
        });
        is_bound.recv().expect("the relays are bound");
        Self { cut, dropped, stop: Some(stop), thread: Some(thread) }
    }

    /// Cuts node `number` off from all others, in both directions; who was cut off before is not any more.
    pub fn cut(&self, number: usize) {
        self.cut.store(number, Ordering::SeqCst);
    }

    /// Datagrams that were dropped so far. A cut that dropped none shows nothing.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Mends all links.
    pub fn mend(&self) {
        self.cut.store(NOBODY, Ordering::SeqCst);
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What it had to say has been said by its panic.
            let _ = thread.join();
        }
    }
}

/// What every task of the relays knows.
#[derive(Clone)]
struct Links {
    cut: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    /// Where each node listens, and as what it is known.
    nodes: Arc<Vec<(SocketAddr, SocketAddr)>>,
}

impl Links {
    /// Whether a datagram between `node` and who sends from `other` is dropped; counts it then.
    fn drops(&self, node: usize, other: SocketAddr) -> bool {
        let cut = self.cut.load(Ordering::SeqCst);
        let drops =
            cut == node || self.nodes.get(cut).is_some_and(|(listens, _)| *listens == other);
        self.dropped.fetch_add(u64::from(drops), Ordering::SeqCst);
        drops
    }

    /// Carries what comes for `node` to it, each sender's from a socket of its own, and the answers back.
    async fn relay(self, node: usize, front: Arc<UdpSocket>) {
        let mut back: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
        let mut answers = JoinSet::new();
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // An error here is of an earlier datagram, whose receiver did not listen.
            let Ok((length, from)) = front.recv_from(&mut datagram).await else { continue };
            if self.drops(node, from) {
                continue;
            }
            let socket = match back.get(&from) {
                Some(socket) => Arc::clone(socket),
                None => {
                    let socket = self.connect(node).await.expect("there are free ports");
                    let answer =
                        self.clone().answer(node, from, Arc::clone(&socket), Arc::clone(&front));
                    answers.spawn(answer);
                    back.insert(from, Arc::clone(&socket));
                    socket
                }
            };
            // A node that is down gets nothing, as on a network.
            let _ = socket.send(&datagram[..length]).await;
        }
    }

    async fn connect(&self, node: usize) -> io::Result<Arc<UdpSocket>> {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
        socket.connect(self.nodes[node].0).await?;
        Ok(Arc::new(socket))
    }

    /// Carries what `node` answers on `socket` back to `to`.
    async fn answer(
        self,
        node: usize,
        to: SocketAddr,
        socket: Arc<UdpSocket>,
        front: Arc<UdpSocket>,
    ) {
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let Ok(length) = socket.recv(&mut datagram).await else { continue };
            if !self.drops(node, to) {
                // As above.
                let _ = front.send_to(&datagram[..length], to).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as Socket;
    use std::time::Duration;

    use super::*;
    use crate::{ports, wait};

    #[test]
    fn a_node_that_is_cut_off_hears_nothing_and_is_not_heard() {
        let address = || SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let nodes: Vec<_> = (0..3).map(|_| (address(), address())).collect();
        let relays = Relays::start(nodes.clone());
        let sockets: Vec<_> =
            nodes.iter().map(|node| Socket::bind(node.0).expect("free")).collect();
        for socket in &sockets {
            socket.set_nonblocking(true).expect("possible");
        }
        let sent = |from: usize, to: usize, what: &str| {
            sockets[from].send_to(what.as_bytes(), nodes[to].1).expect("sent");
        };
        let heard = |by: usize, what: &str| {
            let mut bytes = [0; 64];
            wait::until("a datagram", Duration::from_secs(10), || {
                let (length, from) =
                    sockets[by].recv_from(&mut bytes).map_err(|e| e.to_string())?;
                assert_eq!(&bytes[..length], what.as_bytes());
                Ok(from)
            })
        };
        sent(0, 1, "one");
        let from = heard(1, "one");
        sockets[1].send_to(b"answer", from).expect("sent");
        assert_eq!(heard(0, "answer"), nodes[1].1, "answers come from where was sent to");
        relays.cut(1);
        sent(0, 1, "dropped");
        sent(1, 2, "dropped");
        sockets[1].send_to(b"dropped", from).expect("sent");
        sent(0, 2, "two");
        heard(2, "two");
        sent(2, 0, "three");
        heard(0, "three");
        wait::until("the drops", Duration::from_secs(10), || match relays.dropped() {
            3 => Ok(()),
            other => Err(other.to_string()),
        });
        relays.mend();
        sent(0, 1, "four");
        heard(1, "four");
    }
}
