//! The pairs before events: all of them, few reads for many watchers, and little of them at a time.

use prost::Message;
use quorate_api::etcdserverpb::{WatchCreateRequest, WatchResponse};
use quorate_types::kv;

use crate::support::Door;
use crate::watch::revisions;
use crate::watch_beside_etcd::{Watching, put, watch, with_prev};

fn put_body(key: &str, value: &str) -> kv::command::Body {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    kv::command::Body::Put(kv::Put { key, value, ..kv::Put::default() })
}

fn delete_body(key: &str) -> kv::command::Body {
    let key = key.to_owned().into();
    kv::command::Body::DeleteRange(kv::DeleteRange { key, ..kv::DeleteRange::default() })
}

/// Of what revisions the pairs before the events are; 0 where there is none.
fn befores(response: &WatchResponse) -> Vec<i64> {
    let prev_kvs = response.events.iter().map(|event| event.prev_kv.as_ref());
    prev_kvs.map(|prev_kv| prev_kv.map_or(0, |prev_kv| prev_kv.mod_revision)).collect()
}

#[tokio::test]
async fn one_read_gives_many_watchers_their_pairs_of_before() {
    let door = Door::open().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Watching::on(door.channel().await).await;
        for _ in 0..20 {
            client.create(with_prev(watch("k", ""))).await;
            assert!(client.next().await.created);
        }
        clients.push(client);
    }
    let mut kv = door.kv().await;
    kv.put(put("k", "1")).await.expect("a put");
    for client in &mut clients {
        for _ in 0..20 {
            assert_eq!(befores(&client.next().await), [0]);
        }
    }
    door.backend.take_reads();
    kv.put(put("k", "2")).await.expect("a put");
    for client in &mut clients {
        for _ in 0..20 {
            assert_eq!(befores(&client.next().await), [2]);
        }
    }
    assert_eq!(door.backend.take_reads().len(), 1);
}

#[tokio::test]
async fn every_event_of_a_batch_has_its_pair_of_before_however_many_there_are() {
    let door = Door::open().await;
    let mut all = Watching::on(door.channel().await).await;
    all.create(with_prev(watch("", "\0"))).await;
    let mut one = Watching::on(door.channel().await).await;
    one.create(with_prev(watch("k1", ""))).await;
    assert!(all.next().await.created && one.next().await.created);
    // More than one answer of the backend tells of.
    door.backend.apply_all((0..3_000).map(|number| put_body(&format!("k{}", number % 3), "v")));
    let (mut seen, mut before) = (Vec::new(), Vec::new());
    while seen.len() < 3_000 {
        let told = all.next().await;
        seen.extend(revisions(&told));
        before.extend(befores(&told));
    }
    assert!(seen.into_iter().eq(2..3_002));
    assert!(before.into_iter().eq([0; 3].into_iter().chain(2..2_999)));
    let (mut seen, mut before) = (Vec::new(), Vec::new());
    while seen.len() < 1_000 {
        let told = one.next().await;
        seen.extend(revisions(&told));
        before.extend(befores(&told));
    }
    assert!(seen.into_iter().eq((0..1_000).map(|number| 3 + 3 * number)));
    assert!(before.into_iter().eq([0].into_iter().chain((0..999).map(|number| 3 + 3 * number))));
}

#[tokio::test]
async fn large_pairs_of_before_are_told_some_revisions_at_a_time() {
    let door = Door::open().await;
    let (bytes, keys) = (300_000, (0..12).map(|number| format!("k{number:02}")));
    door.backend.apply_all(keys.clone().map(|key| put_body(&key, &"v".repeat(bytes))));
    let mut all = Watching::on(door.channel().await).await;
    all.create(with_prev(watch("k", "l"))).await;
    let mut one = Watching::on(door.channel().await).await;
    one.create(with_prev(watch("k07", ""))).await;
    let mut past = Watching::on(door.channel().await).await;
    assert!(all.next().await.created && one.next().await.created);
    door.backend.apply_all(keys.map(|key| delete_body(&key)));
    let told = one.next().await;
    assert_eq!((revisions(&told), befores(&told)), (vec![21], vec![9]));
    past.create(WatchCreateRequest { start_revision: 14, ..with_prev(watch("k", "l")) }).await;
    assert!(past.next().await.created);
    for mut client in [all, past] {
        let (mut seen, mut before) = (Vec::new(), Vec::new());
        while seen.len() < 12 {
            let told = client.next().await;
            assert!(told.encoded_len() < (1 << 20) + bytes + 10_000, "{}", told.encoded_len());
            seen.extend(revisions(&told));
            before.extend(befores(&told));
        }
        assert!(seen.into_iter().eq(14..26) && before.into_iter().eq(2..14));
    }
}
