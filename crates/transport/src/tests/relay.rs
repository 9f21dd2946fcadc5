//! A network between two nodes that can be long, or fall silent.

use std::io::IoSliceMut;
use std::sync::atomic::AtomicBool;

use quinn::udp::{RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

/// Carries datagrams between whoever dials it and one node.
pub(super) struct Relay {
    address: SocketAddr,
    silent: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Relay {
    /// A relay in front of `target`, `delay` long each way.
    pub(super) async fn open(target: SocketAddr, delay: Duration) -> Self {
        let (front, back) = (Socket::open(), Socket::open());
        let silent = Arc::new(AtomicBool::new(false));
        let address = front.socket.local_addr().unwrap();
        let dialer = Arc::new(Mutex::new(target));
        let (there, arrivals) = mpsc::unbounded_channel();
        let (and_back, returns) = mpsc::unbounded_channel();
        let tasks = vec![
            tokio::spawn(take(front.clone(), there, delay, silent.clone(), Some(dialer.clone()))),
            tokio::spawn(take(back.clone(), and_back, delay, silent.clone(), None)),
            tokio::spawn(give(back, arrivals, Arc::new(Mutex::new(target)))),
            tokio::spawn(give(front, returns, dialer)),
        ];
        Self { address, silent, tasks }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing arrives.
    fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Everything arrives again.
    fn speak(&self) {
        self.silent.store(false, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A socket that loses nothing in bursts.
struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    fn open() -> Arc<Self> {
        let socket = std::net::UdpSocket::bind(loopback()).unwrap();
        let state = UdpSocketState::new((&socket).into()).unwrap();
        state.set_recv_buffer_size((&socket).into(), 4 << 20).unwrap();
        state.set_send_buffer_size((&socket).into(), 4 << 20).unwrap();
        socket.set_nonblocking(true).unwrap();
        Arc::new(Self { socket: UdpSocket::from_std(socket).unwrap(), state })
    }

    /// What the kernel has put together: datagrams of one stride.
    async fn receive(&self, buf: &mut [u8]) -> RecvMeta {
        loop {
            self.socket.readable().await.unwrap();
            let mut meta = [RecvMeta::default()];
            let received = self.socket.try_io(Interest::READABLE, || {
                let mut bufs = [IoSliceMut::new(buf)];
                self.state.recv((&self.socket).into(), &mut bufs, &mut meta)
            });
            if received.is_ok() {
                return meta[0];
            }
        }
    }
}

async fn take(
    socket: Arc<Socket>,
    underway: mpsc::UnboundedSender<(Instant, Vec<u8>)>,
    delay: Duration,
    silent: Arc<AtomicBool>,
    seen: Option<Arc<Mutex<SocketAddr>>>,
) {
    let mut buf = vec![0; 65_536];
    loop {
        let meta = socket.receive(&mut buf).await;
        if let Some(seen) = &seen {
            *seen.lock().unwrap() = meta.addr;
        }
        if silent.load(Ordering::Relaxed) {
            continue;
        }
        for datagram in buf[..meta.len].chunks(meta.stride.max(1)) {
            let _ = underway.send((Instant::now() + delay, datagram.to_vec()));
        }
    }
}

async fn give(
    socket: Arc<Socket>,
    mut underway: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>,
    target: Arc<Mutex<SocketAddr>>,
) {
    while let Some((due, datagram)) = underway.recv().await {
        tokio::time::sleep_until(due).await;
        let to = *target.lock().unwrap();
        let _ = socket.socket.send_to(&datagram, to).await;
    }
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_given_up_and_found_again() {
    let ca = authority();
    let mut recipe = Recipe::new(&ca, 1);
    recipe.config.limits.idle_timeout = Duration::from_millis(600);
    recipe.config.limits.keep_alive_interval = Duration::from_millis(100);
    recipe.config.limits.handshake_timeout = Duration::from_millis(600);
    let (mut one, mut two) = (recipe.open().await, Node::open(&ca, 2).await);
    let relay = Relay::open(two.transport.local_addr(), Duration::ZERO).await;
    one.dial_at(2, relay.address());
    one.up(2).await;
    one.transport.send(NodeId(2), vec![beat(1, 2, 1)]);
    assert_eq!(two.collect(1).await, [beat(1, 2, 1)]);

    relay.fall_silent();
    let transport = one.transport.clone();
    let asked = tokio::spawn(async move {
        transport.request(NodeId(2), "anybody there?".into(), PATIENCE).await
    });
    assert_eq!(one.down(2).await, "timed out");
    let lost = RequestError::Unknown(crate::Unknown::ConnectionLost);
    assert_eq!(asked.await.unwrap(), Err(lost));

    relay.speak();
    one.up(2).await;
    one.transport.send(NodeId(2), vec![beat(1, 2, 2)]);
    assert_eq!(two.collect(1).await, [beat(1, 2, 2)]);
}
