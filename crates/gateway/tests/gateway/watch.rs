//! What a watch promises, and what ends one.

use std::time::Duration;

use quorate_api::etcdserverpb::WatchCreateRequest;
use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{CompactionRequest, WatchProgressRequest, WatchResponse};
use quorate_gateway::GatewayConfig;
use tonic::{Code, Request};

use crate::support::{Door, heard, within};
use crate::watch_beside_etcd::{Watching, from, put, watch};

pub(crate) fn revisions(response: &WatchResponse) -> Vec<i64> {
    let revision = |event: &quorate_api::mvccpb::Event| {
        event.kv.as_ref().expect("every event has a pair").mod_revision
    };
    response.events.iter().map(revision).collect()
}

pub(crate) fn revision(response: &WatchResponse) -> i64 {
    response.header.expect("every response has a header").revision
}

#[tokio::test]
async fn a_watch_resumes_without_a_gap_from_where_another_ended() {
    let door = Door::open().await;
    let mut client = Watching::on(door.channel().await).await;
    client.create(watch("k", "l")).await;
    assert!(client.next().await.created);
    let mut seen = Vec::new();
    for round in 0..20 {
        for number in 0..5 {
            client.kv.put(put(&format!("k{number}"), "v")).await.expect("a put");
        }
        // It has heard of some of them only.
        while seen.len() < round * 5 + 2 {
            seen.extend(revisions(&client.next().await));
        }
        let start_revision = seen.last().expect("some were heard") + 1;
        client = Watching::on(door.channel().await).await;
        client.create(WatchCreateRequest { start_revision, ..watch("k", "l") }).await;
        assert!(client.next().await.created);
    }
    while seen.len() < 100 {
        seen.extend(revisions(&client.next().await));
    }
    assert!(seen.into_iter().eq(2..102));
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    let door = Door::open().await;
    let mut slow = Watching::on(door.channel().await).await;
    slow.create(watch("k", "")).await;
    let mut quick = Watching::on(door.channel().await).await;
    quick.create(watch("k", "")).await;
    assert!(slow.next().await.created && quick.next().await.created);
    let value = "v".repeat(500_000);
    for number in 0..60 {
        quick.kv.put(put("k", &value)).await.expect("a put");
        assert_eq!(revisions(&quick.next().await), [number + 2]);
    }
    let (_, page) = door.page("/metrics").await;
    assert!(page.contains("etcd_debugging_mvcc_slow_watcher_total 1\n"), "{page}");
    let mut seen = Vec::new();
    while seen.len() < 60 {
        seen.extend(revisions(&slow.next().await));
    }
    assert!(seen.into_iter().eq(2..62));
}

#[tokio::test]
async fn large_responses_come_in_fragments_to_those_who_ask_for_it() {
    let config = GatewayConfig { max_request_bytes: 100_000, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let mut client = Watching::on(door.channel().await).await;
    let value = "v".repeat(90_000);
    for number in 0..10 {
        client.kv.put(put(&format!("k{number:02}"), &value)).await.expect("a put");
    }
    client
        .create(WatchCreateRequest { start_revision: 2, fragment: true, ..watch("k", "l") })
        .await;
    assert!(client.next().await.created);
    let (mut seen, mut parts) = (Vec::new(), Vec::new());
    while seen.len() < 10 {
        let part = client.next().await;
        seen.extend(revisions(&part));
        parts.push(part.fragment);
    }
    assert!(seen.into_iter().eq(2..12));
    let (last, others) = parts.split_last().expect("there are parts");
    assert!(!last && !others.is_empty() && others.iter().all(|fragment| *fragment), "{parts:?}");
}

#[tokio::test]
async fn a_watch_from_below_the_compaction_is_cancelled_although_what_it_wants_is_in_memory() {
    let door = Door::open().await;
    let mut live = Watching::on(door.channel().await).await;
    live.create(watch("k", "")).await;
    assert!(live.next().await.created);
    for number in 2..7 {
        live.kv.put(put("k", "v")).await.expect("a put");
        assert_eq!(revisions(&live.next().await), [number]);
    }
    let compact = CompactionRequest { revision: 4, physical: false };
    live.kv.compact(compact).await.expect("it is in the past");
    let mut late = Watching::on(door.channel().await).await;
    late.create(from(3, watch("k", ""))).await;
    assert!(late.next().await.created);
    let ended = late.next().await;
    assert!(ended.canceled && ended.events.is_empty(), "{ended:?}");
    assert_eq!(ended.compact_revision, 4);
    late.create(from(5, watch("k", ""))).await;
    assert!(late.next().await.created);
    assert_eq!(revisions(&late.next().await), [5, 6]);
}

#[tokio::test]
async fn progress_is_told_when_everything_before_it_was() {
    let door = Door::open().await;
    let mut client = Watching::on(door.channel().await).await;
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let nothing = client.next().await;
    assert_eq!((nothing.watch_id, revision(&nothing), nothing.events.len()), (-1, 1, 0));
    for number in 0..50 {
        client.kv.put(put(&format!("k{number}"), "v")).await.expect("a put");
    }
    client.create(WatchCreateRequest { start_revision: 1, ..watch("k", "l") }).await;
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    assert!(client.next().await.created);
    let mut seen = Vec::new();
    loop {
        let response = client.next().await;
        seen.extend(revisions(&response));
        if response.watch_id == -1 {
            assert_eq!(revision(&response), 51);
            break;
        }
    }
    assert!(seen.into_iter().eq(2..52));
}

#[tokio::test]
async fn a_quiet_watch_that_wants_it_is_told_how_far_everything_is() {
    let interval = Duration::from_millis(20);
    let config = GatewayConfig { watch_progress_interval: interval, ..GatewayConfig::default() };
    let door = Door::open_with(config).await;
    let mut client = Watching::on(door.channel().await).await;
    client.create(WatchCreateRequest { progress_notify: true, ..watch("k", "") }).await;
    assert!(client.next().await.created);
    for _ in 0..3 {
        let progress = client.next().await;
        assert_eq!((progress.watch_id, revision(&progress), progress.events.len()), (0, 1, 0));
    }
    client.kv.put(put("other", "v")).await.expect("a put");
    while revision(&client.next().await) < 2 {}
}

#[tokio::test]
async fn the_created_header_is_not_below_what_was_answered_before() {
    let door = Door::open().await;
    let mut client = Watching::on(door.channel().await).await;
    door.backend.lag_behind();
    for _ in 0..5 {
        client.kv.put(put("k", "v")).await.expect("a put");
    }
    client.create(watch("k", "")).await;
    assert_eq!(revision(&client.next().await), 6);
    client.kv.put(put("k", "v")).await.expect("a put");
    assert_eq!(revisions(&client.next().await), [7]);
}

#[tokio::test]
async fn streams_end_when_the_gateway_does() {
    let door = Door::open().await;
    let mut client = Watching::on(door.channel().await).await;
    client.create(watch("k", "")).await;
    assert!(client.next().await.created);
    drop(door.shutdown);
    let status = client.end().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "etcdserver: server stopped")
    );
    door.served.await.expect("it has stopped");
}

/// A door where an election takes next to no time, so that nobody waits long in vain.
pub(crate) async fn hasty() -> Door {
    let election_timeout = Duration::from_millis(20);
    Door::open_with(GatewayConfig { election_timeout, ..GatewayConfig::default() }).await
}

#[tokio::test]
async fn all_streams_end_at_a_node_that_is_cut_off_and_go_on_without_a_gap() {
    let door = hasty().await;
    let mut client = Watching::on(door.channel().await).await;
    client.create(watch("k", "")).await;
    assert!(client.next().await.created);
    client.kv.put(put("k", "v")).await.expect("a put");
    assert_eq!(revisions(&client.next().await), [2]);
    door.backend.cut_off(true);
    let said = |status: tonic::Status| (status.code(), status.message().to_owned());
    let unhealthy = (Code::Unavailable, "etcdserver: unhealthy cluster".to_owned());
    assert_eq!(said(client.end().await), unhealthy);
    // Whoever comes now does not wait for it.
    let mut late = Watching::on(door.channel().await).await;
    late.create(watch("k", "")).await;
    assert_eq!(said(late.end().await), unhealthy);
    client.kv.put(put("k", "w")).await.expect("a put that others took");
    door.backend.cut_off(false);
    // Streams go on to end until it is seen that the node is back.
    let resumed = async {
        loop {
            let mut again = Watching::on(door.channel().await).await;
            again.create(WatchCreateRequest { start_revision: 3, ..watch("k", "") }).await;
            let Some(created) = again.response().await else { continue };
            assert!(created.created);
            break revisions(&again.next().await);
        }
    };
    assert_eq!(within("the node is seen to be back", resumed).await, [3]);
}

#[tokio::test]
async fn streams_that_require_a_leader_end_without_one_and_others_stay() {
    let door = hasty().await;
    let mut other = Watching::on(door.channel().await).await;
    other.create(watch("k", "")).await;
    assert!(other.next().await.created);
    let (requests, sent) = tokio::sync::mpsc::channel(1);
    let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(sent));
    request.metadata_mut().insert("hasleader", "true".parse().expect("metadata"));
    let mut stream = door.watch().await.watch(request).await.expect("a stream").into_inner();
    door.backend.lose_leader();
    let status = heard(&mut stream).await.expect_err("it ends");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    let counted =
        r#"grpc_service="etcdserverpb.Watch",grpc_method="Watch",grpc_code="Unavailable"} 1"#;
    assert!(door.page("/metrics").await.1.contains(counted));
    other.kv.put(put("k", "v")).await.expect("a put");
    assert_eq!(revisions(&other.next().await), [2]);
    drop(requests);
}
