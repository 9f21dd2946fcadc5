//! The JSON gateway while users count: no path of it lets in whom its RPC would not.

use std::collections::BTreeSet;
use std::time::Duration;

use prost_reflect::{DescriptorPool, DynamicMessage};
use quorate_api::{FILE_DESCRIPTORS, METHODS};
use quorate_types::kv::command::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::auth::{Client, with_users};
use crate::auth_matrix::{Who, request, who_may};
use crate::support::Door;

/// How long anything may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every path of JSON behind `/v3/`, and its RPC.
const PATHS: &[(&str, &str)] = &[
    ("kv/range", "etcdserverpb.KV/Range"),
    ("kv/put", "etcdserverpb.KV/Put"),
    ("kv/deleterange", "etcdserverpb.KV/DeleteRange"),
    ("kv/txn", "etcdserverpb.KV/Txn"),
    ("kv/compaction", "etcdserverpb.KV/Compact"),
    ("watch", "etcdserverpb.Watch/Watch"),
    ("lease/grant", "etcdserverpb.Lease/LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("kv/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease/LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("kv/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("kv/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster/MemberAdd"),
    ("cluster/member/remove", "etcdserverpb.Cluster/MemberRemove"),
    ("cluster/member/update", "etcdserverpb.Cluster/MemberUpdate"),
    ("cluster/member/list", "etcdserverpb.Cluster/MemberList"),
    ("cluster/member/promote", "etcdserverpb.Cluster/MemberPromote"),
    ("maintenance/alarm", "etcdserverpb.Maintenance/Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance/Status"),
    ("maintenance/defragment", "etcdserverpb.Maintenance/Defragment"),
    ("maintenance/hash", "etcdserverpb.Maintenance/Hash"),
    ("maintenance/snapshot", "etcdserverpb.Maintenance/Snapshot"),
    ("maintenance/transfer-leadership", "etcdserverpb.Maintenance/MoveLeader"),
    ("maintenance/downgrade", "etcdserverpb.Maintenance/Downgrade"),
    ("auth/enable", "etcdserverpb.Auth/AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth/AuthDisable"),
    ("auth/status", "etcdserverpb.Auth/AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth/Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth/UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth/UserGet"),
    ("auth/user/list", "etcdserverpb.Auth/UserList"),
    ("auth/user/delete", "etcdserverpb.Auth/UserDelete"),
    ("auth/user/changepw", "etcdserverpb.Auth/UserChangePassword"),
    ("auth/user/grant", "etcdserverpb.Auth/UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth/UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth/RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth/RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth/RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth/RoleDelete"),
    ("auth/role/grant", "etcdserverpb.Auth/RoleGrantPermission"),
    ("auth/role/revoke", "etcdserverpb.Auth/RoleRevokePermission"),
    ("lock/lock", "v3lockpb.Lock/Lock"),
    ("lock/unlock", "v3lockpb.Lock/Unlock"),
    ("election/campaign", "v3electionpb.Election/Campaign"),
    ("election/proclaim", "v3electionpb.Election/Proclaim"),
    ("election/leader", "v3electionpb.Election/Leader"),
    ("election/observe", "v3electionpb.Election/Observe"),
    ("election/resign", "v3electionpb.Election/Resign"),
];

/// RPCs of etcd's services that have no path there, as with etcd.
const WITHOUT: [&str; 2] = ["/etcdserverpb.KV/RangeStream", "/etcdserverpb.Maintenance/HashKV"];

#[test]
fn the_paths_are_those_of_all_rpcs_of_etcds() {
    let of_etcds = METHODS.iter().filter(|path| !path.starts_with("/quorate."));
    let expected: BTreeSet<_> =
        of_etcds.filter(|path| !WITHOUT.contains(path)).map(|path| path[1..].to_owned()).collect();
    let named: BTreeSet<_> = PATHS.iter().map(|(_, rpc)| (*rpc).to_owned()).collect();
    assert_eq!(named, expected);
}

/// The request of the matrix of RPCs, as JSON.
fn body(pool: &DescriptorPool, rpc: &str) -> String {
    let (service, method) = rpc.split_once('/').expect("a service and a method");
    let service = pool.get_service_by_name(service).expect("a service");
    let method = service.methods().find(|known| known.name() == method).expect("a method");
    let message = DynamicMessage::decode(method.input(), request(&format!("/{rpc}")));
    serde_json::to_string(&message.expect("a request")).expect("JSON")
}

/// The answer, or as much of it as tells of a refusal: a stream that is let in has no end.
async fn post(door: &Door, path: &str, token: Option<&str>, body: &str) -> String {
    let mut stream = TcpStream::connect(door.address).await.expect("the gateway listens");
    let token = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("it reads the request");
    let mut answer = Vec::new();
    let told = async {
        while !is_refusal(&String::from_utf8_lossy(&answer)) {
            if stream.read_buf(&mut answer).await.expect("an answer") == 0 {
                break;
            }
        }
    };
    let in_time = timeout(PATIENCE, told).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(in_time.is_ok(), "{path} says neither no nor goodbye: {answer}");
    answer
}

fn is_refusal(answer: &str) -> bool {
    let words = ["user name is empty", "permission denied", "invalid auth token"];
    words.iter().any(|words| answer.contains(&format!("etcdserver: {words}")))
}

#[tokio::test]
async fn every_path_refuses_whom_its_rpc_refuses() {
    let door = with_users().await;
    let wrong = Client::of(door.channel().await).login("wrong").await;
    door.backend.take_proposals();
    let pool = DescriptorPool::decode(FILE_DESCRIPTORS).expect("sound descriptors");
    for (path, rpc) in PATHS {
        let (may, body) = (who_may(&format!("/{rpc}")), body(&pool, rpc));
        for prefix in ["/v3", "/v3beta"] {
            let path = format!("{prefix}/{path}");
            for (name, token, let_in) in [
                ("nobody", None, may == Who::Anybody),
                ("a liar", Some("q1.AAAA.AAAA"), may == Who::Anybody),
                ("the wrong role", Some(&*wrong), matches!(may, Who::Anybody | Who::Users)),
            ] {
                // Whoever is let in here changes nothing, but may wait for ever.
                if let_in && may == Who::Users {
                    continue;
                }
                let answer = post(&door, &path, token, &body).await;
                assert_eq!(is_refusal(&answer), !let_in, "{path} as {name}: {answer}");
            }
        }
    }
    // A user may have leases, and gets one on the way to a lock.
    let is_lease = |body: &Body| matches!(body, Body::LeaseGrant(_));
    let mut proposed = door.backend.take_proposals();
    proposed.retain(|command| !command.body.as_ref().is_some_and(is_lease));
    assert!(proposed.is_empty(), "{proposed:?}");
}
