//! What each service answers, and how failures of the backend reach a client.

use http::uri::PathAndQuery;
use quorate_api::etcdserverpb::{
    CompactionRequest, Compare, LeaseKeepAliveRequest, MemberListRequest, PutRequest, PutResponse,
    RangeRequest, RequestOp, ResponseHeader, StatusRequest, TxnRequest, lease_client::LeaseClient,
    request_op::Request as OpRequest,
};
use quorate_api::quorate::v1::{self, admin_client::AdminClient};
use quorate_gateway::{BackendError, Consistency, ETCD_VERSION};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::fake::{CLUSTER, MEMBER, TERM};
use crate::support::{Door, heard, until};

fn get(serializable: bool) -> RangeRequest {
    RangeRequest { key: "k".into(), serializable, ..RangeRequest::default() }
}

fn put() -> PutRequest {
    PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() }
}

fn ranges(serializable: &[bool]) -> TxnRequest {
    let op = |one: &bool| RequestOp { request: Some(OpRequest::RequestRange(get(*one))) };
    TxnRequest { success: serializable.iter().map(op).collect(), ..TxnRequest::default() }
}

fn refusal<T>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.err().expect("a refusal");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn headers_name_who_answered_and_when() {
    let door = Door::open().await;
    let response = door.kv().await.put(put()).await.expect("a put").into_inner();
    let header = response.header.expect("a header");
    assert_eq!((header.cluster_id, header.member_id), (CLUSTER.value(), MEMBER.value()));
    assert_eq!((header.revision, header.raft_term), (2, TERM.value()));
}

#[tokio::test]
async fn no_answer_is_older_than_one_before_it() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    kv.put(put()).await.expect("a put");
    door.backend.lag_behind();
    let revision = |header: Option<ResponseHeader>| header.expect("a header").revision;
    let second = kv.put(put()).await.expect("a put").into_inner();
    let read = kv.range(get(true)).await.expect("a read").into_inner();
    assert_eq!(revision(read.header), revision(second.header));
    assert_eq!(read.kvs[0].version, 2);
    // Nor is a revision that was answered ever one of the future.
    let at = RangeRequest { revision: 3, ..get(true) };
    assert_eq!(kv.range(at).await.expect("a read").into_inner().kvs[0].mod_revision, 3);
    let status = door.maintenance().await.status(StatusRequest {}).await.expect("a status");
    assert_eq!(revision(status.into_inner().header), 3);
}

#[tokio::test]
async fn reads_are_as_fresh_as_they_are_asked_to_be() {
    use Consistency::{Linearizable, Serializable};
    let door = Door::open().await;
    let mut kv = door.kv().await;
    for (serializable, expected) in [(false, Linearizable), (true, Serializable)] {
        kv.range(get(serializable)).await.expect("a read");
        assert_eq!(door.backend.take_reads(), [expected]);
    }
    let compares_only = TxnRequest {
        compare: vec![Compare { key: "k".into(), ..Compare::default() }],
        ..TxnRequest::default()
    };
    let rows = [
        ("all serializable", ranges(&[true, true]), Serializable),
        ("one linearizable", ranges(&[true, false]), Linearizable),
        ("no range at all", compares_only, Linearizable),
    ];
    for (name, txn, expected) in rows {
        kv.txn(txn).await.expect("a transaction that only reads");
        assert_eq!(door.backend.take_reads(), [expected], "{name}");
    }
    assert_eq!(door.backend.take_proposals(), [], "reads do not go through the log");
    let nested = RequestOp { request: Some(OpRequest::RequestTxn(ranges(&[true]))) };
    kv.txn(TxnRequest { success: vec![nested], ..TxnRequest::default() }).await.expect("nested");
    assert_eq!(door.backend.take_reads(), []);
    assert_eq!(door.backend.take_proposals().len(), 1, "a nested one goes through the log");
}

#[tokio::test]
async fn failures_of_the_backend_have_etcds_words() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    let rows = [
        (BackendError::NoLeader, Code::Unavailable, "etcdserver: no leader"),
        (BackendError::TimedOut, Code::Unavailable, "etcdserver: request timed out"),
        (BackendError::Overloaded, Code::ResourceExhausted, "etcdserver: too many requests"),
        (
            BackendError::NoSpace,
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        (BackendError::Stopping, Code::Unavailable, "etcdserver: server stopped"),
    ];
    for (failure, code, text) in rows {
        door.backend.fail_with(Some(failure));
        assert_eq!(refusal(kv.put(put()).await), (code, text.to_owned()));
        assert_eq!(refusal(kv.range(get(false)).await), (code, text.to_owned()));
    }
    door.backend.fail_with(None);
    kv.put(put()).await.expect("served again");
}

#[tokio::test]
async fn a_client_may_require_a_leader() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    let requiring = || {
        let mut request = Request::new(get(true));
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        request
    };
    kv.range(requiring()).await.expect("there is a leader");
    door.backend.lose_leader();
    let (code, text) = refusal(kv.range(requiring()).await);
    assert_eq!((code, text.as_str()), (Code::Unavailable, "etcdserver: no leader"));
    kv.range(get(true)).await.expect("a local read needs none");
}

#[tokio::test]
async fn status_tells_where_the_member_stands() {
    let door = Door::open().await;
    door.kv().await.put(put()).await.expect("a put");
    let mut maintenance = door.maintenance().await;
    let status = maintenance.status(StatusRequest {}).await.expect("a status").into_inner();
    assert_eq!(status.header.expect("a header").revision, 2);
    assert_eq!(status.version, ETCD_VERSION);
    assert_eq!((status.db_size, status.db_size_in_use), (20_480, 16_384));
    assert_eq!((status.leader, status.raft_term), (MEMBER.value(), TERM.value()));
    assert_eq!((status.raft_index, status.raft_applied_index), (42, 41));
    assert_eq!((status.is_learner, status.errors), (false, Vec::new()));
    // It is wanted most when little else works.
    door.backend.lose_leader();
    door.backend.fail_with(Some(BackendError::NoLeader));
    let status = maintenance.status(StatusRequest {}).await.expect("a status").into_inner();
    assert_eq!((status.leader, status.errors), (0, vec!["etcdserver: no leader".to_owned()]));
    assert_eq!(status.header.expect("a header").revision, 0);
}

#[tokio::test]
async fn members_are_listed_after_a_quorum_was_heard_if_asked_for() {
    let door = Door::open().await;
    let mut cluster = door.cluster().await;
    let list = |linearizable| MemberListRequest { linearizable };
    let response = cluster.member_list(list(true)).await.expect("a list").into_inner();
    assert_eq!(door.backend.take_reads(), [Consistency::Linearizable]);
    let [member] = response.members.try_into().expect("one member");
    assert_eq!((member.id, member.name.as_str()), (MEMBER.value(), "n1"));
    assert_eq!(member.client_ur_ls, [format!("http://{}", door.address)]);
    assert_eq!(response.header.expect("a header").revision, 0);
    door.backend.fail_with(Some(BackendError::NoLeader));
    assert_eq!(refusal(cluster.member_list(list(true)).await).0, Code::Unavailable);
    cluster.member_list(list(false)).await.expect("from memory");
}

#[tokio::test]
async fn admin_status_shows_the_replicas() {
    let door = Door::open().await;
    let mut admin = AdminClient::new(door.channel().await);
    let status = admin.status(v1::StatusRequest {}).await.expect("a status").into_inner();
    let node = status.node.expect("a node");
    assert_eq!((node.id, node.name.as_str(), node.ready), (MEMBER.value(), "n1", true));
    let cluster = status.cluster.expect("a cluster");
    assert_eq!((cluster.id, cluster.nodes.len()), (CLUSTER.value(), 1));
    let [group] = status.groups.try_into().expect("one group");
    assert_eq!((group.id, group.role()), (2, v1::Role::Leader));
    assert_eq!((group.applied, group.commit, group.last), (41, 42, 43));
    assert_eq!(group.peers, [v1::Peer { node: 2, match_index: 40, lag: 3 }]);
}

#[tokio::test]
async fn grpc_health_follows_readiness() {
    let door = Door::open().await;
    let mut health = HealthClient::new(door.channel().await);
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "etcdserverpb.KV", "quorate.v1.Admin"] {
        let status = health.check(ask(service)).await.expect("a known service").into_inner();
        assert_eq!(status.status(), ServingStatus::Serving, "{service}");
    }
    assert_eq!(refusal(health.check(ask("nope")).await).0, Code::NotFound);
    let mut changes = health.watch(ask("")).await.expect("a stream").into_inner();
    for expected in [ServingStatus::Serving, ServingStatus::NotServing, ServingStatus::Serving] {
        door.backend.set_ready(expected == ServingStatus::Serving);
        let change = heard(&mut changes).await.expect("a living stream").expect("an answer");
        assert_eq!(change.status(), expected);
    }
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    use tonic_reflection::pb::{v1, v1alpha};
    let door = Door::open().await;
    let expected = [
        "etcdserverpb.Cluster",
        "etcdserverpb.KV",
        "etcdserverpb.Maintenance",
        "grpc.health.v1.Health",
        "quorate.v1.Admin",
    ];
    macro_rules! names {
        ($version:ident) => {{
            use $version::server_reflection_request::MessageRequest;
            use $version::server_reflection_response::MessageResponse;
            let question = $version::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = $version::server_reflection_client::ServerReflectionClient::new(
                door.channel().await,
            );
            let answers = client.server_reflection_info(tokio_stream::once(question)).await;
            let answer = heard(&mut answers.expect("a stream").into_inner()).await;
            let answer = answer.expect("a living stream").expect("an answer").message_response;
            let Some(MessageResponse::ListServicesResponse(list)) = answer else {
                panic!("not a list: {answer:?}")
            };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    for names in [names!(v1), names!(v1alpha)] {
        for service in expected {
            assert!(names.iter().any(|name| name == service), "{service} in {names:?}");
        }
    }
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    kv.put(put()).await.expect("a put");
    kv.put(PutRequest::default()).await.expect_err("a put without a key");
    let page = door.page("/metrics").await.1;
    let labels = r#"grpc_type="unary",grpc_service="etcdserverpb.KV",grpc_method="Put""#;
    for line in [
        format!("grpc_server_started_total{{{labels}}} 2"),
        format!(r#"grpc_server_handled_total{{{labels},grpc_code="OK"}} 1"#),
        format!(r#"grpc_server_handled_total{{{labels},grpc_code="InvalidArgument"}} 1"#),
        format!(r#"grpc_server_handled_total{{{labels},grpc_code="Canceled"}} 0"#),
        format!("grpc_server_handling_seconds_count{{{labels}}} 2"),
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in {page}");
    }
}

#[tokio::test]
async fn streams_are_counted_when_they_end() {
    let door = Door::open().await;
    let count = async |name: &str, labels: &str| {
        let page = door.page("/metrics").await.1;
        let line = page.lines().find(|line| line.starts_with(name) && line.contains(labels));
        let line = line.unwrap_or_else(|| panic!("{name} {labels} in {page}"));
        line.rsplit_once(' ').and_then(|(_, count)| count.parse::<u64>().ok()).expect("a count")
    };
    let code = |method: &str, code: &str| {
        format!(
            r#"grpc_type="bidi_stream",grpc_service="etcdserverpb.{method},grpc_code="{code}"}}"#
        )
    };
    let keep_alive = r#"Lease",grpc_method="LeaseKeepAlive""#;
    let one = LeaseKeepAliveRequest { id: 7 };
    let mut leases = LeaseClient::new(door.channel().await);
    let answers = leases.lease_keep_alive(futures::stream::iter([one])).await.expect("a stream");
    let mut answers = answers.into_inner();
    while heard(&mut answers).await.expect("no refusal").is_some() {}
    assert_eq!(count("grpc_server_handled_total", &code(keep_alive, "OK")).await, 1);

    let watch = r#"Watch",grpc_method="Watch""#;
    let (requests, sent) = tokio::sync::mpsc::channel(1);
    let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
    let stream = door.watch().await.watch(sent).await.expect("a stream");
    assert_eq!(count("grpc_server_started_total", watch).await, 1);
    for ended in ["OK", "Canceled", "Unavailable"] {
        assert_eq!(count("grpc_server_handled_total", &code(watch, ended)).await, 0, "{ended}");
    }
    drop((stream, requests));
    let is_counted =
        async || count("grpc_server_handled_total", &code(watch, "Canceled")).await == 1;
    until("a stream that its client has left is counted", is_counted).await;
}

/// Calls `path` with a message that may be none of its method's.
async fn call_with(
    door: &Door,
    path: &'static str,
    message: CompactionRequest,
) -> Result<Response<PutResponse>, Status> {
    let mut grpc = tonic::client::Grpc::new(door.channel().await);
    grpc.ready().await.expect("a connection");
    let codec = tonic_prost::ProstCodec::default();
    grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await
}

#[tokio::test]
async fn unknown_methods_and_unreadable_messages_are_refused() {
    let door = Door::open().await;
    let message = CompactionRequest { revision: 5, physical: true };
    let rows = [
        ("/etcdserverpb.KV/Nope", Code::Unimplemented),
        ("/v3lockpb.Lock/Nope", Code::Unimplemented),
        ("/nope", Code::Unimplemented),
        // Its first field is a number where a put has bytes.
        ("/etcdserverpb.KV/Put", Code::Internal),
    ];
    for (path, code) in rows {
        assert_eq!(refusal(call_with(&door, path, message).await).0, code, "{path}");
    }
    door.kv().await.range(get(false)).await.expect("others are served");
}
