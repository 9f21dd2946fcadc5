//! A range in parts: together they are the range, and what may end them ends them.

use futures::future::join_all;
use prost::Message;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::{
    self as pb, CompactionRequest, PutRequest, RangeRequest, RangeResponse, RangeStreamResponse,
};
use quorate_gateway::GatewayConfig;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::auth::{Client, range, with_users};
use crate::support::{Door, heard};

/// A page of so many bytes, or one pair.
const PAGE_BYTES: usize = 4 << 10;

const KEYS: usize = 100;

async fn door() -> Door {
    let config = GatewayConfig { max_request_bytes: PAGE_BYTES, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let kv = door.kv().await;
    // Of several sizes, some of them a page.
    let put = |number: usize| {
        let (key, value) = (format!("k{number:03}"), vec![b'v'; number * 37 % 3_500]);
        let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        let mut kv = kv.clone();
        async move { kv.put(put).await }
    };
    for put in join_all((0..KEYS).map(put)).await {
        put.expect("a put");
    }
    door
}

fn all() -> RangeRequest {
    RangeRequest { key: "k".into(), range_end: "l".into(), ..RangeRequest::default() }
}

/// How many parts there were, and what they are together.
async fn merged(
    mut parts: Streaming<RangeStreamResponse>,
) -> Result<(usize, RangeResponse), Status> {
    let (mut count, mut whole) = (0, RangeResponse::default());
    while let Some(part) = heard(&mut parts).await? {
        let part = part.range_response.expect("a part has pairs").encode_to_vec();
        assert!(part.len() < PAGE_BYTES + 1_000, "a page, and what is around its pairs");
        whole.merge(&*part).expect("it was encoded just now");
        count += 1;
    }
    Ok((count, whole))
}

async fn stream(
    kv: &mut KvClient<Channel>,
    request: RangeRequest,
) -> Result<(usize, RangeResponse), Status> {
    merged(kv.range_stream(request).await?.into_inner()).await
}

#[tokio::test]
async fn the_parts_of_a_range_are_the_range() {
    let door = door().await;
    let mut kv = door.kv().await;
    let limited = |limit| RangeRequest { limit, ..all() };
    let rows = [
        ("all", all(), true),
        ("as of before", RangeRequest { revision: 50, ..all() }, true),
        ("serializable", RangeRequest { serializable: true, ..all() }, true),
        ("some", limited(40), true),
        ("one", limited(1), false),
        ("as many as there are", limited(KEYS as i64), true),
        ("more than there are", limited(KEYS as i64 + 1), true),
        ("fewer than none", limited(-1), true),
        ("keys", RangeRequest { keys_only: true, ..all() }, false),
        ("how many", RangeRequest { count_only: true, ..all() }, false),
        ("how many of some", RangeRequest { count_only: true, ..limited(3) }, false),
        ("one key", RangeRequest { range_end: "".into(), key: "k007".into(), ..all() }, false),
        ("no key", RangeRequest { range_end: "".into(), key: "x".into(), ..all() }, false),
        ("nothing", RangeRequest { range_end: "a".into(), ..all() }, false),
        ("from a key on", RangeRequest { range_end: "\0".into(), ..all() }, true),
        ("in the order of keys", RangeRequest { sort_order: 1, ..all() }, true),
        ("a target without an order", RangeRequest { sort_target: 3, ..all() }, true),
    ];
    for (name, request, is_long) in rows {
        let (parts, whole) = stream(&mut kv, request.clone()).await.expect("it is read");
        assert_eq!(parts > 1, is_long, "{name}: {parts} parts");
        // With a target and without an order, streams have the order of keys.
        let request = RangeRequest { sort_target: 0, ..request };
        let range = kv.range(request).await.expect("it is read").into_inner();
        assert_eq!(whole, range, "{name}");
    }
}

#[tokio::test]
async fn what_cannot_be_streamed_is_refused_in_the_words_of_etcd() {
    let door = door().await;
    let mut kv = door.kv().await;
    let sort = "RangeStream does not support custom sort orders";
    let filters = "RangeStream does not support revision filters";
    let rows = [
        (RangeRequest::default(), Code::InvalidArgument, "etcdserver: key is not provided"),
        (
            RangeRequest { sort_order: 7, ..all() },
            Code::InvalidArgument,
            "etcdserver: invalid sort option",
        ),
        (RangeRequest { sort_order: 2, min_mod_revision: 1, ..all() }, Code::Unimplemented, sort),
        (RangeRequest { sort_order: 1, sort_target: 3, ..all() }, Code::Unimplemented, sort),
        (RangeRequest { min_mod_revision: 1, ..all() }, Code::Unimplemented, filters),
        (RangeRequest { max_create_revision: 9, ..all() }, Code::Unimplemented, filters),
        (
            RangeRequest { revision: 999, ..all() },
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
    ];
    for (request, code, text) in rows {
        let status = stream(&mut kv, request.clone()).await.expect_err("it is refused");
        assert_eq!((status.code(), status.message()), (code, text), "{request:?}");
    }
}

#[tokio::test]
async fn all_parts_are_of_the_first_ones_revision() {
    let door = door().await;
    let mut kv = door.kv().await;
    let expected = kv.range(all()).await.expect("it is read").into_inner();
    let parts = kv.range_stream(all()).await.expect("it begins").into_inner();
    // The first part was read before the head was sent, the others are not yet, or not all.
    for key in ["k099", "k0995"] {
        let put = PutRequest { key: key.into(), value: "new".into(), ..PutRequest::default() };
        kv.put(put).await.expect("a put");
    }
    let (_, whole) = merged(parts).await.expect("they are read");
    assert_eq!(whole, expected);
}

const LARGE_BYTES: usize = 256 << 10;

/// Puts more than all windows and buffers on the way hold, as whoever has `token`.
pub(crate) async fn fill(kv: &mut KvClient<Channel>, token: Option<&str>) {
    for number in 0..80 {
        let (key, value) = (format!("b{number:02}"), vec![b'v'; LARGE_BYTES]);
        let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        kv.put(signed(put, token)).await.expect("a put");
    }
}

fn signed<T>(request: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(request);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().expect("a token is text"));
    }
    request
}

/// A client that has read the first part and takes its time over the others.
pub(crate) async fn begun(
    kv: &mut KvClient<Channel>,
    token: Option<&str>,
) -> Streaming<RangeStreamResponse> {
    let request = signed(range(b"b", b"c"), token);
    let mut parts = kv.range_stream(request).await.expect("it begins").into_inner();
    let first = heard(&mut parts).await.expect("it is read").expect("there is one");
    assert!(!first.range_response.expect("pairs").kvs.is_empty());
    parts
}

/// Why it ends, which it does too soon.
pub(crate) async fn end(mut parts: Streaming<RangeStreamResponse>) -> Status {
    loop {
        match heard(&mut parts).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it came to its end"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_compaction_in_the_middle_ends_a_range_in_parts() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    fill(&mut kv, None).await;
    let parts = begun(&mut kv, None).await;
    let put = PutRequest { key: "b00".into(), ..PutRequest::default() };
    let revision = kv.put(put).await.expect("a put").into_inner().header.expect("one").revision;
    kv.compact(CompactionRequest { revision, physical: false }).await.expect("compacted");
    let status = end(parts).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().ends_with("has been compacted"), "{status:?}");
}

#[tokio::test]
async fn who_may_no_more_gets_no_more_parts() {
    let door = with_users().await;
    let mut kv = door.kv().await;
    let (root, right) = {
        let client = Client::of(door.channel().await);
        (client.to_be("root").await, client.login("right").await)
    };
    fill(&mut kv, root.token.as_deref()).await;
    let parts = begun(&mut kv, Some(&right)).await;
    let revoke = pb::AuthUserRevokeRoleRequest { name: "right".into(), role: "r".into() };
    root.user_revoke_role(revoke).await.expect("revoked");
    let status = end(parts).await;
    assert!(status.message().starts_with("etcdserver: "), "{status:?}");
    let codes = [Code::PermissionDenied, Code::InvalidArgument, Code::Unauthenticated];
    assert!(codes.contains(&status.code()), "{status:?}");
}
