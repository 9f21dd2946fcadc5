//! Every RPC of every service, and every kind of caller: who is let in.
//!
//! The list of RPCs is made from the descriptors, so a new one is here by itself; what it should ask is said by hand
//! below, apart from the gateway's own table.

use bytes::Bytes;
use prost::Message;
use quorate_api::METHODS;
use quorate_api::codec::EncodedMessages;
use quorate_api::{etcdserverpb as pb, v3electionpb as election, v3lockpb as lock};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::auth::{Client, with_users};
use crate::support::heard;

/// Calls a method with a request that is well formed, and gives the error.
async fn call(channel: &Channel, path: &'static str, token: Option<&str>) -> Option<Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("the gateway listens");
    let mut request = Request::new(request(path));
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().expect("a token is text"));
    }
    let path = http::uri::PathAndQuery::from_static(path);
    let answer = match grpc.server_streaming(request, path.clone(), EncodedMessages).await {
        Ok(answer) => heard(&mut answer.into_inner()).await,
        Err(status) => Err(status),
    };
    match answer {
        Ok(Some(message)) if path == "/etcdserverpb.Watch/Watch" => refused_watch(message),
        answer => answer.err(),
    }
}

/// A stream of watches is open to all: each watch is let in or cancelled by itself.
fn refused_watch(message: Bytes) -> Option<Status> {
    let told = pb::WatchResponse::decode(message).expect("a response");
    assert!(told.created);
    told.canceled.then(|| {
        let (_, text) = told.cancel_reason.split_once(" desc = ").expect("code and text");
        Status::permission_denied(text)
    })
}

/// A request about the key `b`, which the user `right` may read and write; without one, an empty message.
pub(crate) fn request(path: &str) -> Bytes {
    let key = Bytes::from_static(b"b");
    let bytes = match path {
        "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/RangeStream" => {
            pb::RangeRequest { key, ..Default::default() }.encode_to_vec()
        }
        "/etcdserverpb.KV/Put" => pb::PutRequest { key, ..Default::default() }.encode_to_vec(),
        "/etcdserverpb.KV/DeleteRange" => {
            pb::DeleteRangeRequest { key, ..Default::default() }.encode_to_vec()
        }
        "/etcdserverpb.KV/Txn" => {
            let compare = pb::Compare { key, ..Default::default() };
            let target = Some(pb::compare::TargetUnion::Version(0));
            let compare = pb::Compare { target_union: target, ..compare };
            pb::TxnRequest { compare: vec![compare], ..Default::default() }.encode_to_vec()
        }
        "/etcdserverpb.Watch/Watch" => {
            let create = pb::WatchCreateRequest { key, ..Default::default() };
            let union = pb::watch_request::RequestUnion::CreateRequest(create);
            pb::WatchRequest { request_union: Some(union) }.encode_to_vec()
        }
        "/v3lockpb.Lock/Lock" => lock::LockRequest { name: key, lease: 0 }.encode_to_vec(),
        "/v3lockpb.Lock/Unlock" => lock::UnlockRequest { key }.encode_to_vec(),
        "/v3electionpb.Election/Campaign" => {
            election::CampaignRequest { name: key, ..Default::default() }.encode_to_vec()
        }
        "/v3electionpb.Election/Leader" | "/v3electionpb.Election/Observe" => {
            election::LeaderRequest { name: key }.encode_to_vec()
        }
        "/v3electionpb.Election/Proclaim" | "/v3electionpb.Election/Resign" => {
            let name = key.clone();
            let leader = Some(election::LeaderKey { name, key, rev: 1, lease: 0 });
            // The other one has a value too, which is empty here.
            election::ResignRequest { leader }.encode_to_vec()
        }
        "/etcdserverpb.KV/Compact" => pb::CompactionRequest::default().encode_to_vec(),
        "/etcdserverpb.Auth/UserAdd" => {
            // Refused before anything is hashed or added.
            pb::AuthUserAddRequest { name: "x".into(), ..Default::default() }.encode_to_vec()
        }
        _ => Vec::new(),
    };
    bytes.into()
}

/// Who may call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    Anybody,
    Users,
    /// Users with a role that fits, and root.
    Right,
    Root,
}

pub(crate) fn who_may(path: &str) -> Who {
    let (service, method) = path[1..].split_once('/').expect("a service and a method");
    match (service, method) {
        ("etcdserverpb.Auth", "Authenticate") => Who::Anybody,
        ("etcdserverpb.KV", "Range" | "RangeStream" | "Put" | "DeleteRange" | "Txn")
        | ("etcdserverpb.Watch", "Watch")
        | ("v3lockpb.Lock" | "v3electionpb.Election", _) => Who::Right,
        // The requests are about leases without keys.
        ("etcdserverpb.Lease", _)
        | ("etcdserverpb.Cluster", "MemberList")
        | ("etcdserverpb.Maintenance", "Status" | "Alarm")
        | ("quorate.v1.Admin", "Status") => Who::Users,
        _ => Who::Root,
    }
}

fn is_refusal(status: &Status) -> bool {
    let words = ["user name is empty", "permission denied", "invalid auth token"];
    words.iter().any(|words| status.message().ends_with(words))
        && status.message().starts_with("etcdserver: ")
}

#[tokio::test]
async fn every_rpc_lets_in_whom_it_should_and_nobody_else() {
    let door = with_users().await;
    let channel = door.channel().await;
    let login = async |user: &str| Client::of(channel.clone()).login(user).await;
    let (wrong, right, root) = (login("wrong").await, login("right").await, login("root").await);
    // The last one leaves nobody without rights.
    let disable = "/etcdserverpb.Auth/AuthDisable";
    let others = METHODS.iter().copied().filter(|path| *path != disable);
    for path in others.chain([disable]) {
        let may = who_may(path);
        let callers = [
            ("nobody", None, may == Who::Anybody),
            ("a liar", Some("q1.AAAA.AAAA"), may == Who::Anybody),
            ("the wrong role", Some(wrong.as_str()), matches!(may, Who::Anybody | Who::Users)),
            ("the right role", Some(right.as_str()), may != Who::Root),
            ("root", Some(root.as_str()), true),
        ];
        // Whoever is let in waits here, for its turn or for news.
        let waits = ["Lock/Lock", "Election/Campaign", "Election/Observe"];
        let waits = waits.iter().any(|call| path.ends_with(call));
        for (name, token, let_in) in callers {
            if let_in && waits {
                continue;
            }
            let status = call(&channel, path, token).await;
            let refused = status.as_ref().is_some_and(is_refusal);
            // An empty name is refused with the same words by etcd.
            let by_name = path == "/etcdserverpb.Auth/UserAdd";
            assert!(refused != let_in || by_name && let_in, "{path} as {name}: {status:?}");
        }
    }
    assert!(!door.backend.directory_now().enabled(), "root may switch users off");
}

#[tokio::test]
async fn what_has_no_row_is_refused_and_so_is_reflection_without_a_user() {
    let door = with_users().await;
    let channel = door.channel().await;
    let root = Client::of(channel.clone()).login("root").await;
    for path in ["/etcdserverpb.KV/Purge", "/x.Y/Z"] {
        let status = call(&channel, path, Some(&root)).await.expect("there is no such thing");
        assert_eq!(status.code(), Code::PermissionDenied, "{path}");
    }
    for path in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let status = call(&channel, path, None).await.expect("nobody asks");
        assert!(is_refusal(&status), "{path}: {status:?}");
        let status = call(&channel, path, Some(&root)).await;
        assert!(!status.as_ref().is_some_and(is_refusal), "{path}: {status:?}");
    }
    let health = call(&channel, "/grpc.health.v1.Health/Check", None).await;
    assert!(health.is_none(), "{health:?}");
}
