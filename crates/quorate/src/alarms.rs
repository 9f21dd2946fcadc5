//! Alarms that a node raises for itself, as etcd's members do. Clearing them is for people.

use std::time::Duration;

use prost::Message;
use quorate_gateway::BackendError;
use quorate_node::Engine;
use quorate_types::auth::Caller;
use quorate_types::kv_maintenance::{Alarm, AlarmKind, ChangeAlarm};
use quorate_types::{GroupId, kv};

use crate::wiring::{backend_error, outcome};

/// How often a node looks whether its replica and the others differ beyond repair.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Raises an alarm about this node. One that is raised already stays as it is.
///
/// # Errors
/// When it is not known to be raised.
pub(crate) async fn raise(engine: &Engine, kind: AlarmKind) -> Result<(), BackendError> {
    let alarm = Alarm { member: engine.node().value(), kind: kind as i32 };
    let change = ChangeAlarm { alarm, raise: true };
    let body = Some(kv::command::Body::ChangeAlarm(change));
    let command = kv::Command { body, caller: Some(Caller::system()), ..kv::Command::default() };
    let proposed = engine.propose(GroupId::FIRST_DATA, command.encode_to_vec().into()).await;
    match outcome(proposed.map_err(backend_error)?.outcome)?.body {
        Some(kv::outcome::Body::Conditions(_)) => Ok(()),
        _ => Err(BackendError::Corrupt),
    }
}

/// Raises CORRUPT for this node, once for each entry after which the keyspace's replicas were found to differ
/// without a majority that could say which is right; from then on nothing is changed until somebody clears it.
/// Where a majority agrees there is no alarm: the others are not read, and rebuild themselves. Runs until it is
/// dropped.
pub async fn tell_of_corruption(engine: &Engine) {
    let mut told = None;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let found = engine.undecided(GroupId::FIRST_DATA);
        if found <= told {
            continue;
        }
        let at = found.unwrap_or_default().value();
        match raise(engine, AlarmKind::Corrupt).await {
            Ok(()) => {
                tracing::error!(
                    at,
                    "the replicas of the keyspace differ, and no majority can say which is right: the alarm CORRUPT is \
                     raised, and nothing is changed until it is cleared"
                );
                told = found;
            }
            // The next look tries again.
            Err(error) => tracing::warn!(at, %error, "the alarm CORRUPT was not raised"),
        }
    }
}
