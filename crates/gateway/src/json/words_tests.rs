//! Words of JSON, against etcd's own and against nonsense.

use proptest::prelude::*;
use prost_reflect::DescriptorPool;
use quorate_api::etcdserverpb::{
    PutRequest, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, range_request::SortOrder,
};
use quorate_api::mvccpb::KeyValue;

use super::*;

fn descriptor(name: &str) -> MessageDescriptor {
    let pool = DescriptorPool::decode(quorate_api::FILE_DESCRIPTORS).unwrap();
    pool.get_message_by_name(&format!("etcdserverpb.{name}")).unwrap()
}

fn read<T: Message + Default>(name: &str, text: &str) -> Result<T, Status> {
    message(descriptor(name), text.as_bytes()).map(|bytes| T::decode(bytes).unwrap())
}

#[test]
fn requests_may_say_a_thing_in_every_way_of_etcds() {
    let expected = RangeRequest {
        key: "foo".into(),
        range_end: vec![0xff, 0xef].into(),
        limit: 5,
        sort_order: SortOrder::Descend as i32,
        ..RangeRequest::default()
    };
    for text in [
        r#"{"key":"Zm9v","range_end":"/+8=","limit":"5","sort_order":"DESCEND"}"#,
        r#"{"key":"Zm9v","rangeEnd":"/+8=","limit":5,"sortOrder":2}"#,
        r#" {"unknown":[{}],"key":"Zm9v","rangeEnd":"/+8=","limit":5,"sortOrder":2,"revision":null} more"#,
    ] {
        assert_eq!(read::<RangeRequest>("RangeRequest", text).unwrap(), expected, "{text}");
    }
    for text in ["", "null", "{}", " null "] {
        assert_eq!(read::<RangeRequest>("RangeRequest", text).unwrap(), RangeRequest::default());
    }
    let text = r#"{"success":[{"x":0,"request_put":{"y":[],"key":"aw=="}}],"z":{}}"#;
    let txn = read::<TxnRequest>("TxnRequest", text).unwrap();
    assert_eq!(txn.success.len(), 1);
    assert!(txn.success[0].request.is_some());
    let put = PutRequest { key: "k".into(), lease: i64::MIN, ..PutRequest::default() };
    let text = r#"{"key":"aw==","lease":"-9223372036854775808"}"#;
    assert_eq!(read::<PutRequest>("PutRequest", text).unwrap(), put);
}

#[test]
fn requests_that_say_nothing_sensible_are_refused_with_a_reason() {
    for text in [
        r#"{"key":5}"#,
        r#"{"key":"!"}"#,
        r#"{"limit":"x"}"#,
        r#"{"limit":1.5}"#,
        r#"{"limit":"9223372036854775808"}"#,
        r#"{"sort_order":"NOPE"}"#,
        r#"{"unknown":1,"sort_order":"NOPE"}"#,
        r#"{"keys_only":"true"}"#,
        r#"{"key":"Zm9"#,
        r#"{"key" "Zm9v"}"#,
        "[]",
        "7",
        "nonsense",
        "{\"key\":\"\u{0}\"}",
    ] {
        let refused = read::<RangeRequest>("RangeRequest", text).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{text}");
        assert!(refused.message().starts_with("json: "), "{text}: {refused}");
    }
    let deep = format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(60), "}]}".repeat(60));
    read::<TxnRequest>("TxnRequest", &deep).unwrap_err();
    let deep = r#"{"success":[{"requestTxn":"#.repeat(100_000);
    read::<TxnRequest>("TxnRequest", &deep).unwrap_err();
    let deep = format!(r#"{{"unknown":{}"#, "[".repeat(1_000_000));
    read::<TxnRequest>("TxnRequest", &deep).unwrap_err();
}

#[test]
fn answers_are_written_as_etcd_writes_them() {
    let header = ResponseHeader { cluster_id: u64::MAX, revision: 4, ..ResponseHeader::default() };
    let pair = KeyValue { key: "foo".into(), version: 3, lease: -1, ..KeyValue::default() };
    let answer = RangeResponse {
        header: Some(header),
        kvs: vec![pair, KeyValue::default()],
        more: true,
        count: 2,
    };
    let mut out = b">".to_vec();
    write(descriptor("RangeResponse"), answer.encode_to_vec().into(), &mut out).unwrap();
    let expected = concat!(
        r#">{"header":{"cluster_id":"18446744073709551615","revision":"4"},"#,
        r#""kvs":[{"key":"Zm9v","version":"3","lease":"-1"},{}],"more":true,"count":"2"}"#
    );
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    assert_eq!(
        write(descriptor("RangeResponse"), Bytes::from_static(b"\xff"), &mut Vec::new())
            .unwrap_err()
            .code(),
        Code::Internal
    );
}

#[test]
fn refusals_have_the_code_of_grpc_and_the_status_of_http() {
    let (status, body) = refusal(&Status::out_of_range("etcdserver: <\"a\" & \u{2028}>"));
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let text = r#""etcdserver: \u003c\"a\" \u0026 \u2028\u003e""#;
    let expected = format!(r#"{{"error":{text},"code":11,"message":{text}}}"#);
    assert_eq!(String::from_utf8(body).unwrap(), expected);
    let line = stream_refusal(&Status::unavailable("no"));
    let expected = r#"{"error":{"grpc_code":14,"http_code":503,"message":"no","http_status":"Service Unavailable"}}"#;
    assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
}

proptest! {
    #[test]
    fn no_text_makes_a_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = message(descriptor("TxnRequest"), &text);
    }

    #[test]
    fn no_text_that_looks_like_json_makes_a_panic(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("null"),
                Just("\"compare\""), Just("\"success\""), Just("\"request_put\""), Just("\"key\""),
                Just("\"Zm9v\""), Just("\"request_txn\""), Just("1e999"), Just("-1"), Just("\"lease\""),
                Just("\"target\""), Just("\"VALUE\""), Just("99"), Just("true"), Just("\"\\ud800\""),
            ],
            0..30,
        ),
    ) {
        if let Ok(bytes) = message(descriptor("TxnRequest"), parts.concat().as_bytes()) {
            TxnRequest::decode(bytes).unwrap();
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        key in proptest::collection::vec(any::<u8>(), 0..9),
        (version, lease) in any::<(i64, i64)>(),
    ) {
        let pair = KeyValue { key: key.into(), version, lease, ..KeyValue::default() };
        let pool = DescriptorPool::decode(quorate_api::FILE_DESCRIPTORS).unwrap();
        let descriptor = pool.get_message_by_name("mvccpb.KeyValue").unwrap();
        let mut text = Vec::new();
        write(descriptor.clone(), pair.encode_to_vec().into(), &mut text).unwrap();
        prop_assert_eq!(KeyValue::decode(message(descriptor, &text).unwrap()).unwrap(), pair);
    }
}
