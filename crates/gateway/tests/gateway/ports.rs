//! Noise, half-open connections, oversized messages and plain pages: nothing of it disturbs a client.

use std::time::Duration;

use quorate_api::etcdserverpb::{PutRequest, RangeRequest};
use quorate_gateway::{BackendError, GatewayConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::{Door, exchange, within};

fn get() -> RangeRequest {
    RangeRequest { key: "k".into(), ..RangeRequest::default() }
}

#[tokio::test]
async fn noise_ends_its_own_connection_and_no_other() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut rows: Vec<(&str, Vec<u8>)> = vec![
        ("zeros", vec![0; 4096]),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("half a preface", preface[..10].to_vec()),
        ("a preface and zeros", [preface, &[0xff; 1024]].concat()),
        ("a frame that says it is huge", [preface, &[0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0]].concat()),
        ("a line without an end", vec![b'G'; 100_000]),
        ("nothing", Vec::new()),
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..50 {
        let noise = std::iter::repeat_with(|| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as u8
        });
        rows.push(("random", noise.take(777).collect()));
    }
    for (name, noise) in rows {
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        // The server may hang up in the middle, which is its right.
        let _ = stream.write_all(&noise).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = within("the gateway hangs up", stream.read_to_end(&mut answer)).await;
        kv.range(get()).await.unwrap_or_else(|status| panic!("after {name}: {status}"));
    }
}

#[tokio::test]
async fn half_open_connections_are_dropped_and_block_nobody() {
    let first_bytes_timeout = Duration::from_millis(50);
    let config = GatewayConfig { first_bytes_timeout, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let mut kv = door.kv().await;
    let mut half_open = Vec::new();
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0", b"GET /health HTTP/1.1\r\nHost"] {
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        stream.write_all(said).await.expect("a few bytes");
        half_open.push(stream);
    }
    kv.range(get()).await.expect("others are served meanwhile");
    for mut stream in half_open {
        let mut answer = Vec::new();
        // Ends only when the gateway hangs up; a reset counts as that too.
        let _ = within("the gateway hangs up", stream.read_to_end(&mut answer)).await;
    }
    kv.range(get()).await.expect("a connection that has spoken may be silent");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let config = GatewayConfig { max_connections: 1, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let mut first = door.kv().await;
    first.range(get()).await.expect("the first is served");
    let address = door.address.to_string();
    let waiting =
        tokio::spawn(async move { exchange(&address, b"GET /version HTTP/1.0\r\n\r\n").await });
    first.range(get()).await.expect("the first is served on");
    assert!(!waiting.is_finished());
    drop(first);
    let served = within("the second is served when the first has gone", waiting).await;
    let (status, _) = served.expect("no panic");
    assert_eq!(status, 200);
}

#[tokio::test]
async fn an_oversized_message_is_refused_and_its_connection_goes_on() {
    let config = GatewayConfig { max_request_bytes: 10_000, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let mut kv = door.kv().await;
    let put = |bytes: usize| PutRequest {
        key: "k".into(),
        value: vec![b'v'; bytes].into(),
        ..PutRequest::default()
    };
    kv.put(put(9_900)).await.expect("below the limit");
    let status = kv.put(put(10_100)).await.expect_err("above the limit");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "etcdserver: request is too large");
    let status = kv.put(put(10_000 + 512 * 1024)).await.expect_err("above the transport's limit");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let text = "grpc: received message larger than max (534295 vs. 534288)";
    assert_eq!(status.message(), text);
    kv.range(get()).await.expect("served on");
}

#[tokio::test]
async fn the_client_port_has_etcds_pages() {
    let door = Door::open().await;
    let address = door.address.to_string();
    let rows: [(&[u8], u16, &str); 8] = [
        (b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200, {
            r#"{"health":"true","reason":""}"#
        }),
        (b"GET /health HTTP/1.0\r\n\r\n", 200, r#"{"health":"true","reason":""}"#),
        (b"HEAD /health HTTP/1.0\r\n\r\n", 200, ""),
        (b"POST /health HTTP/1.0\r\n\r\n", 405, "Method Not Allowed\n"),
        (b"GET /nope HTTP/1.0\r\n\r\n", 404, "404 page not found\n"),
        (b"GET /livez HTTP/1.0\r\n\r\n", 404, "404 page not found\n"),
        (b"GET /version HTTP/1.0\r\n\r\n", 200, {
            r#"{"etcdserver":"3.5.1","etcdcluster":"3.5.0","quorate":"0.1.0"}"#
        }),
        (b"noise\r\n\r\n", 400, ""),
    ];
    for (request, status, body) in rows {
        let name = String::from_utf8_lossy(request);
        assert_eq!(exchange(&address, request).await, (status, body.to_owned()), "{name}");
    }
    assert!(door.page("/metrics").await.1.contains("# TYPE grpc_server_handled_total counter"));
    door.backend.fail_with(Some(BackendError::TimedOut));
    let (status, body) = door.page("/health").await;
    assert_eq!(status, 503);
    let text = r#"{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}"#;
    assert_eq!(body.trim_end(), text);
    door.backend.lose_leader();
    let (status, body) = door.page("/health").await;
    let text = r#"{"health":"false","reason":"RAFT NO LEADER"}"#;
    assert_eq!((status, body.trim_end()), (503, text));
}

#[tokio::test]
async fn the_metrics_port_serves_probes_and_no_calls() {
    let door = Door::open().await;
    let address = door.metrics_address.to_string();
    let page = async |path: &str| {
        exchange(&address, format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").as_bytes())
            .await
    };
    assert_eq!(page("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(page("/readyz").await, (200, "ok\n".to_owned()));
    assert_eq!(page("/health").await.0, 200);
    assert_eq!(page("/version").await.0, 404);
    assert!(page("/metrics").await.1.contains("quorate_gateway_connections_count"));
    door.backend.set_ready(false);
    assert_eq!(page("/readyz").await, (503, "not ready\n".to_owned()));
    assert_eq!(page("/livez").await.0, 200, "a node that waits is alive");
    let mut stream = TcpStream::connect(&address).await.expect("a connection");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("a preface");
    let mut answer = Vec::new();
    let _ = within("the gateway hangs up", stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty(), "HTTP/2 is not for this port");
}

#[tokio::test]
async fn shutdown_lets_clients_go_and_closes_the_port() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    kv.range(get()).await.expect("served");
    let idle = TcpStream::connect(door.address).await.expect("a connection that says nothing");
    drop(door.shutdown);
    let ended = within("the gateway ends, though connections are open", door.served).await;
    ended.expect("no panic");
    TcpStream::connect(door.address).await.expect_err("nobody listens");
    drop((kv, idle));
}
