//! Messages above the limit, which is one for all methods, as etcd's.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use prost_reflect::DescriptorPool;
use quorate_api::FILE_DESCRIPTORS;
use quorate_api::codec::EncodedMessages;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{WatchCreateRequest, WatchRequest};
use quorate_gateway::GatewayConfig;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::peer::Etcd;
use crate::support::{Door, heard};

/// What a message may be larger than a request, as with etcd.
const OVERHEAD_BYTES: usize = 512 * 1024;

/// A method of each service that answers whatever it is asked, at once.
const ANSWERING: [&str; 12] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Auth/AuthStatus",
    "/v3lockpb.Lock/Unlock",
    "/v3electionpb.Election/Leader",
    "/quorate.v1.Admin/Status",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The paths of all methods that are described by `files`.
fn methods(files: &[u8]) -> Vec<String> {
    let pool = DescriptorPool::decode(files).expect("sound descriptors");
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    methods.map(|it| format!("/{}/{}", it.parent_service().full_name(), it.name())).collect()
}

/// A message of so many bytes, which says nothing that any method understands.
fn message(bytes: usize) -> Bytes {
    padded(BytesMut::with_capacity(bytes), bytes)
}

/// A message with something behind it that no method understands, so that it has so many bytes.
fn padded(mut message: BytesMut, bytes: usize) -> Bytes {
    const FIELD: u32 = 2_000;
    encode_key(FIELD, WireType::LengthDelimited, &mut message);
    let left = bytes - message.len();
    let length = left - encoded_len_varint(left as u64);
    encode_varint(length as u64, &mut message);
    message.put_bytes(0, length);
    assert_eq!(message.len(), bytes, "the length takes as many bytes as what is left does");
    message.freeze()
}

/// What a method says to a message and no more.
async fn said(channel: &Channel, path: &str, message: Bytes) -> (Code, String) {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    let path = PathAndQuery::try_from(path).expect("a path");
    let request = Request::new(tokio_stream::once(message));
    let status = match grpc.streaming(request, path, EncodedMessages).await {
        Err(status) => status,
        Ok(answers) => match heard(&mut answers.into_inner()).await {
            Err(status) => status,
            Ok(Some(_)) => return (Code::Ok, "answered".to_owned()),
            Ok(None) => return (Code::Ok, "ended".to_owned()),
        },
    };
    (status.code(), status.message().to_owned())
}

fn refusal(found: usize, limit: usize) -> (Code, String) {
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    (Code::ResourceExhausted, text)
}

#[tokio::test]
async fn no_method_takes_a_message_above_the_limit() {
    let config = GatewayConfig { max_request_bytes: 10_000, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let channel = door.channel().await;
    let limit = 10_000 + OVERHEAD_BYTES;
    let mut paths = methods(FILE_DESCRIPTORS);
    paths.extend(methods(tonic_health::pb::FILE_DESCRIPTOR_SET));
    for path in paths {
        let said = said(&channel, &path, message(limit + 1)).await;
        assert_eq!(said, refusal(limit + 1, limit), "{path}");
    }
    // Reflection's library has no words for it.
    for path in ANSWERING.iter().filter(|path| path.starts_with("/grpc.reflection")) {
        let said = said(&channel, path, message(limit + 1)).await;
        assert_eq!(said, (Code::Ok, "ended".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn every_service_takes_messages_up_to_the_limit() {
    let max_request_bytes = 5 << 20;
    let config = GatewayConfig { max_request_bytes, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let channel = door.channel().await;
    let service = |path: &str| path.split('/').nth(1).expect("a service").to_owned();
    let mut services: BTreeSet<_> =
        methods(FILE_DESCRIPTORS).iter().map(|path| service(path)).collect();
    for path in ANSWERING {
        services.remove(&service(path));
        let mut asked = BytesMut::new();
        if path.ends_with("/Watch") {
            // It says nothing before it is asked something.
            let create = Some(RequestUnion::CreateRequest(WatchCreateRequest::default()));
            WatchRequest { request_union: create }.encode(&mut asked).expect("there is room");
        }
        let message = padded(asked, max_request_bytes + OVERHEAD_BYTES);
        let (code, text) = said(&channel, path, message).await;
        assert!(!text.contains("large") && text != "ended", "{path}: {code:?} {text}");
    }
    assert!(services.is_empty(), "{services:?}");
}

#[tokio::test]
async fn messages_above_the_limit_are_refused_in_etcds_words() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let (theirs, ours) = (etcd.channel(), door.channel().await);
    let limit = GatewayConfig::default().message_bytes_max();
    let etcds = |path: &String| !path.contains("quorate") && !path.ends_with("/RangeStream");
    for path in methods(FILE_DESCRIPTORS).into_iter().filter(etcds) {
        let expected = said(&theirs, &path, message(limit + 1)).await;
        assert_eq!(said(&ours, &path, message(limit + 1)).await, expected, "{path}");
        assert_eq!(expected, refusal(limit + 1, limit), "{path}");
    }
}
