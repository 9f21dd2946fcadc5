//! Bytes that are no protocol, at every port.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use fastrand::Rng;
use quorate_api::codec::EncodedMessages;
use quorate_tests::client::runtime;
use quorate_tests::cluster::{Cluster, Node};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::assert_serves;

/// Connections to each TCP port.
const CONNECTIONS: usize = 100;

/// Most bytes over one connection.
const BYTES_MAX: usize = 64 << 10;

/// Datagrams to each peer port.
const DATAGRAMS: usize = 2_000;

/// Most bytes of one datagram.
const DATAGRAM_BYTES_MAX: usize = 1_400;

/// How long a connection may stay silent before we close it.
const PATIENCE: Duration = Duration::from_millis(100);

/// How much memory a node may keep of all this, bytes.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// What every HTTP/2 connection begins with, so that some garbage gets further.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
fn random_bytes_at_every_port_disturb_nobody() {
    let Some(mut cluster) = Cluster::quorate("random bytes") else { return };
    assert_serves(&cluster);
    let mut rng = Rng::with_seed(1);
    let before: Vec<u64> = cluster.nodes.iter().map(resident_bytes).collect();
    for node in &cluster.nodes {
        for address in [&node.client, &node.metrics] {
            for _ in 0..CONNECTIONS {
                shout(address, &mut rng);
            }
        }
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        for _ in 0..DATAGRAMS {
            let size = rng.usize(1..=DATAGRAM_BYTES_MAX);
            // The receiver may have no room: then it is lost, as datagrams are.
            let _ = socket.send_to(&noise(&mut rng, size), &node.peer);
        }
        runtime().block_on(garbage_messages(&node.client, &mut rng));
    }
    assert_serves(&cluster);
    for (node, before) in cluster.nodes.iter_mut().zip(before) {
        let process = node.process.as_mut().expect("it was started");
        assert!(process.ended().is_none(), "{} ended", node.name);
        let after = resident_bytes(node);
        assert!(after < before + GROWTH_BYTES_MAX, "{}: {before} to {after} bytes", node.name);
    }
}

/// One connection that talks nonsense.
fn shout(address: &str, rng: &mut Rng) {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let size = rng.usize(1..=BYTES_MAX);
    let mut bytes = noise(rng, size);
    match rng.u32(0..4) {
        0 => bytes.splice(0..0, HTTP2_PREFACE.iter().copied()).for_each(drop),
        1 => bytes.splice(0..0, *b"GET / HTTP/1.1\r\n").for_each(drop),
        _ => {}
    }
    // It may hang up at any point, and it need not answer.
    let _ = stream.write_all(&bytes);
    let _ = stream.read(&mut [0; 1024]);
}

/// Proper calls whose messages are no messages.
async fn garbage_messages(endpoint: &str, rng: &mut Rng) {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
    let channel = endpoint.connect().await.expect("the port is open");
    let mut grpc = tonic::client::Grpc::new(channel);
    for method in ["Range", "Put", "DeleteRange", "Txn", "Compact"] {
        grpc.ready().await.expect("the connection holds");
        // A field number of 0 is never valid.
        let size = rng.usize(0..200);
        let garbage = [vec![0x07], noise(rng, size)].concat();
        let path = format!("/etcdserverpb.KV/{method}").parse().expect("a path");
        let answer = grpc.unary(Request::new(garbage.into()), path, EncodedMessages).await;
        let status: Status = answer.expect_err("no such message");
        assert_eq!(status.code(), tonic::Code::Internal, "{method}: {status}");
    }
}

fn noise(rng: &mut Rng, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    rng.fill(&mut bytes);
    bytes
}

fn resident_bytes(node: &Node) -> u64 {
    let pid = node.process.as_ref().expect("it was started").pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}
