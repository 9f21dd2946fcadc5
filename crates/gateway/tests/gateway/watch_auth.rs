//! Watches while users count: who may create one, and whose ends when a right is taken.

use std::time::Duration;

use quorate_api::etcdserverpb::watch_client::WatchClient;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{
    self as pb, PutRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use quorate_gateway::{Backend, BackendError};
use quorate_types::auth::Caller;
use quorate_types::kv;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::auth::{Client, READ, grant_role, permission, set_up, with_users};
use crate::peer::Etcd;
use crate::support::Door;
use crate::watch_beside_etcd::watch;

pub(crate) const DENIED: &str =
    "rpc error: code = PermissionDenied desc = etcdserver: permission denied";

/// How long anything may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A watch stream of a user, or of nobody.
pub(crate) struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: tonic::Streaming<WatchResponse>,
}

impl Stream {
    /// Opens the stream with its first watch: etcd sends no head before it has something to say.
    pub(crate) async fn open(
        channel: Channel,
        token: Option<&str>,
        first: WatchCreateRequest,
    ) -> Result<Self, Status> {
        let (requests, sent) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(sent));
        if let Some(token) = token {
            request.metadata_mut().insert("token", token.parse().expect("a token is text"));
        }
        let union = Some(RequestUnion::CreateRequest(first));
        requests.send(WatchRequest { request_union: union }).await.expect("it has room");
        let responses = WatchClient::new(channel).watch(request).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn send(&self, union: RequestUnion) {
        let request = WatchRequest { request_union: Some(union) };
        self.requests.send(request).await.expect("the stream is open");
    }

    pub(crate) async fn create(&self, create: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(create)).await;
    }

    pub(crate) async fn next(&mut self) -> WatchResponse {
        let next = timeout(PATIENCE, self.responses.message()).await.expect("in time");
        next.expect("no error").expect("no end")
    }
}

/// What a client is told of a watch that it creates: whether it is created, whether it is cancelled, why.
type Told = (bool, bool, String);

fn told(response: WatchResponse) -> Told {
    assert!(response.events.is_empty(), "{response:?}");
    let refused_id = if response.canceled { -1 } else { 0 };
    // etcd 3.5.1 gives the number that was asked for to a watch that it refuses, 3.5.9 and later -1.
    assert!([0, refused_id].contains(&response.watch_id), "{response:?}");
    (response.created, response.canceled, response.cancel_reason)
}

/// What each user, and nobody, is told of watches of some ranges, each on a stream of its own.
async fn refusals(channel: Channel) -> Vec<(String, Result<Told, String>)> {
    let client = Client::of(channel.clone());
    let mut said = Vec::new();
    for user in ["", "right", "write", "split", "wrong", "root"] {
        let token = match user {
            "" => None,
            user => Some(client.login(user).await),
        };
        for (key, end) in
            [("b", ""), ("b", "d"), ("b", "e"), ("a", "c"), ("b", "\0"), ("x", ""), ("d", "b")]
        {
            let stream = Stream::open(channel.clone(), token.as_deref(), watch(key, end)).await;
            let answer = match stream {
                Ok(mut stream) => Ok(told(stream.next().await)),
                Err(status) => Err(format!("{:?} {}", status.code(), status.message())),
            };
            said.push((format!("{user:?} watches {key:?} to {end:?}"), answer));
        }
    }
    let liar = Stream::open(channel, Some("no.token"), watch("b", "")).await;
    said.push((
        "a liar".to_owned(),
        match liar {
            Ok(mut stream) => Ok(told(stream.next().await)),
            Err(status) => Err(format!("{:?} {}", status.code(), status.message())),
        },
    ));
    said
}

#[tokio::test]
async fn a_watch_needs_to_read_its_whole_range_as_with_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    set_up(&Client::of(etcd.channel())).await;
    let door = with_users().await;
    let ours = refusals(door.channel().await).await;
    for ((what, ours), (_, theirs)) in ours.into_iter().zip(refusals(etcd.channel()).await) {
        // etcd 3.5.1 takes a range without an end for a single key when it looks whether it is allowed.
        if what.contains("watches") && what.ends_with(r#" to "\0""#) {
            assert_eq!(what.starts_with(r#""root""#), ours.is_ok_and(|(_, refused, _)| !refused));
            continue;
        }
        // A token that is none ends the stream here, where etcd refuses each of its watches.
        if what == "a liar" {
            assert_eq!(ours, Err("Unauthenticated etcdserver: invalid auth token".to_owned()));
            continue;
        }
        assert_eq!(ours, theirs, "{what}");
    }
}

pub(crate) async fn put(root: &Client, key: &'static str) {
    let request = PutRequest { key: key.into(), ..PutRequest::default() };
    root.put(request).await.expect("root may");
}

/// Takes the range of `b` from the role `s`, which `split` has.
async fn take_b(root: &Client) {
    let request = pb::AuthRoleRevokePermissionRequest {
        role: "s".into(),
        key: "b".into(),
        range_end: "c".into(),
    };
    root.role_revoke_permission(request).await.expect("it was granted");
}

pub(crate) fn keys(response: &WatchResponse) -> Vec<&[u8]> {
    assert!(!response.canceled, "{response:?}");
    let pairs = response.events.iter().map(|event| event.kv.as_ref().expect("a pair"));
    pairs.map(|pair| &pair.key[..]).collect()
}

#[tokio::test]
async fn a_watch_refused_leaves_its_stream_and_the_other_watches_be() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let (root, right) = (client.to_be("root").await, client.login("right").await);
    let mut stream =
        Stream::open(door.channel().await, Some(&right), watch("b", "")).await.expect("a stream");
    assert!(stream.next().await.created);
    stream.create(watch("x", "")).await;
    let refused = stream.next().await;
    assert_eq!(
        (refused.watch_id, refused.created, refused.canceled, &*refused.cancel_reason),
        (-1, true, true, DENIED)
    );
    put(&root, "x").await;
    put(&root, "b").await;
    assert_eq!(keys(&stream.next().await), [b"b"], "nothing of x");
}

#[tokio::test]
async fn a_watch_ends_when_the_right_to_read_is_taken_and_tells_nothing_more() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let (root, split) = (client.to_be("root").await, client.login("split").await);
    let mut stream =
        Stream::open(door.channel().await, Some(&split), watch("b", "c")).await.expect("a stream");
    assert!(stream.next().await.created);
    stream.create(watch("c", "d")).await;
    let other = stream.next().await;
    assert!(other.created && !other.canceled);
    // A change that takes nothing from this user: both go on.
    root.user_grant_role(grant_role("wrong", "r")).await.expect("both are there");
    put(&root, "b").await;
    assert_eq!(keys(&stream.next().await), [b"b"]);
    take_b(&root).await;
    put(&root, "b1").await;
    let ended = stream.next().await;
    assert_eq!(
        (ended.watch_id, ended.created, ended.canceled, &*ended.cancel_reason, ended.events.len()),
        (0, false, true, DENIED, 0)
    );
    put(&root, "b2").await;
    put(&root, "c1").await;
    let others = stream.next().await;
    assert_eq!((others.watch_id, keys(&others)), (other.watch_id, vec![&b"c1"[..]]));
    // Given back, it can be watched again, also what was missed.
    root.role_grant_permission(permission("s", READ, b"b", b"c")).await.expect("a role");
    stream.create(WatchCreateRequest { start_revision: 3, ..watch("b", "c") }).await;
    assert!(stream.next().await.created);
    let mut missed = Vec::new();
    while missed.len() < 2 {
        missed.extend(keys(&stream.next().await).iter().map(|key| key.to_vec()));
    }
    assert_eq!(missed, [b"b1", b"b2"]);
}

#[tokio::test]
async fn a_watch_ends_with_its_user_or_the_password_that_it_was_opened_with() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let root = client.to_be("root").await;
    for user in ["right", "split"] {
        let token = client.login(user).await;
        let mut stream = Stream::open(door.channel().await, Some(&token), watch("b", ""))
            .await
            .expect("a stream");
        assert!(stream.next().await.created);
        if user == "right" {
            let deleted = root.user_delete(pb::AuthUserDeleteRequest { name: user.into() }).await;
            deleted.expect("it is there");
        } else {
            let change = pb::AuthUserChangePasswordRequest {
                name: user.into(),
                password: "other".into(),
                ..Default::default()
            };
            root.user_change_password(change).await.expect("it is there");
        }
        put(&root, "b").await;
        let ended = stream.next().await;
        assert!(ended.canceled && !ended.created && ended.events.is_empty(), "{user}: {ended:?}");
    }
}

#[tokio::test]
async fn a_watch_of_nobody_ends_once_users_count_and_goes_on_where_it_may_when_they_do_no_more() {
    let door = Door::open().await;
    let mut stream =
        Stream::open(door.channel().await, None, watch("b", "")).await.expect("a stream");
    assert!(stream.next().await.created);
    let client = Client::of(door.channel().await);
    set_up(&client).await;
    let root = client.to_be("root").await;
    put(&root, "b").await;
    let ended = stream.next().await;
    assert!(ended.canceled && ended.events.is_empty(), "{ended:?}");
    assert!(ended.cancel_reason.ends_with("etcdserver: permission denied"), "{ended:?}");
    let token = client.login("right").await;
    let mut of_right =
        Stream::open(door.channel().await, Some(&token), watch("b", "")).await.expect("a stream");
    assert!(of_right.next().await.created);
    root.auth_disable(pb::AuthDisableRequest {}).await.expect("root may");
    client.put(PutRequest { key: "b".into(), ..PutRequest::default() }).await.expect("anybody may");
    assert_eq!(keys(&of_right.next().await), [b"b"]);
    stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    assert_eq!(stream.next().await.watch_id, -1, "the stream itself lives on");
}

#[tokio::test]
async fn a_node_that_knows_nothing_of_users_asks_others_before_it_tells_a_watch_more() {
    let door = with_users().await;
    let client = Client::of(door.channel().await);
    let (root, split) = (client.to_be("root").await, client.login("split").await);
    door.backend.lose_directory();
    let mut stream =
        Stream::open(door.channel().await, Some(&split), watch("b", "c")).await.expect("a stream");
    assert!(stream.next().await.created);
    put(&root, "b").await;
    assert_eq!(keys(&stream.next().await), [b"b"]);
    take_b(&root).await;
    put(&root, "b1").await;
    let ended = stream.next().await;
    assert_eq!((ended.canceled, &*ended.cancel_reason, ended.events.len()), (true, DENIED, 0));
}

#[tokio::test]
async fn a_watch_of_nobody_ends_once_users_count_though_its_node_does_not_hear_of_it() {
    let door = Door::open().await;
    let mut stream =
        Stream::open(door.channel().await, None, watch("b", "")).await.expect("a stream");
    assert!(stream.next().await.created);
    door.backend.lose_directory();
    let client = Client::of(door.channel().await);
    client.put(PutRequest { key: "b".into(), ..PutRequest::default() }).await.expect("anybody may");
    assert_eq!(keys(&stream.next().await), [b"b"], "nobody has switched users on");
    set_up(&client).await;
    put(&client.to_be("root").await, "b").await;
    let ended = stream.next().await;
    assert_eq!((ended.canceled, &*ended.cancel_reason, ended.events.len()), (true, DENIED, 0));
}

#[tokio::test]
async fn a_stream_ends_for_its_client_to_resume_when_nobody_can_be_asked_about_its_watch() {
    let door = with_users().await;
    let right = Client::of(door.channel().await).login("right").await;
    door.backend.lose_directory();
    let mut stream =
        Stream::open(door.channel().await, Some(&right), watch("b", "")).await.expect("a stream");
    assert!(stream.next().await.created);
    door.backend.hold_reads();
    let put = kv::Put { key: "b".into(), ..kv::Put::default() };
    let command = kv::Command {
        body: Some(kv::command::Body::Put(put)),
        caller: Some(Caller::system()),
        ..kv::Command::default()
    };
    door.backend.propose(command).await.expect("a put that asks nobody");
    let asked = timeout(PATIENCE, door.backend.read_is_held()).await;
    asked.expect("it asks others before it tells of the put");
    door.backend.fail_with(Some(BackendError::NoLeader));
    door.backend.release_reads();
    let ended = timeout(PATIENCE, stream.responses.message()).await.expect("in time");
    let ended = ended.expect_err("nobody can be asked");
    // With these words stock clients resume; for want of a leader they would give the watch up.
    let said = (ended.code(), ended.message());
    assert_eq!(said, (Code::Unavailable, "etcdserver: unhealthy cluster"));
}
