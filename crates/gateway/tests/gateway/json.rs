//! The JSON gateway: the same requests to a real etcd's and to ours, and what ours refuses by itself.

use quorate_api::etcdserverpb::{PutRequest, RangeRequest};
use quorate_gateway::{BackendError, GatewayConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peer::Etcd;
use crate::support::{Door, exchange, within};

/// Posts `body` as curl would: the status and the body.
pub(crate) async fn post(address: &str, path: &str, body: &str) -> (u16, String) {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    exchange(address, request.as_bytes()).await
}

/// An answer without what must differ: who answered, its sizes, indexes and addresses.
fn anonymous(answer: String) -> String {
    const DIFFERENT: [&str; 12] = [
        "cluster_id",
        "member_id",
        "raft_term",
        "dbSize",
        "leader",
        "raftIndex",
        "raftTerm",
        "raftAppliedIndex",
        "dbSizeInUse",
        "name",
        "ID",
        "hash",
    ];
    let mut answer = without(answer, &DIFFERENT);
    for name in ["peerURLs", "clientURLs"] {
        let field = format!(r#""{name}":["#);
        if let Some(at) = answer.find(&field).map(|at| at + field.len()) {
            let end = answer[at..].find(']').map_or(answer.len(), |length| at + length);
            answer.replace_range(at..end, "URLS");
        }
    }
    answer
}

/// An answer without the first values of fields whose values are quoted.
pub(crate) fn without(mut answer: String, names: &[&str]) -> String {
    for name in names {
        let field = format!(r#""{name}":""#);
        if let Some(at) = answer.find(&field).map(|at| at + field.len()) {
            let end = answer[at..].find('"').map_or(answer.len(), |length| at + length);
            answer.replace_range(at..end, "N");
        }
    }
    answer
}

/// A session; the store is fresh, and each request finds what those before it did.
const SESSION: &[(&str, &str)] = &[
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFyMg==","prev_kv":true}"#),
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFyMw==","prevKv":true,"unknown":[{"a":"]"}]}"#),
    ("/v3/kv/put", r#"{"key":"YQ==","value":"","ignore_value":false,"lease":0}"#),
    ("/v3/kv/put", r#"{"key":"/+8=","value":"PD4m"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v"}"#),
    ("/v3beta/kv/range", r#"{"key":"Zm9v"}"#),
    ("/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#),
    ("/v3/kv/range", r#"{"key":"AA==","rangeEnd":"AA==","limit":"1","keysOnly":true}"#),
    ("/v3/kv/range", r#"{"key":"AA==","rangeEnd":"AA==","limit":2,"sort_order":"DESCEND"}"#),
    ("/v3/kv/range", r#"{"key":"AA==","rangeEnd":"AA==","sortOrder":2,"sort_target":"VALUE"}"#),
    ("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":"2","serializable":true}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":999}"#),
    ("/v3/kv/range", r#"{"key":"bm90aGluZw=="}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","limit":null,"revision":"0"} and more"#),
    ("/v3/kv/range", ""),
    ("/v3/kv/range", "null"),
    ("/v3/kv/range", "{}"),
    ("/v3/kv/put", r#"{"value":"YQ=="}"#),
    ("/v3/kv/put", r#"{"key":"bWlzc2luZw==","ignore_value":true}"#),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"result":"EQUAL","target":"VALUE","key":"Zm9v","value":"YmFyMw=="}],
            "success":[{"request_put":{"key":"dA==","value":"MQ==","prev_kv":true}},
                       {"requestRange":{"key":"Zm9v"}},
                       {"request_delete_range":{"key":"YQ==","prev_kv":true}}],
            "failure":[{"request_range":{"key":"bm8="}}]}"#,
    ),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"target":"CREATE","createRevision":"0","key":"Zm9v"}],
            "failure":[{"requestTxn":{"success":[{"request_put":{"key":"dQ==","value":"MQ=="}}]}}]}"#,
    ),
    ("/v3/kv/txn", r#"{"compare":[{"target":"MOD","result":3,"mod_revision":"1","key":"Zm9v"}]}"#),
    ("/v3/kv/txn", "{}"),
    (
        "/v3/kv/txn",
        r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#,
    ),
    ("/v3/kv/deleterange", r#"{"key":"dA==","prev_kv":true}"#),
    ("/v3/kv/deleterange", r#"{"key":"dA=="}"#),
    ("/v3/kv/compaction", r#"{"revision":"3"}"#),
    ("/v3/kv/compaction", r#"{"revision":3,"physical":true}"#),
    ("/v3/kv/compaction", r#"{"revision":"999"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":2}"#),
    ("/v3/cluster/member/list", "{}"),
    ("/v3/cluster/member/list", ""),
    ("/v3/cluster/member/remove", r#"{"ID":"5"}"#),
    // No promotion of a member that is not there: etcd 3.5.1 leaves some of these without an answer.
    ("/v3/cluster/member/add", r#"{"peerURLs":["bad url"]}"#),
    ("/v3/maintenance/status", "{}"),
    ("/v3/maintenance/alarm", r#"{"action":"GET"}"#),
    ("/v3/maintenance/alarm", r#"{"action":0,"memberID":"0","alarm":"NONE"}"#),
    ("/v3/nope", "{}"),
    ("/v3/kv/range/", r#"{"key":"Zm9v"}"#),
    ("/v3alpha/kv/range", r#"{"key":"Zm9v"}"#),
];

/// Requests that make no sense: the status and the code are etcd's, the words are not.
const NONSENSE: &[&str] = &[
    r#"{"key":5}"#,
    r#"{"key":"!!"}"#,
    r#"{"key":"Zm9"#,
    r#"{"key":"Zm9v","limit":"x"}"#,
    r#"{"key":"Zm9v","limit":1.5}"#,
    r#"{"key":"Zm9v","limit":"9223372036854775808"}"#,
    r#"{"key":"Zm9v","sort_order":"NOPE"}"#,
    r#"{"key":"Zm9v","keys_only":"true"}"#,
    "[]",
    "7",
    "nonsense",
];

#[tokio::test]
async fn the_same_requests_get_the_same_answers_as_from_etcds_gateway() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let ours = door.address.to_string();
    for (path, body) in SESSION {
        let (status, answer) = post(&etcd.address, path, body).await;
        let (our_status, our_answer) = post(&ours, path, body).await;
        let expected = (status, anonymous(answer));
        assert_eq!((our_status, anonymous(our_answer)), expected, "{path} {body}");
    }
    for body in NONSENSE {
        let (status, answer) = post(&etcd.address, "/v3/kv/range", body).await;
        let (our_status, our_answer) = post(&ours, "/v3/kv/range", body).await;
        let code = |answer: &str| {
            let answer: serde_json::Value = serde_json::from_str(answer).expect("JSON");
            assert_eq!(answer["error"], answer["message"], "{body}");
            answer["code"].as_i64().expect("a code")
        };
        assert_eq!((our_status, code(&our_answer)), (status, code(&answer)), "{body}");
    }
    for request in [
        "GET /v3/kv/range HTTP/1.0\r\n\r\n",
        "PUT /v3/kv/range HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        "GET /health?serializable=true HTTP/1.0\r\n\r\n",
        "GET /health?exclude=NOSPACE HTTP/1.0\r\n\r\n",
        "GET /livez HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ] {
        let expected = exchange(&etcd.address, request.as_bytes()).await;
        assert_eq!(exchange(&ours, request.as_bytes()).await, expected, "{request}");
    }
}

#[tokio::test]
async fn json_and_grpc_are_one_keyspace_and_counted_together() {
    let door = Door::open().await;
    let address = door.address.to_string();
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    door.kv().await.put(put).await.expect("a put");
    let (status, answer) = post(&address, "/v3/kv/range", r#"{"key":"aw=="}"#).await;
    assert_eq!(status, 200);
    assert!(answer.contains(r#""value":"dg==""#), "{answer}");
    post(&address, "/v3/kv/put", r#"{"key":"aw==","value":"dw=="}"#).await;
    let range = RangeRequest { key: "k".into(), ..RangeRequest::default() };
    let read = door.kv().await.range(range).await.expect("a read").into_inner();
    assert_eq!(read.kvs[0].value, "w");
    let metrics = door.page("/metrics").await.1;
    let counted = r#"grpc_server_handled_total{grpc_type="unary",grpc_service="etcdserverpb.KV",grpc_method="Put",grpc_code="OK"} 2"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert!(metrics.contains("quorate_gateway_json_refused_total 0"), "{metrics}");
}

#[tokio::test]
async fn the_answer_of_a_lock_names_its_token() {
    let door = Door::open().await;
    let address = door.address.to_string();
    post(&address, "/v3/kv/put", r#"{"key":"aw==","value":"dg=="}"#).await;
    let (status, answer) = post(&address, "/v3/lock/lock", r#"{"name":"bg=="}"#).await;
    assert_eq!(status, 200, "{answer}");
    let locked: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let range = format!(r#"{{"key":{}}}"#, locked["key"]);
    let answer = post(&address, "/v3/kv/range", &range).await.1;
    let found: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(locked["fencing_token"], "3");
    assert_eq!(locked["fencing_token"], found["kvs"][0]["create_revision"]);
}

#[tokio::test]
async fn failures_of_the_backend_reach_a_client_with_their_status() {
    let door = Door::open().await;
    let address = door.address.to_string();
    door.backend.fail_with(Some(BackendError::TimedOut));
    let (status, answer) = post(&address, "/v3/kv/range", r#"{"key":"aw=="}"#).await;
    assert_eq!(status, 503, "{answer}");
    assert!(answer.contains(r#""code":14,"#), "{answer}");
    door.backend.fail_with(None);
    door.backend.lose_leader();
    let request = "POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nGrpc-Metadata-hasleader: true\r\n\
                   Connection: close\r\nContent-Length: 14\r\n\r\n{\"key\":\"aw==\"}";
    let (status, answer) = exchange(&address, request.as_bytes()).await;
    assert_eq!(status, 503);
    assert!(answer.contains("etcdserver: no leader"), "{answer}");
}

#[tokio::test]
async fn a_body_is_bounded_and_others_are_served_meanwhile() {
    let config = GatewayConfig { json_bytes_max: 2_000_000, ..GatewayConfig::default() };
    let door = Door::open_with(GatewayConfig { max_request_bytes: 100_000, ..config }).await;
    let address = door.address.to_string();
    // Larger than a translation on the spot, and below every limit.
    let value = "QUFB".repeat(30_000);
    let put = |value: &str| format!(r#"{{"key":"aw==","value":"{value}"}}"#);
    assert_eq!(post(&address, "/v3/kv/put", &put(&value)).await.0, 200);
    let (status, answer) = post(&address, "/v3/kv/range", r#"{"key":"aw=="}"#).await;
    assert_eq!(status, 200);
    assert!(answer.contains(&value), "the answer is as large");
    // Above etcd's limit of a request; above that of a message.
    let (status, answer) = post(&address, "/v3/kv/put", &put(&"QUFB".repeat(60_000))).await;
    assert_eq!(status, 400);
    assert!(answer.contains("etcdserver: request is too large"), "{answer}");
    let (status, answer) = post(&address, "/v3/kv/put", &put(&"QUFB".repeat(209_000))).await;
    assert_eq!(status, 429);
    assert!(answer.contains("grpc: received message larger than max"), "{answer}");
    // A body without an end holds what it has sent, and no more than all may hold together.
    let mut endless = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        let head = "POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 700000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("a head");
        stream.write_all(&[b' '; 600_000]).await.expect("most of a body");
        endless.push(stream);
    }
    // One of them was one too many, whichever the gateway read last.
    let answers = endless.iter_mut().map(|stream| {
        Box::pin(async move {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.map(|_| answer)
        })
    });
    let first = futures::future::select_all(answers);
    let (refusal, _, _) = within("one is refused", first).await;
    assert_eq!(&refusal.expect("an answer"), b"HTTP/1.1 429");
    assert_eq!(post(&address, "/v3/kv/range", r#"{"key":"bm8="}"#).await.0, 200);
    for mut stream in endless {
        // When the gateway hangs up, it has let go of what it held; the refused one may be gone already.
        let _ = stream.shutdown().await;
        let _ = within("the gateway hangs up", stream.read_to_end(&mut Vec::new())).await;
    }
    assert_eq!(post(&address, "/v3/kv/put", &put(&value)).await.0, 200);
}

#[tokio::test]
async fn a_page_of_a_browser_is_refused_and_changes_nothing() {
    let door = Door::open().await;
    // What a browser sends for a form on a strange page, without asking anybody first; and where the page's name
    // has come to mean this node.
    for (host, origin) in
        [("localhost", "http://strange.example"), ("a.example", "http://a.example"), ("a", "null")]
    {
        let body = r#"{"key":"a2V5","value":"dg=="}"#;
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        let request = format!(
            "POST /v3/kv/put HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nConnection: close\r\n\
             Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = String::new();
        let read = within("the end of an answer", stream.read_to_string(&mut answer)).await;
        read.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
    }
    assert!(door.backend.take_proposals().is_empty());
}

#[tokio::test]
async fn a_body_that_stops_is_given_up() {
    let first_bytes_timeout = std::time::Duration::from_millis(50);
    let door =
        Door::open_with(GatewayConfig { first_bytes_timeout, ..GatewayConfig::default() }).await;
    for path in ["/v3/kv/put", "/v3/kv/range"] {
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{{");
        stream.write_all(request.as_bytes()).await.expect("a part of a request");
        let mut answer = Vec::new();
        // Ends because the gateway answers, and hangs up on a body that it no longer waits for.
        let read = within("the end of an answer", stream.read_to_end(&mut answer)).await;
        read.expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        assert!(answer.contains("took too long"), "{answer}");
    }
}
