//! Clients that keep leases for a while, then let them end or revoke them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
};
use tonic::{Response, Status};

use super::Shared;
use super::calls::call;
use super::servers::{Failure, Servers};
use crate::check::history::{Action, LeaseAction, LeaseAnswer, LeaseCall, Record, Seen};

/// A key of the watchers that watch only leases' keys, for the last write.
pub(super) const END_KEY: &str = "l/end";

/// How often a client looks whether a lease has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Grants, keeps and loses leases until the round ends.
pub(super) async fn work(
    shared: Arc<Shared>,
    mut servers: Servers,
    client: usize,
    mut rng: fastrand::Rng,
) {
    while !shared.stopped() {
        let Some(lease) = grant(&shared, &mut servers).await else {
            shared.pause(LOOK_EVERY).await;
            continue;
        };
        let keys: Vec<String> =
            (0..rng.usize(1..4)).map(|number| format!("l/{lease:x}/{number}")).collect();
        for key in &keys {
            let write = shared.write(key, lease);
            // A put without an answer is not held against anybody; a refused one cannot be.
            let _ =
                call(&shared, &mut servers, client as u32, Action::Put(vec![write]), false).await;
        }
        for _ in 0..rng.usize(0..4) {
            shared.pause(third(&shared)).await;
            keep_alive(&shared, &mut servers, lease).await;
        }
        if rng.bool() {
            revoke(&shared, &mut servers, lease).await;
        }
        watch_end(&shared, &mut servers, client, &keys[0]).await;
    }
}

/// Reads `key` until it is gone, which it should be soon after the lease's time.
async fn watch_end(shared: &Shared, servers: &mut Servers, client: usize, key: &str) {
    let ttl = Duration::from_secs(u64::try_from(shared.args.ttl).unwrap_or(1));
    let until = Instant::now() + 2 * ttl + shared.args.settle;
    while !shared.stopped() && Instant::now() < until {
        let action = Action::Get(key.to_owned());
        match call(shared, servers, client as u32, action, false).await {
            Ok(Some(answer)) if answer.seen == Some(Seen::Nothing) => return,
            _ => shared.pause(LOOK_EVERY).await,
        }
    }
}

/// A third of a lease's time, after which holders keep it alive.
pub(super) fn third(shared: &Shared) -> Duration {
    Duration::from_millis(u64::try_from(shared.args.ttl * 1_000 / 3).unwrap_or(1))
}

/// A new lease, if it is granted.
pub(super) async fn grant(shared: &Shared, servers: &mut Servers) -> Option<i64> {
    let sent_us = shared.now_us();
    let request = LeaseGrantRequest { ttl: shared.args.ttl, id: 0 };
    let mut client = servers.lease();
    let answer = servers.answer(client.lease_grant(request)).await.ok()?;
    let granted = LeaseAnswer { at_us: shared.now_us(), ttl_s: answer.ttl };
    record(shared, answer.id, sent_us, LeaseAction::Grant, Some(granted));
    Some(answer.id)
}

/// Keeps a lease alive, if that is answered. False if there is no such lease any more.
pub(super) async fn keep_alive(shared: &Shared, servers: &mut Servers, lease: i64) -> bool {
    let sent_us = shared.now_us();
    let mut client = servers.lease();
    let asked = async move {
        let request = tokio_stream::iter([LeaseKeepAliveRequest { id: lease }]);
        let mut answers = client.lease_keep_alive(request).await?.into_inner();
        let answer: Option<LeaseKeepAliveResponse> = answers.message().await?;
        answer.map(Response::new).ok_or_else(|| Status::unavailable("the stream ended"))
    };
    let Ok(answer) = servers.answer(asked).await else { return true };
    let kept = LeaseAnswer { at_us: shared.now_us(), ttl_s: answer.ttl };
    record(shared, lease, sent_us, LeaseAction::KeepAlive, Some(kept));
    answer.ttl > 0
}

/// Ends a lease, or tries to.
pub(super) async fn revoke(shared: &Shared, servers: &mut Servers, lease: i64) {
    let sent_us = shared.now_us();
    let mut client = servers.lease();
    let answer = servers.answer(client.lease_revoke(LeaseRevokeRequest { id: lease })).await;
    let answered = LeaseAnswer { at_us: shared.now_us(), ttl_s: 0 };
    match answer {
        Ok(_) => record(shared, lease, sent_us, LeaseAction::Revoke, Some(answered)),
        Err(Failure::Unknown) => record(shared, lease, sent_us, LeaseAction::Revoke, None),
        // It was gone already: the refusal ends nothing.
        Err(Failure::Refused(_)) => {}
    }
}

fn record(
    shared: &Shared,
    lease: i64,
    sent_us: u64,
    action: LeaseAction,
    answer: Option<LeaseAnswer>,
) {
    shared.record(Record::Lease(LeaseCall { lease, sent_us, action, answer }));
}
