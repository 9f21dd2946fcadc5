//! What an operator may set about the front door.

use std::time::Duration;

/// Limits and times of the front door.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GatewayConfig {
    /// Largest encoded command in bytes; larger ones get `etcdserver: request is too large`. Default
    /// 1.5 MiB, as etcd's. Raising it lets one request hold up a group's log for longer.
    pub max_request_bytes: usize,
    /// Largest count of compares, of success and of failure operations of a transaction, per level; a
    /// nested one gets what its outer levels leave. Default 128, as etcd's.
    pub max_txn_ops: usize,
    /// Time between HTTP/2 pings to a client that says nothing. Default 1 min (etcd's is 2 h): a client
    /// that vanished without a word holds its place among `max_connections` for no longer, and a ping
    /// a minute costs next to nothing.
    pub grpc_keepalive_interval: Duration,
    /// Time that a client has to answer a ping before it is cut off. Default 20 s, as etcd's.
    pub grpc_keepalive_timeout: Duration,
    /// Least time between two pings of a client with an open call; without one it is two hours. The third
    /// ping that comes sooner ends the connection with `too_many_pings`. Default 5 s, as etcd's. Lower:
    /// clients behind impatient middleboxes may keep their connections alive more eagerly.
    pub grpc_keepalive_min_time: Duration,
    /// Time between the responses by which a watch with `progress_notify` is told that there was nothing to
    /// tell. Default 10 min, as etcd's. Shorter: clients that fall off need to catch up less.
    pub watch_progress_interval: Duration,
    /// The least time without a leader's sign of life before there is an election. After three of these without a
    /// leader, streams that require one end; after ten, a node that is cut off ends all streams, so that their
    /// clients go on elsewhere. Default 1 s, as the engine's.
    pub election_timeout: Duration,
    /// Requests that one connection may have open at a time; a client's library queues the rest. Default
    /// 10,000: a request waiting costs a few KiB.
    pub max_concurrent_streams: u32,
    /// Connections on one port at a time; further ones wait in the kernel's queue. Default 16,384.
    pub max_connections: usize,
    /// TLS handshakes under way at a time, from the first byte on; one more ends the oldest. Default 1,024, far
    /// more than a node can finish in the round trips that one takes: so connections that never speak TLS hold
    /// no more than these places.
    pub max_handshakes: usize,
    /// Time that a TLS handshake may take. Default 10 s, as for the first bytes after it.
    pub handshake_timeout: Duration,
    /// How often the files of certificates are read again. Default 5 s: soon enough for certificates that are
    /// renewed days before they end, and three small files cost nothing.
    pub tls_reload_interval: Duration,
    /// Bytes of JSON requests that are held at a time, of all clients together; requests beyond get
    /// `ResourceExhausted`. Default 64 MiB.
    pub json_bytes_max: usize,
    /// Time that a new connection has to say which protocol it speaks, and that an HTTP/1 request may
    /// take to arrive. Default 10 s: long enough for any live client, so that a half-open one is dropped.
    pub first_bytes_timeout: Duration,
    /// The shortest time to live of a lease, in seconds: a shorter one is lengthened, so that no lease ends
    /// before a new leader can be found. Default 2: one and a half election timeouts of 1 s, rounded up.
    pub lease_ttl_min_s: i64,
    /// Time that open requests have to finish once shutdown begins. Default 5 s.
    pub shutdown_grace: Duration,
}

/// What a request may be larger than [`GatewayConfig::max_request_bytes`] before it is even decoded, as
/// etcd's: 512 KiB.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;

impl GatewayConfig {
    /// Largest gRPC message that is read at all, in bytes.
    #[must_use]
    pub const fn message_bytes_max(&self) -> usize {
        self.max_request_bytes.saturating_add(MESSAGE_OVERHEAD_BYTES)
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            max_request_bytes: 1536 * 1024,
            max_txn_ops: 128,
            grpc_keepalive_interval: Duration::from_secs(60),
            grpc_keepalive_timeout: Duration::from_secs(20),
            grpc_keepalive_min_time: Duration::from_secs(5),
            watch_progress_interval: Duration::from_secs(600),
            election_timeout: Duration::from_secs(1),
            max_concurrent_streams: 10_000,
            max_connections: 16_384,
            max_handshakes: 1024,
            handshake_timeout: Duration::from_secs(10),
            tls_reload_interval: Duration::from_secs(5),
            json_bytes_max: 64 << 20,
            first_bytes_timeout: Duration::from_secs(10),
            lease_ttl_min_s: 2,
            shutdown_grace: Duration::from_secs(5),
        }
    }
}
