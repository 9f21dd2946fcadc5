//! Clients that ping too often: as frames on a socket, beside a real etcd where there is one.

use quorate_api::etcdserverpb::RangeRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peer::Etcd;
use crate::support::{Door, exchange, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// Frame types.
const PONG: u8 = 6;
const GOAWAY: u8 = 7;

/// A client that speaks frames.
struct Client {
    stream: TcpStream,
}

impl Client {
    async fn connect(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(PREFACE).await.expect("written");
        stream.write_all(SETTINGS).await.expect("written");
        stream.write_all(SETTINGS_ACK).await.expect("written");
        Self { stream }
    }

    /// The next frame: type, flags and payload; `None` at the end of the connection.
    async fn frame(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        within("a frame", self.stream.read_exact(&mut head)).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        within("the rest of a frame", self.stream.read_exact(&mut payload)).await.ok()?;
        Some((head[3], head[4], payload))
    }

    /// Pings, up to `most` times, waiting for each answer: how many were answered, and the code and words
    /// of the farewell, if there was one.
    async fn ping(&mut self, most: usize) -> (usize, Option<(u32, String)>) {
        for answered in 0..most {
            if self.stream.write_all(PING).await.is_err() {
                return (answered, None);
            }
            loop {
                match self.frame().await {
                    Some((PONG, 1, _)) => break,
                    Some((GOAWAY, _, payload)) => {
                        let code = payload[4..8].try_into().map(u32::from_be_bytes);
                        let words = String::from_utf8_lossy(&payload[8..]).into_owned();
                        return (answered, Some((code.expect("four bytes"), words)));
                    }
                    Some(_) => {}
                    None => return (answered, None),
                }
            }
        }
        (most, None)
    }
}

/// The fourth of pings that come one right after the other is one too many.
const FORGIVEN: usize = 3;

/// What it is told.
const TOO_MANY: Option<(u32, &str)> = Some((11, "too_many_pings"));

#[tokio::test]
async fn a_client_that_pings_too_often_is_told_to_calm_down_and_no_other_notices() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    let mut client = Client::connect(&door.address.to_string()).await;
    let (answered, farewell) = client.ping(100).await;
    let farewell = farewell.as_ref().map(|(code, words)| (*code, words.as_str()));
    assert_eq!((answered, farewell), (FORGIVEN, TOO_MANY));
    assert!(client.frame().await.is_none(), "the connection ends");
    let get = RangeRequest { key: "k".into(), ..RangeRequest::default() };
    kv.range(get).await.expect("others are served on");
    let metrics = door.metrics_address.to_string();
    let (_, page) = exchange(&metrics, b"GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(page.contains("quorate_gateway_connections_pinging_total 1"), "{page}");
}

#[tokio::test]
async fn etcd_counts_in_the_same_way() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = Client::connect(&etcd.address).await;
    let (answered, farewell) = client.ping(100).await;
    let farewell = farewell.as_ref().map(|(code, words)| (*code, words.as_str()));
    // It answers even that one before it says so.
    assert_eq!((answered, farewell), (FORGIVEN + 1, TOO_MANY));
}
