//! HTTP/2 frame by frame: how many streams a connection may have, and one that opens and resets them all the time.

use quorate_api::etcdserverpb::RangeRequest;
use quorate_gateway::GatewayConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Door, within};

// Kinds of frames, flags and codes (RFC 9113, sections 6 and 7).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// A frame that came.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// The number at an offset of the payload.
    fn number(&self, at: usize) -> u32 {
        let bytes = self.payload[at..at + 4].try_into().expect("four bytes");
        u32::from_be_bytes(bytes)
    }
}

/// A client that keeps to no rule.
struct Client(TcpStream);

impl Client {
    async fn open(door: &Door) -> Self {
        let stream = TcpStream::connect(door.address).await.expect("a connection");
        let mut client = Self(stream);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        client.send(&[preface, frame(SETTINGS, 0, 0, &[])]).await;
        client
    }

    async fn send(&mut self, frames: &[Vec<u8>]) {
        let frames = frames.concat();
        within("frames are taken", self.0.write_all(&frames)).await.expect("it is read");
    }

    /// The next frame; `None` when the other side has hung up.
    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// The next frame that is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Frame) -> bool) -> Frame {
        let comes = async {
            loop {
                let frame = self.next().await.expect("the connection is open");
                if is_so(&frame) {
                    return frame;
                }
            }
        };
        within(what, comes).await
    }

    /// Reads until the other side hangs up.
    async fn closed(&mut self) {
        let reads = async { while self.next().await.is_some() {} };
        within("the connection is closed", reads).await;
    }

    /// Waits until all that was sent has been taken in. Not by pings, of which there may be few.
    async fn settle(&mut self) {
        self.send(&[frame(SETTINGS, 0, 0, &[])]).await;
        let is_ack = |frame: &Frame| (frame.kind, frame.flags) == (SETTINGS, ACK);
        self.until("settings are acknowledged", is_ack).await;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a call. Its fields are spelled out or in HPACK's static table (RFC 7541).
fn head(stream: u32, path: &str) -> Vec<u8> {
    const METHOD_POST: u8 = 0x83;
    const SCHEME_HTTP: u8 = 0x86;
    // Names of the table, and the numbers by which they are known.
    let fields = [
        (&[0x04][..], path),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
        (&[0x00, 0x02, b't', b'e'], "trailers"),
    ];
    let mut block = vec![METHOD_POST, SCHEME_HTTP];
    for (name, value) in fields {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).expect("a short value"));
        block.extend_from_slice(value.as_bytes());
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// All of a range call for the key `k`.
fn range(stream: u32) -> Vec<u8> {
    let message = [0, 0, 0, 0, 3, 0x0a, 1, b'k'];
    [head(stream, RANGE), frame(DATA, END_STREAM, stream, &message)].concat()
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// The ids of a client's streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 2 * number + 1)
}

fn get() -> RangeRequest {
    RangeRequest { key: "k".into(), ..RangeRequest::default() }
}

#[tokio::test]
async fn a_connection_has_as_many_streams_as_are_set_and_one_more_is_refused() {
    const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];
    let config = GatewayConfig { max_concurrent_streams: 5, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let mut client = Client::open(&door).await;
    let are_settings = |frame: &Frame| (frame.kind, frame.flags) == (SETTINGS, 0);
    let settings = client.until("settings", are_settings).await;
    let mut settings = settings.payload.chunks(6);
    let told = settings.find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS).expect("it is set");
    assert_eq!(told[2..], [0, 0, 0, 5]);
    client.send(&[frame(SETTINGS, ACK, 0, &[])]).await;
    let watches: Vec<_> = streams(5).map(|stream| head(stream, WATCH)).collect();
    client.send(&watches).await;
    client.send(&[range(11)]).await;
    let refused = client.until("a stream is refused", |frame| frame.kind == RST_STREAM).await;
    assert_eq!((refused.stream, refused.number(0)), (11, REFUSED_STREAM));
    // When one has gone, there is room again.
    client.send(&[reset(1), range(13)]).await;
    let is_answer = |frame: &Frame| frame.kind == HEADERS && frame.stream == 13;
    client.until("an answer on stream 13", is_answer).await;
}

#[tokio::test]
async fn a_connection_that_opens_and_resets_streams_in_bursts_is_closed() {
    let door = Door::open().await;
    let mut honest = door.kv().await;
    honest.range(get()).await.expect("served");
    let mut client = Client::open(&door).await;
    client.send(&[frame(SETTINGS, ACK, 0, &[])]).await;
    client.settle().await;
    let bursts = streams(200).map(|stream| [range(stream), reset(stream)].concat());
    client.send(&bursts.collect::<Vec<_>>()).await;
    let goaway = client.until("a farewell", |frame| frame.kind == GOAWAY).await;
    assert_eq!(goaway.number(4), ENHANCE_YOUR_CALM);
    client.closed().await;
    honest.range(get()).await.expect("others are served");
}

/// How many calls of Range have begun, and how many of them were given up by their clients.
async fn ranges(door: &Door) -> (usize, usize) {
    let (_, page) = door.page("/metrics").await;
    let count = |name: &str, code: &str| {
        let is_it = |line: &&str| {
            line.starts_with(name)
                && line.contains(r#"grpc_service="etcdserverpb.KV",grpc_method="Range""#)
                && line.contains(code)
        };
        let line = page.lines().find(is_it).expect("it is counted");
        line.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a count")
    };
    (
        count("grpc_server_started_total", ""),
        count("grpc_server_handled_total", r#"grpc_code="Canceled""#),
    )
}

#[tokio::test]
async fn what_a_client_resets_is_given_up() {
    let door = Door::open().await;
    door.backend.hold_reads();
    let mut client = Client::open(&door).await;
    client.send(&[frame(SETTINGS, ACK, 0, &[])]).await;
    for stream in streams(100) {
        client.send(&[range(stream)]).await;
        client.settle().await;
    }
    assert_eq!(ranges(&door).await, (100, 0), "they wait for what they read");
    client.send(&streams(100).map(reset).collect::<Vec<_>>()).await;
    let given_up = async {
        // What the connection has answered since, it has read behind the resets.
        while ranges(&door).await != (100, 100) {
            client.settle().await;
        }
    };
    within("all are given up", given_up).await;
    client.settle().await;
}
