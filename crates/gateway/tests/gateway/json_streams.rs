//! Watches and leases in JSON, beside a real etcd's gateway, and watches whose body goes on.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::json::{post, without};
use crate::peer::Etcd;
use crate::support::{Door, until, within};

const WATCH: &str = "/v3/watch";

/// A call whose answer comes line by line.
struct Call {
    stream: TcpStream,
    /// Of the answer, what has been read of its chunks and not taken.
    text: String,
}

impl Call {
    /// Sends a head and what comes with it, and reads the head of the answer.
    async fn open(address: &str, path: &str, rest: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\n{rest}");
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut call = Self { stream, text: String::new() };
        let head = call.line_of_bytes().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut is_chunked = false;
        loop {
            match call.line_of_bytes().await.to_lowercase().as_str() {
                "" => break,
                "transfer-encoding: chunked" => is_chunked = true,
                _ => {}
            }
        }
        assert!(is_chunked, "it has no end yet");
        call
    }

    /// A call with a body that has come to its end.
    async fn with(address: &str, path: &str, body: &str) -> Self {
        Self::open(address, path, &format!("Content-Length: {}\r\n\r\n{body}", body.len())).await
    }

    /// A call with a body that goes on.
    async fn begin(address: &str, path: &str, body: &str) -> Self {
        let rest = format!("Transfer-Encoding: chunked\r\n\r\n{}", chunk(body));
        Self::open(address, path, &rest).await
    }

    /// Says more.
    async fn say(&mut self, body: &str) {
        self.stream.write_all(chunk(body).as_bytes()).await.expect("it is read");
    }

    /// What comes up to the end of a line, without that.
    async fn line_of_bytes(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let byte = within("the rest of a line", self.stream.read_u8()).await;
            line.push(byte.expect("a line"));
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).expect("text")
    }

    /// The next line of the answer, without who gave it; `None` at its end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let line = without(line.to_owned(), &["cluster_id", "member_id", "raft_term"]);
                self.text = rest.to_owned();
                return Some(line);
            }
            let length = self.line_of_bytes().await;
            let length = usize::from_str_radix(&length, 16).expect("the length of a chunk");
            let mut bytes = vec![0; length + 2];
            let read = within("the rest of a chunk", self.stream.read_exact(&mut bytes)).await;
            read.expect("a chunk");
            bytes.truncate(length);
            self.text.push_str(std::str::from_utf8(&bytes).expect("text"));
            if length == 0 {
                assert_eq!(self.text, "", "the last line is whole");
                return None;
            }
        }
    }

    /// So many lines.
    async fn take(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            lines.push(self.next().await.expect("the stream goes on"));
        }
        lines
    }
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// Puts or deletes a key, in base64.
async fn change(address: &str, method: &str, key: &str) {
    let (status, answer) =
        post(address, &format!("/v3/kv/{method}"), &format!(r#"{{"key":"{key}"}}"#)).await;
    assert_eq!(status, 200, "{answer}");
}

/// What one server tells the watches of a fresh store, in lines. The keys are a, b and c.
async fn watched(address: &str) -> Vec<String> {
    change(address, "put", "YQ==").await;
    change(address, "put", "Yg==").await;
    let (status, answer) = post(address, "/v3/kv/compaction", r#"{"revision":"3"}"#).await;
    assert_eq!(status, 200, "{answer}");
    // From a revision that is compacted.
    let body = r#"{"create_request":{"key":"YQ==","start_revision":2}}"#;
    let mut lines = Call::with(address, WATCH, body).await.take(2).await;
    // Three watches, the first of which is cancelled in the same breath.
    let body = r#"{"create_request":{"key":"YQ=="}}
        {"createRequest":{"key":"Yg==","watchId":"7","prev_kv":true,"unknown":1}}
        {"create_request":{"key":"Yw==","range_end":"AA==","filters":["NOPUT"],"watch_id":9}}
        {"cancel_request":{"watch_id":"0"}}
        {"cancel_request":{"watch_id":"77"}}"#;
    let mut call = Call::with(address, WATCH, body).await;
    lines.extend(call.take(4).await);
    // The body is at its end, and the stream is not.
    for (method, key) in [
        ("put", "YQ=="),
        ("put", "Yg=="),
        ("put", "Yg=="),
        ("put", "Yw=="),
        ("deleterange", "Yg=="),
        ("deleterange", "Yw=="),
    ] {
        change(address, method, key).await;
    }
    lines.extend(call.take(4).await);
    // From a revision on that is history. Of which revision a look into it is, is not compared.
    let body = r#"{"create_request":{"key":"Yg==","start_revision":"7","watch_id":"3"}}"#;
    let past = Call::with(address, "/v3beta/watch", body).await.take(2).await;
    lines.extend(past.into_iter().map(|line| without(line, &["revision"])));
    // All of it in one line, and then a transaction in one.
    let txn = async || {
        let puts = r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"Yg=="}}]}"#;
        let (status, answer) = post(address, "/v3/kv/txn", puts).await;
        assert_eq!(status, 200, "{answer}");
    };
    txn().await;
    let body = r#"{"create_request":{"key":"YQ==","range_end":"ZA==","start_revision":"4"}}"#;
    let mut call = Call::with(address, WATCH, body).await;
    let past = call.take(2).await;
    assert_eq!(past[1].matches(r#""kv":"#).count(), 8, "{}", past[1]);
    lines.extend(past.into_iter().map(|line| without(line, &["revision"])));
    txn().await;
    lines.extend(call.take(1).await);
    // With an id that is taken.
    let body = r#"{"create_request":{"key":"YQ==","watch_id":3}}
        {"create_request":{"key":"Yg==","watch_id":3}}"#;
    lines.extend(Call::with(address, WATCH, body).await.take(2).await);
    lines
}

#[tokio::test]
async fn watches_in_json_are_those_of_etcds_gateway() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let theirs = watched(&etcd.address).await;
    let ours = watched(&door.address.to_string()).await;
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "line {at}");
    }
}

#[tokio::test]
async fn a_watch_in_json_is_asked_and_told_bit_by_bit_until_its_client_hangs_up() {
    let door = Door::open().await;
    let address = door.address.to_string();
    let mut call = Call::begin(&address, WATCH, r#"{"create_request":{"key":"YQ=="}}"#).await;
    let created = call.next().await.expect("a line");
    assert!(created.ends_with(r#""created":true}}"#), "{created}");
    change(&address, "put", "YQ==").await;
    let told = call.next().await.expect("a line");
    assert!(told.contains(r#""events":[{"kv":{"key":"YQ==""#), "{told}");
    call.say(r#"{"cancel_request":{"watch"#).await;
    call.say(r#"_id":"0"}}{"create_request":{"key":"Yg=="}}"#).await;
    let canceled = call.next().await.expect("a line");
    assert!(canceled.ends_with(r#""canceled":true}}"#), "{canceled}");
    let created = call.next().await.expect("a line");
    assert!(created.ends_with(r#""watch_id":"1","created":true}}"#), "{created}");
    // Of the one that was cancelled nothing more is told.
    change(&address, "put", "YQ==").await;
    change(&address, "put", "Yg==").await;
    let told = call.next().await.expect("a line");
    assert!(told.contains(r#""watch_id":"1""#) && told.contains(r#""key":"Yg==""#), "{told}");
    // What cannot be read ends the stream, with the reason.
    call.say(r#"{"create_request":5}"#).await;
    let refused = call.next().await.expect("a line");
    assert!(refused.starts_with(r#"{"error":{"grpc_code":3,"http_code":400,"#), "{refused}");
    assert_eq!(call.next().await, None);

    let watches = async || {
        let page = door.page("/metrics").await.1;
        let row = |line: &str| {
            line.strip_prefix("etcd_debugging_mvcc_watcher_total ")?.parse::<u64>().ok()
        };
        page.lines().find_map(row).expect("a gauge")
    };
    let mut call = Call::begin(&address, WATCH, r#"{"create_request":{"key":"YQ=="}}"#).await;
    call.next().await.expect("a line");
    assert_eq!(watches().await, 1);
    drop(call);
    until("nothing is watched any more", async || watches().await == 0).await;
}

/// Calls about leases, in a fresh store; those of streams are read to their end.
const LEASES: &[(&str, &str)] = &[
    ("/v3/lease/grant", r#"{"TTL":"60","ID":"7"}"#),
    ("/v3/lease/grant", r#"{"TTL":600,"ID":8}"#),
    ("/v3/lease/grant", r#"{"TTL":"60","ID":"7"}"#),
    ("/v3/lease/grant", r#"{"TTL":"9000000001","ID":"9"}"#),
    ("/v3/kv/put", r#"{"key":"YQ==","lease":"7"}"#),
    ("/v3/kv/put", r#"{"key":"Yg==","lease":7}"#),
    ("/v3/kv/put", r#"{"key":"Yw==","lease":"99"}"#),
    ("/v3/kv/range", r#"{"key":"YQ=="}"#),
    ("/v3/lease/timetolive", r#"{"ID":"7","keys":true}"#),
    ("/v3/lease/timetolive", r#"{"ID":7}"#),
    ("/v3/kv/lease/timetolive", r#"{"ID":"8","keys":true}"#),
    ("/v3/lease/timetolive", r#"{"ID":"99"}"#),
    ("/v3beta/kv/lease/timetolive", r#"{"ID":"99","keys":true}"#),
    ("/v3/lease/leases", "{}"),
    ("/v3/kv/lease/leases", ""),
    ("/v3/lease/revoke", r#"{"ID":"7"}"#),
    ("/v3/kv/range", r#"{"key":"YQ=="}"#),
    ("/v3/kv/lease/revoke", r#"{"ID":7}"#),
    ("/v3/lease/timetolive", r#"{"ID":"7","keys":true}"#),
    ("/v3/kv/lease/revoke", r#"{"ID":8}"#),
    ("/v3/lease/revoke", "{}"),
    ("/v3/kv/lease/leases", "{}"),
    // Not of etcd's paths.
    ("/v3/kv/lease/grant", r#"{"TTL":"60","ID":"7"}"#),
    ("/v3/kv/lease/keepalive", r#"{"ID":"7"}"#),
];

/// What one server says about leases.
async fn leased(address: &str) -> Vec<String> {
    let mut said = Vec::new();
    for (path, body) in LEASES {
        let (status, answer) = post(address, path, body).await;
        let mut answer = without(answer, &["cluster_id", "member_id", "raft_term"]);
        if path.ends_with("timetolive") && !answer.contains(r#""TTL":"-1""#) {
            // How long this took is not compared.
            answer = without(answer, &["TTL"]);
        }
        // The order of a lease's keys is etcd's hash map's.
        answer = answer.replace(r#"["Yg==","YQ=="]"#, r#"["YQ==","Yg=="]"#);
        said.push(format!("{path} {body}: {status} {answer}"));
        if path.ends_with("leases") {
            let body = r#"{"ID":"7"}{"ID":8}{"ID":"99"}"#;
            let mut call = Call::with(address, "/v3/lease/keepalive", body).await;
            said.extend(call.take(3).await);
            assert_eq!(call.next().await, None, "it ends with its body");
        }
    }
    said
}

#[tokio::test]
async fn leases_in_json_are_those_of_etcds_gateway() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let theirs = leased(&etcd.address).await;
    let ours = leased(&door.address.to_string()).await;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
}
