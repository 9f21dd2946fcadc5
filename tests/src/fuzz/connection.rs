//! Bytes at a connection, below any call: heads of HTTP/1, frames of HTTP/2, a greeting of TLS.

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::call::{Answer, PATIENCE};
use super::json::{connect, is_gone};
use super::mutate::{damage_some, noise};

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Heads of requests that are right, or nearly.
const HEADS: [&str; 10] = [
    "GET /health?serializable=true&exclude=NOSPACE HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /version HTTP/1.0\r\n\r\n",
    "GET /%2e%2e/metrics?a=%zz&&=& HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\n\r\n",
    "POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n{}",
    "POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n{",
    "POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "GET /v3/watch HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "POST /etcdserverpb.KV/Range HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\r\n",
];

/// The head of a gRPC call as literal fields of HPACK (RFC 7541, section 6.2.2), none of them compressed.
const FIELDS: [(&str, &str); 6] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/etcdserverpb.KV/Range"),
    (":authority", "a"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];

/// Opens a connection, says something, and waits for the first bytes of an answer.
///
/// # Errors
/// When nobody listens.
pub(super) async fn disturb(address: &str, random: &mut Rng) -> Result<Answer, String> {
    let bytes = bytes(random);
    let says_end = random.u32(0..10) > 0;
    let answer = async {
        let mut stream = connect(address).await?;
        stream.write_all(&bytes).await?;
        if says_end {
            stream.shutdown().await?;
        }
        stream.read(&mut [0; 64]).await
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(1..)) => Ok(Answer::Served),
        Ok(Ok(0)) => Ok(Answer::Refused(tonic::Status::unavailable("it closed"))),
        Ok(Err(error)) if is_gone(&error) => Err(format!("a connection: {error}")),
        Ok(Err(error)) => Ok(Answer::Refused(tonic::Status::unavailable(error.to_string()))),
        Err(_) => Ok(Answer::Open),
    }
}

fn bytes(random: &mut Rng) -> Vec<u8> {
    let mut bytes = match random.u32(0..10) {
        0 => noise(random, 4096),
        1 => {
            // A greeting of TLS at a port without it.
            let mut hello = vec![0x16, 0x03, 0x01, random.u8(..), random.u8(..), 0x01];
            hello.extend(noise(random, 512));
            hello
        }
        2 => {
            let name = "a".repeat(random.usize(1..100));
            let line = format!("{name}: {}\r\n", "b".repeat(random.usize(0..3_000)));
            let lines = line.repeat(random.usize(1..200));
            format!("GET /health HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
        }
        3..=5 => random.choice(HEADS).unwrap_or_default().as_bytes().to_vec(),
        _ => frames(random),
    };
    damage_some(random, &mut bytes);
    bytes
}

/// A preface, and frames of every type with plausible and absurd contents.
fn frames(random: &mut Rng) -> Vec<u8> {
    let mut bytes = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for _ in 0..random.usize(1..12) {
        let stream = random.choice([0, 1, 1, 1, 3, 5, u32::MAX]).unwrap_or_default();
        let flags = random.choice([0, 1, 4, 5, 8, 0x20, 0x24, 0xff]).unwrap_or_default();
        let frame = match random.u32(0..8) {
            0 | 1 => frame(1, flags, stream, &head(random)),
            2 => frame(0, flags, stream, &[0, 0, 0, 0, 2, 10, 0]),
            3 => frame(4, flags, 0, &settings(random)),
            4 => frame(6, flags, 0, &[7; 8]),
            5 => frame(8, 0, stream, &random.u32(..).to_be_bytes()),
            6 => frame(3, 0, stream, &random.u32(..).to_be_bytes()),
            _ => frame(random.u8(0..14), flags, stream, &noise(random, 300)),
        };
        bytes.extend(frame);
    }
    bytes
}

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn head(random: &mut Rng) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in FIELDS {
        if random.u32(0..12) == 0 {
            continue;
        }
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    damage_some(random, &mut block);
    block
}

fn settings(random: &mut Rng) -> Vec<u8> {
    let one = |random: &mut Rng| {
        let value = random.choice([0, 1, u32::MAX, 1 << 31, 16_384]).unwrap_or_default();
        [&[0, random.u8(0..9)][..], &value.to_be_bytes()].concat()
    };
    (0..random.usize(0..8)).flat_map(|_| one(random)).collect()
}
