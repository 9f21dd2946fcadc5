//! `/health` under alarms: the same pages of a real etcd and of the gateway.

use quorate_api::etcdserverpb::AlarmRequest;
use quorate_api::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_gateway::BackendError;
use tonic::transport::Channel;

use crate::peer::Etcd;
use crate::support::{Door, page};

const RAISE: i32 = 1;
const CLEAR: i32 = 2;
const NO_SPACE: i32 = 1;
const CORRUPT: i32 = 2;

/// An action, the alarm, and its member.
type Change = (i32, i32, u64);

/// Each step changes an alarm; then each of its pages is asked for.
const STEPS: [(Option<Change>, &[&str]); 7] = [
    (None, &["/health", "/health?serializable=true", "/health?exclude=NOSPACE"]),
    (
        Some((RAISE, NO_SPACE, 5)),
        &[
            "/health",
            "/health?serializable=true",
            "/health?exclude=NOSPACE",
            "/health?exclude=CORRUPT",
            "/health?exclude=nospace",
            "/health?exclude",
            "/health?exclude=",
            "/health?exclude=NOSPACE,CORRUPT",
            "/health?serializable=true&exclude=NOSPACE",
        ],
    ),
    // Of two alarms etcd names either.
    (
        Some((RAISE, CORRUPT, 6)),
        &[
            "/health?exclude=NOSPACE",
            "/health?exclude=CORRUPT",
            "/health?exclude=NOSPACE&exclude=CORRUPT",
            "/health?serializable=true&exclude=NOSPACE",
        ],
    ),
    (Some((CLEAR, NO_SPACE, 5)), &["/health", "/health?exclude=CORRUPT"]),
    // One that was not raised.
    (Some((CLEAR, CORRUPT, 5)), &["/health"]),
    (Some((CLEAR, CORRUPT, 6)), &["/health"]),
    (Some((RAISE, 0, 6)), &["/health"]),
];

async fn pages(address: &str, channel: Channel) -> Vec<String> {
    let mut maintenance = MaintenanceClient::new(channel);
    let mut pages = Vec::new();
    for (change, paths) in STEPS {
        if let Some((action, alarm, member_id)) = change {
            let request = AlarmRequest { action, alarm, member_id };
            maintenance.alarm(request).await.expect("an alarm changes");
        }
        for path in paths {
            pages.push(format!("{change:?} {path}: {:?}", page(address, path).await));
        }
    }
    pages
}

#[tokio::test]
async fn alarms_are_named_by_the_page_as_by_etcds() {
    let Some(etcd) = Etcd::start().await else { return };
    let door = Door::open().await;
    let ours = pages(&door.address.to_string(), door.channel().await).await;
    let theirs = pages(&etcd.address, etcd.channel()).await;
    assert_eq!(ours, theirs);
    assert!(ours.iter().any(|page| page.contains("503") && page.contains("ALARM CORRUPT")));
}

#[tokio::test]
async fn an_alarm_is_named_before_what_else_is_wrong_and_what_it_needs_is_asked_of_the_leader() {
    let door = Door::open().await;
    let raise = async |alarm: i32| {
        let request = AlarmRequest { action: RAISE, alarm, member_id: 5 };
        door.maintenance().await.alarm(request).await.expect("raised");
    };
    // The local replica has not heard of it yet; a linearizable read has.
    door.backend.lag_behind();
    raise(NO_SPACE).await;
    let reason = |page: (u16, String)| {
        let text = page.1.trim_end().to_owned();
        let reason = text.strip_prefix(r#"{"health":"false","reason":""#);
        let reason = reason.and_then(|rest| rest.strip_suffix(r#""}"#)).unwrap_or_default();
        (page.0, reason.to_owned())
    };
    let expect = async |path: &str, expected: &str| {
        let status = if expected.is_empty() { 200 } else { 503 };
        let found = reason(door.page(path).await);
        assert_eq!(found, (status, expected.to_owned()), "{path}");
    };
    expect("/health", "ALARM NOSPACE").await;
    expect("/health?serializable=true", "").await;
    door.backend.lag_behind();
    expect("/health?serializable=true", "ALARM NOSPACE").await;
    door.backend.lose_leader();
    expect("/health", "ALARM NOSPACE").await;
    expect("/health?exclude=NOSPACE", "RAFT NO LEADER").await;
    expect("/health?exclude=NOSPACE&serializable=true", "").await;
    door.backend.fail_with(Some(BackendError::Stopping));
    expect("/health", "RAFT NO LEADER").await;
    expect("/health?serializable=true", "RANGE ERROR:etcdserver: server stopped").await;
}
