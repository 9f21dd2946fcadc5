//! Clients that do not take their responses: what they are told in the end, and that nobody waits for them.

use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{CompactionRequest, WatchCancelRequest, WatchProgressRequest};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::support::{Door, PATIENCE, within};
use crate::watch::{hasty, revision, revisions};
use crate::watch_beside_etcd::{Watching, from, put, watch};

/// A connection whose streams have little room: whoever does not read stops its sender soon.
async fn narrow(door: &Door) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", door.address));
    let endpoint = endpoint.expect("an address").initial_stream_window_size(65_535);
    endpoint.timeout(PATIENCE).connect().await.expect("the gateway listens")
}

/// A client that does not read, and one that reads: puts so many values of some bytes, one after the other,
/// under a key that both watch.
async fn slow_and_quick(door: &Door, values: i64, bytes: usize) -> (Watching, Watching) {
    let mut slow = Watching::on(narrow(door).await).await;
    slow.create(watch("k", "")).await;
    let mut quick = Watching::on(door.channel().await).await;
    quick.create(watch("k", "")).await;
    assert!(slow.next().await.created && quick.next().await.created);
    let value = "v".repeat(bytes);
    for number in 0..values {
        quick.kv.put(put("k", &value)).await.expect("a put");
        assert_eq!(revisions(&quick.next().await), [number + 2]);
    }
    (slow, quick)
}

#[tokio::test]
async fn clients_that_do_not_read_keep_nobody_from_the_rows() {
    let door = Door::open().await;
    door.kv().await.put(put("old", "v")).await.expect("a put");
    let mut quick = Watching::on(door.channel().await).await;
    quick.create(watch("live", "")).await;
    assert!(quick.next().await.created);
    door.backend.hold_reads();
    let mut slow = Vec::new();
    for _ in 0..6 {
        let mut client = Watching::on(narrow(&door).await).await;
        client.create(watch("live", "")).await;
        client.create(from(1, watch("old", ""))).await;
        assert!(client.next().await.created && client.next().await.created);
        slow.push(client);
    }
    // As many as may read at a time.
    door.backend.reads_are_held(4).await;
    let value = "v".repeat(100_000);
    for _ in 0..9 {
        quick.kv.put(put("live", &value)).await.expect("a put");
        assert_eq!(quick.next().await.events.len(), 1);
    }
    door.backend.release_reads();
    let mut late = Watching::on(door.channel().await).await;
    late.create(from(1, watch("old", ""))).await;
    assert!(late.next().await.created);
    let told = within("it gets its turn to read", late.next()).await;
    assert_eq!(revisions(&told), [2]);
    for mut client in slow {
        let (mut live, mut old) = (Vec::new(), Vec::new());
        while live.len() < 9 || old.is_empty() {
            let told = client.next().await;
            let seen = if told.watch_id == 0 { &mut live } else { &mut old };
            seen.extend(revisions(&told));
        }
        assert!(live.into_iter().eq(3..12) && old == [2]);
    }
}

#[tokio::test]
async fn a_cancel_is_taken_before_what_waits_for_its_client_and_nothing_is_told_after_it() {
    let door = Door::open().await;
    let (mut slow, _quick) = slow_and_quick(&door, 100, 8_000).await;
    slow.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 })).await;
    let mut seen = Vec::new();
    loop {
        let told = slow.next().await;
        if told.canceled {
            assert_eq!((told.watch_id, told.events.len()), (0, 0));
            break;
        }
        seen.extend(revisions(&told));
        // On the way that the cancel takes too, so that it arrives long before the last event.
        slow.kv.put(put("other", "v")).await.expect("a put");
    }
    assert!(seen.len() < 100 && seen.iter().copied().eq(2..2 + seen.len() as i64), "{seen:?}");
    slow.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let nothing = slow.next().await;
    assert_eq!((nothing.watch_id, nothing.events.len()), (-1, 0));
}

#[tokio::test]
async fn an_ending_does_not_wait_until_everything_is_told() {
    let door = hasty().await;
    let (mut slow, mut quick) = slow_and_quick(&door, 100, 8_000).await;
    door.backend.cut_off(true);
    assert_eq!(quick.end().await.code(), Code::Unavailable);
    let mut seen = Vec::new();
    while let Some(told) = slow.response().await {
        seen.extend(revisions(&told));
    }
    assert!(seen.len() < 100 && seen.iter().copied().eq(2..2 + seen.len() as i64), "{seen:?}");
}

#[tokio::test]
async fn a_slow_client_that_compaction_overtakes_gets_what_waits_and_is_told_the_compaction() {
    let door = Door::open().await;
    let (mut slow, mut quick) = slow_and_quick(&door, 40, 100_000).await;
    let (_, page) = door.page("/metrics").await;
    assert!(page.contains("etcd_debugging_mvcc_slow_watcher_total 1\n"), "{page}");
    let compact = CompactionRequest { revision: 41, physical: false };
    quick.kv.compact(compact).await.expect("a compaction");
    let mut seen = Vec::new();
    let end = loop {
        let told = slow.next().await;
        if told.canceled {
            break told;
        }
        seen.extend(revisions(&told));
    };
    assert_eq!((end.watch_id, end.compact_revision, end.events.len()), (0, 41, 0));
    // A watcher may have 1 MiB waiting.
    assert!(seen.len() >= 10 && seen.iter().copied().eq(2..2 + seen.len() as i64), "{seen:?}");
    assert!(seen.len() < 39, "nothing was compacted that it needed: {seen:?}");
}

#[tokio::test]
async fn progress_is_not_told_while_one_of_two_watches_lags() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    for _ in 0..3 {
        kv.put(put("old", "v")).await.expect("a put");
    }
    let mut client = Watching::on(door.channel().await).await;
    client.create(watch("live", "")).await;
    assert!(client.next().await.created);
    door.backend.hold_reads();
    client.create(from(2, watch("old", ""))).await;
    assert!(client.next().await.created);
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    for number in 0..3 {
        kv.put(put("live", "v")).await.expect("a put");
        let told = client.next().await;
        assert_eq!((told.watch_id, revisions(&told)), (0, vec![number + 5]));
    }
    within("a read is held", door.backend.read_is_held()).await;
    door.backend.release_reads();
    let told = client.next().await;
    assert_eq!((told.watch_id, revisions(&told)), (1, vec![2, 3, 4]));
    let progress = client.next().await;
    assert_eq!((progress.watch_id, revision(&progress), progress.events.len()), (-1, 7, 0));
}
