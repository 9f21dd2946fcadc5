//! What a transport is opened with.

use std::net::SocketAddr;
use std::time::Duration;

use quorate_types::NodeId;

use crate::tls::TlsConfig;

/// The most append lanes that a node may open, and that its peers take.
pub const LANES_MAX: usize = 16;

/// The append lanes of a node that has no reason to choose.
pub const LANES: usize = 4;

/// Who the node is and how it talks.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// The UDP address to listen on and to dial from; port 0 picks a free one.
    pub listen: SocketAddr,
    /// This node.
    pub node: NodeId,
    /// Its name, which its certificate must carry.
    pub name: String,
    /// The name of the cluster, likewise.
    pub cluster_name: String,
    /// Its certificate, key and trusted authorities.
    pub tls: TlsConfig,
    /// Append lanes per peer, 1 to [`LANES_MAX`]; default [`LANES`]. Groups are spread over them by
    /// hash: a lost packet holds up only the groups of its lane. More lanes mean smaller frames. Best
    /// the same on all nodes, as it sizes the windows that peers have here.
    pub lanes: usize,
    /// Bounds and times.
    pub limits: Limits,
}

/// Bounds and times. Peers need not have the same ones, except that a frame must fit the receiver.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest frame, in bytes: 16 MiB. A larger message is never sent (dropped and counted), a
    /// larger frame received closes the connection. Must hold the largest entry with room to spare.
    pub frame_bytes_max: usize,
    /// A frame that has reached this many bytes, 1 MiB, takes no further message. Larger ones batch
    /// more per wake-up; smaller ones let the receiver begin earlier.
    pub frame_bytes_target: usize,
    /// Unsent bytes per peer and append lane, 32 MiB: messages beyond it are dropped and counted;
    /// Raft sends again. Must hold the largest frame. Raft's own windows should fit into it.
    pub lane_bytes_max: usize,
    /// Unsent bytes of votes and beats per peer, 4 MiB: beyond it the *oldest* are dropped and
    /// counted, for a newer beat says more than an older one.
    pub control_bytes_max: usize,
    /// Unsent bytes of requests per peer, and of replies per peer, 32 MiB each: a request beyond it
    /// is refused as not sent, a reply becomes an error.
    pub request_bytes_max: usize,
    /// Requests of this node that wait for one peer's replies, and requests of one peer that run
    /// here, 16,384 each: one beyond is refused as not sent.
    pub requests_max: usize,
    /// Time for a whole handshake, TLS and Hello, on both sides: 5 s.
    pub handshake_timeout: Duration,
    /// A connection over which nothing came for this long is dead: 10 s. No failure detector: Raft
    /// and who looks at [`Transport::pulses`](crate::Transport::pulses) notice far earlier.
    pub idle_timeout: Duration,
    /// An idle connection is kept alive this often: 2 s, five times within the idle time.
    pub keep_alive_interval: Duration,
    /// The first wait before a peer is dialed again, 50 ms, doubled each time and jittered by half.
    pub reconnect_delay_min: Duration,
    /// The longest such wait: 2 s. A peer that returns dials by itself, which ends the wait.
    pub reconnect_delay_max: Duration,
    /// Handshakes that may run at a time on the accepting side: 64. A quarter of it per address; a
    /// quarter of it in total before addresses must prove themselves. Further ones are ignored, and
    /// honest peers try again.
    pub handshakes_max: usize,
    /// Connections in total: 256. Further ones are ignored.
    pub connections_max: usize,
    /// Bytes in flight per stream: 16 MiB, so that one lane fills 900 Mbit/s at 140 ms. A
    /// connection's windows are the sum over its lanes and one more, so no lane, and least of all
    /// the control stream, waits for another lane's window.
    pub stream_window_bytes: u32,
    /// Snapshots that this node sends at a time, and those that it receives: 4 each. One more is refused
    /// as busy.
    pub snapshots_max: usize,
    /// Snapshots to one peer at a time, and from one: 2 each, so that one can travel while another is
    /// being installed. Each adds a stream's window to those of its connection.
    pub snapshots_per_peer_max: usize,
    /// What all snapshots that this node sends share: 32 MiB/s, a fraction of what disks and networks
    /// do, so that whoever else uses them hardly notices. At least 1 MiB/s.
    pub snapshot_bytes_per_second: u64,
    /// A peer that sends or takes a snapshot more slowly than this, 16 KiB/s, is given up: it would
    /// keep its place for hours.
    pub snapshot_bytes_per_second_min: u64,
    /// How long a snapshot's other side may hang: 30 s.
    pub snapshot_stall_timeout: Duration,
    /// How long the receiver may take, once it has everything, to check and sync it: 2 minutes.
    pub snapshot_confirm_timeout: Duration,
    /// Buffers asked of the kernel for the socket, each way: 4 MiB (it may grant less).
    pub socket_buffer_bytes: usize,
    /// The largest UDP payload to look for by path discovery, 6,400 bytes; 1,200 to 6,400. Ten of
    /// them make one segmented send, which the kernel bounds by 64 KiB: hence no larger. On
    /// Ethernet, discovery ends at 1,452 or so by itself.
    pub mtu_max: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 16 << 20,
            frame_bytes_target: 1 << 20,
            lane_bytes_max: 32 << 20,
            control_bytes_max: 4 << 20,
            request_bytes_max: 32 << 20,
            requests_max: 16_384,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
            keep_alive_interval: Duration::from_secs(2),
            reconnect_delay_min: Duration::from_millis(50),
            reconnect_delay_max: Duration::from_secs(2),
            handshakes_max: 64,
            connections_max: 256,
            stream_window_bytes: 16 << 20,
            snapshots_max: 4,
            snapshots_per_peer_max: 2,
            snapshot_bytes_per_second: 32 << 20,
            snapshot_bytes_per_second_min: 16 << 10,
            snapshot_stall_timeout: Duration::from_secs(30),
            snapshot_confirm_timeout: Duration::from_secs(120),
            socket_buffer_bytes: 4 << 20,
            mtu_max: 6_400,
        }
    }
}
