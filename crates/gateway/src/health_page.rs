//! `/health` as etcd's: an alarm that is raised, else no leader, else a read that does not come back.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use quorate_types::kv_maintenance::{Alarm, AlarmKind};
use tokio::time::{Instant, timeout_at};

use crate::backend::{Backend, Consistency};
use crate::desk::Desk;
use crate::error::ApiError;
use crate::http::{Query, TEXT, page};

/// How long the page waits for its reads, together: shorter than the timeouts of probes, so that they see why.
const TIMEOUT: Duration = Duration::from_secs(5);

/// etcd's health check: no alarm is raised, a leader is known, and a linearizable read comes back.
///
/// With `serializable=true` no leader is needed: the local replica answers. `exclude` names alarms that
/// are not to count, and may come several times.
pub(crate) async fn health<B: Backend>(desk: &Desk<B>, query: Query<'_>) -> Response<Full<Bytes>> {
    match what_is_wrong(desk, query).await {
        None => page(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#),
        // etcd ends this one with a line feed, and not the other. The reason is of fixed words, none of which
        // JSON would have to escape.
        Some(reason) => {
            let body = format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n");
            page(StatusCode::SERVICE_UNAVAILABLE, TEXT, body)
        }
    }
}

async fn what_is_wrong<B: Backend>(desk: &Desk<B>, query: Query<'_>) -> Option<String> {
    let deadline = Instant::now() + TIMEOUT;
    let look = async |consistency| match timeout_at(deadline, desk.alarms(consistency)).await {
        Ok(Ok(alarms)) => Ok(raised(&alarms, query)),
        Ok(Err(error)) => Err(format!("RANGE ERROR:{}", ApiError::from(error).text())),
        Err(_) => Err("RANGE ERROR:context deadline exceeded".to_owned()),
    };
    // What this node knows comes first, as with etcd: an alarm is named even where there is no leader.
    let known_here = look(Consistency::Serializable).await;
    if let Ok(Some(alarm)) = known_here {
        return Some(alarm);
    }
    if query.is("serializable", "true") {
        return known_here.err();
    }
    if desk.backend.node_status().leader.is_none() {
        return Some("RAFT NO LEADER".to_owned());
    }
    look(Consistency::Linearizable).await.unwrap_or_else(Some)
}

/// The first alarm that counts, in etcd's words.
fn raised(alarms: &[Alarm], query: Query<'_>) -> Option<String> {
    let names = alarms.iter().map(|alarm| match AlarmKind::try_from(alarm.kind) {
        Ok(AlarmKind::NoSpace) => "NOSPACE",
        Ok(AlarmKind::Corrupt) => "CORRUPT",
        Ok(AlarmKind::None) | Err(_) => "UNKNOWN",
    });
    let mut counting = names.filter(|name| !query.is("exclude", name));
    counting.next().map(|name| format!("ALARM {name}"))
}
