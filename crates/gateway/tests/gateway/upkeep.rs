//! Alarms, downgrades, compactions and snapshots: the same calls to a real etcd and to the gateway, and what the
//! gateway does by itself.

use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_api::etcdserverpb::{
    AlarmRequest, CompactionRequest, DefragmentRequest, DeleteRangeRequest, DowngradeRequest,
    PutRequest, RangeRequest, SnapshotRequest, StatusRequest,
};
use quorate_gateway::{BackendError, BackupError, Consistency};
use sha2::{Digest, Sha256};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::peer::Etcd;
use crate::support::{Door, within};

fn code<T>(result: Result<T, Status>) -> (Code, String) {
    result.map_or_else(
        |status| (status.code(), status.message().to_owned()),
        |_| (Code::Ok, String::new()),
    )
}

/// What one server says to all of it, in words.
async fn said(channel: Channel) -> Vec<String> {
    let mut kv = KvClient::new(channel.clone());
    let mut maintenance = MaintenanceClient::new(channel);
    let mut said = Vec::new();
    // Action, kind and member: raise, raise again, list, list by kind, clear, and what is not there.
    for (action, alarm, member_id) in [
        (1, 1, 5),
        (1, 1, 5),
        (1, 1, 6),
        (0, 0, 0),
        (0, 2, 0),
        (1, 0, 5),
        (2, 2, 5),
        (2, 1, 6),
        (2, 1, 6),
        (1, 2, 5),
        (2, 1, 5),
        (2, 2, 5),
        (0, 0, 0),
    ] {
        let request = AlarmRequest { action, alarm, member_id };
        let answer = maintenance.alarm(request).await.map(|answer| answer.into_inner().alarms);
        said.push(format!("alarm {action} {alarm} {member_id}: {answer:?}"));
        let put = PutRequest { key: "k".into(), ..PutRequest::default() };
        said.push(format!("put: {:?}", code(kv.put(put).await)));
        let delete = DeleteRangeRequest { key: "none".into(), ..DeleteRangeRequest::default() };
        said.push(format!("delete: {:?}", code(kv.delete_range(delete).await)));
        let range = RangeRequest { key: "k".into(), ..RangeRequest::default() };
        said.push(format!("range: {:?}", code(kv.range(range).await)));
        let compact = CompactionRequest { revision: 99, physical: false };
        said.push(format!("compact: {:?}", code(kv.compact(compact).await)));
        // The order of several is etcd's hash map's.
        let mut errors = maintenance.status(StatusRequest {}).await.unwrap().into_inner().errors;
        errors.sort();
        said.push(format!("status: {errors:?}"));
    }
    for (action, version) in [
        (0, "3.4.0"),
        (0, "3.4"),
        (0, "3.3.0"),
        (0, "x"),
        (0, ""),
        (0, "3.4.9"),
        (0, "3"),
        (2, ""),
        (1, "3.3"),
    ] {
        let request = DowngradeRequest { action, version: version.to_owned() };
        let answer = maintenance.downgrade(request).await;
        let answer = answer.map(|answer| answer.into_inner().version);
        said.push(match answer {
            Ok(version) => format!("downgrade: {version}"),
            Err(status) => format!("downgrade: {:?}", code::<()>(Err(status))),
        });
    }
    said
}

#[tokio::test]
async fn alarms_and_downgrades_are_answered_as_etcd_does() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let expected = said(etcd.channel()).await;
    let sorted = |said: Vec<String>| -> Vec<String> {
        // Of two alarms, etcd lists either first.
        said.into_iter().filter(|line| !line.starts_with("alarm 0 0 0: Ok([A")).collect()
    };
    let (mut ours, mut theirs) = (sorted(said(door.channel().await).await), sorted(expected));
    // Once one alarm is cleared, etcd 3.5.1 takes writes again although another one is still raised.
    let cleared = ours.iter().rposition(|line| line.starts_with("put: (DataLoss"));
    let cleared = cleared.expect("a cluster that is damaged takes no writes");
    for said in [&mut ours, &mut theirs] {
        said.drain(cleared..cleared + 4);
    }
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn a_kind_of_alarm_that_does_not_exist_is_refused() {
    let door = Door::open().await;
    let mut maintenance = door.maintenance().await;
    for (action, alarm) in [(1, 7), (9, 1)] {
        let request = AlarmRequest { action, alarm, member_id: 1 };
        assert_eq!(code(maintenance.alarm(request).await).0, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn space_is_given_back_before_a_defragmentation_is_answered() {
    let door = Door::open().await;
    let answer = door.maintenance().await.defragment(DefragmentRequest {}).await;
    assert_eq!(answer.expect("it is done").into_inner().header, None, "as etcd's");
    assert_eq!(door.backend.defragmented(), 1);
    door.backend.fail_with(Some(BackendError::Stopping));
    let refused = code(door.maintenance().await.defragment(DefragmentRequest {}).await);
    assert_eq!(refused.0, Code::Unavailable);
}

#[tokio::test]
async fn a_snapshot_counts_down_and_ends_with_its_checksum() {
    let door = Door::open().await;
    let mut maintenance = door.maintenance().await;
    let mut stream = maintenance.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let (mut parts, mut left) = (Vec::new(), Vec::new());
    while let Some(part) = within("the next part", stream.next()).await {
        let part = part.unwrap();
        parts.push(part.blob);
        left.push(part.remaining_bytes);
    }
    let sha = parts.pop().unwrap();
    let content = parts.concat();
    assert_eq!(content, "Etcd ".repeat(30_000).as_bytes());
    assert_eq!(sha[..], Sha256::digest(&content)[..]);
    assert!(left.is_sorted_by(|before, after| before >= after) && parts.len() > 1);
    assert_eq!(left[0], (content.len() - parts[0].len()) as u64);
    assert_eq!(left.last(), Some(&0));
}

#[tokio::test]
async fn a_snapshot_that_would_be_too_large_is_refused_and_told_what_to_do_instead() {
    let door = Door::open().await;
    let mut maintenance = door.maintenance().await;
    for (failure, code, text) in [
        (
            BackupError::TooLarge,
            Code::ResourceExhausted,
            "quorate: more than 8 GiB for a snapshot: use `quorate backup`",
        ),
        (BackupError::Busy, Code::ResourceExhausted, "quorate: a snapshot is being taken already"),
        (
            BackupError::NoSpace,
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        (
            BackupError::Failed("the disk".to_owned()),
            Code::Unavailable,
            "quorate: the snapshot failed; the node's log says why",
        ),
    ] {
        door.backend.fail_backups(failure);
        let refused = maintenance.snapshot(SnapshotRequest {}).await.expect_err("no snapshot");
        assert_eq!((refused.code(), refused.message()), (code, text));
    }
}

/// Waits until the local replica was asked so often.
async fn looks(door: &Door, count: usize) {
    let looks = async {
        let mut seen = 0;
        while seen < count {
            let reads = door.backend.next_reads().await;
            seen += reads.iter().filter(|read| **read == Consistency::Serializable).count();
        }
    };
    within("the compaction waits for the sweep", looks).await;
}

#[tokio::test]
async fn a_physical_compaction_is_answered_when_its_rows_are_gone_and_another_one_at_once() {
    let door = Door::open().await;
    let mut kv = door.kv().await;
    for _ in 0..5 {
        let put = PutRequest { key: "k".into(), ..PutRequest::default() };
        kv.put(put).await.expect("a put");
    }
    door.backend.sweep_to(0);
    let mut other = kv.clone();
    let physical = CompactionRequest { revision: 3, physical: true };
    let waits = tokio::spawn(async move { other.compact(physical).await });
    door.backend.take_reads();
    for swept in [0, 1, 2] {
        door.backend.sweep_to(swept);
        looks(&door, 2).await;
        assert!(!waits.is_finished(), "swept to {swept}");
    }
    let logical = CompactionRequest { revision: 5, physical: false };
    kv.compact(logical).await.expect("nobody waits for the sweep");
    assert!(!waits.is_finished());
    // The sweep is at its revision, and behind the other one's.
    door.backend.sweep_to(3);
    let compacted =
        within("the compaction ends", waits).await.expect("no panic").expect("it is done");
    assert_eq!(compacted.into_inner().header.expect("a header").revision, 6);
}
